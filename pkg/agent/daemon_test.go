package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/vault"
)

// realAgent is the real ov-agent, as a child of the test.
type realAgent struct {
	*exec.Cmd
	socket string
	logged *logBuffer
	exited chan struct{}
	err    error // of Wait, once exited is closed
}

// home is an account's files: an environment in which the programs find them.
type home struct {
	dir, vault, key, socket string
	env                     []string
}

func newHome(t testing.TB) *home {
	t.Helper()
	dir := shortDir(t)
	h := &home{
		dir: dir, vault: filepath.Join(dir, "data/ov/vault.db"), key: filepath.Join(dir, "key"),
		socket: filepath.Join(dir, "run/ov-agent/ov-agent.sock"),
		env: []string{
			"HOME=" + dir, "XDG_RUNTIME_DIR=" + dir + "/run", "TMPDIR=" + dir + "/run", "XDG_DATA_HOME=" + dir + "/data",
			"XDG_STATE_HOME=" + dir + "/state", "XDG_CONFIG_HOME=" + dir + "/config", "PATH=" + os.Getenv("PATH"),
		},
	}
	for _, sub := range []string{"run", "data/ov"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	copyVault(t, filepath.Dir(h.vault))
	if err := os.WriteFile(h.key, sharedFixture(t).account, 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// command is one of the programs in the home.
func (h *home) command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t, name), args...)
	cmd.Env, cmd.Dir = slices.Clone(h.env), h.dir
	return cmd
}

// run starts an agent in the foreground and waits until it answers.
func (h *home) run(t testing.TB, args ...string) *realAgent {
	t.Helper()
	return run(t, h.command(t, "ov-agent", append([]string{"--foreground"}, args...)...), h.socket)
}

func run(t testing.TB, cmd *exec.Cmd, socket string) *realAgent {
	t.Helper()
	d := launch(t, cmd, socket)
	wait(t, "the agent answers", func() bool {
		select {
		case <-d.exited:
			t.Fatalf("the agent ended: %v\n%s", d.err, d.logged)
		default:
		}
		_, err := d.status()
		return err == nil
	})
	return d
}

// launch starts an agent and waits for nothing.
func launch(t testing.TB, cmd *exec.Cmd, socket string) *realAgent {
	t.Helper()
	d := &realAgent{Cmd: cmd, socket: socket, logged: &logBuffer{}, exited: make(chan struct{})}
	cmd.Stderr = d.logged
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-d.exited
		if t.Failed() {
			t.Logf("the agent's log:\n%s", d.logged)
		}
		if strings.Contains(d.logged.String(), "DATA RACE") {
			t.Errorf("a data race in the agent:\n%s", d.logged)
		}
	})
	return d
}

func (d *realAgent) client(t testing.TB) *Client { return clientOf(t, d.socket) }

func (d *realAgent) status() (Status, error) { return statusOf(d.socket) }

func statusOf(socket string) (Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	target, err := peer.Locate(peer.Options{Socket: socket})
	if err != nil {
		return Status{}, err
	}
	c, err := Connect(ctx, target)
	if err != nil {
		return Status{}, err
	}
	defer func() { _ = c.Close() }()
	return c.Status(ctx)
}

// end waits for the agent's end.
func (d *realAgent) end(t testing.TB, within time.Duration) {
	t.Helper()
	select {
	case <-d.exited:
	case <-time.After(within):
		t.Fatalf("the agent has not ended in %v", within)
	}
}

func (d *realAgent) signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := d.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func TestForeground(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key, "--app", "shop", "--env", "production")
	got, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	if !got.Unlocked || got.Level != "account" || got.Vault != h.vault || int(got.PID) != d.Process.Pid ||
		got.Context != shop || got.Version == "" || got.LocksAt != nil || got.UnlockedAt == nil || got.Memory == "" {
		t.Errorf("%+v", got)
	}
	c := d.client(t)
	mustReveal(t, c, shop, nameOf(4), valueOf(4))
	// A request that names no app and env goes to the agent's.
	mustReveal(t, c, vault.Ref{}, nameOf(4), valueOf(4))
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		d.signal(t, s)
		d.end(t, 5*time.Second)
		if d.err != nil {
			t.Errorf("%v: %v", s, d.err)
		}
		if _, err := os.Lstat(h.socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v: the socket is still there: %v", s, err)
		}
		if s == syscall.SIGTERM {
			d = h.run(t, "--locked")
		}
	}
}

// One agent to a socket, whether the other was started the same way or not.
func TestOneAgentPerSocket(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--locked")
	for _, args := range [][]string{
		{"--foreground", "--locked"}, {"--locked"}, {"--foreground", "--password-stdin"}, {"--socket", h.socket, "--machine-key", h.key},
	} {
		out, err := h.command(t, "ov-agent", args...).CombinedOutput()
		want := fmt.Sprintf("ov-agent: an agent is already running at %s, pid %d\n  hint: ov agent status, or stop it first: ov agent stop\n", h.socket, d.Process.Pid)
		if exitCode(err) != 1 || string(out) != want {
			t.Errorf("%v: %v\n got %q\nwant %q", args, err, out, want)
		}
	}
	if _, err := d.status(); err != nil {
		t.Errorf("the first agent: %v", err)
	}
	// Ten at once, on a socket that is free: one gets it.
	socket := filepath.Join(h.dir, "run/many.sock")
	var all []*realAgent
	for range 10 {
		all = append(all, launch(t, h.command(t, "ov-agent", "--foreground", "--locked", "--socket", socket), socket))
	}
	wait(t, "nine of ten agents end", func() bool {
		ended := 0
		for _, d := range all {
			select {
			case <-d.exited:
				ended++
			default:
			}
		}
		return ended == 9
	})
	for _, d := range all {
		select {
		case <-d.exited:
			if !strings.Contains(d.logged.String(), "an agent is already running") {
				t.Errorf("%v: %s", d.err, d.logged)
			}
		default:
			wait(t, "the tenth answers", func() bool { _, err := d.status(); return err == nil })
			d.signal(t, syscall.SIGKILL) // leaves its socket
			d.end(t, 5*time.Second)
		}
	}
	// What a killed agent leaves does not keep the next one from starting.
	d = run(t, h.command(t, "ov-agent", "--foreground", "--locked", "--socket", socket), socket)
	if _, err := d.status(); err != nil {
		t.Error(err)
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// A start that waits for a password ends when it is told to.
func TestSignalWhileReadingThePassword(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		h := newHome(t)
		cmd := h.command(t, "ov-agent", "--foreground", "--password-stdin")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		d := launch(t, cmd, h.socket)
		wait(t, "the socket is there", func() bool { _, err := os.Lstat(h.socket); return err == nil })
		time.Sleep(50 * time.Millisecond) // it reads now
		d.signal(t, s)
		d.end(t, 5*time.Second)
		_ = stdin.Close()
		run(t, h.command(t, "ov-agent", "--foreground", "--locked"), h.socket)
	}
}

// SIGTERM lets what is in flight finish: here a Put whose end is still to come.
func TestSIGTERMFinishesWhatIsInFlight(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	c := d.client(t)
	ctx := t.Context()
	hello, stream := openPut(t, c, shop)
	d.signal(t, syscall.SIGTERM)
	wait(t, "the agent listens no more", func() bool { _, err := os.Lstat(h.socket); return err != nil })
	sealed, _, err := sealPuts(hello, []vault.Put{{Name: "LATE", Value: []byte("but whole")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(putMessage(sealed)); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatalf("a request in flight at SIGTERM: %v", err)
	}
	d.end(t, 5*time.Second)
	if d.err != nil {
		t.Error(d.err)
	}
	d = h.run(t, "--machine-key", h.key)
	mustReveal(t, d.client(t), shop, "LATE", "but whole")
	_ = ctx
}

// A client that stalls keeps the agent from ending no longer than stopGrace.
func TestSIGTERMDoesNotWaitForAStalledClient(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	_, _ = openPut(t, d.client(t), shop)
	start := time.Now()
	d.signal(t, syscall.SIGTERM)
	d.end(t, stopGrace+5*time.Second)
	if took := time.Since(start); took < stopGrace/2 {
		t.Errorf("the agent gave what was in flight only %v", took)
	}
	if d.err != nil {
		t.Errorf("the agent ended with: %v", d.err)
	}
}

func TestBadFlags(t *testing.T) {
	h := newHome(t)
	for want, args := range map[string][]string{
		"--ttl -1s and --idle 0s: neither may be below zero":  {"--locked", "--ttl=-1s"},
		"--ttl 0s and --idle -1h0m0s: neither may be below z": {"--locked", "--idle=-1h"},
		"none of the others can be":                           {"--locked", "--machine-key", "x"},
		"is for ov agent start alone":                         {"--locked", "--detach"},
		"unknown command":                                     {"serve"},
	} {
		out, err := h.command(t, "ov-agent", append([]string{"--foreground"}, args...)...).CombinedOutput()
		if exitCode(err) != 1 || !strings.Contains(string(out), want) || bytes.Count(out, []byte("ov-agent: ")) != 1 {
			t.Errorf("%v: %v, %q, want %q once", args, err, out, want)
		}
	}
}
