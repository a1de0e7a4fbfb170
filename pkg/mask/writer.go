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
	dump   dump
	found  [3]spans // in the text, in the packed text, and in dumps
	until  int64    // what lies before has been replaced already
	out    []byte
}

// chunk is how much of a long write is worked on at once, in bytes.
const chunk = 64 << 10

var errWiped, errClosed error = wrongUse("the values have been wiped"), wrongUse("write after close")

type wrongUse string

func (e wrongUse) Error() string { return "mask: " + string(e) }

// NewWriter returns a Writer that passes on to w.
func (s *Set) NewWriter(w io.Writer) *Writer {
	return &Writer{set: s, w: w, text: scanner{prefixes: true}, packed: scanner{prefixes: true}}
}

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
		w.release(w.dump.begin(w.set.text,
			min(w.base+int64(w.text.begin(w.set.text)), w.from(w.packed.begin(w.set.packed)))))
		w.drop()
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
		w.text.finish(w.set.text, w.foundInText)
		w.packed.finish(w.set.packed, w.foundPacked)
		w.dump.finish(w.set.text, w.foundInDump)
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
	w.dump.reset()
}

// Count returns how many replacements have been written.
func (w *Writer) Count() int { return w.count }

// scan finds what p completes.
func (w *Writer) scan(p []byte) {
	end := w.base + int64(len(w.held))
	w.held = grow(w.held, len(p))
	w.held = append(w.held, p...)
	w.text.scan(w.set.text, w.held, w.foundInText)
	w.packer.add(p, end)
	w.packed.scan(w.set.packed, w.packer.bytes, w.foundPacked)
	w.dump.add(w.set.text, p, end, w.foundInDump)
}

func (w *Writer) foundInText(end int, o out) bool {
	to := w.base + int64(end)
	from := to - int64(o.length)
	w.found[0].add(span{from, to, o.name, from, to})
	return true
}

func (w *Writer) foundPacked(end int, o out) bool {
	i := end - o.length
	to := w.packer.at(end-1) + 1
	w.found[1].add(span{w.from(i), to, o.name, w.packer.at(i), to})
	return true
}

func (w *Writer) foundInDump(from, to int64, o out) bool {
	w.found[2].add(span{from, to, o.name, from, to})
	return true
}

// from is where in the stream a packed match is replaced from that begins with
// byte i. If there is a break behind the first two characters, it is behind that:
// the end of almost every line could be the beginning of something encoded, and
// would be held back until the next one. What can be seen for this is 12 bits of
// a value whose base64 happens to begin at the end of a line, 8 of hexadecimal.
func (w *Writer) from(i int) int64 {
	if i == len(w.packer.bytes) {
		return w.packer.end
	}
	from := w.packer.at(i)
	for at, n := from, 0; n < 2; n++ {
		i++
		next := w.packer.end
		if i < len(w.packer.bytes) {
			next = w.packer.at(i)
		}
		if isBreak(w.held[at+1-w.base : next-w.base]) {
			from = next
		}
		if i == len(w.packer.bytes) {
			break
		}
		at = next
	}
	return from
}

// isBreak judges dropped bytes: a line ends there, or more than a word.
func isBreak(gap []byte) bool {
	return len(gap) > 1 || len(gap) == 1 && gap[0] == '\n'
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
}

// nextFound takes the span that begins first, if it begins before limit.
func (w *Writer) nextFound(limit int64) (span, bool) {
	from := &w.found[0]
	for i := range w.found[1:] {
		if l := &w.found[i+1]; len(*l) > 0 && (len(*from) == 0 || (*l)[0].before((*from)[0])) {
			from = l
		}
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
	if w.err != nil {
		return
	}
	i := w.packed.begin(w.set.packed)
	keep := w.done
	if i < len(w.packer.bytes) {
		keep = min(keep, w.packer.at(i)) // from looks there
	}
	if n := int(keep - w.base); 2*n >= len(w.held) {
		w.held = discard(w.held, n)
		w.base += int64(n)
		w.text.moved(n)
	}
	if 2*i >= len(w.packer.bytes) {
		w.packer.drop(i)
		w.packed.moved(i)
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
	name     int
	begin    int64 // where the match begins and ends that gave the name
	end      int64
}

// before: the match that is replaced from the leftmost place gives the name, of
// those the longest, and of those the one of the value that was given first.
func (s span) before(t span) bool {
	if s.from != t.from {
		return s.from < t.from
	}
	if s.end != t.end {
		return s.end > t.end
	}
	if s.begin != t.begin {
		return s.begin < t.begin
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
