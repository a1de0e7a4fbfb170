package mcpclient

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// maxFile bounds a client's file, in bytes. Claude Code keeps far more in its
// own than servers.
const maxFile = 64 << 20

// attempts bounds how often an edit is done again because a client wrote the
// file meanwhile.
const attempts = 10

// lockWait bounds the time spent waiting for another ov.
const lockWait = 10 * time.Second

// stagePrefix marks a new file that is not yet in place. What a killed process
// left is removed by safefile, which marks its own so.
const stagePrefix = ".ov-tmp-"

// file is a client's file.
type file struct {
	path          string // absolute
	dirPerm, perm uint32 // of what has to be created

	// staged, if not nil, is called when the new file is written and not yet in
	// place. For tests.
	staged func()
}

// errChanged says that the file is no longer the one that was read.
var errChanged = errors.New("changed meanwhile")

// edit replaces the file by what change makes of it, in one step, unless dry.
// An absent file is an empty one. If another program writes the file meanwhile,
// the edit is done again on what that wrote.
func (f *file) edit(dry bool, change func([]byte) (edited, error)) (edited, error) {
	target, err := f.target()
	if err != nil {
		return edited{}, err
	}
	for range attempts {
		var e edited
		if e, err = f.try(target, dry, change); !errors.Is(err, errChanged) {
			return e, err
		}
	}
	return edited{}, hint.Errorf("close the client, then try again", "%s changes all the time", safefile.Quote(f.path))
}

// target returns where the file is, behind symbolic links such as dotfile
// managers make. These stay.
func (f *file) target() (string, error) {
	target, err := filepath.EvalSymlinks(f.path)
	switch {
	case err == nil:
		return target, nil
	case !errors.Is(err, fs.ErrNotExist): // which may name no file
		return "", fmt.Errorf("%s cannot be resolved: %w", safefile.Quote(f.path), err)
	}
	if f.isLink() {
		return "", hint.Errorf("look at the link: namei -l "+safefile.Shell(f.path),
			"%s is a symbolic link to what does not exist", safefile.Quote(f.path))
	}
	return f.path, nil
}

func (f *file) isLink() bool {
	info, err := os.Lstat(f.path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// snapshot is a file as it was read.
type snapshot struct {
	data   []byte
	info   safefile.Info
	absent bool
}

func (s *snapshot) equal(t *snapshot) bool {
	return s.absent == t.absent && s.info.Perm == t.info.Perm && s.info.UID == t.info.UID &&
		s.info.GID == t.info.GID && bytes.Equal(s.data, t.data)
}

// read reads the file at target.
func (f *file) read(target string) (*snapshot, error) {
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &snapshot{absent: true}, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.path, Err: err}
	}
	file := os.NewFile(uintptr(fd), f.path)
	defer func() { _ = file.Close() }()
	s := &snapshot{}
	if s.info, err = safefile.Fstat(fd); err != nil {
		return nil, err
	}
	switch {
	case s.info.Type != unix.S_IFREG:
		return nil, fmt.Errorf("%s is %s, not a regular file", safefile.Quote(f.path), safefile.TypeName(s.info.Type))
	case s.info.Links > 1:
		return nil, hint.Errorf("make it a symbolic link", "%s has %d names (hard links): replacing it would part them",
			safefile.Quote(f.path), s.info.Links)
	case s.info.Size > maxFile:
		return nil, fmt.Errorf("%s has more than %d MiB", safefile.Quote(f.path), maxFile>>20)
	}
	s.data = make([]byte, s.info.Size+1) // one more shows that it grew
	n, err := safefile.ReadAll(fd, s.data)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: f.path, Err: err}
	}
	if int64(n) > s.info.Size {
		return nil, errChanged
	}
	s.data = s.data[:n]
	return s, nil
}

// try edits the file once. The error is errChanged if it was not done because
// another program wrote the file.
func (f *file) try(target string, dry bool, change func([]byte) (edited, error)) (edited, error) {
	old, err := f.read(target)
	if err != nil {
		return edited{}, err
	}
	e, err := change(old.data)
	e.empty = e.empty && !f.isLink()
	if err != nil || dry || e.action == Unchanged || e.action == Absent {
		return e, err
	}
	if err := os.MkdirAll(filepath.Dir(target), fs.FileMode(f.dirPerm)); err != nil {
		return edited{}, err
	}
	// Where the directory is, is the user's affair: no dir.Fault here.
	dir, err := safefile.OpenDir(filepath.Dir(target), safefile.Policy{Owner: os.Geteuid()})
	if err != nil {
		return edited{}, err
	}
	defer func() { _ = dir.Close() }()
	unlock, err := lock(dir.Path())
	if err != nil {
		return edited{}, err
	}
	defer unlock()
	name := filepath.Base(target)
	switch {
	case e.empty:
		if err := f.unchanged(target, old); err != nil {
			return edited{}, err
		}
		return e, dir.Remove(name)
	case old.absent:
		err := dir.Write(name, e.text, safefile.Attr{Perm: f.perm, UID: -1, GID: -1})
		if errors.Is(err, fs.ErrExist) {
			err = errChanged
		}
		return e, err
	case unix.Faccessat(unix.AT_FDCWD, target, unix.W_OK, unix.AT_EACCESS) != nil:
		return edited{}, hint.Errorf("chmod u+w "+safefile.Shell(f.path), "%s is read-only", safefile.Quote(f.path))
	}
	return e, f.replace(dir, target, e.text, old)
}

// replace puts text in the place of old. It is all written and synced before
// the last look at the file, so that only a rename is left to do after it.
func (f *file) replace(dir *safefile.Dir, target string, text []byte, old *snapshot) error {
	stage := stagePrefix + rand.Text()
	err := dir.Write(stage, text, safefile.Attr{Perm: old.info.Perm, UID: old.info.UID, GID: old.info.GID})
	if errors.Is(err, fs.ErrPermission) && old.info.UID != os.Geteuid() {
		return hint.Errorf("run it as that account", "%s belongs to %s, and would not after this: %w",
			safefile.Quote(f.path), safefile.User(old.info.UID), err)
	}
	if err != nil {
		return err
	}
	if f.staged != nil {
		f.staged()
	}
	if err := f.unchanged(target, old); err != nil {
		return errors.Join(err, dir.Remove(stage))
	}
	if err := os.Rename(filepath.Join(dir.Path(), stage), target); err != nil {
		return errors.Join(err, dir.Remove(stage))
	}
	d, err := os.Open(dir.Path())
	if err == nil {
		err = d.Sync()
		_ = d.Close()
	}
	if err != nil {
		return fmt.Errorf("%s is written, but its directory could not be synced: %w", safefile.Quote(f.path), err)
	}
	return nil
}

// unchanged returns errChanged if the file is not the one that was read.
func (f *file) unchanged(target string, old *snapshot) error {
	now, err := f.read(target)
	if err == nil && !now.equal(old) {
		err = errChanged
	}
	return err
}

// lock keeps other ovs from editing files in dir, or one of two would lose its
// change in the moment between the last look and the rename. A file system that
// has no locks does without.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return func() { _ = d.Close() }, nil
		case time.Since(start) > lockWait:
			_ = d.Close()
			return nil, fmt.Errorf("%s is locked by another program", safefile.Quote(dir))
		}
	}
}
