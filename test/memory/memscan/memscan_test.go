//go:build linux

package memscan

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The places in which the victim plants what it reads from its input, in this
// order, 32 bytes each.
var places = []struct {
	name  string
	found bool // in /proc/PID/mem
	core  bool // in gcore -a
}{
	{"heap", true, true},
	{"stack", true, true},
	{"mmap", true, true},
	{"across a chunk", true, true},
	{"mlock, dontdump", true, true},
	{"prot_none", true, true},
	{"shared memory", true, true},
	{"hex", true, true},
	{"base64", true, true},
	{"memfd_secret", false, false},
	{"nowhere", false, false},
}

func TestMain(m *testing.M) {
	if os.Getenv("MEMSCAN_VICTIM") != "" {
		victim()
	}
	os.Exit(m.Run())
}

var (
	heap    []byte
	victims [][]byte
)

// victim reads each pattern from its input straight into its place, so that
// there is one copy, says "ready" and waits for the end of the input.
func victim() {
	runtime.LockOSThread()
	heap = make([]byte, 32)
	fill(heap)
	var stack [32]byte
	fill(noescape(&stack))
	fill(pages(4, nil)[100:132])
	fill(pages(2*chunk/os.Getpagesize(), nil)[chunk-16 : chunk+16])
	fill(pages(1, func(b []byte) error { return errors.Join(unix.Mlock(b), unix.Madvise(b, unix.MADV_DONTDUMP)) })[:32])

	none := pages(1, nil)
	fill(none[:32])
	check(unix.Mprotect(none, unix.PROT_NONE))

	fd, err := unix.MemfdCreate("victim", unix.MFD_CLOEXEC)
	check(err)
	fill(shared(fd)[:32])

	// These two arrive in their place encoded.
	fill(pages(1, nil)[5:69])
	fill(pages(1, nil)[7:51])

	if fd, err = unix.MemfdSecret(unix.O_CLOEXEC); err == nil {
		fill(shared(fd)[:32])
	}
	// Everything else but "nowhere" is read by now, whatever the kernel has.
	fmt.Println("ready", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(&stack)
	os.Exit(0)
}

func fill(b []byte) {
	for len(b) > 0 {
		n, err := unix.Read(0, b)
		if n <= 0 {
			check(fmt.Errorf("read of %d: %w", n, err))
		}
		b = b[n:]
	}
}

//go:noinline
func noescape(b *[32]byte) []byte { return unsafe.Slice(&b[0], 32) }

func check(err error) {
	if err != nil {
		fmt.Println("victim:", err)
		os.Exit(1)
	}
}

func pages(n int, prepare func([]byte) error) []byte {
	b, err := unix.Mmap(-1, 0, n*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	check(err)
	if prepare != nil {
		check(prepare(b))
	}
	victims = append(victims, b)
	return b
}

func shared(fd int) []byte {
	check(unix.Ftruncate(fd, int64(os.Getpagesize())))
	b, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(err)
	victims = append(victims, b)
	return b
}

// TestFindsWhatIsPlanted shows that a count of zero means something.
func TestFindsWhatIsPlanted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("reading another process's memory needs root")
	}
	var patterns []Pattern
	secrets := map[string][]byte{}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "MEMSCAN_VICTIM=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	for _, place := range places {
		secret := make([]byte, 32)
		rand.Read(secret)
		secrets[place.name] = secret
		patterns = append(patterns, Forms(place.name, secret)...)
		sent := secret
		switch place.name {
		case "hex":
			sent = []byte(hex.EncodeToString(secret))
		case "base64":
			sent = []byte(base64.StdEncoding.EncodeToString(secret))
		case "nowhere":
			continue
		}
		if _, err := in.Write(sent); err != nil {
			t.Fatal(err)
		}
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(said, "ready") {
		t.Fatalf("the victim said %q: %v", said, err)
	}
	hasSecretMem := strings.Contains(said, "nil")

	report, err := Process(cmd.Process.Pid, patterns)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes read, %d refused", report.Read, report.Unreadable)
	for _, place := range places {
		if place.name == "memfd_secret" && !hasSecretMem {
			t.Logf("memfd_secret: %s", said)
			continue
		}
		if got := report.Count(place.name) > 0; got != place.found {
			t.Errorf("%s: found is %v, want %v", place.name, got, place.found)
		}
	}
	if hasSecretMem && report.Unreadable == 0 {
		t.Error("the page of memfd_secret was not refused")
	}
	for _, h := range report.Hits {
		if h.Name == "mlock, dontdump" && (!h.Mapping.Has("lo") || !h.Mapping.Has("dd")) {
			t.Errorf("%s: the flags lo and dd are not both there", h)
		}
		if h.Name == "mmap" && (h.Mapping.Has("lo") || h.Mapping.Has("dd")) {
			t.Errorf("%s: has flags of locked memory", h)
		}
	}

	if _, err := exec.LookPath("gcore"); err != nil {
		t.Skip("the scan of a core file needs gcore (gdb)")
	}
	core := filepath.Join(t.TempDir(), "core")
	if out, err := exec.Command("gcore", "-a", "-o", core, fmt.Sprint(cmd.Process.Pid)).CombinedOutput(); err != nil {
		t.Fatalf("gcore: %v\n%s", err, out)
	}
	report, err = Core(fmt.Sprintf("%s.%d", core, cmd.Process.Pid), patterns)
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range places {
		if got := report.Count(place.name) > 0; got != place.core {
			t.Errorf("core: %s: found is %v, want %v", place.name, got, place.core)
		}
	}
}

func TestRefusesToScanItself(t *testing.T) {
	if _, err := Process(os.Getpid(), Forms("x", []byte("sixteen bytes or more"))); err == nil {
		t.Error("it scanned itself")
	}
}

// TestForms checks base64 at every offset within a longer text.
func TestForms(t *testing.T) {
	secret := make([]byte, 33)
	rand.Read(secret)
	forms := Forms("s", secret)
	for before := range 7 {
		for after := range 4 {
			text := append(append(make([]byte, before), secret...), make([]byte, after)...)
			for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding} {
				found := 0
				m, err := newMatcher(forms)
				if err != nil {
					t.Fatal(err)
				}
				m.find([]byte(enc.EncodeToString(text)), 0, func(Pattern, int) { found++ })
				if found != 1 {
					t.Errorf("%d bytes before, %d after: found %d times, want once", before, after, found)
				}
			}
		}
	}
}

func TestShortPatternsAreRefused(t *testing.T) {
	for _, p := range []string{"", "short", "\x00\x00\x00\x00\x00\x00\x00\x00rest"} {
		if _, err := newMatcher([]Pattern{{"p", "raw", []byte(p)}}); err == nil {
			t.Errorf("pattern %q was taken", p)
		}
	}
}

// TestStreamBorders finds a pattern at every distance from the border of two
// reads, once each.
func TestStreamBorders(t *testing.T) {
	p := []byte("a pattern of some length")
	for cut := range len(p) + 20 {
		text := append(append([]byte("0123456789"), p...), "0123456789"...)
		m, err := newMatcher([]Pattern{{"p", "raw", p}, {"longer", "raw", ones(100)}})
		if err != nil {
			t.Fatal(err)
		}
		var at []uint64
		s := &stream{m: m, hits: func(_ Pattern, addr uint64) { at = append(at, addr) }}
		s.feed(1000, text[:cut])
		s.feed(1000+uint64(cut), text[cut:])
		s.feed(5000, nil)
		if len(at) != 1 || at[0] != 1010 {
			t.Errorf("cut at %d: found at %v, want at 1010 once", cut, at)
		}
	}
}

func ones(n int) []byte { return []byte(strings.Repeat("\x01", n)) }
