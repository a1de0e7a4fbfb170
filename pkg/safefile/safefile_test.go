package safefile

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
)

// The walk's judgements are tested where their messages are: machinekey, rendezvous.

var here = Policy{Owner: os.Geteuid(), Sticky: true}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir()) // macOS: /var is a link
	must(t, err)
	must(t, os.Chmod(dir, 0o700))
	return dir
}

// Nobody is told to close /tmp to others.
func TestSharedDirectory(t *testing.T) {
	st, err := os.Stat("/tmp")
	must(t, err)
	if st.Sys().(*syscall.Stat_t).Uid != 0 || st.Mode().Perm() != 0o777 || st.Mode()&fs.ModeSticky == 0 {
		t.Skipf("NOT RUN: /tmp is %v", st.Mode())
	}
	tmp, err := filepath.EvalSymlinks("/tmp")
	must(t, err)
	own, err := os.MkdirTemp("/tmp", "safefile")
	must(t, err)
	t.Cleanup(func() { _ = os.Remove(own) })
	for _, c := range []struct {
		dir  string
		p    Policy
		hint string // "" if there is no fault
	}{
		{"/tmp", here, "move it to a directory that only its owner can write: install -d -m 700 DIR"},
		{"/tmp", Policy{Owner: os.Geteuid()}, "move it out of " + tmp + ", to a directory that only its owner can write: install -d -m 700 DIR"},
		{own, Policy{Owner: os.Geteuid()}, "move it out of " + tmp + ", to a directory that only its owner can write: install -d -m 700 DIR"},
		{own, here, ""},
	} {
		d, err := OpenDir(c.dir, c.p)
		must(t, err)
		if got := hint.Of(d.Fault); got != c.hint || (d.Fault == nil) != (c.hint == "") {
			t.Errorf("%s, %+v: %v, hint %q", c.dir, c.p, d.Fault, got)
		}
		must(t, d.Close())
	}
}

// The walk arrives where the kernel would.
func TestOpenDirResolves(t *testing.T) {
	base := tempDir(t)
	for _, dir := range []string{"a/b/c", "x/y"} {
		must(t, os.MkdirAll(filepath.Join(base, dir), 0o700))
	}
	for link, target := range map[string]string{
		"rel": "a/b", "abs": base + "/x", "up": "a/../x/./y//", "a/b/out": "../../x", "chain": "rel/c/../out/y", "slash": "/",
	} {
		must(t, os.Symlink(target, filepath.Join(base, link)))
	}
	t.Chdir(filepath.Join(base, "x"))
	for _, dir := range []string{
		base, base + "/", base + "//a/./b", base + "/rel", base + "/rel/..", base + "/rel/../..", base + "/abs/y",
		base + "/up", base + "/rel/out/y", base + "/chain", base + "/chain/../../a", base + "/slash", base + "/slash/../..",
		"/", "/..", "", ".", "..", "y", "../rel", "../rel/../b", "./y/..",
	} {
		want, err := os.Stat(dir + "/.") // "" is the current directory
		if dir == "" {
			want, err = os.Stat(".")
		}
		must(t, err)
		d, err := OpenDir(dir, here)
		if err != nil {
			t.Errorf("%q: %v", dir, err)
			continue
		}
		got, err := os.Stat(d.Path())
		must(t, err)
		if !os.SameFile(got, want) {
			t.Errorf("%q: arrived at %s", dir, d.Path())
		}
		if path := d.Path(); path != filepath.Clean(path) {
			t.Errorf("%q: path %q is not clean", dir, path)
		}
		if resolved, _ := filepath.EvalSymlinks(d.Path()); resolved != d.Path() {
			t.Errorf("%q: path %q goes through a link", dir, d.Path())
		}
		if d.Fault != nil {
			t.Errorf("%q: %v", dir, d.Fault)
		}
		must(t, d.Close())
	}
	for _, dir := range []string{base + "/none", base + "/a/none/b", base + "/rel/none"} {
		if _, err := OpenDir(dir, here); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", dir, err)
		}
	}
}

func TestOpenDirLeaksNoDescriptor(t *testing.T) {
	base := tempDir(t)
	must(t, os.Symlink("none", base+"/l"))
	lowest := func() int {
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		return fd
	}
	before := lowest()
	for _, dir := range []string{base, base + "/none", base + "/l", base + "/l/x"} {
		if d, err := OpenDir(dir, here); err == nil {
			_, _, _ = d.Open("none", unix.O_RDONLY)
			_ = d.Write("a/b", nil, Attr{Perm: 0o600, UID: -1, GID: -1})
			must(t, d.Close())
		}
	}
	if after := lowest(); after != before {
		t.Errorf("lowest free descriptor was %d, is %d", before, after)
	}
}

func TestWriteSweeps(t *testing.T) {
	base := tempDir(t)
	old := time.Now().Add(-2 * leftover)
	for name, at := range map[string]time.Time{tmpPrefix + "old": old, tmpPrefix + "new": time.Now(), ".ov-other": old} {
		must(t, os.WriteFile(filepath.Join(base, name), []byte("x"), 0o600))
		must(t, os.Chtimes(filepath.Join(base, name), at, at))
	}
	must(t, os.Mkdir(filepath.Join(base, tmpPrefix+"dir"), 0o700))
	must(t, os.Chtimes(filepath.Join(base, tmpPrefix+"dir"), old, old))
	d, err := OpenDir(base, here)
	must(t, err)
	defer func() { _ = d.Close() }()
	must(t, d.Write("f", []byte("data"), Attr{Perm: 0o640, UID: -1, GID: -1}))
	var got []string
	entries, err := os.ReadDir(base)
	must(t, err)
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := ".ov-other " + tmpPrefix + "dir " + tmpPrefix + "new f"; strings.Join(got, " ") != want {
		t.Errorf("left %q, want %q", got, want)
	}
	if info, _ := os.Stat(filepath.Join(base, "f")); info.Mode() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
}

// Also where the file system cannot rename without replacing.
func TestRenameNew(t *testing.T) {
	base := tempDir(t)
	fd, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	for name, rename := range map[string]func(int, string, string) error{"rename": renameNoReplace, "fallback": linkNew} {
		a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
		must(t, os.WriteFile(a, []byte("new"), 0o600))
		must(t, os.WriteFile(b, []byte("old"), 0o600))
		if err := rename(fd, "a", "b"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := os.ReadFile(b); string(got) != "old" {
			t.Errorf("%s: replaced by %q", name, got)
		}
		must(t, os.Remove(b))
		must(t, rename(fd, "a", "b"))
		var st syscall.Stat_t
		must(t, syscall.Lstat(b, &st))
		if got, _ := os.ReadFile(b); string(got) != "new" || st.Nlink != 1 {
			t.Errorf("%s: %q with %d links", name, got, st.Nlink)
		}
		if _, err := os.Lstat(a); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the old name is left", name)
		}
		must(t, os.Remove(b))
	}
}

// A hint is pasted into a shell: it must name the file and run nothing.
func TestShell(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("NOT RUN: no bash here")
	}
	for _, s := range []string{
		"/etc/ov/my-app.key", "a b", "it's", "$(touch pwned)", "`id`", "a\nb", "\x1b[2J", "\xff", `a\b`, `'\''`, "a'\n\\",
		"é", "~root", "*", "", "#", "{a,b}", "\u202e", "!x",
	} {
		out, err := exec.Command(bash, "-c", "printf %s "+Shell(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q as %s became %q, %v", s, Shell(s), out, err)
		}
		for _, shown := range []string{Shell(s), Quote(s)} {
			if strings.ContainsAny(shown, "\x1b\n\u202e") {
				t.Errorf("%q upsets a terminal", shown)
			}
		}
	}
	if got := Shell("-rf"); got != "./-rf" {
		t.Errorf("a name that looks like an option: %s", got)
	}
}

func FuzzQuote(f *testing.F) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		f.Skip("NOT RUN: no bash here")
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.HasPrefix(s, "-") || strings.ContainsRune(s, 0) {
			return // "./" goes before it; no path holds NUL
		}
		out, err := exec.Command(bash, "-c", "printf %s "+Shell(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q as %s became %q, %v", s, Shell(s), out, err)
		}
	})
}
