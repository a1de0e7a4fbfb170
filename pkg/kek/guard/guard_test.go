package guard

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/kek"
)

func TestAlloc(t *testing.T) {
	for _, n := range []int{1, 32, 5000} {
		m, err := alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		if b := m.Bytes(); len(b) != n || len(bytes.Trim(b, "\x00")) != 0 {
			t.Errorf("%d bytes: %d, not all zero", n, len(b))
		}
		m.Bytes()[n-1] = 1
		m.Destroy()
		m.Destroy()
		if len(m.Bytes()) != 0 {
			t.Errorf("%d bytes are there after Destroy", n)
		}
	}
}

func TestInstall(t *testing.T) {
	old := kek.Fallback
	defer func() { kek.Fallback = old }()
	Install()
	m, err := kek.Fallback(32)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Destroy()
	if len(m.Bytes()) != 32 {
		t.Errorf("%d bytes", len(m.Bytes()))
	}
	// memguard's init has set the limit for good: that is why only the agent
	// links it.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 || limit.Max != 0 {
		t.Errorf("RLIMIT_CORE %+v: %v", limit, err)
	}
}

const roleEnv = "GUARD_TEST_ROLE"

// Memory that cannot be locked is an error, not memguard's panic.
func TestNoLockedMemory(t *testing.T) {
	if os.Getenv(roleEnv) != "" {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 { // root may lock all the same
			if err := syscall.Setuid(65534); err != nil {
				t.Fatal(err)
			}
		}
		if m, err := alloc(32); err == nil || m != nil || !strings.HasPrefix(err.Error(), "memguard: ") {
			t.Errorf("got %v, %v", m, err)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestNoLockedMemory$", "-test.v")
	cmd.Env = append(os.Environ(), roleEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
