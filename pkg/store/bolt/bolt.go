// Package bolt keeps a vault's records in one bbolt file.
//
// bbolt locks its file, so nobody keeps it open between operations: every View
// and Update opens it, works and closes it. Readers share; a writer excludes
// everybody, for about a millisecond.
package bolt

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	bbolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// bucket holds all records. A later format of keys gets a bucket of its own.
var bucket = []byte("ov/v1")

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
	var suffix [8]byte
	rand.Read(suffix[:])
	tmp := &Store{s.path + ".new-" + hex.EncodeToString(suffix[:])}
	defer func() { _ = os.Remove(tmp.path) }()
	db, err := tmp.open(ctx, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(bucket); err != nil {
			return err
		}
		return write(tx, b)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// link(2), unlike rename(2), does not replace what somebody else just made.
	if err := os.Link(tmp.path, s.path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	db, err := s.open(ctx, os.O_RDONLY)
	if err != nil {
		return err
	}
	err = s.guard(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			r, err := s.reader(tx)
			if err != nil {
				return err
			}
			return fn(r)
		})
	})
	return errors.Join(err, db.Close())
}

// Update implements store.Store. It holds the file's exclusive lock throughout,
// so fn is called once.
func (s *Store) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	db, err := s.open(ctx, os.O_RDWR)
	if err != nil {
		return err
	}
	err = s.guard(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			r, err := s.reader(tx)
			if err != nil {
				return err
			}
			b, err := fn(r)
			if err != nil {
				return err
			}
			if len(b) == 0 {
				return errNothing
			}
			return write(tx, b)
		})
	})
	if errors.Is(err, errNothing) {
		err = nil
	}
	return errors.Join(err, db.Close())
}

// errNothing rolls an empty update back, which spares its fsync.
var errNothing = errors.New("nothing to write")

// damage is what guard turns a panic of bbolt into.
func (s *Store) damage(what any) error {
	return hint.Errorf("restore "+s.path+" from a backup",
		"%w: %s: %v", store.ErrDamaged, s.path, what)
}

// guard turns the panics and memory faults with which bbolt meets a file that
// was damaged below its records into an error.
func (s *Store) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = s.damage(r)
		}
	}()
	return fn()
}

func (s *Store) reader(tx *bbolt.Tx) (reader, error) {
	b := tx.Bucket(bucket)
	if b == nil {
		return reader{}, hint.Errorf("give the path of a vault with --vault, or make one with ov auth init",
			"%s is not an ov vault", s.path)
	}
	return reader{b}, nil
}

func write(tx *bbolt.Tx, b store.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	// bbolt splits a page only at commit and inserts into it by moving all that
	// follows: 100,000 writes in the order of their keys take a second, in random
	// order minutes.
	b = slices.Clone(b)
	slices.SortStableFunc(b, func(x, y store.Op) int { return bytes.Compare(x.Key, y.Key) })
	bk := tx.Bucket(bucket)
	for _, op := range b {
		var err error
		if op.Value == nil {
			err = bk.Delete(op.Key)
		} else {
			err = bk.Put(op.Key, op.Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type reader struct{ b *bbolt.Bucket }

func (r reader) Get(key []byte) ([]byte, error) { return r.b.Get(key), nil }

func (r reader) Seek(key []byte) (k, v []byte, err error) {
	k, v = r.b.Cursor().Seek(key)
	return k, v, nil
}

func (r reader) Scan(prefix []byte, fn func(k, v []byte) error) error {
	c := r.b.Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}

// open opens the file and takes its lock, shared for reading.
func (s *Store) open(ctx context.Context, flag int) (db *bbolt.DB, err error) {
	ctx, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	var file *os.File
	var openErr error // bbolt's own error wraps none of ours
	options := &bbolt.Options{
		ReadOnly:     flag == os.O_RDONLY,
		FreelistType: bbolt.FreelistMapType,
		Timeout:      time.Second, // not waited for: openFile holds the lock already
		OpenFile: func(path string, _ int, perm os.FileMode) (*os.File, error) {
			file, openErr = openFile(ctx, path, flag, perm)
			return file, openErr
		},
	}
	gerr := s.guard(func() error {
		db, err = bbolt.Open(s.path, 0o600, options)
		return nil
	})
	switch {
	case gerr != nil:
		_ = file.Close() // bbolt gave it up in mid-air, still locked
		return nil, gerr
	case openErr != nil:
		return nil, openErr
	case errors.Is(err, bbolt.ErrInvalid), errors.Is(err, bbolt.ErrChecksum), errors.Is(err, bbolt.ErrVersionMismatch):
		return nil, s.damage(err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return db, nil
}

// openFile opens and locks a vault file. bbolt would poll for the lock every 50
// ms; this starts at a fraction of a millisecond. flock(2) locks belong to the
// open file, so bbolt's own call on it succeeds at once.
func openFile(ctx context.Context, path string, flag int, perm os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint.Errorf("make one with: ov auth init", "%w at %s", store.ErrNoVault, path)
	}
	if err != nil {
		return nil, err
	}
	if err := judge(f, path, flag&os.O_CREATE != 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	how := unix.LOCK_EX
	if flag == os.O_RDONLY {
		how = unix.LOCK_SH
	}
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, hint.Errorf("see who holds it with: fuser -v "+path,
				"%w: %s: another process has kept it locked", store.ErrBusy, path)
		case <-time.After(pause):
		}
	}
}

// judge refuses a vault file that others could have replaced or written.
func judge(f *os.File, path string, isNew bool) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
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
