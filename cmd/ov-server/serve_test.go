package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// life is a running `ov-server serve`.
type life struct {
	t        *testing.T
	cmd      *exec.Cmd
	data     string
	address  string // of clients
	metrics  string
	log      lockedBuffer
	ended    chan error
	notified chan string // what systemd is told
	token    string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run runs one command and returns its standard output.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("ov-server", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ov-server %q: %v\n%s", args, err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// born starts a server on a new data directory, with an account and an API key.
// wrap may change the command before it starts.
func born(t *testing.T, wrap func(*exec.Cmd), args ...string) *life {
	t.Helper()
	data, err := os.MkdirTemp("", "ovs") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	l := &life{t: t, data: data, ended: make(chan error, 1), notified: make(chan string, 64)}
	run(t, "init", "--data", data)
	l.cmd = exec.Command("ov-server", append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0",
		"--metrics", "127.0.0.1:0", "--log-format", "json"}, args...)...)
	l.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+l.systemd())
	if wrap != nil {
		wrap(l.cmd)
	}
	pipe, err := l.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			_, _ = l.log.Write(append(lines.Bytes(), '\n'))
			var line struct{ Msg, Address, Metrics string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				l.address, l.metrics = line.Address, line.Metrics
				close(serving)
			}
		}
		l.ended <- l.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill()
		_ = os.RemoveAll(data)
		if t.Failed() {
			t.Logf("the server said:\n%s", l.log.String())
		}
	})
	select {
	case <-serving:
	case err := <-l.ended:
		t.Fatalf("the server ended: %v\n%s", err, l.log.String())
	case <-time.After(20 * time.Second):
		t.Fatalf("the server does not serve:\n%s", l.log.String())
	}
	run(t, "account", "create", "test", "--data", data)
	l.token = run(t, "apikey", "create", "--name", "test", "--scope", "admin", "--data", data)
	return l
}

// systemd listens for sd_notify(3).
func (l *life) systemd() string {
	l.t.Helper()
	path := filepath.Join(l.data, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Close() })
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			l.notified <- string(b[:n])
		}
	}()
	return path
}

// told waits until systemd is told something that begins so.
func (l *life) told(begin string) string {
	l.t.Helper()
	for end := time.After(20 * time.Second); ; {
		select {
		case s := <-l.notified:
			if strings.HasPrefix(s, begin) {
				return s
			}
		case <-end:
			l.t.Fatalf("systemd was not told %s", begin)
		}
	}
}

func (l *life) end(s syscall.Signal) {
	l.t.Helper()
	if err := l.cmd.Process.Signal(s); err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) tls() *tls.Config {
	l.t.Helper()
	ca, err := os.ReadFile(filepath.Join(l.data, "tls", "ca.pem"))
	if err != nil {
		l.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

func (l *life) http() *http.Client {
	tr := &http.Transport{TLSClientConfig: l.tls(), ForceAttemptHTTP2: true}
	l.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (l *life) client(h *http.Client) vaultv1connect.VaultClient {
	return vaultv1connect.NewVaultClient(h, "https://"+l.address, connect.WithGRPC(),
		connect.WithInterceptors(authorization("Bearer "+l.token)))
}

// authorization is an interceptor that adds the header.
type authorization string

func (a authorization) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		r.Header().Set("Authorization", string(a))
		return next(ctx, r)
	}
}

func (a authorization) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		c := next(ctx, s)
		c.RequestHeader().Set("Authorization", string(a))
		return c
	}
}

func (a authorization) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (l *life) get(path string) (status int, body string) {
	l.t.Helper()
	res, err := http.Get("http://" + l.metrics + path) //nolint:noctx // a test's
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// began sends the first half of a commit, and returns once the server has it.
func (l *life) began() *connect.ClientStreamForClient[vaultv1.CommitRequest, vaultv1.CommitResponse] {
	l.t.Helper()
	stream := l.client(l.http()).Commit(l.t.Context())
	err := stream.Send(&vaultv1.CommitRequest{Id: []byte("0123456789abcdef"),
		Ops: []*vaultv1.Op{{Key: []byte("d1"), Value: []byte("half")}}})
	if err != nil {
		l.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, metrics := l.get("/metrics"); strings.Contains(metrics, "\nov_server_requests_in_flight 1\n") {
			return stream
		} else if time.Now().After(end) {
			l.t.Fatal("the commit does not arrive")
		}
	}
}

// SIGTERM: not ready any more, no new connections, and what is in flight is
// finished.
func TestDrain(t *testing.T) {
	l := born(t, nil)
	if status, body := l.get("/readyz"); status != http.StatusOK {
		t.Fatalf("not ready: %d %s", status, body)
	}
	ready := l.told("READY=1")
	if !strings.Contains(ready, "STATUS=serving at ") {
		t.Errorf("systemd was told %q", ready)
	}
	stream := l.began()
	l.end(syscall.SIGTERM)
	l.told("STOPPING=1")
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		status, _ := l.get("/readyz")
		c, err := net.Dial("tcp", l.address) //nolint:noctx // a test's
		if err == nil {
			_ = c.Close()
		}
		if status == http.StatusServiceUnavailable && err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("readiness %d, and a new connection: %v", status, err)
		}
	}
	if status, _ := l.get("/livez"); status != http.StatusOK {
		t.Errorf("not alive while it drains: %d", status)
	}
	select {
	case err := <-l.ended:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := stream.Send(&vaultv1.CommitRequest{Ops: []*vaultv1.Op{{Key: []byte("d2"), Value: []byte("whole")}}, End: true, Count: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		t.Fatalf("what was in flight was cut off: %v", err)
	}
	select {
	case err := <-l.ended:
		if err != nil {
			t.Errorf("it ended by %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("it does not end")
	}
	if names, _ := filepath.Glob(l.data + "/*"); strings.Contains(strings.Join(names, " "), "admin.sock") {
		t.Errorf("left: %q", names)
	}
}

// A second SIGTERM ends it at once, whatever is in flight, and the storage is
// whole.
func TestSecondSignal(t *testing.T) {
	l := born(t, nil)
	stream := l.began()
	l.end(syscall.SIGTERM)
	l.told("STOPPING=1")
	l.end(syscall.SIGTERM)
	select {
	case err := <-l.ended:
		var exited *exec.ExitError
		if !errors.As(err, &exited) || exited.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("it ended by %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it does not end at once")
	}
	if _, err := stream.CloseAndReceive(); err == nil {
		t.Error("half a commit is one")
	}
	if out := run(t, "account", "list", "--data", l.data); !strings.Contains(out, " test ") {
		t.Errorf("accounts: %q", out)
	}
}

// SIGHUP: new connections get the new certificate, the old ones go on.
func TestReload(t *testing.T) {
	l := born(t, nil)
	l.told("READY=1")
	h := l.http()
	who := func() error {
		_, err := l.client(h).WhoAmI(t.Context(), connect.NewRequest(&vaultv1.WhoAmIRequest{}))
		return err
	}
	serial := func() string {
		d := tls.Dialer{Config: l.tls()}
		c, err := d.DialContext(t.Context(), "tcp", l.address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	if err := who(); err != nil {
		t.Fatal(err)
	}
	before := serial()
	stream := l.began()
	run(t, "init", "--renew", "--data", l.data)
	if serial() != before {
		t.Error("the certificate changed by itself")
	}
	l.end(syscall.SIGHUP)
	if s := l.told("RELOADING=1"); !strings.Contains(s, "MONOTONIC_USEC=") {
		t.Errorf("systemd was told %q", s)
	}
	l.told("READY=1")
	if serial() == before {
		t.Error("the certificate is the old one")
	}
	if err := who(); err != nil {
		t.Errorf("an open connection: %v", err)
	}
	if err := stream.Send(&vaultv1.CommitRequest{End: true, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		t.Errorf("a commit that was under way: %v", err)
	}

	// What cannot be used is not.
	if err := os.WriteFile(filepath.Join(l.data, "tls", "server.pem"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.end(syscall.SIGHUP)
	l.told("READY=1")
	if err := who(); err != nil {
		t.Error(err)
	}
	serial()
	if !strings.Contains(l.log.String(), "the certificate was not read again") {
		t.Error("nothing is said of a certificate that cannot be used")
	}
}

func TestWatchdog(t *testing.T) {
	l := born(t, func(c *exec.Cmd) { c.Env = append(c.Env, "WATCHDOG_USEC=200000") })
	for range 3 {
		l.told("WATCHDOG=1")
	}
	// A server that does not answer does not say that it does.
	l.end(syscall.SIGSTOP)
	for len(l.notified) > 0 {
		<-l.notified
	}
	time.Sleep(500 * time.Millisecond)
	if n := len(l.notified); n > 1 { // one may have been on the way
		t.Errorf("%d signs of life", n)
	}
	l.end(syscall.SIGCONT)
	l.told("WATCHDOG=1")
}

// A socket that systemd passes is used in place of --listen.
func TestSocketActivation(t *testing.T) {
	socket, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	f, err := socket.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	address := socket.Addr().String()
	l := born(t, func(c *exec.Cmd) {
		argv := strings.Join(c.Args[1:], " ") // plain words
		*c = exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec " + c.Path + " " + argv},
			Env: c.Env, ExtraFiles: []*os.File{f}}
	})
	_ = f.Close()
	_ = socket.Close()
	if l.address != address {
		t.Errorf("it serves at %s, not at %s", l.address, address)
	}
	if _, err := l.client(l.http()).WhoAmI(t.Context(), connect.NewRequest(&vaultv1.WhoAmIRequest{})); err != nil {
		t.Error(err)
	}
}

// The operator's socket is for the server's own account and root, and what is
// not the operator's API is not on it.
func TestOperatorSocket(t *testing.T) {
	l := born(t, nil)
	st, err := os.Stat(filepath.Join(l.data, "admin.sock"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", st.Mode(), err)
	}
	unix := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(l.data, "admin.sock"))
	}}}
	none := &vaultv1.ListAccountsRequest{}
	if _, err := vaultv1connect.NewOperatorClient(unix, "http://x").ListAccounts(t.Context(), connect.NewRequest(none)); err != nil {
		t.Error(err)
	}
	if _, err := vaultv1connect.NewVaultClient(unix, "http://x").WhoAmI(t.Context(), connect.NewRequest(&vaultv1.WhoAmIRequest{})); err == nil {
		t.Error("clients are served on the operator's socket")
	}
	if _, err := vaultv1connect.NewOperatorClient(l.http(), "https://"+l.address).ListAccounts(t.Context(), connect.NewRequest(none)); err == nil {
		t.Error("the operator's API is open to clients")
	}

	if os.Geteuid() != 0 {
		t.Log("not root: no other account to try")
		return
	}
	// Let another account reach the socket: it is still not served.
	for name, mode := range map[string]os.FileMode{l.data: 0o711, filepath.Join(l.data, "admin.sock"): 0o666} {
		if err := os.Chmod(name, mode); err != nil { //nolint:gosec // G302: what is tried
			t.Fatal(err)
		}
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("NOT RUN: no curl to be another account's client")
	}
	for uid, served := range map[uint32]bool{0: true, 65534: false} {
		cmd := exec.Command(curl, "-s", "-m", "10", "--unix-socket", filepath.Join(l.data, "admin.sock"), "http://x/livez")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = "/"
		if out, err := cmd.Output(); served != (string(out) == "ok\n") || served != (err == nil) {
			t.Errorf("uid %d got %q, %v", uid, out, err)
		}
	}
}

// Run by root, the operator's commands act as the owner of the data directory:
// what they make is the server's.
func TestRootActsAsTheServer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: it takes root")
	}
	const uid = 65534
	dir, err := os.MkdirTemp("", "ovs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	run(t, "init", "--data", dir)
	run(t, "account", "create", "test", "--data", dir)
	run(t, "apikey", "create", "--name", "test", "--scope", "admin", "--data", dir)
	run(t, "init", "--renew", "--data", dir)
	found := 0
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		found++
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != uid || owner.Gid != uid {
			t.Errorf("%s belongs to %d:%d", path, owner.Uid, owner.Gid)
		}
		return nil
	})
	if err != nil || found < 7 {
		t.Errorf("%d files, %v", found, err)
	}
}
