package embedded

import (
	"context"
	"errors"
	"fmt"

	bbolt "go.etcd.io/bbolt"

	"github.com/opaquevault/ov/pkg/store"
)

// A group is writes that are committed together: those that came while the disk
// was at work on the ones before. Nobody waits for others to come, so a writer
// alone is as fast as without groups.
type group struct {
	tx      *bbolt.Tx
	isDirty bool
	done    chan struct{} // closed when the group has ended
	err     error         // then: why nothing of it was written
}

// write writes into the group's transaction. It fails only if the storage does.
type write func() error

// update calls fn, which must not write, and then what fn returned. It returns
// when that is on the disk.
func (a *Accounts) update(ctx context.Context, fn func(*bbolt.Tx) (write, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("%w: other writes came first until the deadline", store.ErrBusy)
		}
		return ctx.Err()
	}
	g, err := a.work(fn)
	if g == nil {
		return err
	}
	// Whoever waits for the turn already joins the group before this goroutine has
	// the turn again. What fn has read may be another's write, so it is committed
	// even if fn failed.
	select {
	case <-g.done:
	case a.turn <- struct{}{}:
		if a.group == g {
			a.commit()
		}
		<-a.turn
	}
	<-g.done
	if err != nil {
		return err
	}
	return g.err
}

// work does one writer's part of the group, which it opens if there is none, and
// gives up the turn.
func (a *Accounts) work(fn func(*bbolt.Tx) (write, error)) (*group, error) {
	defer func() { <-a.turn }()
	if a.broken != nil {
		return nil, a.broken
	}
	if a.group == nil {
		tx, err := a.db.Begin(true)
		if err != nil {
			return nil, err
		}
		a.group = &group{tx: tx, done: make(chan struct{})}
	}
	g := a.group
	isWritten := false
	defer func() {
		if !isWritten { // a panic, which goes on
			a.rollback(errors.New("a write of the same moment has panicked"))
		}
	}()
	w, err := fn(g.tx)
	if err == nil && w != nil {
		g.isDirty = true
		if failed := w(); failed != nil {
			a.rollback(failed)
		}
	}
	isWritten = true
	return g, err
}

// commit ends the group, if there is one. The caller has the turn.
func (a *Accounts) commit() {
	g := a.group
	if g == nil {
		return
	}
	if !g.isDirty {
		a.rollback(nil)
		return
	}
	defer func() {
		if r := recover(); r != nil { // bbolt keeps its lock
			g.err = fmt.Errorf("%w: %s: %v", store.ErrDamaged, a.db.Path(), r)
			a.broken = g.err
		}
		a.group = nil
		close(g.done)
	}()
	if err := g.tx.Commit(); err != nil {
		g.err = fmt.Errorf("cannot write %s: %w", a.db.Path(), err)
	}
}

// rollback ends the group without a trace. The caller has the turn.
func (a *Accounts) rollback(why error) {
	g := a.group
	if why != nil {
		g.err = fmt.Errorf("cannot write %s: %w", a.db.Path(), why)
	}
	_ = g.tx.Rollback()
	a.group = nil
	close(g.done)
}
