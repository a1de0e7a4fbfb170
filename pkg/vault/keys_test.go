package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// derived returns a machine key that was just made.
func derived(t testing.TB, s *Session, ref Ref) []byte {
	t.Helper()
	key, _, err := s.DeriveMachineKey(context.Background(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	return bytes.Clone(key.Bytes())
}

// open tries a machine key.
func open(t testing.TB, m *memory, key []byte) error {
	t.Helper()
	s, err := New(m).UnlockKey(context.Background(), locked(t, key))
	if err == nil {
		s.Destroy()
	}
	return err
}

func TestMachineKeyScopes(t *testing.T) {
	f, m := setup(t)
	for _, c := range []struct {
		level   Level
		scope   Ref
		key     []byte
		reads   []Ref
		derives []Ref
		newApp  bool // may make and delete apps
		newEnv  bool // may make and delete envs of myapp
	}{
		{LevelAccount, Ref{}, f.account, []Ref{prod, staging, other}, []Ref{{}, {App: "myapp"}, prod, other}, true, true},
		{LevelApp, Ref{App: "myapp"}, f.app, []Ref{prod, staging}, []Ref{{App: "myapp"}, prod, staging}, false, true},
		{LevelEnv, prod, f.env, []Ref{prod}, []Ref{prod}, false, false},
		{LevelApp, Ref{App: "other"}, f.foreign, []Ref{other}, []Ref{{App: "other"}, other}, false, false},
	} {
		t.Run(c.level.String()+" "+c.scope.String(), func(t *testing.T) {
			m.records = f.mem.clone().records
			s := unlock(t, m, c.key)
			if level, scope := s.Scope(); level != c.level || scope != c.scope {
				t.Errorf("scope %v %v, want %v %v", level, scope, c.level, c.scope)
			}
			one := []Put{{Name: "NEW", Value: []byte("v")}}
			for _, ref := range everywhere {
				if slices.Contains(c.reads, ref) {
					want(t, s, ref, newest(ref))
					if res := set(t, s, ref, "MINE", "v"); res.Outcome != Created {
						t.Errorf("%s: %+v", ref, res)
					}
					if err := s.Delete(t.Context(), ref, []string{"MINE"}); err != nil {
						t.Error(err)
					}
					if _, err := s.Rollback(t.Context(), ref, "TOKEN", 1); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
					continue
				}
				writes := m.writes
				for what, err := range map[string]error{
					"reveal":     second(reveal(s, ref)),
					"by name":    second(reveal(s, ref, "TOKEN")),
					"list":       second(s.List(t.Context(), ref)),
					"history":    second(s.History(t.Context(), ref, "TOKEN")),
					"put":        second(s.Put(t.Context(), ref, one, PutOptions{})),
					"create":     second(s.Put(t.Context(), ref, one, PutOptions{Create: true})),
					"dry run":    second(s.Put(t.Context(), ref, one, PutOptions{DryRun: true})),
					"delete":     s.Delete(t.Context(), ref, []string{"TOKEN"}),
					"rollback":   second(s.Rollback(t.Context(), ref, "TOKEN", 1)),
					"delete env": s.DeleteEnv(t.Context(), ref),
					"delete app": s.DeleteApp(t.Context(), ref.App),
					"rotate":     s.RotateApp(t.Context(), ref.App),
					"derive":     derive(s, ref),
				} {
					if !errors.Is(err, ErrScope) {
						t.Errorf("%s %s: %v", what, ref, err)
					} else {
						is(t, err, ErrScope, "key does not open this: the key is for "+c.level.String()+" "+strings.TrimSuffix(c.scope.String(), "/"))
					}
				}
				if m.writes != writes {
					t.Errorf("%s: something was written", ref)
				}
			}
			for _, ref := range []Ref{{}, {App: "myapp"}, {App: "other"}, prod, staging, other} {
				err := derive(s, ref)
				if may := slices.Contains(c.derives, ref) || c.newApp; may != (err == nil) || !may && !errors.Is(err, ErrScope) {
					t.Errorf("derive the key of %s: %v", ref, err)
				}
			}
			for what, c := range map[string]struct {
				may bool
				err error
			}{
				"create app":       {c.newApp, s.CreateApp(t.Context(), "web")},
				"app by import":    {c.newApp, second(s.Put(t.Context(), Ref{"web2", "dev"}, one, PutOptions{Create: true}))},
				"create env":       {c.newEnv, s.CreateEnv(t.Context(), Ref{"myapp", "dev"})},
				"env by import":    {c.newEnv, second(s.Put(t.Context(), Ref{"myapp", "dev2"}, one, PutOptions{Create: true}))},
				"rotate app":       {c.newApp, s.RotateApp(t.Context(), "myapp")},
				"delete an app":    {c.newApp, s.DeleteApp(t.Context(), "default")},
				"delete other env": {c.newEnv && !c.newApp, s.DeleteEnv(t.Context(), staging)},
			} {
				if what == "delete other env" && c.err == nil {
					continue // the account's key may too
				}
				if c.may != (c.err == nil) || !c.may && !errors.Is(c.err, ErrScope) {
					t.Errorf("%s: %v", what, c.err)
				}
			}
		})
	}
}

func TestMachineKeyRegister(t *testing.T) {
	f, m := setup(t)
	v := New(m)
	now := fixtureTime.Add(time.Hour)
	v.now = func() time.Time { return now.Add(123 * time.Millisecond) }
	s, err := v.UnlockKey(t.Context(), locked(t, f.account))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()

	key, info, err := s.DeriveMachineKey(t.Context(), prod, "web-1 (Zürich)")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if !bytes.Equal(key.Bytes(), f.env) {
		t.Error("a second key for the same scope has other bytes")
	}
	fingerprint := fmt.Sprintf("%x", kek.Fingerprint(f.env))
	wantInfo := MachineKey{Fingerprint: fingerprint, Number: 1, Level: "env", App: "myapp", Env: "production", Label: "web-1 (Zürich)", Created: now, Valid: true}
	if info != wantInfo {
		t.Errorf("got %+v, want %+v", info, wantInfo)
	}
	list, err := v.MachineKeys(t.Context())
	if err != nil || len(list) != 5 {
		t.Fatalf("%d keys: %v", len(list), err)
	}
	if list[4] != wantInfo {
		t.Errorf("the last is %+v", list[4])
	}
	for _, k := range list[:4] {
		if !k.Valid || k.Why != "" || !k.Created.Equal(fixtureTime) || !strings.HasPrefix(k.Label, "label of "+k.App) {
			t.Errorf("got %+v", k)
		}
	}
	if n := len(m.keys(kindKey)); n != 5 {
		t.Errorf("%d records", n)
	}
	for label, ok := range map[string]bool{"": true, strings.Repeat("l", MaxLabel): true, strings.Repeat("l", MaxLabel+1): false,
		"two\nlines": false, "\x1b[31mred": false, "\xff": false, "\u202egnp.exe": false, "日本語": true} {
		key, _, err := s.DeriveMachineKey(t.Context(), Ref{}, label)
		if key.Destroy(); ok != (err == nil) || !ok && !errors.Is(err, ErrInvalid) {
			t.Errorf("label %q: %v", label, err)
		}
	}
	for _, c := range []struct {
		ref Ref
		err error
	}{{Ref{App: "absent"}, ErrNotFound}, {Ref{"myapp", "absent"}, ErrNotFound}, {Ref{App: "My"}, ErrInvalid}, {Ref{"", "production"}, ErrInvalid}} {
		if err := derive(s, c.ref); !errors.Is(err, c.err) {
			t.Errorf("derive %v: %v", c.ref, err)
		}
	}
}

func TestUnknownKeys(t *testing.T) {
	f, m := setup(t)
	for _, b := range [][]byte{make([]byte, 32), bytes.Repeat([]byte{1}, 32), append([]byte{f.account[0] ^ 1}, f.account[1:]...)} {
		err := open(t, m, b)
		is(t, err, ErrUnknownKey, fmt.Sprintf("machine key %x: key was not made for this vault, or was revoked", kek.Fingerprint(b)))
		if !strings.Contains(hint.Of(err), "--vault") {
			t.Errorf("hint %q", hint.Of(err))
		}
	}
	for _, n := range []int{0, 1, 31, 33, 64} {
		is(t, open(t, m, make([]byte, n)), ErrUnknownKey, fmt.Sprintf("machine key of %d bytes instead of 32", n))
	}
	// A key that was derived but never registered, as one that the vault's owner
	// did not hand out.
	delete(m.records, m.keys(kindKey)[0])
	unknown := 0
	for _, b := range [][]byte{f.account, f.app, f.env, f.foreign} {
		key := locked(t, b)
		if _, err := New(m).UnlockKey(t.Context(), key); errors.Is(err, ErrUnknownKey) {
			unknown++
			if len(key.Bytes()) != 0 {
				t.Error("the key is still there after the error")
			}
		}
	}
	if unknown != 1 {
		t.Errorf("%d keys are unknown, want 1", unknown)
	}
	// Somebody who holds an env's key can forge its entry, which says that it
	// opens the account: it does not.
	forged := &register{fingerprint: kek.Fingerprint(f.env), number: 9, level: LevelAccount, created: fixtureTime, epoch: 1}
	m.records[string(forged.key())] = forged.encode(kek.MACKey(f.env))
	s := unlock(t, m, f.env)
	for _, ref := range everywhere {
		is(t, second(reveal(s, ref)), ErrDamaged, "account")
	}
	is(t, s.CreateApp(t.Context(), "web"), ErrDamaged)
}

// whys says of each of the fixture's keys why it is dead, "" if it is not.
func whys(t *testing.T, f *fixture, m *memory) (account, app, env, foreign string) {
	t.Helper()
	var out [4]string
	list, err := New(m).MachineKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, key := range [][]byte{f.account, f.app, f.env, f.foreign} {
		fingerprint := fmt.Sprintf("%x", kek.Fingerprint(key))
		at := slices.IndexFunc(list, func(k MachineKey) bool { return k.Fingerprint == fingerprint })
		if at < 0 {
			t.Fatalf("key %s is not listed", fingerprint)
		}
		err := open(t, m, key)
		if list[at].Valid != (err == nil) {
			t.Errorf("key %s is listed as %+v, and opening gives %v", fingerprint, list[at], err)
		}
		if err == nil {
			continue
		}
		is(t, err, ErrDeadKey)
		if err.Error() != list[at].Why || !strings.Contains(hint.Of(err), "ov auth derive-machine-key --force") {
			t.Errorf("the list says %q, opening %q (%s)", list[at].Why, err, hint.Of(err))
		}
		out[i] = strings.TrimPrefix(err.Error(), "key is no longer valid: machine key "+fingerprint+" ")
	}
	return out[0], out[1], out[2], out[3]
}

func TestDeadMachineKeys(t *testing.T) {
	f, m := setup(t)
	full := unlock(t, m, f.account)
	full.vault.now = func() time.Time { return fixtureTime.AddDate(0, 0, 2) }
	const (
		rotated    = "was made before the key rotation of 2026-11-22"
		appDeleted = "opened app myapp, which was deleted"
		envDeleted = "opened env myapp/production, which was deleted"
	)
	for _, c := range []struct {
		name              string
		do                func(s *Session) error
		app, env, foreign string
	}{
		{"nothing", func(*Session) error { return nil }, "", "", ""},
		{"another app rotated", func(s *Session) error { return s.RotateApp(t.Context(), "other") }, "", "", rotated},
		{"app rotated", func(s *Session) error { return s.RotateApp(t.Context(), "myapp") }, rotated, rotated, ""},
		{"env deleted", func(s *Session) error { return s.DeleteEnv(t.Context(), prod) }, "", envDeleted, ""},
		{"env made anew", func(s *Session) error {
			return errors.Join(s.DeleteEnv(t.Context(), prod), s.CreateEnv(t.Context(), prod))
		}, "", envDeleted, ""},
		{"app deleted", func(s *Session) error { return s.DeleteApp(t.Context(), "myapp") }, appDeleted, appDeleted, ""},
		{"app made anew", func(s *Session) error {
			return errors.Join(s.DeleteApp(t.Context(), "myapp"), s.CreateApp(t.Context(), "myapp"))
		}, appDeleted, appDeleted, ""},
		{"another env deleted", func(s *Session) error { return s.DeleteEnv(t.Context(), staging) }, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.records = f.mem.clone().records
			appSession, envSession := unlock(t, m, f.app), unlock(t, m, f.env)
			if err := c.do(full); err != nil {
				t.Fatal(err)
			}
			account, app, env, foreign := whys(t, f, m)
			if account != "" || app != c.app || env != c.env || foreign != c.foreign {
				t.Errorf("dead because: %q, %q, %q, %q", account, app, env, foreign)
			}
			// Sessions that were open before are dead too, and say so.
			for s, why := range map[*Session]string{appSession: c.app, envSession: c.env} {
				err := second(reveal(s, prod))
				switch {
				case why == "" && err != nil && !strings.Contains(c.name, "env"):
					t.Errorf("an open session: %v", err)
				case why != "" && !errors.Is(err, ErrDeadKey) && !errors.Is(err, ErrNotFound):
					t.Errorf("an open session: %v, want %s", err, why)
				case why == appDeleted && s == envSession && errors.Is(err, ErrDeadKey):
					is(t, err, ErrDeadKey, envDeleted) // with its app
				case why != "" && errors.Is(err, ErrDeadKey):
					is(t, err, ErrDeadKey, why)
				}
				writes := m.writes
				if why != "" {
					if err := second(s.Put(t.Context(), prod, []Put{{Name: "A"}}, PutOptions{Create: true})); err == nil || m.writes != writes {
						t.Errorf("a dead session wrote: %v", err)
					}
				}
			}
			if strings.HasPrefix(c.name, "app rotated") {
				if key := derived(t, full, prod); bytes.Equal(key, f.env) {
					t.Error("the new key is the old one")
				} else if err := open(t, m, key); err != nil {
					t.Errorf("the new key: %v", err)
				}
				if err := reading(t, full, everywhere...); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// fields of records that must or must not change with the keys.
func parts(t *testing.T, m *memory) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for k, record := range m.records {
		switch k[0] {
		case kindData:
			f, err := envelope.DecodeSealed(kindData, record, 2)
			if err != nil {
				t.Fatal(err)
			}
			out["wrapped "+k], out["sealed "+k] = f[0], f[1]
		case kindValue, kindKey:
			out["sealed "+k] = record
		case kindEnv:
			a, err := readApp(&visit{Reader: m.snapshot()}, "myapp")
			if err != nil {
				t.Fatal(err)
			}
			e, err := decodeEnv(a, []byte(k), record)
			if err != nil {
				t.Fatal(err)
			}
			out["wrapped "+k], out["mac "+k] = e.indexKey, record
		default:
			out["mac "+k] = record
		}
	}
	return out
}

// changed fails unless exactly what is wrapped or authenticated under the keys
// that changed has changed.
func changed(t *testing.T, before, after map[string][]byte, may func(part string) bool) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d parts before, %d after", len(before), len(after))
	}
	n := 0
	for part, old := range before {
		same := bytes.Equal(old, after[part])
		if must := !strings.HasPrefix(part, "sealed ") && may(part); must == same {
			t.Errorf("%.60q: the same %v", part, same)
		}
		if !same {
			n++
		}
	}
	if n == 0 {
		t.Error("nothing has changed")
	}
}

func TestChangePassword(t *testing.T) {
	f, m := setup(t)
	v := New(m)
	v.now = func() time.Time { return fixtureTime.AddDate(0, 0, 2) }
	old, next := locked(t, []byte(fixturePassword)), locked(t, []byte("another password"))
	sessions := []*Session{unlock(t, m, f.account), unlock(t, m, f.app), unlock(t, m, f.env)}
	before := parts(t, m)

	is(t, v.ChangePassword(t.Context(), next, next), ErrWrongPassword)
	for _, bad := range []*kek.Locked{locked(t, nil), locked(t, make([]byte, kek.MaxPassword+1))} {
		if err := v.ChangePassword(t.Context(), old, bad); err == nil {
			t.Errorf("a new password of %d bytes", len(bad.Bytes()))
		}
	}
	if m.writes > 0 {
		t.Fatal("a refused change was written")
	}
	if err := v.ChangePassword(t.Context(), old, next); err != nil {
		t.Fatal(err)
	}
	if m.writes != 1 {
		t.Errorf("%d steps instead of one", m.writes)
	}
	changed(t, before, parts(t, m), func(string) bool { return true })

	is(t, second(v.Unlock(t.Context(), old)), ErrWrongPassword)
	s, err := v.Unlock(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if err := reading(t, s, everywhere...); err != nil {
		t.Error(err)
	}
	const why = "was made before the password change of 2026-11-22"
	account, app, env, foreign := whys(t, f, m)
	for _, got := range []string{account, app, env, foreign} {
		if got != why {
			t.Errorf("dead because: %q", got)
		}
	}
	for _, s := range sessions {
		for what, err := range map[string]error{
			"reveal": second(reveal(s, prod)), "check": s.Check(t.Context()), "put": second(s.Put(t.Context(), prod, []Put{{Name: "A"}}, PutOptions{})),
			"delete": s.DeleteEnv(t.Context(), prod), "app": s.CreateApp(t.Context(), "web"), "derive": derive(s, prod), "rotate": s.RotateApp(t.Context(), "myapp"),
		} {
			if !errors.Is(err, ErrDeadKey) || !strings.Contains(err.Error(), "the unlocked key "+why) {
				t.Errorf("%s with a session from before: %v", what, err)
			}
		}
	}
	info, err := v.Info(t.Context())
	if err != nil || len(info.Epochs) != 2 || info.Epochs[1].Number != 2 || info.Epochs[1].Reason != "password change" {
		t.Errorf("info %+v: %v", info, err)
	}
	// The same again, without a new password.
	before = parts(t, m)
	if err := v.RotateKey(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	changed(t, before, parts(t, m), func(string) bool { return true })
	is(t, second(reveal(s, prod)), ErrDeadKey, "key rotation of 2026-11-22")
	again, err := v.Unlock(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Destroy()
	if err := reading(t, again, everywhere...); err != nil {
		t.Error(err)
	}
	// Why a key is dead is told by the first change after it.
	if account, _, _, _ := whys(t, f, m); account != why {
		t.Errorf("after a second change: %q", account)
	}
}

func TestRotateApp(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	mine := appID(t, m, prod)
	before := parts(t, m)
	if err := s.RotateApp(t.Context(), "myapp"); err != nil {
		t.Fatal(err)
	}
	changed(t, before, parts(t, m), func(part string) bool {
		_, key, _ := strings.Cut(part, " ")
		return key == "amyapp" || len(key) > 17 && key[1:17] == mine
	})
	if err := reading(t, s, everywhere...); err != nil {
		t.Error(err)
	}
	if m.writes != 1 {
		t.Errorf("%d steps instead of one", m.writes)
	}
	is(t, s.RotateApp(t.Context(), "absent"), ErrNotFound)
}

// A record that cannot be re-wrapped stops the change, and the old password
// still opens the vault.
func TestChangePasswordMeetsDamage(t *testing.T) {
	_, m := setup(t)
	key := m.keys(kindData)[2]
	name := recordName(t, m, key)
	m.records[key][30] ^= 1 // in the wrapped DEK
	before := m.clone()
	old := locked(t, []byte(fixturePassword))
	is(t, New(m).ChangePassword(t.Context(), old, locked(t, []byte("another"))), ErrDamaged, strings.Trim(name, ": "))
	is(t, New(m).RotateKey(t.Context(), old), ErrDamaged)
	if m.writes > 0 || !maps.EqualFunc(before.records, m.records, bytes.Equal) {
		t.Error("something was written")
	}
	s, err := New(m).Unlock(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	s.Destroy()
}

// Of two changes at once one wins; the other one says so. Neither is half done.
func TestChangePasswordTwice(t *testing.T) {
	_, st := onDisk(t)
	v := New(st)
	passwords := []string{"first", "second"}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, p := range passwords {
		old, next := locked(t, []byte(fixturePassword)), locked(t, []byte(p))
		wg.Go(func() { errs[i] = v.ChangePassword(context.Background(), old, next) })
	}
	wg.Wait()
	won := slices.Index(errs, nil)
	if won < 0 || errs[1-won] == nil {
		t.Fatalf("errors %v", errs)
	}
	// The loser may also have come so late that its password was wrong.
	if !errors.Is(errs[1-won], ErrDeadKey) && !errors.Is(errs[1-won], ErrWrongPassword) {
		t.Error(errs[1-won])
	}
	s, err := v.Unlock(t.Context(), locked(t, []byte(passwords[won])))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if err := reading(t, s, everywhere...); err != nil {
		t.Error(err)
	}
}

func TestRevokeMachineKey(t *testing.T) {
	f, m := setup(t)
	ctx := t.Context()
	prints := map[string]string{}
	for what, key := range map[string][]byte{"account": f.account, "app": f.app, "env": f.env, "foreign": f.foreign} {
		prints[what] = fmt.Sprintf("%x", kek.Fingerprint(key))
	}
	sessions := map[string]*Session{"account": unlock(t, m, f.account), "app": unlock(t, m, f.app), "env": unlock(t, m, f.env)}
	// A key takes back what it reaches: itself, and what is below it.
	for who, may := range map[string][]string{
		"account": {"account", "app", "env", "foreign"}, "app": {"app", "env"}, "env": {"env"},
	} {
		for what, print := range prints {
			m.records = f.mem.clone().records
			m.writes = 0
			gone, err := sessions[who].RevokeMachineKey(ctx, print, nil)
			if !slices.Contains(may, what) {
				is(t, err, ErrScope, "the key is for "+who)
				if m.writes > 0 || gone != nil {
					t.Errorf("%s key took the %s key back", who, what)
				}
				continue
			}
			if err != nil || len(gone) != 1 || gone[0].Fingerprint != print || !gone[0].Valid || !strings.HasPrefix(gone[0].Label, "label of") {
				t.Errorf("%s key takes the %s key back: %+v, %v", who, what, gone, err)
			}
			left, err := sessions[who].vault.MachineKeys(ctx)
			if err != nil || len(left) != 3 || slices.ContainsFunc(left, func(k MachineKey) bool { return k.Fingerprint == print }) {
				t.Errorf("left are %+v: %v", left, err)
			}
			for other, key := range map[string][]byte{"account": f.account, "app": f.app, "env": f.env, "foreign": f.foreign} {
				err := open(t, m, key)
				if (other == what) != errors.Is(err, ErrUnknownKey) || other != what && err != nil {
					t.Errorf("without the %s key, the %s key: %v", what, other, err)
				}
			}
		}
	}
	// One issue of many.
	m.records = f.mem.clone().records
	s := sessions["account"]
	derived(t, s, prod)
	derived(t, s, prod)
	gone, err := s.RevokeMachineKey(ctx, prints["env"], ptr(1))
	if err != nil || len(gone) != 1 || gone[0].Number != 1 || open(t, m, f.env) != nil {
		t.Errorf("issue 1: %+v, %v", gone, err)
	}
	is(t, second(s.RevokeMachineKey(ctx, prints["env"], ptr(1))), ErrNotFound)
	gone, err = s.RevokeMachineKey(ctx, prints["env"], nil)
	if err != nil || len(gone) != 2 || gone[0].Number != 0 || gone[1].Number != 2 {
		t.Errorf("the others: %+v, %v", gone, err)
	}
	is(t, open(t, m, f.env), ErrUnknownKey)
	is(t, second(s.RevokeMachineKey(ctx, prints["env"], nil)), ErrNotFound, prints["env"])
	for _, bad := range []string{"", "zz", prints["env"][1:], prints["env"] + "00"} {
		is(t, second(s.RevokeMachineKey(ctx, bad, nil)), ErrInvalid)
	}
	// A dead key revokes nothing, an entry of a dead key can be revoked.
	m.records = f.mem.clone().records
	if err := s.RotateApp(ctx, "myapp"); err != nil {
		t.Fatal(err)
	}
	is(t, second(sessions["app"].RevokeMachineKey(ctx, prints["env"], nil)), ErrDamaged)
	gone, err = s.RevokeMachineKey(ctx, prints["env"], nil)
	if err != nil || len(gone) != 1 || gone[0].Valid {
		t.Errorf("a dead key: %+v, %v", gone, err)
	}
	if err := s.DeleteApp(ctx, "myapp"); err != nil {
		t.Fatal(err)
	}
	if _, err = s.RevokeMachineKey(ctx, prints["app"], nil); err != nil {
		t.Errorf("a key of a deleted app: %v", err)
	}
}
