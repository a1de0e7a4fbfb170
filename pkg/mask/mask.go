package mask

import (
	"bytes"
	"slices"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// maxTotal bounds the values of a Set, in bytes all together: what the kernel
// passes on in an environment, unless `ulimit -s` was raised.
const maxTotal = 2 << 20

// Value is a value to mask, and the name to put in its place.
type Value struct {
	Name  string
	Bytes []byte // the caller's to wipe, once Compile has returned
}

// Skipped is a value that is not masked, and why.
type Skipped struct{ Name, Why string }

// Set finds values. Several goroutines may use it at once. It holds the values
// in ordinary memory until Wipe.
type Set struct {
	text, packed *automaton
	shown        []string // what is put in the place of each value
	names        []string
	skipped      []Skipped
	wiped        bool
}

// Compile makes the Set of values. White space around a value counts for
// nothing. A value that is too short or too common to be masked is skipped: see
// Skipped. An empty one hides nothing and is not even that. Several values may
// have one name. What is in one of the public texts is known to all, and is not
// masked either. It fails when the values have more than 2 MiB together.
func Compile(values []Value, public ...[]byte) (*Set, error) {
	total := 0
	for _, v := range values {
		total += len(v.Bytes)
	}
	if total > maxTotal {
		return nil, hint.Errorf("ask for fewer secrets",
			"the values to mask have %d bytes together, and the bound is %d", total, maxTotal)
	}
	s := &Set{}
	kek.Do(func() { s.compile(values, public) })
	return s, nil
}

func (s *Set) compile(values []Value, public [][]byte) {
	var text, packed []pattern
	text, packed, s.names, s.skipped = patterns(values, public)
	s.text, s.packed = build(text), build(packed)
	s.shown = make([]string, len(s.names))
	for i, name := range s.names {
		s.shown[i] = "***"
		for _, shown := range []string{"[masked " + name + "]", "[masked]"} {
			if _, ok := s.Find([]byte(shown)); !ok {
				s.shown[i] = shown
				break
			}
		}
	}
}

// patterns returns the forms of all values that are masked, and their names.
func patterns(values []Value, public [][]byte) (text, packed []pattern, names []string, skipped []Skipped) {
	known := func(part []byte) bool {
		return slices.ContainsFunc(public, func(text []byte) bool { return bytes.Contains(text, part) })
	}
	for _, value := range values {
		v := trim(value.Bytes)
		if len(v) == 0 {
			continue
		}
		why := judge(v)
		if why == "" && known(v) {
			why = "a public name or word"
		}
		if why != "" {
			skipped = append(skipped, Skipped{value.Name, why})
			continue
		}
		name := len(names)
		names = append(names, value.Name)
		whole := append([][]byte{v}, passwords(v)...)
		whole = append(whole, leaves(v)...)
		for _, w := range whole {
			if known(w) {
				continue
			}
			for _, part := range append(lines(w), w) {
				for _, form := range textForms(part) {
					text = append(text, pattern{form, name})
				}
			}
			for _, form := range packedForms(w) {
				packed = append(packed, pattern{form, name})
			}
		}
	}
	return text, packed, names, skipped
}

// Skipped returns the values that are not masked.
func (s *Set) Skipped() []Skipped { return s.skipped }

// Find returns the name of a value that b holds in one of its forms. A Set that
// was wiped cannot tell, so it finds a value without a name in everything.
func (s *Set) Find(b []byte) (name string, ok bool) {
	if s.wiped {
		return "", true
	}
	found := -1
	hit := func(_ int, o out) bool {
		found = o.name
		return false
	}
	(&scanner{}).scan(s.text, b, hit)
	if found < 0 {
		var p packer
		p.add(b, 0)
		(&scanner{}).scan(s.packed, p.bytes, hit)
		p.wipe()
	}
	if found < 0 {
		var d dump
		hitDump := func(_, _ int64, o out) bool { return hit(0, o) }
		d.add(s.text, b, 0, hitDump)
		d.finish(s.text, hitDump)
		d.reset()
	}
	if found < 0 {
		return "", false
	}
	return s.names[found], true
}

// Wipe clears what the Set holds of the values. It may be called twice, and on
// nil, but not while the Set is used. A Writer of a wiped Set fails.
func (s *Set) Wipe() {
	if s == nil || s.wiped {
		return
	}
	s.wiped = true
	s.text.wipe()
	s.packed.wipe()
}
