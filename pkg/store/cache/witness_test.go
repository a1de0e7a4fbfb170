package cache

import (
	"bytes"
	"context"
	"testing"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/witness"
)

// witnessed unlocks with a machine key a vault that remembers in dir what it has
// seen.
func (c *client) witnessed(dir string, key []byte) (*vault.Session, error) {
	locked, err := kek.LockedFrom(bytes.Clone(key))
	if err != nil {
		return nil, err
	}
	w := witness.Open(dir, func(err error) { c.t.Error(err) })
	s, err := vault.New(c.Store, vault.WithWitness(w)).UnlockKey(context.Background(), locked)
	if err == nil {
		c.t.Cleanup(s.Destroy)
	}
	return s, err
}

func (c *client) useWitnessed(dir string, key []byte, ref vault.Ref, names ...string) *vault.Session {
	c.t.Helper()
	s, err := c.witnessed(dir, key)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := reveal(s, ref, names...); err != nil {
		c.t.Fatal(err)
	}
	c.mustRefresh(s)
	return s
}

// The cache of one login is used although another program here has seen what is
// newer; the server itself may not go back to it.
func TestOlderThanSeen(t *testing.T) {
	f, seen := newFar(t), t.TempDir()
	mine, others := t.TempDir(), t.TempDir()
	newClient(t, f, mine).useWitnessed(seen, fixture(t).env, prod)
	before := newFar(t)
	set(t, f, prod, nameOf(0), "new")
	newClient(t, f, others).useWitnessed(seen, fixture(t).account, prod)

	c := newClient(t, before, t.TempDir())
	s, err := c.witnessed(seen, fixture(t).env)
	if err == nil {
		_, err = reveal(s, prod)
	}
	says(t, err, vault.ErrRollback)

	f.away.Store(true)
	for _, names := range [][]string{nil, {nameOf(0)}, {nameOf(1)}} {
		s, err := newClient(t, f, mine).witnessed(seen, fixture(t).env)
		if err != nil {
			t.Fatal(err)
		}
		right(t, s, prod, names...)
	}
	// What was used meanwhile does not make anybody forget.
	f.away.Store(false)
	c = newClient(t, before, t.TempDir())
	if s, err = c.witnessed(seen, fixture(t).env); err == nil {
		_, err = reveal(s, prod)
	}
	says(t, err, vault.ErrRollback)
}

// A key that was replaced opens nothing, not even a cache that has not heard of
// it, once any program here has.
func TestKeyChangeSeenElsewhere(t *testing.T) {
	f, seen, mine := newFar(t), t.TempDir(), t.TempDir()
	newClient(t, f, mine).useWitnessed(seen, fixture(t).env, prod)
	pass, err := kek.LockedFrom([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer pass.Destroy()
	v := vault.New(f.Store, vault.WithWitness(witness.Open(seen, nil)))
	if err := v.RotateKey(t.Context(), pass); err != nil {
		t.Fatal(err)
	}
	s, err := v.Unlock(t.Context(), pass)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if _, err := reveal(s, prod); err != nil {
		t.Fatal(err)
	}
	f.away.Store(true)
	s, err = newClient(t, f, mine).witnessed(seen, fixture(t).env)
	if err == nil {
		_, err = reveal(s, prod)
	}
	says(t, err, vault.ErrRollback)
}

// Only what the cache answers says of what time it is.
func TestDated(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	for _, away := range []bool{false, true} {
		f.away.Store(away)
		err := newClient(t, f, dir).View(t.Context(), func(r store.Reader) error {
			if _, dated := r.(store.Dated); dated != away {
				t.Errorf("away: %v, dated: %v", away, dated)
			}
			_, err := r.Get(accountKey)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
