package remote

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// slowest is how slowly a server may send or take a long message stream, in
// bytes per second, before that counts as no answer.
const slowest = 16 << 10

// A call is one try of a call. It ends when the server no longer goes on with it.
type call struct {
	context.Context
	timer *time.Timer
	until time.Time
	held  time.Duration // what it is given besides when the connection proves to work
}

// sent says that so many bytes have gone, and received that they have come.
func (c *call) sent(n int) {
	c.until = c.until.Add(time.Duration(n) * time.Second / slowest)
	c.timer.Reset(time.Until(c.until))
}

func (c *call) received(n int) {
	c.until = c.until.Add(c.held)
	c.held = 0
	c.sent(n)
}

// slow gives the server some more time before its first answer, unless the
// connection may be dead.
func (c *call) slow(d time.Duration) {
	if c.held == 0 {
		c.until = c.until.Add(d)
		c.sent(0)
	}
}

// call calls fn, and again while the server is not available: with jitter, until
// Wait is over. So fn must be safe to repeat.
func (s *Store) call(ctx context.Context, fn func(*call) error) error {
	b := &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 2 * time.Second}
	start := time.Now()
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = s.once(ctx, start, fn)
		if last != nil && (s.wait < 0 || !errors.Is(last, store.ErrUnavailable)) {
			return struct{}{}, backoff.Permanent(last)
		}
		return struct{}{}, last
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(max(s.wait, 1)), backoff.WithNotify(func(err error, _ time.Duration) {
		if s.retrying != nil {
			s.retrying(err)
		}
	}))
	if err != nil && ctx.Err() != nil {
		return s.ended(ctx, last)
	}
	return err
}

// ended is the error of a call whose context has ended.
func (s *Store) ended(ctx context.Context, last error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Cause(ctx)
	case errors.Is(last, store.ErrUnavailable):
		return last
	}
	return s.unavailable("no answer in time")
}

// once is one try, which began with start.
func (s *Store) once(ctx context.Context, start time.Time, fn func(*call) error) error {
	wait := s.wait
	if wait < 0 {
		wait = dialTimeout
	}
	dialing, cancel := context.WithDeadline(ctx, start.Add(wait))
	err := s.connect(dialing)
	cancel()
	if err != nil {
		return s.explain(err)
	}
	trying, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	on, patience := s.link.now(s.stall)
	c := &call{Context: trying, until: time.Now().Add(patience), held: s.stall - patience}
	c.timer = time.AfterFunc(patience, func() { stop(errStall) })
	defer c.timer.Stop()
	err = fn(c)
	switch {
	case err == nil:
		s.link.worked()
		return nil
	case ctx.Err() != nil:
		return s.ended(ctx, s.explain(err))
	case errors.Is(context.Cause(trying), errStall):
		_ = on.Close()
		err = errStall
	}
	return s.explain(err)
}

// link is the connection beneath gRPC's, to tell one that died silently from a
// server that takes its time: while a machine sleeps or changes its network, the
// other end may forget, and nothing says so.
type link struct {
	mu   sync.Mutex
	conn net.Conn
	used time.Time // when it was last known to work, by the clock on the wall
}

const (
	// A connection on which nothing has come for longer than fresh may be dead.
	fresh = 10 * time.Second
	// Then a call has so long, before it is made again on another connection.
	staleStall = 3 * time.Second
)

func (l *link) set(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.used = c, time.Now().Round(0)
}

func (l *link) worked() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used = time.Now().Round(0)
}

// now returns the connection, and how long to wait for an answer on it.
func (l *link) now(stall time.Duration) (net.Conn, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Round(0).Sub(l.used) > fresh {
		stall = min(stall, staleStall)
	}
	return l.conn, stall
}

// settle calls fn with a snapshot, and again with a newer one while the server
// says that what was read is no longer so.
func (s *Store) settle(ctx context.Context, fn func(*snapshot) error) error {
	// The pauses spread writers who would meet again and again: a try takes a few
	// trips, so a pause of many of them lets others through.
	b := &backoff.ExponentialBackOff{InitialInterval: 2 * time.Millisecond, RandomizationFactor: 1, Multiplier: 1.5, MaxInterval: 100 * time.Millisecond}
	var known []store.Range
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		sn := s.snapshot(ctx)
		// What was read the last time comes in one trip. Without it all is the same.
		if err := sn.memo.Fetch(known...); errors.Is(err, store.ErrUnavailable) {
			return struct{}{}, permanent(err)
		} else if err != nil {
			sn = s.snapshot(ctx)
		}
		err := fn(sn)
		if errors.Is(err, errStale) {
			known = sn.ranges
			return struct{}{}, err
		}
		return struct{}{}, permanent(err)
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(s.contend))
	if errors.Is(err, errStale) || errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && known != nil {
		return hint.Errorf("try again when less is written to the vault", "%w: %s: others have kept changing what was read", store.ErrBusy, s.url)
	}
	return err
}

func permanent(err error) error {
	if err == nil {
		return nil
	}
	return backoff.Permanent(err)
}
