package agent

import (
	"runtime"
	"sync"
	"time"
)

// kek.Do erases what its function left on the heap at a garbage collection, and
// an agent that nobody asks collects nothing. So a collection follows the last
// request soon.
const (
	sweepAfter  = 200 * time.Millisecond // after the last request
	sweepAtMost = 2 * time.Second        // after the first, however many follow
)

// sweeper collects garbage after use.
type sweeper struct {
	mu    sync.Mutex
	timer *time.Timer
	first time.Time // request since the last collection; zero: none
}

func newSweeper() *sweeper { return &sweeper{} }

// soon asks for a collection after this request and those that follow it.
func (s *sweeper) soon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.first.IsZero() {
		s.first = now
	}
	wait := max(min(sweepAfter, sweepAtMost-now.Sub(s.first)), 0)
	if s.timer == nil {
		s.timer = time.AfterFunc(wait, s.now)
		return
	}
	s.timer.Reset(wait)
}

// now collects. The second collection takes what the first one's finalizers and
// victim caches still held.
func (s *sweeper) now() {
	s.mu.Lock()
	s.first = time.Time{}
	s.mu.Unlock()
	runtime.GC()
	runtime.GC()
}
