// Package embedded keeps the accounts of a server in one bbolt file, which it
// holds open and locked: one server has it, and nobody else.
//
// Each account has a bucket of its own. The file is trusted, unlike a vault's
// (pkg/store/bolt): it is the server's own, and what lies in it is ciphertext.
package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	bbolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/internal/bucket"
	"github.com/opaquevault/ov/pkg/store/internal/group"
)

// File is the file's name in the server's directory.
const File = "server.db"

// Wait bounds how long Open waits for another process to leave the file, unless
// its context ends sooner: a server that is being replaced finishes its work.
const Wait = 10 * time.Second

// The buckets of the file. A later format gets buckets of its own.
var (
	accounts = []byte("ov/server/v1/accounts") // account id → meta
	records  = []byte("ov/server/v1/records")  // account id → bucket of its records
	health   = []byte("ov/server/v1/health")   // what Ping writes
)

const (
	// mapSize is how much of the address space, not of memory, is set aside for
	// the file. A file that outgrew its mapping could be mapped anew only when all
	// readers are gone: one slow reader would stop everybody.
	mapSize = 1 << 38
	// growBy is what a file that is full grows by, in bytes.
	growBy = 4 << 20
)

// Accounts is the open file. Its methods are safe for use by many goroutines.
type Accounts struct {
	db   *bbolt.DB
	file *os.File

	queue  *group.Queue[*tx]
	broken error // why nothing can be written any more; its turn is the queue's
}

type meta struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

// Open opens the file in the directory dir, mode 0700, and makes both if they
// are not there. The error wraps store.ErrBusy if another process has the file.
func Open(ctx context.Context, dir string) (*Accounts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if st, err := os.Stat(dir); err != nil {
		return nil, err
	} else if st.Mode().Perm()&0o022 != 0 {
		return nil, hint.Errorf("chmod 700 "+dir, "%s can be written by others (mode %04o)", dir, st.Mode().Perm())
	}
	path := filepath.Join(dir, File)
	f, err := openFile(ctx, path)
	if err != nil {
		return nil, err
	}
	db, err := openDB(f)
	if err != nil { // f is closed
		return nil, hint.Errorf("restore "+path+" from a backup", "%w: %s: %w", store.ErrDamaged, path, err)
	}
	if err := initialize(db); err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, db.Close()))
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Accounts{db: db, file: f, queue: group.New[*tx]()}, nil
}

// openDB opens the locked file with bbolt, which looks through all of it: 0.7 s
// for a million secrets. Damage that it finds ends the process: it panics in a
// goroutine of its own.
func openDB(f *os.File) (*bbolt.DB, error) {
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{
		FreelistType: bbolt.FreelistMapType,
		// The list of free pages is long after a large deletion. Written with each
		// commit, it made commits ten times as slow.
		NoFreelistSync:  true,
		InitialMmapSize: mapSize,
		Timeout:         time.Second, // not waited for: f is locked already
		OpenFile:        func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	if err == nil {
		db.AllocSize = growBy
	}
	return db, err
}

// openFile opens and locks the file. The lock belongs to the open file, so
// bbolt's own call on it succeeds at once.
func openFile(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, hint.Errorf("give the directory of the file itself: readlink -f "+path, "%s is a symbolic link", path)
	}
	if err != nil {
		return nil, err
	}
	if err = judge(f); err == nil {
		err = lock(ctx, f)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// judge refuses a file that others could have replaced or written.
func judge(f *os.File) error {
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", f.Name())
	case st.Mode().Perm()&0o022 != 0:
		return hint.Errorf("chmod 600 "+f.Name(), "%s can be written by others (mode %04o)", f.Name(), st.Mode().Perm())
	}
	return nil
}

// lock is flock(2) with an end.
func lock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return hint.Errorf("one ov-server may have it; see who does with: fuser -v "+f.Name(),
				"%w: %s: another process has it open", store.ErrBusy, f.Name())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// initialize makes the buckets of a new file, and refuses the file of another
// program.
func initialize(db *bbolt.DB) error {
	isOurs, isEmpty := false, true
	err := db.View(func(tx *bbolt.Tx) error {
		isOurs = tx.Bucket(accounts) != nil && tx.Bucket(records) != nil && tx.Bucket(health) != nil
		return tx.ForEach(func([]byte, *bbolt.Bucket) error { isEmpty = false; return nil })
	})
	switch {
	case err != nil || isOurs:
		return err
	case !isEmpty:
		return hint.Errorf("give another directory", "not a file of ov-server")
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{accounts, records, health} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close waits for what is under way. It is called once.
func (a *Accounts) Close() error {
	return a.queue.Close(func() error {
		if a.broken != nil {
			return a.broken // its lock is lost inside of bbolt
		}
		a.broken = errClosed
		return a.db.Close()
	})
}

var errClosed = fmt.Errorf("%w: the storage is closed", store.ErrUnavailable)

// Create implements store.Accounts.
func (a *Accounts) Create(ctx context.Context, account store.Account) error {
	value, err := json.Marshal(meta{account.Name, account.Created.UTC().Truncate(time.Microsecond)})
	if err != nil {
		return err
	}
	return a.update(ctx, func(tx *tx) (write, error) {
		if tx.Bucket(accounts).Get(account.ID[:]) != nil {
			return nil, fmt.Errorf("%w: %x", store.ErrAccountExists, account.ID)
		}
		return func() error {
			_, err := tx.Bucket(records).CreateBucket(account.ID[:])
			return errors.Join(err, tx.Bucket(accounts).Put(account.ID[:], value))
		}, nil
	})
}

// List implements store.Accounts.
func (a *Accounts) List(ctx context.Context) ([]store.Account, error) {
	var all []store.Account
	err := a.view(ctx, func(tx *bbolt.Tx) error {
		return tx.Bucket(accounts).ForEach(func(id, value []byte) error {
			var m meta
			if err := json.Unmarshal(value, &m); err != nil {
				return fmt.Errorf("%w: account %x: %w", store.ErrDamaged, id, err)
			}
			all = append(all, store.Account{ID: store.AccountID(id), Name: m.Name, Created: m.Created})
			return ctx.Err()
		})
	})
	slices.SortStableFunc(all, func(x, y store.Account) int { return x.Created.Compare(y.Created) })
	return all, err
}

// Ping writes to the file. It also finds that the file is no longer the one
// under its name: then all that is written would be lost with the process.
func (a *Accounts) Ping(ctx context.Context) error {
	now, err := os.Stat(a.db.Path())
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	mine, err := a.file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if !os.SameFile(now, mine) {
		return hint.Errorf("stop ov-server before the file is replaced, and start it again",
			"%w: another file was put in the place of %s", store.ErrUnavailable, a.db.Path())
	}
	return a.update(ctx, func(tx *tx) (write, error) {
		return func() error {
			return tx.Bucket(health).Put([]byte("ping"), []byte(time.Now().UTC().Format(time.RFC3339Nano)))
		}, nil
	})
}

// Store implements store.Accounts.
func (a *Accounts) Store(id store.AccountID) store.Store { return &account{a, id} }

type account struct {
	all *Accounts
	id  store.AccountID
}

// View implements store.Store. Writers go on meanwhile. Pages that they free are
// not used again before fn returns, so a slow fn makes the file grow.
func (s *account) View(ctx context.Context, fn func(store.Reader) error) error {
	return s.all.view(ctx, func(tx *bbolt.Tx) error {
		b, err := s.bucket(tx)
		if err != nil {
			return err
		}
		return fn(reader{ctx: ctx, b: b})
	})
}

// Update implements store.Store. One fn at a time runs, of all accounts, and is
// called once: it must not wait for anything.
func (s *account) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	return s.all.update(ctx, func(tx *tx) (write, error) {
		to, err := s.bucket(tx.Tx)
		if err != nil {
			return nil, err
		}
		b, err := fn(reader{ctx, to, tx.isDirty})
		if err != nil || len(b) == 0 {
			return nil, err
		}
		if err := b.Check(); err != nil {
			return nil, err
		}
		return func() error { return bucket.Write(to, b) }, nil
	})
}

func (s *account) bucket(tx *bbolt.Tx) (*bbolt.Bucket, error) {
	b := tx.Bucket(records).Bucket(s.id[:])
	if b == nil {
		return nil, fmt.Errorf("%w: %x", store.ErrNoAccount, s.id)
	}
	return b, nil
}

// view calls fn with a snapshot of the file.
func (a *Accounts) view(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tx, err := a.db.Begin(false)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return errClosed
	}
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	return fn(tx)
}
