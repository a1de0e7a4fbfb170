package agent

import (
	"runtime"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/vault"
)

// collections returns how often f lets the garbage be collected.
func collections(f func()) uint32 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.NumForcedGC - before.NumForcedGC
}

// quiet waits until the agents of other tests have nothing left to collect.
func quiet(t *testing.T) {
	t.Helper()
	wait(t, "no more collections", func() bool {
		return collections(func() { time.Sleep(2 * sweepAfter) }) == 0
	})
}

func TestSweep(t *testing.T) {
	quiet(t)
	start := time.Now()
	if n := collections(func() {
		s := newSweeper()
		for range 50 { // requests, one right after the other
			s.soon()
			time.Sleep(time.Millisecond)
		}
	}); n != 0 && time.Since(start) < sweepAfter {
		t.Errorf("%d collections while requests come in: they wait for them", n)
	}
	// The two of the sweep that was asked for above, and no more.
	if n := collections(func() { time.Sleep(sweepAfter + 500*time.Millisecond) }); n != 2 {
		t.Errorf("%d collections after the last request, want 2", n)
	}
	// An agent that is never left alone collects all the same.
	if n := collections(func() {
		s := newSweeper()
		for end := time.Now().Add(sweepAtMost + 500*time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			s.soon()
		}
	}); n < 2 || n > 4 {
		t.Errorf("%d collections in %v of requests, want 2", n, sweepAtMost)
	}
}

// What was sealed to the agent is swept up though nothing came of it, and so is
// what a session held.
func TestSweepFollows(t *testing.T) {
	a := newAgent(t)
	c := a.client(t)
	for name, do := range map[string]func(){
		"a wrong key": func() { _ = c.UnlockKey(t.Context(), locked(t, make([]byte, 32))) },
		"a bad Put":   func() { _, _ = c.Put(t.Context(), shop, secretsOf(10), vault.PutOptions{}) },
		"an unlock":   func() { a.open(t) },
		"a reveal":    func() { _, _ = reveal(t, c, shop) },
	} {
		quiet(t)
		if n := collections(func() {
			do()
			time.Sleep(2*sweepAfter + patience/10)
		}); n < 2 {
			t.Errorf("%s is not swept up: %d collections", name, n)
		}
	}
	a.open(t)
	if n := collections(func() { a.Server.Lock("a test") }); n < 2 {
		t.Errorf("%d collections when Lock returns, want 2", n)
	}
}
