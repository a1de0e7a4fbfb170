package mask

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/test/chance"
)

// reference is what the Writer has to do, written for plainness: look for every
// form everywhere.
type reference struct {
	text, packed []pattern
	shown        []string
}

func newReference(values []Value, s *Set) *reference {
	r := &reference{shown: s.shown}
	r.text, r.packed, _, _ = patterns(values, nil)
	return r
}

// set is the Set of the same patterns.
func (r *reference) set() *Set {
	s := &Set{text: build(slices.Clone(r.text)), packed: build(slices.Clone(r.packed)), shown: r.shown, names: r.shown}
	return s
}

func (r *reference) mask(input []byte) string {
	var all []span
	matches(r.text, input, func(i, end, name int) {
		all = append(all, span{int64(i), int64(end), name, int64(i), int64(end)})
	})
	var kept []byte
	var where []int64
	for i, c := range input {
		switch {
		case dropped[c] == 0:
			kept, where = append(kept, c), append(where, int64(i))
		case i >= maxGap && allDropped(input[i-maxGap:i]):
			kept, where = append(kept, ' '), append(where, int64(i))
		}
	}
	matches(r.packed, kept, func(i, to, name int) {
		end := where[to-1] + 1
		from := where[i]
		for n := range 2 {
			if gap := string(input[where[i+n]+1 : where[i+n+1]]); gap == "\n" || len(gap) > 1 {
				from = where[i+n+1]
			}
		}
		all = append(all, span{from, end, name, where[i], end})
	})
	all = append(all, r.dumps(input)...)
	slices.SortFunc(all, func(s, t span) int {
		if s.before(t) {
			return -1
		}
		if t.before(s) {
			return 1
		}
		return 0
	})
	var out strings.Builder
	at := int64(0)
	for i, s := range all {
		if i > 0 && s.from < at {
			at = max(at, s.to)
			continue
		}
		out.Write(input[at:s.from])
		out.WriteString(r.shown[s.name])
		at = s.to
	}
	out.Write(input[at:])
	return out.String()
}

// matches calls fn for where patterns are in text, and for where minPrefix bytes
// or more of one are, as many as there are.
func matches(patterns []pattern, text []byte, fn func(from, to, name int)) {
	sorted := slices.Clone(patterns)
	slices.SortFunc(sorted, func(p, q pattern) int {
		if c := bytes.Compare(p.b, q.b); c != 0 {
			return c
		}
		return p.name - q.name
	})
	sorted = slices.CompactFunc(sorted, func(p, q pattern) bool { return bytes.Equal(p.b, q.b) })
	lends := make([]int, len(sorted)) // the name for what begins a pattern: see chain
	for k, p := range sorted {
		lends[k] = p.name
		if k > 0 && bytes.HasPrefix(p.b, sorted[k-1].b) {
			lends[k] = lends[k-1]
		}
	}
	for i := range text {
		longest, name := 0, 0
		for k, p := range sorted {
			n := common(text[i:], p.b)
			if n == len(p.b) {
				fn(i, i+n, p.name)
			}
			if n > longest {
				longest, name = n, lends[k]
			}
		}
		whole := slices.ContainsFunc(sorted, func(p pattern) bool { return len(p.b) == longest && bytes.HasPrefix(text[i:], p.b) })
		if longest >= minPrefix && !whole {
			fn(i, i+longest, name)
		}
	}
}

// dumps finds values in the lines of dumps, of which parseDump is the judge:
// TestDumps holds it to the programs.
func (r *reference) dumps(input []byte) (all []span) {
	var shown, reversed []byte
	var from, fromReversed, to, toReversed []int64
	flush := func(shown []byte, from, to []int64) {
		for _, p := range r.text {
			for i := range shown {
				if bytes.HasPrefix(shown[i:], p.b) {
					end := to[i+len(p.b)-1]
					all = append(all, span{from[i], end, p.name, from[i], end})
				}
			}
		}
	}
	at := int64(0)
	for line := range bytes.Lines(input) {
		text := bytes.TrimSuffix(line, []byte("\n"))
		row, ok := parseDump(text)
		if !ok || len(text) > maxDumpLine || !maybeDump(text) {
			row = dumpRow{}
		}
		end := at + int64(len(bytes.TrimSuffix(text, []byte("\r"))))
		if row.plain == nil {
			flush(shown, from, to)
			shown, from, to = nil, nil, nil
		}
		if row.reversed == nil {
			flush(reversed, fromReversed, toReversed)
			reversed, fromReversed, toReversed = nil, nil, nil
		}
		for i, c := range row.plain {
			shown, from, to = append(shown, c), append(from, at+int64(row.where[i])), append(to, end)
		}
		for i, c := range row.reversed {
			reversed, fromReversed, toReversed = append(reversed, c), append(fromReversed, at+int64(row.where[i])), append(toReversed, end)
		}
		at += int64(len(line))
	}
	flush(shown, from, to)
	flush(reversed, fromReversed, toReversed)
	return all
}

func allDropped(b []byte) bool {
	for _, c := range b {
		if dropped[c] == 0 {
			return false
		}
	}
	return true
}

// through writes input to a Writer of s, in pieces whose lengths next gives.
func through(t testing.TB, s *Set, input []byte, next func() int) (string, int) {
	t.Helper()
	var out bytes.Buffer
	w := s.NewWriter(&out)
	for rest := input; len(rest) > 0; {
		n := min(next(), len(rest))
		if m, err := w.Write(bytes.Clone(rest[:n])); m != n || err != nil {
			t.Fatalf("wrote %d of %d: %v", m, n, err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String(), w.Count()
}

// check holds the Writer to the reference, in one write and in all kinds of
// pieces, and Find too.
func (r *reference) check(t testing.TB, s *Set, input []byte, random *rand.Rand) {
	t.Helper()
	want := r.mask(input)
	once, count := through(t, s, input, func() int { return len(input) })
	if once != want {
		t.Fatalf("%q\ngives %q\nwant  %q\nof %s", input, once, want, r)
	}
	for name, next := range map[string]func() int{
		"byte by byte":     func() int { return 1 },
		"short and long":   func() int { return 1 + random.IntN(1+random.IntN(20)) },
		"empty ones, too":  func() int { return random.IntN(5) },
		"mostly in halves": func() int { return 1 + len(input)/2 },
	} {
		got, n := through(t, s, input, next)
		if got != want || n != count {
			t.Fatalf("%s, %q\ngives %q (%d)\nwant  %q (%d)\nof %s", name, input, got, n, want, count, r)
		}
	}
	if _, ok := s.Find(input); ok != (count > 0) {
		t.Fatalf("Find(%q) = %v, and %d replacements of %s", input, ok, count, r)
	}
}

func (r *reference) String() string {
	var b strings.Builder
	for _, p := range r.text {
		fmt.Fprintf(&b, "%q ", p.b)
	}
	b.WriteString("packed ")
	for _, p := range r.packed {
		fmt.Fprintf(&b, "%q ", p.b)
	}
	return b.String()
}

func word(random *rand.Rand, alphabet string, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[random.IntN(len(alphabet))]
	}
	return b
}

// TestSmallAlphabet: with few letters, patterns overlap, contain, begin and end
// each other in every way there is.
func TestSmallAlphabet(t *testing.T) {
	random := chance.Rand(t, 0)
	rounds := 1000
	if testing.Short() {
		rounds = 300
	}
	for range rounds {
		r := &reference{}
		for i := range 1 + random.IntN(6) {
			r.shown = append(r.shown, fmt.Sprintf("[%d]", i))
			for range 1 + random.IntN(3) {
				r.text = append(r.text, pattern{word(random, "ab ", minPattern+random.IntN(8)), i})
				r.packed = append(r.packed, pattern{word(random, "ab", minPattern+random.IntN(8)), i})
			}
		}
		if random.IntN(4) == 0 {
			r.packed = nil
		}
		s := r.set()
		for range 20 {
			r.check(t, s, word(random, "aab:\n ", random.IntN(60)), random)
		}
	}
}

// TestEveryInput tries every text of 14 letters of two.
func TestEveryInput(t *testing.T) {
	random := chance.Rand(t, 0)
	r := &reference{shown: []string{"[0]", "[1]", "[2]"}}
	for _, p := range []string{"aababb", "ababab", "bbabbaab", "aabaabaabaab"} {
		r.text = append(r.text, pattern{[]byte(p), len(r.text) % 3})
	}
	s := r.set()
	input := make([]byte, 14)
	for n := range 1 << len(input) {
		for i := range input {
			input[i] = 'a' + byte(n>>i&1)
		}
		want := r.mask(input)
		if got, _ := through(t, s, input, func() int { return len(input) }); got != want {
			t.Fatalf("%s gives %s, want %s", input, got, want)
		}
		if got, _ := through(t, s, input, func() int { return 1 + random.IntN(4) }); got != want {
			t.Fatalf("%s in pieces gives %s, want %s", input, got, want)
		}
	}
}

// TestGap: a packed form goes on after maxGap dropped bytes, and not after more,
// wherever the writes end.
func TestGap(t *testing.T) {
	r := &reference{shown: []string{"[0]"}, packed: []pattern{{[]byte("abcdef"), 0}}}
	s := r.set()
	random := chance.Rand(t, 0)
	for n := maxGap - 2; n < 2*maxGap+4; n++ {
		r.check(t, s, []byte("x abc"+strings.Repeat(" ", n)+"def x"), random)
		r.check(t, s, []byte("abc"+strings.Repeat(": ", n/2)+"def"+strings.Repeat("\n", n)), random)
	}
	if got, _ := through(t, s, []byte("abc"+strings.Repeat(" ", maxGap)+"def"), func() int { return 7 }); got != "[0]" {
		t.Errorf("got %q", got)
	}
}

// FuzzWriter takes the values and the text from the input, makes texts of the
// values' forms, and holds the Writer to the reference.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("s3cr3t-v4lue\x00another one\x00\x01"), []byte("text s3cr3t-v4lue text"), uint64(1))
	f.Fuzz(func(t *testing.T, raw, text []byte, seed uint64) {
		if len(raw) > 200 || len(text) > 400 {
			return
		}
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // G404: a test
		var values []Value
		for i, v := range bytes.Split(raw, []byte{0}) {
			values = append(values, Value{fmt.Sprintf("V%d", i), v})
		}
		s, err := Compile(values)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Wipe()
		r := newReference(values, s)
		r.check(t, s, text, random)
		// A text of forms, cut and joined.
		var input []byte
		all := slices.Concat(r.text, r.packed)
		for range min(len(all), 8) {
			p := all[random.IntN(len(all))].b
			switch random.IntN(6) {
			case 4:
				input = append(append(input, '\n'), hex.Dump(slices.Concat(p[:3], p))...)
				continue
			case 5:
				dump := bytes.NewBuffer(nil)
				for i, c := range p {
					if i%7 == 0 {
						fmt.Fprintf(dump, "\n%07o", i)
					}
					fmt.Fprintf(dump, " %03o", c)
				}
				input = append(append(input, dump.Bytes()...), '\n')
				continue
			case 0:
				p = p[:random.IntN(len(p))]
			case 1:
				for _, c := range p {
					input = append(input, c)
					if random.IntN(4) == 0 {
						input = append(input, " \n:\t"[random.IntN(4)])
					}
				}
				continue
			}
			input = append(input, p...)
			if random.IntN(2) == 0 && len(text) > 0 {
				input = append(input, text[random.IntN(len(text)):]...)
			}
			if len(input) > 2000 {
				break
			}
		}
		r.check(t, s, input, random)
	})
}
