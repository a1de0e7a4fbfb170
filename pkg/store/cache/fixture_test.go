package cache

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

const (
	server   = "https://vault.example.com"
	password = "correct-horse-battery-staple-4711"
)

var (
	prod    = vault.Ref{App: "shop", Env: "production"}
	staging = vault.Ref{App: "shop", Env: "staging"}
	other   = vault.Ref{App: "blog", Env: "production"}
	refs    = []vault.Ref{prod, staging, other}
)

func nameOf(i int) string { return fmt.Sprintf("SECRET_NAME_%02d", i) }

func valueOf(ref vault.Ref, i int) string {
	return fmt.Sprintf("plain-value-%02d-of-%s-zq8Xk3", i, ref.Env+ref.App)
}

// original is a vault, made once: a password costs 0.1 s and more.
type original struct {
	file              []byte
	account, app, env []byte // machine keys: of all, of shop, of shop/production
}

var prepared = sync.OnceValues(func() (o original, err error) {
	dir, err := os.MkdirTemp("", "ov-cache-")
	if err != nil {
		return o, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	st := bolt.New(filepath.Join(dir, "vault.db"))
	v := vault.New(st)
	pass, err := kek.LockedFrom([]byte(password))
	if err != nil {
		return o, err
	}
	if err := v.Init(ctx, st.Create, pass); err != nil {
		return o, err
	}
	s, err := v.Unlock(ctx, pass)
	if err != nil {
		return o, err
	}
	defer s.Destroy()
	for _, ref := range refs {
		var list []vault.Put
		for i := range 4 {
			list = append(list, vault.Put{Name: nameOf(i), Value: []byte(valueOf(ref, i))})
		}
		if _, err := s.Put(ctx, ref, list, vault.PutOptions{Create: true, Note: "set"}); err != nil {
			return o, err
		}
	}
	for ref, into := range map[vault.Ref]*[]byte{{}: &o.account, {App: "shop"}: &o.app, prod: &o.env} {
		key, _, err := s.DeriveMachineKey(ctx, ref, "")
		if err != nil {
			return o, err
		}
		*into = bytes.Clone(key.Bytes())
		key.Destroy()
	}
	o.file, err = os.ReadFile(st.Path())
	return o, err
})

func fixture(t testing.TB) original {
	t.Helper()
	o, err := prepared()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// far is a server's vault: a file, which can be away in some ways.
type far struct {
	*bolt.Store
	away  atomic.Bool // refuses at once
	hangs atomic.Bool // says nothing
	deny  atomic.Bool // does not take the API key
	views atomic.Int32
}

func newFar(t testing.TB) *far {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vault.db")
	if err := os.WriteFile(path, fixture(t).file, 0o600); err != nil {
		t.Fatal(err)
	}
	return &far{Store: bolt.New(path)}
}

func (f *far) ready(ctx context.Context) error {
	f.views.Add(1)
	switch {
	case f.away.Load():
		return fmt.Errorf("%w: %s: connection refused", store.ErrUnavailable, server)
	case f.hangs.Load():
		<-ctx.Done()
		return context.Cause(ctx)
	case f.deny.Load():
		return fmt.Errorf("%s: %w: revoked", server, store.ErrDenied)
	}
	return ctx.Err()
}

func (f *far) View(ctx context.Context, fn func(store.Reader) error) error {
	if err := f.ready(ctx); err != nil {
		return err
	}
	return f.Store.View(ctx, fn)
}

func (f *far) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	if err := f.ready(ctx); err != nil {
		return err
	}
	return f.Store.Update(ctx, fn)
}

// client is a program on this machine.
type client struct {
	*Store
	t    testing.TB
	mu   sync.Mutex
	said []string
}

func newClient(t testing.TB, f store.Store, dir string, change ...func(*Options)) *client {
	t.Helper()
	c := &client{t: t}
	o := Options{Dir: dir, Server: server, MaxStale: DefaultMaxStale, Patience: 100 * time.Millisecond, Tell: func(text string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.said = append(c.said, text)
	}}
	for _, fn := range change {
		fn(&o)
	}
	c.Store = New(f, o)
	t.Cleanup(c.Close)
	return c
}

func (c *client) told() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.said, "\n")
}

// later has the client's clock go wrong by d.
func (c *client) later(d time.Duration) { c.now = func() time.Time { return time.Now().Add(d) } }

// open unlocks with a machine key.
func (c *client) open(key []byte) (*vault.Session, error) {
	locked, err := kek.LockedFrom(bytes.Clone(key))
	if err != nil {
		return nil, err
	}
	s, err := vault.New(c.Store).UnlockKey(context.Background(), locked)
	if err == nil {
		c.t.Cleanup(s.Destroy)
	}
	return s, err
}

func (c *client) mustOpen(key []byte) *vault.Session {
	c.t.Helper()
	s, err := c.open(key)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// refresh is what programs do after a Reveal.
func (c *client) refresh(s *vault.Session) error {
	return c.Refresh(context.Background(), func(ctx context.Context, app, env string) error {
		_, err := s.Snapshot(ctx, vault.Ref{App: app, Env: env})
		return err
	})
}

func (c *client) mustRefresh(s *vault.Session) {
	c.t.Helper()
	if err := c.refresh(s); err != nil {
		c.t.Fatal(err)
	}
}

func reveal(s *vault.Session, ref vault.Ref, names ...string) (map[string]string, error) {
	got := map[string]string{}
	err := s.Reveal(context.Background(), ref, vault.Select{Names: names}, func(list []vault.Secret) error {
		for _, secret := range list {
			got[strings.Clone(secret.Name)] = string(bytes.Clone(secret.Value))
		}
		return nil
	})
	return got, err
}

// use is a whole `ov run`: unlock, reveal, refresh.
func (c *client) use(key []byte, ref vault.Ref, names ...string) *vault.Session {
	c.t.Helper()
	s := c.mustOpen(key)
	right(c.t, s, ref, names...)
	c.mustRefresh(s)
	return s
}

// right fails the test unless the env has what the fixture put there.
func right(t testing.TB, s *vault.Session, ref vault.Ref, names ...string) {
	t.Helper()
	got, err := reveal(s, ref, names...)
	if err != nil {
		t.Fatalf("%s: %v", ref, err)
	}
	n := 4
	if names != nil {
		n = len(names)
	}
	if len(got) != n {
		t.Errorf("%s: %d secrets, not %d", ref, len(got), n)
	}
	for i := range 4 {
		if value, ok := got[nameOf(i)]; ok && value != valueOf(ref, i) {
			t.Errorf("%s: %s is %q", ref, nameOf(i), value)
		}
	}
}

// set writes a secret as another client would.
func set(t testing.TB, f *far, ref vault.Ref, name, value string) {
	t.Helper()
	locked, err := kek.LockedFrom(bytes.Clone(fixture(t).account))
	if err != nil {
		t.Fatal(err)
	}
	s, err := vault.New(f.Store).UnlockKey(context.Background(), locked)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if _, err := s.Put(context.Background(), ref, []vault.Put{{Name: name, Value: []byte(value)}}, vault.PutOptions{Create: true}); err != nil {
		t.Fatal(err)
	}
}

// files returns the names and sizes of what is in the cache.
func files(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if os.IsNotExist(err) {
			continue // since a moment ago
		}
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = info.Size()
	}
	return out
}

// all returns the bytes of every file below a directory.
func all(t testing.TB, dir string) (b []byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		b = append(b, text...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
