// Package rendezvous writes and reads the file that says where the machine's
// agent listens: one line, the path of its Unix socket.
//
// A program that is told a wrong socket hands its requests to whoever listens
// there. So the file counts only if root alone could have written it, and there
// is deliberately no environment variable that names another one.
package rendezvous

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// Path is where the file is.
const Path = "/etc/ov/agent.socket"

// MaxSocket bounds the socket's path in bytes: sun_path of unix(7) less the
// final NUL. (macOS takes 103: there a longer one fails when it is dialed.)
const MaxSocket = 107

// Unsafe is the error for a rendezvous file that exists and must not be
// followed, and that must not be passed over either.
type Unsafe struct {
	Path  string
	Fault error // a *safefile.Unsafe if a directory is at fault
}

func (e *Unsafe) Error() string {
	return fmt.Sprintf("rendezvous file %s: %v", safefile.Quote(e.Path), e.Fault)
}

func (e *Unsafe) Unwrap() error { return e.Fault }

// anew writes the file.
const anew = "sudo ov agent install --machine-key FILE --app APP --env ENV --user USER"

// Read returns the socket that the rendezvous file path names. If there is no
// such file, the error is fs.ErrNotExist, and only then; if it cannot be
// trusted, for any reason, the error is an *Unsafe with a hint.
//
// The file is opened O_NOFOLLOW. It must be a regular file, owned by root, not
// writable by group or others, in directories that only root can write, and
// hold one absolute, clean path of at most MaxSocket bytes.
func Read(path string) (socket string, err error) { return read(path, safefile.Policy{}) }

// read is Read with another owner in root's place, for tests.
func read(path string, p safefile.Policy) (string, error) {
	dir, err := safefile.OpenDir(filepath.Dir(path), p)
	if err != nil {
		return "", fault(path, err, nil)
	}
	defer func() { _ = dir.Close() }()
	fd, info, err := dir.Open(filepath.Base(path), unix.O_RDONLY)
	if err != nil {
		if info, lerr := dir.Lstat(filepath.Base(path)); lerr == nil {
			if err := judge(path, info, p.Owner, dir.Fault); err != nil {
				return "", err
			}
		}
		return "", fault(path, err, dir.Fault)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := judge(path, info, p.Owner, dir.Fault); err != nil {
		return "", err
	}
	var buf [MaxSocket + 2]byte // a newline, and one more to notice what is too long
	n, err := safefile.ReadAll(fd, buf[:])
	if err != nil {
		return "", hint.Wrap(&Unsafe{path, fmt.Errorf("cannot be read: %w", err)}, "write it anew: "+anew)
	}
	socket, err := parse(buf[:n])
	if err != nil {
		return "", hint.Wrap(&Unsafe{path, err}, "write it anew: "+anew)
	}
	return socket, nil
}

// parse returns the path that the file's content is. Its errors do not repeat
// the content.
func parse(content []byte) (string, error) {
	line := bytes.TrimSuffix(content, []byte("\n"))
	s := string(line)
	switch {
	case s == "":
		return "", errors.New("is empty")
	case len(s) > MaxSocket:
		return "", fmt.Errorf("has a line of more than %d bytes", MaxSocket)
	case bytes.ContainsRune(line, '\n'):
		return "", errors.New("has more than one line")
	case !utf8.ValidString(s) || bytes.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "", errors.New("holds characters that are not printable")
	case !filepath.IsAbs(s):
		return "", errors.New("does not hold an absolute path")
	case filepath.Clean(s) != s || s == "/":
		return "", errors.New(`holds a path that is not clean: it has "//", "." or "..", or ends in "/"`)
	}
	return s, nil
}

// judge says what forbids following the file.
func judge(path string, info safefile.Info, owner int, dirFault error) error {
	q := safefile.Shell(path)
	unsafe := func(fix, format string, args ...any) error {
		return hint.Wrap(&Unsafe{path, fmt.Errorf(format, args...)}, fix)
	}
	switch {
	case info.Type != unix.S_IFREG:
		return unsafe("sudo rm -r "+q+" && "+anew, "is %s, not a regular file", safefile.TypeName(info.Type))
	case info.UID != owner:
		return unsafe("see what it holds, then: sudo chown root "+q,
			"is owned by %s, not by %s", safefile.User(info.UID), safefile.User(owner))
	case info.Perm&0o022 != 0:
		return unsafe("see what it holds, then: sudo chmod 644 "+q, "can be written by others (mode %04o)", info.Perm)
	case dirFault != nil:
		return &Unsafe{path, dirFault}
	}
	return nil
}

// fault tells absence from everything else that keeps the file from being opened.
func fault(path string, err, dirFault error) error {
	pe := (*fs.PathError)(nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("rendezvous file %s: %w", safefile.Quote(path), unix.ENOENT)
	case dirFault != nil:
		return &Unsafe{path, dirFault}
	case !errors.As(err, &pe):
		return &Unsafe{path, err} // a *safefile.Unsafe with a hint
	}
	fix := "look at it: namei -l " + safefile.Shell(path)
	if errors.Is(err, fs.ErrPermission) && pe.Op == "open" {
		fix = "sudo chmod 644 " + safefile.Shell(pe.Path)
	} else if errors.Is(err, fs.ErrPermission) {
		fix = "sudo chmod 755 " + safefile.Shell(pe.Path)
	}
	return hint.Wrap(&Unsafe{path, fmt.Errorf("cannot %s %s: %w", pe.Op, safefile.Quote(pe.Path), pe.Err)}, fix)
}

// Write makes the rendezvous file path name socket. Only root can. The file's
// directory is created if absent and, as it may have been set up by the user
// who put a machine key there, made root's with mode 0755; the file is replaced
// in one step by one of root's with mode 0644.
func Write(path, socket string) error { return write(path, socket, safefile.Policy{}) }

func write(path, socket string, p safefile.Policy) error {
	if s, err := parse([]byte(socket)); err != nil || s != socket {
		if err == nil {
			err = errors.New("ends in a newline")
		}
		return fmt.Errorf("socket %s cannot go into the rendezvous file: it %w", safefile.Quote(socket), err)
	}
	parent, name := filepath.Split(filepath.Dir(path))
	above, err := safefile.OpenDir(parent, p)
	if err != nil {
		return fmt.Errorf("rendezvous file %s: %w", safefile.Quote(path), err)
	}
	defer func() { _ = above.Close() }()
	if above.Fault != nil {
		return &Unsafe{path, above.Fault}
	}
	dir, err := above.Subdir(name, 0o755, p.Owner, gid(p))
	if err != nil {
		return writeError(path, err)
	}
	defer func() { _ = dir.Close() }()
	attr := safefile.Attr{Perm: 0o644, UID: p.Owner, GID: gid(p), Replace: true}
	if err := dir.Write(filepath.Base(path), []byte(socket+"\n"), attr); err != nil {
		return writeError(path, err)
	}
	return nil
}

// Remove deletes the rendezvous file path, whatever it holds. It is no error if
// there is none. The directory stays: machine keys live there.
func Remove(path string) error { return remove(path, safefile.Policy{}) }

func remove(path string, p safefile.Policy) error {
	dir, err := safefile.OpenDir(filepath.Dir(path), p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rendezvous file %s: %w", safefile.Quote(path), err)
	}
	defer func() { _ = dir.Close() }()
	_, err = dir.Lstat(filepath.Base(path))
	if err == nil {
		if dir.Fault != nil { // root must not be led to delete elsewhere
			return &Unsafe{path, dir.Fault}
		}
		err = dir.Remove(filepath.Base(path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return writeError(path, err)
	}
	return nil
}

func writeError(path string, err error) error {
	err = fmt.Errorf("rendezvous file %s: %w", safefile.Quote(path), err)
	if errors.Is(err, fs.ErrPermission) {
		err = hint.Wrap(err, "run ov with sudo")
	}
	return err
}

// gid is root's group, or for tests under another owner whichever there is.
func gid(p safefile.Policy) int {
	if p.Owner == 0 {
		return 0
	}
	return -1
}
