package agent

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// openPut starts a Put and returns once the agent has its first message.
func openPut(t testing.TB, c *Client, ref vault.Ref) (hello []byte, stream agentv1.Agent_PutClient) {
	t.Helper()
	r, err := c.rpc.Hello(t.Context(), &agentv1.HelloRequest{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stream, err = c.rpc.Put(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := newSealKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, _, err := sealPuts(r.PublicKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&agentv1.PutRequest{Ref: protoRef(ref), PublicKey: key.public, Sealed: sealed}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the agent has the Put", func() bool {
		now, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before.Requests++ // this one
		return now.Requests > before.Requests
	})
	return r.PublicKey, stream
}

func putMessage(sealed []byte) *agentv1.PutRequest { return &agentv1.PutRequest{Sealed: sealed} }

func TestLockAndUnlock(t *testing.T) {
	a := newAgent(t)
	c := a.client(t)
	ctx := t.Context()
	isLocked := func(because string) {
		t.Helper()
		st, err := c.Status(ctx)
		if err != nil || st.Unlocked || !strings.Contains(st.LockedBecause, because) || st.Level != "" || st.UnlockedAt != nil || st.Memory != "" {
			t.Errorf("%+v, %v", st, err)
		}
		// Every call that needs the key says so, why, and what to do.
		for name, call := range keyCalls(ctx, c) {
			err := call()
			if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), because) || hint.Of(err) != "ov agent unlock" {
				t.Errorf("%s on a locked agent: %v (hint %q)", name, err, hint.Of(err))
			}
		}
		if apps, err := c.Apps(ctx); err != nil || len(apps) != 3 { // slugs need no key
			t.Errorf("apps: %v, %v", apps, err)
		}
	}
	isLocked("nobody has unlocked it")
	if err := c.Unlock(ctx, locked(t, []byte("wrong"))); !errors.Is(err, vault.ErrWrongPassword) || err.Error() != "wrong master password" {
		t.Errorf("a wrong password: %v", err)
	}
	isLocked("nobody has unlocked it")
	if err := c.Unlock(ctx, locked(t, []byte(masterPassword))); err != nil {
		t.Fatal(err)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	if err := c.Unlock(ctx, locked(t, []byte("wrong"))); !errors.Is(err, vault.ErrWrongPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0)) // and is still unlocked
	if err := c.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	isLocked("it was told to lock")
	if err := c.Lock(ctx); err != nil { // twice is no error
		t.Fatal(err)
	}
	isLocked("it was told to lock")
	select {
	case <-a.stopped:
		t.Error("locking stopped the agent")
	default:
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-a.stopped:
	case <-time.After(5 * time.Second):
		t.Error("Stop did not stop")
	}
}

// keyCalls are all calls that need the key.
func keyCalls(ctx context.Context, c *Client) map[string]func() error {
	return map[string]func() error{
		"CreateApp": func() error { return c.CreateApp(ctx, "new") },
		"DeleteApp": func() error { return c.DeleteApp(ctx, "shop") },
		"CreateEnv": func() error { return c.CreateEnv(ctx, vault.Ref{App: "shop", Env: "new"}) },
		"DeleteEnv": func() error { return c.DeleteEnv(ctx, staging) },
		"Reveal":    func() error { return c.Reveal(ctx, shop, vault.Select{}, func([]vault.Secret) error { return nil }) },
		"List":      func() error { _, err := c.List(ctx, shop); return err },
		"History":   func() error { _, err := c.History(ctx, shop, nameOf(0)); return err },
		"Put": func() error {
			_, err := c.Put(ctx, shop, []vault.Put{{Name: "X", Value: []byte("x")}}, vault.PutOptions{})
			return err
		},
		"Delete":   func() error { return c.Delete(ctx, shop, []string{nameOf(0)}) },
		"Rollback": func() error { _, err := c.Rollback(ctx, shop, nameOf(0), 1); return err },
	}
}

// A machine key opens what it is for and nothing else, also when it comes after
// one that opened more.
func TestMachineKeysOfAllLevels(t *testing.T) {
	a := newAgent(t)
	c := a.client(t)
	ctx := t.Context()
	f := sharedFixture(t)
	for _, test := range []struct {
		level string
		key   []byte
		scope vault.Ref
		opens map[vault.Ref]bool
	}{
		{"account", f.account, vault.Ref{}, map[vault.Ref]bool{shop: true, staging: true, other: true}},
		{"app", f.app, vault.Ref{App: "shop"}, map[vault.Ref]bool{shop: true, staging: true, other: false}},
		{"env", f.env, shop, map[vault.Ref]bool{shop: true, staging: false, other: false}},
	} {
		if err := c.UnlockKey(ctx, locked(t, test.key)); err != nil {
			t.Fatal(err)
		}
		st, err := c.Status(ctx)
		if err != nil || st.Level != test.level || st.Scope != test.scope {
			t.Errorf("%s: %+v, %v", test.level, st, err)
		}
		for ref, opens := range test.opens {
			_, err := reveal(t, c, ref, nameOf(0))
			if opens && err != nil || !opens && !errors.Is(err, vault.ErrScope) {
				t.Errorf("a key for the %s, in %s: %v", test.level, ref, err)
			}
		}
		if err := c.CreateApp(ctx, "by-"+test.level); (test.level == "account") != (err == nil) || err != nil && !errors.Is(err, vault.ErrScope) {
			t.Errorf("a key for the %s makes an app: %v", test.level, err)
		}
	}
	for name, key := range map[string][]byte{
		"of no vault": make([]byte, 32), "short": f.account[:31], "long": append(f.account[:32:32], 0), "one byte": {1},
	} {
		if err := c.UnlockKey(ctx, locked(t, key)); !errors.Is(err, vault.ErrUnknownKey) {
			t.Errorf("a key %s: %v", name, err)
		}
	}
	for _, size := range []int{1025, 100_000} {
		err := c.UnlockKey(ctx, locked(t, make([]byte, size)))
		perr := c.Unlock(ctx, locked(t, make([]byte, size)))
		if !errors.Is(err, vault.ErrInvalid) || !errors.Is(perr, vault.ErrInvalid) {
			t.Errorf("%d bytes: %v, %v", size, err, perr)
		}
	}
	if st, err := c.Status(ctx); err != nil || st.Level != "env" {
		t.Errorf("after keys that failed: %+v, %v", st, err)
	}
}

// The clocks of --ttl and --idle are told the time in place of waiting for it.
func TestTTLAndIdle(t *testing.T) {
	rewind := func(a *testAgent, by time.Duration) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.unlocked, a.used = a.unlocked.Add(-by), a.used.Add(-by)
	}
	t.Run("ttl is hard", func(t *testing.T) {
		a := newAgent(t, func(c *Config) { c.TTL = time.Hour }).open(t)
		c := a.client(t)
		st, err := c.Status(t.Context())
		if err != nil || st.LocksAt == nil || st.LocksAt.Sub(*st.UnlockedAt) != time.Hour {
			t.Fatalf("%+v, %v", st, err)
		}
		rewind(a, time.Hour-5*time.Second)
		mustReveal(t, c, shop, nameOf(0), valueOf(0)) // which is use, and puts nothing off
		rewind(a, 5*time.Second)
		if _, err := reveal(t, c, shop, nameOf(0)); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "it was unlocked for 1h0m0s (--ttl)") {
			t.Errorf("right after the time: %v", err)
		}
		wait(t, "the key is forgotten", func() bool { return !a.unlockedNow() })
		a.open(t)
		mustReveal(t, c, shop, nameOf(0), valueOf(0))
	})
	t.Run("idle", func(t *testing.T) {
		a := newAgent(t, func(c *Config) { c.Idle = time.Hour }).open(t)
		c := a.client(t)
		for range 3 {
			rewind(a, time.Hour-5*time.Second)
			mustReveal(t, c, shop, nameOf(0), valueOf(0)) // puts it off
		}
		for range 3 { // looking does not
			rewind(a, 25*time.Minute)
			if st, err := c.Status(t.Context()); err != nil || st.IdleSeconds != 3600 {
				t.Fatalf("%+v, %v", st, err)
			}
			if _, err := c.rpc.Hello(t.Context(), &agentv1.HelloRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := reveal(t, c, shop, nameOf(0)); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "it was not used for 1h0m0s (--idle)") {
			t.Errorf("%v", err)
		}
		// Asking for what is locked is no use of it.
		wait(t, "the key is forgotten", func() bool { return !a.unlockedNow() })
	})
	t.Run("the clock is set back", func(t *testing.T) {
		// The monotonic reading says that an hour has passed, the other that none.
		now := time.Now()
		if got := since(now.Add(-time.Hour)); got < time.Hour {
			t.Errorf("%v", got)
		}
		// A machine that slept: the wall clock says an hour, without a monotonic
		// reading to contradict it.
		if got := since(now.Round(0).Add(-time.Hour)); got < time.Hour {
			t.Errorf("%v", got)
		}
	})
	t.Run("neither", func(t *testing.T) {
		a := newAgent(t).open(t)
		rewind(a, 1000*time.Hour)
		mustReveal(t, a.client(t), shop, nameOf(0), valueOf(0))
	})
}

// Lock returns when the key is gone: not before the request that works with it.
func TestLockWaitsForRequests(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	inside, goOn := make(chan struct{}), make(chan struct{})
	var worked error
	var wg sync.WaitGroup
	wg.Go(func() {
		worked = a.use(func(s *vault.Session) error {
			close(inside)
			<-goOn
			return s.Check(context.Background()) // the key is still whole
		})
	})
	<-inside
	done := make(chan error, 1)
	go func() { done <- c.Lock(context.Background()) }()
	wait(t, "the agent is locked for others", func() bool {
		_, err := reveal(t, a.client(t), shop, nameOf(0))
		return errors.Is(err, ErrLocked)
	})
	a.open(t) // which does not wait
	mustReveal(t, a.client(t), shop, nameOf(0), valueOf(0))
	select {
	case err := <-done:
		t.Errorf("Lock returned while a request worked with the key: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	wg.Wait()
	if worked != nil {
		t.Errorf("the request in flight: %v", worked)
	}
}

// The keys change in another process. The agent says why it is locked, and is
// itself again as soon as it has the new key.
func TestDeadKey(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	c := d.client(t)
	ctx := t.Context()
	mustReveal(t, c, shop, nameOf(0), valueOf(0))

	// Clients go on while the password changes.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var fates []error
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := askOnce(h.socket, 3)
				mu.Lock()
				fates = append(fates, err)
				mu.Unlock()
			}
		})
	}
	change := h.command(t, "ov", "--vault", h.vault, "--socket", h.dir+"/run/none", "auth", "change-password", "--password-stdin")
	change.Stdin = strings.NewReader(masterPassword + "\nthe-next-password\n")
	if out, err := change.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, err := reveal(t, c, shop, nameOf(0))
	if !errors.Is(err, vault.ErrDeadKey) && !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "password change of") {
		t.Errorf("after the change: %v", err)
	}
	st, err := c.Status(ctx)
	if err != nil || st.Unlocked || !strings.Contains(st.LockedBecause, "key is no longer valid: the unlocked key was made before the password change of") {
		t.Errorf("%+v, %v", st, err)
	}
	if err := c.UnlockKey(ctx, locked(t, sharedFixture(t).account)); !errors.Is(err, vault.ErrDeadKey) {
		t.Errorf("the old machine key: %v", err)
	}
	if err := c.Unlock(ctx, locked(t, []byte(masterPassword))); !errors.Is(err, vault.ErrWrongPassword) {
		t.Errorf("the old password: %v", err)
	}
	if err := c.Unlock(ctx, locked(t, []byte("the-next-password"))); err != nil {
		t.Fatal(err)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	time.Sleep(50 * time.Millisecond)
	close(stop)
	wg.Wait()
	right := 0
	for _, err := range fates {
		switch {
		case err == nil:
			right++
		case errors.Is(err, vault.ErrDeadKey), errors.Is(err, ErrLocked):
		default:
			t.Errorf("a client meanwhile: %v", err)
		}
	}
	if right < 10 || fates[len(fates)-1] != nil {
		t.Errorf("%d of %d requests were answered, the last with: %v", right, len(fates), fates[len(fates)-1])
	}
}

// A request that met the old key just as the new one came is done with the new.
func TestRequestOfAReplacedSession(t *testing.T) {
	a := newAgent(t)
	c := a.client(t)
	if err := c.Unlock(t.Context(), locked(t, []byte(masterPassword))); err != nil {
		t.Fatal(err)
	}
	tries := 0
	err := a.use(func(s *vault.Session) error {
		if tries++; tries == 1 {
			// Somebody changes the keys and unlocks the agent with the new one.
			v := vault.New(bolt.New(a.path))
			if err := v.RotateKey(t.Context(), locked(t, []byte(masterPassword))); err != nil {
				t.Fatal(err)
			}
			if err := c.Unlock(t.Context(), locked(t, []byte(masterPassword))); err != nil {
				t.Fatal(err)
			}
		}
		return s.Check(t.Context())
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0)) // and did not lock the agent
}

// Rotating one app's key kills the agent's key if it is that app's, and no other.
func TestRotateApp(t *testing.T) {
	for _, test := range []struct {
		name string
		key  func(fixture) []byte
		dead bool
	}{
		{"account", func(f fixture) []byte { return f.account }, false},
		{"app", func(f fixture) []byte { return f.app }, true},
		{"env", func(f fixture) []byte { return f.env }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAgent(t)
			a.openWith(t, test.key(sharedFixture(t)))
			c := a.client(t)
			mustReveal(t, c, shop, nameOf(0), valueOf(0))
			s, err := vault.New(bolt.New(a.path)).UnlockKey(t.Context(), locked(t, sharedFixture(t).account))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Destroy()
			if err := s.RotateApp(t.Context(), "shop"); err != nil {
				t.Fatal(err)
			}
			_, err = reveal(t, c, shop, nameOf(0))
			if test.dead != errors.Is(err, vault.ErrDeadKey) || !test.dead && err != nil {
				t.Errorf("%v", err)
			}
			if a.unlockedNow() == test.dead {
				t.Errorf("unlocked: %v", a.unlockedNow())
			}
		})
	}
}

// The key of a vault that is gone, or another's, is no reason to lock.
func TestVaultTrouble(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	if out, err := exec.Command("mv", a.path, a.path+".away").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := reveal(t, c, shop, nameOf(0)); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("without the vault's file: %v", err)
	}
	if out, err := exec.Command("mv", a.path+".away", a.path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
}
