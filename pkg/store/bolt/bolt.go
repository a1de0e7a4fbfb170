// Package bolt keeps a vault's records in one bbolt file.
//
// bbolt locks its file, so nobody keeps it open between operations: every View
// and Update opens it, works and closes it. Readers share; a writer excludes
// everybody, for about a millisecond and as long as it takes to look through the
// file: see tree.
package bolt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	bbolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/internal/bucket"
)

// root is the bucket that holds all records. A later format of keys gets a bucket
// of its own.
var root = []byte("ov/v1")

// Wait bounds how long an operation waits for others to leave the file, unless
// its context ends sooner. Rewriting the keys of 100,000 secrets takes seconds.
const Wait = 30 * time.Second

// Store is a vault file. It holds nothing open.
type Store struct{ path string }

// New returns the store at path, which need not exist yet.
func New(path string) *Store { return &Store{path} }

// Path returns the file's path.
func (s *Store) Path() string { return s.path }

// Create makes a new vault file, mode 0600 in a directory 0700, that holds the
// batch. The file appears under its name whole or not at all; an existing one is
// never touched and makes Create fail with fs.ErrExist.
func (s *Store) Create(ctx context.Context, b store.Batch) error {
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(s.path); err == nil {
		return fmt.Errorf("%s: %w", s.path, fs.ErrExist)
	}
	s.sweep()
	var suffix [8]byte
	rand.Read(suffix[:])
	tmp := &Store{s.path + tmpInfix + hex.EncodeToString(suffix[:])}
	f, err := openFile(ctx, tmp.path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer func() { _, _ = f.Close(), os.Remove(tmp.path) }()
	if err := tmp.commit(f, 0, b); err != nil {
		return err
	}
	// link(2), unlike rename(2), does not replace what somebody else just made.
	if err := os.Link(tmp.path, s.path); err != nil {
		return err
	}
	return syncDir(dir)
}

const tmpInfix = ".new-"

// sweep removes what a Create that was killed has left behind.
func (s *Store) sweep() {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.path), "*"+tmpInfix+"????????????????"))
	for _, name := range left {
		st, err := os.Lstat(name)
		if err == nil && strings.HasPrefix(name, s.path+tmpInfix) && time.Since(st.ModTime()) > time.Hour {
			_ = os.Remove(name)
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// View implements store.Store. It must not be called from within another
// operation on a vault in the same directory: a writer between the two would
// wait for the outer one and keep the inner one waiting.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	f, t, err := s.open(ctx, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return s.explain(fn(reader{t}))
}

// Update implements store.Store. It holds the file's exclusive lock throughout,
// so fn is called once.
func (s *Store) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	f, t, err := s.open(ctx, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // bbolt closes it too
	b, err := fn(reader{t})
	if err != nil {
		return s.explain(err)
	}
	if len(b) == 0 {
		return nil
	}
	if err := t.check(); err != nil {
		return s.explain(err)
	}
	return s.commit(f, int(t.size), b)
}

// open opens and locks the file and reads what leads to its records.
func (s *Store) open(ctx context.Context, flag int) (*os.File, *tree, error) {
	f, err := openFile(ctx, s.path, flag)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	var t *tree
	if err == nil {
		t, err = readTree(f, st.Size())
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, s.explain(err)
	}
	return f, t, nil
}

// explain says which file it is that is broken and what to do about it.
func (s *Store) explain(err error) error {
	switch {
	case errors.Is(err, errBroken):
		return hint.Errorf("restore "+s.path+" from a backup", "%w: %s: %w", store.ErrDamaged, s.path, err)
	case errors.Is(err, errNotVault):
		return hint.Errorf("give the path of a vault with --vault, or make one with ov auth init",
			"%s is not an ov vault", s.path)
	}
	return err
}

// reader is the tree as others see it.
type reader struct{ *tree }

// Last implements store.Reader. A prefix has few records: versions of a secret.
func (r reader) Last(prefix []byte) (key, value []byte, err error) {
	err = r.Scan(prefix, func(k, v []byte) error {
		key, value = k, v
		return nil
	})
	return key, value, err
}

// Fetch implements store.Reader. A file is near.
func (r reader) Fetch(...store.Range) error { return nil }

// mapSlack is mapped beyond the end of the file. bbolt follows an offset at most
// 2 GiB beyond a page: should somebody alter the file after check, in spite of
// its lock, the offset leads to a memory fault, not to other memory of ours.
const mapSlack = 4 << 30

// commit writes the batch through bbolt into the locked file, which it closes.
// A new file, of size 0, gets its bucket.
func (s *Store) commit(f *os.File, size int, b store.Batch) (err error) {
	if err := b.Check(); err != nil {
		return err
	}

	// check has left bbolt little to panic about. If it does, its locks cannot be
	// relied on: the file is closed, the mapping is left behind.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // the mapping would keep it
			_ = f.Close()
			err = s.explain(broken("%v", r))
		}
	}()
	db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: size + mapSlack,
		Timeout:         time.Second, // not waited for: f is locked already
		OpenFile:        func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	db.AllocSize = growBy
	err = db.Update(func(tx *bbolt.Tx) error {
		if size == 0 {
			if _, err := tx.CreateBucket(root); err != nil {
				return err
			}
		}
		return bucket.Write(tx.Bucket(root), b)
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("cannot write %s: %w", s.path, err)
	}
	return nil
}

// growBy is what a file that is full grows by beyond what is needed, in bytes.
const growBy = 64 << 10

// openFile opens and locks a vault file, shared for reading.
func openFile(ctx context.Context, path string, flag int) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, hint.Errorf("make one with: ov auth init", "%w at %s", store.ErrNoVault, path)
	case errors.Is(err, unix.ELOOP):
		return nil, hint.Errorf("name the file itself: readlink -f "+path, "%s is a symbolic link", path)
	case errors.Is(err, unix.EISDIR):
		return nil, notRegular(path)
	case err != nil:
		return nil, err
	}
	err = judge(f, path, flag&os.O_CREATE != 0)
	if err == nil {
		how := unix.LOCK_EX
		if flag == os.O_RDONLY {
			how = unix.LOCK_SH
		}
		err = lockInTurn(ctx, f, how)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// lockInTurn locks a vault file. As long as readers are in, flock(2) lets more
// readers in, and a writer would never have its turn. So everybody queues at the
// directory first, readers shared, writers alone, until they have the file. That
// is a courtesy: where the directory cannot be locked, it is left out.
func lockInTurn(ctx context.Context, f *os.File, how int) error {
	if dir, err := os.Open(filepath.Dir(f.Name())); err == nil {
		defer func() { _ = dir.Close() }()
		if err := lock(ctx, dir, how); err != nil && ctx.Err() != nil {
			return busy(f, err)
		}
	}
	return busy(f, lock(ctx, f, how))
}

// busy says what it means that the time to wait for a lock is over.
func busy(f *os.File, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return hint.Errorf("see who holds it with: fuser -v "+f.Name(),
		"%w: %s: another process has kept it locked", store.ErrBusy, f.Name())
}

// lock is flock(2) with an end. bbolt would poll every 50 ms; this starts at a
// fraction of a millisecond. The lock belongs to the open file, so bbolt's own
// call on it succeeds at once.
func lock(ctx context.Context, f *os.File, how int) error {
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func notRegular(path string) error { return fmt.Errorf("%s is not a regular file", path) }

// judge refuses a vault file that others could have replaced or written.
func judge(f *os.File, path string, isNew bool) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return notRegular(path)
	}
	if st.Size() == 0 && !isNew {
		return hint.Errorf("restore it from a backup, or remove it and run ov auth init",
			"%w: %s is empty", store.ErrDamaged, path) // bbolt would make a database of it
	}
	if st.Mode().Perm()&0o022 != 0 {
		return hint.Errorf("chmod 600 "+path, "%s can be written by others (mode %04o)", path, st.Mode().Perm())
	}
	return nil
}
