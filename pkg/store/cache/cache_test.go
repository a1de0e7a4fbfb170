package cache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/vault"
)

// says fails the test unless err is of a kind and says all of the words.
func says(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%v, want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// What a machine key of any level has used, it can use again while the server
// is away, in another process; and that is said once.
func TestRevealWhileAway(t *testing.T) {
	for what, key := range map[string][]byte{"account": fixture(t).account, "app": fixture(t).app, "env": fixture(t).env} {
		t.Run(what, func(t *testing.T) {
			f, dir := newFar(t), t.TempDir()
			newClient(t, f, dir).use(key, prod)
			f.away.Store(true)
			c := newClient(t, f, dir)
			s := c.mustOpen(key)
			for range 3 {
				right(t, s, prod)
				right(t, s, prod, nameOf(2))
			}
			if list, err := s.List(t.Context(), prod); err != nil || len(list) != 4 {
				t.Errorf("%d secrets, %v", len(list), err)
			}
			if got := c.told(); got != "cannot reach "+server+": using what it said 0s ago, for at most 24h after it was said" {
				t.Errorf("told: %s", got)
			}
			if st := c.State(); st.Server != server || st.Since.IsZero() || time.Since(st.AsOf) > time.Minute || !strings.Contains(st.Why, "connection refused") {
				t.Errorf("%+v", st)
			}
		})
	}
}

// The password's slots are in the account's record.
func TestPasswordWhileAway(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	f.away.Store(true)
	pass, err := kek.LockedFrom([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer pass.Destroy()
	s, err := vault.New(newClient(t, f, dir)).Unlock(t.Context(), pass)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	right(t, s, prod)
}

// One secret was asked for, all are kept: the next program may want another.
func TestWholeEnvIsKept(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).env, prod, nameOf(0))
	f.away.Store(true)
	right(t, newClient(t, f, dir).mustOpen(fixture(t).env), prod)
}

func TestTooOld(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	f.away.Store(true)
	for _, tt := range []struct {
		later time.Duration
		text  string // "": it is used
	}{
		{23*time.Hour + 59*time.Minute, ""},
		{24*time.Hour + time.Minute, "what is cached of it is 24h1m old, and at most 24h are allowed (--max-stale)"},
		{26*time.Hour + 10*time.Minute, "26h10m old"},
		{-time.Minute, "of a time that is yet to come"}, // the clock was set back
	} {
		c := newClient(t, f, dir)
		c.later(tt.later)
		s, err := c.open(fixture(t).account)
		if tt.text == "" {
			if err != nil {
				t.Errorf("%v later: %v", tt.later, err)
			} else {
				right(t, s, prod)
			}
			continue
		}
		says(t, err, store.ErrUnavailable, "connection refused", tt.text)
	}
	// What was opened in time is not used beyond it.
	c := newClient(t, f, dir)
	s := c.mustOpen(fixture(t).account)
	right(t, s, prod)
	c.later(25 * time.Hour)
	_, err := reveal(s, prod)
	says(t, err, store.ErrUnavailable, "25h old")
	// Another file that is fresh does not help.
	f.away.Store(false)
	newClient(t, f, dir).use(fixture(t).account, staging)
	old(t, dir, prod, 25*time.Hour)
	f.away.Store(true)
	c = newClient(t, f, dir)
	s = c.mustOpen(fixture(t).account)
	right(t, s, staging)
	_, err = reveal(s, prod)
	says(t, err, store.ErrUnavailable, "what is cached of env production is 25h old")
}

// old makes the file of an env older.
func old(t *testing.T, dir string, ref vault.Ref, by time.Duration) {
	t.Helper()
	for name := range files(t, dir) {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.reader(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, append([]byte{0, 0, 0, byte(1 + idSize + len(ref.Env)), kindEnv}, envID(t, b)...)) || !bytes.Contains(b, []byte(ref.Env)) {
			continue
		}
		copy(b[confirmedAt:], stamp(s.confirmed.Add(-by), s.digest))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// envID returns the app's id in the key of the env's record.
func envID(t *testing.T, b []byte) []byte {
	t.Helper()
	s, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range s.seen {
		if one.Range.Key[0] == kindEnv {
			return one.Range.Key[1 : 1+idSize]
		}
	}
	t.Fatal("no env in the file")
	return nil
}

// What is not in the cache is unavailable, which is not the same as not there.
func TestWhatIsNotCached(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	set(t, f, prod, nameOf(0), "a second version") // so that there is a history
	c := newClient(t, f, dir)
	s := c.mustOpen(fixture(t).account)
	if _, err := reveal(s, prod); err != nil {
		t.Fatal(err)
	}
	c.mustRefresh(s)
	f.away.Store(true)
	s = newClient(t, f, dir).mustOpen(fixture(t).account)
	for what, tt := range map[string]struct {
		do  func() error
		say string
	}{
		"another env": {func() error { _, err := reveal(s, staging); return err }, "env staging is not cached here"},
		"another app": {func() error { _, err := reveal(s, other); return err }, "app blog is not cached here"},
		"no such app": {func() error { _, err := reveal(s, vault.Ref{App: "none", Env: "production"}); return err }, "app none is not cached here"},
		"the apps":    {func() error { _, err := s.Apps(t.Context()); return err }, "not cached here"},
		"an older value": {func() error {
			return s.Reveal(t.Context(), prod, vault.Select{Names: []string{nameOf(0)}, Version: 1}, func([]vault.Secret) error { return nil })
		}, "not cached here"},
	} {
		err := tt.do()
		if errors.Is(err, vault.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
		says(t, err, store.ErrUnavailable, tt.say, "connection refused")
	}
	// What the server did say is known, also that something is not there.
	if _, err := reveal(s, prod, "NO_SUCH_NAME"); !errors.Is(err, vault.ErrNotFound) {
		t.Errorf("a name that is not there: %v", err)
	}
	if list, err := s.History(t.Context(), prod, nameOf(0)); err != nil || len(list) != 2 {
		t.Errorf("%d versions, %v", len(list), err)
	}
}

func TestNothingCached(t *testing.T) {
	f := newFar(t)
	f.away.Store(true)
	_, err := newClient(t, f, filepath.Join(t.TempDir(), "none")).open(fixture(t).account)
	says(t, err, store.ErrUnavailable, "connection refused; nothing of it is cached here")
}

// A write while the server is away fails, and is not made up for later.
func TestWriteWhileAway(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	c := newClient(t, f, dir)
	s := c.use(fixture(t).account, prod)
	before := all(t, dir)
	f.away.Store(true)
	_, err := s.Put(t.Context(), prod, []vault.Put{{Name: "NEW", Value: []byte("value")}}, vault.PutOptions{})
	says(t, err, store.ErrUnavailable, "connection refused")
	says(t, s.Delete(t.Context(), prod, []string{nameOf(0)}), store.ErrUnavailable)
	if !bytes.Equal(all(t, dir), before) {
		t.Error("the cache has changed")
	}
	f.away.Store(false)
	waitFor(t, "the server is found again", func() bool { return c.State().Since.IsZero() })
	right(t, s, prod)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// A server that says nothing is not waited for longer than Patience when the
// cache can answer, and not at all while it is known to be away. Once it is
// back, it is asked again.
func TestServerThatHangs(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	f.hangs.Store(true)
	c := newClient(t, f, dir)
	start := time.Now()
	s := c.mustOpen(fixture(t).account)
	if took := time.Since(start); took < 100*time.Millisecond || took > 2*time.Second {
		t.Errorf("%v until the cache answered", took)
	}
	start = time.Now()
	for range 20 {
		right(t, s, prod)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("20 answers took %v", took)
	}
	f.hangs.Store(false)
	waitFor(t, "the server is found again", func() bool { return c.State().Since.IsZero() })
	set(t, f, prod, nameOf(0), "new")
	if got, err := reveal(s, prod); err != nil || got[nameOf(0)] != "new" {
		t.Errorf("%v, %v", got, err)
	}
	if !strings.Contains(c.told(), server+" answers again, after ") {
		t.Errorf("told: %s", c.told())
	}
	// Without an answer in the cache there is no hurry.
	f.hangs.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start = time.Now()
	err := s.Reveal(ctx, staging, vault.Select{}, func([]vault.Secret) error { return nil })
	if took := time.Since(start); err == nil || took < 450*time.Millisecond {
		t.Errorf("%v after %v", err, took)
	}
}

// slow is a store that answers at once, and then takes its time.
type slow struct{ *far }

func (s slow) View(ctx context.Context, fn func(store.Reader) error) error {
	return s.far.View(ctx, func(r store.Reader) error {
		err := fn(r)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(300 * time.Millisecond):
		}
		return err
	})
}

// A server that is slow is not away.
func TestSlowServer(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	set(t, f, prod, nameOf(0), "new")
	c := newClient(t, slow{f}, dir)
	if got, err := reveal(c.mustOpen(fixture(t).account), prod); err != nil || got[nameOf(0)] != "new" || c.told() != "" {
		t.Errorf("%v, %v, told %q", got, err, c.told())
	}
}

// A server that refuses has the last word.
func TestDenied(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	f.deny.Store(true)
	_, err := newClient(t, f, dir).open(fixture(t).account)
	says(t, err, store.ErrDenied)
	if errors.Is(err, store.ErrUnavailable) {
		t.Error(err)
	}
}

// What is unchanged is read once, and its file is written once.
func TestUnchanged(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	c := newClient(t, f, dir)
	s := c.use(fixture(t).account, prod)
	before, views := all(t, dir), f.views.Load()
	for range 10 {
		right(t, s, prod)
		c.mustRefresh(s)
	}
	if !bytes.Equal(before, all(t, dir)) {
		t.Error("the file was written again")
	}
	if n := f.views.Load() - views; n != 10 {
		t.Errorf("10 reveals were %d views", n)
	}
	// Later it is noted that it is still so, and nothing else.
	c.later(10 * time.Hour)
	right(t, s, prod)
	c.mustRefresh(s)
	after := all(t, dir)
	if bytes.Equal(before, after) || !bytes.Equal(before[digestAt:], after[digestAt:]) {
		t.Error("the time of confirmation, and it alone, must change")
	}
	f.away.Store(true)
	c = newClient(t, f, dir)
	c.later(33 * time.Hour)
	right(t, c.mustOpen(fixture(t).account), prod)
}

// What changes on the server is what the cache says next.
func TestChanged(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	c := newClient(t, f, dir)
	c.use(fixture(t).env, prod)
	set(t, f, prod, nameOf(0), "new")
	s := c.mustOpen(fixture(t).env)
	if _, err := reveal(s, prod, nameOf(0)); err != nil {
		t.Fatal(err)
	}
	c.mustRefresh(s)
	f.away.Store(true)
	if got, err := reveal(newClient(t, f, dir).mustOpen(fixture(t).env), prod); err != nil || got[nameOf(0)] != "new" || len(got) != 4 {
		t.Errorf("%v, %v", got, err)
	}
}

// What this program has written is in the cache after the next Refresh, if the
// env was.
func TestOwnWrite(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	c := newClient(t, f, dir)
	s := c.use(fixture(t).account, prod)
	for _, ref := range []vault.Ref{prod, staging} {
		if _, err := s.Put(t.Context(), ref, []vault.Put{{Name: nameOf(0), Value: []byte("new")}}, vault.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.mustRefresh(s)
	if n := len(files(t, dir)); n != 1 {
		t.Errorf("%d files", n)
	}
	f.away.Store(true)
	if got, err := reveal(newClient(t, f, dir).mustOpen(fixture(t).account), prod, nameOf(0)); err != nil || got[nameOf(0)] != "new" {
		t.Errorf("%v, %v", got, err)
	}
}

// After a change of keys, nothing of before is left as soon as it is known: no
// machine key that is dead opens the cache.
func TestChangeOfKeys(t *testing.T) {
	pass, err := kek.LockedFrom([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer pass.Destroy()
	rotate := map[string]func(st store.Store) error{
		"password": func(st store.Store) error {
			fresh, err := kek.LockedFrom([]byte("another password"))
			if err == nil {
				defer fresh.Destroy()
				err = vault.New(st).ChangePassword(t.Context(), pass, fresh)
			}
			return err
		},
		"app": func(st store.Store) error {
			s, err := vault.New(st).Unlock(t.Context(), pass)
			if err == nil {
				defer s.Destroy()
				err = s.RotateApp(t.Context(), "shop")
			}
			return err
		},
	}
	for what, change := range rotate {
		left := map[string]int{"password": 0, "app": 1}[what] // files
		for _, who := range []string{"this program", "another"} {
			t.Run(what+" by "+who, func(t *testing.T) {
				f, dir := newFar(t), t.TempDir()
				for _, ref := range refs {
					newClient(t, f, dir).use(fixture(t).account, ref)
				}
				newClient(t, f, dir).use(fixture(t).env, prod)
				c := newClient(t, f, dir)
				if who == "another" {
					if err := change(f.Store); err != nil {
						t.Fatal(err)
					}
					// The dead key need not even be of this env.
					_, err := c.open(fixture(t).env)
					says(t, err, vault.ErrDeadKey)
				} else if err := change(c); err != nil {
					t.Fatal(err)
				}
				if n := len(files(t, dir)); n != left {
					t.Errorf("%d files are left, not %d", n, left)
				}
				f.away.Store(true)
				_, err := newClient(t, f, dir).open(fixture(t).env)
				says(t, err, store.ErrUnavailable)
			})
		}
	}
}

// Where two files are not of the same moment, because a slow program was late,
// the one that was confirmed later is right and the other one not used.
func TestContradiction(t *testing.T) {
	f, dir, late := newFar(t), t.TempDir(), t.TempDir()
	newClient(t, f, late).use(fixture(t).account, staging)
	pass, err := kek.LockedFrom([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer pass.Destroy()
	v := vault.New(f.Store)
	if err := v.RotateKey(t.Context(), pass); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, f, dir)
	fresh, err := vault.New(c).Unlock(t.Context(), pass)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Destroy()
	right(t, fresh, prod)
	c.mustRefresh(fresh)
	for name := range files(t, late) {
		if err := os.Rename(filepath.Join(late, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	f.away.Store(true)
	c = newClient(t, f, dir)
	_, err = c.open(fixture(t).account)
	says(t, err, store.ErrUnavailable, "the entry of this machine key is not cached here")
	again, err := vault.New(c).Unlock(t.Context(), pass)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Destroy()
	right(t, again, prod)
	_, err = reveal(again, staging)
	says(t, err, store.ErrUnavailable, "env staging is not cached here")
}

// Envs and apps that are deleted go.
func TestDeleted(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	c := newClient(t, f, dir)
	for _, ref := range refs {
		c.use(fixture(t).account, ref)
	}
	o := newClient(t, f, t.TempDir()).mustOpen(fixture(t).account) // somebody else
	if err := o.DeleteEnv(t.Context(), staging); err != nil {
		t.Fatal(err)
	}
	s := c.mustOpen(fixture(t).account)
	if _, err := reveal(s, staging); !errors.Is(err, vault.ErrNotFound) {
		t.Fatal(err)
	}
	if n := len(files(t, dir)); n != 2 {
		t.Errorf("%d files after an env was deleted", n)
	}
	if err := o.DeleteApp(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := reveal(s, prod); !errors.Is(err, vault.ErrNotFound) {
		t.Fatal(err)
	}
	if n := len(files(t, dir)); n != 1 {
		t.Errorf("%d files after an app was deleted", n)
	}
	// By this program itself.
	if err := s.DeleteApp(t.Context(), "blog"); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, dir)); n != 0 {
		t.Errorf("%d files after another was", n)
	}
}

// Many machine keys of one account on one machine keep out of each other's way.
func TestManyMachineKeys(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	keys := [][]byte{fixture(t).account, fixture(t).app, fixture(t).env}
	for range 2 {
		for _, key := range keys {
			newClient(t, f, dir).use(key, prod)
		}
	}
	views := f.views.Load()
	for _, key := range keys {
		newClient(t, f, dir).use(key, prod)
	}
	if n := f.views.Load() - views; n != 6 {
		t.Errorf("3 runs were %d views, not 2 each", n)
	}
	f.away.Store(true)
	for _, key := range keys {
		right(t, newClient(t, f, dir).mustOpen(key), prod)
	}
}

// The cache does not grow above its bound: what was not used for the longest
// time goes.
func TestBounded(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	newClient(t, f, dir).use(fixture(t).account, prod)
	var one int64
	for _, size := range files(t, dir) {
		one = size
	}
	limit := func(o *Options) { o.MaxSize = 2*one + one/2 }
	for i, ref := range []vault.Ref{prod, staging, prod, other} { // staging was used before prod
		c := newClient(t, f, dir, limit)
		c.later(time.Duration(i) * time.Hour)
		c.use(fixture(t).account, ref)
		var sum int64
		for _, size := range files(t, dir) {
			sum += size
		}
		if sum > 2*one+one/2 {
			t.Errorf("%d bytes, the bound is %d", sum, 2*one+one/2)
		}
	}
	f.away.Store(true)
	c := newClient(t, f, dir, limit)
	c.later(4 * time.Hour)
	s := c.mustOpen(fixture(t).account)
	right(t, s, prod)
	right(t, s, other)
	_, err := reveal(s, staging)
	says(t, err, store.ErrUnavailable, "env staging is not cached here")
}

// An env that is too large is not kept, which is said, and not read in vain
// again until it changes.
func TestTooLarge(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	limit := func(o *Options) { o.MaxSize = 2000 }
	c := newClient(t, f, dir, limit)
	c.use(fixture(t).account, prod)
	if !strings.Contains(c.told(), "shop/production is not cached: too large for the cache: ") {
		t.Errorf("told: %s", c.told())
	}
	views := f.views.Load()
	c = newClient(t, f, dir, limit)
	c.use(fixture(t).account, prod, nameOf(0))
	if n := f.views.Load() - views; n != 2 || c.told() != "" {
		t.Errorf("%d views, told %s", n, c.told())
	}
	f.away.Store(true)
	c = newClient(t, f, dir, limit)
	_, err := reveal(c.mustOpen(fixture(t).account), prod)
	says(t, err, store.ErrUnavailable, "not cached here")
}

// --max-stale 0 is no cache, and leaves none.
func TestOff(t *testing.T) {
	f, dir := newFar(t), filepath.Join(t.TempDir(), "cache")
	newClient(t, f, dir).use(fixture(t).account, prod)
	if len(files(t, dir)) == 0 {
		t.Fatal("nothing is cached")
	}
	c := newClient(t, f, dir, func(o *Options) { o.MaxStale = 0 })
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cache is still there: %v", err)
	}
	s := c.use(fixture(t).account, prod)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a cache again: %v", err)
	}
	f.away.Store(true)
	_, err := reveal(s, prod)
	says(t, err, store.ErrUnavailable)
}

// Remove leaves alone what is not the cache's.
func TestRemove(t *testing.T) {
	f, dir := newFar(t), filepath.Join(t.TempDir(), "cache")
	newClient(t, f, dir).use(fixture(t).account, prod)
	mine := filepath.Join(dir, "mine")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if err := Remove(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
}

// A file is its owner's alone, and one that others could have written is not
// used.
func TestModes(t *testing.T) {
	f, dir := newFar(t), filepath.Join(t.TempDir(), "a/b/cache")
	newClient(t, f, dir).use(fixture(t).account, prod)
	f.away.Store(true)
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	var path string
	for name := range files(t, dir) {
		path = filepath.Join(dir, name)
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	}
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(dir, 0o720)
	c := newClient(t, f, dir)
	_, err = c.open(fixture(t).account)
	says(t, err, store.ErrUnavailable)
	if !strings.Contains(c.told(), "can be written by others (mode 0720)") {
		t.Errorf("told: %s", c.told())
	}
	chmod(dir, 0o700)
	chmod(path, 0o602)
	c = newClient(t, f, dir)
	_, err = c.open(fixture(t).account)
	says(t, err, store.ErrUnavailable)
	if !strings.Contains(c.told(), "can be written by others (mode 0602)") || len(files(t, dir)) != 0 {
		t.Errorf("told: %s; left: %v", c.told(), files(t, dir))
	}
}

// The cache holds ciphertext: no value, no name, no key.
func TestNoPlaintext(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	c := newClient(t, f, dir)
	for _, ref := range refs {
		c.use(fixture(t).account, ref)
	}
	seen := all(t, dir)
	if !bytes.Contains(seen, []byte("production")) { // the control: slugs are in the clear
		t.Error("the search shows nothing")
	}
	secrets := [][]byte{[]byte(password), fixture(t).account, fixture(t).app, fixture(t).env}
	for i := range 4 {
		secrets = append(secrets, []byte(nameOf(i)))
		for _, ref := range refs {
			secrets = append(secrets, []byte(valueOf(ref, i)))
		}
	}
	for i, secret := range secrets {
		if bytes.Contains(seen, secret) {
			t.Errorf("secret %d is there", i)
		}
	}
}
