package launch

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func write(t testing.TB, file, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, d := range []string{"a", "b", "c/prog"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	inA := write(t, filepath.Join(a, "first"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(b, "first"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(a, "prog"), "not executable", 0o644)
	inB := write(t, filepath.Join(b, "prog"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(a, "plain"), "not executable", 0o644)
	write(t, filepath.Join(dir, "here"), "#!/bin/sh\n", 0o755)
	list := func(dirs ...string) string { return strings.Join(dirs, ":") }

	for _, x := range []struct {
		name, path string
		file       string
		code       int
		text       string
	}{
		{"first", list(a, b), inA, 0, ""},
		{"first", list(dir+"/missing", inA, a), inA, 0, ""}, // a missing directory, a file as one
		{"prog", list(c, a, b), inB, 0, ""},                 // past a directory and what cannot be run
		{"./x/../y", "", "./x/../y", 0, ""},                 // a slash: as it is
		{"/no/such", a, "/no/such", 0, ""},
		{"plain", list(a, b), "", ExitCannotExec, `cannot execute "plain": it is not marked executable`},
		{"prog", c, "", ExitNotFound, `"prog": command not found in PATH`},
		{"nothing", list(a, b, c), "", ExitNotFound, `"nothing": command not found in PATH`},
		{"first", "", "", ExitNotFound, `"first": command not found in PATH`},
		{"here", list("", a), "", ExitCannotExec, `cannot execute "here": PATH finds it only relative to the working directory`},
		{"here", list(a, "."), "", ExitCannotExec, `cannot execute "here": PATH finds it only relative to the working directory`},
		{"first", "a", "", ExitCannotExec, `cannot execute "first": PATH finds it only relative to the working directory`},
		{"first", list(a, ""), inA, 0, ""},
		{"", a, "", ExitNotFound, "the command to run is an empty word"},
		{"a\x00b", a, "", ExitNotFound, `"a\x00b": command not found in PATH`},
	} {
		file, err := LookPath(x.name, x.path)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if file != x.file || ExitCode(err) != x.code || text != x.text {
			t.Errorf("LookPath(%q, %q) = %q, %v (exit %d)\nwant %q, %s (exit %d)", x.name, x.path, file, err, ExitCode(err), x.file, x.text, x.code)
		}
	}
}

// TestExitCodes launches real programs, good and bad, and holds the exit code
// and what is said against env(1)'s rules.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		return write(t, filepath.Join(dir, name), content, mode)
	}
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o755); err != nil {
		t.Fatal(err)
	}
	foreign := "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xff\xff" + strings.Repeat("\x00", 100)
	for _, c := range []struct {
		name   string
		argv   []string
		code   int
		stderr string // its first line contains
		hint   string
	}{
		{"its own code", []string{"sh", "-c", "exit 7"}, 7, "", ""},
		{"125 of its own", []string{"sh", "-c", "exit 125"}, 125, "", ""},
		{"no command", nil, 125, "no command to run", ""},
		{"not in PATH", []string{"no-such-command"}, 127, `"no-such-command": command not found in PATH`, "give the full path"},
		{"no such file", []string{dir + "/none"}, 127, `/none": no such file`, ""},
		{"through a file", []string{file("f", "", 0o755) + "/none"}, 127, `/f/none": no such file`, ""},
		{"a directory", []string{sub}, 126, "it is a directory", ""},
		{"not executable", []string{file("data", "x", 0o644)}, 126, "it is not marked executable", "chmod +x " + dir + "/data"},
		{"not executable, odd name", []string{file("it's", "x", 0o644)}, 126, "not marked executable", "chmod +x '" + dir + `/it'\''s'`},
		{"no #! line", []string{file("script", "echo hi\n", 0o755)}, 126, "neither a program nor a script that says what runs it", "#!/bin/sh"},
		{"empty", []string{file("empty", "", 0o755)}, 126, "it is an empty file", ""},
		{"foreign", []string{file("foreign", foreign, 0o755)}, 126, "built for another kind of machine", "install the build for"},
		{"interpreter missing", []string{file("bad", "#! /no/such/sh -e\necho\n", 0o755)}, 126, `its interpreter "/no/such/sh" does not exist`, "first line of " + dir + "/bad"},
		{"CRLF script", []string{file("crlf", "#!/bin/sh\r\necho\r\n", 0o755)}, 126, `its interpreter "/bin/sh\r" does not exist`, ""},
		{"interpreter not executable", []string{file("badi", "#!"+dir+"/data\n", 0o755)}, 126, "permission denied", "check its owner and mode"},
		{"a FIFO", []string{fifo}, 126, "permission denied", ""},
	} {
		for _, how := range []string{"launch", "start"} {
			t.Run(how+" "+c.name, func(t *testing.T) {
				_, stderr, code := run(t, by(t, how, self(t), order{Argv: c.argv, Secrets: map[string]string{"S": "v4lue"}}))
				line, hint, _ := strings.Cut(stderr, "\n")
				if code != c.code || !strings.Contains(line, c.stderr) || !strings.Contains(hint, c.hint) {
					t.Errorf("exit %d, want %d; stderr %q", code, c.code, stderr)
				}
				if strings.Contains(stderr, "v4lue") {
					t.Error("the error shows a value")
				}
			})
		}
	}
	if ExitCode(nil) != 0 || ExitCode(errors.New("x")) != ExitOwn {
		t.Error("ExitCode of nil or of another error")
	}
}

func TestEnvironmentArrives(t *testing.T) {
	odd := "line\nline2\t\"'$`\\ \x01\xff é=="
	long := strings.Repeat("x", 64<<10) // the longest value of a secret
	cmd := launch(t, self(t), order{
		Argv:    []string{self(t), "environment"},
		Secrets: map[string]string{"ODD": odd, "LONG": long, "HOME_TOWN": "", "A": "secret"},
	})
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "A=inherited", "B=1", "OV_MACHINE_KEY=/k"}
	out, stderr, code := run(t, cmd)
	var got []string
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, stderr)
	}
	// JSON replaces what is not UTF-8, in what was sent as in what came back.
	odd = strings.ToValidUTF8(odd, "\ufffd")
	want := []string{"PATH=" + os.Getenv("PATH"), "A=secret", "B=1", "ODD=" + odd, "LONG=" + long, "HOME_TOWN="}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %.300q\nwant %.300q", got, want)
	}
}

// The name that the program sees as its own is the one that was typed, and the
// PATH that finds it is the one it gets.
func TestArgvAndPath(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "show"), "#!/bin/sh\nprintf '%s|' \"$@\"\n", 0o755)
	out, stderr, code := run(t, launch(t, self(t), order{
		Argv:    []string{"show", "a b", "", "--", "$HOME"},
		Secrets: map[string]string{"PATH": dir},
		Opts:    Options{AllowUnsafeNames: true},
	}))
	if out != "a b||--|$HOME|" || code != 0 {
		t.Errorf("exit %d, %q, %s", code, out, stderr)
	}
	out, stderr, code = run(t, launch(t, self(t), order{
		Argv: []string{"sh", "-c", "echo $0"}, Opts: Options{Inherit: []string{"A=1"}}, // no PATH at all
	}))
	if out != "sh\n" || code != 0 {
		t.Errorf("exit %d, %q, %s", code, out, stderr)
	}
}

func TestStandardStreams(t *testing.T) {
	cmd := launch(t, self(t), order{Argv: []string{"sh", "-c", "cat; echo err >&2"}})
	cmd.Stdin = strings.NewReader("through\n")
	out, stderr, code := run(t, cmd)
	if out != "through\n" || stderr != "err\n" || code != 0 {
		t.Errorf("exit %d, out %q, err %q", code, out, stderr)
	}
}

// Signals reach the program, since it is the process that was started: those
// that stop and continue it, and those that end it.
func TestSignals(t *testing.T) {
	for _, last := range []syscall.Signal{
		syscall.SIGTERM, syscall.SIGKILL, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGINT,
	} {
		cmd := launch(t, self(t), order{Argv: []string{"sh", "-c", "echo started; exec sleep 60"}})
		// A group of its own: in an orphaned one, as that of a test run whose shell
		// has ended may be, the kernel discards SIGTSTP (signal(7), setpgid(2)).
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			sig  syscall.Signal
			done func(unix.WaitStatus) bool
		}{
			{syscall.SIGTSTP, unix.WaitStatus.Stopped},
			{syscall.SIGCONT, unix.WaitStatus.Continued},
			{last, func(ws unix.WaitStatus) bool { return ws.Signaled() && ws.Signal() == last }},
		} {
			if err := syscall.Kill(cmd.Process.Pid, step.sig); err != nil {
				t.Fatal(err)
			}
			var ws unix.WaitStatus
			if _, err := unix.Wait4(cmd.Process.Pid, &ws, unix.WUNTRACED|unix.WCONTINUED, nil); err != nil {
				t.Fatal(err)
			}
			if !step.done(ws) {
				t.Errorf("after %v: wait status %#x", step.sig, ws)
			}
		}
		_ = cmd.Wait() // reaped already; closes the pipe
	}
}

// On a terminal the program is in the foreground: Ctrl-C and Ctrl-Z are its.
func TestTerminal(t *testing.T) {
	cmd := launch(t, self(t), order{Argv: []string{"sh", "-c", `trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.1; done`}})
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	read := func(want string) {
		t.Helper()
		got := ""
		buf := make([]byte, 256)
		for !strings.Contains(got, want) {
			n, err := tty.Read(buf)
			if err != nil {
				t.Fatalf("%v after %q", err, got)
			}
			got += string(buf[:n])
		}
	}
	read("ready")
	if _, err := tty.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	read("interrupted")
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("exit %v", cmd.ProcessState)
	}
}

// notifySocket listens for sd_notify(3) messages.
func notifySocket(t testing.TB) *net.UnixConn {
	t.Helper()
	// t.TempDir is too long for a socket's path on macOS.
	dir, err := os.MkdirTemp("", "ov")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNotify is a service of Type=notify in a clean environment.
func TestNotify(t *testing.T) {
	c := notifySocket(t)
	cmd := launch(t, self(t), order{Argv: []string{self(t), "notify"}, Opts: Options{Clean: true}})
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+c.LocalAddr().String())
	if _, stderr, code := run(t, cmd); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// Socket activation: sd_listen_fds(3) wants LISTEN_PID to be the program's own
// pid and the descriptors to start at 3.
func TestListenFDs(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := w.WriteString("from descriptor 3"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	inner := launch(t, self(t), order{
		Argv: []string{"sh", "-c", `[ "$LISTEN_PID" = $$ ] && [ "$LISTEN_FDS" = 1 ] && cat <&3`},
		Opts: Options{Clean: true},
	})
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh"}, inner.Args...)...)
	cmd.ExtraFiles = []*os.File{r}
	if out, stderr, code := run(t, cmd); out != "from descriptor 3" || code != 0 {
		t.Errorf("exit %d, %q, %s", code, out, stderr)
	}
}
