package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// maskedHome is a home with one secret, and the words that run a program with it
// and with its output masked.
func maskedHome(t *testing.T) (*home, []string) {
	t.Helper()
	h := newHome(t, 0)
	h.vault()
	h.must(mark+"-value", "ov", "secret", "set", "TOKEN", "--machine-key", "key")
	return h, []string{"ov", "run", "--mask", "--machine-key", "key", "--"}
}

// counting is a program that says its pid, then each signal that it gets, and
// ends with 7 at SIGTERM.
var counting = []string{"python3", "-c", `
import os, signal, sys
def got(n, frame):
    os.write(1, (signal.Signals(n).name + " " + os.environ["TOKEN"] + "\n").encode())
    if n == signal.SIGTERM: sys.exit(7)
for n in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "WINCH", "CHLD", "URG"):
    if signal.getsignal(getattr(signal, "SIG" + n)) != signal.SIG_IGN:
        signal.signal(getattr(signal, "SIG" + n), got)
print(os.getpid(), flush=True)
while True: signal.pause()`}

// lines reads lines, and fails the test when one takes too long.
type lines struct {
	t    *testing.T
	list chan string
}

func readLines(t *testing.T, r io.Reader) *lines {
	l := &lines{t, make(chan string, 100)}
	go func() {
		defer close(l.list)
		for s := bufio.NewScanner(r); s.Scan(); {
			l.list <- strings.TrimSuffix(s.Text(), "\r")
		}
	}()
	return l
}

func (l *lines) want(text string) {
	l.t.Helper()
	if got := l.next(); got != text {
		l.t.Errorf("the program prints %q, want %q", got, text)
	}
}

func (l *lines) next() string {
	l.t.Helper()
	select {
	case line, ok := <-l.list:
		if !ok {
			l.t.Fatal("the output ends")
		}
		return line
	case <-time.After(patience):
		l.t.Fatal("no output")
	}
	return ""
}

// none fails the test if there is more output in a while.
func (l *lines) none() {
	l.t.Helper()
	select {
	case line, ok := <-l.list:
		if ok {
			l.t.Errorf("the program also prints %q", line)
		}
	case <-time.After(200 * time.Millisecond):
	}
}

// TestMaskForwardsSignals: each signal to ov reaches the program once, and the
// exit code is the program's. Those that ov was started to ignore are ignored.
func TestMaskForwardsSignals(t *testing.T) {
	t.Parallel()
	h, argv := maskedHome(t)
	for _, ignored := range []string{"", "HUP,USR1,PIPE"} {
		argv := argv
		if ignored != "" {
			argv = append([]string{"env", "--ignore-signal=" + ignored}, argv...)
		}
		cmd := h.command(append(argv, counting...)...)
		cmd.SysProcAttr.Setsid = true // away from the terminal of whoever runs the tests
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		l := readLines(t, out)
		if pid := l.next(); pid == fmt.Sprint(cmd.Process.Pid) {
			t.Error("ov is the program itself")
		}
		for _, sig := range []struct {
			sig  syscall.Signal
			name string
		}{
			{syscall.SIGUSR1, "USR1"}, {syscall.SIGHUP, "HUP"}, {syscall.SIGINT, "INT"}, {syscall.SIGQUIT, "QUIT"},
			{syscall.SIGUSR2, "USR2"}, {syscall.SIGALRM, "ALRM"}, {syscall.SIGWINCH, "WINCH"}, {syscall.SIGUSR2, "USR2"},
		} {
			if err := cmd.Process.Signal(sig.sig); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(ignored, sig.name) {
				l.none()
			} else {
				l.want("SIG" + sig.name + " [masked TOKEN]")
			}
		}
		for _, sig := range []syscall.Signal{syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE} {
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		l.none()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		l.want("SIGTERM [masked TOKEN]")
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("%v, not exit code 7", cmd.ProcessState)
		}
	}
}

// TestMaskOnTerminal: Ctrl-C reaches the program once, and ov stays to pass on
// what it says then; the program reads from the terminal; its two outputs stay
// in order.
func TestMaskOnTerminal(t *testing.T) {
	t.Parallel()
	h, argv := maskedHome(t)
	// Not a shell, which takes a SIGINT for its child's own when that has just
	// ended.
	cmd := h.command(append(argv, "python3", "-c", `
import os, signal, sys
def interrupted(n, frame): os.write(1, ("interrupted " + os.environ["TOKEN"] + "\n").encode())
def terminated(n, frame): os.write(1, b"bye\n"); sys.exit(5)
for i in range(1, 9):
    print("out", i, flush=True)
    print("err", i, file=sys.stderr, flush=True)
print("read", input(), flush=True)
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGTERM, terminated)
print("ready", flush=True)
while True: signal.pause()`)...)
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	l := readLines(t, tty)
	for i := 1; i <= 8; i++ {
		l.want(fmt.Sprintf("out %d", i))
		l.want(fmt.Sprintf("err %d", i))
	}
	if _, err := tty.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	l.want("typed") // the echo
	l.want("read typed")
	l.want("ready")
	for range 2 {
		if _, err := tty.WriteString("\x03"); err != nil {
			t.Fatal(err)
		}
		l.want("^Cinterrupted [masked TOKEN]")
	}
	l.none()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.want("bye")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("%v, not exit code 5", cmd.ProcessState)
	}
}

// TestMaskStops: Ctrl-Z stops ov and the program, and both go on.
func TestMaskStops(t *testing.T) {
	t.Parallel()
	h, argv := maskedHome(t)
	// The shell does what a terminal's user sees: it waits for the job to stop.
	script := "set -m; " + strings.Join(argv, " ") + ` bash -c 'echo ready; sleep 0.3; echo $TOKEN'; echo "stopped: $?"; fg >/dev/null; echo "ended: $?"`
	cmd := h.command("bash", "-c", script)
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	l := readLines(t, tty)
	l.want("ready")
	if _, err := tty.WriteString("\x1a"); err != nil {
		t.Fatal(err)
	}
	seen := ""
	for !strings.Contains(seen, "ended: ") {
		seen += l.next() + "\n"
	}
	if !strings.Contains(seen, "stopped: 148\n") || !strings.Contains(seen, "[masked TOKEN]\n") || !strings.Contains(seen, "ended: 0\n") {
		t.Errorf("the terminal shows %q", seen)
	}
	_ = cmd.Wait()
}

// TestMaskChild: the program has no more of ov's than three descriptors, ov has
// none of the pipes' other ends, and the program does not outlive ov.
func TestMaskChild(t *testing.T) {
	t.Parallel()
	h, argv := maskedHome(t)
	want := h.must("", "bash", "-c", "ls /proc/self/fd | wc -l")
	if got := h.must("", append(argv, "bash", "-c", "ls /proc/self/fd | wc -l")...); got != want {
		t.Errorf("the program has %s descriptors, and %s without ov", got, want)
	}
	cmd := h.command(append(argv, "bash", "-c", `trap "" TERM HUP; echo $$; while :; do sleep 0.05; done`)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := readLines(t, out).next()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the program has outlived ov")
		}
	}
}

// TestMaskSlowReader: what the program wrote is passed on to the end, however
// long after its end it is read.
func TestMaskSlowReader(t *testing.T) {
	t.Parallel()
	h, argv := maskedHome(t)
	cmd := h.command(append(argv, "bash", "-c", `sleep 10 & seq 30000; echo $TOKEN`)...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	time.Sleep(3 * time.Second) // 170 kB: two pipes hold 128
	l := readLines(t, r)
	for i := 1; i <= 30000; i++ {
		if got := l.next(); got != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, got)
		}
	}
	l.want("[masked TOKEN]")
	_ = cmd.Wait()
}

// TestMaskFullDisk: output that cannot be passed on is ov's own failure, and
// said.
func TestMaskFullDisk(t *testing.T) {
	t.Parallel()
	h, argv := maskedHome(t)
	cmd := h.command(append(argv, "echo", "text")...)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = full, &stderr
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(stderr.String(), "no space left on device") {
		t.Errorf("%v: %s", cmd.ProcessState, &stderr)
	}
}

// TestMaskHidesMemory: ov, which holds the values as long as the program runs,
// cannot be read or dumped by its own account. The program can, as ever.
func TestMaskHidesMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root sees whose /proc/PID/mem is")
	}
	t.Parallel()
	h := newHome(t, deployUID)
	h.vault()
	h.must(mark+"-value", "ov", "secret", "set", "TOKEN", "--machine-key", "key")
	cmd := h.command("ov", "run", "--mask", "--machine-key", "key", "--", "bash", "-c", `stat -c %u /proc/$PPID/mem /proc/$$/mem`)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("0\n%d\n", deployUID); string(out) != want {
		t.Errorf("the owners of ov's and the program's memory are %q, want %q", out, want)
	}
}
