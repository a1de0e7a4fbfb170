package transfer

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// far is a server, read from afar: it sends what is not as the caller has it.
type far struct {
	*memory
	account string
	cut     int // after how many records it is lost, from 1; 0 is never
	sent    int
}

func (f *far) ReadAll(ctx context.Context, have []store.Record, got func([]store.Record)) ([]store.Record, error) {
	if err := (store.Range{Take: store.All}).Check(have); err != nil {
		return nil, err // pkg/store/remote would read all
	}
	c, err := Read(ctx, f.memory.end())
	if err != nil {
		return nil, err
	}
	mine := &Contents{have}
	f.sent = 0
	for _, rec := range c.Records {
		if bytes.Equal(mine.get(rec.Key), rec.Value) {
			continue
		}
		if f.sent++; f.sent == f.cut {
			return nil, errLost
		}
		got([]store.Record{rec})
	}
	return c.Records, nil
}

func (f *far) end() End {
	return End{Name: "https://server", Store: f.memory, ReadAll: f.ReadAll, Account: f.account}
}

// newFar is base, and n records more.
func newFar(t testing.TB, n int) *far {
	t.Helper()
	f := &far{memory: newMemory(), account: "1"}
	must(t, f.Update(ctx, func(store.Reader) (store.Batch, error) { return base().batch, nil }))
	if n > 0 {
		many(t, f.memory.end(), n)
	}
	return f
}

func pullTo(path string) End {
	end := fileEnd(path)
	end.File = path
	return end
}

// Cut anywhere, what has come is kept beside the destination, where nothing opens
// it, and the next pull brings what is missing, or is otherwise by then.
func TestPullResumes(t *testing.T) {
	const n = 6000
	for _, replace := range []bool{false, true} {
		for _, cut := range []int{1, 2, 20, n / 2, n} {
			f := newFar(t, 0)
			to := pullTo(filepath.Join(t.TempDir(), "vault.db"))
			if replace {
				_, err := Copy(ctx, f.end(), to, Options{})
				must(t, err)
			}
			many(t, f.memory.end(), n)
			total := len(f.records)
			f.cut = cut
			if _, err := Copy(ctx, f.end(), to, Options{}); !errors.Is(err, errLost) {
				t.Fatal(err)
			}
			if _, err := Read(ctx, to); replace != (err == nil) || replace && len(contents(t, to).Records) == total {
				t.Errorf("there is half a vault: %v", err)
			}
			kept := partialPath(to.File)
			switch st, err := os.Lstat(kept); {
			case cut <= 2: // nothing but the account's record had come
				if err == nil {
					t.Error("an empty file is kept")
				}
			case err != nil || st.Mode() != 0o600:
				t.Errorf("%v, %v", st.Mode(), err)
			default:
				if b, err := os.ReadFile(kept); err != nil || bytes.Contains(b, f.records["A"][:60]) {
					t.Errorf("the account's record is kept, %v", err)
				}
				if _, err := Read(ctx, fileEnd(kept)); err == nil {
					t.Error("what is kept is a vault")
				}
				if err := bolt.New(kept).View(ctx, func(store.Reader) error { return nil }); err == nil {
					t.Error("what is kept is a vault's file")
				}
			}
			// Others write.
			f.records["d-new"] = []byte("new")
			f.records["v"+string(bytes.Repeat([]byte("0"), 71))] = []byte("changed")
			f.cut = 0
			var last Phase
			res, err := Copy(ctx, f.end(), to, Options{Progress: func(p Phase, _, _ int) { last = p }})
			must(t, err)
			same(t, f.memory.end(), to)
			missing := total - (cut - 1) + 3 // the account's record is never kept
			if f.sent > missing || res.Resumed != res.Records-f.sent || last != Verifying {
				t.Errorf("cut at %d of %d: %d came, %+v, %s", cut, total, f.sent, res, last)
			}
			if _, err := os.Lstat(kept); err == nil {
				t.Error("it is still there at the end")
			}
			edit(t, to, func(s *vault.Session) {
				if list, err := s.List(ctx, staging); err != nil || len(list) != 2 {
					t.Error(list, err)
				}
			})
		}
	}
}

// Whatever lies where a partial file would, the pull brings what the source has,
// and nothing beyond is touched.
func TestPartialIsNotTrusted(t *testing.T) {
	f := newFar(t, 3000)
	whole := filepath.Join(t.TempDir(), "whole")
	cutPull := func(path string) []byte {
		f.cut = 2500
		if _, err := Copy(ctx, f.end(), pullTo(path), Options{}); !errors.Is(err, errLost) {
			t.Fatal(err)
		}
		f.cut = 0
		b, err := os.ReadFile(partialPath(path))
		must(t, err)
		return b
	}
	b := cutPull(whole)
	write := func(content []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, content, 0o600) }
	}
	victim := filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(victim, b, 0o600))
	flipped := bytes.Clone(b)
	for i := len(b) / 3; i < len(b); i += 991 {
		flipped[i] ^= 1
	}
	for name, c := range map[string]struct {
		put  func(path string) error
		used bool // what is in it is
	}{
		"as it was":       {write(b), true},
		"cut short":       {write(b[:len(b)-7]), true},
		"and something":   {write(append(bytes.Clone(b), 0xff, 0xff, 0xff, 0xff, 1)), true},
		"its records":     {write(append(bytes.Clone(b), b[len(partialMagic)+4+len("https://server\n1"):]...)), true},
		"an older record": {write(appendField(appendField(bytes.Clone(b), []byte("v"+string(bytes.Repeat([]byte("0"), 71)))), []byte("old"))), true},
		"no source's":     {write(appendField(appendField(bytes.Clone(b), []byte("zz")), []byte("x"))), true},
		"an account's":    {write(appendField(appendField(bytes.Clone(b), []byte("A")), []byte("x"))), true},
		"bits flipped":    {write(flipped), false},
		"empty":           {write(nil), false},
		"another server":  {write(bytes.Replace(b, []byte("server"), []byte("sorvor"), 1)), false},
		"another account": {write(bytes.Replace(b, []byte("server\n1"), []byte("server\n2"), 1)), false},
		"for others to read": {func(path string) error {
			return errors.Join(os.WriteFile(path, b, 0o600), os.Chmod(path, 0o640))
		}, false},
		"old": {func(path string) error {
			then := time.Now().Add(-maxPartialAge - time.Hour)
			return errors.Join(os.WriteFile(path, b, 0o600), os.Chtimes(path, then, then))
		}, false},
		"too large": {func(path string) error {
			return errors.Join(os.WriteFile(path, b, 0o600), os.Truncate(path, maxPartial+1))
		}, false},
		"a symbolic link": {func(path string) error { return os.Symlink(victim, path) }, false},
		"a hard link":     {func(path string) error { return os.Link(victim, path) }, false},
		"a named pipe":    {func(path string) error { return unix.Mkfifo(path, 0o600) }, false},
		"a directory":     {func(path string) error { return os.MkdirAll(filepath.Join(path, "full"), 0o700) }, false},
		"a link to a directory": {func(path string) error {
			return os.Symlink(t.TempDir(), path)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Dir(victim)
			if name != "a hard link" {
				dir = t.TempDir()
			}
			path := filepath.Join(dir, "vault.db")
			must(t, c.put(partialPath(path)))
			res, err := Copy(ctx, f.end(), pullTo(path), Options{})
			must(t, err)
			same(t, f.memory.end(), fileEnd(path))
			if name != "bits flipped" && (f.sent < len(f.records)) != c.used || (res.Resumed > 0) != (f.sent < len(f.records)) {
				t.Errorf("%d of %d came, %+v", f.sent, len(f.records), res)
			}
			if _, err := os.Lstat(partialPath(path)); (err == nil) != (name == "a directory") {
				t.Errorf("left: %v", err)
			}
			if v, err := os.ReadFile(victim); err != nil || !bytes.Equal(v, b) {
				t.Errorf("another file was written to: %v", err)
			}
		})
	}

	// Where nothing can be kept, a pull goes without.
	dir := t.TempDir()
	path := filepath.Join(dir, "vault.db")
	must(t, os.MkdirAll(filepath.Join(partialPath(path), "full"), 0o700))
	f.cut = 2500
	if _, err := Copy(ctx, f.end(), pullTo(path), Options{}); !errors.Is(err, errLost) {
		t.Error(err)
	}
	f.cut = 0
}

// Of two pulls to one place at a time, one keeps what has come, and both bring
// all of it.
func TestTwoPulls(t *testing.T) {
	f := newFar(t, 3000)
	path := filepath.Join(t.TempDir(), "vault.db")
	f.cut = 2500
	if _, err := Copy(ctx, f.end(), pullTo(path), Options{}); !errors.Is(err, errLost) {
		t.Fatal(err)
	}
	f.cut = 0
	first, have := openPartial(path, "https://server\n1")
	if len(have) == 0 || first.broken {
		t.Fatal("nothing is there")
	}
	second, none := openPartial(path, "https://server\n1")
	if len(none) != 0 || !second.broken {
		t.Errorf("both have it: %d records", len(none))
	}
	second.add([]store.Record{{Key: []byte("x"), Value: make([]byte, partialBuffer)}})
	second.remove()
	if _, err := os.Lstat(partialPath(path)); err != nil {
		t.Error("the second has removed the first one's")
	}
	_, err := Copy(ctx, f.end(), pullTo(path), Options{})
	must(t, err)
	same(t, f.memory.end(), fileEnd(path))
	first.add([]store.Record{{Key: []byte("x"), Value: []byte("1")}})
	first.keep()
	_, again := openPartial(path, "https://server\n1")
	if len(again) != len(have)+1 {
		t.Errorf("%d records, not %d", len(again), len(have)+1)
	}
}

// FuzzPartial: whatever is in the file, what is read of it are records, in order,
// and what is written behind them is read the next time.
func FuzzPartial(f *testing.F) {
	rec := func(list ...string) (b []byte) {
		for _, s := range list {
			b = appendField(b, []byte(s))
		}
		return b
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		list, n := parsePartial(b)
		if n < 0 || n > len(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if err := (store.Range{Take: store.All}).Check(list); err != nil {
			t.Fatal(err)
		}
		c := &Contents{list}
		if c.whole() {
			t.Error("it is a vault")
		}
		more, _ := parsePartial(append(b[:n:n], rec("new", "value")...))
		if string((&Contents{more}).get([]byte("new"))) != "value" {
			t.Error("what comes next is lost")
		}
	})
}
