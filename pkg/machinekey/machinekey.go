// Package machinekey reads and writes machine key files: 32 raw bytes that open
// an account, an app or an environment without a prompt.
//
// Whoever can read such a file has the secrets, and whoever can replace it
// decides which vault a service trusts. So a file is used only if its owner
// alone (and root) could have read, written or swapped it, and each way in
// which it falls short has a message of its own and the command that mends it.
package machinekey

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/safefile"
)

// Size of a machine key in bytes.
const Size = 32

// Unsafe is the error for a key file that exists and must not be used. It does
// not say that the bytes are wrong: they were not looked at.
type Unsafe struct {
	Path  string // as the caller gave it
	Fault error  // a *safefile.Unsafe if a directory is at fault
}

func (e *Unsafe) Error() string {
	return fmt.Sprintf("machine key %s: %v", safefile.Quote(e.Path), e.Fault)
}

func (e *Unsafe) Unwrap() error { return e.Fault }

// Read returns the machine key in the file path, read straight into locked
// memory that the caller destroys.
//
// The file is opened once, O_NOFOLLOW, and judged by fstat(2). It must be a
// regular file with a single name and mode 0600, owned by the effective uid,
// 32 bytes long, in directories that only root and the owner can write. (A
// directory further up may be sticky and root's, such as /tmp.) Otherwise the
// error is an *Unsafe. An absent file is fs.ErrNotExist. A credential that
// systemd passed to this service is held to its own rules, see credential.
func Read(path string) (*kek.Locked, error) {
	owner := os.Geteuid()
	dir, name, err := open(path, owner)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	cred := credential(path, dir)

	fd, info, err := dir.Open(name, unix.O_RDONLY)
	if err != nil {
		// The file's owner and mode say more than "permission denied" does.
		if info, lerr := dir.Lstat(name); lerr == nil {
			if err := judge(path, info, owner, cred, dir.Fault); err != nil {
				return nil, err
			}
		}
		return nil, openError(path, owner, err, dir.Fault)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := judge(path, info, owner, cred, dir.Fault); err != nil {
		return nil, err
	}

	key, err := kek.NewLocked(Size + 1) // one more, to notice a file that grew
	if err != nil {
		return nil, err
	}
	n, err := safefile.ReadAll(fd, key.Bytes())
	if err == nil && n != Size {
		err = sizeFault(path, owner, int64(n))
	} else if err != nil {
		err = fmt.Errorf("machine key %s: cannot read: %w", safefile.Quote(path), err)
	}
	if err != nil {
		key.Destroy()
		return nil, err
	}
	key.Truncate(Size)
	return key, nil
}

// Check says whether Read would accept the file path if uid called it, without
// reading the key: for `ov agent install` and `ov doctor`, which look at a
// service's key with other eyes. Errors are Read's. It knows nothing of
// systemd credentials, which exist only inside the service.
func Check(path string, uid int) error {
	dir, name, err := open(path, uid)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	info, err := dir.Lstat(name)
	if err != nil {
		return openError(path, uid, err, dir.Fault)
	}
	return judge(path, info, uid, false, dir.Fault)
}

// Write puts key, Size bytes, into the file path with mode 0600, whatever the
// umask. Without force an existing file stays and the error is fs.ErrExist.
// With force it is replaced in one step: a reader sees the old key or the new,
// and so does a machine that loses power on the way.
//
// A symbolic link, and directories that others can write, are refused.
func Write(path string, key *kek.Locked, force bool) error {
	if n := len(key.Bytes()); n != Size {
		return fmt.Errorf("machine key %s: not written: %d bytes given, a machine key has %d", safefile.Quote(path), n, Size)
	}
	dir, name, err := place(path, force)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	owner := os.Geteuid()
	err = dir.Write(name, key.Bytes(), safefile.Attr{Perm: 0o600, UID: -1, GID: -1, Replace: force})
	switch {
	case errors.Is(err, fs.ErrExist):
		return existsError(path)
	case errors.Is(err, fs.ErrPermission) && force:
		return overwrite(dir, path, name, owner, key)
	case errors.Is(err, fs.ErrPermission):
		return hint.Errorf("sudo install -d -o "+safefile.User(owner)+" -m 700 "+safefile.Shell(dir.Path()),
			"machine key %s: %s cannot create files in %s: %w",
			safefile.Quote(path), safefile.User(owner), safefile.Quote(dir.Path()), fs.ErrPermission)
	case err != nil:
		return fmt.Errorf("machine key %s: %w", safefile.Quote(path), cause(err))
	}
	return nil
}

// CanWrite tells what Write would refuse before it is given a key: so that
// nobody types a password for nothing.
func CanWrite(path string, force bool) error {
	dir, _, err := place(path, force)
	if err != nil {
		return err
	}
	return dir.Close()
}

// place opens the directory that a key is to be written into.
func place(path string, force bool) (*safefile.Dir, string, error) {
	owner := os.Geteuid()
	dir, name, err := open(path, owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", hint.Errorf("sudo install -d -o "+safefile.User(owner)+" -m 700 "+safefile.Shell(filepath.Dir(path)),
			"machine key %s: directory %s: %w", safefile.Quote(path), safefile.Quote(filepath.Dir(path)), unix.ENOENT)
	}
	if err != nil {
		return nil, "", err
	}
	if err := vacant(dir, path, name, force); err != nil {
		_ = dir.Close()
		return nil, "", err
	}
	return dir, name, nil
}

// vacant says what is in the way of writing the file.
func vacant(dir *safefile.Dir, path, name string, force bool) error {
	if dir.Fault != nil {
		return &Unsafe{path, dir.Fault}
	}
	old, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("machine key %s: %w", safefile.Quote(path), cause(err))
	case old.Type != unix.S_IFREG:
		return typeFault(path, old.Type)
	case !force:
		return existsError(path)
	}
	return nil
}

// overwrite writes over a key whose directory is root's, as `ov agent install`
// leaves /etc/ov, for the owner of the file. It is one write(2) within one disk
// sector to a file that already is a machine key, so a crash leaves either key.
func overwrite(dir *safefile.Dir, path, name string, owner int, key *kek.Locked) error {
	fd, info, err := dir.Open(name, unix.O_WRONLY)
	if err != nil {
		return hint.Errorf("sudo rm "+safefile.Shell(path)+" && sudo install -d -o "+safefile.User(owner)+" -m 700 "+safefile.Shell(dir.Path()),
			"machine key %s: %s can write neither the file nor its directory: %w",
			safefile.Quote(path), safefile.User(owner), cause(err))
	}
	defer func() { _ = unix.Close(fd) }()
	if err := judge(path, info, owner, false, dir.Fault); err != nil {
		return err
	}
	if err := safefile.WriteAll(fd, key.Bytes()); err != nil {
		return fmt.Errorf("machine key %s: cannot write: %w", safefile.Quote(path), err)
	}
	if err := safefile.Sync(fd); err != nil {
		return fmt.Errorf("machine key %s: cannot sync: %w", safefile.Quote(path), err)
	}
	return nil
}

// open opens the directory of the file path on behalf of owner.
func open(path string, owner int) (*safefile.Dir, string, error) {
	parent, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return nil, "", hint.Errorf("name a file: --machine-key /etc/ov/APP.key",
			"machine key %s: is a directory, not a file", safefile.Quote(path))
	}
	dir, err := safefile.OpenDir(parent, safefile.Policy{Owner: owner, Sticky: true})
	if err != nil {
		return nil, "", openError(path, owner, err, nil)
	}
	return dir, name, nil
}

// credential reports whether path is a credential that systemd passed to this
// service with LoadCredential=, LoadCredentialEncrypted= or SetCredential=
// (systemd.exec(5), "Credentials"). systemd 252 makes such a file 0400, owned
// by the service's user, on a ramfs that it then remounts read-only. Where it
// has a file system with ACLs, the file is root's and mode 0440: the group bits
// are the ACL's mask, which lets the service's user and no group read it. The
// directory is 0500 or 0550 alike. Neither can be 0600 and the user's own.
//
// So those modes and root as owner are accepted too, but only in the directory
// that $CREDENTIALS_DIRECTORY names, and only if nobody may write there. The
// variable gives a planter nothing: who sets it can pass a key of his own as
// well, and owner, type, links and directories are judged all the same.
func credential(path string, dir *safefile.Dir) bool {
	env := os.Getenv("CREDENTIALS_DIRECTORY")
	return filepath.IsAbs(env) && filepath.Dir(filepath.Clean(path)) == filepath.Clean(env) &&
		dir.Info().Perm&^0o550 == 0
}

// judge says what forbids the use of a key file, the file's own faults first.
func judge(path string, info safefile.Info, owner int, cred bool, dirFault error) error {
	q := safefile.Shell(path)
	unsafe := func(fix, format string, args ...any) error {
		return hint.Wrap(&Unsafe{path, fmt.Errorf(format, args...)}, fix)
	}
	user := safefile.User(owner)
	switch {
	case info.Type != unix.S_IFREG:
		return typeFault(path, info.Type)
	case info.UID != owner && (!cred || info.UID != 0):
		fix := "sudo chown " + user + " " + q
		if owner == 0 {
			fix = "run ov as " + safefile.User(info.UID) + " (sudo -u), or: " + fix
		}
		return unsafe(fix, "is owned by %s, not by %s", safefile.User(info.UID), user)
	case info.Perm != 0o600 && (!cred || info.Perm != 0o400 && (info.Perm != 0o440 || info.UID != 0)):
		fix := "chmod 600 " + q
		if euid := os.Geteuid(); euid != 0 && euid != info.UID {
			fix = "sudo " + fix
		}
		return unsafe(fix, "has mode %04o, it must be 0600", info.Perm)
	case info.Links != 1:
		return unsafe("find the other names and remove them: sudo find / -samefile "+q,
			"has %d hard links, so the key can be reached by another name", info.Links)
	case info.Size != Size:
		return sizeFault(path, owner, info.Size)
	case dirFault != nil:
		return &Unsafe{path, dirFault}
	}
	return nil
}

func typeFault(path string, typ uint32) error {
	fix := "make a key in a place that is free: ov auth derive-machine-key --out FILE"
	if typ == unix.S_IFLNK {
		fix = "name the real file, as shown by: readlink -f " + safefile.Shell(path)
	}
	return hint.Wrap(&Unsafe{path, fmt.Errorf("is %s, not a regular file", safefile.TypeName(typ))}, fix)
}

func sizeFault(path string, owner int, size int64) error {
	return hint.Wrap(&Unsafe{path, fmt.Errorf("has %d bytes, a machine key has %d", size, Size)},
		"make it anew: "+derive(path, owner, " --force"))
}

// Reserve returns the command by which root makes a file at path that the
// account can write a key over, in a directory where it can make none: Size zero
// bytes, which open nothing.
func Reserve(path, account string) string {
	return fmt.Sprintf("head -c %d /dev/zero | sudo install -m 600 -o %s /dev/stdin %s", Size, safefile.Shell(account), safefile.Shell(path))
}

// derive returns the command that makes the key of owner.
func derive(path string, owner int, force string) string {
	before, sudo := "", ""
	if dir, err := os.Stat(filepath.Dir(path)); err == nil && owner != 0 && dir.Sys().(*syscall.Stat_t).Uid == 0 && dir.Mode().Perm()&0o022 == 0 {
		before, force = Reserve(path, safefile.User(owner))+" && ", " --force"
		if owner != os.Geteuid() {
			sudo = "sudo -u " + safefile.User(owner) + " -H "
		}
	}
	return before + sudo + "ov auth derive-machine-key" + force + " --out " + safefile.Shell(path)
}

func existsError(path string) error {
	return hint.Errorf("to replace the key in it: --force", "machine key %s: %w", safefile.Quote(path), fs.ErrExist)
}

// openError says why the file cannot be opened: because it is absent, because
// of a directory's fault, or as the kernel has it.
func openError(path string, owner int, err, dirFault error) error {
	q := safefile.Quote(path)
	pe := (*fs.PathError)(nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return hint.Errorf("make one: "+derive(path, owner, ""),
			"machine key %s: %w", q, unix.ENOENT)
	case dirFault != nil:
		return &Unsafe{path, dirFault}
	case errors.As(err, new(*safefile.Unsafe)):
		return &Unsafe{path, err}
	case errors.Is(err, fs.ErrPermission) && errors.As(err, &pe):
		return hint.Errorf("who may go there: namei -l "+safefile.Shell(path),
			"machine key %s: %s may not %s %s: %w", q, safefile.User(owner), pe.Op, safefile.Quote(pe.Path), pe.Err)
	}
	return fmt.Errorf("machine key %s: %w", q, cause(err))
}

// cause strips the path that an fs.PathError repeats.
func cause(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return fmt.Errorf("cannot %s: %w", strings.TrimSuffix(pe.Op, " directory of"), pe.Err)
	}
	return err
}
