package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// The tests' other processes are this test binary, told by childVariable what
// to be. Each prints lines for the test to wait for, and ends with its input.
const childVariable = "PEER_TEST_CHILD"

var isRoot = os.Geteuid() == 0

// Accounts that need not exist: only the numbers matter to the kernel.
const alice, bob = 4242, 4243

func TestMain(m *testing.M) {
	if mode := os.Getenv(childVariable); mode != "" {
		if err := beChild(mode, os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beChild(mode string, args []string) error {
	stdin := bufio.NewReader(os.Stdin)
	wait := func() { _, _ = stdin.ReadString('\n') }
	switch mode {
	case "connect": // SOCKET N: open N connections, say nothing over them
		n, _ := strconv.Atoi(args[1])
		var conns []net.Conn
		for len(conns) < n {
			c, err := net.Dial("unix", args[0])
			if errors.Is(err, syscall.EAGAIN) {
				time.Sleep(time.Millisecond)
				continue
			} else if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		fmt.Println("connected")
		wait()
		for _, c := range conns {
			_ = c.Close()
		}

	case "hidden": // SOCKET: connect as a process that is not dumpable
		if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, 4 /* PR_SET_DUMPABLE */, 0, 0); e != 0 {
			return e
		}
		return beChild("connect", append(args, "1"))

	case "handover": // SOCKET: connect, give the connection to another process, and end
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		f, err := c.(*net.UnixConn).File()
		if err != nil {
			return err
		}
		heir := exec.Command("/proc/self/exe")
		heir.Env = []string{childVariable + "=heir"}
		heir.ExtraFiles = []*os.File{f}
		if err := heir.Start(); err != nil {
			return err
		}
		fmt.Println("connected")
		wait()

	case "heir": // holds the connection, descriptor 3, while the server does
		_, _ = os.NewFile(3, "connection").Read(make([]byte, 10))

	case "sit":
		wait()

	case "exec": // SOCKET PROGRAM: connect, then become another program
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		f, _ := c.(*net.UnixConn).File()
		if _, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_SETFD, 0); e != 0 {
			return e
		}
		fmt.Println("connected")
		wait()
		fmt.Println("becoming another")
		return syscall.Exec(args[1], args[1:], nil)

	case "setuid": // SOCKET UID: connect, then change account
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		fmt.Println("connected")
		wait()
		uid, _ := strconv.Atoi(args[1])
		if err := syscall.Setresuid(uid, uid, uid); err != nil {
			return err
		}
		fmt.Println("changed")
		wait()

	case "observe": // SOCKET RUNG: identify one caller, then ask again per line
		kernel = kernels[args[1]]
		l, err := Listen(args[0])
		if err != nil {
			return err
		}
		if err := os.Chmod(args[0], 0o666); err != nil {
			return err
		}
		fmt.Println("listening")
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		info, err := identify(c)
		if err != nil {
			return err
		}
		fmt.Println(asJSON(observed{info.UID, info.PID, info.Exe, info.Unit, OwnOrRoot().Has(info.UID)}))
		for {
			if _, err := stdin.ReadString('\n'); err != nil {
				return nil
			}
			fmt.Println("alive:", info.Alive())
		}

	case "listen": // SOCKET: be an agent, as far as its socket goes
		l, err := Listen(args[0])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					return
				}
			}
		}()
		wait()
		return l.Close()

	case "inherited":
		l, err := Inherited()
		if err != nil {
			return err
		}
		if os.Getenv("LISTEN_FDS") != "" || os.Getenv("LISTEN_PID") != "" {
			return errors.New("the variables are still there")
		}
		fmt.Println("inherited", l.Socket())
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = c.Close()
		fmt.Println("accepted")
		return l.Close()

	case "health": // SOCKET SECONDS: ask the agent how it is, as `ov` would
		seconds, _ := strconv.Atoi(args[1])
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
		defer cancel()
		cc, err := Target{Socket: args[0], Source: FromFlag}.Connect(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = cc.Close() }()
		r, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		fmt.Println(r.Status)

	case "locate": // OPTIONS
		var o locateArgs
		if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
			return err
		}
		t, err := Locate(Options{Socket: o.Socket, Rendezvous: o.Rendezvous, runUser: o.RunUser})
		r := located{Target: t}
		if err == nil && o.Dial {
			var c net.Conn
			if c, err = t.Dial(context.Background()); err == nil {
				_ = c.Close()
			}
		}
		if err != nil {
			r.Error, r.Hint = err.Error(), hint.Of(err)
			var notRunning *NotRunning
			var other *OtherAccount
			var untrusted *Untrusted
			var unsafe *safefile.Unsafe
			switch {
			case errors.As(err, &notRunning):
				r.Type = "NotRunning"
			case errors.As(err, &other):
				r.Type = "OtherAccount"
			case errors.As(err, &untrusted):
				r.Type = "Untrusted"
			case errors.As(err, &unsafe):
				r.Type = "Unsafe"
			}
		}
		fmt.Println(asJSON(r))

	default:
		return fmt.Errorf("unknown child %q", mode)
	}
	return nil
}

// identify is what Limit does to know a caller.
func identify(c *net.UnixConn) (*Info, error) {
	info, err := credentialsOf(c)
	if err == nil {
		err = info.identify(c)
	}
	if err != nil {
		return nil, err
	}
	return info, nil
}

type observed struct {
	UID       uint32
	PID       int32
	Exe, Unit string
	Trusted   bool
}

type locateArgs struct {
	Socket, Rendezvous, RunUser string
	Dial                        bool
}

type located struct {
	Target
	Type, Error, Hint string
}

func asJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// openDir returns a new directory that every account can enter and, for root,
// that lies in no directory that others can write. It holds a copy of the test
// binary, which `go test` keeps where only its own account can reach it.
func openDir(t testing.TB) string {
	t.Helper()
	base := ""
	if isRoot {
		base = "/run"
	}
	dir, err := os.MkdirTemp(base, "peer-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	copyExe(t, filepath.Join(dir, "caller"))
	return dir
}

func copyExe(t testing.TB, to string) {
	t.Helper()
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

// mkdir makes a directory with exactly this owner and mode.
func mkdir(t testing.TB, dir string, uid int, mode os.FileMode) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// spawn starts exe as a child of the given mode, as the account uid.
func spawn(t testing.TB, exe string, uid int, env []string, mode string, args ...string) *child {
	t.Helper()
	return spawnCmd(t, exec.Command(exe, args...), uid, append(env, childVariable+"="+mode))
}

func spawnCmd(t testing.TB, cmd *exec.Cmd, uid int, env []string) *child {
	t.Helper()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if uid != os.Geteuid() {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(c.kill)
	return c
}

// line returns the next line that the child prints.
func (c *child) line() string {
	c.t.Helper()
	type result struct {
		s   string
		err error
	}
	got := make(chan result, 1)
	go func() {
		s, err := c.out.ReadString('\n')
		got <- result{strings.TrimSuffix(s, "\n"), err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			c.t.Fatalf("child said %q and then: %v", r.s, r.err)
		}
		return r.s
	case <-time.After(30 * time.Second):
		c.t.Fatal("child says nothing")
	}
	return ""
}

func (c *child) expect(want string) {
	c.t.Helper()
	if got := c.line(); got != want {
		c.t.Fatalf("child said %q, want %q", got, want)
	}
}

func (c *child) say() {
	c.t.Helper()
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) pid() int32 { return int32(c.cmd.Process.Pid) }

// end has the child end by itself, and reaps it.
func (c *child) end() {
	c.t.Helper()
	c.say()
	if _, err := c.cmd.Process.Wait(); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends the child and reaps it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

// needRoot skips a test that has to be several accounts.
func needRoot(t testing.TB) {
	t.Helper()
	if !isRoot {
		t.Skip("not run: only root can start processes of other accounts")
	}
}

// accounts are the uids that callers can have here.
func accounts() []int {
	if isRoot {
		return []int{0, alice}
	}
	return []int{os.Geteuid()}
}

// listenOpen listens on a socket that every account may connect to.
func listenOpen(t testing.TB, socket string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return l
}

func accept(t testing.TB, l *net.UnixListener) *net.UnixConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(30 * time.Second))
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
