package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// Everything that clients do, right and wrong, and not a name or value of it in
// the log that tells the most.
func TestLogHoldsNoSecret(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--locked", "--verbose")
	c := d.client(t)
	ctx := t.Context()
	const value, name, password = "a-value-that-is-put-Zk83hs", "NAME_THAT_IS_PUT", "a-wrong-password-8sKe02"
	const absentName, badName = "NAME_THAT_IS_NOT_THERE", "bad name; rm -rf"
	failed := func(err error, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
	}
	_, err := reveal(t, c, shop, name)
	failed(err, ErrLocked)
	failed(c.Unlock(ctx, locked(t, []byte(password))), vault.ErrWrongPassword)
	failed(c.UnlockKey(ctx, locked(t, []byte("not-a-key-of-32-bytes-but-of-34-by"))), vault.ErrUnknownKey)
	failed(c.Unlock(ctx, locked(t, []byte(masterPassword))), nil)
	puts := []vault.Put{{Name: name, Value: []byte(value)}}
	_, err = c.Put(ctx, shop, puts, vault.PutOptions{Note: "set"})
	failed(err, nil)
	_, err = c.Put(ctx, shop, []vault.Put{{Name: name, Value: []byte("another")}}, vault.PutOptions{Existing: vault.RefuseExisting})
	failed(err, vault.ErrExists)
	_, err = c.Put(ctx, shop, append(puts, puts...), vault.PutOptions{})
	failed(err, vault.ErrInvalid)
	_, err = c.Put(ctx, shop, []vault.Put{{Name: badName, Value: []byte(value)}}, vault.PutOptions{})
	failed(err, vault.ErrInvalid)
	_, err = c.Put(ctx, other, secretsOf(maxPut+1), vault.PutOptions{})
	failed(err, ErrTooLarge)
	_, err = reveal(t, c, shop, absentName, "SHOP_SECRET_NAME_1")
	failed(err, vault.ErrNotFound)
	_, err = reveal(t, c, shop, badName)
	failed(err, vault.ErrInvalid)
	_, err = reveal(t, c, shop)
	failed(err, nil)
	_, err = c.List(ctx, shop)
	failed(err, nil)
	_, err = c.History(ctx, shop, name)
	failed(err, nil)
	_, err = c.Rollback(ctx, shop, name, 9)
	failed(err, vault.ErrNotFound)
	failed(c.Delete(ctx, shop, []string{name}), nil)
	failed(c.Delete(ctx, shop, []string{absentName}), vault.ErrNotFound)
	_, err = c.rpc.Unlock(ctx, &agentv1.UnlockRequest{Sealed: []byte(value + "-unsealed")})
	failed(fromStatus(err), vault.ErrInvalid)
	_ = c.conn.Invoke(ctx, "/"+value+"/"+name, &agentv1.StatusRequest{}, &agentv1.StatusResponse{})
	failed(c.Lock(ctx), nil)
	failed(c.Stop(ctx), nil)
	d.end(t, 5*time.Second)

	secrets := []string{
		value, name, password, masterPassword, absentName, badName, "another-value", "not-a-key-of-32-bytes",
		"SHOP_SECRET_NAME", string(sharedFixture(t).account),
	}
	for i := range secretCount {
		secrets = append(secrets, valueOf(i))
	}
	absent(t, "the log", []byte(d.logged.String()), "msg=request method="+agentv1.Agent_Reveal_FullMethodName, secrets...)
	for _, part := range []string{"method=" + agentv1.Agent_Put_FullMethodName, "msg=unlocked", "msg=locked", "failed=true", "failed=false", "uid=", "pid=", "exe="} {
		if !strings.Contains(d.logged.String(), part) {
			t.Errorf("the log lacks %q", part)
		}
	}
}

// Without --verbose, requests leave no line at all.
func TestQuietLog(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	served(t, h.socket, 20)
	if n := strings.Count(d.logged.String(), "\n"); n != 2 {
		t.Errorf("%d lines for twenty requests:\n%s", n, d.logged)
	}
}

// panicking is a vault's file whose reader panics with what it was reading.
type panicking struct {
	store.Store
	with any
}

func (p *panicking) View(ctx context.Context, fn func(store.Reader) error) error {
	if p.with != nil {
		panic(p.with)
	}
	return p.Store.View(ctx, fn)
}

func (p *panicking) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	return p.Store.Update(ctx, func(r store.Reader) (store.Batch, error) {
		if p.with != nil {
			panic(p.with)
		}
		return fn(r)
	})
}

// A panic ends one request. What it was about is not told, to the client or the
// log; where it was is in the log.
func TestPanicIsContained(t *testing.T) {
	const inside = "plaintext-in-a-panic-Yw7"
	broken := &panicking{}
	a := newAgent(t, func(c *Config) {
		broken.Store = bolt.New(c.VaultPath)
		c.Vault = vault.New(broken)
	})
	a.open(t)
	c := a.client(t)
	for _, with := range []any{inside, errors.New(inside), fmt.Errorf("%s: %w", inside, vault.ErrNotFound), []byte(inside), struct{ S string }{inside}} {
		broken.with = with
		for name, call := range keyCalls(t.Context(), c) {
			err := call()
			if err == nil || !strings.HasPrefix(err.Error(), "the agent failed in /ov.agent.v1.Agent/"+name+": see its log") || errors.Is(err, vault.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		broken.with = nil
		mustReveal(t, c, shop, nameOf(0), valueOf(0))
	}
	absent(t, "the log", []byte(a.logged.String()), "msg=panic", inside)
	for _, part := range []string{"type=string", "type=*errors.errorString", "(*panicking).View:", "service.Reveal", "service.Put"} {
		if !strings.Contains(a.logged.String(), part) {
			t.Errorf("the log lacks %q", part)
		}
	}
	// No request counts as under way any more: Lock would wait for it.
	done := make(chan error, 1)
	go func() { done <- c.Lock(context.Background()) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Lock waits for a request that has panicked")
	}
}

// The same where nothing of the panic must be left behind.
func TestPanicInsideErasedMemory(t *testing.T) {
	a := newAgent(t)
	_, err := a.unary(as(t.Context(), uint32(os.Geteuid())), nil, &grpc.UnaryServerInfo{FullMethod: agentv1.Agent_Status_FullMethodName},
		func(context.Context, any) (any, error) {
			kek.Do(func() { panic("plaintext-in-a-panic") })
			return "answer", nil
		})
	if err == nil || strings.Contains(err.Error(), "plaintext") {
		t.Errorf("%v", err)
	}
	absent(t, "the log", []byte(a.logged.String()), "msg=panic", "plaintext-in-a-panic")
}

func TestOpenLog(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	path := filepath.Join(dir, "ov/agent.log")
	write := func(text string) error {
		f, err := OpenLog()
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Close())
	}
	read := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := errors.Join(write("one\n"), write("two\n")); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
	for path, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if err := os.Truncate(path, maxLog+1); err != nil {
		t.Fatal(err)
	}
	if err := write("anew\n"); err != nil || read() != "anew\n" {
		t.Errorf("a log that was too long: %v, %d bytes", err, len(read()))
	}
	// Nobody's file is written to by way of a link.
	victim := filepath.Join(dir, "victim")
	if err := errors.Join(os.WriteFile(victim, nil, 0o600), os.Remove(path), os.Symlink(victim, path)); err != nil {
		t.Fatal(err)
	}
	if err := write("x"); err == nil {
		t.Error("a symbolic link was followed")
	}
	if b, err := os.ReadFile(victim); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
}

func TestSeldom(t *testing.T) {
	var s seldom
	at := time.Now()
	told, untold := 0, 0
	for range 10_000 { // a thousand a second
		n, ok := s.now(at)
		if ok {
			told, untold = told+1, untold+n
		}
		at = at.Add(time.Millisecond)
	}
	if told != 10 || untold != 9*999 {
		t.Errorf("%d told, which tell of %d untold", told, untold)
	}
}
