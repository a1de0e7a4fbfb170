package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// mind is a Witness in memory.
type mind struct {
	mu   sync.Mutex
	seen map[[16]byte]*Seen
	kept int // how often something was new
}

func (s *Seen) clone() *Seen {
	c := *s
	c.Apps = map[string]*SeenApp{}
	for slug, a := range s.Apps {
		app := *a
		app.Envs = map[string]*SeenEnv{}
		for slug, e := range a.Envs {
			env := *e
			env.Secrets = maps.Clone(e.Secrets)
			app.Envs[slug] = &env
		}
		c.Apps[slug] = &app
	}
	return &c
}

func (m *mind) Recall(account [16]byte) (*Seen, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.seen[account]; s != nil {
		return s.clone(), nil
	}
	return &Seen{}, nil
}

func (m *mind) Remember(account [16]byte, note func(*Seen) bool) {
	s, _ := m.Recall(account)
	if !note(s) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen = map[[16]byte]*Seen{}
	}
	m.seen[account] = s
	m.kept++
}

// watched opens a session that has a witness.
func watched(t testing.TB, st store.Store, w Witness, key []byte, options ...Option) *Session {
	t.Helper()
	s, err := New(st, append(options, WithWitness(w))...).UnlockKey(t.Context(), locked(t, key))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Destroy)
	return s
}

// ways are what can be done with an env, all of it or one secret in it.
var ways = map[string]func(ctx context.Context, s *Session, name string) error{
	"reveal":   func(_ context.Context, s *Session, _ string) error { return second(reveal(s, prod)) },
	"list":     func(ctx context.Context, s *Session, _ string) error { return second(s.List(ctx, prod)) },
	"snapshot": func(ctx context.Context, s *Session, _ string) error { return second(s.Snapshot(ctx, prod)) },
	"named":    func(_ context.Context, s *Session, name string) error { return second(reveal(s, prod, name)) },
	"history":  func(ctx context.Context, s *Session, name string) error { return second(s.History(ctx, prod, name)) },
	"put": func(ctx context.Context, s *Session, name string) error {
		return second(s.Put(ctx, prod, []Put{{Name: name, Value: []byte("x")}}, PutOptions{Create: true}))
	},
	"dryrun": func(ctx context.Context, s *Session, name string) error {
		return second(s.Put(ctx, prod, []Put{{Name: name}}, PutOptions{DryRun: true}))
	},
	"delete": func(ctx context.Context, s *Session, name string) error { return s.Delete(ctx, prod, []string{name}) },
	"rollback": func(ctx context.Context, s *Session, name string) error {
		return second(s.Rollback(ctx, prod, name, 1))
	},
	"derive": func(_ context.Context, s *Session, _ string) error { return derive(s, prod) },
	"record": func(ctx context.Context, s *Session, _ string) error { return second(s.EnvRecord(ctx, prod)) },
}

// A client that has seen a vault notices when its store goes back.
func TestGoingBack(t *testing.T) {
	f, m := setup(t)
	ctx := t.Context()
	writer := unlock(t, m, f.account)
	for i := range 3 {
		set(t, writer, prod, "A", fmt.Sprint(i))
	}
	set(t, writer, prod, "AGAIN", "before")
	old := m.clone()
	if err := writer.Delete(ctx, prod, []string{"AGAIN"}); err != nil {
		t.Fatal(err)
	}
	set(t, writer, prod, "AGAIN", "after")
	last := m.clone()
	set(t, writer, prod, "A", "newest")
	set(t, writer, prod, "NEW", "v")
	whole := m.clone()

	take := func(from *memory, prefix string) {
		for k := range m.records {
			if strings.HasPrefix(k, prefix) {
				delete(m.records, k)
			}
		}
		for k, v := range from.records {
			if strings.HasPrefix(k, prefix) {
				m.records[k] = v
			}
		}
	}
	app := appID(t, m, prod)
	env := envID(t, m, prod)
	index := func(name string) (i string) {
		t.Helper()
		err := writer.vault.view(ctx, func(r *visit) error {
			acc, e, err := writer.env(r, prod)
			if err != nil {
				return err
			}
			p, err := writer.places(acc, e, []string{name})
			i = string(p[0].index[:])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	a, again := index("A"), index("AGAIN")
	secret := func(from *memory, index string) {
		take(from, "d"+app+env+index)
		take(from, "v"+app+env+index)
	}
	none := &memory{}
	const (
		every = "reveal list snapshot named history put dryrun delete rollback derive record"
		some  = "named history put dryrun delete rollback"
		all   = "reveal list snapshot"
	)
	for _, c := range []struct {
		what     string
		name     string // the secret
		back     string // what fails with ErrRollback
		withheld string // and with ErrWithheld
		want     string
		do       func()
	}{
		{"nothing", "A", "", "", "", func() {}},
		{"by one write", "A", every, "", "env myapp/production had change ", func() {
			take(last, "e")
			take(last, "d")
			take(last, "v")
		}},
		{"all of the vault", "A", every, "", "env myapp/production had change ", func() { m.records = old.clone().records }},
		{"the env's record", "A", every, "", "env myapp/production had change ", func() { take(last, "e") }},
		{"one secret", "A", some, all, "secret A in myapp/production had version 4 on 2026-11-22 at 01:02 UTC, and now has version 3", func() { secret(last, a) }},
		{"one secret that was deleted and set again", "AGAIN", some, all, "secret AGAIN in myapp/production had version 1 on 2026-11-22 at 01:02 UTC, and now has another version", func() { secret(old, again) }},
		{"a secret that is gone", "A", some, all, "secret A in myapp/production had version 4 on 2026-11-22 at 01:02 UTC, and now has none", func() { secret(none, a) }},
		{"another secret that is gone", "A", "", all, "", func() { secret(none, again) }},
		{"an env that is gone", "A", every, "", "env myapp/production had a record on 2026-11-22 at 01:02 UTC, and now has none", func() { take(none, "e"+app+"production") }},
		{"an app that is gone", "A", every, "", "app myapp had a record on 2026-11-22 at 01:02 UTC, and now has none", func() { take(none, "amyapp") }},
	} {
		for _, key := range [][]byte{f.account, f.app, f.env} {
			m.records = whole.clone().records
			w := &mind{}
			s := watched(t, m, w, key)
			s.vault.now = func() time.Time { return time.Date(2026, 11, 22, 1, 2, 3, 4, time.UTC) }
			if got, err := reveal(s, prod); err != nil || len(got) != 7 || got["A"] != "newest" {
				t.Fatalf("%q, %v", got, err)
			}
			remembered := w.seen
			c.do()
			served := m.records
			for way, do := range ways {
				m.records, m.writes = (&memory{records: served}).clone().records, 0
				w.seen = cloneSeen(remembered)
				err := do(ctx, s, c.name)
				where := fmt.Sprintf("%s, %s", c.what, way)
				switch {
				case slices.Contains(strings.Fields(c.back), way):
					is(t, err, ErrRollback, c.want)
					var back *RollbackError
					if !errors.As(err, &back) || back.Seen.IsZero() || back.Was == "" || back.Now == "" {
						t.Errorf("%s: %#v", where, back)
					}
				case slices.Contains(strings.Fields(c.withheld), way):
					is(t, err, ErrWithheld)
				case err != nil:
					t.Errorf("%s: %v", where, err)
				}
				if err == nil {
					continue
				}
				if m.writes > 0 || !strings.Contains(hint.Of(err), "--accept-rollback") {
					t.Errorf("%s: %d writes, hint %q", where, m.writes, hint.Of(err))
				}
				// Told to go on, it goes on, and so do others from then on.
				accepting, err := New(m, WithWitness(w), AcceptRollback()).UnlockKey(ctx, locked(t, key))
				if errors.Is(err, ErrDeadKey) && strings.Contains(c.what, "gone") {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(accepting.Destroy)
				if err := do(ctx, accepting, c.name); err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("%s, accepted: %v", where, err)
				}
				if way == "list" || way == "put" {
					if err := second(reveal(s, prod, "DATABASE_URL")); errors.Is(err, ErrRollback) {
						t.Errorf("%s, after it was accepted: %v", where, err)
					}
				}
			}
		}
	}
}

func cloneSeen(seen map[[16]byte]*Seen) map[[16]byte]*Seen {
	out := map[[16]byte]*Seen{}
	for k, v := range seen {
		out[k] = v.clone()
	}
	return out
}

// What others do who have the keys passes, and so does everything that we do.
func TestGoingOn(t *testing.T) {
	f, m := setup(t)
	ctx := t.Context()
	other := unlock(t, m, f.account)
	now := fixtureTime
	for _, large := range []bool{false, true} {
		m.records = f.mem.clone().records
		if large {
			if _, err := other.Put(ctx, prod, many(smallEnv+1), PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		w := &mind{}
		s := watched(t, m, w, f.account)
		s.vault.now = func() time.Time { now = now.Add(time.Minute); return now }
		other.vault.now = s.vault.now
		look := func(what string) {
			t.Helper()
			for _, name := range []string{"DATABASE_URL", "EMPTY"} {
				if _, err := reveal(s, prod, name); err != nil && (!errors.Is(err, ErrNotFound) || name != "EMPTY") {
					t.Errorf("large %v, %s: %v", large, what, err)
				}
			}
			if _, err := s.List(ctx, prod); err != nil {
				t.Errorf("large %v, %s: %v", large, what, err)
			}
			if _, err := s.Apps(ctx); err != nil {
				t.Errorf("large %v, %s: %v", large, what, err)
			}
		}
		look("at first")
		for _, who := range []*Session{other, s} {
			for _, c := range []struct {
				what string
				do   func() error
			}{
				{"a deletion", func() error { return who.Delete(ctx, prod, []string{"EMPTY"}) }},
				{"set again", func() error { return second(who.Put(ctx, prod, []Put{{Name: "EMPTY"}}, PutOptions{})) }},
				{"deleted and set again", func() error {
					if err := who.Delete(ctx, prod, []string{"DATABASE_URL"}); err != nil {
						return err
					}
					return second(who.Put(ctx, prod, []Put{{Name: "DATABASE_URL", Value: []byte("v")}}, PutOptions{}))
				}},
				{"a new version", func() error {
					return second(who.Put(ctx, prod, []Put{{Name: "DATABASE_URL", Value: fmt.Append(nil, now)}}, PutOptions{}))
				}},
				{"rotation", func() error { return who.RotateApp(ctx, "myapp") }},
				{"a new env", func() error { return who.CreateEnv(ctx, Ref{"myapp", "dev"}) }},
				{"an env made anew", func() error {
					return errors.Join(s.DeleteEnv(ctx, Ref{"myapp", "dev"}), who.CreateEnv(ctx, Ref{"myapp", "dev"}))
				}},
				{"an app made anew", func() error {
					return errors.Join(s.DeleteApp(ctx, "other"), who.CreateApp(ctx, "other"))
				}},
				{"an env that we delete", func() error { return s.DeleteEnv(ctx, Ref{"myapp", "dev"}) }},
			} {
				if err := c.do(); err != nil {
					t.Fatalf("%s: %v", c.what, err)
				}
				look(c.what)
				kept := w.kept
				look(c.what)
				if w.kept != kept {
					t.Errorf("large %v, %s: remembered %d times though nothing is new", large, c.what, w.kept-kept)
				}
			}
		}
		// What is only tried is not remembered.
		if _, err := s.Put(ctx, Ref{"tried", "dev"}, []Put{{Name: "A"}}, PutOptions{Create: true, DryRun: true}); err != nil {
			t.Fatal(err)
		}
		look("a dry run")
		if err := s.vault.RotateKey(ctx, locked(t, []byte(fixturePassword))); err != nil {
			t.Fatal(err)
		}
		again, err := New(m, WithWitness(w)).Unlock(ctx, locked(t, []byte(fixturePassword)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(again.Destroy)
		s = again
		look("a new key")
		if err := New(m).RotateKey(ctx, locked(t, []byte(fixturePassword))); err != nil {
			t.Fatal(err)
		}
		if s, err = New(m, WithWitness(w)).Unlock(ctx, locked(t, []byte(fixturePassword))); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Destroy)
		look("another's new key")
	}
}

// A vault of before a change of keys does not take the old password or key.
func TestOldAccount(t *testing.T) {
	f, m := setup(t)
	ctx := t.Context()
	old := m.clone()
	w := &mind{}
	v := New(m, WithWitness(w))
	first, next := locked(t, []byte(fixturePassword)), locked(t, []byte("another password"))
	if err := v.ChangePassword(ctx, first, next); err != nil {
		t.Fatal(err)
	}
	changed := m.clone()
	s, err := v.Unlock(ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	for what, records := range map[string]map[string][]byte{"all": old.records, "the account's record": {"A": old.records["A"]}} {
		m.records = changed.clone().records
		maps.Copy(m.records, records)
		const text = "the account had key change 2 on "
		for i, err := range []error{
			second(v.Unlock(ctx, first)), second(v.Unlock(ctx, next)), s.Check(ctx), second(reveal(s, prod)), second(s.Apps(ctx)),
			second(v.UnlockKey(ctx, locked(t, f.account))), v.ChangePassword(ctx, first, next),
		} {
			if is(t, err, ErrRollback, text); err != nil && !strings.Contains(err.Error(), "and now has 1") {
				t.Errorf("%s, %d: %v", what, i, err)
			}
		}
	}
	// The key itself says when it was made: no memory is needed.
	m.records = changed.clone().records
	again := unlock(t, m, derived(t, s, prod))
	m.records["A"] = old.records["A"]
	is(t, second(reveal(again, prod)), ErrRollback, "the account had key change 2 when the key was made, and now has 1")
	is(t, second(v.Unlock(ctx, first)), ErrRollback)
	// Accepted, the old password opens what is there.
	m.records = old.clone().records
	accepted, err := New(m, WithWitness(w), AcceptRollback()).Unlock(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Destroy()
	want(t, accepted, prod, newest(prod))
	back, err := v.Unlock(ctx, first)
	if err != nil {
		t.Errorf("after it was accepted: %v", err)
	} else {
		back.Destroy()
	}

	// The same for an app that was rotated.
	f, m = setup(t)
	old = m.clone()
	full := unlock(t, m, f.account)
	if err := full.RotateApp(ctx, "myapp"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []Ref{{App: "myapp"}, prod} {
		now := m.clone()
		k := unlock(t, m, derived(t, full, ref))
		for _, kind := range []byte{kindApp, kindEnv, kindData} {
			for _, record := range old.keys(kind) {
				m.records[record] = old.records[record]
			}
		}
		is(t, second(reveal(k, prod)), ErrRollback, "app myapp had key change 2 when the key was made, and now has 1")
		m.records = now.records
	}
	// A client that remembers derives no key of before the rotation.
	watching := watched(t, m, &mind{}, f.account)
	if _, err := reveal(watching, prod); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []byte{kindApp, kindEnv, kindData} {
		for _, record := range old.keys(kind) {
			m.records[record] = old.records[record]
		}
	}
	is(t, derive(watching, Ref{App: "myapp"}), ErrRollback, "app myapp had key generation 2 on ")
	is(t, derive(watching, prod), ErrRollback, "app myapp had key generation 2 on ")
	is(t, watching.RotateApp(ctx, "myapp"), ErrRollback)
	is(t, watching.CreateEnv(ctx, Ref{"myapp", "new"}), ErrRollback)
}

// What a long-lived process was told to accept is what had gone back by then.
func TestAcceptedOnce(t *testing.T) {
	f, m := setup(t)
	w := &mind{}
	writer := watched(t, m, w, f.env)
	set(t, writer, prod, "A", "1")
	old := m.clone()
	set(t, writer, prod, "A", "2")
	m.records = old.clone().records
	s := watched(t, m, w, f.env, AcceptRollback())
	s.vault.opened = s.vault.opened.Add(time.Second)
	if got, err := reveal(s, prod, "A"); err != nil || got["A"] != "1" {
		t.Fatalf("%v, %v", got, err)
	}
	s.vault.now = func() time.Time { return s.vault.opened.Add(time.Minute) }
	set(t, s, prod, "A", "3")
	m.records = old.clone().records
	is(t, second(reveal(s, prod, "A")), ErrRollback, "env myapp/production had change ")
}

// An app or env that a store hides is missed by lists and changes of keys, and
// is not made a second time.
func TestHidden(t *testing.T) {
	f, m := setup(t)
	ctx := t.Context()
	w := &mind{}
	s := watched(t, m, w, f.account)
	for _, ref := range everywhere {
		if _, err := s.List(ctx, ref); err != nil {
			t.Fatal(err)
		}
	}
	whole := m.clone()
	for key, want := range map[string]string{"aother": "app other had a record", "e" + appID(t, m, prod) + "staging": "env myapp/staging had a record"} {
		m.records = whole.clone().records
		delete(m.records, key)
		m.writes = 0
		is(t, second(s.Apps(ctx)), ErrRollback, want)
		is(t, s.vault.RotateKey(ctx, locked(t, []byte(fixturePassword))), ErrRollback, want)
		if strings.HasPrefix(key, "a") {
			is(t, s.CreateApp(ctx, "other"), ErrRollback, want)
			is(t, second(s.Put(ctx, other, []Put{{Name: "A"}}, PutOptions{Create: true})), ErrRollback, want)
		} else {
			is(t, s.RotateApp(ctx, "myapp"), ErrRollback, want)
			is(t, s.CreateEnv(ctx, staging), ErrRollback, want)
			is(t, second(s.Put(ctx, staging, []Put{{Name: "A"}}, PutOptions{Create: true})), ErrRollback, want)
		}
		if m.writes > 0 {
			t.Error("something was written")
		}
	}
	// An env of before it was deleted and made anew.
	m.records = whole.clone().records
	s.vault.now = func() time.Time { return fixtureTime.Add(time.Hour) }
	if err := errors.Join(s.DeleteEnv(ctx, staging), s.CreateEnv(ctx, staging)); err != nil {
		t.Fatal(err)
	}
	set(t, s, staging, "TOKEN", "of the new one")
	m.records = whole.clone().records
	is(t, second(s.List(ctx, staging)), ErrRollback, "env myapp/staging had a record made 2026-11-20 04:04:05 UTC", "and now has a record made 2026-11-20 03:04:05 UTC")
}

// A client that comes for the first time, or reads a few secrets of an env that
// has changed, reads all of it while that is small.
func TestFirstSight(t *testing.T) {
	f, m := setup(t)
	ctx := t.Context()
	writer := unlock(t, m, f.account)
	set(t, writer, prod, "A", "1")
	old := m.clone()
	set(t, writer, prod, "A", "2")
	hide := func() { // the newest version of A
		for k := range m.records {
			if (k[0] == kindData || k[0] == kindValue) && old.records[k] == nil && strings.HasSuffix(k, "\x00\x00\x00\x02") {
				delete(m.records, k)
			}
		}
	}
	whole := m.clone()
	hide()
	if got, err := reveal(unlock(t, m, f.env), prod, "A"); err != nil || got["A"] != "1" {
		t.Fatalf("without a witness: %v, %v", got, err)
	}
	is(t, second(reveal(watched(t, m, &mind{}, f.env), prod, "A")), ErrWithheld)

	d := &distant{memory: m}
	m.records = whole.clone().records
	w := &mind{}
	s := watched(t, d, w, f.env)
	trips := func(what string, want int) {
		t.Helper()
		if _, err := reveal(s, prod, "A", "EMPTY"); err != nil || d.trips != want {
			t.Errorf("%s: %d trips, want %d: %v", what, d.trips, want, err)
		}
	}
	trips("the first time", 3)
	trips("again", 2)
	set(t, writer, prod, "B", "v")
	trips("after another's write", 3)
	trips("and again", 2)
	set(t, s, prod, "B", "w")
	trips("after our own write", 2)
	if _, err := s.Put(ctx, prod, []Put{{Name: "B", Value: []byte("x")}}, PutOptions{}); err != nil || d.trips != 2 {
		t.Errorf("a write took %d trips: %v", d.trips, err)
	}
	if err := s.Delete(ctx, prod, []string{"B"}); err != nil || d.trips != 2 {
		t.Errorf("a deletion took %d trips: %v", d.trips, err)
	}
	trips("after our own writes", 2)
	if _, err := writer.Put(ctx, prod, many(smallEnv), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	trips("when it is large", 2)
	set(t, writer, prod, "A", "3")
	trips("when it has changed", 2)
}

// Between our snapshot and our look at what is remembered, another process may
// have written and remembered: that is no rollback.
func TestWitnessIsShared(t *testing.T) {
	f, m := setup(t)
	w := &mind{}
	set(t, watched(t, m, w, f.env), prod, "A", "0")
	for i, do := range []func(s *Session) error{
		func(s *Session) error { return second(reveal(s, prod, "A")) },
		func(s *Session) error { return second(s.List(t.Context(), prod)) },
		func(s *Session) error {
			return second(s.Put(t.Context(), prod, []Put{{Name: "A", Value: []byte("mine")}}, PutOptions{}))
		},
	} {
		s := watched(t, &late{m, nil}, w, f.env)
		s.vault.store.(*late).meanwhile = func() {
			set(t, watched(t, m, w, f.env), prod, "A", fmt.Sprint("meanwhile ", i))
		}
		if err := do(s); err != nil {
			t.Error(err)
		}
	}
}

// late lets something happen after its first snapshot was taken.
type late struct {
	*memory
	meanwhile func()
}

func (l *late) View(ctx context.Context, fn func(store.Reader) error) error {
	if l.meanwhile == nil {
		return l.memory.View(ctx, fn)
	}
	s := l.snapshot()
	l.meanwhile()
	l.meanwhile = nil
	return fn(s)
}

func (l *late) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	if l.meanwhile != nil {
		s := l.snapshot()
		l.meanwhile()
		l.meanwhile = nil
		if _, err := fn(s); err != nil {
			return err
		}
	}
	return l.memory.Update(ctx, fn)
}

// What is remembered is bounded.
func TestSeenIsBounded(t *testing.T) {
	f, m := setup(t)
	w := &mind{}
	s := watched(t, m, w, f.env)
	ctx := t.Context()
	count := func() (n int, whole bool) {
		for _, seen := range w.seen {
			e := seen.Apps["myapp"].Envs["production"]
			n, whole = len(e.Secrets), e.Whole == e.Counter
		}
		return n, whole
	}
	list := many(MaxSeen + 100)
	for i := range 5 {
		if _, err := s.Put(ctx, prod, list[i*len(list)/5:(i+1)*len(list)/5], PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := count(); n != MaxSeen {
		t.Errorf("%d secrets are remembered", n)
	}
	if _, err := s.List(ctx, prod); err != nil {
		t.Fatal(err)
	}
	if n, whole := count(); n != MaxSeen || !whole {
		t.Errorf("after a list of all, %d secrets are remembered, whole %v", n, whole)
	}
	// One that is remembered no longer is noticed when all are read.
	for k := range m.records {
		if k[0] == kindData && strings.Contains(k, envID(t, m, prod)) {
			delete(m.records, k)
			break
		}
	}
	is(t, second(s.List(ctx, prod)), ErrWithheld)
}
