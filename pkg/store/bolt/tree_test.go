package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	bbolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/internal/bucket"
)

// records is a vault's worth of records: some pages deep, one with overflow.
func records(n int) (b store.Batch) {
	for i := range n {
		b.Put(fmt.Appendf(nil, "key%04d", i), bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 40))
	}
	b.Put([]byte("long"), bytes.Repeat([]byte("long"), 5000))
	return b
}

// image is the bytes of a vault file, to be tampered with.
type image []byte

func imageOf(t testing.TB, n int) image {
	t.Helper()
	s := fresh(t, records(n))
	// So that there are free pages and both meta pages lead to records.
	for i := range 3 {
		if err := write1(s, fmt.Sprintf("more%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m image) pageSize() int { return int(binary.LittleEndian.Uint32(m[headerSize+8:])) }

func (m image) page(id uint64) image { return m[int(id)*m.pageSize():] }

// metas calls fn with both meta pages and makes their checksums right again.
func (m image) metas(fn func(meta []byte)) {
	second := min(m.pageSize(), len(m)/2) // as far as it can be told
	for _, page := range []image{m, m[second:]} {
		meta := page[headerSize : headerSize+metaSize]
		fn(meta)
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaSize-8])
		binary.LittleEndian.PutUint64(meta[metaSize-8:], sum.Sum64())
	}
}

func (m image) tree(t testing.TB) *tree {
	t.Helper()
	tr, err := readTree(bytes.NewReader(m), int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// root returns the id of the root page of the bucket and of its first leaf.
func (m image) root(t testing.TB) (root, leaf uint64) {
	t.Helper()
	tr := m.tree(t)
	root = binary.LittleEndian.Uint64(tr.root.data)
	for p := tr.root; !p.leaf; {
		_, _, leaf = p.elem(0)
		var err error
		if p, err = tr.page(leaf, 0); err != nil {
			t.Fatal(err)
		}
	}
	return root, leaf
}

// file writes the image where a store finds it.
func (m image) file(t testing.TB) *Store {
	t.Helper()
	s := New(filepath.Join(t.TempDir(), "vault.db"))
	if err := os.WriteFile(s.Path(), m, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func put32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }
func put64(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }

// Each is a way in which bbolt would crash, hang, write other memory into the
// file, or write over records.
func TestHostileFiles(t *testing.T) {
	sound := imageOf(t, 2000)
	root, leaf := sound.root(t)
	elem := func(m image, page uint64, i int) image { return m.page(page)[headerSize*(1+i):] }
	for _, c := range []struct {
		name, want string
		onlyWrites bool // what reading passes by, writing does not
		tamper     func(m image)
	}{
		{"value beyond its page", "an element outside of its page", false, func(m image) { put32(elem(m, leaf, 3)[12:], 1<<19) }},
		{"key beyond its page", "an element outside of its page", false, func(m image) { put32(elem(m, leaf, 3)[4:], 1<<31) }},
		{"key in the page's header", "an element outside of its page", false, func(m image) { put32(elem(m, leaf, 3)[4:], 0) }},
		{"sum of sizes that wraps", "an element with flags", false, func(m image) { put32(elem(m, leaf, 0)[12:], 1<<32-1) }},
		{"long key", "a key of 4294967295 bytes", false, func(m image) { put32(elem(m, leaf, 0)[8:], 1<<32-1) }},
		{"empty key", "a key of 0 bytes", false, func(m image) { put32(elem(m, leaf, 0)[8:], 0) }},
		{"branch key beyond its page", "an element outside of its page", false, func(m image) { put32(elem(m, root, 1), 1<<30) }},
		{"bucket among the records", "an element with flags 0x1", false, func(m image) { put32(elem(m, leaf, 0), 1) }},
		{"more elements than fit", "elements on a page of", false, func(m image) { binary.LittleEndian.PutUint16(m.page(leaf)[10:], 0xffff) }},
		{"empty branch", "a branch page without elements", false, func(m image) { binary.LittleEndian.PutUint16(m.page(root)[10:], 0) }},
		{"empty leaf", "keys out of order", false, func(m image) { binary.LittleEndian.PutUint16(m.page(leaf)[10:], 0) }},
		{"no kind of page", "a page of kind 0x3", false, func(m image) { binary.LittleEndian.PutUint16(m.page(leaf)[8:], 3) }},
		{"keys out of order", "keys out of order", false, func(m image) {
			a, b := elem(m, leaf, 1)[:headerSize], elem(m, leaf, 2)[:headerSize]
			put32(a[4:], binary.LittleEndian.Uint32(b[4:])+headerSize)
		}},
		{"branch that tells a lower key", "keys out of order", false, func(m image) { // bbolt would list the page twice
			e := elem(m, root, 1)
			e[binary.LittleEndian.Uint32(e)+binary.LittleEndian.Uint32(e[4:])-1]--
		}},
		{"branch that is its own child", "keys out of order", false, func(m image) { put64(elem(m, root, 1)[8:], root) }},
		{"branch that is its own only child", "too deep a tree", false, func(m image) {
			binary.LittleEndian.PutUint16(m.page(root)[10:], 1)
			put64(elem(m, root, 0)[8:], root)
		}},
		{"two ways to one leaf", "keys out of order", false, func(m image) { copy(elem(m, root, 1)[8:16], elem(m, root, 0)[8:16]) }},
		{"child beyond the file", "page 1099511627776 of", false, func(m image) { put64(elem(m, root, 0)[8:], 1<<40) }},
		{"child that wraps", "page 4503599627370497 of", false, func(m image) { put64(elem(m, root, 0)[8:], 1<<52+1) }},
		{"child that is a meta page", "page 1 of", false, func(m image) { put64(elem(m, root, 0)[8:], 1) }},
		{"page with another's number", "says that it is page", false, func(m image) { put64(m.page(leaf), 2) }},
		{"overflow beyond the file", "overflow pages", false, func(m image) { put32(m.page(leaf)[12:], 1<<32-1) }},
		{"overflow into other pages", "is in use twice", true, func(m image) { put32(m.page(leaf)[12:], 2) }},
		{"no list of free pages", "page 18446744073709551615 of", true, func(m image) {
			m.metas(func(meta []byte) { put64(meta[32:], 1<<64-1) })
		}},
		{"a leaf as the list of free pages", "is in use twice", true, func(m image) {
			m.metas(func(meta []byte) { put64(meta[32:], leaf) })
		}},
		{"2^40 free pages", "a list of 1099511627776 free pages", true, func(m image) {
			free := m.page(m.tree(t).free)
			binary.LittleEndian.PutUint16(free[10:], 0xffff)
			put64(free[headerSize:], 1<<40)
		}},
		{"free page beyond the file", "free page 1099511627776", true, func(m image) { put64(m.page(m.tree(t).free)[headerSize:], 1<<40) }},
		{"free page in use", "is in use twice", true, func(m image) { put64(m.page(m.tree(t).free)[headerSize:], leaf) }},
		{"free meta page", "free page 1 of", true, func(m image) { put64(m.page(m.tree(t).free)[headerSize:], 1) }},
		{"more pages than the file has", "pages in a file of", false, func(m image) {
			m.metas(func(meta []byte) { put64(meta[40:], 1<<40) })
		}},
		{"pages of 3 bytes", "pages of 3 bytes", false, func(m image) { m.metas(func(meta []byte) { put32(meta[8:], 3) }) }},
		{"pages of 2 GiB", "pages of 2147483648 bytes", false, func(m image) { m.metas(func(meta []byte) { put32(meta[8:], 1<<31) }) }},
		{"pages of two sizes", "pages of two sizes", false, func(m image) {
			n := 0
			m.metas(func(meta []byte) {
				if n++; n == 2 {
					put32(meta[8:], 8192)
				}
			})
		}},
		{"last transaction", "transaction 18446744073709551615", false, func(m image) {
			m.metas(func(meta []byte) { put64(meta[48:], 1<<64-1) })
		}},
		{"root beyond the file", "page 281474976710656 of", false, func(m image) {
			m.metas(func(meta []byte) { put64(meta[16:], 1<<48) })
		}},
		{"a branch as the list of buckets", "", false, func(m image) { m.metas(func(meta []byte) { put64(meta[16:], root) }) }},
		{"both meta pages damaged", "not a bbolt file", false, func(m image) { m[headerSize+20]++; m.page(1)[headerSize+20]++ }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := slices.Clone(sound)
			c.tamper(m)
			s := m.file(t)
			before := time.Now()
			got, err := scan(s)
			if c.onlyWrites {
				if err != nil || len(got) != 2004 {
					t.Errorf("read: %d records, %v", len(got), err)
				}
			} else if !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), c.want) || hint.Of(err) != "restore "+s.Path()+" from a backup" {
				t.Errorf("read: %v (%s)\nwant %s", err, hint.Of(err), c.want)
			}
			if err := write1(s, "key0000x"); !errors.Is(err, store.ErrDamaged) || (c.onlyWrites && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("write: %v\nwant %s", err, c.want)
			}
			if after, err := os.ReadFile(s.Path()); err != nil || !bytes.Equal(after, m) {
				t.Error("the file has changed")
			}
			if took := time.Since(before); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// One damaged meta page is what a crash leaves: the other one counts.
func TestOneMetaPage(t *testing.T) {
	for i := range uint64(2) {
		s := fresh(t, records(100))
		for _, key := range []string{"one", "two"} { // an older state of each kind
			if err := write1(s, key); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(s.Path())
		if err != nil {
			t.Fatal(err)
		}
		image(b).page(i)[headerSize+60] ^= 1
		s = image(b).file(t)
		got, err := scan(s)
		if err != nil || len(got) < 102 || len(got) > 103 {
			t.Errorf("meta page %d damaged: %d records, %v", i, len(got), err)
		}
		if err := write1(s, "three"); err != nil {
			t.Errorf("meta page %d damaged: %v", i, err)
		}
		if again, err := scan(s); err != nil || len(again) != len(got)+1 {
			t.Errorf("meta page %d damaged: %d records after a write, %v", i, len(again), err)
		}
	}
}

// bbolt alone follows an element's offset out of the file into other memory of
// this process and writes what it finds there into the file. Even where the file
// is altered too late for check to see it, that memory is out of reach.
func TestNoMemoryGetsIntoTheFile(t *testing.T) {
	// Of mappings, the kernel puts the later ones next to the earlier ones.
	secret, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(secret) }()
	word := []byte("SECRET KEY ")
	copy(secret, bytes.Repeat(word, 300))

	m := imageOf(t, 60)
	_, leaf := m.root(t)
	aim := func(m image, distance uint32) {
		e := m.page(leaf)[headerSize*(1+2):]
		put32(e[4:], distance)
		put32(e[8:], 5)
		put32(e[12:], 2000)
	}
	// Where the secret lies from a mapping that bbolt has just made.
	s := slices.Clone(m).file(t)
	db, err := bbolt.Open(s.Path(), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := db.Info().Data + uintptr(int(leaf)*m.pageSize()+headerSize*3)
	distance := uintptr(unsafe.Pointer(&secret[0])) - at
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	write := func(s *Store, plain bool) error {
		if plain {
			db, err := bbolt.Open(s.Path(), 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(db.Update(func(tx *bbolt.Tx) error {
				return tx.Bucket(root).Put([]byte("key0001"), []byte("x"))
			}), db.Close())
		}
		f, err := openFile(context.Background(), s.Path(), os.O_RDWR)
		if err != nil {
			return err
		}
		return s.commit(f, len(m), store.Batch{{Key: []byte("key0001"), Value: []byte("x")}})
	}
	found := func(s *Store) int {
		b, err := os.ReadFile(s.Path())
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, word)
	}
	if distance < 1<<31 {
		bait := slices.Clone(m)
		aim(bait, uint32(distance))
		s = bait.file(t)
		err := write(s, true)
		t.Logf("bbolt alone: %d words of the secret in the file, %v", found(s), err)
	}
	for _, distance := range []uint32{uint32(distance), 1 << 16, 1 << 20, 1 << 24, 1 << 28, 1<<31 - 4096, 1 << 31, 1<<32 - 4096} {
		bait := slices.Clone(m)
		aim(bait, distance)
		s := bait.file(t)
		// The file's own bytes may be taken for a record: they are no secret.
		err := write(s, false)
		if inside := int(distance) < len(m); !inside && err == nil || err != nil && !errors.Is(err, store.ErrDamaged) {
			t.Errorf("distance %#x: %v", distance, err)
		}
		if n := found(s); n != 0 {
			t.Errorf("distance %#x: %d words of the secret are in the file", distance, n)
		}
		// The lock is free again.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if f, err := openFile(ctx, s.Path(), os.O_RDWR); err != nil {
			t.Error(err)
		} else {
			_ = f.Close()
		}
		cancel()
	}
}

// Every byte of a file flipped, one at a time: an error, or records that are in
// order; never a panic, never without end.
func TestFlippedBytes(t *testing.T) {
	s := withPageSize(t, 1<<10, append(records(60)[:60], store.Op{Key: []byte("long"), Value: make([]byte, 2500)}))
	m, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	var harmless, found int
	for at := range m {
		mask := byte(1) << rnd.IntN(8)
		m[at] ^= mask
		records, err := walk(m)
		m[at] ^= mask
		if err != nil {
			found++
			if !errors.Is(err, errBroken) && !errors.Is(err, errNotVault) {
				t.Errorf("byte %d: %v", at, err)
			}
		} else if harmless++; records == 0 {
			t.Errorf("byte %d: no records and no error", at)
		}
	}
	if found < 500 {
		t.Errorf("only %d of %d changes were found", found, found+harmless)
	}
	t.Logf("%d changes found, %d in records or unused bytes", found, harmless)
}

// walk reads everything and checks the file.
func walk(m image) (n int, err error) {
	tr, err := readTree(bytes.NewReader(m), int64(len(m)))
	if err != nil {
		return 0, err
	}
	var last []byte
	err = tr.Scan(nil, func(k, v []byte) error {
		if bytes.Compare(last, k) >= 0 || len(v) == 0 {
			panic(fmt.Sprintf("%q = %q after %q", k, v, last))
		}
		last = k
		n++
		return nil
	})
	return n, errors.Join(err, tr.check())
}

func TestShortFiles(t *testing.T) {
	m := imageOf(t, 60)
	whole := m.tree(t).pages * uint64(m.pageSize())
	for size := 0; size < int(whole); size += 509 {
		if _, err := walk(m[:size]); !errors.Is(err, errBroken) {
			t.Errorf("cut to %d of %d bytes: %v", size, whole, err)
		}
	}
	// What the file has beyond its pages is free for the next write.
	for _, tail := range []int{0, 1, 5000} {
		s := append(slices.Clone(m[:whole]), bytes.Repeat([]byte{0xff}, tail)...).file(t)
		if err := write1(s, "k"); err != nil {
			t.Errorf("%d bytes behind the last page: %v", tail, err)
		}
		if got, err := scan(s); len(got) != 65 || err != nil {
			t.Errorf("%d bytes behind the last page: %d records, %v", tail, len(got), err)
		}
	}
	// Readers may meet a file that shrinks while they read it.
	if _, err := readTree(bytes.NewReader(m[:9000]), int64(len(m))); !errors.Is(err, errBroken) {
		t.Errorf("a file that shrinks: %v", err)
	}
}

// A machine that loses power in a write has written any part of what was not
// flushed yet: the records are the old ones, until the last flush, of the meta
// page, the new ones at most.
func TestPowerCut(t *testing.T) {
	s := fresh(t, records(400))
	if err := write1(s, "key0100"); err != nil {
		t.Fatal(err)
	}
	load := func() (image, map[string]string) {
		t.Helper()
		b, err := os.ReadFile(s.Path())
		if err != nil {
			t.Fatal(err)
		}
		got, err := scan(s)
		if err != nil {
			t.Fatal(err)
		}
		return b, got
	}
	old, before := load()
	err := s.Update(t.Context(), func(store.Reader) (b store.Batch, err error) {
		for i := range 300 {
			b.Put(fmt.Appendf(nil, "key%04d", 2*i), bytes.Repeat([]byte{9}, 700))
		}
		return b, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	next, after := load()
	const sector = 512
	at := func(m image, sector int) []byte {
		if sector*512 >= len(m) {
			return make([]byte, 512)
		}
		return m[sector*512 : (sector+1)*512]
	}
	var data []int // sectors that the write has changed
	meta := -1
	for i := range len(next) / sector {
		switch {
		case bytes.Equal(at(old, i), at(next, i)):
		case i*sector%old.pageSize() == 0 && i*sector/old.pageSize() < 2:
			meta = i
		default:
			data = append(data, i)
		}
	}
	if meta < 0 || len(data) < 20 {
		t.Fatalf("changed: meta page at %d, %d other sectors", meta, len(data))
	}
	rnd := rand.New(rand.NewPCG(11, 12))
	for round := range 300 {
		size := len(old) // the file grows before anything else
		if rnd.IntN(4) > 0 {
			size = len(next)
		}
		m := make(image, size)
		copy(m, old)
		share := rnd.IntN(101)
		for _, i := range data {
			if rnd.IntN(100) < share && i*sector < size {
				copy(at(m, i), at(next, i))
			}
		}
		if got, err := scan(m.file(t)); err != nil || !maps.Equal(got, before) {
			t.Fatalf("round %d: %d records before the meta page: %v", round, len(got), err)
		}
	}
	for n := range headerSize + metaSize + 1 {
		m := slices.Clone(next)
		copy(at(m, meta)[n:], at(old, meta)[n:])
		got, err := scan(m.file(t))
		if err != nil || !maps.Equal(got, before) && !maps.Equal(got, after) {
			t.Fatalf("%d bytes of the meta page: %d records: %v", n, len(got), err)
		}
		if last := n == headerSize+metaSize; last != maps.Equal(got, after) && last {
			t.Fatal("the whole meta page, and the old records")
		}
	}
}

// Pages full of zeros, of noise, or of another page: an error, or the records
// that were there; a write keeps them.
func TestLostPages(t *testing.T) {
	m := imageOf(t, 60)
	all, err := scan(slices.Clone(m).file(t))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	pages := len(m) / m.pageSize()
	for id := range uint64(pages) {
		for name, fill := range map[string]func(p image){
			"zeros": func(p image) { clear(p) },
			"noise": func(p image) {
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
			},
			"copy": func(p image) { copy(p, m.page(rnd.Uint64N(uint64(pages)))) },
		} {
			b := slices.Clone(m)
			fill(b.page(id)[:m.pageSize()])
			s := b.file(t)
			got, err := scan(s)
			if err == nil && len(got) < 60 {
				t.Errorf("%s on page %d: %d records of %d and no error", name, id, len(got), len(all))
			}
			if werr := write1(s, "k"); werr != nil {
				if !errors.Is(werr, store.ErrDamaged) {
					t.Errorf("%s on page %d: %v", name, id, werr)
				}
				if after, _ := os.ReadFile(s.Path()); !bytes.Equal(after, b) {
					t.Errorf("%s on page %d: a refused write changed the file", name, id)
				}
				continue
			}
			got["k"] = "new"
			if again, err := scan(s); err != nil || !maps.Equal(again, got) {
				t.Errorf("%s on page %d: a write lost records: %v", name, id, err)
			}
		}
	}
}

// Structures altered at random, with right checksums: whatever check lets pass,
// bbolt can write to and loses nothing.
func TestTampered(t *testing.T) {
	s := withPageSize(t, 1<<10, append(records(40)[:40], store.Op{Key: []byte("long"), Value: make([]byte, 2500)}))
	if err := errors.Join(write1(s, "key0007"), write1(s, "other")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	base := image(b)[:image(b).tree(t).pages<<10]
	rounds, seed := 400, uint64(9)
	if n, err := strconv.Atoi(os.Getenv("OV_TAMPER")); err == nil {
		rounds, seed = n, rand.Uint64()
	}
	rnd := rand.New(rand.NewPCG(seed, 10))
	written, refused := 0, 0
	for range rounds {
		m := slices.Clone(base)
		for range 1 + rnd.IntN(4) {
			at := rnd.IntN(len(m)>>10)<<10 + rnd.IntN(80)
			m[at] = []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 127, 128, 255, m[at] + 1, m[at] - 1}[rnd.IntN(16)]
		}
		m.metas(func(meta []byte) { put32(meta[8:], 1<<10) })
		if err := os.WriteFile(s.Path(), m, 0o600); err != nil {
			t.Fatal(err)
		}
		got, readErr := scan(s)
		err := s.Update(t.Context(), func(store.Reader) (store.Batch, error) {
			return store.Batch{{Key: []byte("k"), Value: []byte("new")}, {Key: []byte("key0001")}, {Key: []byte("z"), Value: make([]byte, 3000)}}, nil
		})
		if err != nil {
			if refused++; !errors.Is(err, store.ErrDamaged) && readErr == nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			continue
		}
		if written++; readErr != nil {
			t.Fatalf("seed %d: written, but before: %v", seed, readErr)
		}
		got["k"], got["z"] = "new", string(make([]byte, 3000))
		delete(got, "key0001")
		if again, err := scan(s); err != nil || !maps.Equal(again, got) {
			t.Fatalf("seed %d: a write lost records: %v", seed, err)
		}
	}
	t.Logf("%d written, %d refused", written, refused)
}

// What bbolt makes of many writes is what the tree reads, and check has nothing
// against it.
func TestTreeAgreesWithBbolt(t *testing.T) {
	s := fresh(t, nil)
	rnd := rand.New(rand.NewPCG(5, 6))
	for round := range 60 {
		err := s.Update(t.Context(), func(r store.Reader) (b store.Batch, err error) {
			if round%9 == 8 { // nearly all of it
				return b, r.Scan([]byte{'a' + byte(rnd.IntN(3))}, func(k, _ []byte) error { b.Delete(k); return nil })
			}
			for range 1 + rnd.IntN(400) {
				k := fmt.Appendf(nil, "%c%d", 'a'+rnd.IntN(4), rnd.IntN(3000))
				if rnd.IntN(3) == 0 {
					b.Delete(k)
					continue
				}
				size := 1 + rnd.IntN(300)
				if rnd.IntN(100) == 0 {
					size = rnd.IntN(100_000) + 1
				}
				b.Put(k, make([]byte, size))
			}
			return b, nil
		})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		m, err := os.ReadFile(s.Path())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := walk(m); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		got, err := scan(s)
		if err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(s.Path(), 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(func(tx *bbolt.Tx) error {
			n := 0
			return errors.Join(tx.Bucket(root).ForEach(func(k, v []byte) error {
				if n++; got[string(k)] != string(v) {
					return fmt.Errorf("%q differs", k)
				}
				return nil
			}), func() error {
				if n != len(got) {
					return fmt.Errorf("%d records, the tree has %d", n, len(got))
				}
				return nil
			}())
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// withPageSize makes a vault file as another machine would.
func withPageSize(t testing.TB, size int, batch store.Batch) *Store {
	t.Helper()
	s := New(filepath.Join(t.TempDir(), "vault.db"))
	db, err := bbolt.Open(s.Path(), 0o600, &bbolt.Options{PageSize: size})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket(root)
		if err != nil {
			return err
		}
		return bucket.Write(b, batch)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return s
}

// Other page sizes come from other machines.
func TestPageSizes(t *testing.T) {
	for _, size := range []int{1 << 10, 4 << 10, 16 << 10, 64 << 10} {
		s := withPageSize(t, size, records(300))
		if err := write1(s, "k"); err != nil {
			t.Errorf("pages of %d bytes: %v", size, err)
		}
		if got, err := scan(s); len(got) != 302 || err != nil {
			t.Errorf("pages of %d bytes: %d records, %v", size, len(got), err)
		}
		b, err := os.ReadFile(s.Path())
		if err != nil {
			t.Fatal(err)
		}
		b[headerSize] ^= 1 // the first meta page no longer tells the size
		if got, err := scan(image(b).file(t)); len(got) < 301 || err != nil {
			t.Errorf("pages of %d bytes, one meta page: %d records, %v", size, len(got), err)
		}
	}
}

// FuzzVaultFile reads and writes a file that somebody altered: one of a few
// sound ones, or an empty one, with bytes overwritten. patches is a list of an
// offset, two bytes, and a value. With fix, the meta pages get right checksums,
// as somebody's would who does it on purpose.
func FuzzVaultFile(f *testing.F) {
	var bases []image
	for _, batch := range []store.Batch{nil, records(1)[:1], records(5)[:5],
		append(records(30)[:30], store.Op{Key: []byte("long"), Value: make([]byte, 2500)})} {
		s := withPageSize(f, 1<<10, batch)
		if len(batch) > 5 { // free pages, and an older state
			if err := errors.Join(write1(s, "key0007"), write1(s, "other")); err != nil {
				f.Fatal(err)
			}
		}
		m, err := os.ReadFile(s.Path())
		if err != nil {
			f.Fatal(err)
		}
		bases = append(bases, m[:image(m).tree(f).pages<<10])
	}
	bases = append(bases, make(image, 6<<10))
	s := New(filepath.Join(f.TempDir(), "vault.db"))
	f.Fuzz(func(t *testing.T, base byte, patches []byte, size uint16, fix bool) {
		m := slices.Clone(bases[int(base)%len(bases)])
		if size > 0 {
			m = m[:int(size)%len(m)]
		}
		for ; len(patches) >= 3 && len(m) > 0; patches = patches[3:] {
			m[(int(patches[0])<<8|int(patches[1]))%len(m)] = patches[2]
		}
		if fix && len(m) >= 2<<10 {
			m.metas(func(meta []byte) { put32(meta[8:], 1<<10) })
		}
		if err := os.WriteFile(s.Path(), m, 0o600); err != nil {
			t.Fatal(err)
		}
		got, readErr := scan(s)
		err := s.Update(context.Background(), func(store.Reader) (store.Batch, error) {
			return store.Batch{{Key: []byte("k"), Value: []byte("new")}, {Key: []byte("key0001")}, {Key: []byte("z"), Value: make([]byte, 3000)}}, nil
		})
		if err != nil {
			if after, _ := os.ReadFile(s.Path()); !bytes.Equal(after, m) {
				t.Errorf("a refused write changed the file: %v", err)
			}
			return
		}
		if readErr != nil {
			t.Fatalf("what cannot be read was written: %v", readErr)
		}
		got["k"], got["z"] = "new", string(make([]byte, 3000))
		delete(got, "key0001")
		if again, err := scan(s); err != nil || !maps.Equal(again, got) {
			t.Errorf("a write lost records: %v", err)
		}
	})
}
