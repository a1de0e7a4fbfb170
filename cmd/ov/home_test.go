package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A home is where one account runs the programs, with a vault of its own.
type home struct {
	t   *testing.T
	dir string
	env []string
	uid uint32 // of the account, if it is not the caller's
}

// newHome makes a home for the account uid, or the caller's own if that is 0.
func newHome(t *testing.T, uid uint32) *home {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(scratch, "h")
	if err != nil {
		t.Fatal(err)
	}
	h := &home{t: t, dir: dir, uid: uid, env: []string{
		"HOME=" + dir, "XDG_RUNTIME_DIR=" + dir + "/run", "TMPDIR=" + dir + "/tmp",
		"PATH=" + bin + ":" + os.Getenv("PATH"), "LANG=C.UTF-8", "TZ=UTC",
	}}
	for _, name := range []string{"", "run", "tmp"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if uid != 0 {
			if err := os.Chown(path, int(uid), int(uid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(filepath.Join(dir, "tmp"))
		if err != nil || len(left) > 0 {
			t.Errorf("files were left in TMPDIR: %v %v", left, err)
		}
	})
	return h
}

// vault makes a vault whose password is mark, and its machine key in the file
// key.
func (h *home) vault() {
	h.t.Helper()
	h.must(mark, "ov", "auth", "init", "--password-stdin")
	h.must(mark, "ov", "auth", "derive-machine-key", "--out", "key", "--password-stdin")
}

// command is a program of the home's account, in its home.
func (h *home) command(argv ...string) *exec.Cmd {
	var path string
	for _, v := range h.env {
		if list, ok := strings.CutPrefix(v, "PATH="); ok {
			for _, dir := range filepath.SplitList(list) {
				if st, err := os.Stat(filepath.Join(dir, argv[0])); path == "" && err == nil && st.Mode().IsRegular() {
					path = filepath.Join(dir, argv[0])
				}
			}
		}
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir, cmd.Env = h.dir, h.env
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if h.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: h.uid, Gid: h.uid}
	}
	return cmd
}

// result is what a program printed, and its exit code.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a program with a line of input, if that is not empty.
func (h *home) run(input string, argv ...string) result {
	h.t.Helper()
	cmd := h.command(argv...)
	if input != "" {
		cmd.Stdin = strings.NewReader(input + "\n")
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		h.t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	if strings.Contains(stderr.String(), mark) {
		h.t.Errorf("%s: a secret is in standard error: %s", strings.Join(argv, " "), &stderr)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must is run for what must succeed. It returns the standard output.
func (h *home) must(input string, argv ...string) string {
	h.t.Helper()
	r := h.run(input, argv...)
	if r.code != 0 {
		h.t.Fatalf("%s: exit code %d: %s", strings.Join(argv, " "), r.code, r.stderr)
	}
	return r.stdout
}

// agent starts an agent that is stopped when the test ends, and returns its pid.
func (h *home) agent(args ...string) {
	h.t.Helper()
	h.must("", append([]string{"ov", "agent", "start", "--machine-key", "key"}, args...)...)
	h.t.Cleanup(func() {
		if r := h.run("", "ov", "agent", "stop"); r.code != 0 {
			h.t.Errorf("the agent does not stop: %s", r.stderr)
		}
	})
}
