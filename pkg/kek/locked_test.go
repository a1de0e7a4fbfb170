package kek

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Children of the test binary play a role of their own.
const roleEnv = "KEK_TEST_ROLE"

var roles = map[string]func(t *testing.T){}

// TestRole is not a test but what a child runs.
func TestRole(t *testing.T) {
	if name, ok := os.LookupEnv(roleEnv); ok {
		roles[name](t)
	}
}

// child returns a command that plays a role.
func child(t *testing.T, role string) *exec.Cmd {
	t.Helper()
	if roles[role] == nil {
		t.Fatalf("no role %q", role)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestRole$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return cmd
}

// play runs a role and fails with its output unless it passes.
func play(t *testing.T, role string) {
	t.Helper()
	out, err := child(t, role).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRole") {
		t.Errorf("%s: %v\n%s", role, err, out)
	}
	if i := strings.Index(string(out), "NOT RUN"); i >= 0 {
		line, _, _ := strings.Cut(string(out)[i:], "\n")
		t.Skip(line)
	}
}

// kinds are the ways to have locked memory.
func kinds(t *testing.T, fn func(t *testing.T, alloc func(int) (Memory, error))) {
	t.Run("memfd_secret", func(t *testing.T) {
		if m, err := allocSecret(1); err != nil {
			t.Skipf("NOT RUN: no memfd_secret(2) here: %v", err)
		} else {
			m.Destroy()
		}
		fn(t, allocSecret)
	})
	t.Run("mlock", func(t *testing.T) { fn(t, allocLocked) })
}

func TestMemory(t *testing.T) {
	page := os.Getpagesize()
	kinds(t, func(t *testing.T, alloc func(int) (Memory, error)) {
		for _, n := range []int{1, 32, page, page + 1, 20 * page} {
			m, err := alloc(n)
			if err != nil {
				t.Fatal(err)
			}
			b := m.Bytes()
			if len(b) < n || len(bytes.Trim(b, "\x00")) != 0 {
				t.Errorf("%d bytes: %d, not all zero", n, len(b))
			}
			for i := range b {
				b[i] = byte(i)
			}
			m.Destroy()
			if m.Bytes() != nil {
				t.Errorf("%d bytes are there after Destroy", n)
			}
			m.Destroy()
		}
	})
}

func TestLocked(t *testing.T) {
	for _, n := range []int{-1, 0, MaxLocked + 1} {
		if _, err := NewLocked(n); err == nil || !strings.Contains(err.Error(), "the bounds are 1 and 1048576") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	l, err := NewLocked(32)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Bytes()) != 32 || cap(l.Bytes()) < 32 {
		t.Errorf("%d bytes", len(l.Bytes()))
	}
	src := []byte("some secret")
	from, err := LockedFrom(src)
	if err != nil || string(from.Bytes()) != "some secret" || len(bytes.Trim(src, "\x00")) != 0 {
		t.Errorf("from: %q left %q, %v", from.Bytes(), src, err)
	}
	clone, err := from.Clone()
	if err != nil || !clone.Equal(from) || &clone.Bytes()[0] == &from.Bytes()[0] {
		t.Errorf("clone %q: %v", clone.Bytes(), err)
	}
	all := from.Bytes()
	from.Truncate(4)
	if string(from.Bytes()) != "some" || string(all) != "some\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("cut to %q, %q", from.Bytes(), all)
	}
	if clone.Equal(from) || string(clone.Bytes()) != "some secret" {
		t.Error("the clone is not its own")
	}
	for _, l := range []*Locked{l, from, clone} {
		l.Destroy()
		if len(l.Bytes()) != 0 {
			t.Error("bytes after Destroy")
		}
		l.Destroy()
	}
	(*Locked)(nil).Destroy()

	empty, err := LockedFrom(nil)
	if err != nil || len(empty.Bytes()) != 0 {
		t.Errorf("from nothing: %q, %v", empty.Bytes(), err)
	}
	if c, err := empty.Clone(); err != nil || len(c.Bytes()) != 0 {
		t.Errorf("a clone of nothing: %v", err)
	} else {
		c.Destroy()
	}
	empty.Destroy()

	big := bytes.Repeat([]byte{1}, MaxLocked+1)
	if _, err := LockedFrom(big); err == nil || len(bytes.Trim(big, "\x00")) != 0 {
		t.Error("a source that is too large is not wiped")
	}
}

func TestLockedIsShared(t *testing.T) {
	l, err := LockedFrom(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				c, err := l.Clone()
				if err != nil || !c.Equal(l) {
					t.Error(err)
				}
				c.Destroy()
			}
		})
	}
	wg.Wait()
	for range 4 {
		wg.Go(l.Destroy)
	}
	wg.Wait()
}

// Where the kernel has no memfd_secret(2), or forbids it, mlock(2) takes its
// place, through Fallback; where nothing can be locked, nothing is handed out.
func TestFallback(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("NOT RUN: Linux only")
	}
	play(t, "without memfd_secret")
	play(t, "without locked memory")
}

func TestDoPassesPanics(t *testing.T) {
	defer func() {
		if r := recover(); r != "mine" {
			t.Errorf("recovered %v", r)
		}
	}()
	Do(func() { panic("mine") })
}

func TestDo(t *testing.T) {
	n := 0
	Do(func() { Do(func() { n++ }); n++ })
	if n != 2 {
		t.Errorf("%d calls", n)
	}
	if want := strings.Contains(os.Getenv("GOEXPERIMENT"), "runtimesecret"); want && !Erasing {
		t.Error("built with GOEXPERIMENT=runtimesecret, and Do does not erase")
	}
}
