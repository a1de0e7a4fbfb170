package embedded

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
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

// childEnv holds the directory in which a child process is to write.
const childEnv = "EMBEDDED_CHILD"

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv(childEnv); ok {
		fmt.Fprintln(os.Stderr, flood(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func open(t testing.TB, dir string) *Accounts {
	t.Helper()
	all, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fresh opens a new file, which is closed when the test ends.
func fresh(t testing.TB) *Accounts {
	t.Helper()
	all := open(t, t.TempDir())
	t.Cleanup(func() {
		if err := all.Close(); err != nil && !errors.Is(err, errClosed) {
			t.Error(err)
		}
	})
	return all
}

// newAccount makes an account and returns its store.
func newAccount(t testing.TB, all *Accounts) store.Store {
	t.Helper()
	var id store.AccountID
	rand.Read(id[:])
	if err := all.Create(context.Background(), store.Account{ID: id, Name: "test", Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return all.Store(id)
}

func put1(s store.Store, key, value string) error {
	return s.Update(context.Background(), func(store.Reader) (store.Batch, error) {
		return store.Batch{{Key: []byte(key), Value: []byte(value)}}, nil
	})
}

func get1(t testing.TB, s store.Store, key string) (value string) {
	t.Helper()
	err := s.View(context.Background(), func(r store.Reader) error {
		v, err := r.Get([]byte(key))
		value = string(v)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return value
}

func TestStore(t *testing.T) {
	all := fresh(t)
	var mu sync.Mutex
	stores := map[string]store.Store{}
	storetest.RunOne(t, func(t *testing.T) string {
		mu.Lock()
		defer mu.Unlock()
		stores[t.Name()] = newAccount(t, all)
		return t.Name()
	}, func(address string) (store.Store, error) {
		mu.Lock()
		defer mu.Unlock()
		return stores[address], nil
	})
}

func TestAccounts(t *testing.T) { storetest.RunAccounts(t, fresh(t)) }

func TestOpen(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "a", "b")
	all := open(t, dir)
	for name, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, File): 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v: %v", name, st.Mode(), want, err)
		}
	}
	s := newAccount(t, all)
	if err := put1(s, "k", "v"); err != nil {
		t.Fatal(err)
	}

	// Another process gets to know who is in the way.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, dir)
	if !errors.Is(err, store.ErrBusy) || !strings.Contains(hint.Of(err), "fuser -v "+dir) {
		t.Errorf("opened twice: %v (%s)", err, hint.Of(err))
	}

	// And one that waits gets the file.
	second := make(chan error)
	go func() {
		again, err := Open(t.Context(), dir)
		if err == nil {
			if list, _ := again.List(t.Context()); len(list) != 1 || get1(t, again.Store(list[0].ID), "k") != "v" {
				err = errors.New("the record is gone")
			}
			err = errors.Join(err, again.Close())
		}
		second <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := all.Close(); err != nil {
		t.Error(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}

	// What is closed says so.
	_, listed := all.List(t.Context())
	for what, err := range map[string]error{
		"read": s.View(t.Context(), func(store.Reader) error { return nil }), "write": put1(s, "k", "w"),
		"list": listed, "ping": all.Ping(t.Context()), "close": all.Close(),
	} {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s after the end: %v", what, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want, fix string
		make            func(dir, file string) error
	}{
		{"directory of others", "{D} can be written by others (mode 0777)", "chmod 700 {D}", func(dir, _ string) error { return os.Chmod(dir, 0o777) }},
		{"mode 0620", "{F} can be written by others (mode 0620)", "chmod 600 {F}", func(_, f string) error {
			return errors.Join(os.WriteFile(f, nil, 0o600), os.Chmod(f, 0o620))
		}},
		{"symbolic link", "{F} is a symbolic link", "give the directory of the file itself: readlink -f {F}", func(dir, f string) error {
			return errors.Join(os.WriteFile(dir+"/other", nil, 0o600), os.Symlink("other", f))
		}},
		{"directory", "open {F}: is a directory", "", func(_, f string) error { return os.Mkdir(f, 0o700) }},
		{"named pipe", "{F} is not a regular file", "", func(_, f string) error { return unix.Mkfifo(f, 0o600) }},
		{"text", "vault file is damaged: {F}: invalid database", "restore {F} from a backup", func(_, f string) error {
			return os.WriteFile(f, bytes.Repeat([]byte("KEY=value\n"), 1000), 0o600)
		}},
		{"a vault", "{F}: not a file of ov-server", "give another directory", func(_, f string) error {
			db, err := bbolt.Open(f, 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(db.Update(func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("ov/v1"))
				return err
			}), db.Close())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, File)
			if err := errors.Join(os.Chmod(dir, 0o700), c.make(dir, file)); err != nil {
				t.Fatal(err)
			}
			content := func() (b []byte) {
				if st, err := os.Lstat(file); err == nil && st.Mode().IsRegular() {
					b, _ = os.ReadFile(file)
				}
				return b
			}
			before := content()
			fill := func(text string) string { return strings.NewReplacer("{D}", dir, "{F}", file).Replace(text) }
			all, err := Open(t.Context(), dir)
			if err == nil {
				_ = all.Close()
			}
			if err == nil || err.Error() != fill(c.want) || hint.Of(err) != fill(c.fix) {
				t.Errorf("got %v (%s)\nwant %s (%s)", err, hint.Of(err), fill(c.want), fill(c.fix))
			}
			if !bytes.Equal(before, content()) {
				t.Error("the file has changed")
			}
		})
	}
}

// A file that was replaced under a running server takes writes that nobody would
// ever see.
func TestPingFindsAnotherFile(t *testing.T) {
	all := fresh(t)
	path := all.db.Path()
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := all.Ping(t.Context()); !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(path, []byte("restored"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := all.Ping(t.Context()); !errors.Is(err, store.ErrUnavailable) || hint.Of(err) == "" {
		t.Errorf("with another file: %v", err)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	if err := all.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// joined runs second as a member of the group that first has opened: while first
// is at work, second waits for its turn.
func joined(s store.Store, first, second func(store.Reader) (store.Batch, error)) (errFirst, errSecond error) {
	done := make(chan error)
	errFirst = s.Update(context.Background(), func(r store.Reader) (store.Batch, error) {
		go func() { done <- s.Update(context.Background(), second) }()
		time.Sleep(30 * time.Millisecond) // it queues
		return first(r)
	})
	return errFirst, <-done
}

func TestGroup(t *testing.T) {
	all := fresh(t)
	s := newAccount(t, all)
	mine := errors.New("mine")
	var many store.Batch
	for i := range 5000 {
		many.Put(fmt.Appendf(nil, "m%04d", i), bytes.Repeat([]byte("x"), 100))
	}
	batch := func(key, value string) store.Batch {
		return store.Batch{{Key: []byte(key), Value: []byte(value)}}
	}
	txid := func() (id int) {
		_ = all.view(t.Context(), func(tx *bbolt.Tx) error { id = tx.ID(); return nil })
		return id
	}

	// The second sees what the first has written, and both are one commit.
	before := txid()
	err1, err2 := joined(s, func(store.Reader) (store.Batch, error) { return batch("a", "1"), nil },
		func(r store.Reader) (store.Batch, error) {
			v, err := r.Get([]byte("a"))
			return batch("a", string(v)+"2"), err
		})
	if err := errors.Join(err1, err2); err != nil || get1(t, s, "a") != "12" {
		t.Errorf("a is %q: %v", get1(t, s, "a"), err)
	}
	if n := txid() - before; n != 1 {
		t.Errorf("two writes of one moment were %d commits", n)
	}

	// One that fails takes nothing from the others.
	err1, err2 = joined(s, func(store.Reader) (store.Batch, error) { return batch("b", "1"), mine },
		func(r store.Reader) (store.Batch, error) {
			v, err := r.Get([]byte("b"))
			return batch("c", "v"+string(v)), err
		})
	if !errors.Is(err1, mine) || err2 != nil || get1(t, s, "b") != "" || get1(t, s, "c") != "v" {
		t.Errorf("b is %q, c is %q: %v, %v", get1(t, s, "b"), get1(t, s, "c"), err1, err2)
	}
	err1, err2 = joined(s, func(store.Reader) (store.Batch, error) { return batch("d", "1"), nil },
		func(store.Reader) (store.Batch, error) { return store.Batch{{}}, nil })
	if err1 != nil || err2 == nil || get1(t, s, "d") != "1" {
		t.Errorf("d is %q: %v, %v", get1(t, s, "d"), err1, err2)
	}

	// The last of what is left, when the group has emptied pages of bbolt.
	if err := s.Update(t.Context(), func(store.Reader) (store.Batch, error) { return many, nil }); err != nil {
		t.Fatal(err)
	}
	var key, value []byte
	err1, err2 = joined(s, func(store.Reader) (b store.Batch, err error) {
		for _, op := range many[1:] {
			b.Delete(op.Key)
		}
		return b, nil
	}, func(r store.Reader) (b store.Batch, err error) {
		key, value, err = r.Last([]byte("m"))
		return nil, err
	})
	if err := errors.Join(err1, err2); err != nil || string(key) != "m0000" || len(value) != 100 {
		t.Errorf("the last is %q: %v", key, err)
	}
}

// A panic is the caller's own. The others of the moment are told that nothing of
// theirs was written, or it was.
func TestPanic(t *testing.T) {
	all := fresh(t)
	s := newAccount(t, all)
	second := make(chan error)
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = s.Update(t.Context(), func(store.Reader) (store.Batch, error) {
			go func() { second <- put1(s, "k", "v") }()
			time.Sleep(30 * time.Millisecond)
			panic("mine")
		})
	}()
	if err := <-second; err != nil || get1(t, s, "k") != "v" {
		t.Errorf("k is %q: %v", get1(t, s, "k"), err)
	}
	if err := all.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// Many writers take fewer commits than writes, and one alone takes one each.
func TestCommits(t *testing.T) {
	all := fresh(t)
	s := newAccount(t, all)
	txid := func() (id int) {
		_ = all.view(t.Context(), func(tx *bbolt.Tx) error { id = tx.ID(); return nil })
		return id
	}
	before := txid()
	for i := range 20 {
		if err := put1(s, "k", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := txid() - before; n != 20 {
		t.Errorf("20 writes after each other were %d commits", n)
	}
	before = txid()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 20 {
				if err := put1(s, fmt.Sprintf("%d/%d", w, i), "v"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n := txid() - before
	t.Logf("320 writes of 16 writers were %d commits", n)
	if n > 160 {
		t.Errorf("320 writes of 16 writers were %d commits", n)
	}
}

// flood writes and says what was written, until it is killed.
func flood(dir string) error {
	all, err := Open(context.Background(), dir)
	if err != nil {
		return err
	}
	list, err := all.List(context.Background())
	if err != nil {
		return err
	}
	s := all.Store(list[0].ID)
	failed := make(chan error)
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				var n int
				err := s.Update(context.Background(), func(r store.Reader) (store.Batch, error) {
					v, err := r.Get(fmt.Append(nil, "writer ", w))
					_, _ = fmt.Sscan(string(v), &n)
					n++
					b := store.Batch{{Key: fmt.Append(nil, "writer ", w), Value: fmt.Append(nil, n)}}
					for j := range 10 { // a batch, to be there whole
						b.Put(fmt.Append(nil, "set ", w, " ", j), bytes.Repeat(fmt.Append(nil, n, ","), 50))
					}
					return b, err
				})
				if err != nil {
					failed <- err
					return
				}
				fmt.Printf("%d %d\n", w, n) // one write(2)
			}
		}()
	}
	return <-failed
}

// What a server that was killed has acknowledged is there, and batches are whole.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	all := open(t, dir)
	newAccount(t, all)
	if err := all.Close(); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var acked [4]int
	for range 20 {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan() // it is at work
		first := lines.Text()
		var pause [1]byte
		rand.Read(pause[:])
		time.AfterFunc(time.Duration(pause[0])*100*time.Microsecond, func() { _ = cmd.Process.Kill() })
		for line := first; ; line = lines.Text() {
			var w, n int
			if _, err := fmt.Sscan(line, &w, &n); err != nil {
				t.Fatalf("the child said %q", line)
			}
			acked[w] = n
			if !lines.Scan() {
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()

		all := open(t, dir)
		list, err := all.List(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("%d accounts: %v", len(list), err)
		}
		s := all.Store(list[0].ID)
		for w, last := range acked {
			var n int
			_, _ = fmt.Sscan(get1(t, s, fmt.Sprint("writer ", w)), &n)
			if n < last || n > last+1 {
				t.Errorf("writer %d had %d acknowledged, and %d is there", w, last, n)
			}
			acked[w] = n
			for j := range 10 {
				if got, want := get1(t, s, fmt.Sprint("set ", w, " ", j)), strings.Repeat(fmt.Sprint(n, ","), 50); n > 0 && got != want {
					t.Errorf("of the batch %d of writer %d there is %.10q", n, w, got)
				}
			}
		}
		if err := all.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("20 kills, %v writes", acked)
	for w, n := range acked {
		if n == 0 {
			t.Errorf("writer %d wrote nothing", w)
		}
	}
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
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	all := open(t, dir)
	s := newAccount(t, all)
	if err := put1(s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	big := func(store.Reader) (b store.Batch, err error) {
		for i := range 20 {
			b.Put([]byte{byte(i + 1)}, make([]byte, 100_000))
		}
		return b, nil
	}
	err1, err2 := joined(s, big, func(store.Reader) (store.Batch, error) {
		return store.Batch{{Key: []byte("k"), Value: []byte("lost")}}, nil
	})
	for _, err := range []error{err1, err2} { // of one group
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), all.db.Path()) {
			t.Errorf("got %v", err)
		}
	}
	if got := get1(t, s, "k"); got != "v" {
		t.Errorf("afterwards the record is %q", got)
	}
	if err := errors.Join(put1(s, "k2", "v2"), all.Ping(t.Context())); err != nil { // little still fits
		t.Error(err)
	}
	if err := all.Close(); err != nil {
		t.Fatal(err)
	}
	all = open(t, dir)
	defer func() { _ = all.Close() }()
	list, _ := all.List(t.Context())
	if s := all.Store(list[0].ID); get1(t, s, "k") != "v" || get1(t, s, "k2") != "v2" {
		t.Error("records are gone")
	}
}

// A reader that takes its time keeps neither writers nor other readers waiting,
// even while the file grows, and sees nothing of what they do.
func TestSlowReader(t *testing.T) {
	all := fresh(t)
	s := newAccount(t, all)
	if err := put1(s, "k", "old"); err != nil {
		t.Fatal(err)
	}
	err := s.View(t.Context(), func(r store.Reader) error {
		for i := range 40 {
			if err := put1(s, fmt.Sprintf("big %d", i), strings.Repeat("x", store.MaxValue)); err != nil {
				return err
			}
		}
		if err := put1(s, "k", "new"); err != nil {
			return err
		}
		if got := get1(t, s, "k"); got != "new" {
			t.Errorf("another reader sees %q", got)
		}
		if v, err := r.Get([]byte("k")); err != nil || string(v) != "old" {
			t.Errorf("the snapshot shows %q: %v", v, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// What was read stays what it was when the snapshot is over.
func TestCopies(t *testing.T) {
	all := fresh(t)
	s := newAccount(t, all)
	var kept [][]byte
	for i := range 3 {
		if err := put1(s, "k", strings.Repeat(fmt.Sprint(i), 10_000)); err != nil {
			t.Fatal(err)
		}
		err := s.View(t.Context(), func(r store.Reader) error {
			v, err := r.Get([]byte("k"))
			_, last, err2 := r.Last(nil)
			kept = append(kept, v, last)
			return errors.Join(err, err2, r.Scan(nil, func(_, v []byte) error { kept = append(kept, v); return nil }))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, v := range kept {
		if want := strings.Repeat(fmt.Sprint(i/3), 10_000); string(v) != want {
			t.Errorf("value %d has turned into %.10q", i, v)
		}
	}
}

func filled(b *testing.B, n int) store.Store {
	s := newAccount(b, fresh(b))
	for from := 0; from < n; from += 50_000 {
		err := s.Update(b.Context(), func(store.Reader) (batch store.Batch, err error) {
			for i := from; i < min(n, from+50_000); i++ {
				batch.Put(key(i), make([]byte, 300))
			}
			return batch, nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// key is like that of a secret version: random, 69 bytes.
func key(i int) []byte {
	return fmt.Appendf(nil, "d%064x\x00\x00\x00\x01", uint64(i)*0x9e3779b97f4a7c15)
}

func BenchmarkRead10(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := filled(b, n)
			var i atomic.Int64
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					err := s.View(b.Context(), func(r store.Reader) error {
						for range 10 {
							if k, _, err := r.Last(key(int(i.Add(7919)) % n)[:65]); k == nil || err != nil {
								return fmt.Errorf("%q: %w", k, err)
							}
						}
						return nil
					})
					if err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkWrite10(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		for _, writers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%d/writers=%d", n, writers), func(b *testing.B) {
				s := filled(b, n)
				var i atomic.Int64
				b.SetParallelism((writers + 1) / 2)
				b.ResetTimer()
				write := func() {
					err := s.Update(b.Context(), func(store.Reader) (batch store.Batch, err error) {
						for range 10 {
							batch.Put(key(int(i.Add(7919))%n), make([]byte, 300))
						}
						return batch, nil
					})
					if err != nil {
						b.Error(err)
					}
				}
				if writers == 1 {
					for b.Loop() {
						write()
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						write()
					}
				})
			})
		}
	}
}
