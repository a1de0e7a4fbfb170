package embedded

import (
	"bytes"
	"context"

	bbolt "go.etcd.io/bbolt"

	"github.com/opaquevault/ov/pkg/store"
)

// reader reads one account in a snapshot. What it returns are copies: a slice of
// the mapped file that outlived its snapshot would come to show what is written
// there next, of any account.
type reader struct {
	ctx     context.Context
	b       *bbolt.Bucket
	isDirty bool // others have written in this transaction
}

// Get implements store.Reader.
func (r reader) Get(key []byte) ([]byte, error) {
	return bytes.Clone(r.b.Get(key)), r.ctx.Err()
}

// Scan implements store.Reader.
func (r reader) Scan(prefix []byte, fn func(key, value []byte) error) error {
	c := r.b.Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := fn(bytes.Clone(k), bytes.Clone(v)); err != nil {
			return err
		}
	}
	return r.ctx.Err()
}

// Last implements store.Reader.
func (r reader) Last(prefix []byte) (key, value []byte, err error) {
	if r.isDirty { // bbolt's way back ends at a page that was emptied
		err = r.Scan(prefix, func(k, v []byte) error { key, value = k, v; return nil })
		return key, value, err
	}
	c := r.b.Cursor()
	var beyond []byte
	if after := store.After(prefix); after != nil {
		beyond, _ = c.Seek(after)
	}
	last := c.Last
	if beyond != nil {
		last = c.Prev
	}
	k, v := last()
	if k == nil || !bytes.HasPrefix(k, prefix) {
		return nil, nil, r.ctx.Err()
	}
	return bytes.Clone(k), bytes.Clone(v), r.ctx.Err()
}

// Fetch implements store.Reader. A file is near.
func (r reader) Fetch(...store.Range) error { return r.ctx.Err() }
