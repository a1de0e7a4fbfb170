package kek

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
)

func init() {
	roles["without memfd_secret"] = withoutMemfdSecret
	roles["without locked memory"] = withoutLockedMemory
	roles["hardened"] = hardened
	roles["derive"] = deriveAndScan
	for _, kind := range []string{"memfd_secret", "mlock"} {
		for _, side := range []string{"before", "behind"} {
			roles[kind+" "+side] = func(t *testing.T) { stepOver(t, kind, side) }
		}
	}
}

// stepOver writes to the guard page on one side of locked memory.
func stepOver(t *testing.T, kind, side string) {
	alloc := map[string]func(int) (Memory, error){"memfd_secret": allocSecret, "mlock": allocLocked}[kind]
	m, err := alloc(32)
	if err != nil {
		t.Fatal(err)
	}
	b := m.Bytes()
	at := unsafe.Pointer(unsafe.SliceData(b))
	last := unsafe.Add(at, os.Getpagesize()-1)
	*(*byte)(at), *(*byte)(last) = 1, 1 // the page itself is fine
	fmt.Println("about to step over")
	if side == "before" {
		*(*byte)(unsafe.Add(at, -1)) = 1
	} else {
		*(*byte)(unsafe.Add(last, 1)) = 1
	}
	fmt.Println("stepped over")
}

// A write that runs over either end of the memory ends the process.
func TestGuardPages(t *testing.T) {
	kinds(t, func(t *testing.T, _ func(int) (Memory, error)) {
		kind := t.Name()[strings.Index(t.Name(), "/")+1:]
		for _, side := range []string{"before", "behind"} {
			out, err := child(t, kind+" "+side).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(string(out), "about to step over") || strings.Contains(string(out), "stepped over\n") ||
				!strings.Contains(string(out), "unexpected fault address") && !strings.Contains(string(out), "SIGSEGV") {
				t.Errorf("%s: %v\n%s", side, err, out)
			}
		}
	})
}

// mapping returns what smaps(5) says of the mapping that holds b.
func mapping(t *testing.T, b []byte) (header string, flags []string) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for in, s := false, bufio.NewScanner(f); s.Scan(); {
		var from, to uintptr
		if n, _ := fmt.Sscanf(s.Text(), "%x-%x", &from, &to); n == 2 {
			if in = from <= at && at < to; in {
				header = s.Text()
			}
		} else if rest, ok := strings.CutPrefix(s.Text(), "VmFlags:"); ok && in {
			return header, strings.Fields(rest)
		}
	}
	t.Fatal("the mapping is not in smaps")
	return "", nil
}

// readOut reads memory as a debugger would.
func readOut(t *testing.T, b []byte) ([]byte, error) {
	t.Helper()
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	out := make([]byte, len(b))
	_, err = f.ReadAt(out, int64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))))
	return out, err
}

// The kernel agrees: the memory is locked and left out of core dumps, or is
// memfd_secret's, which nobody can read from outside.
func TestMappings(t *testing.T) {
	kinds(t, func(t *testing.T, alloc func(int) (Memory, error)) {
		m, err := alloc(3 * os.Getpagesize())
		if err != nil {
			t.Fatal(err)
		}
		defer m.Destroy()
		b := m.Bytes()
		copy(b, "a secret that nobody reads")
		header, flags := mapping(t, b)
		if strings.HasSuffix(t.Name(), "/mlock") {
			if !slices.Contains(flags, "lo") || !slices.Contains(flags, "dd") {
				t.Errorf("flags %v of %s", flags, header)
			}
			if out, err := readOut(t, b); err != nil || !bytes.Equal(out, b) {
				t.Errorf("what a debugger reads: %.30q, %v", out, err) // or this test tests nothing
			}
			return
		}
		if !strings.Contains(header, "/secretmem") || !slices.Contains(flags, "lo") || !slices.Contains(flags, "dd") {
			t.Errorf("flags %v of %s", flags, header)
		}
		if out, err := readOut(t, b); !errors.Is(err, unix.EIO) {
			t.Errorf("a debugger reads %.30q, %v", out, err)
		}
	})
	l, err := NewLocked(32)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Destroy()
	header, _ := mapping(t, l.Bytes())
	if l.Hidden() != strings.Contains(header, "/secretmem") {
		t.Errorf("hidden %v, mapping %s", l.Hidden(), header)
	}
}

// Destroy gives back memory, mapping and descriptors.
func TestNothingIsLeft(t *testing.T) {
	count := func() (maps, fds int) {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n")), len(open)
	}
	round := func() {
		for range 200 {
			l, err := NewLocked(5000)
			if err != nil {
				t.Fatal(err)
			}
			l.Destroy()
		}
	}
	round()
	maps, fds := count()
	round()
	if m, f := count(); m > maps+10 || f > fds+2 {
		t.Errorf("%d mappings and %d descriptors, before %d and %d", m, f, maps, fds)
	}
}

// withoutMemfdSecret has the kernel refuse the call, as older ones do and as
// systemd's @system-service does.
func withoutMemfdSecret(t *testing.T) {
	if _, err := allocSecret(1); err != nil {
		t.Logf("there was none before: %v", err)
	}
	forbid(t, unix.SYS_MEMFD_SECRET, unix.ENOSYS)
	if _, err := allocSecret(32); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("memfd_secret: %v", err)
	}
	l, err := LockedFrom([]byte("a secret"))
	if err != nil {
		t.Fatal(err)
	}
	if l.Hidden() {
		t.Error("hidden without memfd_secret")
	}
	if header, flags := mapping(t, l.Bytes()); !slices.Contains(flags, "lo") || !slices.Contains(flags, "dd") {
		t.Errorf("flags %v of %s", flags, header)
	}
	l.Destroy()
	// The agent's fallback is used when it is there.
	called := 0
	Fallback = func(n int) (Memory, error) { called++; return allocLocked(n) }
	if l, err = NewLocked(8); err != nil || called != 1 {
		t.Errorf("fallback called %d times: %v", called, err)
	}
	l.Destroy()
}

// forbid makes a system call fail in all threads of this process: seccomp(2).
func forbid(t *testing.T, nr uintptr, errno unix.Errno) {
	t.Helper()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		t.Skipf("NOT RUN: no seccomp filter can be set here: %v", e)
	}
}

// withoutLockedMemory takes away the right to lock any.
func withoutLockedMemory(t *testing.T) {
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // root may lock all the same
		if err := syscall.Setuid(65534); err != nil {
			t.Fatal(err)
		}
	}
	for what, alloc := range map[string]func() (*Locked, error){
		"new":  func() (*Locked, error) { return NewLocked(32) },
		"from": func() (*Locked, error) { return LockedFrom([]byte("a secret")) },
		"kek":  New,
	} {
		l, err := alloc()
		if err == nil || l != nil {
			t.Errorf("%s: %v, %v", what, l, err)
			continue
		}
		if !strings.Contains(err.Error(), "cannot lock") || !strings.Contains(hint.Of(err), "ulimit -l") {
			t.Errorf("%s: %v (%s)", what, err, hint.Of(err))
		}
	}
}

func hardened(t *testing.T) {
	before, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || before != 1 {
		t.Fatalf("dumpable %d before: %v", before, err)
	}
	if err := Harden(); err != nil {
		t.Fatal(err)
	}
	if after, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || after != 0 {
		t.Errorf("dumpable %d: %v", after, err)
	}
	// A program that it starts is as any other.
	out, err := exec.Command("cat", "/proc/self/status").Output()
	if err != nil || !strings.Contains(string(out), "CoreDumping:\t0") {
		t.Errorf("a child: %v", err)
	}
}

func TestHarden(t *testing.T) { play(t, "hardened") }

// The child that derives a key takes the password's traces with it: this
// process has the password and the key in locked memory and nowhere else.
func TestPasswordLeavesNoTrace(t *testing.T) { play(t, "derive") }

// mask keeps what is searched for from being found where it is kept for that.
const mask = 0x5a

func masked(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ mask
	}
	return out
}

func deriveAndScan(t *testing.T) {
	password, err := NewLocked(24)
	if err != nil {
		t.Fatal(err)
	}
	rand.Read(password.Bytes())
	planted := make([]byte, 24)
	rand.Read(planted)

	key, err := SlotKey(t.Context(), password, NewArgon2id())
	if err != nil {
		t.Fatal(err)
	}
	needles := map[string][]byte{"password": masked(password.Bytes()), "key": masked(key.Bytes()), "planted": masked(planted)}
	runtime.GC()
	runtime.GC()
	// Where there is no memfd_secret, its own page can be read.
	skip := map[uint64]bool{}
	for _, l := range []*Locked{password, key} {
		skip[uint64(uintptr(unsafe.Pointer(unsafe.SliceData(l.Bytes()))))] = true
	}
	found, read := map[string]int{}, 0
	flipped, masks := make([]byte, 1<<20), bytes.Repeat([]byte{mask}, 1<<20)
	err = readable(func(at uint64, b []byte) {
		if skip[at] {
			return
		}
		read += len(b)
		f := flipped[:len(b)]
		subtle.XORBytes(f, b, masks)
		clear(b) // or the next piece finds this one's copy
		for what, needle := range needles {
			found[what] += bytes.Count(f, needle)
		}
		clear(f) // it may hold a needle, unmasked
	})
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(planted)
	if found["planted"] == 0 {
		t.Error("the scan does not find what is planted")
	}
	if found["password"] > 0 || found["key"] > 0 {
		t.Errorf("found in %d bytes of memory: %v", read, found)
	}
	t.Logf("found in %d bytes of memory: %v", read, found)
	password.Destroy()
	key.Destroy()
}

// readable calls fn with what can be read of this process's memory, a piece at
// a time.
func readable(fn func(at uint64, b []byte)) error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return err
	}
	defer func() { _ = mem.Close() }()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var perm string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); n != 3 || perm[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		b := make([]byte, min(to-from, 1<<20))
		for at := from; at < to; at += uint64(len(b)) - 64 { // over the borders too
			n, err := mem.ReadAt(b[:min(uint64(len(b)), to-at)], int64(at))
			if n == 0 {
				break // memfd_secret's, or gone
			}
			fn(at, b[:n])
			if err != nil && !errors.Is(err, io.EOF) {
				break
			}
			if at+uint64(n) >= to {
				break
			}
		}
	}
	return nil
}
