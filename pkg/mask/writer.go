package mask

import (
	"errors"
	"io"
)

// Writer passes on what is written to it, with [masked NAME] in the place of
// values. It must be closed, and not be used from several goroutines.
type Writer struct {
	set   *Set
	w     io.Writer
	err   error
	count int

	base   int64  // where in the stream held begins
	held   []byte // what has not been passed on, and perhaps some that has
	done   int64  // where in the stream what has not been passed on begins
	text   scanner
	packed scanner
	packer packer
	found  [2]spans // by the text scanner, and by the packed one
	until  int64    // what lies before has been replaced already
	out    []byte
}

// chunk is how much of a long write is worked on at once, in bytes.
const chunk = 64 << 10

var (
	errClosed = errors.New("mask: write after close")
	errWiped  = errors.New("mask: the values have been wiped")
)

// NewWriter returns a Writer that passes on to w.
func (s *Set) NewWriter(w io.Writer) *Writer { return &Writer{set: s, w: w} }

// Write takes all of p, and passes on what no value can begin in any more. The
// error is that of the underlying Write, and final.
func (w *Writer) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && w.err == nil {
		if w.set.wiped {
			w.fail(errWiped)
			break
		}
		part := p[n:min(n+chunk, len(p))]
		w.scan(part)
		w.release(min(w.base+int64(w.text.begin(w.set.text)), w.packedBegin()))
		n += len(part)
	}
	return n, w.err
}

// Close passes on what is still held back, and does not close the underlying
// Writer. What was held is cleared.
func (w *Writer) Close() error {
	if w.err == nil && w.set.wiped {
		w.fail(errWiped)
	}
	if w.err == nil {
		w.release(w.base + int64(len(w.held)))
	}
	err := w.err
	if errors.Is(err, errClosed) {
		err = nil
	}
	w.fail(errClosed)
	return err
}

// fail makes err that of every further Write.
func (w *Writer) fail(err error) {
	w.err = err
	clear(w.held[:cap(w.held)])
	w.held = nil
	w.packer.wipe()
}

// Count returns how many replacements have been written.
func (w *Writer) Count() int { return w.count }

// scan finds what p completes.
func (w *Writer) scan(p []byte) {
	end := w.base + int64(len(w.held))
	w.held = grow(w.held, len(p))
	w.held = append(w.held, p...)
	w.text.scan(w.set.text, w.held, func(end int, o out) bool {
		at := w.base + int64(end)
		w.found[0].add(span{at - int64(o.length), at, at, o.name})
		return true
	})
	w.packer.add(p, end)
	w.packed.scan(w.set.packed, w.packer.bytes, func(end int, o out) bool {
		from, to := w.packer.at(end-o.length), w.packer.at(end-1)+1
		w.found[1].add(span{from, to, to, o.name})
		return true
	})
}

// packedBegin is where in the stream the earliest packed match begins that is
// still possible.
func (w *Writer) packedBegin() int64 {
	if i := w.packed.begin(w.set.packed); i < len(w.packer.bytes) {
		return w.packer.at(i)
	}
	return w.packer.end
}

// release passes on what lies before limit. A value that begins there is
// replaced, even if it is not known yet where it ends: it can only grow.
func (w *Writer) release(limit int64) {
	if limit <= w.done {
		return
	}
	out, at := w.out[:0], w.done
	copyTo := func(to int64) {
		if at = max(at, w.until); at < to {
			out = append(out, w.held[at-w.base:to-w.base]...)
		}
	}
	plain := w.until <= w.done
	for {
		s, ok := w.nextFound(limit)
		if !ok {
			break
		}
		plain = false
		if s.from >= w.until {
			copyTo(s.from)
			out = append(out, w.set.shown[s.name]...)
			w.count++
		}
		w.until = max(w.until, s.to)
	}
	if plain {
		out = w.held[w.done-w.base : limit-w.base]
	} else {
		copyTo(limit)
		w.out = out
	}
	if len(out) > 0 {
		if _, err := w.w.Write(out); err != nil {
			w.fail(err)
			return
		}
	}
	w.done = limit
	w.drop()
}

// nextFound takes the span that begins first, if it begins before limit.
func (w *Writer) nextFound(limit int64) (span, bool) {
	a, b := &w.found[0], &w.found[1]
	from := a
	if len(*a) == 0 || len(*b) > 0 && (*b)[0].before((*a)[0]) {
		from = b
	}
	if len(*from) == 0 || (*from)[0].from >= limit {
		return span{}, false
	}
	s := (*from)[0]
	if *from = (*from)[1:]; len(*from) == 0 {
		*from = nil
	}
	return s, true
}

// drop forgets what is no longer needed, once that is half of what there is: to
// move the rest at every write would take quadratic time.
func (w *Writer) drop() {
	if n := int(w.done - w.base); 2*n >= len(w.held) {
		w.held = discard(w.held, n)
		w.base += int64(n)
		w.text.moved(n)
	}
	if n := w.packed.begin(w.set.packed); 2*n >= len(w.packer.bytes) {
		w.packer.drop(n)
		w.packed.moved(n)
	}
}

// discard moves b to where its first n bytes were.
func discard(b []byte, n int) []byte {
	rest := copy(b, b[n:])
	clear(b[rest:])
	return b[:rest]
}

// grow makes room for n more bytes, and leaves no copy behind.
func grow(b []byte, n int) []byte {
	if len(b)+n <= cap(b) {
		return b
	}
	larger := make([]byte, len(b), max(2*cap(b), len(b)+n))
	copy(larger, b)
	clear(b)
	return larger
}

// span is what one or several overlapping matches cover.
type span struct {
	from, to int64 // in the stream
	first    int64 // where the match ends that gave the name
	name     int
}

// before: the leftmost match gives the name, of those the longest, and of those
// the one of the value that was given first.
func (s span) before(t span) bool {
	if s.from != t.from {
		return s.from < t.from
	}
	if s.first != t.first {
		return s.first > t.first
	}
	return s.name < t.name
}

// spans are in ascending order and do not overlap; they may touch.
type spans []span

// add adds a match that ends no earlier than those before.
func (l *spans) add(s span) {
	for n := len(*l); n > 0 && (*l)[n-1].to > s.from; n-- {
		last := (*l)[n-1]
		to := max(s.to, last.to)
		if last.before(s) {
			s = last
		}
		s.to = to
		*l = (*l)[:n-1]
	}
	*l = append(*l, s)
}

// packer drops white space and colons from a stream, and remembers where in the
// stream the rest was.
type packer struct {
	bytes []byte
	where []uint32 // position in the stream of each byte, modulo 2^32
	end   int64    // position after the last byte that was added
	gap   int      // how many bytes have been dropped in a row
}

// add adds b, which is at position at of the stream. A gap of more than maxGap
// leaves one byte, which is in no pattern, so that none goes on behind it.
func (p *packer) add(b []byte, at int64) {
	const block = 32
	n := len(p.bytes)
	if n+len(b) > cap(p.bytes) {
		p.bytes = grow(p.bytes, len(b))
		where := make([]uint32, n, cap(p.bytes))
		copy(where, p.where)
		p.where = where
	}
	// Each byte is written, and written over by the next if it is dropped.
	bytes, where := p.bytes[:n+len(b)], p.where[:n+len(b)]
	pos := uint32(at)
	for len(b) > 0 {
		part := b[:min(block, len(b))]
		b = b[len(part):]
		if p.gap > maxGap-block { // which may end in this part
			for i, c := range part {
				if dropped[c] == 0 {
					p.gap = 0
				} else if p.gap++; p.gap != maxGap+1 {
					continue
				}
				bytes[n], where[n] = c, pos+uint32(i)
				n++
			}
		} else {
			before := n
			for i, c := range part {
				bytes[n], where[n] = c, pos+uint32(i)
				n += int(1 - dropped[c])
			}
			if n > before {
				p.gap = -int(where[n-1]-pos) - 1
			}
			p.gap += len(part)
		}
		pos += uint32(len(part))
	}
	p.bytes, p.where, p.end = bytes[:n], where[:n], at+int64(pos-uint32(at))
}

// at returns where in the stream byte i was. All of them are among the last 4 GiB.
func (p *packer) at(i int) int64 { return p.end - int64(uint32(p.end)-p.where[i]) }

func (p *packer) drop(n int) {
	p.bytes = discard(p.bytes, n)
	p.where = p.where[:copy(p.where, p.where[n:])]
}

func (p *packer) wipe() {
	clear(p.bytes[:cap(p.bytes)])
	p.bytes, p.where = nil, nil
}
