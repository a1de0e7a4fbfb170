package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// started is a detached agent: no child of the test. It is told to stop when
// the test is over, and killed if it does not.
func (h *home) started(t *testing.T) Status {
	t.Helper()
	st, err := statusOf(h.socket)
	if err != nil {
		t.Fatalf("an agent that is said to be ready does not answer: %v\n%s", err, h.log())
	}
	pidfd, err := unix.PidfdOpen(int(st.PID), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer func() { _ = unix.Close(pidfd) }()
		_ = unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0)
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 10_000); n == 0 {
			t.Errorf("agent %d did not end at SIGTERM", st.PID)
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", h.log())
		}
	})
	return st
}

func (h *home) log() string {
	b, _ := os.ReadFile(h.dir + "/state/ov/agent.log")
	return string(b)
}

// ways are the two programs that start an agent.
func (h *home) ways(t *testing.T) map[string]func(args ...string) *exec.Cmd {
	return map[string]func(args ...string) *exec.Cmd{
		"ov-agent": func(args ...string) *exec.Cmd { return h.command(t, "ov-agent", args...) },
		"ov agent start": func(args ...string) *exec.Cmd {
			return h.command(t, "ov", append([]string{"agent", "start"}, args...)...)
		},
	}
}

func TestStart(t *testing.T) {
	for _, way := range []string{"ov-agent", "ov agent start"} {
		t.Run(way, func(t *testing.T) {
			h := newHome(t)
			cmd := h.ways(t)[way]("--password-stdin")
			cmd.Stdin = strings.NewReader(masterPassword + "\nthe rest is not the agent's\n")
			// What a script leaves open: its lock, and the pipe of a caller that
			// waits for the end of the output.
			held, err := os.Create(h.dir + "/script.lock")
			if err != nil {
				t.Fatal(err)
			}
			cmd.ExtraFiles = []*os.File{held, held, held}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			said, err := io.ReadAll(r) // ends, though the agent goes on
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if want := map[string]string{"ov-agent": "", "ov agent start": "the agent is ready\n"}[way]; string(said) != want {
				t.Errorf("%q was said, want %q", said, want)
			}
			st := h.started(t)
			if !st.Unlocked || st.Level != "account" || st.Vault != h.vault {
				t.Errorf("%+v", st)
			}
			mustReveal(t, clientOf(t, h.socket), shop, nameOf(0), valueOf(0))
			detached(t, h, st)
		})
	}
}

// detached checks what a daemon keeps of the process that started it: nothing.
func detached(t *testing.T, h *home, st Status) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", st.PID)
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on, proc_pid_stat(5)
	session, tty := fields[3], fields[4]
	if session != strconv.Itoa(int(st.PID)) || tty != "0" {
		t.Errorf("session %s, terminal %s: not its own, or one", session, tty)
	}
	if cwd, err := os.Readlink(proc + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("it works in %s, %v", cwd, err)
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(proc + "/fd/" + fd.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		want := `^(socket:\[\d+\]|anon_inode:.*|/sys/fs/cgroup/.*|` + regexp.QuoteMeta(h.socket) + `\.lock|` + regexp.QuoteMeta(h.dir) + `/state/ov/agent\.log)$`
		switch fd.Name() {
		case "0", "1":
			want = `^/dev/null$`
		case "2":
			want = regexp.QuoteMeta(h.dir + "/state/ov/agent.log")
		}
		if !regexp.MustCompile(want).MatchString(to) {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
	if limits, err := os.ReadFile(proc + "/limits"); err != nil || !coreLimit.Match(limits) {
		t.Errorf("it may dump core: %v\n%s", err, limits)
	}
	info, err := os.Stat(h.dir + "/state/ov/agent.log")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log: %v, %v", info, err)
	}
}

var coreLimit = regexp.MustCompile(`(?m)^Max core file size +0 +0 `)

// Why an agent could not start is said once, by the program that was called,
// with what to do about it; and nothing is left running.
func TestStartFails(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*testing.T, *home)
		stdin   string
		args    []string
		text    string // with DIR for the home
		hint    string
	}{
		{
			name: "wrong password", stdin: "guess\n", args: []string{"--password-stdin"},
			text: "wrong master password",
		},
		{
			name: "no password", args: []string{"--password-stdin"},
			text: "standard input is empty", hint: "write it to standard input, followed by a newline",
		},
		{
			name: "no vault", prepare: func(t *testing.T, h *home) { remove(t, h.vault) }, stdin: masterPassword, args: []string{"--password-stdin"},
			text: "no vault at DIR/data/ov/vault.db", hint: "ov auth init",
		},
		{
			name: "nobody to ask", args: nil,
			text: "cannot ask for the master password: there is no terminal to ask on: ",
			hint: "unlock with --machine-key FILE or --password-stdin, or start with --locked and use ov agent unlock",
		},
		{
			name: "machine key open to others", args: []string{"--machine-key", "DIR/key"},
			prepare: func(t *testing.T, h *home) { chmod(t, h.key, 0o644) },
			text:    "DIR/key", hint: "chmod 600",
		},
		{
			name: "unsafe directory", args: []string{"--locked", "--socket", "DIR/open/agent.sock"},
			prepare: func(t *testing.T, h *home) { mkdir(t, h.dir+"/open", 0o777) },
			text:    "DIR/open", hint: "chmod",
		},
		{
			name: "no runtime directory", args: []string{"--locked"},
			prepare: func(t *testing.T, h *home) {
				for i, v := range h.env {
					if strings.HasPrefix(v, "XDG_RUNTIME_DIR=") {
						h.env[i] = "XDG_RUNTIME_DIR=relative"
					}
				}
			},
			text: "XDG_RUNTIME_DIR is not an absolute path", hint: "set XDG_RUNTIME_DIR",
		},
		{
			name: "something else at the socket", args: []string{"--locked", "--socket", "DIR/key"},
			text: "DIR/key exists and is not a socket", hint: "remove it: rm DIR/key",
		},
		{
			name: "path too long", args: []string{"--locked", "--socket", "DIR/" + strings.Repeat("x", 120)},
			text: "bytes long, and the system allows 107", hint: "choose a shorter one: --socket PATH",
		},
		{
			name: "nowhere to log", args: []string{"--locked"},
			prepare: func(t *testing.T, h *home) {
				if err := os.WriteFile(h.dir+"/state", nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			text: "DIR/state",
		},
		{
			name: "negative ttl", args: []string{"--locked", "--ttl=-1s"},
			text: "neither may be below zero",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, way := range []string{"ov-agent", "ov agent start"} {
				h := newHome(t)
				if test.prepare != nil {
					test.prepare(t, h)
				}
				var args []string
				for _, arg := range test.args {
					args = append(args, strings.ReplaceAll(arg, "DIR", h.dir))
				}
				cmd := h.ways(t)[way](args...)
				cmd.Stdin = strings.NewReader(test.stdin)
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
				out, err := cmd.CombinedOutput()
				prefix := strings.Fields(way)[0] + ": "
				text := strings.ReplaceAll(string(out), h.dir, "DIR")
				lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
				if exitCode(err) != 1 || !strings.HasPrefix(lines[0], prefix) || !strings.Contains(lines[0], test.text) {
					t.Errorf("%s: %v, %q", way, err, text)
				}
				switch {
				case test.hint == "" && len(lines) != 1,
					test.hint != "" && (len(lines) != 2 || !strings.HasPrefix(lines[1], "  hint: ") || !strings.Contains(lines[1], test.hint)):
					t.Errorf("%s: %q, want the hint %q", way, text, test.hint)
				}
				if _, err := statusOf(h.socket); err == nil {
					t.Errorf("%s: an agent runs", way)
				}
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
}

// An agent that dies without a word is told of as such.
func TestStartOfAProgramThatDies(t *testing.T) {
	err := Start("/bin/false", nil)
	if err == nil || err.Error() != "/bin/false ended before it was ready: exit status 1" {
		t.Errorf("%v", err)
	}
	if err := Start("/bin/true", nil); err == nil || err.Error() != "/bin/true ended before it was ready" {
		t.Errorf("%v", err)
	}
	if err := Start("/nonexistent/ov-agent", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// The agent asks on the terminal, tries again, detaches from it and survives
// its hangup.
func TestStartOnATerminal(t *testing.T) {
	h := newHome(t)
	cmd := h.command(t, "ov", "agent", "start")
	tty, err := pty.Start(cmd) // a session of its own, with the terminal
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	var screen logBuffer
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(&screen, tty)
		close(copied)
	}()
	question := func(n int) {
		t.Helper()
		wait(t, "the question", func() bool { return strings.Count(screen.String(), "Master password: ") == n })
		time.Sleep(50 * time.Millisecond) // the echo is off
	}
	question(1)
	_, _ = tty.WriteString("not-the-password\n")
	question(2)
	_, _ = tty.WriteString(masterPassword + "\n")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, screen.String())
	}
	st := h.started(t)
	_ = tty.Close() // which hangs up
	<-copied
	seen := screen.String()
	if strings.Contains(seen, masterPassword) || strings.Contains(seen, "not-the-password") {
		t.Errorf("the password was shown: %q", seen)
	}
	if !strings.Contains(seen, "wrong master password, try again") || !strings.Contains(seen, "the agent is ready") {
		t.Errorf("%q", seen)
	}
	time.Sleep(200 * time.Millisecond)
	mustReveal(t, clientOf(t, h.socket), shop, nameOf(1), valueOf(1))
	detached(t, h, st)
}

// Ctrl-C at the question ends both programs and leaves nothing behind that
// keeps the next start from working.
func TestInterruptAtTheQuestion(t *testing.T) {
	h := newHome(t)
	cmd := h.command(t, "ov", "agent", "start")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	var screen logBuffer
	go func() { _, _ = io.Copy(&screen, tty) }()
	wait(t, "the question", func() bool { return strings.Contains(screen.String(), "Master password: ") })
	time.Sleep(50 * time.Millisecond)
	_, _ = tty.WriteString("\x03")
	if err := cmd.Wait(); err == nil {
		t.Fatalf("it went on: %q", screen.String())
	}
	lock, err := os.Open(h.socket + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	wait(t, "the agent has ended, too", func() bool {
		return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
	})
	_ = lock.Close()
	h.run(t, "--locked")
}

// The flags of `ov agent start` reach the agent.
func TestStartFlags(t *testing.T) {
	type expect func(t *testing.T, h *home, st Status)
	becomesLocked := func(because string) expect {
		return func(t *testing.T, h *home, _ Status) {
			wait(t, "the agent locks by itself", func() bool {
				st, err := statusOf(h.socket)
				return err == nil && !st.Unlocked && strings.Contains(st.LockedBecause, because)
			})
		}
	}
	for _, test := range []struct {
		args   []string
		expect expect
	}{
		{[]string{"--locked"}, func(t *testing.T, h *home, st Status) {
			if st.Unlocked || st.LockedBecause != "nobody has unlocked it" {
				t.Errorf("%+v", st)
			}
			unlock := h.command(t, "ov", "agent", "unlock", "--password-stdin")
			unlock.Stdin = strings.NewReader(masterPassword + "\n")
			if out, err := unlock.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if st, err := statusOf(h.socket); err != nil || !st.Unlocked {
				t.Errorf("%+v, %v", st, err)
			}
		}},
		{[]string{"--machine-key", "DIR/key", "--ttl", "2s"}, becomesLocked("it was unlocked for 2s (--ttl)")},
		{[]string{"--machine-key", "DIR/key", "--idle", "1s"}, becomesLocked("it was not used for 1s (--idle)")},
		{[]string{"--machine-key", "DIR/key", "--ttl", "8h", "--idle", "30m", "--app", "shop", "--env", "staging"}, func(t *testing.T, _ *home, st Status) {
			if st.LocksAt == nil || st.LocksAt.Sub(*st.UnlockedAt) != 8*time.Hour || st.IdleSeconds != 1800 || st.Context != staging {
				t.Errorf("%+v", st)
			}
		}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			args := []string{"agent", "start"}
			for _, arg := range test.args {
				args = append(args, strings.ReplaceAll(arg, "DIR", h.dir))
			}
			if out, err := h.command(t, "ov", args...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			test.expect(t, h, h.started(t))
		})
	}
	t.Run("--foreground", func(t *testing.T) {
		h := newHome(t)
		d := run(t, h.command(t, "ov", "agent", "start", "--foreground", "--machine-key", h.key, "--socket", h.socket), h.socket)
		st, err := d.status()
		if err != nil || int(st.PID) != d.Process.Pid { // the same process
			t.Errorf("%+v, %v", st, err)
		}
		d.signal(t, syscall.SIGTERM)
		d.end(t, 5*time.Second)
		if d.err != nil || !strings.Contains(d.logged.String(), "msg=serving") {
			t.Errorf("%v, log %q", d.err, d.logged)
		}
	})
}

// ov agent lock, unlock, status and stop, as a person uses them.
func TestCommands(t *testing.T) {
	h := newHome(t)
	ov := func(stdin string, args ...string) (string, int) {
		t.Helper()
		cmd := h.command(t, "ov", args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), exitCode(err)
	}
	want := func(code int, text string, stdin string, args ...string) {
		t.Helper()
		if out, got := ov(stdin, args...); got != code || !strings.Contains(out, text) {
			t.Errorf("ov %s: exit code %d, %q; want %d, %q", strings.Join(args, " "), got, out, code, text)
		}
	}
	want(3, "not running", "", "agent", "status")
	want(3, `"running": false`, "", "agent", "status", "--json")
	want(1, "no agent is running", "", "agent", "stop")
	want(1, "no agent is running", "", "agent", "lock")
	want(0, "the agent is ready", "", "agent", "start", "--machine-key", h.key)
	st := h.started(t)
	want(0, "unlocked since", "", "agent", "status")
	want(1, "an agent is already running", "", "agent", "start", "--machine-key", h.key)
	want(0, valueOf(0), "", "secret", "get", nameOf(0), "--app", "shop", "--env", "production", "--reveal")
	want(0, "", "", "agent", "lock")
	want(0, "locked: it was told to lock", "", "agent", "status")
	want(1, "the agent is locked: it was told to lock\n  hint: ov agent unlock", "", "secret", "get", nameOf(0), "--agent", "--app", "shop", "--env", "production", "--reveal")
	want(1, "wrong master password", "guess\n", "agent", "unlock", "--password-stdin")
	want(0, "", masterPassword+"\n", "agent", "unlock", "--password-stdin")
	want(0, "", "", "agent", "lock")
	want(0, "", "", "agent", "unlock", "--machine-key", h.key)
	out, _ := ov("", "agent", "status", "--json")
	var parsed struct {
		Running bool
		Status
	}
	if err := json.Unmarshal([]byte(out), &parsed); err != nil || !parsed.Running || !parsed.Unlocked || parsed.PID != st.PID {
		t.Errorf("%v: %s", err, out)
	}
	want(0, "", "", "agent", "stop")
	if _, err := os.Lstat(h.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after stop: %v", err)
	}
	want(3, "not running", "", "agent", "status")
}

// notify is what a service manager hears (sd_notify(3)).
type notify struct {
	*net.UnixConn
	path string
}

func newNotify(t *testing.T, dir string) *notify {
	t.Helper()
	path := filepath.Join(dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &notify{c, path}
}

func (n *notify) next(t *testing.T, within time.Duration) string {
	t.Helper()
	_ = n.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 4096)
	k, err := n.Read(buf)
	if err != nil {
		t.Fatalf("the service manager hears nothing: %v", err)
	}
	return string(buf[:k])
}

func TestNotifyAndWatchdog(t *testing.T) {
	h := newHome(t)
	n := newNotify(t, h.dir)
	cmd := h.command(t, "ov-agent", "--foreground", "--password-stdin")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+n.path, "WATCHDOG_USEC=400000")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	d := launch(t, cmd, h.socket)
	// Not ready before it is unlocked.
	_ = n.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if k, err := n.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes before the password", k)
	}
	_, _ = io.WriteString(stdin, masterPassword+"\n")
	if got := n.next(t, 10*time.Second); got != "READY=1" {
		t.Errorf("first %q", got)
	}
	if st, err := d.status(); err != nil || !st.Unlocked {
		t.Errorf("at READY=1: %+v, %v", st, err)
	}
	last := time.Now()
	for range 5 {
		if got := n.next(t, 2*time.Second); got != "WATCHDOG=1" {
			t.Errorf("then %q", got)
		}
		if gap := time.Since(last); gap > 400*time.Millisecond {
			t.Errorf("%v since the last word: the service manager would have killed it", gap)
		}
		last = time.Now()
	}
	d.signal(t, syscall.SIGTERM)
	for got := ""; got != "STOPPING=1"; {
		got = n.next(t, 5*time.Second)
		if got != "STOPPING=1" && got != "WATCHDOG=1" {
			t.Fatalf("at the end %q", got)
		}
	}
	d.end(t, 5*time.Second)
	if d.err != nil {
		t.Error(d.err)
	}
}

// A server whose state cannot be looked at says nothing to the watchdog.
func TestWatchdogOfAnAgentThatHangs(t *testing.T) {
	a := newAgent(t)
	n := newNotify(t, shortDir(t))
	t.Setenv("NOTIFY_SOCKET", n.path)
	t.Setenv("WATCHDOG_USEC", "100000")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		watchdog(ctx, a.Server)
		close(done)
	}()
	if got := n.next(t, 5*time.Second); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	a.mu.Lock()
	for range 3 { // what was on its way
		_ = n.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = n.Read(make([]byte, 100))
	}
	_ = n.SetReadDeadline(time.Now().Add(time.Second))
	if k, err := n.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes from a server that hangs", k)
	}
	a.mu.Unlock()
	if got := n.next(t, 5*time.Second); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	stop()
	<-done
}

// An agent that cannot start never says that it is ready.
func TestNotifyOfFailure(t *testing.T) {
	h := newHome(t)
	n := newNotify(t, h.dir)
	cmd := h.command(t, "ov-agent", "--foreground", "--password-stdin")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+n.path)
	cmd.Stdin = strings.NewReader("guess\n")
	if out, err := cmd.CombinedOutput(); exitCode(err) != 1 || !strings.HasSuffix(string(out), "ov-agent: wrong master password\n") {
		t.Errorf("%v, %q", err, out)
	}
	_ = n.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if k, err := n.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes", k)
	}
}

// systemd makes the socket and starts the agent at the first connection, which
// has waited meanwhile.
func TestSocketActivation(t *testing.T) {
	h := newHome(t)
	mkdir(t, filepath.Dir(h.socket), 0o700)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	chmod(t, h.socket, 0o600)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	early := make(chan error, 1)
	go func() { early <- askOnce(h.socket, 0) }()

	// LISTEN_PID is the agent's own, known only once it runs.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`,
		program(t, "ov-agent"), "--foreground", "--machine-key", h.key, "--vault", h.vault)
	cmd.Env, cmd.ExtraFiles = h.env, []*os.File{f}
	d := run(t, cmd, h.socket)
	_, _ = l.Close(), f.Close()
	if err := <-early; err != nil {
		t.Errorf("the connection that came first: %v", err)
	}
	if st, err := d.status(); err != nil || int(st.PID) != d.Process.Pid {
		t.Errorf("%+v, %v", st, err)
	}
	served(t, h.socket, 3)
	d.signal(t, syscall.SIGTERM)
	d.end(t, 5*time.Second)
	if _, err := os.Lstat(h.socket); err != nil {
		t.Errorf("the socket is systemd's, and gone: %v", err)
	}
}

// The parent of a detached agent cannot make it write over its files: after the
// start the descriptor means nothing any more.
func TestParentIsToldOnce(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &Parent{w}
	if err := p.say("ready\n"); err != nil {
		t.Fatal(err)
	}
	vault, err := os.Create(t.TempDir() + "/vault.db") // takes the descriptor
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vault.Close() }()
	if err := p.Failed(errors.New("later")); err == nil {
		t.Error("the parent is told twice")
	}
	said, err := io.ReadAll(r)
	if err != nil || string(said) != "ready\n" {
		t.Errorf("%q, %v", said, err)
	}
	if info, err := vault.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("%d bytes in another file, %v", info.Size(), err)
	}
}
