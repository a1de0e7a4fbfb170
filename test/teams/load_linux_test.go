package teams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/witness"
)

const (
	writers = 8
	readers = 2
	// As many versions of a secret are kept as are written of one, so that at the
	// end each of them can be read.
	versions = vault.MaxVersions
	// Own secrets are in so many envs, two clients in each.
	envs = writers / 2
	// Every so often a client adds one to a counter that is everybody's.
	countEvery = 4
	// So often the connection of one client breaks.
	cutEvery = 300 * time.Millisecond
	// longest is how long a client may be without an answer while everything is
	// killed around it. It is the "seconds at most" and the time that a
	// busy machine of two cores takes for the failover itself.
	longest = 20 * time.Second
)

var (
	shared   = vault.Ref{App: "load", Env: "shared"}
	counters = []string{"COUNTER_A", "COUNTER_B"}
)

func ownEnv(client int) vault.Ref {
	return vault.Ref{App: "load", Env: fmt.Sprintf("team-%d", client%envs)}
}

// load is a vault and all who work on it.
type load struct {
	t     *testing.T
	ca    []byte
	token []byte
	key   []byte // the machine key that all open the vault with
	front []*front
	stop  chan struct{}
	work  sync.WaitGroup
	began time.Time

	tally   tally
	writers [writers]*writer
	readers [readers]*reader
}

// tally counts what came of writes.
type tally struct {
	acknowledged, refused, conflicts, unknown, resent atomic.Int64
	written                                           atomic.Int64 // of those unknown
	increments, incrementsUnknown                     [2]atomic.Int64
	reads, failedReads                                atomic.Int64
	cut                                               atomic.Int64 // connections
}

// gap keeps the longest time between successes.
type gap struct {
	last    time.Time
	longest time.Duration
}

func (g *gap) success() {
	now := time.Now()
	if !g.last.IsZero() {
		g.longest = max(g.longest, now.Sub(g.last))
	}
	g.last = now
}

// newLoad makes a vault on the server and the clients of it. Client i is at
// fronts[i % len(fronts)].
func newLoad(t *testing.T, s *ovServer, ca string, fronts ...*front) *load {
	t.Helper()
	l := &load{t: t, front: fronts, stop: make(chan struct{})}
	var err error
	if l.ca, err = os.ReadFile(ca); err != nil {
		t.Fatal(err)
	}
	s.admin(nil, "account", "create", "team", "--json")
	var key struct {
		Token string `json:"token"`
	}
	s.admin(&key, "apikey", "create", "--account", "team", "--name", "all", "--scope", "admin", "--json")
	l.token = []byte(key.Token)

	st := l.store(fronts[0].address, 0)
	v := vault.New(st)
	password, err := kek.LockedFrom([]byte("the team's master password"))
	if err != nil {
		t.Fatal(err)
	}
	defer password.Destroy()
	if err := v.Init(t.Context(), st.Create, password); err != nil {
		t.Fatal(err)
	}
	session, err := v.Unlock(t.Context(), password)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Destroy()
	var zero []vault.Put
	for _, name := range counters {
		zero = append(zero, vault.Put{Name: name, Value: []byte("0")})
	}
	if _, err := session.Put(t.Context(), shared, zero, vault.PutOptions{Create: true}); err != nil {
		t.Fatal(err)
	}
	for i := range envs {
		if err := session.CreateEnv(t.Context(), ownEnv(i)); err != nil {
			t.Fatal(err)
		}
	}
	machineKey, _, err := session.DeriveMachineKey(t.Context(), vault.Ref{}, "load")
	if err != nil {
		t.Fatal(err)
	}
	l.key = bytes.Clone(machineKey.Bytes())
	machineKey.Destroy()

	for i := range l.writers {
		w := &writer{load: l, number: i, ref: ownEnv(i)}
		// Two of them try a call but once, so that it happens that one does not know.
		wait := time.Duration(0)
		if i >= writers-2 {
			wait = -1
		}
		w.session = l.open(fronts[i%len(fronts)].address, wait)
		l.writers[i] = w
	}
	for i := range l.readers {
		r := &reader{load: l, seen: map[string]int{}}
		seen := filepath.Join(t.TempDir(), "seen")
		r.session = l.open(fronts[i%len(fronts)].address, -1, vault.WithWitness(witness.Open(seen, func(err error) { t.Error(err) })))
		l.readers[i] = r
	}
	return l
}

func (l *load) store(address string, wait time.Duration) *remote.Store {
	l.t.Helper()
	st, err := remote.New(remote.Options{
		URL: "https://" + address, CA: l.ca, Token: l.token, Wait: wait, UserAgent: "ov/test",
		Retrying: func(error) { l.tally.resent.Add(1) },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = st.Close() })
	return st
}

func (l *load) open(address string, wait time.Duration, o ...vault.Option) *vault.Session {
	l.t.Helper()
	key, err := kek.LockedFrom(bytes.Clone(l.key))
	if err != nil {
		l.t.Fatal(err)
	}
	s, err := vault.New(l.store(address, wait), o...).UnlockKey(l.t.Context(), key)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(s.Destroy)
	return s
}

// start has everybody work until end, while now and then a connection breaks.
func (l *load) start() {
	l.t.Cleanup(l.rest) // before the sessions are destroyed
	l.began = time.Now()
	for _, w := range l.writers {
		l.work.Go(w.run)
	}
	for _, r := range l.readers {
		l.work.Go(r.run)
	}
	l.work.Go(func() {
		for !l.over() {
			time.Sleep(cutEvery)
			l.front[rand.IntN(len(l.front))].cut()
			l.tally.cut.Add(1)
		}
	})
}

// rest has everybody stop.
func (l *load) rest() {
	if !l.over() {
		close(l.stop)
	}
	l.work.Wait()
}

func (l *load) over() bool {
	select {
	case <-l.stop:
		return true
	default:
		return l.t.Failed()
	}
}

// flows waits until every client has been answered anew, and fails the test if
// one is not.
func (l *load) flows(what string) {
	l.t.Helper()
	var before [writers + readers]int64
	done := func(i int) int64 {
		if i < writers {
			return l.writers[i].done.Load()
		}
		return l.readers[i-writers].done.Load()
	}
	for i := range before {
		before[i] = done(i)
	}
	start := time.Now()
	for i := range before {
		for done(i) <= before[i]+1 { // what was answered before may count just now
			if time.Since(start) > 2*longest {
				l.t.Fatalf("%s: client %d is not answered", what, i)
			}
			if l.over() {
				l.t.FailNow()
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	l.t.Logf("%6.2f s: %s; all clients are served again after %v", time.Since(l.began).Seconds(), what, time.Since(start).Round(time.Millisecond))
}

// writer is a client that writes: secrets of its own and, now and then, the
// counters. It knows of each of its writes what became of it.
type writer struct {
	*load
	number  int
	ref     vault.Ref
	session *vault.Session
	own     []*secret
	gap     gap
	done    atomic.Int64
}

// secret is what must be in the vault.
type secret struct {
	name   string
	values []string // of the versions that are there: one was acknowledged, or seen
	// maybe are values of the next version that may be there, or come to be as
	// long as the server may be at work on them: their writer was told that it is
	// not known.
	maybe []string
}

func (w *writer) run() {
	for i := 0; !w.over(); i++ {
		if i%countEvery == countEvery-1 {
			w.count(i / countEvery % len(counters))
		} else {
			w.write(i)
		}
	}
}

// outcome of a write.
type outcome int

const (
	acknowledged outcome = iota
	refused              // it has not been written, and will not be
	conflict             // the same, because the secret has changed
	unknown
)

// put writes one secret and counts what became of it.
func (w *writer) put(ref vault.Ref, name, value string, replaces int) outcome {
	newest := uint32(replaces)
	result, err := w.session.Put(context.Background(), ref, []vault.Put{{Name: name, Value: []byte(value), Replaces: &newest}}, vault.PutOptions{})
	switch {
	case err == nil:
		if len(result) != 1 || result[0].Version != newest+1 || result[0].Outcome > vault.Updated {
			w.t.Errorf("%s %s: acknowledged as %+v, over version %d", ref, name, result, newest)
		}
		w.tally.acknowledged.Add(1)
		w.gap.success()
		w.done.Add(1)
		return acknowledged
	case strings.Contains(err.Error(), "it is not known whether the change was written"):
		w.tally.unknown.Add(1)
		return unknown
	case errors.Is(err, vault.ErrConflict):
		w.tally.conflicts.Add(1)
		return conflict
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrBusy):
		w.tally.refused.Add(1)
		time.Sleep(20 * time.Millisecond)
		return refused
	}
	w.t.Errorf("client %d writes %s %s: %v", w.number, ref, name, err)
	return refused
}

// write adds a version to the newest of the client's own secrets.
func (w *writer) write(i int) {
	if n := len(w.own); n == 0 || len(w.own[n-1].values) >= versions {
		w.own = append(w.own, &secret{name: fmt.Sprintf("C%d_%d", w.number, n)})
	}
	s := w.own[len(w.own)-1]
	value := fmt.Sprintf("client %d, secret %s, write %d", w.number, s.name, i)
	switch w.put(w.ref, s.name, value, len(s.values)) {
	case acknowledged:
		// Whatever else was to be this version found it taken.
		s.values, s.maybe = append(s.values, value), nil
	case unknown:
		s.maybe = append(s.maybe, value)
	case conflict:
		w.look(s)
	}
}

// look finds out which of the writes that are not known has been done. Nobody
// else writes this secret.
func (w *writer) look(s *secret) {
	if len(s.maybe) == 0 {
		w.t.Errorf("client %d: %s, which nobody else writes, has changed after version %d", w.number, s.name, len(s.values))
		return
	}
	for !w.over() {
		version, value, err := read(w.session, w.ref, s.name)
		if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrBusy) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil || version != len(s.values)+1 || !slices.Contains(s.maybe, value) {
			w.t.Errorf("client %d: %s is now version %d %q, %v; had %d and maybe %q", w.number, s.name, version, value, err, len(s.values), s.maybe)
			return
		}
		w.tally.written.Add(1)
		s.values, s.maybe = append(s.values, value), nil
		return
	}
}

// count adds one to a counter, for which it may have to try again.
func (w *writer) count(which int) {
	for !w.over() {
		version, value, err := read(w.session, shared, counters[which])
		if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrBusy) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		// Version 1 is 0.
		if err != nil || value != fmt.Sprint(version-1) {
			w.t.Errorf("client %d: %s is %q in version %d, %v", w.number, counters[which], value, version, err)
			return
		}
		switch w.put(shared, counters[which], fmt.Sprint(version), version) {
		case acknowledged:
			w.tally.increments[which].Add(1)
			return
		case unknown:
			w.tally.incrementsUnknown[which].Add(1)
			return
		}
	}
}

func read(s *vault.Session, ref vault.Ref, name string) (version int, value string, err error) {
	err = s.Reveal(context.Background(), ref, vault.Select{Names: []string{name}}, func(list []vault.Secret) error {
		version, value = int(list[0].Version), string(list[0].Value)
		return nil
	})
	return version, value, err
}

// reader reads the counters, and lists an env whole, at which the sum in the
// env's record is checked. It tries each call once, so that it sees every outage,
// and has a witness, so that it sees every step back.
type reader struct {
	*load
	session *vault.Session
	seen    map[string]int
	gap     gap
	done    atomic.Int64
}

func (r *reader) run() {
	for i := 0; !r.over(); i++ {
		name := counters[i%len(counters)]
		version, value, err := read(r.session, shared, name)
		if err == nil {
			if version < r.seen[name] || value != fmt.Sprint(version-1) {
				r.t.Errorf("a reader sees version %d of %s with %q, after version %d", version, name, value, r.seen[name])
			}
			r.seen[name] = version
			if i%20 == 19 {
				_, err = r.session.List(context.Background(), ownEnv(i/20))
			}
		}
		switch {
		case err == nil:
			r.tally.reads.Add(1)
			r.gap.success()
			r.done.Add(1)
		case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrBusy):
			r.tally.failedReads.Add(1)
		default:
			r.t.Errorf("a reader: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// end has everybody stop, holds what is in the vault against what they know, and
// prints the counts.
func (l *load) end() {
	l.t.Helper()
	l.rest()
	if l.t.Failed() {
		return
	}
	took := time.Since(l.began)
	s := l.writers[0].session
	n := 0
	for i := range envs {
		n += l.checkEnv(s, ownEnv(i), l.writers[i], l.writers[i+envs])
	}
	l.checkCounters(s)
	var writing, reading time.Duration
	for _, w := range l.writers {
		writing = max(writing, w.gap.longest)
	}
	for _, r := range l.readers {
		reading = max(reading, r.gap.longest)
	}
	if writing > longest || reading > longest {
		l.t.Errorf("clients were without an answer for more than %v", longest)
	}
	c := &l.tally
	l.t.Logf("%d writers and %d readers for %v: %d writes acknowledged, all there; none twice; %d refused, %d conflicts, %d unknown (of those to secrets of their own %d were written), %d calls sent again; %d connections were cut",
		writers, readers, took.Round(time.Second), c.acknowledged.Load(), c.refused.Load(), c.conflicts.Load(), c.unknown.Load(), c.written.Load(), c.resent.Load(), c.cut.Load())
	l.t.Logf("%d versions of %d secrets read and compared; %d reads, %d failed; the longest time without success: %v for a writer, %v for a reader",
		int(c.acknowledged.Load()+c.written.Load()-c.increments[0].Load()-c.increments[1].Load()), n, c.reads.Load(), c.failedReads.Load(),
		writing.Round(time.Millisecond), reading.Round(time.Millisecond))
}

// checkEnv reads every version of every secret of an env, and returns how many
// secrets there are.
func (l *load) checkEnv(s *vault.Session, ref vault.Ref, of ...*writer) int {
	l.t.Helper()
	ctx := l.t.Context()
	list, err := s.List(ctx, ref) // all of it, so its count and sum are right
	if err != nil {
		l.t.Errorf("%s: %v", ref, err)
		return 0
	}
	newest := map[string]uint32{}
	for _, v := range list {
		newest[v.Name] = v.Version
	}
	for _, w := range of {
		for _, want := range w.own {
			n := int(newest[want.name])
			delete(newest, want.name)
			if n != len(want.values) && (n != len(want.values)+1 || len(want.maybe) == 0) {
				l.t.Errorf("%s %s has %d versions, want %d (and maybe one of %d more)", ref, want.name, n, len(want.values), len(want.maybe))
				continue
			}
			for i := range n {
				var got string
				err := s.Reveal(ctx, ref, vault.Select{Names: []string{want.name}, Version: uint32(i + 1)}, func(list []vault.Secret) error {
					got = string(list[0].Value)
					return nil
				})
				switch {
				case err != nil:
					l.t.Errorf("%s %s version %d: %v", ref, want.name, i+1, err)
				case i < len(want.values) && got != want.values[i]:
					l.t.Errorf("%s %s version %d is %q, want %q", ref, want.name, i+1, got, want.values[i])
				case i == len(want.values):
					if !slices.Contains(want.maybe, got) {
						l.t.Errorf("%s %s version %d is %q, which is none of %q", ref, want.name, i+1, got, want.maybe)
					}
					l.tally.written.Add(1)
				}
			}
		}
	}
	for name := range newest {
		l.t.Errorf("%s has %s, which nobody wrote", ref, name)
	}
	return len(list)
}

// checkCounters: each counter is what was acknowledged, and what is not known at
// most besides.
func (l *load) checkCounters(s *vault.Session) {
	l.t.Helper()
	for i, name := range counters {
		version, value, err := read(s, shared, name)
		at, more := l.tally.increments[i].Load(), l.tally.incrementsUnknown[i].Load()
		if err != nil || value != fmt.Sprint(version-1) || int64(version-1) < at || int64(version-1) > at+more {
			l.t.Errorf("%s is %q in version %d, %v; want %d, and at most %d more", name, value, version, err, at, more)
			continue
		}
		l.t.Logf("%s is %s: %d increments acknowledged, %d unknown", name, value, at, more)
	}
}
