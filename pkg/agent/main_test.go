package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// The tests' other processes are this test binary, told by childVariable what
// to be.
const childVariable = "AGENT_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childVariable); mode != "" {
		os.Exit(beChild(mode, os.Args[1:]))
	}
	code := m.Run()
	removeShared()
	os.Exit(code)
}

func beChild(mode string, args []string) int {
	var result any
	switch mode {
	case "ask": // SOCKET N: reveal N times, as so many runs of ov would
		result = ask(args[0], args[1])
	case "connect": // SOCKET: connect as any program can, and see whether that lasts
		result = connectRaw(args[0])
	case "daemon": // SOCKET VAULT KEY: be ov-agent
		d := Daemon{
			Socket: args[0], Vault: args[1], MachineKey: args[2], Idle: time.Hour, Version: "test",
			Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		}
		if err := d.Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	case "put": // SOCKET N: write a value of N bytes in pieces, as an import would
		result = put(args[0], args[1])
	default:
		return 2
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		return 1
	}
	return 0
}

// asked is what a process saw that asked the agent.
type asked struct {
	Right  int           // answers with the right values
	Locked int           // answers that the agent is locked
	Wrong  []string      // everything else
	Worst  time.Duration // the longest that it waited
}

func ask(socket, times string) (got asked) {
	var n int
	if _, err := fmt.Sscan(times, &n); err != nil {
		got.Wrong = append(got.Wrong, err.Error())
		return got
	}
	for i := range n {
		start := time.Now()
		err := askOnce(socket, i%secretCount)
		got.Worst = max(got.Worst, time.Since(start))
		switch {
		case err == nil:
			got.Right++
		case errors.Is(err, ErrLocked):
			got.Locked++
		default:
			got.Wrong = append(got.Wrong, err.Error())
		}
	}
	return got
}

// askOnce does what ov run does: find, connect, reveal, close.
func askOnce(socket string, i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	target, err := peer.Locate(peer.Options{Socket: socket})
	if err != nil {
		return err
	}
	c, err := Connect(ctx, target)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return c.Reveal(ctx, shop, vault.Select{Names: []string{nameOf(i)}}, func(list []vault.Secret) error {
		if len(list) != 1 || list[0].Name != nameOf(i) || string(list[0].Value) != valueOf(i) {
			return errors.New("wrong answer")
		}
		return nil
	})
}

// put writes secrets of so many bytes together and returns what went wrong.
func put(socket, size string) string {
	var n int
	if _, err := fmt.Sscan(size, &n); err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	target, err := peer.Locate(peer.Options{Socket: socket})
	if err != nil {
		return err.Error()
	}
	c, err := Connect(ctx, target)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Put(ctx, other, secretsOf(n), vault.PutOptions{}); err != nil {
		return err.Error()
	}
	return ""
}

// secretsOf makes secrets of n bytes together.
func secretsOf(n int) (list []vault.Put) {
	for n > 0 {
		size := min(n, vault.MaxValue)
		list = append(list, vault.Put{Name: fmt.Sprintf("BULK_%d", len(list)), Value: make([]byte, size)})
		n -= size
	}
	return list
}

// child returns this test binary as another process that is told to be mode.
func child(mode string, args ...string) *exec.Cmd {
	cmd := exec.Command(self(), args...)
	cmd.Env = []string{childVariable + "=" + mode}
	cmd.Stderr = os.Stderr
	return cmd
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// served fails the test unless another process is served n times, each time
// within the time that a person would still call prompt.
func served(t *testing.T, socket string, n int) {
	t.Helper()
	out, err := child("ask", socket, fmt.Sprint(n)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got asked
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Right != n {
		t.Errorf("another process got %d of %d answers: %d locked, %q", got.Right, n, got.Locked, got.Wrong)
	}
	if got.Worst > patience {
		t.Errorf("another process waited %v for an answer", got.Worst)
	}
	t.Logf("another process: %d answers, the slowest in %v", got.Right, got.Worst)
}

// patience is how long a person waits without wondering. Two cores, which what
// goes on meanwhile keeps busy too, and the race detector take their part.
var patience = map[bool]time.Duration{false: 2 * time.Second, true: 10 * time.Second}[raceEnabled]

// The vault that the tests share: made once, copied for each.
const (
	masterPassword = "correct-horse-battery-staple-4711"
	secretCount    = 20
)

var (
	shop    = vault.Ref{App: "shop", Env: "production"}
	staging = vault.Ref{App: "shop", Env: "staging"}
	other   = vault.Ref{App: "other", Env: "production"}
)

func nameOf(i int) string  { return fmt.Sprintf("SHOP_SECRET_NAME_%02d", i) }
func valueOf(i int) string { return fmt.Sprintf("plain-value-of-secret-%02d-zq8Xk3", i) }

type fixture struct {
	file              []byte
	account, app, env []byte // machine keys
}

var shared = sync.OnceValues(func() (f fixture, err error) {
	dir, err := os.MkdirTemp("", "ov-fixture-")
	if err != nil {
		return f, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	st := bolt.New(filepath.Join(dir, "vault.db"))
	v := vault.New(st)
	password, err := kek.LockedFrom([]byte(masterPassword))
	if err != nil {
		return f, err
	}
	if err := v.Init(ctx, st.Create, password); err != nil {
		return f, err
	}
	s, err := v.Unlock(ctx, password)
	if err != nil {
		return f, err
	}
	defer s.Destroy()
	var list []vault.Put
	for i := range secretCount {
		list = append(list, vault.Put{Name: nameOf(i), Value: []byte(valueOf(i))})
	}
	for ref, list := range map[vault.Ref][]vault.Put{shop: list, staging: list[:2], other: list[:1]} {
		if _, err := s.Put(ctx, ref, list, vault.PutOptions{Create: true, Note: "set"}); err != nil {
			return f, err
		}
	}
	for ref, into := range map[vault.Ref]*[]byte{{}: &f.account, {App: "shop"}: &f.app, shop: &f.env} {
		key, _, err := s.DeriveMachineKey(ctx, ref, "")
		if err != nil {
			return f, err
		}
		*into = bytes.Clone(key.Bytes())
		key.Destroy()
	}
	f.file, err = os.ReadFile(st.Path())
	return f, err
})

func sharedFixture(t testing.TB) fixture {
	t.Helper()
	f, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func locked(t testing.TB, b []byte) *kek.Locked {
	t.Helper()
	l, err := kek.LockedFrom(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Destroy)
	return l
}

// shortDir is a directory whose files can be sockets: t.TempDir's are too long.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ov-a-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// copyVault writes the shared vault's file into dir.
func copyVault(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "vault.db")
	if err := os.WriteFile(path, sharedFixture(t).file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testAgent is an agent in this process, on a socket of its own, with a copy of
// the shared vault, locked.
type testAgent struct {
	*Server
	socket, path string
	logged       *logBuffer
	stopped      chan struct{} // closed when an RPC asked the agent to end
	ctx          context.Context
}

func newAgent(t testing.TB, change ...func(*Config)) *testAgent {
	t.Helper()
	dir := shortDir(t)
	a := &testAgent{
		socket: filepath.Join(dir, "agent.sock"), path: copyVault(t, dir), logged: &logBuffer{},
		stopped: make(chan struct{}), ctx: t.Context(),
	}
	config := Config{
		Vault: vault.New(bolt.New(a.path)), VaultPath: a.path, Version: "test",
		Log:  slog.New(slog.NewTextHandler(a.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Stop: sync.OnceFunc(func() { close(a.stopped) }),
	}
	for _, f := range change {
		f(&config)
	}
	a.Server = NewServer(config)
	listener, err := peer.Listen(a.socket)
	if err != nil {
		t.Fatal(err)
	}
	a.serve(t, peer.Limit(listener, a.trust, peer.DefaultLimits(), func(_ *peer.Info, why error) {
		a.log.Warn("connection refused", "why", why.Error())
	}))
	return a
}

// serve answers on l until the test ends.
func (a *testAgent) serve(t testing.TB, l net.Listener) {
	g := a.GRPC()
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	ctx, cancel := context.WithCancel(context.Background())
	go a.Run(ctx)
	t.Cleanup(func() {
		cancel()
		g.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("the server ended with: %v", err)
		}
		a.Server.Lock("the test is over")
		if strings.Contains(a.logged.String(), "msg=panic") && !strings.Contains(t.Name(), "Panic") {
			t.Errorf("a handler panicked:\n%s", a.logged)
		}
	})
}

// open unlocks the agent with the account's machine key, which takes no time.
func (a *testAgent) open(t testing.TB) *testAgent {
	t.Helper()
	a.openWith(t, sharedFixture(t).account)
	return a
}

func (a *testAgent) openWith(t testing.TB, key []byte) {
	t.Helper()
	taken, err := kek.LockedFrom(bytes.Clone(key)) // the agent's from here on
	if err != nil {
		t.Fatal(err)
	}
	if err := a.UnlockKey(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
}

func (a *testAgent) client(t testing.TB) *Client { return clientOf(t, a.socket) }

func clientOf(t testing.TB, socket string) *Client {
	t.Helper()
	target, err := peer.Locate(peer.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// reveal returns the values of the names, or of all.
func reveal(t testing.TB, c *Client, ref vault.Ref, names ...string) (map[string]string, error) {
	t.Helper()
	got := map[string]string{}
	err := c.Reveal(t.Context(), ref, vault.Select{Names: names}, func(list []vault.Secret) error {
		for _, secret := range list {
			got[strings.Clone(secret.Name)] = string(bytes.Clone(secret.Value))
		}
		return nil
	})
	return got, err
}

func mustReveal(t testing.TB, c *Client, ref vault.Ref, name, want string) {
	t.Helper()
	got, err := reveal(t, c, ref, name)
	if err != nil {
		t.Fatal(err)
	}
	if got[name] != want {
		t.Fatalf("%s in %s is not what was put there", name, ref)
	}
}

// wait polls until ok, for at most 10 s.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// forms are the shapes in which a secret could be seen: as it is, hex, and
// base64 wherever it starts in a longer text.
func forms(secret string) []string {
	list := []string{secret, hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift, skip := range []int{0, 2, 3} {
			text := enc.EncodeToString([]byte(strings.Repeat("\x00", shift) + secret))
			list = append(list, text[skip:(shift+len(secret))*8/6])
		}
	}
	return list
}

// absent fails the test if one of the secrets is in seen, in any form. The
// control shows that something would be found.
func absent(t testing.TB, where string, seen []byte, control string, secrets ...string) {
	t.Helper()
	if !slices.ContainsFunc(forms(control), func(f string) bool { return bytes.Contains(seen, []byte(f)) }) {
		t.Errorf("%s: the control %q is not there, so the search shows nothing", where, control)
	}
	for _, secret := range secrets {
		for _, form := range forms(secret) {
			if bytes.Contains(seen, []byte(form)) {
				t.Errorf("%s: %q is there, as %q", where, secret, form)
			}
		}
	}
}

// programs builds the programs once, without the race detector: what others
// wait for while the agent is busy is worth knowing of the agent as it is. The
// child "daemon" is the agent with the race detector.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "ov-bin-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // for other accounts
		return dir, err
	}
	cmd := exec.Command("go", "build", "-tags=grpcnotrace", "-buildvcs=false", "-o", dir, "../../cmd/ov", "../../cmd/ov-agent")
	cmd.Env = append(os.Environ(), "GOFLAGS=", "CGO_ENABLED=0")
	if kek.Erasing {
		cmd.Env = append(cmd.Env, "GOEXPERIMENT=runtimesecret")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

var programsUsed atomic.Bool

// program returns the path of ov or ov-agent.
func program(t testing.TB, name string) string {
	t.Helper()
	programsUsed.Store(true)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func removeShared() {
	if programsUsed.Load() {
		if dir, _ := programs(); dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
}

// connectionFate is how a raw connection fared.
type connectionFate struct {
	Connected bool
	Read      int    // bytes that came before it was closed
	Err       string // of the connect
}

// connectRaw connects without looking who listens, greets as an HTTP/2 client
// does, and reads until the other side closes or a second has passed.
func connectRaw(socket string) (fate connectionFate) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		fate.Err = err.Error()
		return fate
	}
	defer func() { _ = c.Close() }()
	fate.Connected = true
	_, _ = c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		fate.Read += n
		if err != nil {
			return fate
		}
	}
}
