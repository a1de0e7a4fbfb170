//go:build systemd && linux

package systemdtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// A machine is a booted Debian. A second process, the supervisor, owns its
// mounts and its nspawn: it ends them when this one is gone, however it went.
type machine struct {
	t      *testing.T
	dir    string // scratch: overlay, boot log, lock
	tell   io.WriteCloser
	events chan string     // "up PID", "down STATUS", from the supervisor
	leader int             // PID 1 of the machine, as seen from here; 0 when off
	said   strings.Builder // what was run and printed, for a test that fails
}

// bootWait bounds one boot; it takes about a second.
const bootWait = 60 * time.Second

// boot starts a machine with a user "deploy" who may sudo without a password.
func boot(t *testing.T) *machine {
	t.Helper()
	base := needReal(t)
	dir, err := os.MkdirTemp(runsDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, events: make(chan string, 16)}
	m.supervise(base)
	m.bootUp()
	m.must("root", `useradd --create-home --shell /bin/bash deploy
		echo 'deploy ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/deploy
		echo '127.0.0.1 localhost ov-test' >/etc/hosts; echo ov-test >/etc/hostname; hostname ov-test`)
	return m
}

// supervise starts the supervisor: this test program over again, see TestMain.
func (m *machine) supervise(base string) {
	m.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), superviseEnv+"="+m.dir, superviseBaseEnv+"="+base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.tell = in
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			m.events <- s.Text()
		}
		close(m.events)
	}()
	t := m.t // not that of a subtest
	t.Cleanup(func() {
		m.t = t
		if t.Failed() {
			t.Logf("what was run:\n%s", m.said.String())
			m.logState()
		}
		_ = in.Close() // the supervisor cleans up and exits
		go func() {
			for range m.events { // let its reader go on
			}
		}()
		<-read
		if err := cmd.Wait(); err != nil {
			m.t.Errorf("supervisor: %v", err)
		}
	})
}

func (m *machine) logState() {
	if m.leader != 0 {
		out, _ := m.enter("journalctl", "--no-pager", "-q", "-n", "100").CombinedOutput()
		m.t.Logf("journal:\n%s", out)
	}
	if b, err := os.ReadFile(filepath.Join(m.dir, "boot.log")); err == nil {
		m.t.Logf("end of the boot log:\n%s", b[max(0, len(b)-4000):])
	}
}

// event waits for the supervisor's next event, which must begin with want, and
// returns its number.
func (m *machine) event(want string) int {
	m.t.Helper()
	select {
	case e, ok := <-m.events:
		verb, arg, _ := strings.Cut(e, " ")
		n, err := strconv.Atoi(arg)
		if !ok || verb != want || err != nil {
			m.t.Fatalf("the supervisor said %q, not %q", e, want)
		}
		return n
	case <-time.After(bootWait):
		m.t.Fatalf("no %q from the supervisor in %v", want, bootWait)
		return 0
	}
}

// bootUp powers a machine on that is off and waits until it is up.
func (m *machine) bootUp() {
	m.t.Helper()
	if _, err := io.WriteString(m.tell, "boot\n"); err != nil {
		m.t.Fatal(err)
	}
	m.waitUp()
}

func (m *machine) waitUp() {
	m.t.Helper()
	m.leader = m.event("up")
	var out []byte
	for end := time.Now().Add(bootWait); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		out, _ = m.enter("systemctl", "is-system-running").Output()
		switch strings.TrimSpace(string(out)) {
		case "running", "degraded": // degraded: a unit failed, which the tests look at themselves
			return
		}
	}
	m.t.Fatalf("not up after %v: %q", bootWait, out)
}

// rebooted waits for a reboot that was asked for inside.
func (m *machine) rebooted() {
	m.t.Helper()
	if status := m.event("down"); status != nspawnReboot {
		m.t.Fatalf("the machine went down with status %d, a reboot is %d", status, nspawnReboot)
	}
	m.waitUp()
}

// powerCut ends all processes of the machine at once, without a shutdown.
func (m *machine) powerCut() {
	m.t.Helper()
	if err := syscall.Kill(m.leader, syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	m.leader = 0
	m.event("down")
}

// enter runs a command in the machine's namespaces, outside of its units and
// seccomp: for talking to its systemd only.
func (m *machine) enter(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(m.leader), "-a"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=dumb"}
	return cmd
}

// unit is the command line that runs a shell line as a transient unit, with
// the privileges, limits and login session that the user has there.
func (m *machine) unit(io, user, line string) []string {
	args := []string{"systemd-run", "--quiet", "--wait", "--collect", io, "-p", "User=" + user,
		"-p", "WorkingDirectory=~", "-E", "LANG=C.UTF-8", "-E", "TERM=dumb"}
	if user != "root" {
		args = append(args, "-p", "PAMName=login") // a login session: XDG_RUNTIME_DIR
	}
	return append(args, "bash", "-c", line)
}

type result struct {
	out  string // standard output and error, as a terminal shows them
	code int
}

func (m *machine) note(format string, args ...any) { fmt.Fprintf(&m.said, format, args...) }

// run runs a shell line as the user and returns what it printed.
func (m *machine) run(user, line string, stdin ...string) result {
	m.t.Helper()
	args := m.unit("--pipe", user, line)
	cmd := m.enter(args...)
	cmd.Stdin = strings.NewReader(strings.Join(stdin, ""))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%s: %v", line, err)
	}
	m.note("%s$ %s\n%s", user, line, out)
	return result{string(out), cmd.ProcessState.ExitCode()}
}

// must is run for what has to succeed.
func (m *machine) must(user, line string, stdin ...string) string {
	m.t.Helper()
	r := m.run(user, line, stdin...)
	if r.code != 0 {
		m.t.Fatalf("%s$ %s: exit %d\n%s", user, line, r.code, r.out)
	}
	return r.out
}

// A terminal is a shell line that runs on a pty, and what it has printed.
type terminal struct {
	m    *machine
	line string
	pty  *os.File
	cmd  *exec.Cmd
	seen bytes.Buffer
	more chan []byte
}

// terminal starts a shell line on a pty of its own.
func (m *machine) terminal(user, line string) *terminal {
	m.t.Helper()
	args := m.unit("--pty", user, line)
	cmd := m.enter(args...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 120})
	if err != nil {
		m.t.Fatal(err)
	}
	m.note("%s, on a terminal$ %s\n", user, line)
	tt := &terminal{m: m, line: line, pty: f, cmd: cmd, more: make(chan []byte, 16)}
	go func() {
		defer close(tt.more)
		for {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if n > 0 {
				tt.more <- b[:n]
			}
			if err != nil { // EIO is how a pty ends
				return
			}
		}
	}()
	m.t.Cleanup(func() { _ = f.Close() })
	return tt
}

// expect waits until want has been printed after all that was expected before.
func (tt *terminal) expect(want string) {
	tt.m.t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		if i := bytes.Index(tt.seen.Bytes(), []byte(want)); i >= 0 {
			tt.m.note("%s", tt.seen.Next(i+len(want)))
			return
		}
		select {
		case b, ok := <-tt.more:
			if !ok {
				tt.m.t.Fatalf("%s: ended before %q:\n%s", tt.line, want, tt.seen.Bytes())
			}
			tt.seen.Write(b)
		case <-timeout:
			tt.m.t.Fatalf("%s: no %q in 60 s:\n%s", tt.line, want, tt.seen.Bytes())
		}
	}
}

// send types s.
func (tt *terminal) send(s string) {
	tt.m.t.Helper()
	if _, err := io.WriteString(tt.pty, s); err != nil {
		tt.m.t.Fatal(err)
	}
}

// wait returns the exit status and what was printed since the last expect.
func (tt *terminal) wait() result {
	tt.m.t.Helper()
	return tt.converse(nil)
}

// converse answers each question as often as it is asked, until the end.
func (tt *terminal) converse(answers map[string]string) result {
	tt.m.t.Helper()
	timeout := time.After(60 * time.Second)
	var out strings.Builder
	for {
		for q, a := range answers {
			if i := bytes.Index(tt.seen.Bytes(), []byte(q)); i >= 0 {
				out.Write(tt.seen.Next(i + len(q)))
				tt.send(a + "\n")
			}
		}
		select {
		case b, ok := <-tt.more:
			if !ok {
				_ = tt.cmd.Wait()
				out.Write(tt.seen.Bytes())
				r := result{out.String(), tt.cmd.ProcessState.ExitCode()}
				tt.m.note("%sexit %d\n", r.out, r.code)
				return r
			}
			tt.seen.Write(b)
		case <-timeout:
			_ = tt.cmd.Process.Kill()
			tt.m.t.Fatalf("%s: still running after 60 s:\n%s", tt.line, tt.seen.Bytes())
		}
	}
}

// path is where a file of the machine is on this one.
func (m *machine) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.leader), "root", name)
}

// put copies a file of this machine in, owned by root.
func (m *machine) put(from, to string, mode fs.FileMode) {
	m.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(to, data, mode)
}

func (m *machine) write(to string, data []byte, mode fs.FileMode) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(to)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.path(to), data, mode); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Chmod(m.path(to), mode); err != nil { // past the umask
		m.t.Fatal(err)
	}
}

func (m *machine) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// property is one property of a unit, as systemctl show prints it.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	out, err := m.enter("systemctl", "show", "--value", "-p", name, unit).Output()
	if err != nil {
		m.t.Fatalf("systemctl show -p %s %s: %v", name, unit, err)
	}
	return strings.TrimSpace(string(out))
}

// eventuallyIn polls until ok, for at most so many seconds.
func (m *machine) eventuallyIn(seconds int, what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ok() {
			return
		}
	}
	m.t.Fatalf("after %d s still not: %s", seconds, what)
}

// builds holds each compiled program, by package.
var builds = map[string][]byte{}

// build compiles a package of this module, once, and puts the program into the
// machine.
func (m *machine) build(pkg, to string) {
	m.t.Helper()
	if builds[pkg] == nil {
		out := filepath.Join(m.t.TempDir(), "program")
		cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT=runtimesecret")
		if b, err := cmd.CombinedOutput(); err != nil {
			m.t.Fatalf("go build %s: %v\n%s", pkg, err, b)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			m.t.Fatal(err)
		}
		builds[pkg] = b
	}
	m.write(to, builds[pkg], 0o755)
}

// has fails the test unless s holds each of the parts.
func has(t *testing.T, s string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(s, p) {
			t.Errorf("%q is not in:\n%s", p, s)
		}
	}
}

// hasNot fails the test if s holds one of the parts.
func hasNot(t *testing.T, s string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if strings.Contains(s, p) {
			t.Errorf("%q is in:\n%s", p, s)
		}
	}
}

func mustf(t *testing.T, ok bool, format string, args ...any) {
	t.Helper()
	if !ok {
		t.Fatalf(format, args...)
	}
}
