package cache

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// dir is where the snapshots of one login lie, a file each. A file appears
// under its name whole, so that readers need no lock; who writes has one.
type dir struct {
	path string
	max  int64 // bytes of all files together
}

const (
	suffix    = ".env"
	tmpPrefix = "new-"
	// lockWait bounds how long a writer waits for others. It is only a cache.
	lockWait = time.Second
)

// fileOf names the file of the env whose record has that key.
func fileOf(envKey []byte) string {
	sum := sha256.Sum256(envKey)
	return hex.EncodeToString(sum[:16]) + suffix
}

// open opens the directory. It refuses one that others could have written in.
func (d dir) open(create bool) (*os.Root, error) {
	if create {
		if err := os.MkdirAll(d.path, 0o700); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return nil, err
	}
	st, err := root.Stat(".")
	if err == nil {
		err = judge(d.path, st)
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return root, nil
}

// judge refuses what others own or can write.
func judge(path string, st fs.FileInfo) error {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(sys.Uid) != os.Geteuid() {
		return hint.Errorf("remove it", "the cache %s is not this account's", path)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return hint.Errorf("remove it", "the cache %s can be written by others (mode %04o)", path, st.Mode().Perm())
	}
	return nil
}

// readFile reads up to n bytes of a file, all of it if n is 0.
func (d dir) readFile(root *os.Root, name string, n int64) (b []byte, size int64, err error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err == nil {
		if err = judge(filepath.Join(d.path, name), st); err != nil {
			err = damaged("%v", err)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	size = st.Size()
	if !st.Mode().IsRegular() || size > d.max {
		return nil, size, damaged("not a regular file of at most %d bytes", d.max)
	}
	if n == 0 || n > size {
		n = size
	}
	b = make([]byte, n)
	_, err = io.ReadFull(f, b)
	return b, size, err
}

// list returns the heads of all files, the latest confirmed first, and the
// names of files that are damaged.
func (d dir) list(root *os.Root) (heads []head, bad []string, err error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		b, size, err := d.readFile(root, e.Name(), int64(seenAt))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has removed it
		}
		h, derr := decodeHead(b)
		if err != nil || derr != nil {
			bad = append(bad, e.Name())
			continue
		}
		h.name, h.size = e.Name(), size
		heads = append(heads, h)
	}
	slices.SortFunc(heads, func(a, b head) int {
		return cmp.Or(b.confirmed.Compare(a.confirmed), cmp.Compare(a.name, b.name))
	})
	return heads, bad, nil
}

// load reads one file. It fails with fs.ErrNotExist, or wraps errDamaged.
func (d dir) load(root *os.Root, name string) (*snapshot, error) {
	b, size, err := d.readFile(root, name, 0)
	if err != nil {
		return nil, err
	}
	s, err := decode(b)
	if err != nil {
		return nil, err
	}
	s.name, s.size = name, size
	return s, nil
}

// lock keeps other writers out until the returned function is called.
func lock(root *os.Root) (unlock func(), err error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			_ = f.Close()
			return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// errTooLarge says that an env does not fit.
var errTooLarge = errors.New("too large for the cache")

// write keeps what was seen of an env at a time, in place of what was there
// unless that is newer. What others of the same account say that was otherwise
// then goes, and so does what was not used for the longest time, until all
// fits.
func (d dir) write(name string, seen []store.Seen, at, now time.Time) error {
	b := encode(seen, at)
	if int64(len(b)) > d.max {
		return fmt.Errorf("%w: %d bytes of at most %d", errTooLarge, len(b), d.max)
	}
	root, err := d.open(true)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	unlock, err := lock(root)
	if err != nil {
		return err
	}
	defer unlock()
	d.sweep(root)
	heads, bad, err := d.list(root)
	if err != nil {
		return err
	}
	for _, other := range bad {
		_ = root.Remove(other)
	}
	left := d.max - int64(len(b))
	mine := headOf(seen)
	for _, h := range heads {
		if (h.name == name || mine.contradicts(h)) && h.confirmed.After(at) && !h.confirmed.After(now) {
			return nil
		}
	}
	for _, h := range heads {
		switch {
		case h.name == name:
		case mine.contradicts(h) || h.size > left:
			if err := root.Remove(h.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		default:
			left -= h.size
		}
	}
	return replace(root, name, b)
}

// contradicts reports whether two snapshots cannot be of the same moment.
func (h head) contradicts(other head) bool {
	return h.account != other.account || h.appKey == other.appKey && h.app != other.app
}

// replace writes a file under another name and then gives it its own.
func replace(root *os.Root, name string, b []byte) error {
	var random [8]byte
	rand.Read(random[:])
	tmp := tmpPrefix + hex.EncodeToString(random[:])
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		_ = root.Remove(tmp)
	}
	return err
}

// sweep removes what writers that were killed have left. The caller has the
// lock, so nobody is writing.
func (d dir) sweep(root *os.Root) {
	entries, _ := fs.ReadDir(root.FS(), ".")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			_ = root.Remove(e.Name())
		}
	}
}

// confirm notes that the server has said the same again.
func (d dir) confirm(s *snapshot, at time.Time) error {
	root, err := d.open(false)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	f, err := root.OpenFile(s.name, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Another process may have put another file there.
	var now [seenAt]byte
	if _, err := f.ReadAt(now[:], 0); err != nil {
		return err
	}
	if h, err := decodeHead(now[:]); err != nil || h.digest != s.digest {
		return err
	}
	_, err = f.WriteAt(stamp(at, s.digest), int64(confirmedAt))
	return err
}

// remove removes the files of which which is true.
func (d dir) remove(which func(head) bool) error {
	root, err := d.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	heads, _, err := d.list(root)
	for _, h := range heads {
		if which(h) {
			if rerr := root.Remove(h.name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}

// Remove removes the cache in a directory, and the directory if nothing else is
// in it. It is no error if there is none.
func Remove(path string) error {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	entries, err := fs.ReadDir(root.FS(), ".")
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) || strings.HasPrefix(e.Name(), tmpPrefix) {
			if rerr := root.Remove(e.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	_ = os.Remove(path) // unless it is not empty
	return err
}
