package scan

import (
	"bytes"
	"sort"
)

// added is the part of a text that a change added to it: whole lines, with the
// lines around them, because a rule may look at more than one.
type added struct {
	text  []byte
	parts []part // by offset
}

// A part of added.text and where it is in the whole text.
type part struct {
	at, from, n int
	isNew       bool
}

// around is how many lines before and behind an added one are looked at.
const around = 3

// newAdded returns the lines of text that none of the old versions has. A line
// that was only moved is not new.
func newAdded(text []byte, old ...[]byte) *added {
	lines := bytes.SplitAfter(text, []byte("\n"))
	isNew := make([]bool, len(lines))
	for i := range isNew {
		isNew[i] = true
	}
	for _, o := range old {
		count := map[string]int{}
		for line := range bytes.Lines(o) {
			count[asString(withoutEnd(line))]++
		}
		for i, line := range lines {
			key := asString(withoutEnd(line))
			if count[key] > 0 {
				count[key]--
				isNew[i] = false
			}
		}
	}
	near := make([]bool, len(lines))
	for i := range lines {
		if isNew[i] {
			for j := max(i-around, 0); j <= min(i+around, len(lines)-1); j++ {
				near[j] = true
			}
		}
	}
	a := &added{}
	offset := 0
	for i, line := range lines {
		if near[i] {
			a.parts = append(a.parts, part{len(a.text), offset, len(line), isNew[i]})
			a.text = append(a.text, line...)
		} else if len(a.text) > 0 && i > 0 && near[i-1] {
			a.text = append(a.text, '\n') // what is not beside it is not behind it
		}
		offset += len(line)
	}
	return a
}

// withoutEnd is a line without its newline, which the last one may lack.
func withoutEnd(line []byte) []byte {
	return bytes.TrimSuffix(line, []byte("\n"))
}

// place returns where in the whole text a place of a.text is, or -1 if nothing
// there is new.
func (a *added) place(start, end int) (int, int) {
	if end == 0 { // no place: the file is judged by its name
		return 0, 0
	}
	first, last := a.part(start), a.part(end-1)
	for _, p := range a.parts[first : last+1] {
		if p.isNew {
			f, l := a.parts[first], a.parts[last]
			start = f.from + min(start-f.at, f.n)
			return start, max(l.from+min(end-l.at, l.n), start)
		}
	}
	return -1, -1
}

// part returns which part an offset is in.
func (a *added) part(offset int) int {
	return max(sort.Search(len(a.parts), func(i int) bool { return a.parts[i].at > offset })-1, 0)
}
