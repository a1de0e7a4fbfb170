package vault

import (
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

// stateOf returns the env's state, and fails unless it is what a count of the
// newest versions gives.
func stateOf(t testing.TB, s *Session, ref Ref) state {
	t.Helper()
	var st state
	err := s.vault.view(t.Context(), func(r *visit) error {
		acc, e, err := s.env(r, ref)
		if err != nil {
			return err
		}
		list, err := s.all(r, acc, e)
		if err != nil {
			return err
		}
		if st, err = s.tally(acc, e, list); err == nil && st != e.state {
			err = fmt.Errorf("the state is %+v, a count gives %+v", e.state, st)
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", ref, err)
	}
	return st
}

// Every write to an env adds one to its counter, and leaves the sum of what is
// there then.
func TestStateCounts(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	before := stateOf(t, s, prod)
	if before.counter == 0 || int(before.secrets) != len(fixtureValues[prod]) {
		t.Fatalf("state %+v", before)
	}
	elsewhere := stateOf(t, s, staging)
	put := func(s *Session, opt PutOptions, list ...Put) error {
		return second(s.Put(t.Context(), prod, list, opt))
	}
	for _, c := range []struct {
		what    string
		do      func() error
		changes uint64
		secrets int // more
	}{
		{"a new secret", func() error { return put(s, PutOptions{}, Put{Name: "A", Value: []byte("1")}) }, 1, 1},
		{"a new version", func() error { return put(s, PutOptions{}, Put{Name: "A", Value: []byte("2")}) }, 1, 0},
		{"the same value", func() error { return put(s, PutOptions{}, Put{Name: "A", Value: []byte("2")}) }, 0, 0},
		{"a dry run", func() error { return put(s, PutOptions{DryRun: true}, Put{Name: "A", Value: []byte("3")}) }, 0, 0},
		{"what is kept", func() error {
			return put(s, PutOptions{Existing: KeepExisting}, Put{Name: "A", Value: []byte("3")})
		}, 0, 0},
		{"many at once", func() error {
			return put(s, PutOptions{}, append(many(600), Put{Name: "A", Value: []byte("3")}, Put{Name: "EMPTY"})...)
		}, 1, 600},
		{"a rollback", func() error { return second(s.Rollback(t.Context(), prod, "A", 1)) }, 1, 0},
		{"a rollback to the newest", func() error { return second(s.Rollback(t.Context(), prod, "A", 0)) }, 0, 0},
		{"a deletion", func() error { return s.Delete(t.Context(), prod, []string{"A", "SECRET_3", "A"}) }, 1, -2},
		{"a deletion of nothing", func() error { return s.Delete(t.Context(), prod, nil) }, 0, 0},
		{"set again", func() error { return put(s, PutOptions{}, Put{Name: "A", Value: []byte("1")}) }, 1, 1},
		{"so many versions that old ones go", func() error {
			for i := range MaxVersions + 3 {
				if err := put(s, PutOptions{}, Put{Name: "A", Value: fmt.Append(nil, i, "x")}); err != nil {
					return err
				}
			}
			return nil
		}, MaxVersions + 3, 0},
		{"with the env's key", func() error { return put(unlock(t, m, f.env), PutOptions{}, Put{Name: "B"}) }, 1, 1},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		after := stateOf(t, s, prod)
		if after.counter != before.counter+c.changes || int(after.secrets) != int(before.secrets)+c.secrets || (after.sum == before.sum) != (c.changes == 0) {
			t.Errorf("%s: from %+v to %+v", c.what, before, after)
		}
		before = after
	}
	if stateOf(t, s, staging) != elsewhere {
		t.Error("another env's state changed")
	}
	// New keys leave the sum as it is.
	if err := s.RotateApp(t.Context(), "myapp"); err != nil {
		t.Fatal(err)
	}
	if err := s.vault.RotateKey(t.Context(), locked(t, []byte(fixturePassword))); err != nil {
		t.Fatal(err)
	}
	s, err := New(m).Unlock(t.Context(), locked(t, []byte(fixturePassword)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if after := stateOf(t, s, prod); after.counter != before.counter+2 || after.sum != before.sum || after.secrets != before.secrets {
		t.Errorf("new keys: from %+v to %+v", before, after)
	}
	// A new env, empty and not.
	for ref, secrets := range map[Ref]uint32{{"fresh", "dev"}: 1, {"fresh", "empty"}: 0} {
		var err error
		if secrets > 0 {
			err = second(s.Put(t.Context(), ref, []Put{{Name: "A"}}, PutOptions{Create: true}))
		} else {
			err = s.CreateEnv(t.Context(), ref)
		}
		if st := stateOf(t, s, ref); err != nil || st.counter == 0 || st.secrets != secrets || (st.sum == sum{}) != (secrets == 0) {
			t.Errorf("%s: %+v, %v", ref, st, err)
		}
	}
}

// A store that leaves records out, or has older ones in their place, is found out
// by whatever reads all of an env, also to say that a name is not there.
func TestWithheld(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	for i := range 3 {
		set(t, s, prod, "A", fmt.Sprint(i))
	}
	set(t, s, prod, "AGAIN", "before")
	old := m.clone()
	if err := s.Delete(t.Context(), prod, []string{"AGAIN"}); err != nil {
		t.Fatal(err)
	}
	set(t, s, prod, "AGAIN", "after") // once more version 1
	set(t, s, prod, "A", "newest")
	whole := m.clone()

	keyOf := func(kind byte, name string, version uint32) (key string) {
		t.Helper()
		err := s.vault.view(t.Context(), func(r *visit) error {
			acc, e, err := s.env(r, prod)
			if err != nil {
				return err
			}
			p, err := s.places(acc, e, []string{name})
			if err == nil {
				p[0].version = version
				key = string(p[0].key(kind))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	drop := func(name string, versions ...uint32) {
		for _, v := range versions {
			delete(m.records, keyOf(kindData, name, v))
			delete(m.records, keyOf(kindValue, name, v))
		}
	}
	back := func(name string, version uint32) {
		for _, kind := range []byte{kindData, kindValue} {
			m.records[keyOf(kind, name, version)] = old.records[keyOf(kind, name, version)]
		}
	}
	for _, c := range []struct {
		what, want string
		do         func()
	}{
		{"the newest version is gone", "it has 6 secrets, of which not all that came are the newest", func() { drop("A", 4) }},
		{"a secret is gone", "it has 6 secrets, and 5 came", func() { drop("A", 1, 2, 3, 4) }},
		{"two secrets are gone", "it has 6 secrets, and 4 came", func() { drop("EMPTY", 1); drop("BINARY", 1) }},
		{"all are gone", "it has 6 secrets, and 0 came", func() {
			drop("A", 1, 2, 3, 4)
			for name, v := range fixtureValues[prod] {
				for i := range v {
					drop(name, uint32(i+1))
				}
			}
			drop("AGAIN", 1)
		}},
		{"the same version of before a deletion", "it has 6 secrets, of which not all that came are the newest", func() { back("AGAIN", 1) }},
		{"the secrets of before, the env's record of now", "", func() {
			drop("A", 4)
			back("AGAIN", 1)
		}},
		{"the secrets of now, the env's record of before", "", func() {
			for _, k := range m.keys(kindEnv) {
				m.records[k] = old.records[k]
			}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			m.records = whole.clone().records
			c.do()
			m.writes = 0
			damaged := m.clone()
			for what, err := range map[string]error{
				"list": second(s.List(t.Context(), prod)), "reveal": second(reveal(s, prod)), "snapshot": second(s.Snapshot(t.Context(), prod)),
				"a name that is not there":                second(reveal(s, prod, "ABSENT")),
				"the history of a name that is not there": second(s.History(t.Context(), prod, "ABSENT")),
				"delete what is not there":                s.Delete(t.Context(), prod, []string{"ABSENT"}),
				"rotate":                                  s.RotateApp(t.Context(), "myapp"),
				"change the key":                          s.vault.RotateKey(t.Context(), locked(t, []byte(fixturePassword))),
			} {
				if is(t, err, ErrWithheld, "env myapp/production: records are missing or old: it has 6 secrets", c.want); !strings.Contains(hint.Of(err), "--accept-rollback") {
					t.Errorf("%s: hint %q", what, hint.Of(err))
				}
			}
			if m.writes > 0 {
				t.Error("something was written")
			}
			// Other envs, and by name what is there, can be read.
			want(t, s, staging, newest(staging))
			if c.want != "it has 6 secrets, and 0 came" {
				if _, err := reveal(s, prod, "DATABASE_URL"); err != nil {
					t.Error(err)
				}
			}
			// Told to go on, it does, and a write counts anew.
			accepting, err := New(m, AcceptRollback()).UnlockKey(t.Context(), locked(t, f.account))
			if err != nil {
				t.Fatal(err)
			}
			defer accepting.Destroy()
			if _, err := reveal(accepting, prod); err != nil {
				t.Error(err)
			}
			is(t, second(reveal(accepting, prod, "ABSENT")), ErrNotFound)
			is(t, second(s.List(t.Context(), prod)), ErrWithheld)
			set(t, accepting, prod, "MENDED", "v")
			if _, err := s.List(t.Context(), prod); err != nil {
				t.Errorf("after a write that counts anew: %v", err)
			}
			stateOf(t, s, prod)
			m.records = damaged.records
			if err := accepting.RotateApp(t.Context(), "myapp"); err != nil {
				t.Error(err)
			}
			stateOf(t, s, prod)
		})
	}
}

// An env whose record is from before there were states opens, and has one from
// its next write on.
func TestUncounted(t *testing.T) {
	g := ReadGolden(t, "uncounted.json")
	password := locked(t, []byte(g.Password))
	prod, dev := Ref{"myapp", "production"}, Ref{"myapp", "dev"}
	for what, do := range map[string]func(*Session) error{
		"put": func(s *Session) error {
			return second(s.Put(t.Context(), prod, []Put{{Name: "NEW", Value: []byte("v")}, {Name: "DATABASE_URL", Value: []byte("w")}}, PutOptions{}))
		},
		"delete":   func(s *Session) error { return s.Delete(t.Context(), prod, []string{"EMPTY", "SET_AGAIN"}) },
		"rollback": func(s *Session) error { return second(s.Rollback(t.Context(), prod, "DATABASE_URL", 2)) },
		"rotate":   func(s *Session) error { return s.RotateApp(t.Context(), "myapp") },
	} {
		m := g.store()
		s, err := New(m).Unlock(t.Context(), password)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Destroy)
		before, err := reveal(s, prod)
		if err != nil {
			t.Fatal(err)
		}
		uncounted := func(ref Ref) bool {
			e, err := readEnv(&visit{Reader: m.snapshot()}, ref)
			return err == nil && e.sealedState == nil
		}
		if err := s.Delete(t.Context(), prod, nil); err != nil || !uncounted(prod) || !uncounted(dev) {
			t.Fatalf("%s: the vault has states already, or cannot be read: %v", what, err)
		}
		if err := do(s); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if st := stateOf(t, s, prod); uncounted(prod) || st.counter != 1 || st.secrets == 0 {
			t.Errorf("%s: state %+v", what, st)
		}
		if uncounted(dev) == (what == "rotate") {
			t.Errorf("%s: the other env has a state: %v", what, !uncounted(dev))
		}
		after, err := reveal(s, prod)
		if err != nil || len(after) < len(before)-2 || after["STRIPE_SECRET_KEY"] != before["STRIPE_SECRET_KEY"] {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A new password too.
	m := g.store()
	if err := New(m).RotateKey(t.Context(), password); err != nil {
		t.Fatal(err)
	}
	s, err := New(m).Unlock(t.Context(), password)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	for _, ref := range []Ref{prod, dev} {
		if st := stateOf(t, s, ref); st.counter != 1 {
			t.Errorf("%s: state %+v", ref, st)
		}
	}
}

func TestSum(t *testing.T) {
	mod := new(big.Int).Lsh(big.NewInt(1), 256)
	value := func(s sum) *big.Int { return new(big.Int).SetBytes(s[:]) }
	var total sum
	for i := range 10_000 {
		var x sum
		for j := range x {
			x[j] = byte(rand.Uint32())
			if i%3 == 0 {
				x[j] = 0xff // carries
			}
		}
		want := new(big.Int).Add(value(total), value(x))
		if i%2 == 0 {
			total.add(x)
		} else {
			want.Sub(value(total), value(x))
			total.sub(x)
		}
		if want.Mod(want, mod).Cmp(value(total)) != 0 {
			t.Fatalf("round %d: %x", i, total)
		}
	}
	if _, err := decodeState(make([]byte, stateSize)); err == nil {
		t.Error("a counter of 0")
	}
	st := state{counter: 1<<64 - 1, secrets: 7, sum: total}
	if got, err := decodeState(st.encode()); err != nil || got != st {
		t.Errorf("got %+v: %v", got, err)
	}
	if _, err := decodeState(append(st.encode(), 0)); errors.Is(err, ErrDamaged) || err == nil {
		t.Errorf("a long state: %v", err)
	}
}
