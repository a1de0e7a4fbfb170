// Package safefile opens and replaces files that nobody but their owner and
// root may plant, swap or alter: machine keys and the agent's rendezvous file.
//
// A path is walked from the root directory one component at a time, each
// directory held open and judged by fstat(2) before the next is looked up in
// it (as sshd's StrictModes does, but by descriptor instead of by name). What
// was judged is therefore what is used. A file system's further access control
// lists are seen as far as the mode shows them: a POSIX ACL that lets others
// write appears in the group bits (acl(5)); macOS's do not.
package safefile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
)

// maxLinks bounds the symbolic links followed in one walk, as Linux does
// (path_resolution(7)).
const maxLinks = 40

// Unsafe says that a file or directory could have been altered by someone who
// is not trusted.
type Unsafe struct {
	Path  string // the one at fault, which may be a directory above the file
	Fault string // what is wrong with it: "is owned by mallory, not by root"
}

func (e *Unsafe) Error() string { return Quote(e.Path) + " " + e.Fault }

// Policy says whom a walk trusts. Root is always trusted.
type Policy struct {
	Owner int // uid that may own directories beside root; 0 for root alone
	// Sticky lets a directory above the last be writable by all when it is
	// root's and sticky, such as /tmp: what others put there does not pass as
	// the owner's. It never holds for the directory that the file itself is in.
	Sticky bool
}

// Info is the part of stat(2) that trust depends on.
type Info struct {
	Type  uint32 // unix.S_IFREG, …
	Perm  uint32 // the lower twelve bits: permissions, setuid, setgid, sticky
	UID   int
	GID   int
	Links uint64
	Size  int64 // in bytes
	MTime time.Time
}

// Dir is an open directory and what is wrong with the way to it. It is not
// safe for concurrent use.
type Dir struct {
	// Fault is the first thing found on the way that someone untrusted could
	// alter: an *Unsafe with a hint, or nil. The caller decides what follows,
	// because an absent file in an unsafe directory may be no fault of its own.
	Fault error

	fd   int
	path string // absolute, symbolic links resolved
	info Info
}

// OpenDir walks to the directory dir and opens it. Symbolic links on the way
// are followed when someone trusted made them. Of Dir.Fault only the first is
// kept. The error is about not getting there: fs.ErrNotExist, fs.ErrPermission.
func OpenDir(dir string, p Policy) (*Dir, error) {
	if !path.IsAbs(dir) {
		wd, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("cannot tell the current directory: %w", err)
		}
		dir = wd + "/" + dir // not path.Join: "a/.." is not "." if a is a link
	}
	d := &Dir{fd: -1, path: "/"}
	if err := d.enter("/"); err != nil {
		return nil, err
	}
	rest := strings.Split(dir, "/")
	fromLink := 0 // how many of rest come from a symbolic link's target
	for links := 0; len(rest) > 0; {
		d.judge(p)
		name := rest[0]
		rest = rest[1:]
		inLink := fromLink > 0
		fromLink = max(fromLink-1, 0)
		if name == "" || name == "." {
			continue
		}
		err := d.enter(name)
		if err == nil {
			continue
		}
		target, isLink := d.readlink(name)
		switch {
		case isLink && links < maxLinks:
			links++
			d.judgeLink(name, p)
			parts := strings.Split(target, "/")
			rest = append(parts, rest...)
			fromLink += len(parts)
			if path.IsAbs(target) {
				err = d.enter("/")
			} else {
				err = nil
			}
		case isLink:
			err = &fs.PathError{Op: "open", Path: path.Join(d.path, name), Err: unix.ELOOP}
		case inLink && errors.Is(err, fs.ErrNotExist):
			// Not the plain absence that callers may take for an answer.
			err = hint.Wrap(&Unsafe{path.Join(d.path, name), "does not exist, but a symbolic link leads there"},
				"look at the links: namei -l "+Shell(dir))
		}
		if err != nil {
			_ = d.Close()
			if errors.Is(err, fs.ErrPermission) {
				err = d.shut()
			}
			if d.Fault != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, d.Fault // the likely reason, and with a way to mend it
			}
			return nil, err
		}
	}
	d.judge(p)
	if d.Fault == nil && d.info.Perm&0o022 != 0 { // sticky, which is not enough here
		d.Fault = hint.Wrap(othersWrite(d), "move it to a directory that only its owner can write: install -d -m 700 DIR")
	}
	return d, nil
}

// enter moves d to the directory name in it, or to "/".
func (d *Dir) enter(name string) error {
	at := d.fd
	if name == "/" {
		at = unix.AT_FDCWD
	}
	fd, err := openat(at, name, dirFlags|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path.Join(d.path, name), Err: err}
	}
	info, err := Fstat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
	}
	d.fd, d.info = fd, info
	if d.path = path.Join(d.path, name); name == "/" {
		d.path = "/"
	}
	return nil
}

// judge records what is wrong with the directory that d is at.
func (d *Dir) judge(p Policy) {
	if d.Fault != nil {
		return
	}
	if d.info.UID != 0 && d.info.UID != p.Owner {
		d.Fault = hint.Wrap(&Unsafe{d.path, "is a directory owned by " + notBy(d.info.UID, p.Owner)},
			"if it should be root's: sudo chown root "+Shell(d.path))
		return
	}
	if d.info.Perm&0o022 == 0 {
		return
	}
	shared := d.info.UID == 0 && d.info.Perm&unix.S_ISVTX != 0 // on purpose, as /tmp is
	switch {
	case shared && p.Sticky:
	case shared:
		d.Fault = hint.Wrap(othersWrite(d), "move it out of "+Shell(d.path)+", to a directory that only its owner can write: install -d -m 700 DIR")
	default:
		sudo := ""
		if d.info.UID != os.Geteuid() {
			sudo = "sudo "
		}
		d.Fault = hint.Wrap(othersWrite(d), sudo+"chmod go-w "+Shell(d.path))
	}
}

func othersWrite(d *Dir) error {
	return &Unsafe{d.path, fmt.Sprintf("is a directory that others can write (mode %04o)", d.info.Perm)}
}

// judgeLink records a symbolic link that someone untrusted made.
func (d *Dir) judgeLink(name string, p Policy) {
	if d.Fault != nil {
		return
	}
	at := path.Join(d.path, name)
	info, err := d.Lstat(name)
	if err != nil {
		d.Fault = err
	} else if info.UID != 0 && info.UID != p.Owner {
		d.Fault = hint.Wrap(&Unsafe{at, "is a symbolic link owned by " + notBy(info.UID, p.Owner)},
			"if it should be root's: sudo chown -h root "+Shell(at))
	}
}

func (d *Dir) readlink(name string) (target string, ok bool) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(d.fd, name, buf[:])
	return string(buf[:max(n, 0)]), err == nil && n < len(buf)
}

// shut is the error for a directory that the caller may not look into.
func (d *Dir) shut() error {
	return &fs.PathError{Op: "look into", Path: d.path, Err: unix.EACCES}
}

// Close closes the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Path returns the directory's absolute path, symbolic links resolved.
func (d *Dir) Path() string { return d.path }

// Info returns the directory's own owner and mode.
func (d *Dir) Info() Info { return d.info }

// Lstat returns the owner and mode of the file called name, a symbolic link's
// own if it is one.
func (d *Dir) Lstat(name string) (Info, error) {
	var st unix.Stat_t
	err := noIntr(func() error { return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if errors.Is(err, fs.ErrPermission) { // never the file's own doing, fstatat(2)
		return Info{}, d.shut()
	}
	if err != nil {
		return Info{}, &fs.PathError{Op: "lstat", Path: path.Join(d.path, name), Err: err}
	}
	return infoOf(&st), nil
}

// Open opens the file called name and returns what fstat(2) says of it. flags
// are unix.O_RDONLY and the like; a symbolic link is never followed, a named
// pipe never waited for. The caller closes fd.
func (d *Dir) Open(name string, flags int) (fd int, info Info, err error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err = openat(d.fd, name, flags, 0)
	if errors.Is(err, fs.ErrPermission) {
		if _, err := d.Lstat(name); err != nil {
			return -1, Info{}, err
		}
	}
	if err != nil {
		return -1, Info{}, &fs.PathError{Op: "open", Path: path.Join(d.path, name), Err: err}
	}
	if info, err = Fstat(fd); err != nil {
		_ = unix.Close(fd)
		return -1, Info{}, err
	}
	return fd, info, nil
}

// Remove unlinks the file called name.
func (d *Dir) Remove(name string) error {
	if err := unix.Unlinkat(d.fd, name, 0); err != nil {
		return &fs.PathError{Op: "unlink", Path: path.Join(d.path, name), Err: err}
	}
	return nil
}

// Subdir creates the directory called name if it is absent, gives it the owner
// and mode, whatever it had before, and opens it. A symbolic link is refused.
// The result carries d's Fault.
func (d *Dir) Subdir(name string, perm uint32, uid, gid int) (*Dir, error) {
	if err := unix.Mkdirat(d.fd, name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, &fs.PathError{Op: "mkdir", Path: path.Join(d.path, name), Err: err}
	}
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC // fchmod(2) takes no O_PATH
	fd, err := openat(d.fd, name, flags, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(d.path, name), Err: err}
	}
	sub := &Dir{Fault: d.Fault, fd: fd, path: path.Join(d.path, name)}
	err = os.NewSyscallError("fchown", unix.Fchown(fd, uid, gid))
	if err == nil { // after the owner: fchown(2) clears bits
		err = os.NewSyscallError("fchmod", unix.Fchmod(fd, perm))
	}
	if err == nil {
		sub.info, err = Fstat(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", Quote(sub.path), err)
	}
	return sub, nil
}

// Attr is what a written file is given, whatever the umask.
type Attr struct {
	Perm     uint32
	UID, GID int  // -1 leaves it as created
	Replace  bool // else an existing file is fs.ErrExist and stays as it is
}

// tmpPrefix marks files not yet in place. The rest of the name is random.
const tmpPrefix = ".ov-tmp-"

// leftover is the age at which such a file was surely left by a process that
// was killed: writing takes milliseconds.
const leftover = time.Minute

// Write puts data into the file called name, whole or not at all: a new file,
// written and synced, is moved into place, and the directory synced. What a
// killed writer may have left beside it is removed by the next one.
func (d *Dir) Write(name string, data []byte, a Attr) (err error) {
	fail := func(op string, err error) error {
		return &fs.PathError{Op: op, Path: path.Join(d.path, name), Err: err}
	}
	// A descriptor of its own: d.fd may be O_PATH, which cannot be synced.
	dfd, err := openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open directory of", err)
	}
	dir := os.NewFile(uintptr(dfd), d.path)
	defer func() { _ = dir.Close() }()
	d.sweep(dir)

	tmp := tmpPrefix + rand.Text()
	fd, err := openat(d.fd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fail("create", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Unlinkat(d.fd, tmp, 0)
		}
	}()
	if err := fill(fd, data, a); err != nil {
		_ = unix.Close(fd)
		return fail("write", err)
	}
	if err := unix.Close(fd); err != nil && !errors.Is(err, unix.EINTR) { // closed all the same
		return fail("close", err)
	}
	if a.Replace {
		err = noIntr(func() error { return unix.Renameat(d.fd, tmp, d.fd, name) })
	} else {
		err = renameNew(d.fd, tmp, name)
	}
	if err != nil {
		return fail("create", err)
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("%s is written, but its directory could not be synced: %w", Quote(path.Join(d.path, name)), err)
	}
	return nil
}

// fill writes and syncs an open file.
func fill(fd int, data []byte, a Attr) error {
	if a.UID >= 0 || a.GID >= 0 {
		if err := noIntr(func() error { return unix.Fchown(fd, a.UID, a.GID) }); err != nil {
			return err
		}
	}
	if err := noIntr(func() error { return unix.Fchmod(fd, a.Perm) }); err != nil {
		return err
	}
	if err := WriteAll(fd, data); err != nil {
		return err
	}
	return Sync(fd)
}

// Sync is fsync(2).
func Sync(fd int) error { return noIntr(func() error { return unix.Fsync(fd) }) }

// noIntr calls f again when a signal, such as the Go runtime's own for
// preemption, interrupted it: some file systems do not restart by themselves.
func noIntr(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// WriteAll writes all of data to fd, straight from where it lies: an os.File
// would do too, but might be copied to by a future one.
func WriteAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// ReadAll reads fd into buf until the end of the file or of buf.
func ReadAll(fd int, buf []byte) (n int, err error) {
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

// renameNew renames tmp to name unless that exists.
func renameNew(dirfd int, tmp, name string) error {
	err := noIntr(func() error { return renameNoReplace(dirfd, tmp, name) })
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return linkNew(dirfd, tmp, name)
}

// linkNew is for file systems that cannot rename without replacing. Between the
// two calls the file has two names; a process killed there leaves one to sweep.
func linkNew(dirfd int, tmp, name string) error {
	if err := unix.Linkat(dirfd, tmp, dirfd, name, 0); err != nil {
		return err
	}
	return unix.Unlinkat(dirfd, tmp, 0)
}

// sweep removes files that killed writers of ours left half done. It does what
// it can: the write that follows matters more.
func (d *Dir) sweep(dir *os.File) {
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		info, err := d.Lstat(name)
		if err == nil && info.Type == unix.S_IFREG && info.UID == os.Geteuid() && time.Since(info.MTime) > leftover {
			_ = unix.Unlinkat(d.fd, name, 0)
		}
	}
}

// Fstat is fstat(2).
func Fstat(fd int) (Info, error) {
	var st unix.Stat_t
	if err := noIntr(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return Info{}, os.NewSyscallError("fstat", err)
	}
	return infoOf(&st), nil
}

// Lstat is lstat(2).
func Lstat(name string) (Info, error) {
	var st unix.Stat_t
	if err := noIntr(func() error { return unix.Lstat(name, &st) }); err != nil {
		return Info{}, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	return infoOf(&st), nil
}

func infoOf(st *unix.Stat_t) Info {
	mode := uint32(st.Mode)   //nolint:unconvert // uint16 on macOS
	links := uint64(st.Nlink) //nolint:unconvert // the same
	return Info{
		Type: mode & unix.S_IFMT, Perm: mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid),
		Links: links, Size: st.Size, MTime: time.Unix(st.Mtim.Unix()),
	}
}

// TypeName names a file type for a person: "a directory".
func TypeName(typ uint32) string {
	switch typ {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a named pipe"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "a device"
	}
	return "of an unknown type"
}

func openat(dirfd int, name string, flags int, perm uint32) (fd int, err error) {
	err = noIntr(func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, perm)
		return err
	})
	return fd, err
}

func notBy(uid, owner int) string {
	if owner == 0 {
		return User(uid) + ", not by root"
	}
	return User(uid) + ", not by root or " + User(owner)
}

// User names a uid for a person and, as it is, for chown(1) and sudo(8): the
// login name, or the number.
func User(uid int) string {
	if uid == 0 {
		return "root"
	}
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil && Shell(u.Username) == u.Username {
		return u.Username
	}
	return id
}

// Quote returns a path as it may stand in a message: as it is, or quoted if it
// could be misread or upset a terminal.
func Quote(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar || r == '"' {
			return strconv.Quote(s)
		}
	}
	if s == "" || strings.Contains(s, " ") {
		return strconv.Quote(s)
	}
	return s
}

// Shell returns a path as it may stand in a command that a person pastes into
// bash, zsh or ksh. (Not every sh knows $'…', which only control characters need.)
func Shell(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./@%+=:,-"
	if strings.HasPrefix(s, "-") {
		s = "./" + s // not an option
	}
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return dollarQuoted(s)
		}
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// dollarQuoted is $'…' (POSIX.1-2024 section 2.2.4).
func dollarQuoted(s string) string {
	b := []byte("$'")
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c >= 0x7f:
			b = fmt.Appendf(b, `\%03o`, c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '\''))
}
