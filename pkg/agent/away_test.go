package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/store/cache"
	"github.com/opaquevault/ov/pkg/vault"
)

const farURL = "https://vault.example.com"

// gate is a store that can be away.
type gate struct {
	*bolt.Store
	away atomic.Bool
}

func (g *gate) check() error {
	if g.away.Load() {
		return fmt.Errorf("%w: %s: connection refused", store.ErrUnavailable, farURL)
	}
	return nil
}

func (g *gate) View(ctx context.Context, fn func(store.Reader) error) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.Store.View(ctx, fn)
}

func (g *gate) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.Store.Update(ctx, fn)
}

// farStore is a Far, as stores.Remote is one.
type farStore struct{ *cache.Store }

func (f farStore) Keep(ctx context.Context, s *vault.Session) error {
	return f.Refresh(ctx, func(ctx context.Context, app, env string) error {
		_, err := s.Snapshot(ctx, vault.Ref{App: app, Env: env})
		return err
	})
}

// farAgent is an agent whose vault is behind a gate, with the cache in dir.
func farAgent(t *testing.T, g *gate, dir string, maxStale time.Duration) *testAgent {
	t.Helper()
	logged := &logBuffer{}
	log := slog.New(slog.NewTextHandler(logged, nil))
	far := farStore{cache.New(g, cache.Options{
		Dir: dir, Server: farURL, MaxStale: maxStale, Patience: 200 * time.Millisecond, Tell: func(text string) { log.Warn(text) },
	})}
	t.Cleanup(far.Close)
	a := newAgent(t, func(c *Config) {
		c.Vault, c.VaultPath, c.Far, c.Log = vault.New(far), farURL, far, log
	})
	a.logged = logged
	return a
}

func newGate(t *testing.T) *gate {
	t.Helper()
	return &gate{Store: bolt.New(copyVault(t, t.TempDir()))}
}

// cached returns what is in the one file of a cache, "" if there is none.
func cached(t *testing.T, dir string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.env"))
	if err != nil || len(list) == 0 {
		return ""
	}
	b, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// kept waits until the agent has something in its cache.
func kept(t *testing.T, dir string) {
	t.Helper()
	wait(t, "the cache has a file", func() bool { return cached(t, dir) != "" })
}

// An agent goes on serving what it has served while the server is away, says so
// in its log and status, writes nothing meanwhile, and uses the server again as
// soon as it is back.
func TestServedWhileAway(t *testing.T) {
	g, dir := newGate(t), t.TempDir()
	a := farAgent(t, g, dir, time.Hour).open(t)
	c := a.client(t)
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	kept(t, dir)
	st, err := c.Status(t.Context())
	if err != nil || st.Vault != farURL || st.Server == nil || st.Server.AwaySince != nil || st.Server.AsOf != nil {
		t.Fatalf("%+v, %v", st, err)
	}

	g.away.Store(true)
	for i := range 5 {
		mustReveal(t, c, shop, nameOf(i), valueOf(i)) // also what was not asked for before
	}
	st, err = c.Status(t.Context())
	if err != nil || st.Server.AwaySince == nil || st.Server.AsOf == nil || time.Since(*st.Server.AsOf) > time.Minute ||
		!strings.Contains(st.Server.AwayBecause, "connection refused") {
		t.Errorf("%+v, %v", st.Server, err)
	}
	if got := a.logged.String(); strings.Count(got, "cannot reach "+farURL+": using what it said ") != 1 {
		t.Errorf("logged:\n%s", got)
	}
	if _, err := reveal(t, c, staging, nameOf(0)); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, vault.ErrNotFound) {
		t.Errorf("an env that is not cached: %v", err)
	}
	_, err = c.Put(t.Context(), shop, []vault.Put{{Name: nameOf(0), Value: []byte("new")}}, vault.PutOptions{})
	if !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a write: %v", err)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0))

	g.away.Store(false)
	wait(t, "the server is found", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && st.Server.AwaySince == nil && st.Server.AsOf == nil
	})
	mustReveal(t, c, shop, nameOf(0), valueOf(0)) // nothing was queued
	before := cached(t, dir)
	if _, err := c.Put(t.Context(), shop, []vault.Put{{Name: nameOf(0), Value: []byte("new")}}, vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	mustReveal(t, c, shop, nameOf(0), "new")
	if !strings.Contains(a.logged.String(), farURL+" answers again, after ") {
		t.Errorf("logged:\n%s", a.logged)
	}
	// And the cache follows.
	wait(t, "the cache has changed", func() bool { return cached(t, dir) != before })
	g.away.Store(true)
	mustReveal(t, c, shop, nameOf(0), "new")
}

// An agent that starts while the server is away unlocks from the cache, with a
// machine key or with the password.
func TestUnlockWhileAway(t *testing.T) {
	g, dir := newGate(t), t.TempDir()
	a := farAgent(t, g, dir, time.Hour).open(t)
	mustReveal(t, a.client(t), shop, nameOf(0), valueOf(0))
	kept(t, dir)
	g.away.Store(true)
	b := farAgent(t, g, dir, time.Hour).open(t)
	mustReveal(t, b.client(t), shop, nameOf(1), valueOf(1))
	b = farAgent(t, g, dir, time.Hour)
	if err := b.client(t).Unlock(t.Context(), locked(t, []byte("guess"))); !errors.Is(err, vault.ErrWrongPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	if err := b.client(t).Unlock(t.Context(), locked(t, []byte(masterPassword))); err != nil {
		t.Fatal(err)
	}
	mustReveal(t, b.client(t), shop, nameOf(1), valueOf(1))
}

// What is older than --max-stale is not served, also by an agent that has been
// serving it.
func TestTooOldWhileAway(t *testing.T) {
	g, dir := newGate(t), t.TempDir()
	const stale = 3 * time.Second
	a := farAgent(t, g, dir, stale).open(t)
	c := a.client(t)
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	kept(t, dir)
	g.away.Store(true)
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	time.Sleep(stale)
	_, err := reveal(t, c, shop, nameOf(0))
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "s old, and at most 3s are allowed (--max-stale)") {
		t.Errorf("%v", err)
	}
}

// stuck is a Far that takes forever to keep anything.
type stuck struct {
	farStore
	began chan struct{}
}

func (s stuck) Keep(ctx context.Context, _ *vault.Session) error {
	s.began <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

// Nobody waits for the cache: not who asks, and not who has the key forgotten.
func TestKeepKeepsNobodyWaiting(t *testing.T) {
	g := newGate(t)
	far := stuck{farStore{cache.New(g, cache.Options{Dir: t.TempDir(), MaxStale: time.Hour})}, make(chan struct{}, 100)}
	defer far.Close()
	a := newAgent(t, func(c *Config) { c.Vault, c.Far = vault.New(far), far }).open(t)
	c := a.client(t)
	start := time.Now()
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	<-far.began
	for i := range 10 {
		mustReveal(t, c, shop, nameOf(i), valueOf(i))
	}
	if err := c.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > patience {
		t.Errorf("it took %v", took)
	}
}

// The state of a server crosses the socket, and an agent of a file has none.
func TestStatusOfFile(t *testing.T) {
	a := newAgent(t).open(t)
	if st, err := a.client(t).Status(t.Context()); err != nil || st.Server != nil {
		t.Errorf("%+v, %v", st.Server, err)
	}
}
