package vault

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/opaquevault/ov/pkg/store"
)

// storeOf returns a store with the records of a batch.
func storeOf(t testing.TB, b store.Batch) *memory {
	t.Helper()
	m := &memory{}
	if err := m.create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return m
}

// A snapshot is a vault of its own in which the same key, and the password, read
// the newest versions of one env, and which holds nothing more.
func TestSnapshot(t *testing.T) {
	f, m := setup(t)
	for what, key := range map[string][]byte{"account": f.account, "app": f.app, "env": f.env} {
		d := &distant{memory: m}
		b, err := unlock(t, d, key).Snapshot(t.Context(), prod)
		if err != nil {
			t.Fatal(err)
		}
		if d.trips > 3 {
			t.Errorf("%s: %d trips", what, d.trips)
		}
		c := storeOf(t, b)
		for k, record := range c.records {
			if !bytes.Equal(record, m.records[k]) {
				t.Errorf("%s: record %q is not the vault's", what, k)
			}
		}
		count := map[byte]int{}
		for k := range c.records {
			count[k[0]]++
		}
		n := len(fixtureValues[prod])
		if want := map[byte]int{'A': 1, 'a': 1, 'e': 1, 'k': 1, 'd': n, 'v': n}; !maps.Equal(count, want) {
			t.Errorf("%s: records %v, want %v", what, count, want)
		}
		s := unlock(t, c, key)
		want(t, s, prod, newest(prod))
		if list, err := s.List(t.Context(), prod); err != nil || len(list) != n {
			t.Errorf("%s: a list of %d: %v", what, len(list), err)
		}
		is(t, second(reveal(s, staging)), ErrNotFound)
		is(t, open(t, c, f.foreign), ErrUnknownKey)
		byPassword, err := New(c).Unlock(t.Context(), locked(t, []byte(fixturePassword)))
		if err != nil {
			t.Fatal(err)
		}
		want(t, byPassword, prod, newest(prod))
		byPassword.Destroy()
	}
	s := unlock(t, m, f.env)
	is(t, second(s.Snapshot(t.Context(), staging)), ErrScope)
	is(t, second(s.Snapshot(t.Context(), Ref{"myapp", "absent"})), ErrNotFound)

	// What is wrong with the vault does not get into a copy.
	b, err := s.Snapshot(t.Context(), prod)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range b {
		if key := string(op.Key); key[0] == kindData || key[0] == kindValue {
			for _, at := range []int{0, 20, len(op.Value) - 1} {
				m.records[key] = bytes.Clone(op.Value)
				m.records[key][at] ^= 1
				is(t, second(s.Snapshot(t.Context(), prod)), ErrDamaged)
			}
			m.records[key] = op.Value
		}
	}
}

// The env's record tells that nothing has changed.
func TestEnvRecord(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	record := func() string {
		t.Helper()
		b, err := s.EnvRecord(t.Context(), prod)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := record()
	set(t, s, staging, "NEW", "v")
	set(t, s, prod, "EMPTY", "") // what it is already
	want(t, s, prod, newest(prod))
	if record() != first {
		t.Error("the record changes though the env does not")
	}
	if err := s.RotateApp(t.Context(), "myapp"); err != nil {
		t.Fatal(err)
	}
	if record() == first {
		t.Error("a rotation does not show")
	}
	key := m.keys(kindEnv)[slices.IndexFunc(m.keys(kindEnv), func(k string) bool { return k[1:] == appID(t, m, prod)+"production" })]
	m.records[key] = mend(key, append(bytes.Clone(m.records[key][:20]), append([]byte{1}, m.records[key][21:]...)...))
	is(t, second(s.EnvRecord(t.Context(), prod)), ErrDamaged)
}
