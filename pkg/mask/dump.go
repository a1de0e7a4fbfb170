package mask

import "bytes"

// Dumps, of xxd(1), hexdump(1) and od(1), are lines of mostly 16 bytes in numbers,
// with an offset before and often the characters behind. They cut a value up, so
// their lines are decoded, and values are looked for in what they show. What is
// found is replaced from its first number to the end of its last line, with the
// characters there.

// maxDumpLine bounds a line that is taken for one of a dump, in bytes: od -w32
// has some 170.
const maxDumpLine = 256

// dump follows a stream, line by line.
type dump struct {
	line  []byte // the line so far, if it may be one of a dump
	at    int64  // where in the stream it begins
	other bool   // the line is none of a dump
	// What the lines show: numbers as they stand, and words with their bytes
	// reversed, which is how od and hexdump show the memory of most machines.
	shown [2]shown
}

// shown are bytes that lines without another in between show.
type shown struct {
	bytes []byte
	from  []int64 // where in the stream the number stands that shows a byte
	to    []int64 // where its line ends
	scan  scanner
}

// add reads b, which is at position at of the stream, and calls hit for what is
// found.
func (d *dump) add(a *automaton, b []byte, at int64, hit func(from, to int64, o out) bool) {
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		part := b
		if end >= 0 {
			part = b[:end]
		}
		if !d.other {
			if len(d.line) == 0 {
				d.at = at
				d.other = !maybeDump(part[:min(len(part), 32)]) // most lines, without a copy
			}
			if !d.other {
				d.line = append(d.line, part[:min(len(part), maxDumpLine+1-len(d.line))]...)
				d.other = len(d.line) > maxDumpLine || !maybeDump(d.line)
			}
			if d.other {
				d.reset()
			}
		}
		if end < 0 {
			return
		}
		if !d.other {
			d.finish(a, hit)
		}
		d.other = false
		b, at = b[end+1:], at+int64(end)+1
	}
}

// finish takes the line for complete.
func (d *dump) finish(a *automaton, hit func(from, to int64, o out) bool) {
	defer func() {
		clear(d.line)
		d.line = d.line[:0]
	}()
	row, ok := parseDump(d.line)
	if !ok {
		d.reset()
		return
	}
	to := d.at + int64(len(bytes.TrimSuffix(d.line, []byte("\r"))))
	for i := range d.shown {
		s := &d.shown[i]
		list := row.plain
		if i == 1 {
			list = row.reversed
		}
		if list == nil {
			s.reset()
			continue
		}
		for j, c := range list {
			s.bytes = append(grow(s.bytes, 1), c)
			s.from, s.to = append(s.from, d.at+int64(row.where[j])), append(s.to, to)
		}
		s.scan.scan(a, s.bytes, func(end int, o out) bool { return hit(s.from[end-o.length], s.to[end-1], o) })
		if n := s.scan.begin(a); 2*n >= len(s.bytes) {
			s.bytes = discard(s.bytes, n)
			s.from, s.to = s.from[:copy(s.from, s.from[n:])], s.to[:copy(s.to, s.to[n:])]
			s.scan.moved(n)
		}
	}
	clear(row.plain)
	clear(row.reversed)
}

// begin is where in the stream the earliest match begins that is still possible,
// if that is before end.
func (d *dump) begin(a *automaton, end int64) int64 {
	if len(d.line) > 0 {
		end = min(end, d.at)
	}
	for i := range d.shown {
		s := &d.shown[i]
		if n := s.scan.begin(a); n < len(s.bytes) {
			end = min(end, s.from[n])
		}
	}
	return end
}

func (d *dump) reset() {
	clear(d.line)
	d.line = d.line[:0]
	for i := range d.shown {
		d.shown[i].reset()
	}
}

func (s *shown) reset() {
	clear(s.bytes)
	*s = shown{bytes: s.bytes[:0], from: s.from[:0], to: s.to[:0]}
}

// dumpRow is what a line shows: nil where the line cannot be read so.
type dumpRow struct {
	plain, reversed []byte
	where           []int // where in the line the number of each byte stands
}

// maybeDump reports whether a line that begins like this can be one of a dump: an
// offset of at least four digits, a colon or dash perhaps, spaces, and a number,
// or, behind seven digits, a cell of od -c.
func maybeDump(line []byte) bool {
	rest, colon, digits, ok := dumpOffset(line)
	if !ok || len(rest) == 0 {
		return ok
	}
	indent := spaces(rest)
	body := rest[indent:]
	switch {
	case indent == 0 || len(body) == 0:
		return len(body) == 0
	case unhex(body[0]) >= 0 && (len(body) == 1 || unhex(body[1]) >= 0) && indent <= maxIndent:
		return true
	default:
		return digits >= 7 && !colon
	}
}

// dumpOffset returns what stands behind the offset, and whether there is one, or
// could be when the line goes on.
func dumpOffset(line []byte) (rest []byte, colon bool, digits int, ok bool) {
	rest = bytes.TrimPrefix(line, []byte("0x"))
	for digits < len(rest) && unhex(rest[digits]) >= 0 {
		digits++
	}
	if rest = rest[digits:]; len(rest) == 0 {
		return nil, false, digits, digits <= 16
	}
	if digits < 4 || digits > 16 {
		return nil, false, 0, false
	}
	if rest[0] == ':' {
		return rest[1:], true, digits, true
	}
	if len(rest) >= 3 && string(rest[:3]) == " - " { // openssl(1)
		return rest[2:], true, digits, true
	}
	if len(rest) == 2 && string(rest) == " -" {
		return nil, true, digits, true
	}
	return rest, false, digits, rest[0] == ' '
}

// parseDump reads one line.
func parseDump(line []byte) (row dumpRow, ok bool) {
	line = bytes.TrimSuffix(line, []byte("\r"))
	body, colon, digits, ok := dumpOffset(line)
	if !ok || len(body) == 0 || body[0] != ' ' {
		return row, false
	}
	offset := len(line) - len(body)
	if row, ok = numbers(body, offset, colon); ok {
		return row, true
	}
	if digits >= 7 && !colon {
		return cells(body, offset)
	}
	return row, false
}

// maxIndent is how many spaces are between the offset and the first number at
// most: xxd -e puts a short word to the right.
const maxIndent = 15

// numbers reads groups of digits of one width, of which the last may be shorter,
// an equal number of spaces apart. Behind more spaces the characters begin, but
// for the middle of hexdump -C and the last word of xxd -e.
func numbers(body []byte, offset int, colon bool) (row dumpRow, ok bool) {
	var groups [][]byte
	var where []int
	at, apart := spaces(body), 0
	if at > maxIndent {
		return row, false
	}
	for at < len(body) {
		end := at
		for end < len(body) && unhex(body[end]) >= 0 {
			end++
		}
		if end == at || end < len(body) && body[end] != ' ' && body[end] != '-' {
			break
		}
		if len(groups) > 0 && end-at > len(groups[0]) {
			break
		}
		groups, where = append(groups, body[at:end]), append(where, offset+at)
		if end < len(body) && body[end] == '-' { // openssl(1)
			at = end + 1
			continue
		}
		n := spaces(body[end:])
		at = end + n
		switch {
		case apart == 0 && (n == 1 || !colon):
			apart = n
		case n == apart:
		case len(groups) == 8 && n == 2 && !colon:
		default:
			end = at
			for end < len(body) && unhex(body[end]) >= 0 {
				end++
			}
			if short := end - at; colon && short%2 == 0 && short > 0 && n == 1+len(groups[0])-short {
				groups, where = append(groups, body[at:end]), append(where, offset+at)
			}
			return row.read(groups, where, colon)
		}
	}
	return row.read(groups, where, colon)
}

func spaces(b []byte) int { return len(b) - len(bytes.TrimLeft(b, " ")) }

// read decodes the groups as their width says.
func (r dumpRow) read(groups [][]byte, where []int, colon bool) (dumpRow, bool) {
	if len(groups) == 0 {
		return r, false
	}
	width := len(groups[0])
	all := bytes.Join(groups, nil)
	switch binary, octal := only(all, '1'), only(all, '7'); {
	case width == 8 && binary && colon: // xxd -b
		r.fill(groups, where, 8, 2, 1, true, false)
	case width == 3 && octal: // od -b
		r.fill(groups, where, 3, 8, 1, true, false)
	case width == 6 && octal && !colon: // od
		r.fill(groups, where, 6, 8, 2, false, true)
	case width%2 == 0:
		r.fill(groups, where, width, 16, width/2, true, width <= 16)
	}
	return r, r.plain != nil || r.reversed != nil
}

// only reports whether all digits are from 0 to last.
func only(digits []byte, last byte) bool {
	for _, c := range digits {
		if c < '0' || c > last {
			return false
		}
	}
	return true
}

// fill decodes groups of width digits that show size bytes each.
func (r *dumpRow) fill(groups [][]byte, where []int, width, base, size int, plain, reversed bool) {
	for i, g := range groups {
		var word []byte
		if base == 16 {
			for ; len(g) >= 2; g = g[2:] {
				word = append(word, byte(unhex(g[0])<<4|unhex(g[1])))
			}
		} else if len(g) == width {
			n := 0
			for _, c := range g {
				n = n*base + int(c-'0')
			}
			for range size {
				word = append([]byte{byte(n)}, word...)
				n >>= 8
			}
		}
		for range word {
			r.where = append(r.where, where[i])
		}
		if plain {
			r.plain = append(r.plain, word...)
		}
		if reversed {
			for j := range word {
				r.reversed = append(r.reversed, word[len(word)-1-j])
			}
		}
	}
}

// cells reads the lines of od -c: a byte in four characters, as itself, as \n or
// in octal digits.
func cells(body []byte, offset int) (row dumpRow, ok bool) {
	const names = "0\x00a\ab\bf\fn\nr\rt\tv\v"
	for at := 0; at < len(body); at += 4 {
		cell := body[at:]
		if len(cell) < 4 || cell[0] != ' ' {
			return dumpRow{}, false
		}
		cell = cell[1:4]
		var c byte
		switch {
		case cell[0] == ' ' && cell[1] == ' ':
			c = cell[2]
		case cell[0] == ' ' && cell[1] == '\\':
			i := bytes.IndexByte([]byte(names), cell[2])
			if i < 0 || i%2 != 0 {
				return dumpRow{}, false
			}
			c = names[i+1]
		case only(cell, '7'):
			c = (cell[0]-'0')<<6 | (cell[1]-'0')<<3 | cell[2] - '0'
		default:
			return dumpRow{}, false
		}
		row.plain, row.where = append(row.plain, c), append(row.where, offset+at)
	}
	return row, len(row.plain) > 0
}
