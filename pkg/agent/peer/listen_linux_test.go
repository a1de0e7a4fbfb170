package peer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

func TestListen(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	socket := filepath.Join(openDir(t), "ov-agent", "ov-agent.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if mask := unix.Umask(0); mask != 0 {
		t.Errorf("umask is %o afterwards", mask)
	}
	for file, want := range map[string]fs.FileMode{
		socket:               fs.ModeSocket | 0o600,
		socket + ".lock":     0o600,
		filepath.Dir(socket): fs.ModeDir | 0o700,
	} {
		info, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", file, info.Mode(), want)
		}
	}
	raw, _ := l.SyscallConn()
	_ = raw.Control(func(fd uintptr) {
		for _, fd := range []uintptr{fd, l.lock.Fd()} {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor would be inherited: flags %x, %v", flags, err)
			}
		}
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
	if _, err := os.Lstat(socket + ".lock"); err != nil {
		t.Errorf("lock after Close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	again, err := Listen(socket)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	_ = again.Close()
}

func TestOneAgentPerSocket(t *testing.T) {
	dir := openDir(t)
	socket := filepath.Join(dir, "d", "s")
	first := spawn(t, dir+"/caller", os.Geteuid(), nil, "listen", socket)
	first.expect("listening")
	_, err := Listen(socket)
	if !errors.Is(err, ErrAlreadyRunning) || !strings.Contains(err.Error(), fmt.Sprint(first.pid())) || hint.Of(err) == "" {
		t.Errorf("%v, want ErrAlreadyRunning with the pid %d, and a hint", err, first.pid())
	}

	// Even when someone has taken the socket away.
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(socket); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("without its socket: %v", err)
	}

	// Killed, it leaves the lock file and, but for the above, the socket.
	first.kill()
	second := spawn(t, dir+"/caller", os.Geteuid(), nil, "listen", socket)
	second.expect("listening")
	second.kill()
	if info, err := os.Lstat(socket); err != nil || info.Mode().Type() != fs.ModeSocket {
		t.Fatalf("no stale socket to test with: %v", err)
	}
	third, err := Listen(socket)
	if err != nil {
		t.Fatalf("with a stale socket: %v", err)
	}
	defer func() { _ = third.Close() }()
	if c, err := net.Dial("unix", socket); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
}

// Agents that start at the same instant over a stale socket: one gets it.
func TestRaceToListen(t *testing.T) {
	dir := openDir(t)
	socket := filepath.Join(dir, "s")
	stale := spawn(t, dir+"/caller", os.Geteuid(), nil, "listen", socket)
	stale.expect("listening")
	stale.kill()
	var all []*child
	for range 12 {
		all = append(all, spawn(t, dir+"/caller", os.Geteuid(), nil, "listen", socket))
	}
	won := 0
	for _, c := range all {
		switch line := c.line(); {
		case line == "listening":
			won++
		case !strings.Contains(line, ErrAlreadyRunning.Error()):
			t.Errorf("a loser says %q", line)
		}
	}
	if won != 1 {
		t.Errorf("%d agents listen", won)
	}
}

func TestSomethingElseListens(t *testing.T) {
	dir := openDir(t)
	socket := filepath.Join(dir, "s")
	l := listenOpen(t, socket) // without the lock, as systemd does
	before, _ := os.Lstat(socket)
	if _, err := Listen(socket); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("%v, want ErrAlreadyRunning", err)
	}
	if after, err := os.Lstat(socket); err != nil || !os.SameFile(before, after) {
		t.Errorf("the socket was touched: %v", err)
	}
	// With a full queue connect(2) is refused with EAGAIN, which is no sign
	// that nobody listens.
	fillQueue(t, l, socket)
	if _, err := Listen(socket); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("with a full queue: %v, want ErrAlreadyRunning", err)
	}
}

func fillQueue(t *testing.T, l *net.UnixListener, socket string) {
	t.Helper()
	raw, _ := l.SyscallConn()
	_ = raw.Control(func(fd uintptr) { _ = unix.Listen(int(fd), 0) })
	for range 8 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); errors.Is(err, unix.EAGAIN) {
			return
		}
	}
	t.Fatal("the queue does not fill up")
}

func TestCloseLeavesWhatIsNotItsOwn(t *testing.T) {
	socket := filepath.Join(openDir(t), "s")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(socket, socket+".moved"); err != nil {
		t.Fatal(err)
	}
	listenOpen(t, socket)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := openDir(t)
	self := os.Geteuid()
	open := mkdir(t, dir+"/open", self, 0o777)
	sticky := mkdir(t, dir+"/sticky", self, 0o777|fs.ModeSticky)
	group := mkdir(t, dir+"/group", self, 0o770)
	plain := mkdir(t, dir+"/plain", self, 0o700) + "/s"
	if err := os.WriteFile(plain, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := mkdir(t, dir+"/link", self, 0o700) + "/s"
	listenOpen(t, dir+"/elsewhere")
	if err := os.Symlink(dir+"/elsewhere", link); err != nil {
		t.Fatal(err)
	}
	lockLink := mkdir(t, dir+"/locklink", self, 0o700) + "/s"
	if err := os.Symlink(plain, lockLink+".lock"); err != nil {
		t.Fatal(err)
	}
	fifo := mkdir(t, dir+"/fifo", self, 0o700) + "/s"
	if err := unix.Mkfifo(fifo+".lock", 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		socket string
		unsafe bool
		text   string
	}{
		"relative":             {"ov-agent.sock", false, "not an absolute path"},
		"abstract":             {"@ov-agent", false, "not an absolute path"},
		"too long":             {dir + "/" + strings.Repeat("x", MaxSocketPath), false, "bytes long"},
		"no parent":            {dir + "/a/b/s", false, "no such file"},
		"open directory":       {open + "/s", true, "others can write"},
		"sticky directory":     {sticky + "/s", true, "others"},
		"group's directory":    {group + "/s", true, "others can write"},
		"below open directory": {open + "/d/s", true, "others can write"},
		"plain file":           {plain, true, "not a socket"},
		"symbolic link":        {link, true, "not a socket"},
		"lock is a link":       {lockLink, false, "lock"},
		"lock is a pipe":       {fifo, true, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Listen(test.socket)
			if err == nil {
				_ = l.Close()
				t.Fatal("no error")
			}
			var unsafe *safefile.Unsafe
			if !strings.Contains(err.Error(), test.text) || errors.As(err, &unsafe) != test.unsafe {
				t.Errorf("%v; want %q, *safefile.Unsafe: %v", err, test.text, test.unsafe)
			}
			if test.unsafe && hint.Of(err) == "" {
				t.Errorf("no hint with: %v", err)
			}
		})
	}
	if b, err := os.ReadFile(plain); err != nil || string(b) != "precious" {
		t.Errorf("a file was harmed: %q, %v", b, err)
	}
	if isRoot {
		theirs := mkdir(t, dir+"/theirs", alice, 0o700)
		caller := spawn(t, dir+"/caller", bob, nil, "listen", theirs+"/s")
		if got := caller.line(); !strings.HasPrefix(got, "error:") {
			t.Errorf("in another account's directory: %s", got)
		}
	}
}

func TestLongestPath(t *testing.T) {
	dir := openDir(t)
	socket := dir + "/" + strings.Repeat("x", MaxSocketPath-len(dir)-1)
	l, err := Listen(socket)
	if err != nil {
		t.Fatalf("%d bytes: %v", len(socket), err)
	}
	defer func() { _ = l.Close() }()
	c, err := Target{Socket: socket}.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestSocketActivation(t *testing.T) {
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("not run: no systemd-socket-activate (systemd)")
	}
	dir := openDir(t)
	socket := dir + "/s"
	cmd := exec.Command(activate, "-l", socket, "-E", childVariable+"=inherited", dir+"/caller")
	cmd.Stderr = io.Discard // it tells what it does
	agent := spawnCmd(t, cmd, os.Geteuid(), nil)
	dialUntil(t, socket)
	agent.expect("inherited " + socket)
	agent.expect("accepted")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}

func TestInherited(t *testing.T) {
	dir := openDir(t)
	good := listenOpen(t, dir+"/good")
	goodFile, err := good.File()
	if err != nil {
		t.Fatal(err)
	}
	connected, err := net.Dial("unix", dir+"/good")
	if err != nil {
		t.Fatal(err)
	}
	connectedFile, _ := connected.(*net.UnixConn).File()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcpFile, _ := tcp.(*net.TCPListener).File()
	abstract, err := net.Listen("unix", "@peer-test-"+filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	abstractFile, _ := abstract.(*net.UnixListener).File()
	packet, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: dir + "/packet", Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	packetFile, _ := packet.File()
	plain, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		files []*os.File
		want  string
	}{
		"none":      {nil, ErrNotInherited.Error()},
		"a socket":  {[]*os.File{goodFile}, "inherited " + dir + "/good"},
		"two":       {[]*os.File{goodFile, goodFile}, "passed 2 sockets"},
		"connected": {[]*os.File{connectedFile}, "not a listening socket"},
		"a file":    {[]*os.File{plain}, "not a listening socket"},
		"TCP":       {[]*os.File{tcpFile}, "no Unix stream socket with a path"},
		"abstract":  {[]*os.File{abstractFile}, "no Unix stream socket with a path"},
		"sequenced": {[]*os.File{packetFile}, "no Unix stream socket with a path"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, dir+"/caller")
			cmd.ExtraFiles = test.files
			env := []string{childVariable + "=inherited"}
			if test.files != nil {
				env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(test.files)))
			}
			if got := spawnCmd(t, cmd, os.Geteuid(), env).line(); !strings.Contains(got, test.want) {
				t.Errorf("child says %q, want %q", got, test.want)
			}
		})
	}
}

// dialUntil connects as soon as something listens.
func dialUntil(t *testing.T, socket string) {
	t.Helper()
	eventually(t, func() error {
		c, err := net.Dial("unix", socket)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	})
}
