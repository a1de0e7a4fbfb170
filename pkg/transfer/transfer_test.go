package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memory is a store in memory, as a server's account is to its clients: it is
// there before there is a vault. Functions are called twice, as a Store may.
type memory struct {
	mu      sync.Mutex
	records map[string][]byte
	commits int
	fail    int    // at which commit it fails, from 1; 0 is never
	lose    string // a key that is not written, by a store that is broken
}

var errLost = errors.New("lost")

func newMemory() *memory { return &memory{records: map[string][]byte{}} }

func (m *memory) reader() store.Reader {
	records := maps.Clone(m.records)
	return store.NewMemo(func(ranges []store.Range) ([][]store.Record, error) {
		out := make([][]store.Record, len(ranges))
		for i, r := range ranges {
			for _, key := range slices.Sorted(maps.Keys(records)) {
				if strings.HasPrefix(key, string(r.Key)) && (r.Take != store.One || key == string(r.Key)) {
					out[i] = append(out[i], store.Record{Key: []byte(key), Value: records[key]})
				}
			}
			if r.Take == store.Last && len(out[i]) > 1 {
				out[i] = out[i][len(out[i])-1:]
			}
		}
		return out, nil
	})
}

func (m *memory) View(_ context.Context, fn func(store.Reader) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = fn(m.reader())
	return fn(m.reader())
}

func (m *memory) Update(_ context.Context, fn func(store.Reader) (store.Batch, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, _ = fn(m.reader())
	b, err := fn(m.reader())
	if err != nil || len(b) == 0 {
		return err
	}
	if err := b.Check(); err != nil {
		return err
	}
	if m.commits++; m.commits == m.fail {
		return errLost
	}
	for _, op := range b {
		if op.Value == nil {
			delete(m.records, string(op.Key))
		} else if string(op.Key) != m.lose {
			m.records[string(op.Key)] = bytes.Clone(op.Value)
		}
	}
	return nil
}

func (m *memory) end() End { return End{Name: "https://server", Store: m} }

func fileEnd(path string) End {
	st := bolt.New(path)
	return End{Name: path, Store: st, Create: st.Create}
}

func locked(t testing.TB, text string) *kek.Locked {
	t.Helper()
	l, err := kek.LockedFrom([]byte(text))
	must(t, err)
	t.Cleanup(l.Destroy)
	return l
}

const password = "correct horse"

// base is a vault with an app web, an env staging in it, and secrets A and B in
// both of its envs, and a key to all of it: a password takes its time.
var base = sync.OnceValue(func() (v struct {
	batch store.Batch
	key   []byte
}) {
	m := newMemory()
	panicIf := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	l, err := kek.LockedFrom([]byte(password))
	panicIf(err)
	defer l.Destroy()
	create := func(ctx context.Context, b store.Batch) error {
		return m.Update(ctx, func(store.Reader) (store.Batch, error) { return b, nil })
	}
	panicIf(vault.New(m).Init(ctx, create, l))
	s, err := vault.New(m).Unlock(ctx, l)
	panicIf(err)
	defer s.Destroy()
	panicIf(s.CreateApp(ctx, "web"))
	panicIf(s.CreateEnv(ctx, staging))
	for _, ref := range []vault.Ref{production, staging} {
		_, err := s.Put(ctx, ref, []vault.Put{{Name: "A", Value: []byte("1")}, {Name: "B", Value: []byte("1")}}, vault.PutOptions{})
		panicIf(err)
	}
	key, _, err := s.DeriveMachineKey(ctx, vault.Ref{}, "")
	panicIf(err)
	defer key.Destroy()
	v.key = bytes.Clone(key.Bytes())
	c, err := Read(ctx, m.end())
	panicIf(err)
	v.batch = c.Batch()
	return v
})

// newVault is base in a file.
func newVault(t testing.TB) End {
	t.Helper()
	end := fileEnd(filepath.Join(t.TempDir(), "vault.db"))
	must(t, end.Create(ctx, base().batch))
	return end
}

var (
	production = vault.Ref{App: "web", Env: "production"}
	staging    = vault.Ref{App: "web", Env: "staging"}
)

func set(t testing.TB, s *vault.Session, ref vault.Ref, name, value string) {
	t.Helper()
	_, err := s.Put(ctx, ref, []vault.Put{{Name: name, Value: []byte(value)}}, vault.PutOptions{Existing: vault.ReplaceExisting, Note: "set"})
	must(t, err)
}

// edit changes a vault.
func edit(t testing.TB, end End, fn func(*vault.Session)) {
	t.Helper()
	key, err := kek.LockedFrom(bytes.Clone(base().key)) // which it wipes
	must(t, err)
	s, err := vault.New(end.Store).UnlockKey(ctx, key)
	if errors.Is(err, vault.ErrDeadKey) {
		s, err = vault.New(end.Store).Unlock(ctx, locked(t, password))
	}
	must(t, err)
	defer s.Destroy()
	fn(s)
}

func contents(t testing.TB, end End) *Contents {
	t.Helper()
	c, err := Read(ctx, end)
	must(t, err)
	return c
}

func same(t testing.TB, a, b End) {
	t.Helper()
	x, y := contents(t, a), contents(t, b)
	if len(x.Records) != len(y.Records) || !bytes.Equal(x.Digest(), y.Digest()) {
		t.Errorf("%d records at %s, %d at %s", len(x.Records), a.Name, len(y.Records), b.Name)
	}
}

// A vault moved to a server, and from there to a file, opens with its password
// and is byte for byte what it was.
func TestCopy(t *testing.T) {
	from, server := newVault(t), newMemory()
	var phases []Phase
	res, err := Copy(ctx, from, server.end(), Options{Progress: func(p Phase, done, total int) {
		if done > total && total != 0 {
			t.Errorf("%s: %d of %d", p, done, total)
		}
		if len(phases) == 0 || phases[len(phases)-1] != p {
			phases = append(phases, p)
		}
	}})
	must(t, err)
	n := len(contents(t, from).Records)
	if res.Records != n || res.Written != n || res.Deleted != 0 || len(res.Digest) != 64 {
		t.Errorf("%+v for %d records", res, n)
	}
	if !slices.Equal(phases, []Phase{Reading, Writing, Verifying}) {
		t.Error(phases)
	}
	to := fileEnd(filepath.Join(t.TempDir(), "new.db"))
	_, err = Copy(ctx, server.end(), to, Options{})
	must(t, err)
	same(t, from, to)
	edit(t, to, func(s *vault.Session) {
		list, err := s.List(ctx, staging)
		if err != nil || len(list) != 2 {
			t.Error(list, err)
		}
	})
	// Once more there is nothing to do.
	res, err = Copy(ctx, from, to, Options{})
	if err != nil || res.Written != 0 || res.Deleted != 0 || res.Records != n {
		t.Error(res, err)
	}
	if _, err := Copy(ctx, from, to, Options{Fresh: true}); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if _, err := Copy(ctx, newMemory().end(), to, Options{}); !errors.Is(err, store.ErrNoVault) {
		t.Error(err)
	}
	if _, err := Copy(ctx, fileEnd(filepath.Join(t.TempDir(), "none.db")), to, Options{}); !errors.Is(err, store.ErrNoVault) {
		t.Error(err)
	}
}

// many adds records that need several pieces.
func many(t testing.TB, end End, n int) {
	t.Helper()
	must(t, end.Store.Update(ctx, func(store.Reader) (b store.Batch, err error) {
		for i := range n {
			b.Put(fmt.Appendf(nil, "v%071d", i), bytes.Repeat([]byte{byte(i), 1}, 50))
		}
		return b, nil
	}))
}

// Killed after any piece, nothing opens; the next try writes what is missing,
// and no more, whatever else has been left there.
func TestResume(t *testing.T) {
	from := newVault(t)
	many(t, from, 2*pieceRecords)
	for fail := 1; fail <= 4; fail++ {
		server := newMemory()
		server.fail = fail
		if _, err := Copy(ctx, from, server.end(), Options{}); !errors.Is(err, errLost) {
			t.Fatalf("commit %d: %v", fail, err)
		}
		if server.records["A"] != nil {
			t.Errorf("commit %d: there is a vault before all is there", fail)
		}
		before := len(server.records)
		if want := min((fail-1)*pieceRecords, len(contents(t, from).Records)-1); before != want {
			t.Errorf("commit %d: %d records, not %d", fail, before, want)
		}
		server.records["vleftover"] = []byte("of another time")
		server.fail = 0
		res, err := Copy(ctx, from, server.end(), Options{})
		must(t, err)
		if res.Written != res.Records-before || res.Deleted != 1 {
			t.Errorf("commit %d: %+v after %d records", fail, res, before)
		}
		same(t, from, server.end())
	}
	server := newMemory()
	server.lose = string(contents(t, from).Records[5].Key)
	if _, err := Copy(ctx, from, server.end(), Options{}); err == nil || !strings.Contains(err.Error(), "is not what is there now") {
		t.Error(err)
	}
}

// TestReplace: a vault is replaced by a newer state of itself, and by nothing
// else without force.
func TestReplace(t *testing.T) {
	// What is written at the source after the two were the same.
	for name, change := range map[string]func(*testing.T, End){
		"nothing":   func(*testing.T, End) {},
		"a version": func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { set(t, s, production, "A", "2") }) },
		"a secret":  func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { set(t, s, production, "C", "1") }) },
		"an app":    func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { must(t, s.CreateApp(ctx, "other")) }) },
		"old ones are dropped": func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) {
				for i := range vault.MaxVersions + 3 {
					set(t, s, production, "A", fmt.Sprint("x", i))
				}
			})
		},
		"a machine key": func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) {
				key, _, err := s.DeriveMachineKey(ctx, production, "web 1")
				must(t, err)
				key.Destroy()
			})
		},
		"an app's key": func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { must(t, s.RotateApp(ctx, "web")) }) },
		"all keys":     func(t *testing.T, e End) { must(t, vault.New(e.Store).RotateKey(ctx, locked(t, password))) },
		"keys, and a version": func(t *testing.T, e End) {
			must(t, vault.New(e.Store).RotateKey(ctx, locked(t, password)))
			edit(t, e, func(s *vault.Session) { must(t, s.RotateApp(ctx, "web")); set(t, s, staging, "B", "2") })
		},
	} {
		t.Run("newer: "+name, func(t *testing.T) {
			t.Parallel()
			from, server := newVault(t), newMemory()
			_, err := Copy(ctx, from, server.end(), Options{})
			must(t, err)
			server.commits = 0
			change(t, from)
			_, err = Copy(ctx, from, server.end(), Options{})
			must(t, err)
			same(t, from, server.end())
			if server.commits > 1 {
				t.Errorf("in %d steps", server.commits)
			}
		})
	}
	// What is written at the destination, and why it must not be lost.
	for name, c := range map[string]struct {
		change func(*testing.T, End)
		reason string
	}{
		"a version": {func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { set(t, s, production, "A", "2") }) },
			"newer versions of secrets in web/production (1)"},
		"versions": {func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) {
				set(t, s, staging, "A", "2")
				set(t, s, staging, "A", "3")
				set(t, s, staging, "B", "2")
			})
		}, "newer versions of secrets in web/staging (3)"},
		"a secret": {func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { set(t, s, production, "C", "1") }) },
			"secrets in web/production that the source has not (1)"},
		"an app": {func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { must(t, s.CreateApp(ctx, "other")) }) },
			"app other"},
		"an env": {func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) { must(t, s.CreateEnv(ctx, vault.Ref{App: "web", Env: "ci"})) })
		}, "env web/ci"},
		"a secret deleted and set again": {func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) {
				must(t, s.Delete(ctx, production, []string{"A"}))
				set(t, s, production, "A", "1")
			})
		}, "other versions of secrets in web/production (1)"},
		"an app deleted and made again": {func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) { must(t, s.DeleteApp(ctx, "web")); must(t, s.CreateApp(ctx, "web")) })
		}, "app web with other keys"},
		"a machine key": {func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) {
				key, _, err := s.DeriveMachineKey(ctx, production, "web 1")
				must(t, err)
				key.Destroy()
			})
		}, "machine key "},
		"an app's key": {func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { must(t, s.RotateApp(ctx, "web")) }) },
			"app web with other keys"},
		"all keys": {func(t *testing.T, e End) { must(t, vault.New(e.Store).RotateKey(ctx, locked(t, password))) },
			"keys of the account that are not those of the source"},
		"what was deleted there again": {func(t *testing.T, e End) {
			edit(t, e, func(s *vault.Session) {
				set(t, s, production, "C", "1")
				must(t, s.Delete(ctx, production, []string{"C"}))
			})
		}, "writes to env web/production of which it cannot be told whether the source has them"},
		// Within one second the keys are the same, and what is wrapped by them is not.
		"keys on both sides": {func(t *testing.T, e End) { edit(t, e, func(s *vault.Session) { must(t, s.RotateApp(ctx, "web")) }) }, ""},
	} {
		t.Run("would lose "+name, func(t *testing.T) {
			t.Parallel()
			from, to := newVault(t), fileEnd(filepath.Join(t.TempDir(), "to.db"))
			_, err := Copy(ctx, from, to, Options{})
			must(t, err)
			c.change(t, to)
			if name == "keys on both sides" {
				edit(t, from, func(s *vault.Session) { must(t, s.RotateApp(ctx, "web")) })
			}
			before := contents(t, to)
			_, err = Copy(ctx, from, to, Options{})
			var diverged *Diverged
			if !errors.As(err, &diverged) || !slices.ContainsFunc(diverged.Reasons, func(s string) bool { return strings.HasPrefix(s, c.reason) }) || hint.Of(err) == "" {
				t.Fatal(err)
			}
			if !bytes.Equal(contents(t, to).Digest(), before.Digest()) {
				t.Fatal("something was written all the same")
			}
			// The guard of a restore: it replaces what was kept, nothing else.
			if _, err := Copy(ctx, from, to, Options{Force: true, Replaces: contents(t, from)}); err == nil || !strings.Contains(err.Error(), "in the meantime") {
				t.Error(err)
			}
			_, err = Copy(ctx, from, to, Options{Force: true, Replaces: before})
			must(t, err)
			same(t, from, to)
		})
	}
}

// Another account's vault is replaced only by who says so.
func TestOtherAccount(t *testing.T) {
	from, to := newVault(t), fileEnd(filepath.Join(t.TempDir(), "other.db"))
	must(t, vault.New(to.Store).Init(ctx, to.Create, locked(t, password)))
	for _, o := range []Options{{}, {Force: true}} {
		before := contents(t, to)
		if _, err := Copy(ctx, from, to, o); !errors.Is(err, ErrOtherAccount) || hint.Of(err) == "" {
			t.Errorf("%+v: %v", o, err)
		}
		if !bytes.Equal(contents(t, to).Digest(), before.Digest()) {
			t.Fatal("something was written all the same")
		}
	}
	_, err := Copy(ctx, from, to, Options{AnyAccount: true})
	must(t, err)
	same(t, from, to)
}
