package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/opaquevault/ov/pkg/hint"
)

// bench is a machine with accounts and their agents' sockets.
type bench struct {
	t    *testing.T
	dir  string
	file string // the rendezvous
}

func newBench(t *testing.T) *bench {
	needRoot(t)
	dir := openDir(t)
	mkdir(t, dir+"/etc", 0, 0o755)
	return &bench{t, dir, dir + "/etc/agent.socket"}
}

// names has the rendezvous name a socket.
func (b *bench) names(socket string) {
	b.t.Helper()
	if err := os.WriteFile(b.file, []byte(socket+"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// runs makes a directory like RuntimeDirectory= of a service that runs as uid,
// with its agent.
func (b *bench) runs(name string, uid int, mode os.FileMode) (socket string) {
	b.t.Helper()
	socket = mkdir(b.t, filepath.Join(b.dir, name), uid, mode) + "/s"
	spawn(b.t, b.dir+"/caller", uid, nil, "listen", socket).expect("listening")
	return socket
}

// runtimeDir makes uid's $XDG_RUNTIME_DIR, and in it an agent if that is asked.
func (b *bench) runtimeDir(name string, uid int, agent bool) (dir, socket string) {
	b.t.Helper()
	dir = mkdir(b.t, filepath.Join(b.dir, name), uid, 0o700)
	socket = dir + "/ov-agent/ov-agent.sock"
	if agent {
		spawn(b.t, b.dir+"/caller", uid, nil, "listen", socket).expect("listening")
	}
	return dir, socket
}

// locate has uid look for its agent and connect to it.
func (b *bench) locate(uid int, socket, runtimeDir string) located {
	b.t.Helper()
	args := asJSON(locateArgs{Socket: socket, Rendezvous: b.file, RunUser: b.dir + "/run-user", Dial: true})
	var env []string
	if runtimeDir != "" {
		env = []string{"XDG_RUNTIME_DIR=" + runtimeDir}
	}
	var r located
	if err := json.Unmarshal([]byte(spawn(b.t, b.dir+"/caller", uid, env, "locate", args).line()), &r); err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) finds(r located, socket string, source Source) {
	b.t.Helper()
	if r.Error != "" || r.Socket != socket || r.Source != source {
		b.t.Errorf("found %s from %q, error %q; want %s from %q", r.Socket, r.Source, r.Error, socket, source)
	}
}

func (b *bench) fails(r located, kind string, text ...string) {
	b.t.Helper()
	if r.Type != kind {
		b.t.Errorf("found %q, error %s %q; want %s", r.Socket, r.Type, r.Error, kind)
	}
	for _, text := range text {
		if !strings.Contains(r.Error, text) {
			b.t.Errorf("error %q does not have %q", r.Error, text)
		}
	}
	if r.Hint == "" {
		b.t.Errorf("no hint with %q", r.Error)
	}
}

func TestLocateOrder(t *testing.T) {
	b := newBench(t)
	flag := b.runs("flag", alice, 0o755)
	service := b.runs("service", alice, 0o755)
	runtime, own := b.runtimeDir("runtime", alice, true)
	b.finds(b.locate(alice, "", runtime), own, FromRuntimeDir)
	b.names(service)
	b.finds(b.locate(alice, "", runtime), service, FromRendezvous)
	b.finds(b.locate(alice, flag, runtime), flag, FromFlag)
}

func TestLocateWithoutVariable(t *testing.T) {
	b := newBench(t)
	mkdir(t, b.dir+"/run-user", 0, 0o755)
	b.fails(b.locate(alice, "", ""), "NotRunning")
	_, own := b.runtimeDir(fmt.Sprintf("run-user/%d", alice), alice, true)
	b.finds(b.locate(alice, "", ""), own, FromRuntimeDir)
	// One that is another's is none.
	mkdir(t, fmt.Sprintf("%s/run-user/%d", b.dir, bob), alice, 0o755)
	b.fails(b.locate(bob, "", ""), "NotRunning")
}

// An unsafe rendezvous, or an agent that it names and that is down, is final:
// whoever could bring that about must not be able to choose another agent.
func TestNoFallingThrough(t *testing.T) {
	b := newBench(t)
	service := b.runs("service", alice, 0o755)
	runtime, _ := b.runtimeDir("runtime", alice, true)

	for name, spoil := range map[string]func(){
		"writable by others": func() { b.names(service); must(t, os.Chmod(b.file, 0o666)) },
		"another's":          func() { b.names(service); must(t, os.Chown(b.file, alice, -1)) },
		"symbolic link":      func() { must(t, os.Symlink(b.dir+"/elsewhere", b.file)) },
		"empty":              func() { must(t, os.WriteFile(b.file, nil, 0o644)) },
		"relative":           func() { b.names("run/s") },
		"directory":          func() { must(t, os.Mkdir(b.file, 0o755)) },
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			if r := b.locate(alice, "", runtime); r.Error == "" || r.Type == "NotRunning" {
				t.Errorf("found %s, error %q", r.Socket, r.Error)
			}
			must(t, os.RemoveAll(b.file))
		})
	}
	t.Run("agent is down", func(t *testing.T) {
		b.names(b.dir + "/gone/s")
		b.fails(b.locate(alice, "", runtime), "NotRunning", b.dir+"/gone/s", b.file)
	})
	t.Run("agent was killed", func(t *testing.T) {
		socket := mkdir(t, b.dir+"/killed", alice, 0o755) + "/s"
		c := spawn(t, b.dir+"/caller", alice, nil, "listen", socket)
		c.expect("listening")
		c.kill()
		b.names(socket)
		b.fails(b.locate(alice, "", runtime), "NotRunning", socket)
	})
	t.Run("flag", func(t *testing.T) {
		b.names(service)
		b.fails(b.locate(alice, b.dir+"/nothing", runtime), "NotRunning", b.dir+"/nothing")
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnothersAgent(t *testing.T) {
	b := newBench(t)
	service := b.runs("service", alice, 0o755)
	b.names(service)

	runtime, own := b.runtimeDir("bob", bob, false)
	r := b.locate(bob, "", runtime)
	b.fails(r, "NotRunning", own, service, b.file)

	// Killed, it leaves a socket, and is not running either.
	c := spawn(t, b.dir+"/caller", bob, nil, "listen", own)
	c.expect("listening")
	c.kill()
	b.fails(b.locate(bob, "", runtime), "NotRunning", own, service, b.file)
	b.fails(b.locate(bob, "", ""), "NotRunning", service, b.file)

	spawn(t, b.dir+"/caller", bob, nil, "listen", own).expect("listening")
	r = b.locate(bob, "", runtime)
	b.finds(r, own, FromRuntimeDir)
	if r.Other != service {
		t.Errorf("passed over %q, want %q", r.Other, service)
	}

	// Also when the service is down, as long as its directory shows whose it is.
	must(t, os.Remove(service))
	b.finds(b.locate(bob, "", runtime), own, FromRuntimeDir)
	b.fails(b.locate(alice, "", ""), "NotRunning", service)

	// Named by a flag, there is nothing to fall back to.
	service = b.runs("service2", alice, 0o755)
	b.fails(b.locate(bob, service, runtime), "OtherAccount", service)

	// Root may use any.
	r = b.locate(0, service, "")
	b.finds(r, service, FromFlag)
	if fmt.Sprint(r.Trust) != fmt.Sprint(Trust{0, alice}) || r.Owner != alice {
		t.Errorf("root trusts %v at a socket of %d", r.Trust, r.Owner)
	}
	b.names(service)
	b.finds(b.locate(0, "", ""), service, FromRendezvous)
}

// A place where someone else could have put the socket is refused, and so is
// a socket that someone else listens on.
func TestPlanted(t *testing.T) {
	b := newBench(t)
	theirs := b.runs("real", alice, 0o755)

	t.Run("symbolic link to a socket", func(t *testing.T) {
		dir, socket := b.runtimeDir("link", alice, false)
		mkdir(t, filepath.Dir(socket), alice, 0o700)
		must(t, os.Symlink(theirs, socket))
		b.fails(b.locate(alice, "", dir), "Unsafe", "symbolic link")
		b.fails(b.locate(alice, socket, ""), "Unsafe", "symbolic link")
	})
	t.Run("file", func(t *testing.T) {
		dir, socket := b.runtimeDir("file", alice, false)
		mkdir(t, filepath.Dir(socket), alice, 0o700)
		must(t, os.WriteFile(socket, nil, 0o600))
		b.fails(b.locate(alice, "", dir), "Unsafe", "not a socket")
	})
	t.Run("own directory is open", func(t *testing.T) {
		dir, socket := b.runtimeDir("open", alice, true)
		for _, mode := range []os.FileMode{0o777, 0o770, 0o750, 0o711} {
			must(t, os.Chmod(filepath.Dir(socket), mode))
			b.fails(b.locate(alice, "", dir), "Unsafe", filepath.Dir(socket))
		}
	})
	t.Run("own directory is another's", func(t *testing.T) {
		dir := mkdir(t, b.dir+"/theirs", bob, 0o755)
		mkdir(t, dir+"/ov-agent", bob, 0o755)
		spawn(t, b.dir+"/caller", bob, nil, "listen", dir+"/ov-agent/ov-agent.sock").expect("listening")
		if r := b.locate(alice, "", dir); r.Type != "Unsafe" && r.Type != "OtherAccount" {
			t.Errorf("found %s: %s", r.Socket, r.Error)
		}
		// Not even by root, when only a variable says so.
		if r := b.locate(0, "", dir); r.Type != "Unsafe" {
			t.Errorf("root found %s: %s", r.Socket, r.Error)
		}
	})
	t.Run("variable is relative", func(t *testing.T) {
		if r := b.locate(alice, "", "run"); r.Error == "" || r.Hint == "" {
			t.Errorf("found %s", r.Socket)
		}
	})
	t.Run("rendezvous leads to an open directory", func(t *testing.T) {
		for i, mode := range []os.FileMode{0o777, 0o777 | os.ModeSticky, 0o775} {
			socket := b.runs(fmt.Sprintf("open%d", i), alice, 0o755)
			must(t, os.Chmod(filepath.Dir(socket), mode))
			b.names(socket)
			b.fails(b.locate(alice, "", ""), "Unsafe", "others")
			b.fails(b.locate(0, "", ""), "Unsafe", "others")
			must(t, os.Remove(b.file))
		}
	})
	// The service's directory is gone and the one above is open to all: what
	// bob put there must not pass for the service account's, not even for root.
	t.Run("planted where the service is down", func(t *testing.T) {
		shared := mkdir(t, b.dir+"/shared", 0, 0o777|os.ModeSticky)
		socket := mkdir(t, shared+"/ov-agent", bob, 0o755) + "/s"
		spawn(t, b.dir+"/caller", bob, nil, "listen", socket).expect("listening")
		b.names(socket)
		b.fails(b.locate(0, "", ""), "Unsafe", shared)
		b.fails(b.locate(alice, "", ""), "Unsafe", shared)
		must(t, os.Remove(b.file))
		b.fails(b.locate(0, socket, ""), "Unsafe", shared)
		// One's own in such a place is fine: it is not trusted for its place.
		mine := mkdir(t, shared+"/mine", alice, 0o700) + "/s"
		spawn(t, b.dir+"/caller", alice, nil, "listen", mine).expect("listening")
		b.finds(b.locate(alice, mine, ""), mine, FromFlag)
	})
	t.Run("directory of a third account", func(t *testing.T) {
		socket := b.runs("third", alice, 0o755)
		must(t, os.Chown(filepath.Dir(socket), bob, -1))
		b.fails(b.locate(alice, socket, ""), "Unsafe", "owned by")
		b.fails(b.locate(0, socket, ""), "Unsafe", "owned by")
	})
	// The path looks right in every way, but bob listens.
	t.Run("another account listens", func(t *testing.T) {
		socket := b.runs("impostor", bob, 0o755)
		must(t, os.Chown(filepath.Dir(socket), alice, -1))
		must(t, os.Chown(socket, alice, -1))
		r := b.locate(alice, socket, "")
		if r.Type != "Untrusted" || !strings.Contains(r.Error, fmt.Sprint(bob)) {
			t.Errorf("found %s: %s %q", r.Socket, r.Type, r.Error)
		}
	})
}

// A symbolic link that root made on the way, as /var/run is one, is followed.
func TestRootsSymlink(t *testing.T) {
	b := newBench(t)
	b.runs("real", alice, 0o755)
	must(t, os.Symlink(b.dir+"/real", b.dir+"/link"))
	b.names(b.dir + "/link/s")
	b.finds(b.locate(alice, "", ""), b.dir+"/link/s", FromRendezvous)
	b.finds(b.locate(0, "", ""), b.dir+"/link/s", FromRendezvous)
	must(t, os.Lchown(b.dir+"/link", bob, -1))
	b.fails(b.locate(alice, "", ""), "Unsafe", "symbolic link")
}

// systemd, as root, listens for a service that it starts on demand.
func TestSystemdListens(t *testing.T) {
	b := newBench(t)
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("not run: no systemd-socket-activate (systemd)")
	}
	socket := b.dir + "/s"
	cmd := exec.Command(activate, "-l", socket, "/bin/cat")
	cmd.Stderr = io.Discard // it tells what it does
	spawnCmd(t, cmd, 0, nil)
	eventually(t, func() error { _, err := os.Lstat(socket); return err })
	must(t, os.Chmod(socket, 0o666))
	r := b.locate(alice, socket, "")
	b.finds(r, socket, FromFlag)
}

func TestConnect(t *testing.T) {
	dir := openDir(t)
	first := serve(t, dir+"/d/s", DefaultLimits())
	target, err := Locate(Options{Socket: first.socket})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := target.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	check := func() error {
		_, err := grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		return err
	}
	for range 3 {
		if err := check(); err != nil {
			t.Fatal(err)
		}
	}
	if n := first.connections(anybody); n != 1 {
		t.Errorf("%d connections for one client", n)
	}
	// It breaks, and the next call dials again.
	first.limiter.mu.Lock()
	var broken []*conn
	for c := range first.limiter.conns {
		broken = append(broken, c)
	}
	first.limiter.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
	eventually(t, check)

	_, err = Target{Socket: dir + "/nothing"}.Connect(t.Context())
	var notRunning *NotRunning
	if !errors.As(err, &notRunning) {
		t.Errorf("where there is no agent: %v", err)
	}
}

// A full queue refuses at once; the client waits for its place.
func TestDialWaitsForPlace(t *testing.T) {
	dir := openDir(t)
	l, err := Listen(dir + "/s")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	fillQueue(t, l.UnixListener, dir+"/s")
	go func() {
		time.Sleep(100 * time.Millisecond)
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	c, err := Target{Socket: dir + "/s"}.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestOnlyUnixSockets(t *testing.T) {
	b := bufconn.Listen(1 << 10)
	defer func() { _ = b.Close() }()
	go func() { _, _ = b.Accept() }()
	c, err := b.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ServerCredentials().ServerHandshake(c); err == nil {
		t.Error("a server takes what is no Unix socket")
	}
	if _, _, err := ClientCredentials(OwnOrRoot()).ClientHandshake(t.Context(), "", c); err == nil {
		t.Error("a client takes what is no Unix socket")
	}
	// Nor one that nobody has counted.
	socket := openDir(t) + "/s"
	l := listenOpen(t, socket)
	d, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if _, _, err := ServerCredentials().ServerHandshake(accept(t, l)); err == nil {
		t.Error("a server takes what Limit has not accepted")
	}
	p, q := net.Pipe()
	defer func() { _, _ = p.Close(), q.Close() }()
	if _, _, err := ServerCredentials().ClientHandshake(t.Context(), "", p); err == nil {
		t.Error("the server's credentials serve a client")
	}
	if _, _, err := ClientCredentials(OwnOrRoot()).ServerHandshake(p); err == nil {
		t.Error("the client's credentials serve a server")
	}
}

func TestOwnSocket(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if got, err := OwnSocket(); err != nil || got != dir+"/ov-agent/ov-agent.sock" {
		t.Errorf("%s, %v", got, err)
	}
	must(t, os.Mkdir(dir+"/ov-agent", 0o700))
	if _, err := OwnSocket(); err != nil {
		t.Error(err)
	}
	must(t, os.Chmod(dir+"/ov-agent", 0o755))
	if got, err := OwnSocket(); err == nil || hint.Of(err) != "chmod 700 "+dir+"/ov-agent" {
		t.Errorf("in an open directory: %s, %v, hint %q", got, err, hint.Of(err))
	}
	for _, bad := range []string{"relative", "/" + strings.Repeat("x", MaxSocketPath)} {
		t.Setenv("XDG_RUNTIME_DIR", bad)
		if got, err := OwnSocket(); err == nil {
			t.Errorf("%s: %s", bad, got)
		}
	}
}
