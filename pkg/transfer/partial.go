package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
)

// A partial is a file beside a vault's, which keeps what has come of a vault that
// is read from afar, until all of it has. It is no vault: its account's record is
// left out, and nothing opens it. Nor is it trusted: what is in it counts only
// where the source says that it is still so. So it is not synced, and whatever
// is wrong with it, the vault is read without it.
//
//	file   = "ov partial 1\n" ‖ field(source) ‖ record ‖ record ‖ …
//	record = field(key) ‖ field(value)
//
// with field as in docs/FORMAT.md. Of records with the same key, the last counts.
type partial struct {
	path   string
	head   []byte // how the file begins
	f      *os.File
	size   int64 // of the file
	buf    []byte
	broken bool // it cannot be written
}

const (
	partialMagic = "ov partial 1\n"
	// maxPartial bounds the file, in bytes: as much as a vault may have.
	maxPartial = 1 << 30
	// maxPartialAge is for how long it is of use.
	maxPartialAge = 7 * 24 * time.Hour
	// partialBuffer is how much is written at a time, in bytes. A vault that is
	// smaller leaves no file unless it is cut.
	partialBuffer = 256 << 10
)

// partialPath is where what has come of the vault at a path is kept.
func partialPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".pull")
}

// openPartial returns what is kept beside the vault at path, of what source
// names, in the order of keys. What is of something else is removed.
func openPartial(path, source string) (*partial, []store.Record) {
	p := &partial{path: partialPath(path), head: appendField([]byte(partialMagic), []byte(source))}
	f, err := os.OpenFile(p.path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		p.broken = os.Remove(p.path) != nil // a symbolic link, or not for us to read
		return p, nil
	}
	if p.broken = !p.lock(f); p.broken { // by another pull to this place
		_ = f.Close()
		return p, nil
	}
	p.f = f
	if list, ok := p.load(); ok {
		return p, list
	}
	p.broken = os.Remove(p.path) != nil
	_ = f.Close()
	p.f, p.size = nil, 0
	return p, nil
}

// lock reports whether the file is this process's alone, and still the one in its
// place.
func (p *partial) lock(f *os.File) bool {
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	here, err1 := f.Stat()
	there, err2 := os.Lstat(p.path)
	return err1 == nil && err2 == nil && os.SameFile(here, there)
}

// load reads the file, if it is safe, recent and of the same source.
func (p *partial) load() ([]store.Record, bool) {
	info, err := safefile.Fstat(int(p.f.Fd()))
	if err != nil || info.Type != unix.S_IFREG || info.UID != os.Geteuid() || info.Perm&0o077 != 0 || info.Links != 1 ||
		info.Size > maxPartial || time.Since(info.MTime) > maxPartialAge {
		return nil, false
	}
	all, err := io.ReadAll(io.LimitReader(p.f, maxPartial))
	if err != nil || !bytes.HasPrefix(all, p.head) {
		return nil, false
	}
	list, n := parsePartial(all[len(p.head):])
	p.size = int64(len(p.head) + n)
	if p.f.Truncate(p.size) != nil { // what a kill has left of a record
		return nil, false
	}
	if _, err := p.f.Seek(p.size, io.SeekStart); err != nil {
		return nil, false
	}
	return list, true
}

// parsePartial returns the records of a file behind its head, in the order of
// their keys, and how many bytes they take: up to what is no record.
func parsePartial(b []byte) (list []store.Record, n int) {
	for rest := b; ; n = len(b) - len(rest) {
		key, after, ok := field(rest, store.MaxKey)
		if !ok {
			break
		}
		value, after, ok := field(after, store.MaxValue)
		if !ok {
			break
		}
		list, rest = append(list, store.Record{Key: key, Value: value}), after
	}
	slices.Reverse(list) // the last one first
	slices.SortStableFunc(list, func(a, b store.Record) int { return bytes.Compare(a.Key, b.Key) })
	list = slices.CompactFunc(list, func(a, b store.Record) bool { return bytes.Equal(a.Key, b.Key) })
	return slices.DeleteFunc(list, func(rec store.Record) bool { return bytes.Equal(rec.Key, accountKey) }), n
}

// field takes a field of 1 to most bytes off b.
func field(b []byte, most int) (f, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint32(b))
	if n == 0 || n > most || n > len(b)-4 {
		return nil, nil, false
	}
	return b[4 : 4+n : 4+n], b[4+n:], true
}

func appendField(to, f []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(f))), f...) //nolint:gosec // G115: bounded
}

// add keeps records.
func (p *partial) add(list []store.Record) {
	for _, rec := range list {
		if !bytes.Equal(rec.Key, accountKey) {
			p.buf = appendField(appendField(p.buf, rec.Key), rec.Value)
		}
		if len(p.buf) >= partialBuffer {
			p.flush()
		}
	}
}

// flush writes what was added.
func (p *partial) flush() {
	b := p.buf
	p.buf = p.buf[:0]
	if len(b) == 0 || p.broken {
		return
	}
	if p.f == nil {
		b = slices.Concat(p.head, b)
		_ = os.MkdirAll(filepath.Dir(p.path), 0o700)
		f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			p.broken = true
			return
		}
		if !p.lock(f) {
			p.broken = true
			_ = f.Close()
			return
		}
		p.f = f
	}
	if p.size+int64(len(b)) > maxPartial {
		p.broken = true
		return
	}
	n, err := p.f.Write(b)
	p.size += int64(n)
	p.broken = err != nil // the next one reads up to what is no record
}

// keep leaves the file for the next time.
func (p *partial) keep() {
	p.flush()
	if p.f != nil {
		_ = p.f.Close()
	}
}

// remove removes it.
func (p *partial) remove() {
	if p.f != nil {
		_ = os.Remove(p.path)
		_ = p.f.Close()
	}
}
