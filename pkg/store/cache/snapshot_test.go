package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

// oneFile makes a cache of one env and returns its file.
func oneFile(t testing.TB, f *far, dir string) (path string, b []byte) {
	t.Helper()
	newClient(t, f, dir).use(fixture(t).account, prod)
	for name := range files(t, dir) {
		path = filepath.Join(dir, name)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b
}

// A file that was damaged, in any byte or by losing its end, is dropped, which
// is said, and is no answer.
func TestDamaged(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	path, good := oneFile(t, f, dir)
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		if _, err := decode(b); !errors.Is(err, errDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := decode(good[:i]); !errors.Is(err, errDamaged) {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
	if _, err := decode(append(bytes.Clone(good), 0)); !errors.Is(err, errDamaged) {
		t.Fatal(err)
	}
	f.away.Store(true)
	for _, i := range []int{3, confirmedAt + 2, digestAt, headsAt + 1, len(good) - 3} {
		b := bytes.Clone(good)
		b[i] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := newClient(t, f, dir)
		_, err := c.open(fixture(t).account)
		says(t, err, store.ErrUnavailable)
		if !strings.Contains(c.told(), "dropped a file of the cache: "+path) || len(files(t, dir)) != 0 {
			t.Errorf("byte %d: told %q, left %v", i, c.told(), files(t, dir))
		}
	}
}

// Whoever can write the file can mend its digests, and gets no further than a
// server that lies: the records are checked by who reads them.
func TestForged(t *testing.T) {
	f, dir := newFar(t), t.TempDir()
	path, good := oneFile(t, f, dir)
	f.away.Store(true)
	refused := 0
	for i := seenAt; i < len(good); i += 7 {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		h := sha256.Sum256(b[headsAt:])
		copy(b[digestAt:], h[:])
		copy(b[confirmedAt:], stamp(time.Now().Add(-time.Second), h))
		if s, err := decode(b); err == nil { // heads are mended too
			hd := headOf(s.seen)
			copy(b[headsAt:], append(append(hd.account[:], hd.appKey[:]...), hd.app[:]...))
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := newClient(t, f, dir).open(fixture(t).account)
		if err == nil {
			var got map[string]string
			if got, err = reveal(s, prod); err == nil {
				// The wrong key of a range that is not read, such as an old version's.
				right(t, s, prod)
				_ = got
				continue
			}
		}
		refused++
	}
	if refused < (len(good)-seenAt)/7*9/10 {
		t.Errorf("%d of %d forgeries were refused", refused, (len(good)-seenAt)/7)
	}
}

func FuzzDecode(f *testing.F) {
	_, good := oneFile(f, newFar(f), f.TempDir())
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		// With digests that fit, so that what is behind them is reached.
		if len(b) >= seenAt {
			b = bytes.Clone(b)
			copy(b, magic)
			h := sha256.Sum256(b[headsAt:])
			copy(b[digestAt:], h[:])
			copy(b[confirmedAt:], stamp(time.Unix(0, 0), h))
		}
		s, err := decode(b)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatal(err)
			}
			return
		}
		again := encode(s.seen, s.confirmed)
		if !bytes.Equal(again, b) {
			t.Fatal("encoded again, it is another")
		}
		r, err := s.reader()
		if err != nil {
			return // as when a range is there twice, with other records
		}
		for _, one := range s.seen {
			if _, err := read(r, one.Range); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkSteady(b *testing.B) {
	f, dir := newFar(b), b.TempDir()
	newClient(b, f, dir).use(fixture(b).env, prod)
	for name, st := range map[string]store.Store{"without": nil, "with": f} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				o := func(o *Options) {}
				if st == nil {
					o = func(o *Options) { o.MaxStale, o.Dir = 0, filepath.Join(dir, "none") }
				}
				c := newClient(b, f, dir, o)
				c.use(fixture(b).env, prod)
				c.Close()
			}
		})
	}
}
