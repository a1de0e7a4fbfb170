package machinekey

import (
	"bytes"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// Two uids without a login name, so that messages are the same everywhere.
const user, other = 54321, 54322

// TestMain lets the test binary stand in for a program of another uid.
func TestMain(m *testing.M) {
	switch what, arg := os.Getenv("MACHINEKEY_TEST"), os.Getenv("MACHINEKEY_ARG"); what {
	case "":
		code := m.Run()
		if copied.path != "" {
			_ = os.RemoveAll(filepath.Dir(copied.path))
		}
		os.Exit(code)
	case "read":
		key, err := Read(arg)
		report(key, err)
	case "rewrite":
		key, err := kek.LockedFrom(bytes.Repeat([]byte{2}, Size))
		if err == nil {
			err = Write(arg, key, true)
		}
		report(nil, err)
	case "create":
		key, err := kek.LockedFrom(bytes.Repeat([]byte{2}, Size))
		if err == nil {
			err = Write(arg, key, false)
		}
		report(nil, err)
	case "write-forever":
		writeForever(arg)
	}
}

// report prints an outcome for result to read.
func report(key *kek.Locked, err error) {
	if err == nil {
		fmt.Println("ok")
		if key != nil {
			fmt.Println(hex.EncodeToString(key.Bytes()))
		}
		return
	}
	kind := "other"
	switch {
	case errors.As(err, new(*Unsafe)):
		kind = "unsafe"
	case errors.Is(err, fs.ErrNotExist):
		kind = "absent"
	case errors.Is(err, fs.ErrExist):
		kind = "exists"
	case errors.Is(err, fs.ErrPermission):
		kind = "permission"
	}
	fmt.Printf("%s\n%v\n%s\n", kind, err, hint.Of(err))
}

type outcome struct{ kind, msg, hint string }

// as does what TestMain offers, under the given uid.
func as(t *testing.T, uid int, what, arg string, env ...string) outcome {
	t.Helper()
	cmd := exec.Command(exe(t))
	cmd.Env = append(append(os.Environ(), "MACHINEKEY_TEST="+what, "MACHINEKEY_ARG="+arg,
		"GORACE=atexit_sleep_ms=0"), env...)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	if uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	done := make(chan struct{})
	defer close(done)
	time.AfterFunc(10*time.Second, func() {
		select {
		case <-done:
		default:
			_ = cmd.Process.Kill() // it hangs, on a named pipe perhaps
		}
	})
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v", what, arg, err)
	}
	lines := append(strings.Split(string(out), "\n"), "", "", "")
	return outcome{lines[0], lines[1], lines[2]}
}

var copied struct {
	sync.Once
	path string
}

// exe is a copy of this binary that every uid may execute.
func exe(t *testing.T) string {
	copied.Do(func() {
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			name, _ := os.Executable()
			self, err = os.ReadFile(name)
		}
		if err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("", "machinekey-exe")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		copied.path = filepath.Join(dir, "test")
		if err := os.WriteFile(copied.path, self, 0o755); err != nil {
			t.Fatal(err)
		}
	})
	return copied.path
}

// area is a place for one case: base (mode 0755) and dir (0700) in it, both the
// given uid's.
type area struct {
	t         *testing.T
	uid       int
	base, dir string
}

func newArea(t *testing.T, uid int) *area {
	base, err := os.MkdirTemp("", "machinekey")
	if err != nil {
		t.Fatal(err)
	}
	if base, err = filepath.EvalSymlinks(base); err != nil { // macOS: /var is a link
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	a := &area{t, uid, base, filepath.Join(base, "d")}
	a.chmod(base, 0o755)
	a.mkdir(a.dir, 0o700)
	a.chown(base, uid)
	return a
}

func (a *area) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *area) chown(name string, uid int) {
	a.t.Helper()
	if uid != os.Geteuid() {
		a.must(os.Lchown(name, uid, uid))
	}
}

func (a *area) chmod(name string, mode uint32) {
	a.t.Helper()
	a.must(syscall.Chmod(name, mode))
}

func (a *area) mkdir(name string, mode uint32) {
	a.t.Helper()
	a.must(os.Mkdir(name, 0o700))
	a.chown(name, a.uid)
	a.chmod(name, mode)
}

// key makes a file in dir and returns its path.
func (a *area) key(size int, mode uint32) string {
	a.t.Helper()
	name := filepath.Join(a.dir, "k")
	a.must(os.WriteFile(name, bytes.Repeat([]byte{1}, size), 0o600))
	a.chown(name, a.uid)
	a.chmod(name, mode)
	return name
}

var good = hex.EncodeToString(bytes.Repeat([]byte{1}, Size))

// hostile are the files that must not be used. In want and fix {F} is the file,
// {D} its directory, {B} the directory above, {U} the caller, {O} another user.
var hostile = []struct {
	name  string
	root  bool // making it takes root
	make  func(a *area) string
	kind  string // "" is unsafe
	want  string
	fix   string
	mends bool // the fix is a command that, run, makes the file acceptable
}{
	{name: "symbolic link", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.must(os.Symlink(k, filepath.Join(a.dir, "l")))
		a.chown(filepath.Join(a.dir, "l"), a.uid)
		return filepath.Join(a.dir, "l")
	}, want: "machine key {F}: is a symbolic link, not a regular file", fix: "name the real file, as shown by: readlink -f {F}"},
	{name: "dangling symbolic link", make: func(a *area) string {
		a.must(os.Symlink("nowhere", filepath.Join(a.dir, "l")))
		return filepath.Join(a.dir, "l")
	}, want: "machine key {F}: is a symbolic link, not a regular file", fix: "name the real file, as shown by: readlink -f {F}"},
	{name: "hard link", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.must(os.Link(k, filepath.Join(a.base, "second")))
		return k
	}, want: "machine key {F}: has 2 hard links, so the key can be reached by another name",
		fix: "find the other names and remove them: sudo find / -samefile {F}"},
	{name: "directory", make: func(a *area) string {
		a.mkdir(filepath.Join(a.dir, "k"), 0o600)
		return filepath.Join(a.dir, "k")
	}, want: "machine key {F}: is a directory, not a regular file", fix: newPlace},
	{name: "named pipe", make: func(a *area) string {
		k := filepath.Join(a.dir, "k")
		a.must(unix.Mkfifo(k, 0o600))
		a.chown(k, a.uid)
		return k
	}, want: "machine key {F}: is a named pipe, not a regular file", fix: newPlace},
	{name: "socket", make: func(a *area) string {
		k := filepath.Join(a.dir, "k")
		l, err := net.Listen("unix", k)
		a.must(err)
		a.t.Cleanup(func() { _ = l.Close() })
		a.chown(k, a.uid)
		return k
	}, want: "machine key {F}: is a socket, not a regular file", fix: newPlace},
	{name: "device", root: true, make: func(a *area) string {
		k := filepath.Join(a.dir, "k")
		if err := syscall.Mknod(k, syscall.S_IFCHR|0o600, 1<<8|5); err != nil { // /dev/zero
			a.t.Skipf("NOT RUN: no device can be made here: %v", err)
		}
		a.chown(k, a.uid)
		return k
	}, want: "machine key {F}: is a device, not a regular file", fix: newPlace},
	{name: "mode 0644", make: func(a *area) string { return a.key(Size, 0o644) },
		want: "machine key {F}: has mode 0644, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "mode 0640", make: func(a *area) string { return a.key(Size, 0o640) },
		want: "machine key {F}: has mode 0640, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "mode 0602", make: func(a *area) string { return a.key(Size, 0o602) },
		want: "machine key {F}: has mode 0602, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "mode 0700", make: func(a *area) string { return a.key(Size, 0o700) },
		want: "machine key {F}: has mode 0700, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "mode 0400", make: func(a *area) string { return a.key(Size, 0o400) },
		want: "machine key {F}: has mode 0400, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "unreadable", make: func(a *area) string { return a.key(Size, 0) },
		want: "machine key {F}: has mode 0000, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "setuid", make: func(a *area) string { return a.key(Size, 0o4600) },
		want: "machine key {F}: has mode 4600, it must be 0600", fix: "chmod 600 {F}", mends: true},
	{name: "another's, as when derived with sudo", root: true, make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.must(os.Lchown(k, other, other))
		return k
	}, want: "machine key {F}: is owned by {O}, not by {U}", fix: "sudo chown {U} {F}", mends: true},
	{name: "another's and readable", root: true, make: func(a *area) string {
		k := a.key(Size, 0o644)
		a.must(os.Lchown(k, other, other))
		return k
	}, want: "machine key {F}: is owned by {O}, not by {U}", fix: "sudo chown {U} {F}"},
	{name: "empty", make: func(a *area) string { return a.key(0, 0o600) },
		want: "machine key {F}: has 0 bytes, a machine key has 32", fix: anew},
	{name: "31 bytes", make: func(a *area) string { return a.key(31, 0o600) },
		want: "machine key {F}: has 31 bytes, a machine key has 32", fix: anew},
	{name: "33 bytes", make: func(a *area) string { return a.key(33, 0o600) },
		want: "machine key {F}: has 33 bytes, a machine key has 32", fix: anew},
	{name: "huge", make: func(a *area) string {
		k := a.key(0, 0o600)
		a.must(os.Truncate(k, 1<<40))
		return k
	}, want: "machine key {F}: has 1099511627776 bytes, a machine key has 32", fix: anew},
	{name: "directory that all can write", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.chmod(a.dir, 0o777)
		return k
	}, want: "machine key {F}: {D} is a directory that others can write (mode 0777)", fix: "chmod go-w {D}", mends: true},
	{name: "directory that a group can write", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.chmod(a.dir, 0o770)
		return k
	}, want: "machine key {F}: {D} is a directory that others can write (mode 0770)", fix: "chmod go-w {D}", mends: true},
	{name: "sticky directory", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.chmod(a.dir, 0o1777)
		if os.Geteuid() == 0 {
			a.must(os.Chown(a.dir, 0, 0)) // as /tmp itself
		}
		return k
	}, root: true, want: "machine key {F}: {D} is a directory that others can write (mode 1777)",
		fix: "move it to a directory that only its owner can write: install -d -m 700 DIR"},
	{name: "sticky directory of one's own", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.chmod(a.base, 0o1777)
		a.must(os.Chown(a.base, user, user))
		return k
	}, root: true, want: "", fix: ""}, // filled in by TestHostile: it differs for root
	{name: "directory further up", make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.chmod(a.base, 0o777)
		return k
	}, want: "machine key {F}: {B} is a directory that others can write (mode 0777)", fix: "chmod go-w {B}", mends: true},
	{name: "another's directory", root: true, make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.chmod(a.dir, 0o755)
		a.must(os.Chown(a.dir, other, other))
		return k
	}, want: "machine key {F}: {D} is a directory owned by {O}, not by root", fix: "if it should be root's: sudo chown root {D}"},
	{name: "another's directory that is closed", root: true, make: func(a *area) string {
		k := a.key(Size, 0o600)
		a.must(os.Chown(a.dir, other, other))
		return k
	}, want: "machine key {F}: {D} is a directory owned by {O}, not by root", fix: "if it should be root's: sudo chown root {D}"},
	{name: "through another's symbolic link", root: true, make: func(a *area) string {
		a.key(Size, 0o600)
		a.must(os.Symlink("d", filepath.Join(a.base, "l")))
		a.must(os.Lchown(filepath.Join(a.base, "l"), other, other))
		return filepath.Join(a.base, "l", "k")
	}, want: "machine key {F}: {B}/l is a symbolic link owned by {O}, not by root", fix: "if it should be root's: sudo chown -h root {B}/l"},
	{name: "through a dangling symbolic link", make: func(a *area) string {
		a.must(os.Symlink("nowhere", filepath.Join(a.base, "l")))
		a.chown(filepath.Join(a.base, "l"), a.uid)
		return filepath.Join(a.base, "l", "k")
	}, want: "machine key {F}: {B}/nowhere does not exist, but a symbolic link leads there", fix: "look at the links: namei -l {B}/l/"},
	{name: "through a loop of symbolic links", make: func(a *area) string {
		a.must(os.Symlink("l", filepath.Join(a.base, "l")))
		a.chown(filepath.Join(a.base, "l"), a.uid)
		return filepath.Join(a.base, "l", "k")
	}, kind: "other", want: "machine key {F}: cannot open: too many levels of symbolic links"},
	{name: "a file as directory", make: func(a *area) string {
		return a.key(Size, 0o600) + "/k"
	}, kind: "other", want: "machine key {F}: cannot open: not a directory"},
	{name: "absent", kind: "absent", make: func(a *area) string { return filepath.Join(a.dir, "k") },
		want: "machine key {F}: no such file or directory", fix: "make one: ov auth derive-machine-key --out {F}"},
	{name: "absent directory", kind: "absent", make: func(a *area) string { return filepath.Join(a.dir, "x", "k") },
		want: "machine key {F}: no such file or directory", fix: "make one: ov auth derive-machine-key --out {F}"},
	{name: "no file named", kind: "other", make: func(a *area) string { return a.dir + "/" },
		want: "machine key {F}: is a directory, not a file", fix: "name a file: --machine-key /etc/ov/APP.key"},
	{name: "name to upset a terminal", make: func(a *area) string {
		k := a.key(Size, 0o644)
		evil := filepath.Join(a.dir, "a b'\x1b[2J\n")
		a.must(os.Rename(k, evil))
		return evil
	}, want: `machine key "{D}/a b'\x1b[2J\n": has mode 0644, it must be 0600`, fix: `chmod 600 $'{D}/a b\'\033[2J\012'`},
}

const (
	newPlace = "make a key in a place that is free: ov auth derive-machine-key --out FILE"
	anew     = "make it anew: ov auth derive-machine-key --force --out {F}"
)

func TestHostile(t *testing.T) {
	uids := []int{os.Geteuid()}
	if os.Geteuid() == 0 {
		uids = append(uids, user)
	} else {
		t.Log("NOT RUN: the cases that take root")
	}
	for _, uid := range uids {
		for _, c := range hostile {
			t.Run(fmt.Sprintf("uid %d/%s", uid, c.name), func(t *testing.T) {
				if c.root && os.Geteuid() != 0 {
					t.Skip("NOT RUN: takes root")
				}
				a := newArea(t, uid)
				f := c.make(a)
				if c.name == "sticky directory of one's own" {
					if uid == 0 {
						c.want, c.fix = "machine key {F}: {B} is a directory owned by 54321, not by root", "if it should be root's: sudo chown root {B}"
					} else { // its owner could rename the key's directory, but he is the caller
						c.want, c.fix = "machine key {F}: {B} is a directory that others can write (mode 1777)", "chmod go-w {B}"
					}
				}
				whose := map[int]string{0: "root"}[uid]
				if whose == "" {
					whose = strconv.Itoa(uid)
				}
				fill := strings.NewReplacer("{F}", f, "{D}", a.dir, "{B}", a.base, "{U}", whose, "{O}", strconv.Itoa(other)).Replace
				want := outcome{c.kind, fill(c.want), fill(c.fix)}
				if c.kind == "" {
					want.kind = "unsafe"
				}
				if strings.HasSuffix(want.msg, "not by root") && strings.Contains(want.msg, " a ") && uid != 0 {
					want.msg += " or " + whose // directories may be root's too
				}
				if strings.HasPrefix(want.hint, "sudo chown root "+f) {
					want.hint = fmt.Sprintf("run ov as %d (sudo -u), or: %s", other, want.hint)
				}
				got := as(t, uid, "read", f)
				if got != want {
					t.Errorf("got  %q\nwant %q", got, want)
				}
				if c.kind == "" { // a service's key is judged alike from outside
					err := Check(f, uid)
					if err == nil || err.Error() != want.msg || !errors.As(err, new(*Unsafe)) {
						t.Errorf("Check: got %v, want %s", err, want.msg)
					}
				}
				if c.mends {
					cmd := got.hint[strings.LastIndex(got.hint, ": ")+1:]
					cmd = strings.TrimPrefix(strings.TrimPrefix(cmd, " "), "sudo ")
					if out, err := exec.Command("sh", "-c", cmd).CombinedOutput(); err != nil {
						t.Fatalf("%s: %v: %s", cmd, err, out)
					}
					if got := as(t, uid, "read", f); got.kind != "ok" || got.msg != good {
						t.Errorf("after %s: %q", cmd, got)
					}
				}
			})
		}
	}
}

// The hint about a key that is missing or short in root's directory, as
// `ov agent install` leaves /etc/ov, leads to one that the account can read.
func TestHintInRootsDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: takes root")
	}
	for _, size := range []int{-1, 0, 31, 33} {
		a := newArea(t, user)
		f := filepath.Join(a.dir, "a key")
		if size >= 0 {
			a.must(os.Rename(a.key(size, 0o600), f))
		}
		a.must(os.Chown(a.dir, 0, 0))
		a.chmod(a.dir, 0o755)
		reserve := fmt.Sprintf("head -c 32 /dev/zero | sudo install -m 600 -o %d /dev/stdin '%s' && ", user, f)
		derive := fmt.Sprintf("ov auth derive-machine-key --force --out '%s'", f)
		got := as(t, user, "read", f)
		if _, fix, _ := strings.Cut(got.hint, ": "); fix != reserve+derive {
			t.Errorf("%d bytes: %q", size, got)
			continue
		}
		err := Check(f, user) // root's
		if _, fix, _ := strings.Cut(hint.Of(err), ": "); fix != reserve+fmt.Sprintf("sudo -u %d -H ", user)+derive {
			t.Errorf("%d bytes, of another account: %v: %q", size, err, hint.Of(err))
		}
		if got := as(t, user, "rewrite", f); got.kind == "ok" {
			t.Errorf("%d bytes: a key could be written without the hint's first command", size)
		}
		cmd := strings.ReplaceAll(strings.TrimSuffix(reserve, " && "), "sudo ", "")
		if out, err := exec.Command("sh", "-c", cmd).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", cmd, err, out)
		}
		if got := as(t, user, "rewrite", f); got.kind != "ok" {
			t.Errorf("%d bytes, after %s: %q", size, cmd, got)
		}
		if got := as(t, user, "read", f); got.kind != "ok" {
			t.Errorf("%d bytes, at last: %q", size, got)
		}
	}
}

func TestRead(t *testing.T) {
	uids := []int{os.Geteuid()}
	if os.Geteuid() == 0 {
		uids = append(uids, user)
	}
	for _, uid := range uids {
		for name, create := range map[string]func(a *area) string{
			"plain": func(a *area) string { return a.key(Size, 0o600) },
			"directory that cannot be listed": func(a *area) string {
				k := a.key(Size, 0o600)
				a.chmod(a.dir, 0o100)
				return k
			},
			"through one's own symbolic link": func(a *area) string {
				a.key(Size, 0o600)
				a.must(os.Symlink(a.dir, filepath.Join(a.base, "l")))
				a.chown(filepath.Join(a.base, "l"), a.uid)
				return filepath.Join(a.base, "l", "k")
			},
			"with dots": func(a *area) string {
				a.key(Size, 0o600)
				return a.dir + "//.././d/k"
			},
			"in root's directory": func(a *area) string {
				k := a.key(Size, 0o600)
				if os.Geteuid() == 0 {
					a.must(os.Chown(a.dir, 0, 0))
					a.chmod(a.dir, 0o755)
				}
				return k
			},
		} {
			t.Run(fmt.Sprintf("uid %d/%s", uid, name), func(t *testing.T) {
				f := create(newArea(t, uid))
				if got := as(t, uid, "read", f); got.kind != "ok" || got.msg != good {
					t.Errorf("got %q", got)
				}
				if err := Check(f, uid); err != nil {
					t.Errorf("Check: %v", err)
				}
			})
		}
	}
}

func TestReadRelative(t *testing.T) {
	a := newArea(t, os.Geteuid())
	a.key(Size, 0o600)
	t.Chdir(a.dir)
	for _, f := range []string{"k", "./k", "../d/k"} {
		key, err := Read(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(key.Bytes()) != Size || hex.EncodeToString(key.Bytes()) != good {
			t.Errorf("%s: wrong key", f)
		}
		key.Destroy()
	}
}

// A key of root's does not open for a service, and the message says so although
// the service may not even open the file.
func TestRootsKey(t *testing.T) {
	needRoot(t)
	a := newArea(t, 0)
	a.chmod(a.dir, 0o755)
	f := a.key(Size, 0o600)
	want := outcome{"unsafe", "machine key " + f + ": is owned by root, not by 54321", "sudo chown 54321 " + f}
	if got := as(t, user, "read", f); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	a.chmod(a.dir, 0o700)
	want = outcome{"permission", "machine key " + f + ": 54321 may not look into " + a.dir + ": permission denied", "who may go there: namei -l " + f}
	if got := as(t, user, "read", f); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// What systemd puts into $CREDENTIALS_DIRECTORY is accepted there and nowhere else.
func TestCredential(t *testing.T) {
	needRoot(t)
	const refused = "has mode %s, it must be 0600"
	for _, c := range []struct {
		name             string
		dirMode, mode    uint32
		dirOwner, owner  int
		env              string // "" is the directory itself
		want             string
		beside, symlink_ bool
	}{
		{name: "ramfs: the user's own", dirMode: 0o500, mode: 0o400, dirOwner: user, owner: user},
		{name: "the user's own, directory readable", dirMode: 0o550, mode: 0o400, dirOwner: 0, owner: user},
		{name: "0600 all the same", dirMode: 0o700, mode: 0o600, dirOwner: user, owner: user},
		{name: "no variable", dirMode: 0o500, mode: 0o400, dirOwner: user, owner: user, env: "-", want: fmt.Sprintf(refused, "0400")},
		{name: "another directory", dirMode: 0o500, mode: 0o400, dirOwner: user, owner: user, env: "/", want: fmt.Sprintf(refused, "0400")},
		{name: "relative variable", dirMode: 0o500, mode: 0o400, dirOwner: user, owner: user, env: ".", want: fmt.Sprintf(refused, "0400")},
		{name: "directory that its owner can write", dirMode: 0o700, mode: 0o400, dirOwner: user, owner: user, want: fmt.Sprintf(refused, "0400")},
		{name: "readable by a group", dirMode: 0o500, mode: 0o440, dirOwner: user, owner: user, want: fmt.Sprintf(refused, "0440")},
		{name: "readable by all", dirMode: 0o500, mode: 0o444, dirOwner: user, owner: user, want: fmt.Sprintf(refused, "0444")},
		{name: "another's", dirMode: 0o500, mode: 0o400, dirOwner: user, owner: other, want: "is owned by 54322, not by 54321"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArea(t, user)
			f := a.key(Size, c.mode)
			a.must(os.Chown(f, c.owner, c.owner))
			a.must(os.Chown(a.dir, c.dirOwner, user)) // its group, in place of an ACL
			a.chmod(a.dir, c.dirMode)
			env := a.dir
			if c.env != "" {
				env = strings.TrimPrefix(c.env, "-")
			}
			got := as(t, user, "read", f, "CREDENTIALS_DIRECTORY="+env)
			if c.want == "" && (got.kind != "ok" || got.msg != good) ||
				c.want != "" && got.msg != "machine key "+f+": "+c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}

	// Root's, with an ACL for the service: as on a file system that has them.
	t.Run("ACL", func(t *testing.T) {
		a := newArea(t, user)
		f := a.key(Size, 0o600)
		a.must(os.Chown(f, 0, 0))
		a.must(os.Chown(a.dir, 0, 0))
		a.chmod(a.dir, 0o500)
		a.chmod(f, 0o400)
		for name, perm := range map[string]byte{a.dir: 5, f: 4} {
			if err := unix.Setxattr(name, "system.posix_acl_access", userACL(perm), 0); err != nil {
				t.Skipf("NOT RUN: no ACLs here: %v", err)
			}
		}
		var st unix.Stat_t
		if a.must(unix.Stat(f, &st)); st.Mode&0o777 != 0o440 {
			t.Fatalf("mode with the ACL is %o", st.Mode)
		}
		if got := as(t, user, "read", f, "CREDENTIALS_DIRECTORY="+a.dir); got.kind != "ok" || got.msg != good {
			t.Errorf("got %q", got)
		}
		want := "machine key " + f + ": is owned by root, not by 54321"
		if got := as(t, user, "read", f); got.msg != want {
			t.Errorf("without the variable: got %q, want %q", got, want)
		}
	})
}

// userACL is an access ACL (acl(5), linux/posix_acl_xattr.h) that gives the
// owner and user the permission bits perm, and others nothing.
func userACL(perm byte) []byte {
	acl := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm byte
		id        uint32
	}{{1, perm, 0xffffffff}, {2, perm, user}, {4, 0, 0xffffffff}, {0x10, perm, 0xffffffff}, {0x20, 0, 0xffffffff}} {
		acl = append(acl, e.tag, 0, e.perm, 0, byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	return acl
}

// Whoever swaps the file under the path gets an error or the good key out of
// Read, never the bytes of the file that he swapped in.
func TestSwapped(t *testing.T) {
	a := newArea(t, os.Geteuid())
	f := a.key(Size, 0o600)
	evil := filepath.Join(a.dir, "evil")
	a.must(os.WriteFile(evil, bytes.Repeat([]byte{6}, Size), 0o644))
	a.chmod(evil, 0o644)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Rename(f, f+".good")
			if i%2 == 0 {
				_ = os.Symlink(evil, f)
			} else {
				_ = os.Rename(evil, f)
				_ = os.Rename(f, evil)
			}
			_ = os.Rename(f+".good", f)
		}
	})
	ok, refused := 0, 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		key, err := Read(f)
		if err != nil {
			refused++
			continue
		}
		ok++
		if hex.EncodeToString(key.Bytes()) != good {
			t.Error("read a key that was swapped in")
		}
		key.Destroy()
	}
	close(stop)
	wg.Wait()
	if ok == 0 || refused == 0 {
		t.Errorf("%d reads and %d refusals: the race was not run", ok, refused)
	}
}

func locked(t *testing.T, b byte) *kek.Locked {
	t.Helper()
	key, err := kek.LockedFrom(bytes.Repeat([]byte{b}, Size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Destroy)
	return key
}

func TestWrite(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o777} {
		a := newArea(t, os.Geteuid())
		f := filepath.Join(a.dir, "k")
		old := syscall.Umask(umask)
		err := Write(f, locked(t, 1), false)
		syscall.Umask(old)
		a.must(err)
		if key, err := Read(f); err != nil || hex.EncodeToString(key.Bytes()) != good {
			t.Errorf("umask %o: %v", umask, err)
		}
	}

	a := newArea(t, os.Geteuid())
	f := filepath.Join(a.dir, "k")
	a.must(Write(f, locked(t, 1), false))
	err := Write(f, locked(t, 2), false)
	if !errors.Is(err, fs.ErrExist) || err.Error() != "machine key "+f+": file already exists" || hint.Of(err) != "to replace the key in it: --force" {
		t.Errorf("second write: %v (%s)", err, hint.Of(err))
	}
	if b, _ := os.ReadFile(f); hex.EncodeToString(b) != good {
		t.Error("the refused write changed the key")
	}
	a.chmod(f, 0o644) // force mends the mode too
	a.must(Write(f, locked(t, 2), true))
	if key, err := Read(f); err != nil || key.Bytes()[0] != 2 {
		t.Errorf("after force: %v", err)
	}
	a.only("k")

	short, err := kek.LockedFrom(make([]byte, 16))
	a.must(err)
	defer short.Destroy()
	if err := Write(filepath.Join(a.dir, "s"), short, false); err == nil {
		t.Error("a key of 16 bytes was written")
	}
	a.only("k")
}

// only fails unless dir holds exactly these names.
func (a *area) only(names ...string) {
	a.t.Helper()
	entries, err := os.ReadDir(a.dir)
	a.must(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		a.t.Errorf("directory holds %q, want %q", got, names)
	}
}

func TestWriteRefused(t *testing.T) {
	for _, force := range []bool{false, true} {
		for _, c := range []struct {
			name, want, fix string
			make            func(a *area) string
		}{
			{"symbolic link", "machine key {F}: is a symbolic link, not a regular file", "name the real file, as shown by: readlink -f {F}",
				func(a *area) string {
					k := a.key(Size, 0o600)
					a.must(os.Symlink(k, filepath.Join(a.dir, "l")))
					return filepath.Join(a.dir, "l")
				}},
			{"dangling symbolic link", "machine key {F}: is a symbolic link, not a regular file", "name the real file, as shown by: readlink -f {F}",
				func(a *area) string {
					a.must(os.Symlink("k", filepath.Join(a.dir, "l")))
					return filepath.Join(a.dir, "l")
				}},
			{"named pipe", "machine key {F}: is a named pipe, not a regular file", newPlace,
				func(a *area) string {
					k := filepath.Join(a.dir, "k")
					a.must(unix.Mkfifo(k, 0o600))
					return k
				}},
			{"directory that others can write", "machine key {F}: {D} is a directory that others can write (mode 0777)", "chmod go-w {D}",
				func(a *area) string {
					a.chmod(a.dir, 0o777)
					return filepath.Join(a.dir, "new")
				}},
			{"absent directory", "machine key {F}: directory {D}/x: no such file or directory", "sudo install -d -o {U} -m 700 {D}/x",
				func(a *area) string { return filepath.Join(a.dir, "x", "k") }},
			{"directory named", "machine key {F}: is a directory, not a file", "name a file: --machine-key /etc/ov/APP.key",
				func(a *area) string { return a.dir + "/" }},
		} {
			t.Run(fmt.Sprintf("force=%v/%s", force, c.name), func(t *testing.T) {
				a := newArea(t, os.Geteuid())
				f := c.make(a)
				before := a.names()
				err := Write(f, locked(t, 2), force)
				whose := strconv.Itoa(os.Geteuid())
				if whose == "0" {
					whose = "root"
				}
				fill := strings.NewReplacer("{F}", f, "{D}", a.dir, "{U}", whose).Replace
				if err == nil || err.Error() != fill(c.want) || hint.Of(err) != fill(c.fix) {
					t.Errorf("got %v (%s)\nwant %s (%s)", err, hint.Of(err), fill(c.want), fill(c.fix))
				}
				if after := a.names(); after != before {
					t.Errorf("directory held %s, now %s", before, after)
				}
			})
		}
	}
}

// names lists dir with sizes and first bytes.
func (a *area) names() string {
	entries, err := os.ReadDir(a.dir)
	a.must(err)
	var s strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&s, "%s(%v", e.Name(), e.Type())
		if e.Type().IsRegular() {
			b, _ := os.ReadFile(filepath.Join(a.dir, e.Name()))
			fmt.Fprintf(&s, " %x", b)
		}
		s.WriteString(") ")
	}
	return s.String()
}

// After `ov agent install` /etc/ov is root's. The guide then tells the user to
// derive the key again with --force and no sudo.
func TestWriteInRootsDirectory(t *testing.T) {
	needRoot(t)
	a := newArea(t, user)
	f := a.key(Size, 0o600)
	a.must(os.Chown(a.dir, 0, 0))
	a.chmod(a.dir, 0o755)
	if got := as(t, user, "rewrite", f); got.kind != "ok" {
		t.Fatalf("got %q", got)
	}
	if got := as(t, user, "read", f); got.msg != strings.Repeat("02", Size) {
		t.Errorf("got %q", got)
	}
	a.only("k")

	install := "sudo install -d -o 54321 -m 700 " + a.dir
	want := outcome{"permission", "machine key " + a.dir + "/new: 54321 cannot create files in " + a.dir + ": permission denied", install}
	if got := as(t, user, "create", a.dir+"/new"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	a.chmod(f, 0o640) // never written over: others may have it open
	if got := as(t, user, "rewrite", f); got.kind != "unsafe" {
		t.Errorf("got %q", got)
	}
	a.chmod(f, 0o600)
	a.must(os.Chown(f, 0, 0))
	want = outcome{"permission", "machine key " + f + ": 54321 can write neither the file nor its directory: cannot open: permission denied",
		"sudo rm " + f + " && " + install}
	if got := as(t, user, "rewrite", f); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestWriteOnce(t *testing.T) {
	a := newArea(t, os.Geteuid())
	f := filepath.Join(a.dir, "k")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []byte
	for i := range 8 {
		key := locked(t, byte(i+1))
		wg.Go(func() {
			err := Write(f, key, false)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, byte(i+1))
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	key, err := Read(f)
	a.must(err)
	if len(won) != 1 || key.Bytes()[0] != won[0] {
		t.Errorf("writers %v won, the file holds %d", won, key.Bytes()[0])
	}
	a.only("k")
}

// A full disk leaves the old key and nothing else.
func TestWriteDiskFull(t *testing.T) {
	needRoot(t)
	a := newArea(t, 0)
	if err := mountTmpfs(a.dir); err != nil {
		t.Skipf("NOT RUN: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(a.dir, 0) })
	a.chmod(a.dir, 0o700)
	f := a.key(Size, 0o600)
	if err := os.WriteFile(filepath.Join(a.dir, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	err := Write(f, locked(t, 2), true)
	if !errors.Is(err, unix.ENOSPC) || err.Error() != "machine key "+f+": cannot write: no space left on device" {
		t.Errorf("got %v", err)
	}
	if b, _ := os.ReadFile(f); hex.EncodeToString(b) != good {
		t.Error("the old key is damaged")
	}
	a.only("filler", "k")
}

func writeForever(dir string) {
	keys := []*kek.Locked{nil, nil}
	for i := range keys {
		var err error
		if keys[i], err = kek.LockedFrom(bytes.Repeat([]byte{byte(i + 1)}, Size)); err != nil {
			panic(err)
		}
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		for _, err := range []error{
			Write(filepath.Join(dir, "k"), keys[i%2], true),
			Write(filepath.Join(dir, "n"+crand.Text()), keys[0], false),
		} {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// A writer killed at any instant leaves the old key, the new one, or none under
// the name, never a part of one.
func TestWriteKilled(t *testing.T) {
	a := newArea(t, os.Geteuid())
	const kills = 60
	for range kills {
		cmd := exec.Command(exe(t))
		cmd.Env = append(os.Environ(), "MACHINEKEY_TEST=write-forever", "MACHINEKEY_ARG="+a.dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		a.must(err)
		a.must(cmd.Start())
		ready := make([]byte, 64)
		if n, _ := out.Read(ready); string(ready[:n]) != "ready\n" {
			t.Fatalf("writer: %s", ready[:n])
		}
		time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
		a.must(cmd.Process.Kill())
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("writer: %v", err)
		}
	}
	entries, err := os.ReadDir(a.dir)
	a.must(err)
	whole, left := 0, 0
	for _, e := range entries {
		name := filepath.Join(a.dir, e.Name())
		if strings.HasPrefix(e.Name(), ".ov-tmp-") {
			left++
			long := time.Now().Add(-time.Hour)
			a.must(os.Chtimes(name, long, long))
			continue
		}
		whole++
		key, err := Read(name)
		if err != nil {
			t.Error(err)
			continue
		}
		want := key.Bytes()[0]
		if e.Name() != "k" && want != 1 || want != 1 && want != 2 || !bytes.Equal(key.Bytes(), bytes.Repeat([]byte{want}, Size)) {
			t.Errorf("%s holds a mixture", e.Name())
		}
		key.Destroy()
	}
	if whole < 10 || left == 0 {
		t.Errorf("%d keys written and %d writes cut short by %d kills: not the test it should be", whole, left, kills)
	}
	t.Logf("%d keys whole, %d temporary files left by %d kills", whole, left, kills)
	a.must(Write(filepath.Join(a.dir, "k"), locked(t, 1), true))
	if left, _ := filepath.Glob(filepath.Join(a.dir, ".ov-tmp-*")); len(left) != 0 {
		t.Errorf("the next write left %q", left)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: takes root")
	}
}

func FuzzRead(f *testing.F) {
	dir, err := os.MkdirTemp("", "machinekey")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	f.Fuzz(func(t *testing.T, content []byte, mode uint32) {
		name := filepath.Join(dir, "k")
		_ = os.Remove(name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		mode &= 0o7777
		if err := syscall.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		key, err := Read(name)
		switch accept := len(content) == Size && mode == 0o600; {
		case accept && err != nil:
			t.Errorf("refused: %v", err)
		case accept && !bytes.Equal(key.Bytes(), content):
			t.Error("read another key than the file holds")
		case !accept && err == nil:
			t.Errorf("%d bytes of mode %04o accepted", len(content), mode)
		case !accept && (!errors.As(err, new(*Unsafe)) || hint.Of(err) == ""):
			t.Errorf("untyped or without a hint: %v", err)
		}
		key.Destroy()
		if checked := Check(name, os.Geteuid()); (checked == nil) != (err == nil) {
			t.Errorf("Read says %v, Check says %v", err, checked)
		}
	})
}
