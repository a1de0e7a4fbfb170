package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
)

// memory is a store in memory that is as unkind as store.Store allows: what a
// snapshot hands out is spoiled when it ends, and functions are called twice.
type memory struct {
	mu      sync.Mutex
	records map[string][]byte
	writes  int // batches that were written
	batch   store.Batch
}

type snapshot struct {
	records map[string][]byte
	keys    []string
	out     [][]byte
}

func (m *memory) snapshot() *snapshot {
	return &snapshot{records: m.records, keys: slices.Sorted(maps.Keys(m.records))}
}

func (s *snapshot) lend(b []byte) []byte {
	if b != nil {
		b = bytes.Clone(b)
		s.out = append(s.out, b)
	}
	return b
}

func (s *snapshot) end() {
	for _, b := range s.out {
		for i := range b {
			b[i] = 0xA5
		}
	}
}

func (s *snapshot) Get(key []byte) ([]byte, error) { return s.lend(s.records[string(key)]), nil }

func (s *snapshot) Last(prefix []byte) (key, value []byte, err error) {
	err = s.Scan(prefix, func(k, v []byte) error { key, value = k, v; return nil })
	return key, value, err
}

func (s *snapshot) Fetch(...store.Range) error { return nil }

func (s *snapshot) Scan(prefix []byte, fn func(k, v []byte) error) error {
	i, _ := slices.BinarySearch(s.keys, string(prefix))
	for ; i < len(s.keys) && strings.HasPrefix(s.keys[i], string(prefix)); i++ {
		if err := fn(s.lend([]byte(s.keys[i])), s.lend(s.records[s.keys[i]])); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) View(_ context.Context, fn func(store.Reader) error) error {
	for range 2 {
		m.mu.Lock()
		s := m.snapshot()
		m.mu.Unlock()
		err := fn(s)
		s.end()
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Update(_ context.Context, fn func(store.Reader) (store.Batch, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for range 2 {
		s := m.snapshot()
		b, err := fn(s)
		m.batch = nil
		for _, op := range b {
			m.batch = append(m.batch, store.Op{Key: bytes.Clone(op.Key), Value: bytes.Clone(op.Value)})
		}
		s.end()
		if err != nil {
			return err
		}
	}
	return m.write(m.batch)
}

func (m *memory) write(b store.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	if len(b) == 0 {
		return nil
	}
	m.writes++
	next := maps.Clone(m.records)
	for _, op := range b {
		if op.Value == nil {
			delete(next, string(op.Key))
		} else {
			next[string(op.Key)] = op.Value
		}
	}
	m.records = next
	return nil
}

// create is a Create.
func (m *memory) create(_ context.Context, b store.Batch) error {
	if m.records != nil {
		return fs.ErrExist
	}
	m.records = map[string][]byte{}
	return m.write(b)
}

// clone returns an independent store with the same records.
func (m *memory) clone() *memory {
	c := &memory{records: map[string][]byte{}}
	for k, v := range m.records {
		c.records[k] = bytes.Clone(v)
	}
	return c
}

// keys returns the store keys of all records of a kind.
func (m *memory) keys(kind byte) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(m.records)) {
		if k[0] == kind {
			out = append(out, k)
		}
	}
	return out
}

// distant is a store that is far away. It counts the trips to it, and may refuse
// ranges as an API key with a scope does.
type distant struct {
	*memory
	trips, ranges int
	denies        func(store.Range) bool
}

func (d *distant) far(r store.Reader) store.Reader {
	return store.NewMemo(func(ask []store.Range) ([][]store.Record, error) {
		d.trips++
		d.ranges += len(ask)
		out := make([][]store.Record, len(ask))
		for i, a := range ask {
			if d.denies != nil && d.denies(a) {
				return nil, fmt.Errorf("range %q: %w", a.Key, store.ErrDenied)
			}
			err := r.Scan(a.Key, func(k, v []byte) error {
				if a.Take != store.One || len(k) == len(a.Key) {
					out[i] = append(out[i], store.Record{Key: k, Value: v})
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
			if n := len(out[i]); a.Take == store.Last && n > 0 {
				out[i] = out[i][n-1:]
			}
		}
		return out, nil
	})
}

func (d *distant) View(ctx context.Context, fn func(store.Reader) error) error {
	return d.memory.View(ctx, func(r store.Reader) error {
		d.trips, d.ranges = 0, 0
		return fn(d.far(r))
	})
}

func (d *distant) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	return d.memory.Update(ctx, func(r store.Reader) (store.Batch, error) {
		d.trips, d.ranges = 0, 0
		return fn(d.far(r))
	})
}

// refs and what the fixture keeps in them.
var (
	prod    = Ref{"myapp", "production"}
	staging = Ref{"myapp", "staging"}
	other   = Ref{"other", "production"}

	fixtureTime = time.Date(2026, 11, 20, 3, 4, 5, 0, time.UTC)
)

const fixturePassword = "correct horse battery staple"

var fixtureValues = map[Ref]map[string][]string{ // oldest version first
	prod: {
		"DATABASE_URL":      {"postgres://old", "postgres://older", "postgres://db/prod?a=b&c=d"},
		"STRIPE_SECRET_KEY": {"a key that opens nothing"},
		"EMPTY":             {""},
		"BINARY":            {"\x00\xff\n\r\x1b[31m"},
	},
	staging: {"DATABASE_URL": {"postgres://staging"}, "TOKEN": {"t1", "t2"}},
	other:   {"TOKEN": {"another token"}},
}

// fixture is a prepared vault, made once: a password costs 0.1 s and more.
type fixture struct {
	mem                        *memory
	account, app, env, foreign []byte // machine keys: of all, of myapp, of myapp/production, of other
	file                       []byte // the same vault as a bbolt file
}

var prepared = sync.OnceValues(func() (*fixture, error) {
	ctx := context.Background()
	f := &fixture{mem: &memory{}}
	v := New(f.mem)
	v.now = func() time.Time { return fixtureTime }
	password, err := kek.LockedFrom([]byte(fixturePassword))
	if err != nil {
		return nil, err
	}
	defer password.Destroy()
	if err := v.Init(ctx, f.mem.create, password); err != nil {
		return nil, err
	}
	s, err := v.Unlock(ctx, password)
	if err != nil {
		return nil, err
	}
	defer s.Destroy()
	for _, ref := range []Ref{prod, staging, other} {
		for _, name := range slices.Sorted(maps.Keys(fixtureValues[ref])) {
			for _, value := range fixtureValues[ref][name] {
				if _, err := s.Put(ctx, ref, []Put{{Name: name, Value: []byte(value)}}, PutOptions{Create: true, Note: "set"}); err != nil {
					return nil, err
				}
			}
		}
	}
	for ref, key := range map[Ref]*[]byte{{}: &f.account, {App: "myapp"}: &f.app, prod: &f.env, {App: "other"}: &f.foreign} {
		k, _, err := s.DeriveMachineKey(ctx, ref, "label of "+ref.String())
		if err != nil {
			return nil, err
		}
		*key = bytes.Clone(k.Bytes())
		k.Destroy()
	}
	dir, err := os.MkdirTemp("", "vault")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var b store.Batch
	for k, value := range f.mem.records {
		b.Put([]byte(k), value)
	}
	st := bolt.New(filepath.Join(dir, "v"))
	if err := st.Create(ctx, b); err != nil {
		return nil, err
	}
	f.file, err = os.ReadFile(st.Path())
	return f, err
})

// setup returns a copy of the fixture's store, and the fixture's keys.
func setup(t testing.TB) (*fixture, *memory) {
	t.Helper()
	f, err := prepared()
	if err != nil {
		t.Fatal(err)
	}
	return f, f.mem.clone()
}

// onDisk returns a copy of the fixture's vault in a file.
func onDisk(t testing.TB) (*fixture, *bolt.Store) {
	t.Helper()
	f, _ := setup(t)
	path := filepath.Join(t.TempDir(), "vault.db")
	if err := os.WriteFile(path, f.file, 0o600); err != nil {
		t.Fatal(err)
	}
	return f, bolt.New(path)
}

func locked(t testing.TB, b []byte) *kek.Locked {
	t.Helper()
	l, err := kek.LockedFrom(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Destroy)
	return l
}

// unlock opens a session with a machine key.
func unlock(t testing.TB, st store.Store, key []byte) *Session {
	t.Helper()
	s, err := New(st).UnlockKey(context.Background(), locked(t, key))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Destroy)
	return s
}

// reveal returns the selected values by name.
func reveal(s *Session, ref Ref, names ...string) (map[string]string, error) {
	got := map[string]string{}
	err := s.Reveal(context.Background(), ref, Select{Names: names}, func(list []Secret) error {
		for _, secret := range list {
			got[strings.Clone(secret.Name)] = string(secret.Value)
		}
		return nil
	})
	return got, err
}

// want fails unless the env has exactly these values.
func want(t testing.TB, s *Session, ref Ref, values map[string]string) {
	t.Helper()
	got, err := reveal(s, ref)
	if err != nil {
		t.Errorf("%s: %v", ref, err)
	} else if !maps.Equal(got, values) {
		t.Errorf("%s holds %q, want %q", ref, got, values)
	}
}

// newest is what fixtureValues says the env holds.
func newest(ref Ref) map[string]string {
	out := map[string]string{}
	for name, values := range fixtureValues[ref] {
		out[name] = values[len(values)-1]
	}
	return out
}

func set(t testing.TB, s *Session, ref Ref, name, value string) PutResult {
	t.Helper()
	res, err := s.Put(t.Context(), ref, []Put{{Name: name, Value: []byte(value)}}, PutOptions{Note: "set"})
	if err != nil {
		t.Fatal(err)
	}
	return res[0]
}

// is fails unless err wraps target and says all of what.
func is(t testing.TB, err, target error, what ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got %v, want %v", err, target)
		return
	}
	for _, w := range what {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%q is no line of text", err)
	}
}

func ptr(n uint32) *uint32 { return &n }

var _ = fmt.Sprint
