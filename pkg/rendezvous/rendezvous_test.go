package rendezvous

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// other is a uid without a login name.
const other = 54322

const socket = "/run/ov-agent/ov-agent.sock"

// here trusts whoever runs the test in root's place, and /tmp on the way.
var here = safefile.Policy{Owner: os.Geteuid(), Sticky: true}

// area is a directory, 0755, in another.
type area struct {
	t               *testing.T
	base, dir, file string
}

func newArea(t *testing.T, parent string) *area {
	base, err := os.MkdirTemp(parent, "rendezvous")
	if err != nil {
		t.Fatal(err)
	}
	if base, err = filepath.EvalSymlinks(base); err != nil { // macOS: /var is a link
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	a := &area{t, base, filepath.Join(base, "ov"), filepath.Join(base, "ov", "agent.socket")}
	a.chmod(base, 0o755)
	a.must(os.Mkdir(a.dir, 0o755))
	return a
}

func (a *area) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *area) chmod(name string, mode uint32) {
	a.t.Helper()
	a.must(syscall.Chmod(name, mode))
}

func (a *area) chown(name string) {
	a.t.Helper()
	a.must(os.Lchown(name, other, other))
}

func (a *area) write(content string) {
	a.t.Helper()
	a.must(os.WriteFile(a.file, []byte(content), 0o644))
}

// hostile are the files that must be neither followed nor passed over. In want
// and fix {F} is the file, {D} its directory, {B} the one above, {U} the owner
// that is expected, {O} another user.
var hostile = []struct {
	name  string
	root  bool // making it takes root
	make  func(a *area)
	want  string
	fix   string
	mends bool // the fix is a command that, run, makes the file acceptable
}{
	{name: "symbolic link", make: func(a *area) {
		a.must(os.WriteFile(a.dir+"/real", []byte(socket+"\n"), 0o644))
		a.must(os.Symlink("real", a.file))
	}, want: "is a symbolic link, not a regular file", fix: "sudo rm -r {F} && " + anew},
	{name: "dangling symbolic link", make: func(a *area) { a.must(os.Symlink("nowhere", a.file)) },
		want: "is a symbolic link, not a regular file", fix: "sudo rm -r {F} && " + anew},
	{name: "directory", make: func(a *area) { a.must(os.Mkdir(a.file, 0o755)) },
		want: "is a directory, not a regular file", fix: "sudo rm -r {F} && " + anew},
	{name: "named pipe", make: func(a *area) { a.must(unix.Mkfifo(a.file, 0o644)) },
		want: "is a named pipe, not a regular file", fix: "sudo rm -r {F} && " + anew},
	{name: "the agent's socket itself", make: func(a *area) {
		l, err := net.Listen("unix", a.file)
		a.must(err)
		a.t.Cleanup(func() { _ = l.Close() })
	}, want: "is a socket, not a regular file", fix: "sudo rm -r {F} && " + anew},
	{name: "another's", root: true, make: func(a *area) {
		a.write(socket)
		a.chown(a.file)
	}, want: "is owned by {O}, not by {U}", fix: "see what it holds, then: sudo chown root {F}", mends: true},
	{name: "group can write", make: func(a *area) {
		a.write(socket)
		a.chmod(a.file, 0o664)
	}, want: "can be written by others (mode 0664)", fix: "see what it holds, then: sudo chmod 644 {F}", mends: true},
	{name: "all can write", make: func(a *area) {
		a.write(socket)
		a.chmod(a.file, 0o646)
	}, want: "can be written by others (mode 0646)", fix: "see what it holds, then: sudo chmod 644 {F}", mends: true},
	{name: "directory that a group can write", make: func(a *area) {
		a.write(socket)
		a.chmod(a.dir, 0o775)
	}, want: "{D} is a directory that others can write (mode 0775)", fix: "chmod go-w {D}", mends: true},
	{name: "sticky directory", make: func(a *area) {
		a.write(socket)
		a.chmod(a.dir, 0o1777)
	}, root: true, want: "{D} is a directory that others can write (mode 1777)",
		fix: "move it to a directory that only its owner can write: install -d -m 700 DIR"},
	{name: "another's directory, as before the agent is installed", root: true, make: func(a *area) {
		a.write(socket)
		a.chmod(a.dir, 0o700)
		a.chown(a.dir)
	}, want: "{D} is a directory owned by {O}, not by {U}", fix: "if it should be root's: sudo chown root {D}"},
	{name: "directory further up", make: func(a *area) {
		a.write(socket)
		a.chmod(a.base, 0o777)
	}, want: "{B} is a directory that others can write (mode 0777)", fix: "chmod go-w {B}", mends: true},
	{name: "another's directory further up", root: true, make: func(a *area) {
		a.write(socket)
		a.chown(a.base)
	}, want: "{B} is a directory owned by {O}, not by {U}", fix: "if it should be root's: sudo chown root {B}", mends: true},
	{name: "through another's symbolic link", root: true, make: func(a *area) {
		a.write(socket)
		a.must(os.Rename(a.dir, a.base+"/real"))
		a.must(os.Symlink("real", a.dir))
		a.chown(a.dir)
	}, want: "{D} is a symbolic link owned by {O}, not by {U}", fix: "if it should be root's: sudo chown -h root {D}", mends: true},
	{name: "through a dangling symbolic link", make: func(a *area) {
		a.must(os.Remove(a.dir))
		a.must(os.Symlink("nowhere", a.dir))
	}, want: "{B}/nowhere does not exist, but a symbolic link leads there", fix: "look at the links: namei -l {D}"},
	{name: "directory is a file", make: func(a *area) {
		a.must(os.Remove(a.dir))
		a.must(os.WriteFile(a.dir, nil, 0o644))
	}, want: "cannot open {D}: not a directory", fix: "look at it: namei -l {F}"},

	{name: "empty", make: func(a *area) { a.write("") }, want: "is empty", fix: "write it anew: " + anew},
	{name: "empty line", make: func(a *area) { a.write("\n") }, want: "is empty", fix: "write it anew: " + anew},
	{name: "108 bytes", make: func(a *area) { a.write("/" + strings.Repeat("a", 107)) },
		want: "has a line of more than 107 bytes", fix: "write it anew: " + anew},
	{name: "endless", make: func(a *area) {
		a.write("/")
		a.must(os.Truncate(a.file, 1<<40))
	}, want: "has a line of more than 107 bytes", fix: "write it anew: " + anew},
	{name: "two lines", make: func(a *area) { a.write(socket + "\n/tmp/evil\n") },
		want: "has more than one line", fix: "write it anew: " + anew},
	{name: "two newlines", make: func(a *area) { a.write(socket + "\n\n") },
		want: "has more than one line", fix: "write it anew: " + anew},
	{name: "carriage return", make: func(a *area) { a.write(socket + "\r\n") },
		want: "holds characters that are not printable", fix: "write it anew: " + anew},
	{name: "NUL", make: func(a *area) { a.write("/run/a\x00/run/b") },
		want: "holds characters that are not printable", fix: "write it anew: " + anew},
	{name: "abstract socket", make: func(a *area) { a.write("\x00ov-agent") },
		want: "holds characters that are not printable", fix: "write it anew: " + anew},
	{name: "escape sequence", make: func(a *area) { a.write("/run/\x1b[2J") },
		want: "holds characters that are not printable", fix: "write it anew: " + anew},
	{name: "text that runs backwards", make: func(a *area) { a.write("/run/\u202esock") },
		want: "holds characters that are not printable", fix: "write it anew: " + anew},
	{name: "not UTF-8", make: func(a *area) { a.write("/run/\xff") },
		want: "holds characters that are not printable", fix: "write it anew: " + anew},
	{name: "relative path", make: func(a *area) { a.write("run/ov.sock\n") },
		want: "does not hold an absolute path", fix: "write it anew: " + anew},
	{name: "URL", make: func(a *area) { a.write("unix:///run/ov.sock\n") },
		want: "does not hold an absolute path", fix: "write it anew: " + anew},
	{name: "abstract socket as ss(8) shows it", make: func(a *area) { a.write("@ov-agent\n") },
		want: "does not hold an absolute path", fix: "write it anew: " + anew},
	{name: "dots", make: func(a *area) { a.write("/run/../tmp/evil\n") }, want: notClean, fix: "write it anew: " + anew},
	{name: "trailing slash", make: func(a *area) { a.write("/run/ov-agent/\n") }, want: notClean, fix: "write it anew: " + anew},
	{name: "root directory", make: func(a *area) { a.write("/\n") }, want: notClean, fix: "write it anew: " + anew},
}

const notClean = `holds a path that is not clean: it has "//", "." or "..", or ends in "/"`

func TestHostile(t *testing.T) {
	whose := "root"
	if here.Owner != 0 {
		whose = strconv.Itoa(here.Owner)
		t.Log("NOT RUN: the cases that take root")
	}
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			if c.root && here.Owner != 0 {
				t.Skip("NOT RUN: takes root")
			}
			a := newArea(t, "")
			c.make(a)
			fill := strings.NewReplacer("{F}", a.file, "{D}", a.dir, "{B}", a.base, "{U}", whose, "{O}", strconv.Itoa(other)).Replace
			want, fix := "rendezvous file "+a.file+": "+fill(c.want), fill(c.fix)
			if c.root && here.Owner == 0 && strings.HasPrefix(fix, "chmod") && strings.Contains(want, "owned") {
				fix = "sudo " + fix
			}
			got, err := read(a.file, here)
			if err == nil || err.Error() != want || hint.Of(err) != fix {
				t.Errorf("got  %v (%s)\nwant %s (%s)", err, hint.Of(err), want, fix)
			}
			if !errors.As(err, new(*Unsafe)) || errors.Is(err, fs.ErrNotExist) || got != "" {
				t.Errorf("a caller would pass it over: %q, %#v", got, err)
			}
			if c.mends {
				cmd := strings.TrimPrefix(fix[strings.LastIndex(fix, ": ")+1:], " ")
				cmd = strings.TrimPrefix(cmd, "sudo ")
				if out, err := exec.Command("sh", "-c", cmd).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", cmd, err, out)
				}
				if got, err := read(a.file, here); got != socket {
					t.Errorf("after %s: %v", cmd, err)
				}
			}
		})
	}
}

// Only a file that is not there is passed over.
func TestAbsent(t *testing.T) {
	a := newArea(t, "")
	for _, path := range []string{a.file, a.base + "/none/agent.socket"} {
		_, err := read(path, here)
		if !errors.Is(err, fs.ErrNotExist) || err.Error() != "rendezvous file "+path+": no such file or directory" {
			t.Errorf("got %v", err)
		}
	}
	// Between the guide's steps 1 and 3 the directory is the user's, and there
	// is nothing in it to be led astray by.
	a.chmod(a.dir, 0o777)
	if _, err := read(a.file, here); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// A rendezvous file that only root can read is an error for others, not absent.
func TestUnreadable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: takes root")
	}
	a := newArea(t, "")
	a.write(socket)
	asOther := func() error {
		// Go changes every thread's uid, so this holds for the file system too.
		a.must(syscall.Seteuid(other))
		_, err := read(a.file, safefile.Policy{Sticky: true})
		a.must(syscall.Seteuid(0))
		return err
	}
	for _, c := range []struct {
		path      string
		mode      uint32
		want, fix string
	}{
		{a.file, 0o600, "cannot open " + a.file + ": permission denied", "sudo chmod 644 " + a.file},
		{a.dir, 0o700, "cannot look into " + a.dir + ": permission denied", "sudo chmod 755 " + a.dir},
		{a.base, 0o700, "cannot look into " + a.base + ": permission denied", "sudo chmod 755 " + a.base},
	} {
		a.chmod(c.path, c.mode)
		err := asOther()
		if err == nil || err.Error() != "rendezvous file "+a.file+": "+c.want || hint.Of(err) != c.fix || !errors.As(err, new(*Unsafe)) {
			t.Errorf("got %v (%s), want %s (%s)", err, hint.Of(err), c.want, c.fix)
		}
		out, err := exec.Command("sh", "-c", strings.TrimPrefix(c.fix, "sudo ")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := asOther(); err != nil {
			t.Errorf("after %s: %v", c.fix, err)
		}
	}
}

func TestRead(t *testing.T) {
	a := newArea(t, "")
	for _, content := range []string{socket, socket + "\n", "/a", "/run/a b/ü.sock\n", "/" + strings.Repeat("a", 106), "/" + strings.Repeat("a", 106) + "\n"} {
		a.write(content)
		if got, err := read(a.file, here); err != nil || got != strings.TrimSuffix(content, "\n") {
			t.Errorf("%q: got %q, %v", content, got, err)
		}
	}
	for _, mode := range []uint32{0o400, 0o444, 0o600, 0o644} {
		a.write(socket)
		a.chmod(a.file, mode)
		if got, err := read(a.file, here); err != nil || got != socket {
			t.Errorf("mode %o: got %q, %v", mode, got, err)
		}
		a.chmod(a.file, 0o644)
	}
}

// The exported functions trust root alone, and no sticky directory either.
func TestRootOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: takes root")
	}
	a := newArea(t, "/run")
	a.must(os.Remove(a.dir))
	a.must(Write(a.file, socket))
	if got, err := Read(a.file); err != nil || got != socket {
		t.Errorf("got %q, %v", got, err)
	}
	a.must(Remove(a.file))
	if _, err := Read(a.file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}

	tmp := newArea(t, "/tmp")
	tmp.write(socket)
	want := "rendezvous file " + tmp.file + ": /tmp is a directory that others can write (mode 1777)"
	for _, err := range []error{second(Read(tmp.file)), Write(tmp.file, "/run/x"), Remove(tmp.file)} {
		if !errors.As(err, new(*Unsafe)) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if got, err := read(tmp.file, here); got != socket {
		t.Errorf("it was touched: %q, %v", got, err)
	}
}

func second(_ string, err error) error { return err }

// As the guide has it: the user's own 0700 directory with a key in it becomes
// root's, 0755, and the key stays.
func TestWriteTightens(t *testing.T) {
	for _, before := range []string{"absent", "the user's", "all can write", "file of the user's", "symbolic link in place"} {
		t.Run(before, func(t *testing.T) {
			a := newArea(t, "")
			mine := func(name string) {
				if os.Geteuid() == 0 {
					a.chown(name)
				}
			}
			a.must(os.WriteFile(a.dir+"/myapp.key", []byte("key"), 0o600))
			switch before {
			case "absent":
				a.must(os.RemoveAll(a.dir))
			case "the user's":
				a.chmod(a.dir, 0o700)
				mine(a.dir)
			case "all can write":
				a.chmod(a.dir, 0o777)
			case "file of the user's":
				a.write("/tmp/evil")
				mine(a.file)
				a.chmod(a.file, 0o666)
			case "symbolic link in place":
				a.must(os.Symlink("myapp.key", a.file))
			}
			old := syscall.Umask(0o077)
			err := write(a.file, socket, here)
			syscall.Umask(old)
			a.must(err)
			if got, err := read(a.file, here); err != nil || got != socket {
				t.Errorf("got %q, %v", got, err)
			}
			if b, _ := os.ReadFile(a.file); string(b) != socket+"\n" {
				t.Errorf("holds %q", b)
			}
			for name, mode := range map[string]uint32{a.dir: 0o40755, a.file: 0o100644} {
				got, err := safefile.Lstat(name)
				a.must(err)
				if got.Type|got.Perm != mode || got.UID != here.Owner || here.Owner == 0 && got.GID != 0 {
					t.Errorf("%s: %+v", name, got)
				}
			}
			if key, _ := os.ReadFile(a.dir + "/myapp.key"); before != "absent" && string(key) != "key" {
				t.Errorf("the key is now %q", key)
			}
		})
	}
}

func TestWriteRefused(t *testing.T) {
	a := newArea(t, "")
	for _, bad := range []string{"", "relative", "/a//b", "/a\n", "/a\nb", "/\x00", "/" + strings.Repeat("a", 107)} {
		if err := write(a.file, bad, here); err == nil {
			t.Errorf("%q was written", bad)
		}
	}
	if _, err := os.Lstat(a.file); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was written")
	}
	// A link in the directory's place would have root chmod what it points to.
	elsewhere := a.base + "/elsewhere"
	a.must(os.Remove(a.dir))
	a.must(os.Mkdir(elsewhere, 0o700))
	a.must(os.Symlink(elsewhere, a.dir))
	if err := write(a.file, socket, here); err == nil {
		t.Error("written through a symbolic link")
	}
	if info, _ := os.Stat(elsewhere); info.Mode().Perm() != 0o700 {
		t.Error("the link was followed")
	}
}

func TestRemove(t *testing.T) {
	a := newArea(t, "")
	a.must(remove(a.file, here))
	a.must(remove(a.base+"/none/agent.socket", here))
	a.must(os.WriteFile(a.dir+"/real", nil, 0o644))
	a.must(os.Symlink("real", a.file))
	a.must(remove(a.file, here))
	if _, err := os.Lstat(a.file); !errors.Is(err, fs.ErrNotExist) {
		t.Error("still there")
	}
	if _, err := os.Lstat(a.dir + "/real"); err != nil {
		t.Error("what the link pointed to is gone")
	}
}

// Readers see one whole line or the other while it is replaced.
func TestReplaced(t *testing.T) {
	a := newArea(t, "")
	sockets := [2]string{"/run/a", "/run/" + strings.Repeat("b", 90)}
	a.must(write(a.file, sockets[0], here))
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for seen := 0; ; seen++ {
				select {
				case <-done:
					if seen == 0 {
						t.Error("nothing was read")
					}
					return
				default:
				}
				if got, err := read(a.file, here); err != nil || got != sockets[0] && got != sockets[1] {
					t.Errorf("got %q, %v", got, err)
					return
				}
			}
		})
	}
	for i := range 50 {
		a.must(write(a.file, sockets[i%2], here))
	}
	close(done)
	wg.Wait()
}

func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := parse(content)
		if err != nil {
			if got != "" {
				t.Errorf("%q and %v", got, err)
			}
			return
		}
		if string(content) != got && string(content) != got+"\n" {
			t.Errorf("%q became %q", content, got)
		}
		if len(got) > MaxSocket || got[0] != '/' || got == "/" || filepath.Clean(got) != got || !utf8.ValidString(got) ||
			strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%q was accepted", got)
		}
		if again, err := parse([]byte(got + "\n")); again != got {
			t.Errorf("%q does not survive: %v", got, err)
		}
	})
}
