// Package group commits writes together: those that came while the storage was
// at work on the ones before. Nobody waits for others to come, so a writer alone
// is as fast as without groups.
package group

import (
	"context"
	"errors"
	"fmt"

	"github.com/opaquevault/ov/pkg/store"
)

// Tx is a transaction that writers share, one after the other.
type Tx interface {
	// Commit ends the transaction. When it fails, all of its writers are told so.
	Commit() error
	// Rollback ends it without a trace.
	Rollback()
}

// Queue is of the writers of one storage. The zero Queue is not for use.
type Queue[T Tx] struct {
	// turn is held by whoever works on the transaction. Those who wait for it are
	// served in the order in which they came.
	turn chan struct{}
	open *group[T] // what is not committed yet, or nil
}

type group[T Tx] struct {
	tx   T
	done chan struct{} // closed when the group has ended
	err  error         // then: why nothing of it was written
}

// New returns an empty queue.
func New[T Tx]() *Queue[T] { return &Queue[T]{turn: make(chan struct{}, 1)} }

// Do calls work, in a transaction that begin makes unless there is one, and
// returns when that is committed. work's first error is about the transaction,
// which is undone, the second one about this writer alone, who then must not have
// written. The error wraps store.ErrBusy if the others took until ctx's deadline,
// and store.ErrUnavailable if the commit does.
func (q *Queue[T]) Do(ctx context.Context, begin func() (T, error), work func(T) (broken, err error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case q.turn <- struct{}{}:
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("%w: other writes came first until the deadline", store.ErrBusy)
		}
		return ctx.Err()
	}
	g, err := q.work(begin, work)
	if g == nil {
		return err
	}
	// Whoever waits for the turn already joins the group before this goroutine has
	// it. What work has read may be another's write, so it is committed even if work
	// failed. A writer who leaves takes nothing from the others.
	go func() {
		select {
		case <-g.done:
			return
		case q.turn <- struct{}{}:
		}
		defer func() { <-q.turn }()
		if q.open == g {
			q.end(g.tx.Commit())
		}
	}()
	select {
	case <-g.done:
	case <-ctx.Done():
		if err == nil {
			err = fmt.Errorf("%w: it is not known whether it was written: %w", store.ErrUnavailable, ctx.Err())
		}
		return err
	}
	if err != nil {
		return err
	}
	return g.err
}

// work does one writer's part and gives up the turn.
func (q *Queue[T]) work(begin func() (T, error), work func(T) (broken, err error)) (*group[T], error) {
	defer func() { <-q.turn }()
	if q.open == nil {
		tx, err := begin()
		if err != nil {
			return nil, err
		}
		q.open = &group[T]{tx: tx, done: make(chan struct{})}
	}
	g := q.open
	broken := fmt.Errorf("%w: a write of the same moment has panicked", store.ErrUnavailable)
	defer func() {
		if broken != nil { // a panic goes on
			g.tx.Rollback()
			q.end(broken)
		}
	}()
	var err error
	broken, err = work(g.tx)
	return g, err
}

// end ends the open group. The caller has the turn.
func (q *Queue[T]) end(err error) {
	q.open.err = err
	close(q.open.done)
	q.open = nil
}

// Close commits what is open, calls fn, and leaves nobody a turn until fn has
// returned.
func (q *Queue[T]) Close(fn func() error) error {
	q.turn <- struct{}{}
	defer func() { <-q.turn }()
	if q.open != nil {
		q.end(q.open.tx.Commit())
	}
	return fn()
}
