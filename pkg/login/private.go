package login

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// maxFile bounds a file of logins, in bytes.
const maxFile = 1 << 20

// absent reports whether there is no such file.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

func open(path string, owner int) (*safefile.Dir, string, error) {
	dir, err := safefile.OpenDir(filepath.Dir(path), safefile.Policy{Owner: owner, Sticky: true})
	return dir, filepath.Base(path), err
}

// readPrivate reads a file that nobody but its owner and root could have read or
// written. It is opened once, O_NOFOLLOW, and judged by fstat(2).
func readPrivate(path string, owner int) ([]byte, error) {
	dir, name, err := open(path, owner)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	fd, info, err := dir.Open(name, unix.O_RDONLY)
	if err != nil {
		// The file's type, owner and mode say more than "permission denied" does.
		if info, lerr := dir.Lstat(name); lerr == nil {
			if err := judge(path, info, dir, owner); err != nil {
				return nil, err
			}
		}
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := judge(path, info, dir, owner); err != nil {
		return nil, err
	}
	if info.Size > maxFile {
		return nil, &FormatError{Msg: fmt.Sprintf("has %d bytes, the bound is %d", info.Size, maxFile), File: path}
	}
	buf := make([]byte, maxFile+1)
	n, err := safefile.ReadAll(fd, buf)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	if n > maxFile {
		return nil, &FormatError{Msg: fmt.Sprintf("has more than %d bytes", maxFile), File: path}
	}
	return buf[:n], nil
}

// credential reports whether path is one that systemd passed to this service
// with LoadCredential= and the like: see package machinekey.
func credential(path string, dir *safefile.Dir) bool {
	env := os.Getenv("CREDENTIALS_DIRECTORY")
	return filepath.IsAbs(env) && filepath.Dir(filepath.Clean(path)) == filepath.Clean(env) &&
		dir.Info().Perm&^0o550 == 0
}

// judge says what forbids the use of a file.
func judge(path string, info safefile.Info, dir *safefile.Dir, owner int) error {
	q, cred := safefile.Shell(path), credential(path, dir)
	unsafe := func(fix, format string, args ...any) error {
		return hint.Wrap(&safefile.Unsafe{Path: path, Fault: fmt.Sprintf(format, args...)}, fix)
	}
	switch {
	case info.Type != unix.S_IFREG:
		return unsafe("look at it: ls -ld "+q, "is %s, not a regular file", safefile.TypeName(info.Type))
	case info.UID != owner && (!cred || info.UID != 0):
		return unsafe("sudo chown "+safefile.User(owner)+" "+q, "is owned by %s, not by %s", safefile.User(info.UID), safefile.User(owner))
	case info.Perm != 0o600 && (!cred || info.Perm != 0o400 && (info.Perm != 0o440 || info.UID != 0)):
		return unsafe("chmod 600 "+q+"; if others could read it, revoke its API keys: ov apikey list", "has mode %04o, it must be 0600", info.Perm)
	case info.Links != 1:
		return unsafe("find the other names and remove them: sudo find / -samefile "+q,
			"has %d hard links, so the API key can be reached by another name", info.Links)
	}
	return dir.Fault
}

// writePrivate puts data into the file path, mode 0600, whole or not at all.
func writePrivate(path string, data []byte) error {
	defer clear(data)
	dir, name, err := vacant(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	err = dir.Write(name, data, safefile.Attr{Perm: 0o600, UID: -1, GID: -1, Replace: true})
	if errors.Is(err, fs.ErrPermission) {
		return overwrite(dir, path, name, data)
	}
	return err
}

// overwrite writes over a file whose directory is root's, as `ov agent install`
// leaves /etc/ov, for the owner of the file. Killed on the way, it leaves a file
// that is refused for its form, and is made again by the same command.
func overwrite(dir *safefile.Dir, path, name string, data []byte) error {
	fd, info, err := dir.Open(name, unix.O_WRONLY)
	if err != nil {
		return hint.Errorf("let root make it: sudo install -m 600 -o "+safefile.User(os.Geteuid())+" /dev/null "+safefile.Shell(path)+"; then the same again with --force",
			"%s: %s can write neither the file nor its directory: %w", safefile.Quote(path), safefile.User(os.Geteuid()), fs.ErrPermission)
	}
	defer func() { _ = unix.Close(fd) }()
	if err = judge(path, info, dir, os.Geteuid()); err == nil {
		err = safefile.WriteAll(fd, data)
	}
	if err == nil {
		err = unix.Ftruncate(fd, int64(len(data)))
	}
	if err == nil {
		err = safefile.Sync(fd)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", safefile.Quote(path), err)
	}
	return nil
}

// canWritePrivate tells what writePrivate would refuse.
func canWritePrivate(path string) error {
	dir, name, err := vacant(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if unix.Access(dir.Path(), unix.W_OK) == nil {
		return nil
	}
	return overwritable(dir, path, name)
}

// overwritable says whether overwrite would do.
func overwritable(dir *safefile.Dir, path, name string) error {
	fd, info, err := dir.Open(name, unix.O_WRONLY)
	if err != nil {
		return hint.Errorf("let root make it: sudo install -m 600 -o "+safefile.User(os.Geteuid())+" /dev/null "+safefile.Shell(path)+"; then the same again with --force",
			"%s: %s can write neither the file nor its directory: %w", safefile.Quote(path), safefile.User(os.Geteuid()), fs.ErrPermission)
	}
	_ = unix.Close(fd)
	return judge(path, info, dir, os.Geteuid())
}

// vacant opens the directory of a file that is to be written.
func vacant(path string) (*safefile.Dir, string, error) {
	dir, name, err := open(path, os.Geteuid())
	if err != nil {
		return nil, "", err
	}
	err = dir.Fault
	if old, lerr := dir.Lstat(name); err == nil && lerr == nil && old.Type != unix.S_IFREG {
		err = hint.Wrap(&safefile.Unsafe{Path: path, Fault: "is " + safefile.TypeName(old.Type) + ", not a regular file"},
			"remove it, if it is not needed: rm "+safefile.Shell(path))
	}
	if err != nil {
		_ = dir.Close()
		return nil, "", err
	}
	return dir, name, nil
}
