package embedded

import (
	"context"
	"fmt"

	bbolt "go.etcd.io/bbolt"

	"github.com/opaquevault/ov/pkg/store"
)

// write writes into a transaction. It fails only if the storage does.
type write func() error

// tx is a transaction that writers share.
type tx struct {
	*bbolt.Tx
	all     *Accounts
	isDirty bool
}

// update calls fn, which must not write, and then what fn returned. It returns
// when that is on the disk.
func (a *Accounts) update(ctx context.Context, fn func(*tx) (write, error)) error {
	return a.queue.Do(ctx, a.begin, func(t *tx) (broken, err error) {
		w, err := fn(t)
		if err != nil || w == nil {
			return nil, err
		}
		t.isDirty = true
		if err := w(); err != nil {
			return a.cannotWrite(err), nil
		}
		return nil, nil
	})
}

func (a *Accounts) begin() (*tx, error) {
	if a.broken != nil {
		return nil, a.broken
	}
	t, err := a.db.Begin(true)
	return &tx{Tx: t, all: a}, err
}

// Commit implements group.Tx.
func (t *tx) Commit() (err error) {
	if !t.isDirty {
		t.Rollback()
		return nil
	}
	defer func() {
		if r := recover(); r != nil { // bbolt keeps its lock
			err = fmt.Errorf("%w: %s: %v", store.ErrDamaged, t.all.db.Path(), r)
			t.all.broken = err
		}
	}()
	return t.all.cannotWrite(t.Tx.Commit())
}

// Rollback implements group.Tx.
func (t *tx) Rollback() { _ = t.Tx.Rollback() }

func (a *Accounts) cannotWrite(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot write %s: %w", a.db.Path(), err)
}
