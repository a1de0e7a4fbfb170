package vault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// To a store that is far away few trips are made, however many secrets there
// are, and what is found is the same.
func TestTrips(t *testing.T) {
	f, m := setup(t)
	d := &distant{memory: m}
	ctx := t.Context()
	some := []string{"DATABASE_URL", "STRIPE_SECRET_KEY", "EMPTY", "BINARY"}
	for _, c := range []struct {
		key    []byte
		unlock int
	}{{f.account, 1}, {f.app, 2}, {f.env, 2}} {
		s, err := New(d).UnlockKey(ctx, locked(t, c.key))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Destroy)
		level, _ := s.Scope()
		count := func(what string, want int, err error) {
			t.Helper()
			if err != nil || d.trips != want {
				t.Errorf("%s key: %s took %d trips, want %d: %v", level, what, d.trips, want, err)
			}
		}
		count("UnlockKey", c.unlock, nil)
		got, err := reveal(s, prod, some...)
		count("Reveal", 2, err)
		if len(got) != 4 || got["DATABASE_URL"] != newest(prod)["DATABASE_URL"] {
			t.Errorf("got %q", got)
		}
		_, err = s.List(ctx, prod)
		count("List", 2, err)
		want(t, s, prod, newest(prod))
		count("Reveal of all", 3, nil)
		_, err = s.History(ctx, prod, "DATABASE_URL")
		count("History", 2, err)
		err = s.Reveal(ctx, prod, Select{Names: []string{"DATABASE_URL"}, Version: 2}, func(list []Secret) error {
			if len(list) != 1 || string(list[0].Value) != fixtureValues[prod]["DATABASE_URL"][1] {
				t.Errorf("version 2 is %v", list)
			}
			return nil
		})
		count("Reveal of a version", 2, err)
		var batch []Put
		for i := range 100 {
			batch = append(batch, Put{Name: fmt.Sprintf("N%d", i), Value: []byte("v")})
		}
		for range 2 {
			_, err = s.Put(ctx, prod, batch, PutOptions{Create: true})
			count("Put", 2, err)
		}
		_, err = s.Rollback(ctx, prod, "DATABASE_URL", 1)
		count("Rollback", 2, err)
		err = s.Delete(ctx, prod, some)
		count("Delete", 2, err)
		m.records = f.mem.clone().records
		if level == LevelAccount {
			_, err = s.Put(ctx, Ref{"fresh", "dev"}, batch, PutOptions{Create: true})
			count("Put into a new app", 1, err)
			_, err = s.Apps(ctx)
			count("Apps", 1, err)
			_, err = s.vault.MachineKeys(ctx)
			count("MachineKeys", 1, err)
			count("RotateApp", 2, s.RotateApp(ctx, "myapp"))
			count("ChangePassword", 1, s.vault.RotateKey(ctx, locked(t, []byte(fixturePassword))))
			m.records = f.mem.clone().records
		}
	}

	// Many secrets at once.
	s := unlock(t, d, f.env)
	list := many(fetchMany + 1)
	if _, err := s.Put(ctx, prod, list[:3*fetchAtOnce], PutOptions{}); err != nil || d.trips != 1+6 {
		t.Errorf("%d new secrets took %d trips: %v", 3*fetchAtOnce, d.trips, err)
	}
	for _, trips := range []int{5, 3} {
		if _, err := s.Put(ctx, prod, list, PutOptions{}); err != nil || d.trips != trips || d.ranges > 4+3*fetchAtOnce {
			t.Errorf("%d secrets took %d trips for %d ranges: %v", len(list), d.trips, d.ranges, err)
		}
	}
	if got, err := reveal(s, prod); err != nil || len(got) != len(list)+4 || d.trips != 3 {
		t.Errorf("%d secrets in %d trips: %v", len(got), d.trips, err)
	}
}

// An API key with a scope lets a machine key do its work, and a name that is not
// there is not found, without a look at others.
func TestScopedStore(t *testing.T) {
	f, m := setup(t)
	app, env := appID(t, m, prod), envID(t, m, prod)
	d := &distant{memory: m, denies: func(r store.Range) bool {
		key := string(r.Key)
		switch {
		case r.Take == store.One && slices.Contains([]string{"A", "amyapp", "e" + app + prod.Env}, key),
			strings.HasPrefix(key, "d"+app+env), strings.HasPrefix(key, "v"+app+env), strings.HasPrefix(key, "k") && len(key) >= 9:
			return false
		}
		return true
	}}
	s := unlock(t, d, f.env)
	want(t, s, prod, newest(prod))
	set(t, s, prod, "NEW", "v")
	if _, err := s.List(t.Context(), prod); err != nil {
		t.Error(err)
	}
	is(t, second(reveal(s, prod, "DATABASE_URI")), ErrNotFound, "did you mean DATABASE_URL?")
	err := second(s.List(t.Context(), Ref{"absent", "production"}))
	is(t, err, store.ErrDenied)
	d.denies = func(r store.Range) bool { return r.Take == store.All && r.Key[0] == 'a' }
	err = second(s.List(t.Context(), Ref{"absent", "production"}))
	is(t, err, ErrNotFound, "app absent: not found")
	if want := "see what is there: ov app list; make it: ov app create absent"; hint.Of(err) != want {
		t.Errorf("hint %q", hint.Of(err))
	}
	d.denies = func(r store.Range) bool { return r.Take == store.All && (r.Key[0] == 'a' || r.Key[0] == 'e') }
	err = second(s.List(t.Context(), Ref{"myapp", "absent"}))
	is(t, err, ErrNotFound, "env myapp/absent: not found")
	if errors.Is(err, store.ErrDenied) {
		t.Error("denied")
	}
}
