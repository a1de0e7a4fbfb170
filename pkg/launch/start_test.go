package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

// environ is an environment with one secret.
func environ(t *testing.T, value string) *Env {
	t.Helper()
	env, err := Environ(Options{Inherit: []string{"PATH=" + os.Getenv("PATH"), "PWD=/elsewhere"}}, []Secret{{"SECRET", []byte(value)}})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// output starts a child and returns what it wrote and how it exited.
func output(t *testing.T, argv []string, opts StartOptions) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	opts.Files[1] = w
	child, err := Start(argv, environ(t, "v4lue"), opts)
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	return b.String(), wait(child)
}

func TestStart(t *testing.T) {
	out, code := output(t, []string{"sh", "-c", `echo "$SECRET"; cat; echo lost >&2; exit 7`}, StartOptions{})
	if out != "v4lue\n" || code != 7 {
		t.Errorf("exit %d, %q: the input and the error stream are to be /dev/null", code, out)
	}
}

// The environment is gone after Start, whether it worked or not.
func TestStartWipes(t *testing.T) {
	for _, argv := range [][]string{{"true"}, {"/no/such"}, {"no-such-command"}, nil} {
		env := environ(t, "v4lue")
		child, err := Start(argv, env, StartOptions{Dir: t.TempDir()})
		if err == nil {
			wait(child)
		}
		if env.list != nil || env.blocks != nil {
			t.Errorf("%q: the environment is still there", argv)
		}
		if _, err := Start([]string{"true"}, env, StartOptions{}); err == nil {
			t.Errorf("%q: started with a wiped environment", argv)
		}
	}
}

func TestStartDir(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(sub, "show"), "#!/bin/sh\necho \"$0 $PWD $(/bin/pwd -P)\"\n", 0o755)
	write(t, filepath.Join(sub, "bad"), "#!/no/such/sh\n", 0o755)
	file := write(t, filepath.Join(dir, "file"), "", 0o644)
	t.Chdir(dir)

	for _, d := range []string{sub, "sub", "./sub/../sub"} {
		if out, code := output(t, []string{"./show"}, StartOptions{Dir: d}); out != fmt.Sprintf("./show %s %s\n", sub, sub) || code != 0 {
			t.Errorf("in %s: exit %d, %q", d, code, out)
		}
	}
	if out, code := output(t, []string{"sub/show"}, StartOptions{}); !strings.HasSuffix(out, " "+dir+"\n") || code != 0 {
		t.Errorf("here: exit %d, %q", code, out)
	}
	for _, c := range []struct {
		argv []string
		dir  string
		code int
		text string
	}{
		{[]string{"sub/show"}, "sub", ExitNotFound, `"sub/show": no such file`},
		{[]string{"./bad"}, "sub", ExitCannotExec, `its interpreter "/no/such/sh" does not exist`},
		{[]string{"true"}, "none", ExitOwn, "cannot run a command in that directory: stat " + dir + "/none: no such file or directory"},
		{[]string{"true"}, file, ExitOwn, "not a directory"},
	} {
		_, err := Start(c.argv, environ(t, "v4lue"), StartOptions{Dir: c.dir})
		if err == nil || ExitCode(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q in %s: %v (exit %d)", c.argv, c.dir, err, ExitCode(err))
		}
		if err != nil && c.code == ExitOwn && hint.Of(err) == "" {
			t.Errorf("no hint with %v", err)
		}
	}
}

// A group of its own can be signalled as a whole, and is not signalled with
// this process's.
func TestStartGroup(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	child, err := Start([]string{"sh", "-c", "sleep 60 & echo; wait"}, environ(t, "v4lue"), StartOptions{Group: true, Files: [3]*os.File{1: w}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if group, err := syscall.Getpgid(child.Pid); err != nil || group != child.Pid {
		t.Errorf("group %d of %d: %v", group, child.Pid, err)
	}
	if err := syscall.Kill(-child.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := wait(child); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit %d", code)
	}
	// The pipe ends when the last of the group has.
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}

	if out, code := output(t, []string{"sh", "-c", "ps -o pgid= -p $$"}, StartOptions{}); strings.TrimSpace(out) != fmt.Sprint(syscall.Getpgrp()) || code != 0 {
		t.Errorf("without Group: exit %d, group %q, want %d", code, out, syscall.Getpgrp())
	}
}
