package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"sort"

	"github.com/opaquevault/ov/pkg/store"
)

// A tree is a snapshot of a bbolt file that is read without trust in any byte
// of it.
//
// bbolt maps the file and follows the offsets in it with unsafe pointers. A file
// that somebody altered can so make it take other memory of this process, such
// as a key, for a record, and write that into the file. Here pages are copied
// out of the file and every offset is checked, which is all that reading takes.
// bbolt does the writing, on a file that check has found whole.
//
// The layout is that of bbolt's internal/common: page.go, meta.go, bucket.go.
type tree struct {
	file     io.ReaderAt
	size     uint64 // of the file, in bytes
	pageSize uint64
	pages    uint64 // page ids are below it
	top      uint64 // page that lists the buckets
	free     uint64 // page that lists the free pages
	root     *page  // of the bucket of records
	branches map[uint64]*page
	leaves   [2]leaf // read last: one among metadata and one among values
	oldest   int     // of leaves
}

type leaf struct {
	id uint64
	*page
}

const (
	headerSize  = 16 // of a page, a bucket and an element of a page
	metaSize    = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	elemBucket   = 0x01

	minPageSize = 1 << 10
	maxPageSize = 64 << 10
	// maxNode bounds a page with its overflow, in bytes: bbolt splits one that
	// holds more than four records.
	maxNode = 4*(headerSize+store.MaxKey+store.MaxValue) + maxPageSize
	// maxDepth is far above what 2^48 bytes of records need.
	maxDepth = 32
)

// errBroken is wrapped by what is found wrong with a file, as opposed to what
// goes wrong in reading it.
var errBroken = errors.New("broken")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w%s", errBroken, fmt.Sprintf(": "+format, args...))
}

// page is a copy of one page with its overflow, or of an inline bucket. Its
// elements lie within it and are in order.
type page struct {
	leaf  bool
	count int
	data  []byte
}

// elem returns an element's key, its value on a leaf, the page below on a
// branch.
func (p *page) elem(i int) (key, value []byte, below uint64) {
	at := headerSize * (1 + i)
	e := p.data[at : at+headerSize]
	if !p.leaf {
		from := at + int(binary.LittleEndian.Uint32(e))
		return p.data[from : from+int(binary.LittleEndian.Uint32(e[4:]))], nil, binary.LittleEndian.Uint64(e[8:])
	}
	from := at + int(binary.LittleEndian.Uint32(e[4:]))
	mid := from + int(binary.LittleEndian.Uint32(e[8:]))
	end := mid + int(binary.LittleEndian.Uint32(e[12:]))
	return p.data[from:mid:mid], p.data[mid:end:end], 0
}

func (p *page) key(i int) []byte {
	key, _, _ := p.elem(i)
	return key
}

// search returns the first element whose key is not below key.
func (p *page) search(key []byte) int {
	return sort.Search(p.count, func(i int) bool { return bytes.Compare(p.key(i), key) >= 0 })
}

// parse checks everything that elem relies on. flags is what every element of
// a leaf must have.
func parse(data []byte, flags uint32) (*page, error) {
	if len(data) < headerSize {
		return nil, broken("a page of %d bytes", len(data))
	}
	p := &page{count: int(binary.LittleEndian.Uint16(data[10:])), data: data}
	switch kind := binary.LittleEndian.Uint16(data[8:]); kind {
	case flagLeaf:
		p.leaf = true
	case flagBranch:
		if p.count == 0 {
			return nil, broken("a branch page without elements")
		}
	default:
		return nil, broken("a page of kind %#x", kind)
	}
	first := headerSize * (1 + p.count)
	if first > len(data) {
		return nil, broken("%d elements on a page of %d bytes", p.count, len(data))
	}
	var last []byte
	for i := range p.count {
		at := headerSize * (1 + i)
		f := data[at : at+headerSize]
		var vsize, eflags uint32
		pos, ksize := binary.LittleEndian.Uint32(f), binary.LittleEndian.Uint32(f[4:])
		if p.leaf {
			eflags, pos = pos, ksize
			ksize, vsize = binary.LittleEndian.Uint32(f[8:]), binary.LittleEndian.Uint32(f[12:])
			if eflags != flags || vsize == 0 || vsize > store.MaxValue {
				return nil, broken("an element with flags %#x and %d bytes", eflags, vsize)
			}
		}
		if ksize == 0 || ksize > store.MaxKey {
			return nil, broken("a key of %d bytes", ksize)
		}
		from := uint64(at) + uint64(pos)
		if from < uint64(first) || from+uint64(ksize)+uint64(vsize) > uint64(len(data)) {
			return nil, broken("an element outside of its page")
		}
		key := data[from : from+uint64(ksize)]
		if bytes.Compare(last, key) >= 0 {
			return nil, broken("keys out of order")
		}
		last = key
	}
	return p, nil
}

// readTree reads what leads to the bucket of records. It returns errNotVault
// for a sound bbolt file that lacks the bucket.
func readTree(file io.ReaderAt, size int64) (*tree, error) {
	t := &tree{file: file, size: uint64(size), branches: map[uint64]*page{}}
	meta, err := t.meta()
	if err != nil {
		return nil, err
	}
	t.top = binary.LittleEndian.Uint64(meta[16:])
	t.free = binary.LittleEndian.Uint64(meta[32:])
	t.pages = binary.LittleEndian.Uint64(meta[40:])
	if t.pages > t.size/t.pageSize {
		return nil, broken("%d pages in a file of %d bytes", t.pages, t.size)
	}
	if tx := binary.LittleEndian.Uint64(meta[48:]); tx > 1<<62 {
		return nil, broken("transaction %d", tx) // the next might be taken for an older one
	}
	top, err := t.page(t.top, elemBucket)
	if err != nil {
		return nil, err
	}
	if !top.leaf {
		return nil, broken("too many buckets") // ov makes one
	}
	for i := range top.count {
		if name, value, _ := top.elem(i); bytes.Equal(name, root) {
			t.root, err = t.bucket(value)
			return t, err
		}
	}
	return nil, errNotVault
}

var errNotVault = errors.New("no vault in it")

// meta finds the page size and returns the newer of the two meta pages that are
// sound. A write that was cut short leaves the older one.
func (t *tree) meta() ([]byte, error) {
	first, err := t.metaAt(0)
	if err != nil {
		return nil, err
	}
	var second []byte
	if first != nil {
		t.pageSize = uint64(binary.LittleEndian.Uint32(first[8:]))
		if t.pageSize < minPageSize || t.pageSize > maxPageSize || t.pageSize&(t.pageSize-1) != 0 {
			return nil, broken("pages of %d bytes", t.pageSize)
		}
		if second, err = t.metaAt(t.pageSize); err != nil {
			return nil, err
		}
	}
	// Without the first page the place of the second tells the size of a page.
	for at := uint64(minPageSize); first == nil && second == nil && at <= maxPageSize; at *= 2 {
		if second, err = t.metaAt(at); err != nil {
			return nil, err
		}
		t.pageSize = at
	}
	if second != nil && uint64(binary.LittleEndian.Uint32(second[8:])) != t.pageSize {
		return nil, broken("pages of two sizes")
	}
	switch {
	case first == nil && second == nil:
		return nil, broken("not a bbolt file")
	case first == nil:
		return second, nil
	case second == nil:
		return first, nil
	}
	if binary.LittleEndian.Uint64(second[48:]) > binary.LittleEndian.Uint64(first[48:]) {
		return second, nil
	}
	return first, nil
}

// metaAt reads the meta page at an offset. It returns nil unless it is sound.
func (t *tree) metaAt(at uint64) ([]byte, error) {
	b := make([]byte, headerSize+metaSize)
	if at+uint64(len(b)) > t.size {
		return nil, nil
	}
	if err := t.readAt(b, at); err != nil {
		return nil, err
	}
	m := b[headerSize:]
	sum := fnv.New64a()
	_, _ = sum.Write(m[:metaSize-8])
	if binary.LittleEndian.Uint32(m) != metaMagic || binary.LittleEndian.Uint32(m[4:]) != metaVersion ||
		binary.LittleEndian.Uint64(m[metaSize-8:]) != sum.Sum64() {
		return nil, nil
	}
	return m, nil
}

func (t *tree) readAt(b []byte, at uint64) error {
	_, err := t.file.ReadAt(b, int64(at))
	if errors.Is(err, io.EOF) {
		return broken("the file is cut short")
	}
	return err
}

// raw reads a page of any kind with its overflow, into b if it is large enough.
func (t *tree) raw(id, limit uint64, b []byte) ([]byte, error) {
	if id < 2 || id >= t.pages {
		return nil, broken("page %d of %d", id, t.pages)
	}
	if uint64(cap(b)) < t.pageSize {
		b = make([]byte, t.pageSize)
	}
	b = b[:t.pageSize]
	if err := t.readAt(b, id*t.pageSize); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(b); got != id {
		return nil, broken("page %d says that it is page %d", id, got)
	}
	overflow := uint64(binary.LittleEndian.Uint32(b[12:]))
	if overflow == 0 {
		return b, nil
	}
	size := (1 + overflow) * t.pageSize
	if id+overflow >= t.pages || size > limit {
		return nil, broken("page %d has %d overflow pages", id, overflow)
	}
	b = append(make([]byte, 0, size), b...)[:size]
	return b, t.readAt(b[t.pageSize:], (id+1)*t.pageSize)
}

// page reads a branch or leaf page. Branch pages are kept: there are few, and
// every search passes them. So are the last two leaves, for whoever asks in the
// order of the keys.
func (t *tree) page(id uint64, flags uint32) (*page, error) {
	if flags != 0 { // only for the list of buckets
		return t.pageInto(id, flags, nil)
	}
	for _, l := range t.leaves {
		if l.page != nil && l.id == id {
			return l.page, nil
		}
	}
	p, err := t.pageInto(id, flags, nil)
	if err == nil && p.leaf {
		t.leaves[t.oldest] = leaf{id, p}
		t.oldest = 1 - t.oldest
	}
	return p, err
}

// pageInto is page, with room to read a leaf page into.
func (t *tree) pageInto(id uint64, flags uint32, room []byte) (*page, error) {
	if p := t.branches[id]; p != nil {
		return p, nil
	}
	b, err := t.raw(id, maxNode, room)
	if err != nil {
		return nil, err
	}
	p, err := parse(b, flags)
	if err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if !p.leaf {
		p.data = bytes.Clone(p.data)
		t.branches[id] = p
	}
	return p, nil
}

// bucket returns the root page of a bucket, which is inline when it is small.
func (t *tree) bucket(value []byte) (*page, error) {
	if len(value) < headerSize {
		return nil, broken("a bucket of %d bytes", len(value))
	}
	if id := binary.LittleEndian.Uint64(value); id != 0 {
		return t.page(id, 0)
	}
	p, err := parse(value[headerSize:], 0)
	if err != nil {
		return nil, fmt.Errorf("inline bucket: %w", err)
	}
	if !p.leaf {
		return nil, broken("an inline bucket with a branch page")
	}
	return p, nil
}

// span is the range of the keys on a page: from low, up to but without high.
// The root page has neither.
type span struct{ low, high []byte }

// holds checks that all of the page's keys are in the span. bbolt relies on the
// first one being low.
func (s span) holds(p *page) error {
	if s.low == nil {
		return nil
	}
	if p.count == 0 || !bytes.Equal(p.key(0), s.low) || (s.high != nil && bytes.Compare(p.key(p.count-1), s.high) >= 0) {
		return broken("keys out of order")
	}
	return nil
}

// below returns the span of a branch page's element.
func (s span) below(p *page, i int) span {
	b := span{p.key(i), s.high}
	if i+1 < p.count {
		b.high = p.key(i + 1)
	}
	return b
}

// cursor is a place in the tree: the way down to an element of a leaf, or to
// just behind the last one.
type cursor struct {
	t    *tree
	path []step
}

type step struct {
	*page
	span
	at int
}

// down extends the path from an element of the last page to a leaf, always to
// the place where key is or would be.
func (c *cursor) down(p *page, s span, key []byte) error {
	for {
		if err := s.holds(p); err != nil {
			return err
		}
		if len(c.path) == maxDepth {
			return broken("too deep a tree")
		}
		at := p.search(key)
		if p.leaf {
			c.path = append(c.path, step{p, s, at})
			return nil
		}
		if at == p.count || (at > 0 && !bytes.Equal(p.key(at), key)) {
			at--
		}
		c.path = append(c.path, step{p, s, at})
		_, _, id := p.elem(at)
		s = s.below(p, at)
		var err error
		if p, err = c.t.page(id, 0); err != nil {
			return err
		}
	}
}

// seek returns a cursor at the first record at or after key.
func (t *tree) seek(key []byte) (*cursor, error) {
	c := &cursor{t: t}
	return c, c.down(t.root, span{}, key)
}

// record returns the record at the cursor and moves on, or nils at the end.
func (c *cursor) record() (key, value []byte, err error) {
	for len(c.path) > 0 {
		top := &c.path[len(c.path)-1]
		if top.leaf && top.at < top.count {
			key, value, _ = top.elem(top.at)
			top.at++
			return key, value, nil
		}
		if top.at++; top.leaf || top.at >= top.count {
			c.path = c.path[:len(c.path)-1]
			continue
		}
		_, _, id := top.elem(top.at)
		p, err := c.t.page(id, 0)
		if err != nil {
			return nil, nil, err
		}
		if err := c.down(p, top.below(top.page, top.at), nil); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

// Get, Seek and Scan implement store.Reader.

func (t *tree) Get(key []byte) ([]byte, error) {
	k, v, err := t.Seek(key)
	if err != nil || !bytes.Equal(k, key) {
		return nil, err
	}
	return v, nil
}

func (t *tree) Seek(key []byte) (k, v []byte, err error) {
	c, err := t.seek(key)
	if err != nil {
		return nil, nil, err
	}
	return c.record()
}

func (t *tree) Scan(prefix []byte, fn func(k, v []byte) error) error {
	c, err := t.seek(prefix)
	if err != nil {
		return err
	}
	for {
		k, v, err := c.record()
		if err != nil || k == nil || !bytes.HasPrefix(k, prefix) {
			return err
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
}

// check walks the whole file: every page is sound and in use once, in a bucket,
// as the list of free pages or on it. What bbolt then does with the file stays
// inside of it.
func (t *tree) check() error {
	leaf := make([]byte, t.pageSize)        // one is done with before the next is read
	used := make([]uint64, (t.pages+63)/64) // one bit for each page
	use := func(id, count uint64) error {
		for ; count > 0; id, count = id+1, count-1 {
			if used[id/64]&(1<<(id%64)) != 0 {
				return broken("page %d is in use twice", id)
			}
			used[id/64] |= 1 << (id % 64)
		}
		return nil
	}
	var walk func(id uint64, s span, depth int) error
	visit := func(p *page, s span, depth int) error {
		if err := s.holds(p); err != nil {
			return err
		}
		if p.leaf {
			return nil
		}
		for i := range p.count {
			_, _, id := p.elem(i)
			if err := walk(id, s.below(p, i), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	pagesOf := func(b []byte) uint64 { return uint64(len(b)) / t.pageSize }
	walk = func(id uint64, s span, depth int) error {
		if depth == maxDepth {
			return broken("too deep a tree")
		}
		p, err := t.pageInto(id, 0, leaf)
		if err != nil {
			return err
		}
		if err := use(id, pagesOf(p.data)); err != nil {
			return err
		}
		return visit(p, s, depth)
	}

	top, err := t.page(t.top, elemBucket)
	if err != nil {
		return err
	}
	if err := use(t.top, pagesOf(top.data)); err != nil {
		return err
	}
	for i := range top.count {
		_, value, _ := top.elem(i)
		root, err := t.bucket(value)
		if err != nil {
			return err
		}
		if id := binary.LittleEndian.Uint64(value); id != 0 {
			err = walk(id, span{}, 0)
		} else {
			err = visit(root, span{}, 0)
		}
		if err != nil {
			return err
		}
	}
	free, err := t.raw(t.free, headerSize+8*(t.pages+1)+2*t.pageSize, nil)
	if err != nil {
		return err
	}
	if err := use(t.free, pagesOf(free)); err != nil {
		return err
	}
	if kind := binary.LittleEndian.Uint16(free[8:]); kind != flagFreelist {
		return broken("a list of free pages of kind %#x", kind)
	}
	count, list := uint64(binary.LittleEndian.Uint16(free[10:])), free[headerSize:]
	if count == 0xFFFF { // then the first entry is the count
		count, list = binary.LittleEndian.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return broken("a list of %d free pages in %d bytes", count, len(list))
	}
	for ; count > 0; count, list = count-1, list[8:] {
		id := binary.LittleEndian.Uint64(list)
		if id < 2 || id >= t.pages {
			return broken("free page %d of %d", id, t.pages)
		}
		if err := use(id, 1); err != nil {
			return err
		}
	}
	return nil
}
