package group

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

// log is what has become of writes.
type log struct {
	mu                 sync.Mutex
	commits, rollbacks [][]string
	fail               error
	stall              chan bool // a commit waits for it, if there is one
}

type tx struct {
	*log
	writes []string
}

func (t *tx) Commit() error {
	if t.stall != nil {
		<-t.stall
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail == nil {
		t.commits = append(t.commits, t.writes)
	}
	return t.fail
}

func (t *tx) Rollback() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rollbacks = append(t.rollbacks, t.writes)
}

func (l *log) begin() (*tx, error) { return &tx{log: l}, nil }

// write is a writer that does what fn says after its write.
func write(q *Queue[*tx], l *log, name string, fn func() (broken, err error)) error {
	return q.Do(context.Background(), l.begin, func(t *tx) (broken, err error) {
		t.writes = append(t.writes, name)
		return fn()
	})
}

func fine() (broken, err error) { return nil, nil }

// together has the second one queue while the first one is at work.
func together(q *Queue[*tx], l *log, first, second func() (broken, err error)) (err1, err2 error) {
	done := make(chan error)
	err1 = write(q, l, "1", func() (broken, err error) {
		go func() { done <- write(q, l, "2", second) }()
		time.Sleep(20 * time.Millisecond) // it queues
		return first()
	})
	return err1, <-done
}

func TestGroup(t *testing.T) {
	mine := errors.New("mine")
	for _, c := range []struct {
		name               string
		first, second      func() (broken, err error)
		fail               error // of the commit
		err1, err2         error
		commits, rollbacks [][]string
	}{
		{"both", fine, fine, nil, nil, nil, [][]string{{"1", "2"}}, nil},
		{"one fails by itself", func() (broken, err error) { return nil, mine }, fine, nil, mine, nil, [][]string{{"1", "2"}}, nil},
		{"the other fails by itself", fine, func() (broken, err error) { return nil, mine }, nil, nil, mine, [][]string{{"1", "2"}}, nil},
		{"the transaction fails at the second", fine, func() (broken, err error) { return mine, nil }, nil, mine, mine, nil, [][]string{{"1", "2"}}},
		{"the transaction fails at the first", func() (broken, err error) { return mine, nil }, fine, nil, mine, nil, [][]string{{"2"}}, [][]string{{"1"}}},
		{"the commit fails", fine, fine, mine, mine, mine, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &log{fail: c.fail}
			err1, err2 := together(New[*tx](), l, c.first, c.second)
			if !errors.Is(err1, c.err1) || !errors.Is(err2, c.err2) {
				t.Errorf("got %v and %v, want %v and %v", err1, err2, c.err1, c.err2)
			}
			if !slices.EqualFunc(l.commits, c.commits, slices.Equal) || !slices.EqualFunc(l.rollbacks, c.rollbacks, slices.Equal) {
				t.Errorf("committed %q, undone %q; want %q and %q", l.commits, l.rollbacks, c.commits, c.rollbacks)
			}
		})
	}
}

// A panic is its writer's own. Those of the same transaction are told that
// nothing was written, and others go on.
func TestPanic(t *testing.T) {
	q, l := New[*tx](), &log{}
	second := make(chan any)
	err := write(q, l, "1", func() (broken, err error) {
		go func() {
			defer func() { second <- recover() }()
			_ = write(q, l, "2", func() (broken, err error) { panic("mine") })
		}()
		time.Sleep(20 * time.Millisecond)
		return nil, nil
	})
	if !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("the first one: %v", err)
	}
	if r := <-second; r != "mine" {
		t.Errorf("the second one recovered %v", r)
	}
	if err := write(q, l, "3", fine); err != nil {
		t.Error(err)
	}
	if len(l.commits) != 1 || len(l.rollbacks) != 1 {
		t.Errorf("committed %q, undone %q", l.commits, l.rollbacks)
	}
}

// A writer who leaves while it is committed does not know, and what was written
// is committed for the others. One who leaves before has written nothing.
func TestLeave(t *testing.T) {
	q, l := New[*tx](), &log{stall: make(chan bool)}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	other := make(chan error)
	err := q.Do(ctx, l.begin, func(t *tx) (broken, err error) {
		t.writes = append(t.writes, "1")
		go func() { other <- write(q, l, "2", fine) }()
		time.Sleep(20 * time.Millisecond)
		return nil, nil
	})
	if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who has left: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = q.Do(short, l.begin, func(*tx) (broken, err error) { t.Error("it had a turn"); return nil, nil })
	if !errors.Is(err, store.ErrBusy) {
		t.Errorf("who came meanwhile: %v", err)
	}
	closed := make(chan error)
	go func() { closed <- q.Close(func() error { return nil }) }()
	close(l.stall)
	if err := errors.Join(<-other, <-closed); err != nil {
		t.Error(err)
	}
	if !slices.EqualFunc(l.commits, [][]string{{"1", "2"}}, slices.Equal) {
		t.Errorf("committed %q", l.commits)
	}
}

func TestCannotBegin(t *testing.T) {
	mine := errors.New("mine")
	q := New[*tx]()
	err := q.Do(t.Context(), func() (*tx, error) { return nil, mine }, nil)
	if !errors.Is(err, mine) {
		t.Error(err)
	}
	if err := write(q, &log{}, "1", fine); err != nil {
		t.Error(err)
	}
}
