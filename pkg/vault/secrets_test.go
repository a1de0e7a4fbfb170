package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store"
)

func TestInit(t *testing.T) {
	ctx := t.Context()
	m := &memory{}
	v := New(m)
	password := locked(t, []byte("pässwörd with spaces"))
	if err := v.Init(ctx, m.create, password); err != nil {
		t.Fatal(err)
	}
	if string(password.Bytes()) != "pässwörd with spaces" {
		t.Error("the caller's password was taken")
	}
	info, err := v.Info(ctx)
	if err != nil || len(info.AccountID) != 32 || len(info.Epochs) != 1 || info.Epochs[0].Number != 1 || info.Epochs[0].Reason != "creation" {
		t.Errorf("info %+v: %v", info, err)
	}
	apps, err := v.Apps(ctx)
	if err != nil || len(apps) != 1 || apps[0].Slug != names.DefaultApp || !slices.Equal(apps[0].Envs, []string{names.DefaultEnv}) {
		t.Errorf("apps %+v: %v", apps, err)
	}
	if keys, err := v.MachineKeys(ctx); err != nil || len(keys) != 0 || keys == nil {
		t.Errorf("machine keys %v: %v", keys, err)
	}
	s, err := v.Unlock(ctx, password)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if level, scope := s.Scope(); level != LevelAccount || scope != (Ref{}) {
		t.Errorf("scope %v %v", level, scope)
	}
	set(t, s, Ref{names.DefaultApp, names.DefaultEnv}, "NAME", "value")
	want(t, s, Ref{names.DefaultApp, names.DefaultEnv}, map[string]string{"NAME": "value"})
	before := m.clone()
	is(t, v.Init(ctx, m.create, password), fs.ErrExist)
	if !maps.EqualFunc(before.records, m.records, bytes.Equal) {
		t.Error("a second Init changed the vault")
	}
}

func TestWrongPassword(t *testing.T) {
	_, m := setup(t)
	for _, wrong := range []string{"x", fixturePassword + " ", strings.ToUpper(fixturePassword)} {
		is(t, second(New(m).Unlock(t.Context(), locked(t, []byte(wrong)))), ErrWrongPassword)
	}
	s, err := New(m).Unlock(t.Context(), locked(t, []byte(fixturePassword)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	want(t, s, prod, newest(prod))
	for _, out := range []*kek.Locked{locked(t, nil), locked(t, make([]byte, kek.MaxPassword+1))} {
		if _, err := New(m).Unlock(t.Context(), out); err == nil || !strings.Contains(err.Error(), "the bounds are 1 and 1024") {
			t.Errorf("a password of %d bytes: %v", len(out.Bytes()), err)
		}
	}
}

func TestReveal(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	for ref := range fixtureValues {
		want(t, s, ref, newest(ref))
	}
	want(t, s, Ref{names.DefaultApp, names.DefaultEnv}, map[string]string{})

	var order []string
	var kept [][]byte
	collect := func(list []Secret) error {
		order, kept = nil, nil
		for _, secret := range list {
			order = append(order, fmt.Sprintf("%s.%d", strings.Clone(secret.Name), secret.Version))
			kept = append(kept, secret.Value)
		}
		return nil
	}
	wiped := func() {
		t.Helper()
		for _, b := range kept {
			if len(bytes.Trim(b, "\x00")) > 0 {
				t.Error("a value is there after the callback")
			}
		}
	}
	if err := s.Reveal(t.Context(), prod, Select{}, collect); err != nil {
		t.Fatal(err)
	}
	if want := []string{"BINARY.1", "DATABASE_URL.3", "EMPTY.1", "STRIPE_SECRET_KEY.1"}; !slices.Equal(order, want) {
		t.Errorf("all: %v, want %v", order, want)
	}
	wiped()
	if err := s.Reveal(t.Context(), prod, Select{Names: []string{"STRIPE_SECRET_KEY", "BINARY"}}, collect); err != nil {
		t.Fatal(err)
	}
	if want := []string{"STRIPE_SECRET_KEY.1", "BINARY.1"}; !slices.Equal(order, want) {
		t.Errorf("named: %v, want %v", order, want)
	}
	wiped()
	if err := s.Reveal(t.Context(), prod, Select{Names: []string{"DATABASE_URL"}, Version: 2}, collect); err != nil {
		t.Fatal(err)
	}
	if want := []string{"DATABASE_URL.2"}; !slices.Equal(order, want) {
		t.Errorf("version: %v, want %v", order, want)
	}
	if err := s.Reveal(t.Context(), prod, Select{Names: []string{}}, collect); err != nil || len(order) != 0 {
		t.Errorf("no names: %v, %v", order, err)
	}

	mine := errors.New("mine")
	err := s.Reveal(t.Context(), prod, Select{}, func(list []Secret) error { _ = collect(list); return mine })
	is(t, err, mine)
	wiped()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the callback's panic is gone")
			}
		}()
		_ = s.Reveal(t.Context(), prod, Select{}, func(list []Secret) error { _ = collect(list); panic("mine") })
	}()
	wiped()

	never := func([]Secret) error { t.Error("called"); return nil }
	err = s.Reveal(t.Context(), prod, Select{Names: []string{"DATABASE_URL"}, Version: 4}, never)
	is(t, err, ErrNotFound, "version 4 of secret DATABASE_URL in myapp/production")
	if hint.Of(err) != "see what is kept: ov secret history DATABASE_URL --app myapp --env production" {
		t.Errorf("hint %q", hint.Of(err))
	}
	for _, name := range []string{"", "1A", "A-B", "A B", "Ä", strings.Repeat("A", 256), "A=B", "A\x00"} {
		is(t, s.Reveal(t.Context(), prod, Select{Names: []string{name}}, never), ErrInvalid)
	}
	for _, ref := range []Ref{{}, {"myapp", ""}, {"", "production"}, {"My", "production"}, {"myapp", "../production"}, {"-a", "b"}, {strings.Repeat("a", 64), "b"}} {
		is(t, s.Reveal(t.Context(), ref, Select{}, never), ErrInvalid)
	}
}

// What is too much is known from the records' lengths: nothing is decrypted.
func TestRevealTooMuch(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	tooMuch := errors.New("too much")
	for _, names := range [][]string{nil, {"DATABASE_URL", "BINARY"}} {
		count, size := 0, 0
		values := newest(prod)
		for name, value := range values {
			if names == nil || slices.Contains(names, name) {
				count, size = count+1, size+len(value)
			}
		}
		sel := Select{Names: names, Fits: func(secrets, bytes int) error {
			if secrets != count || bytes != size {
				t.Errorf("%v: asked about %d secrets of %d bytes, they are %d of %d", names, secrets, bytes, count, size)
			}
			return tooMuch
		}}
		never := func([]Secret) error { t.Error("called"); return nil }
		is(t, s.Reveal(t.Context(), prod, sel, never), tooMuch)

		broken := m.clone()
		for _, key := range broken.keys(kindValue) {
			broken.records[key][len(broken.records[key])-1] ^= 1
		}
		b := unlock(t, broken, f.account)
		is(t, b.Reveal(t.Context(), prod, sel, never), tooMuch)
		is(t, b.Reveal(t.Context(), prod, Select{Names: names}, never), ErrDamaged)
	}
}

func TestMissing(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	never := func([]Secret) error { t.Error("called although a secret is missing"); return nil }
	err := s.Reveal(t.Context(), prod, Select{Names: []string{"DATABASE_URI", "EMPTY", "STRIPE_KEY", "NOTHING_LIKE_IT"}}, never)
	is(t, err, ErrNotFound)
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Ref != prod || !slices.Equal(missing.Names, []string{"DATABASE_URI", "STRIPE_KEY", "NOTHING_LIKE_IT"}) {
		t.Fatalf("got %#v", err)
	}
	if got := missing.Near["DATABASE_URI"]; !slices.Equal(got, []string{"DATABASE_URL"}) {
		t.Errorf("near DATABASE_URI: %v", got)
	}
	if got := missing.Near["NOTHING_LIKE_IT"]; got != nil {
		t.Errorf("near NOTHING_LIKE_IT: %v", got)
	}
	if want := "3 secrets not found in myapp/production: DATABASE_URI (did you mean DATABASE_URL?), STRIPE_KEY, NOTHING_LIKE_IT"; err.Error() != want &&
		!strings.HasPrefix(err.Error(), "3 secrets not found in myapp/production: DATABASE_URI (did you mean DATABASE_URL?), STRIPE_KEY (did you mean STRIPE_SECRET_KEY?)") {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if hint.Of(err) != "see what is there: ov secret list --app myapp --env production" {
		t.Errorf("hint %q", hint.Of(err))
	}
	err = s.Reveal(t.Context(), prod, Select{Names: []string{"database_url"}}, never)
	is(t, err, ErrNotFound, "1 secret not found in myapp/production: database_url (did you mean DATABASE_URL?)")
	is(t, second(s.History(t.Context(), prod, "DATABASE_UR")), ErrNotFound, "did you mean DATABASE_URL?")
	is(t, s.Delete(t.Context(), prod, []string{"EMPTY", "EMPTIED"}), ErrNotFound, "EMPTIED")
	want(t, s, prod, newest(prod)) // EMPTY is not deleted alone
	is(t, second(s.Rollback(t.Context(), prod, "EMPTI", 1)), ErrNotFound, "did you mean EMPTY?")

	err = second(s.List(t.Context(), Ref{"myap", "production"}))
	is(t, err, ErrNotFound, "app myap: not found")
	if hint.Of(err) != "did you mean myapp? see what is there: ov app list; make it: ov app create myap" {
		t.Errorf("hint %q", hint.Of(err))
	}
	err = second(s.List(t.Context(), Ref{"myapp", "stagin"}))
	is(t, err, ErrNotFound, "env myapp/stagin: not found")
	if hint.Of(err) != "did you mean myapp/staging? see what is there: ov env list --app myapp; make it: ov env create stagin --app myapp" {
		t.Errorf("hint %q", hint.Of(err))
	}
}

// A list decrypts no value: it works without the records of values.
func TestListNeedsNoValues(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	for _, key := range m.keys(kindValue) {
		delete(m.records, key)
	}
	list, err := s.List(t.Context(), prod)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range list {
		got = append(got, fmt.Sprintf("%s.%d %s %s", v.Name, v.Version, v.Note, v.Created.Format(time.RFC3339)))
	}
	const at = " set 2026-11-20T03:04:05Z"
	if want := []string{"BINARY.1" + at, "DATABASE_URL.3" + at, "EMPTY.1" + at, "STRIPE_SECRET_KEY.1" + at}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	history, err := s.History(t.Context(), prod, "DATABASE_URL")
	if err != nil || len(history) != 3 || history[0].Version != 3 || history[2].Version != 1 {
		t.Errorf("history %v: %v", history, err)
	}
}

func TestPutOutcomes(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	batch := []Put{
		{Name: "NEW", Value: []byte("n")},
		{Name: "EMPTY", Value: nil}, // the same
		{Name: "DATABASE_URL", Value: []byte("postgres://new")},
		{Name: "STRIPE_SECRET_KEY", Value: []byte("a key that opens nothing")}, // the same
	}
	outcomes := func(res []PutResult) (out []string) {
		for _, r := range res {
			out = append(out, fmt.Sprintf("%s %s %d", r.Name, r.Outcome, r.Version))
		}
		return out
	}
	check := func(what string, opt PutOptions, want ...string) {
		t.Helper()
		before := m.clone()
		res, err := s.Put(t.Context(), prod, batch, opt)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := outcomes(res); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
		if opt.DryRun && (m.writes > 0 || !maps.EqualFunc(before.records, m.records, bytes.Equal)) {
			t.Errorf("%s: something was written", what)
		}
	}
	check("dry run", PutOptions{DryRun: true}, "NEW created 1", "EMPTY unchanged 1", "DATABASE_URL updated 4", "STRIPE_SECRET_KEY unchanged 1")
	check("dry run that keeps", PutOptions{DryRun: true, Existing: KeepExisting}, "NEW created 1", "EMPTY unchanged 1", "DATABASE_URL kept 3", "STRIPE_SECRET_KEY unchanged 1")
	for _, dry := range []bool{true, false} {
		res, err := s.Put(t.Context(), prod, batch, PutOptions{Existing: RefuseExisting, DryRun: dry})
		is(t, err, ErrExists, "1 secret in myapp/production with another value", "DATABASE_URL")
		if hint.Of(err) != "choose with --overwrite or --skip-existing" || res != nil || m.writes > 0 {
			t.Errorf("refused: hint %q, result %v, %d writes", hint.Of(err), res, m.writes)
		}
	}
	want(t, s, prod, newest(prod))
	check("keep", PutOptions{Existing: KeepExisting}, "NEW created 1", "EMPTY unchanged 1", "DATABASE_URL kept 3", "STRIPE_SECRET_KEY unchanged 1")
	check("replace", PutOptions{Note: "import"}, "NEW unchanged 1", "EMPTY unchanged 1", "DATABASE_URL updated 4", "STRIPE_SECRET_KEY unchanged 1")
	writes := m.writes
	check("again", PutOptions{}, "NEW unchanged 1", "EMPTY unchanged 1", "DATABASE_URL unchanged 4", "STRIPE_SECRET_KEY unchanged 1")
	if m.writes != writes {
		t.Error("unchanged values were written")
	}
	values := newest(prod)
	values["NEW"], values["DATABASE_URL"] = "n", "postgres://new"
	want(t, s, prod, values)
	if h, err := s.History(t.Context(), prod, "DATABASE_URL"); err != nil || h[0].Note != "import" || h[1].Note != "set" {
		t.Errorf("history %v: %v", h, err)
	}
	// The same value as an older version is a new version all the same.
	if res := set(t, s, prod, "DATABASE_URL", fixtureValues[prod]["DATABASE_URL"][0]); res.Outcome != Updated || res.Version != 5 {
		t.Errorf("an old value: %+v", res)
	}
	if string(batch[0].Value) != "n" {
		t.Error("the caller's value was touched")
	}
}

// An import is all or nothing.
func TestPutRefusesAsAWhole(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	before := m.clone()
	good := Put{Name: "GOOD", Value: []byte("v")}
	for what, c := range map[string]struct {
		bad  Put
		err  error
		want string
	}{
		"name":     {Put{Name: "1BAD"}, ErrInvalid, `secret name "1BAD"`},
		"long":     {Put{Name: strings.Repeat("N", names.MaxName+1)}, ErrInvalid, "secret name"},
		"value":    {Put{Name: "BIG", Value: make([]byte, MaxValue+1)}, ErrInvalid, "secret BIG has 65537 bytes, the bound is 65536"},
		"twice":    {Put{Name: "GOOD", Value: []byte("w")}, ErrInvalid, "secret GOOD is given twice"},
		"conflict": {Put{Name: "EMPTY", Value: []byte("w"), Replaces: ptr(0)}, ErrConflict, "secret EMPTY is at version 1, not 0"},
	} {
		for _, create := range []bool{false, true} {
			ref := prod
			if create && what != "conflict" {
				ref = Ref{"fresh", "env"}
			}
			res, err := s.Put(t.Context(), ref, []Put{good, c.bad, {Name: "LATER"}}, PutOptions{Create: create})
			is(t, err, c.err, c.want)
			if res != nil {
				t.Errorf("%s: results %v", what, res)
			}
		}
	}
	if _, err := s.Put(t.Context(), prod, make([]Put, MaxBatch+1), PutOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a batch of %d: %v", MaxBatch+1, err)
	}
	is(t, second(s.Put(t.Context(), Ref{"absent", "production"}, []Put{good}, PutOptions{})), ErrNotFound, "app absent")
	is(t, second(s.Put(t.Context(), Ref{"myapp", "absent"}, []Put{good}, PutOptions{})), ErrNotFound, "env myapp/absent")
	if m.writes > 0 || !maps.EqualFunc(before.records, m.records, bytes.Equal) {
		t.Error("something was written")
	}
	// The bounds themselves are fine.
	big := Put{Name: strings.Repeat("N", names.MaxName), Value: bytes.Repeat([]byte{0xff}, MaxValue)}
	if _, err := s.Put(t.Context(), prod, []Put{big}, PutOptions{Note: strings.Repeat("n", 100)}); err != nil {
		t.Fatal(err)
	}
	if got, err := reveal(s, prod, big.Name); err != nil || got[big.Name] != string(big.Value) {
		t.Errorf("the largest secret: %v", err)
	}
}

func TestPutCreates(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	one := []Put{{Name: "A", Value: []byte("1")}}
	for _, ref := range []Ref{{"fresh", "dev"}, {"myapp", "dev"}} {
		if _, err := s.Put(t.Context(), ref, one, PutOptions{Create: true, DryRun: true}); err != nil || m.writes > 0 {
			t.Fatalf("dry run into %s: %v, %d writes", ref, err, m.writes)
		}
	}
	for _, ref := range []Ref{{"fresh", "dev"}, {"myapp", "dev"}} {
		if _, err := s.Put(t.Context(), ref, one, PutOptions{Create: true}); err != nil {
			t.Fatal(err)
		}
		want(t, s, ref, map[string]string{"A": "1"})
	}
	apps, err := s.Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, a := range apps {
		got[a.Slug] = a.Envs
	}
	wantApps := map[string][]string{"default": {"production"}, "fresh": {"dev"}, "myapp": {"dev", "production", "staging"}, "other": {"production"}}
	if !maps.EqualFunc(got, wantApps, slices.Equal) {
		t.Errorf("apps %v, want %v", got, wantApps)
	}
}

// Every write may name the version that it replaces; a lost race is an error.
func TestConflict(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	put := func(name, value string, replaces uint32) error {
		return second(s.Put(t.Context(), prod, []Put{{Name: name, Value: []byte(value), Replaces: &replaces}}, PutOptions{}))
	}
	err := put("DATABASE_URL", "mine", 2)
	is(t, err, ErrConflict, "secret DATABASE_URL is at version 3, not 2")
	if hint.Of(err) != "look again: ov secret history DATABASE_URL" {
		t.Errorf("hint %q", hint.Of(err))
	}
	is(t, put("DATABASE_URL", newest(prod)["DATABASE_URL"], 2), ErrConflict) // even with the same value
	is(t, put("NEW", "mine", 1), ErrConflict, "secret NEW is at version 0, not 1")
	if err := errors.Join(put("DATABASE_URL", "mine", 3), put("NEW", "mine", 0)); err != nil {
		t.Error(err)
	}
	is(t, put("NEW", "again", 0), ErrConflict)

	// Of many who replace the same version, one wins.
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 16 {
		wg.Go(func() {
			err := put("NEW", fmt.Sprint(i), 1)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func TestVersions(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	versions := func() (out []uint32) {
		t.Helper()
		h, err := s.History(t.Context(), prod, "V")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range h {
			out = append(out, v.Version)
		}
		return out
	}
	for i := 1; i <= 13; i++ {
		if res := set(t, s, prod, "V", fmt.Sprint(i)); res.Version != uint32(i) {
			t.Fatalf("version %d is numbered %d", i, res.Version)
		}
		if got := versions(); len(got) != min(i, MaxVersions) || got[0] != uint32(i) {
			t.Errorf("after %d versions: %v", i, got)
		}
	}
	if got, want := versions(), []uint32{13, 12, 11, 10, 9, 8, 7, 6, 5, 4}; !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	for _, kind := range []byte{kindData, kindValue} {
		if n := len(m.keys(kind)); n != 10+len(setup2(t).keys(kind)) {
			t.Errorf("%d records of kind %q", n, kind)
		}
	}
	is(t, second(s.Rollback(t.Context(), prod, "V", 3)), ErrNotFound, "version 3 of secret V")

	// Rollback to the oldest that is kept, which goes in the same step.
	res, err := s.Rollback(t.Context(), prod, "V", 4)
	if err != nil || res.Version != 14 || res.Outcome != Updated || res.Name != "V" {
		t.Fatalf("rollback: %+v, %v", res, err)
	}
	if got, err := reveal(s, prod, "V"); err != nil || got["V"] != "4" {
		t.Errorf("after the rollback: %v, %v", got, err)
	}
	if got, want := versions(), []uint32{14, 13, 12, 11, 10, 9, 8, 7, 6, 5}; !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	if h, _ := s.History(t.Context(), prod, "V"); h[0].Note != "rollback to 4" {
		t.Errorf("note %q", h[0].Note)
	}
	for _, v := range []uint32{0, 14} {
		writes := m.writes
		if res, err := s.Rollback(t.Context(), prod, "V", v); err != nil || res.Outcome != Unchanged || res.Version != 14 || m.writes != writes {
			t.Errorf("rollback to %d, which is the newest: %+v, %v", v, res, err)
		}
	}
	// All versions go together; the name may come again.
	if err := s.Delete(t.Context(), prod, []string{"V"}); err != nil {
		t.Fatal(err)
	}
	is(t, second(s.History(t.Context(), prod, "V")), ErrNotFound)
	for _, kind := range []byte{kindData, kindValue} {
		if n := len(m.keys(kind)); n != len(setup2(t).keys(kind)) {
			t.Errorf("%d records of kind %q are left", n, kind)
		}
	}
	if res := set(t, s, prod, "V", "again"); res.Version != 1 || res.Outcome != Created {
		t.Errorf("set again: %+v", res)
	}
}

func setup2(t testing.TB) *memory {
	_, m := setup(t)
	return m
}

// The last version number is not followed by the first.
func TestVersionsRunOut(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	err := s.vault.update(t.Context(), func(r *visit) (b store.Batch, err error) {
		acc, e, err := s.env(r, prod)
		if err != nil {
			return nil, err
		}
		places, err := s.places(acc, e, []string{"LAST"})
		if err != nil {
			return nil, err
		}
		p := places[0]
		p.version = 1<<32 - 1
		return b, s.write(r, &b, acc, e, nil, []*plaintext{p.plaintext(metadata{"LAST", fixtureTime, "set"}, []byte("v"))}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	is(t, second(s.Put(t.Context(), prod, []Put{{Name: "LAST", Value: []byte("w")}}, PutOptions{})), ErrInvalid, "secret LAST has no version numbers left")
	if got, err := reveal(s, prod, "LAST"); err != nil || got["LAST"] != "v" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestAppsAndEnvs(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	ctx := t.Context()
	if err := s.CreateApp(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	is(t, s.CreateApp(ctx, "web"), ErrExists, "app web already exists")
	is(t, s.CreateEnv(ctx, Ref{"web", names.DefaultEnv}), ErrExists, "env web/production already exists")
	is(t, s.CreateEnv(ctx, Ref{"absent", "dev"}), ErrNotFound)
	if err := s.CreateEnv(ctx, Ref{"web", "dev"}); err != nil {
		t.Fatal(err)
	}
	for _, slug := range []string{"", "Web", "a_b", "-a", "a-", "a.b", "ä", strings.Repeat("a", 64), "a/b", "a b"} {
		is(t, s.CreateApp(ctx, slug), ErrInvalid)
		is(t, s.CreateEnv(ctx, Ref{"web", slug}), ErrInvalid)
		is(t, s.DeleteApp(ctx, slug), ErrInvalid)
		is(t, s.DeleteEnv(ctx, Ref{"web", slug}), ErrInvalid)
	}
	set(t, s, Ref{"web", "dev"}, "A", "1")
	set(t, s, Ref{"web", names.DefaultEnv}, "A", "2")

	if err := s.DeleteEnv(ctx, Ref{"web", "dev"}); err != nil {
		t.Fatal(err)
	}
	is(t, second(s.List(ctx, Ref{"web", "dev"})), ErrNotFound)
	want(t, s, Ref{"web", names.DefaultEnv}, map[string]string{"A": "2"})
	is(t, s.DeleteEnv(ctx, Ref{"web", "dev"}), ErrNotFound)
	if err := s.CreateEnv(ctx, Ref{"web", "dev"}); err != nil {
		t.Fatal(err)
	}
	want(t, s, Ref{"web", "dev"}, map[string]string{}) // nothing of the old one

	if err := s.DeleteApp(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	is(t, s.DeleteApp(ctx, "web"), ErrNotFound)
	is(t, second(s.List(ctx, Ref{"web", names.DefaultEnv})), ErrNotFound)
	if !slices.Equal(slices.Sorted(maps.Keys(m.records)), slices.Sorted(maps.Keys(setup2(t).records))) {
		t.Error("records of the deleted app are left")
	}
	for ref := range fixtureValues {
		want(t, s, ref, newest(ref))
	}
}

// After Destroy a session does nothing, and certainly nothing under a key of no
// bytes.
func TestDestroyed(t *testing.T) {
	f, m := setup(t)
	for _, b := range [][]byte{f.account, f.app, f.env} {
		s := unlock(t, m, b)
		s.Destroy()
		s.Destroy()
		one := []Put{{Name: "A", Value: []byte("1")}}
		for what, err := range map[string]error{
			"reveal":     second(reveal(s, prod)),
			"list":       second(s.List(t.Context(), prod)),
			"history":    second(s.History(t.Context(), prod, "EMPTY")),
			"put":        second(s.Put(t.Context(), prod, one, PutOptions{})),
			"put new":    second(s.Put(t.Context(), Ref{"new", "new"}, one, PutOptions{Create: true})),
			"put env":    second(s.Put(t.Context(), Ref{"myapp", "new"}, one, PutOptions{Create: true})),
			"delete":     s.Delete(t.Context(), prod, []string{"EMPTY"}),
			"rollback":   second(s.Rollback(t.Context(), prod, "DATABASE_URL", 1)),
			"create app": s.CreateApp(t.Context(), "new"),
			"create env": s.CreateEnv(t.Context(), Ref{"myapp", "new"}),
			"delete app": s.DeleteApp(t.Context(), "myapp"),
			"delete env": s.DeleteEnv(t.Context(), prod),
			"rotate":     s.RotateApp(t.Context(), "myapp"),
			"derive":     derive(s, prod),
			"check":      s.Check(t.Context()),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s after Destroy: %v", what, err)
			}
		}
		if m.writes > 0 {
			t.Fatal("something was written")
		}
		if key, err := s.Key(); err == nil && len(key.Bytes()) > 0 {
			t.Error("the key can be had")
		}
	}
}

// Many goroutines use one session at once, on a file.
func TestSessionIsShared(t *testing.T) {
	f, st := onDisk(t)
	s := unlock(t, st, f.account)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				name := fmt.Sprintf("N%d", i)
				res, err := s.Put(context.Background(), prod, []Put{{Name: name, Value: fmt.Append(nil, j)}}, PutOptions{})
				if err != nil || res[0].Version != uint32(j+1) {
					t.Errorf("%s: %v, %v", name, res, err)
					return
				}
				got, err := reveal(s, prod, name, "DATABASE_URL")
				if err != nil || got[name] != fmt.Sprint(j) || got["DATABASE_URL"] != newest(prod)["DATABASE_URL"] {
					t.Errorf("%s: got %v, %v", name, got, err)
				}
				if _, err := s.List(context.Background(), prod); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if list, err := s.List(t.Context(), prod); err != nil || len(list) != 8+len(fixtureValues[prod]) {
		t.Errorf("%d secrets: %v", len(list), err)
	}
}

func TestProgress(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	var list []Put
	for i := range 1200 {
		list = append(list, Put{Name: fmt.Sprintf("N%d", i), Value: []byte("v")})
	}
	var told []int
	if _, err := s.Put(t.Context(), prod, list, PutOptions{Progress: func(n int) { told = append(told, n) }}); err != nil {
		t.Fatal(err)
	}
	if len(told) == 0 || !slices.IsSorted(told[:len(told)/2]) || told[len(told)-1] > len(list) {
		t.Errorf("told %v", told)
	}
}
