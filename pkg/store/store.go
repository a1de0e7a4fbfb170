// Package store says what a vault needs from the place where its records lie.
//
// A Store keeps ciphertext records. It never sees a key or a plaintext.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// MaxKey bounds a record's key, in bytes. A key does not begin with a zero
	// byte: a store may have records of its own there.
	MaxKey = 512
	// MaxValue bounds a record, in bytes.
	MaxValue = 1 << 20
)

var (
	// ErrNoVault is wrapped by the error of opening a vault that does not exist.
	ErrNoVault = errors.New("no vault")
	// ErrBusy is wrapped by the error of a store that others kept in use until
	// the deadline.
	ErrBusy = errors.New("vault is in use")
	// ErrDamaged is wrapped by the error of a store whose own structure, beneath
	// the records, cannot be read.
	ErrDamaged = errors.New("vault file is damaged")
	// ErrUnavailable is wrapped by the error of a store that cannot be reached, or
	// cannot work, at the moment.
	ErrUnavailable = errors.New("vault is not available")
	// ErrDenied is wrapped by the error of a store that does not let the caller do
	// this.
	ErrDenied = errors.New("not allowed")
)

// Take says which of the records at a key are meant.
type Take byte

// What a Range takes.
const (
	One  Take = iota // the record with that key
	All              // all whose keys start with it
	Last             // of these, the one with the highest key
)

// Range names records: none, one or many.
type Range struct {
	Key  []byte
	Take Take
}

// Record is a key and what lies there.
type Record struct{ Key, Value []byte }

// Reader reads records from one consistent snapshot. What it returns is valid
// until the snapshot ends and must not be changed.
type Reader interface {
	// Get returns the record at key, or nil if there is none.
	Get(key []byte) ([]byte, error)
	// Scan calls fn for every record whose key starts with prefix, in byte order,
	// until fn returns an error, which Scan returns. fn may use the Reader.
	Scan(prefix []byte, fn func(key, value []byte) error) error
	// Last returns the last record whose key starts with prefix, or nils.
	Last(prefix []byte) (key, value []byte, err error)
	// Fetch says what will be read next: a store that is far away brings it all in
	// one trip. Reading the same without it gives the same.
	Fetch(ranges ...Range) error
}

// Dated is a Reader of what was so at an earlier time, which it tells: that of a
// cache.
type Dated interface {
	Reader
	AsOf() time.Time
}

// Op writes one record, or deletes it when Value is nil.
type Op struct{ Key, Value []byte }

// Batch is written as a whole or not at all. Of two writes to one key, the later
// one wins.
type Batch []Op

// Put appends a write.
func (b *Batch) Put(key, value []byte) { *b = append(*b, Op{key, value}) }

// Delete appends a deletion. Deleting what is not there is no error.
func (b *Batch) Delete(key []byte) { *b = append(*b, Op{key, nil}) }

// Check refuses a batch with a key or value out of bounds.
func (b Batch) Check() error {
	for _, op := range b {
		if n := len(op.Key); n == 0 || n > MaxKey {
			return fmt.Errorf("record key of %d bytes, the bounds are 1 and %d", n, MaxKey)
		}
		if n := len(op.Value); n > MaxValue || (op.Value != nil && n == 0) {
			return fmt.Errorf("record of %d bytes, the bounds are 1 and %d", n, MaxValue)
		}
	}
	return nil
}

// Store keeps the records of one account. Its methods are safe for use by many
// goroutines and, on the same underlying storage, by many processes. They stop
// waiting for others when ctx ends.
type Store interface {
	// View calls fn with a snapshot. fn may be called again on a newer one: only
	// what the last call found counts.
	View(ctx context.Context, fn func(Reader) error) error
	// Update calls fn with a snapshot and commits the batch that it returns, as
	// if nothing had come between: no write that fn did not see is ever lost or
	// overwritten. fn may be called again on a newer snapshot. When fn fails,
	// nothing is written. An empty batch writes nothing.
	Update(ctx context.Context, fn func(Reader) (Batch, error)) error
}
