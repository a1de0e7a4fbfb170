// Package transfer moves a vault from one store to another: its records, as they
// are. It has no key, decrypts nothing and encrypts nothing, and what it cannot
// see it does not guess: where it cannot tell that the destination is merely
// older, it refuses.
//
// Killed at any instant, the destination has the vault as it was before, or all
// of it, or what is no vault yet because the account's record, without which
// nothing opens, is written last. The same command again goes on from there.
package transfer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// End is where a vault is moved from or to.
type End struct {
	Name  string // its address, for people
	Store store.Store
	// Create makes a vault where there is none, whole and in one step: a file's. A
	// store without it is written in pieces.
	Create func(context.Context, store.Batch) error
	// ReadAll, if not nil, reads all records from afar, and goes on from those that
	// are there: remote.Store's.
	ReadAll func(ctx context.Context, have []store.Record, got func([]store.Record)) ([]store.Record, error)
	// Account tells it from others at the same address.
	Account string
	// File is the path, if it is a file. What comes from afar is kept beside it until
	// all has come.
	File string
}

// Phase is what is being done.
type Phase string

// The phases, in their order.
const (
	Reading   Phase = "reading"
	Writing   Phase = "writing"
	Verifying Phase = "verifying"
)

// Options say how a vault is moved.
type Options struct {
	// Force replaces a vault of the same account that is not merely older.
	Force bool
	// AnyAccount replaces a vault of another account as well.
	AnyAccount bool
	// Fresh replaces nothing: the error is fs.ErrExist if there is a vault.
	Fresh bool
	// Replaces, if not nil, is what the destination must have, or nothing is
	// written: somebody has made sure that it is not lost.
	Replaces *Contents
	// Progress, if not nil, is told how many of all records are done with. A total
	// of 0 is not known yet.
	Progress func(phase Phase, done, total int)
}

// Result is what was done. Afterwards both ends had the same records.
type Result struct {
	Records int    `json:"records"` // of the vault
	Digest  string `json:"digest"`  // over all of them, in hexadecimal: store.Digest
	Written int    `json:"written"` // records that the destination did not have, or had otherwise
	Deleted int    `json:"deleted"` // records that only the destination had
	// Resumed is how many records had come before, in a try that was cut.
	Resumed int `json:"resumed,omitempty"`
}

const (
	// A piece is what is written to a fresh store at once, in records and in bytes
	// of values. What was written is not written again after a kill.
	pieceRecords = 4000
	pieceBytes   = 8 << 20
)

var accountKey = []byte{kindAccount}

// ErrOtherAccount is wrapped when the vault at the destination is another
// account's.
var ErrOtherAccount = errors.New("there is another account's vault")

// Copy makes the vault at to the one that is at from.
func Copy(ctx context.Context, from, to End, o Options) (Result, error) {
	o.progress(Reading, 0, 0)
	src, before, done, err := o.read(ctx, from, to)
	if err != nil {
		return Result{}, err
	}
	defer done()
	if !src.whole() {
		return Result{}, hint.Errorf("is it the right one? "+from.Name, "%w at %s", store.ErrNoVault, from.Name)
	}
	o.progress(Reading, len(src.Records), len(src.Records))
	res := Result{Records: len(src.Records), Digest: hex.EncodeToString(src.Digest()), Resumed: before}
	fresh, none, err := o.lookAt(ctx, to)
	switch {
	case err != nil:
		return Result{}, err
	case o.Fresh && !fresh:
		return Result{}, fmt.Errorf("%s: %w", to.Name, fs.ErrExist)
	case none && to.Create != nil:
		res.Written = len(src.Records)
		err = to.Create(ctx, src.Batch())
	case fresh:
		err = o.fill(ctx, src, to, &res)
	default:
		err = o.replace(ctx, src, to, &res)
	}
	if err != nil {
		return Result{}, err
	}
	return res, o.verify(ctx, src, to)
}

func (o Options) progress(phase Phase, done, total int) {
	if o.Progress != nil {
		o.Progress(phase, done, total)
	}
}

// lookAt reports whether the destination has no vault, and whether it has
// nothing at all.
func (o Options) lookAt(ctx context.Context, to End) (fresh, nothing bool, err error) {
	err = to.Store.View(ctx, func(r store.Reader) error {
		account, err := r.Get(accountKey)
		fresh, nothing = account == nil, false
		return err
	})
	if errors.Is(err, store.ErrNoVault) {
		return true, true, nil
	}
	return fresh, false, err
}

// Contents are all records of a vault at one moment, in the order of their keys.
type Contents struct{ Records []store.Record }

// read reads the source, from where an earlier try that was cut has come to, and
// returns how many records were there before. The caller calls done at the end,
// when what was kept is of no use any more.
func (o Options) read(ctx context.Context, from, to End) (src *Contents, before int, done func(), err error) {
	if from.ReadAll == nil {
		src, err = Read(ctx, from)
		return src, 0, func() {}, err
	}
	var p *partial
	var have []store.Record
	if to.File != "" {
		p, have = openPartial(to.File, from.Name+"\n"+from.Account)
	}
	came := 0
	list, err := from.ReadAll(ctx, have, func(list []store.Record) {
		came += len(list)
		o.progress(Reading, len(have)+came, 0)
		if p != nil {
			p.add(list)
		}
	})
	switch {
	case p == nil:
		return &Contents{list}, 0, func() {}, err
	case err != nil:
		p.keep()
		return nil, 0, nil, err
	}
	return &Contents{list}, max(len(list)-came, 0), p.remove, nil
}

// Read reads all records at an end.
func Read(ctx context.Context, from End) (*Contents, error) {
	c := &Contents{}
	err := from.Store.View(ctx, func(r store.Reader) error {
		c.Records = c.Records[:0]
		return r.Scan(nil, func(key, value []byte) error {
			c.Records = append(c.Records, store.Record{Key: bytes.Clone(key), Value: bytes.Clone(value)})
			return nil
		})
	})
	return c, err
}

func (c *Contents) find(key []byte) (int, bool) {
	return slices.BinarySearchFunc(c.Records, key, func(r store.Record, key []byte) int { return bytes.Compare(r.Key, key) })
}

// get returns the record at key, or nil.
func (c *Contents) get(key []byte) []byte {
	if i, ok := c.find(key); ok {
		return c.Records[i].Value
	}
	return nil
}

// whole reports whether the records are those of a vault.
func (c *Contents) whole() bool { return c.get(accountKey) != nil }

// Digest is over all of the records: store.Digest.
func (c *Contents) Digest() []byte { return store.DigestOf(c.Records) }

// Batch writes all of the records.
func (c *Contents) Batch() store.Batch {
	b := make(store.Batch, len(c.Records))
	for i, rec := range c.Records {
		b[i] = store.Op(rec)
	}
	return b
}

// fill writes to a store that has no vault, piece by piece, what is not there
// yet, and the account's record last.
func (o Options) fill(ctx context.Context, src *Contents, to End, res *Result) error {
	var todo store.Batch
	total := 0
	err := to.Store.View(ctx, func(r store.Reader) error {
		d := compare(src, r)
		todo, total = d.batch(), len(src.Records)
		res.Written, res.Deleted = len(d.added)+len(d.changed), len(d.gone)
		return d.err
	})
	if err != nil {
		return err
	}
	todo = slices.DeleteFunc(todo, func(op store.Op) bool { return bytes.Equal(op.Key, accountKey) })
	done := total - 1 - len(todo)
	for len(todo) > 0 {
		o.progress(Writing, max(done, 0), total)
		n, size := 0, 0
		for n < len(todo) && n < pieceRecords && (n == 0 || size+len(todo[n].Value) <= pieceBytes) {
			size += len(todo[n].Value)
			n++
		}
		if err := write(ctx, to, todo[:n]); err != nil {
			return err
		}
		todo, done = todo[n:], done+n
	}
	o.progress(Writing, total-1, total)
	return write(ctx, to, store.Batch{{Key: accountKey, Value: src.get(accountKey)}})
}

// write writes a piece to a store that has no vault.
func write(ctx context.Context, to End, piece store.Batch) error {
	return to.Store.Update(ctx, func(r store.Reader) (store.Batch, error) {
		account, err := r.Get(accountKey)
		if err == nil && account != nil {
			err = hint.Errorf("do the same again, if this is the vault that you want there",
				"somebody else has made a vault at %s in the meantime", to.Name)
		}
		return piece, err
	})
}

// replace makes a vault what another one is, in one step.
func (o Options) replace(ctx context.Context, src *Contents, to End, res *Result) error {
	return to.Store.Update(ctx, func(r store.Reader) (store.Batch, error) {
		if o.Replaces != nil {
			if since := compare(o.Replaces, r); since.err != nil || len(since.batch()) > 0 {
				return nil, cmp.Or(since.err, hint.Errorf("do the same again", "%s was written to in the meantime", to.Name))
			}
		}
		d := compare(src, r)
		if d.err != nil {
			return nil, d.err
		}
		if err := o.allowed(src, d, to); err != nil {
			return nil, err
		}
		b := d.batch()
		res.Written, res.Deleted = len(b)-len(d.gone), len(d.gone)
		o.progress(Writing, 0, len(b))
		return b, nil
	})
}

// verify reads the destination anew and compares its number of records and the
// digest over them.
func (o Options) verify(ctx context.Context, src *Contents, to End) error {
	o.progress(Verifying, 0, len(src.Records))
	n := 0
	var digest store.Digest
	err := to.Store.View(ctx, func(r store.Reader) error {
		n, digest = 0, store.Digest{}
		return r.Scan(nil, func(key, value []byte) error {
			n++
			digest.Add(key, value)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("all was written, and could not be verified: %w", err)
	}
	o.progress(Verifying, n, len(src.Records))
	if n != len(src.Records) || !bytes.Equal(digest.Sum(), src.Digest()) {
		return hint.Errorf("if nobody else writes there, the store is broken; else do the same again",
			"all was written, and is not what is there now: %d records with digest %x at %s, where it should be %d with digest %x",
			n, digest.Sum()[:8], to.Name, len(src.Records), src.Digest()[:8])
	}
	return nil
}
