package bolt

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bbolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m, open) }

func open(path string) (store.Store, error) { return New(path), nil }

// fresh makes a vault file with a batch in it.
func fresh(t testing.TB, b store.Batch) *Store {
	t.Helper()
	s := New(filepath.Join(t.TempDir(), "vault.db"))
	if err := s.Create(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) string { return fresh(t, nil).Path() }, open)
}

// scan returns all records of a store.
func scan(s *Store) (map[string]string, error) {
	got := map[string]string{}
	err := s.View(context.Background(), func(r store.Reader) error {
		return r.Scan(nil, func(k, v []byte) error { got[string(k)] = string(v); return nil })
	})
	return got, err
}

func write1(s *Store, key string) error {
	return s.Update(context.Background(), func(store.Reader) (store.Batch, error) {
		return store.Batch{{Key: []byte(key), Value: []byte("new")}}, nil
	})
}

func TestCreate(t *testing.T) {
	ctx := t.Context()
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := New(filepath.Join(dir, "vault.db"))
	if _, err := scan(s); !errors.Is(err, store.ErrNoVault) || hint.Of(err) == "" {
		t.Errorf("before: %v", err)
	}
	batch := store.Batch{{Key: []byte("k"), Value: []byte("v")}}
	if err := s.Create(ctx, batch); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{dir: 0o700, s.Path(): 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v: %v", name, st.Mode(), want, err)
		}
	}
	if err := s.Create(ctx, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if got, err := scan(s); got["k"] != "v" || err != nil {
		t.Errorf("the records are %v: %v", got, err)
	}
	// What a killed Create left is swept up, what one is working on is not, nor
	// what is not ours.
	other := New(filepath.Join(dir, "other.db"))
	leave := map[string]bool{"other.db.new-0123456789abcdef": false, "other.db.new-fedcba9876543210": true, "other.db.new-mine": true, "vault.db": true}
	for name := range leave {
		if name == "vault.db" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{"other.db.new-0123456789abcdef", "other.db.new-mine"} {
		if err := os.Chtimes(filepath.Join(dir, name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Create(ctx, nil); err != nil {
		t.Fatal(err)
	}
	leave["other.db"] = true
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !leave[e.Name()] {
			t.Errorf("%s is left", e.Name())
		}
		delete(leave, e.Name())
	}
	delete(leave, "other.db.new-0123456789abcdef")
	if len(leave) > 0 {
		t.Errorf("%v are gone", leave)
	}
	// A batch out of bounds makes no vault.
	if err := New(filepath.Join(dir, "bad.db")).Create(ctx, store.Batch{{}}); err == nil {
		t.Error("a record without a key was written")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "bad.db*")); left != nil {
		t.Errorf("left %v", left)
	}
}

// One of many Creates wins, and the others leave its vault alone.
func TestCreateOnce(t *testing.T) {
	s := New(filepath.Join(t.TempDir(), "vault.db"))
	var wg sync.WaitGroup
	var won atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			err := s.Create(t.Context(), store.Batch{{Key: []byte("k"), Value: []byte{byte(i + 1)}}})
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := scan(s); won.Load() != 1 || len(got["k"]) != 1 || err != nil {
		t.Errorf("%d won, the record is %q: %v", won.Load(), got["k"], err)
	}
	if left, _ := filepath.Glob(s.Path() + "?*"); left != nil {
		t.Errorf("left %v", left)
	}
}

func TestPaths(t *testing.T) {
	for _, c := range []struct {
		name, want, fix string
		make            func(path string) error
	}{
		{"nothing", "no vault at {F}", "make one with: ov auth init", func(string) error { return nil }},
		{"directory", "{F} is not a regular file", "", func(f string) error { return os.Mkdir(f, 0o700) }},
		{"named pipe", "{F} is not a regular file", "", func(f string) error { return unix.Mkfifo(f, 0o600) }},
		{"symbolic link", "{F} is a symbolic link", "name the file itself: readlink -f {F}", func(f string) error { return os.Symlink("sound", f) }},
		{"dangling link", "{F} is a symbolic link", "name the file itself: readlink -f {F}", func(f string) error { return os.Symlink("nowhere", f) }},
		{"empty file", "vault file is damaged: {F} is empty", "restore it from a backup, or remove it and run ov auth init", func(f string) error { return os.WriteFile(f, nil, 0o600) }},
		{"text", "vault file is damaged: {F}: broken: not a bbolt file", "restore {F} from a backup", func(f string) error { return os.WriteFile(f, bytes.Repeat([]byte("KEY=value\n"), 1000), 0o600) }},
		{"one byte", "vault file is damaged: {F}: broken: not a bbolt file", "restore {F} from a backup", func(f string) error { return os.WriteFile(f, []byte("x"), 0o600) }},
		{"another program's bbolt file", "{F} is not an ov vault", "give the path of a vault with --vault, or make one with ov auth init", func(f string) error {
			db, err := bbolt.Open(f, 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(db.Update(func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("theirs"))
				return err
			}), db.Close())
		}},
		{"mode 0666", "{F} can be written by others (mode 0666)", "chmod 600 {F}", func(f string) error {
			return errors.Join(os.Rename(filepath.Join(filepath.Dir(f), "sound"), f), os.Chmod(f, 0o666))
		}},
		{"mode 0620", "{F} can be written by others (mode 0620)", "chmod 600 {F}", func(f string) error {
			return errors.Join(os.Rename(filepath.Join(filepath.Dir(f), "sound"), f), os.Chmod(f, 0o620))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sound := fresh(t, store.Batch{{Key: []byte("k"), Value: []byte("v")}})
			s := New(filepath.Join(filepath.Dir(sound.Path()), "f"))
			if err := errors.Join(os.Rename(sound.Path(), filepath.Join(filepath.Dir(sound.Path()), "sound")), c.make(s.Path())); err != nil {
				t.Fatal(err)
			}
			content := func() (b []byte) {
				if st, err := os.Lstat(s.Path()); err == nil && st.Mode().IsRegular() {
					b, _ = os.ReadFile(s.Path())
				}
				return b
			}
			before := content()
			fill := func(text string) string { return strings.ReplaceAll(text, "{F}", s.Path()) }
			_, read := scan(s)
			for what, err := range map[string]error{"read": read, "write": write1(s, "k2")} {
				if err == nil || err.Error() != fill(c.want) || hint.Of(err) != fill(c.fix) {
					t.Errorf("%s: got %v (%s)\nwant %s (%s)", what, err, hint.Of(err), fill(c.want), fill(c.fix))
				}
			}
			if err := s.Create(t.Context(), nil); c.name != "nothing" && !errors.Is(err, fs.ErrExist) {
				t.Errorf("create: %v", err)
			}
			if c.name != "nothing" && !bytes.Equal(before, content()) {
				t.Error("the file has changed")
			}
		})
	}
}

// A writer that does not end keeps others waiting until their contexts end, and
// they are told how to find it.
func TestBusy(t *testing.T) {
	s := fresh(t, nil)
	err := s.Update(t.Context(), func(store.Reader) (store.Batch, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := s.View(ctx, func(store.Reader) error { return nil })
		if !errors.Is(err, store.ErrBusy) || hint.Of(err) != "see who holds it with: fuser -v "+s.Path() {
			t.Errorf("got %v (%s)", err, hint.Of(err))
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
	// Readers do not keep each other waiting.
	inside, leave, done := make(chan bool), make(chan bool), make(chan error)
	go func() {
		done <- s.View(t.Context(), func(store.Reader) error { close(inside); <-leave; return nil })
	}()
	<-inside
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.View(ctx, func(store.Reader) error { return nil }); err != nil {
		t.Error(err)
	}
	cancel()
	if err := s.Update(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller has given up: %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Writers get their turn among readers that never leave the file alone.
func TestWriterAmongReaders(t *testing.T) {
	s := fresh(t, store.Batch{{Key: []byte("k"), Value: make([]byte, 10_000)}})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = s.View(ctx, func(r store.Reader) error { time.Sleep(2 * time.Millisecond); return nil })
			}
		})
	}
	for i := range 5 {
		start := time.Now()
		if err := write1(s, "k"); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("write %d waited %v", i, took)
		}
	}
	stop()
	wg.Wait()
}

// A disk that fills up leaves the old records and a clear error.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: takes root")
	}
	dir := t.TempDir()
	if err := mountTmpfs(dir, 1<<20); err != nil {
		t.Skipf("NOT RUN: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	s := New(filepath.Join(dir, "vault.db"))
	if err := s.Create(t.Context(), store.Batch{{Key: []byte("k"), Value: []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	err := s.Update(t.Context(), func(store.Reader) (b store.Batch, err error) {
		for i := range 20 {
			b.Put([]byte{byte(i + 1)}, make([]byte, 100_000))
		}
		return b, nil
	})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), s.Path()) {
		t.Errorf("got %v", err)
	}
	if got, err := scan(s); len(got) != 1 || got["k"] != "v" || err != nil {
		t.Errorf("afterwards %d records: %v", len(got), err)
	}
	if err := write1(s, "k2"); err != nil { // a small one still fits
		t.Error(err)
	}
	if err := New(filepath.Join(dir, "v2")).Create(t.Context(), store.Batch{{Key: []byte("k"), Value: make([]byte, 1<<20)}}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("create: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "v2*")); left != nil {
		t.Errorf("left %v", left)
	}
}
