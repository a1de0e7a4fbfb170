package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite golden files, man pages and completions")

// scratch holds what the tests make. Not in t.TempDir, whose paths are too long
// for a socket (107 bytes).
var scratch string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	flag.Parse()
	// What these tests start must not ask a person who runs them on a terminal.
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		_ = unix.IoctlSetInt(int(tty.Fd()), unix.TIOCNOTTY, 0)
		_ = tty.Close()
	}
	unix.Umask(0o022)
	dir, err := os.MkdirTemp("/tmp", "ov")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir) // /tmp of macOS
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // for the tests that change account
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	scratch = dir
	defer func() { _ = os.RemoveAll(dir) }()
	return m.Run()
}

// programs builds ov and its further programs as `make build` does and returns their folder.
var programs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "bin")
	for name, ldflags := range map[string]string{"ov": entry(), "ov-agent": "", "ov-mcp": "", "ov-scan": "", "ov-server": ""} {
		cmd := exec.Command("go", "build", "-tags=grpcnotrace", "-buildvcs=false", "-trimpath",
			"-ldflags", "-s -w -X github.com/opaquevault/ov/pkg/version.version=v0.0.0-test "+ldflags,
			"-o", dir+"/", "../"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT=runtimesecret", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// entry is the linker flag for ov's own entry point: see the Makefile.
func entry() string {
	if runtime.GOOS == "linux" {
		return "-E ov_entry"
	}
	return ""
}
