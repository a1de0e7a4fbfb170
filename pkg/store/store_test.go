package store_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/store"
)

func TestBatchCheck(t *testing.T) {
	longest := bytes.Repeat([]byte("k"), store.MaxKey)
	largest := make([]byte, store.MaxValue)
	for what, op := range map[string]store.Op{
		"the least": {Key: []byte("k"), Value: []byte{0}},
		"the most":  {Key: longest, Value: largest},
		"deletion":  {Key: []byte("k")},
	} {
		if err := (store.Batch{op}).Check(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, op := range map[string]store.Op{
		"no key":          {Value: []byte("v")},
		"a long key":      {Key: append(longest, 'k'), Value: []byte("v")},
		"an empty record": {Key: []byte("k"), Value: []byte{}},
		"a long record":   {Key: []byte("k"), Value: make([]byte, store.MaxValue+1)},
	} {
		if err := (store.Batch{{Key: []byte("k")}, op}).Check(); err == nil {
			t.Errorf("%s is let through", what)
		}
	}
}

func rec(key, value string) store.Record {
	return store.Record{Key: []byte(key), Value: []byte(value)}
}

func TestRangeCheck(t *testing.T) {
	one, all, last := store.Range{Key: []byte("ab"), Take: store.One}, store.Range{Key: []byte("ab"), Take: store.All}, store.Range{Key: []byte("ab"), Take: store.Last}
	for _, c := range []struct {
		r    store.Range
		list []store.Record
		why  string // "" for none
	}{
		{one, nil, ""},
		{one, []store.Record{rec("ab", "1")}, ""},
		{one, []store.Record{rec("abc", "1")}, "not asked for"},
		{one, []store.Record{rec("a", "1")}, "not asked for"},
		{one, []store.Record{rec("ab", "1"), rec("ab", "1")}, "2 records in place of one"},
		{one, []store.Record{rec("ab", "")}, "a record of 0 bytes"},
		{one, []store.Record{rec("ab", strings.Repeat("v", store.MaxValue))}, ""},
		{one, []store.Record{rec("ab", strings.Repeat("v", store.MaxValue+1))}, "a record of 1048577 bytes"},
		{all, nil, ""},
		{all, []store.Record{rec("ab", "1"), rec("ab\x00", "2"), rec("abc", "3")}, ""},
		{all, []store.Record{rec("abc", "1"), rec("ab", "2")}, "not in the order"},
		{all, []store.Record{rec("ab", "1"), rec("ab", "1")}, "not in the order"},
		{all, []store.Record{rec("ab", "1"), rec("ac", "2")}, "not asked for"},
		{all, []store.Record{rec("ab"+strings.Repeat("k", store.MaxKey-1), "1")}, "a key of 513 bytes"},
		{last, nil, ""},
		{last, []store.Record{rec("abz", "1")}, ""},
		{last, []store.Record{rec("b", "1")}, "not asked for"},
		{last, []store.Record{rec("aby", "1"), rec("abz", "2")}, "2 records in place of one"},
		{store.Range{Take: store.All}, []store.Record{rec("a", "1"), rec("b", "2")}, ""},
		{store.Range{Take: store.All}, []store.Record{rec("", "1")}, "a key of 0 bytes"},
		{store.Range{Take: store.Last}, nil, ""},
		{store.Range{Take: store.One}, nil, "a key of 0 bytes"},
		{store.Range{Key: []byte("k"), Take: store.Last + 1}, nil, "kind 3"},
		{store.Range{Key: make([]byte, store.MaxKey+1)}, nil, "a key of 513 bytes"},
	} {
		err := c.r.Check(c.list)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%v with %d records: %v, want %q", c.r, len(c.list), err, c.why)
		}
	}
}

// The digest is what proto/ov/vault/v1 says, for other clients and servers too.
func TestDigest(t *testing.T) {
	var want [32]byte
	var list []store.Record
	for i := range 3 {
		if got := store.DigestOf(list); !bytes.Equal(got, want[:]) {
			t.Errorf("%d records: %x, want %x", i, got, want)
		}
		r := rec(strings.Repeat("k", i+1), strings.Repeat("v", 300*i+1))
		v := sha256.Sum256(r.Value)
		want = sha256.Sum256(slices.Concat(want[:], v[:], []byte{0, 0, 0, byte(i + 1)}, r.Key))
		list = append(list, r)
	}
	// sha256(32 zeros ‖ sha256("v") ‖ 00000001 ‖ "k"), by another program.
	if got := hex.EncodeToString(store.DigestOf([]store.Record{rec("k", "v")})); got != "f55ad9e063af8e2d2b96678836faa60ebc290ed2893a5003b9a35d95001d6520" {
		t.Errorf("got %s", got)
	}
	// No two ways to cut the same bytes into records agree.
	seen := map[string]string{}
	for what, list := range map[string][]store.Record{
		"ab=c": {rec("ab", "c")}, "a=bc": {rec("a", "bc")}, "a=b,c=d": {rec("a", "b"), rec("c", "d")},
		"a=b": {rec("a", "b")}, "c=d,a=b": {rec("c", "d"), rec("a", "b")}, "none": nil,
	} {
		d := string(store.DigestOf(list))
		if other, ok := seen[d]; ok {
			t.Errorf("%s and %s have one digest", what, other)
		}
		seen[d] = what
	}
}

// far is a store that counts what is asked of it.
type far struct {
	t       testing.TB
	keys    []string
	records map[string]string
	trips   int
	asked   map[string]bool
}

func newFar(t testing.TB, records map[string]string) *far {
	return &far{t, slices.Sorted(maps.Keys(records)), records, 0, map[string]bool{}}
}

func (f *far) fetch(ranges []store.Range) ([][]store.Record, error) {
	f.trips++
	if len(ranges) == 0 {
		f.t.Error("a trip for nothing")
	}
	out := make([][]store.Record, len(ranges))
	for i, r := range ranges {
		if id := fmt.Sprintf("%d %x", r.Take, r.Key); f.asked[id] {
			f.t.Errorf("%q (%d) was asked for again", r.Key, r.Take)
		} else {
			f.asked[id] = true
		}
		out[i] = f.of(r)
		if err := r.Check(out[i]); err != nil {
			f.t.Errorf("%q (%d): %v", r.Key, r.Take, err)
		}
	}
	return out, nil
}

func (f *far) of(r store.Range) (list []store.Record) {
	for _, k := range f.keys {
		if k == string(r.Key) || r.Take != store.One && strings.HasPrefix(k, string(r.Key)) {
			list = append(list, rec(k, f.records[k]))
		}
	}
	if r.Take == store.Last && len(list) > 1 {
		list = list[len(list)-1:]
	}
	return list
}

var sample = map[string]string{"a": "1", "ab": "2", "ab\x00": "3", "abc": "4", "ac": "5", "b": "6", "\xff": "7", "\xff\xff": "8"}

func TestMemoTrips(t *testing.T) {
	r := func(key string, take store.Take) store.Range { return store.Range{Key: []byte(key), Take: take} }
	for _, c := range []struct {
		first, then []store.Range
		trips       int
	}{
		{nil, nil, 0},
		{[]store.Range{r("a", store.One)}, []store.Range{r("a", store.One)}, 1},
		{[]store.Range{r("a", store.One), r("no", store.One), r("b", store.All)}, []store.Range{r("no", store.One), r("b", store.One), r("b", store.Last), r("bb", store.All)}, 1},
		{[]store.Range{r("a", store.All)}, []store.Range{r("ab", store.All), r("ab", store.Last), r("abc", store.One), r("aa", store.One), r("a", store.Last)}, 1},
		{[]store.Range{r("", store.All)}, []store.Range{r("a", store.All), r("zz", store.One), r("", store.Last), r("\xff", store.Last)}, 1},
		{[]store.Range{r("ab", store.Last)}, []store.Range{r("abc", store.One)}, 1},
		{[]store.Range{r("ab", store.Last)}, []store.Range{r("ab", store.One)}, 2},
		{[]store.Range{r("ab", store.Last)}, []store.Range{r("ab", store.All)}, 2},
		{[]store.Range{r("ab", store.Last)}, []store.Range{r("a", store.Last)}, 2},
		{[]store.Range{r("ab", store.All)}, []store.Range{r("a", store.All)}, 2},
		{[]store.Range{r("a", store.One)}, []store.Range{r("a", store.Last), r("a", store.All), r("a", store.All)}, 2},
	} {
		f := newFar(t, sample)
		m := store.NewMemo(f.fetch)
		for _, list := range [][]store.Range{c.first, c.then} {
			if err := m.Fetch(list...); err != nil {
				t.Error(err)
			}
			for _, one := range list {
				read(t, f, m, one)
			}
		}
		if f.trips != c.trips {
			t.Errorf("%q then %q: %d trips, want %d", c.first, c.then, f.trips, c.trips)
		}
		for _, s := range m.Seen() {
			if !slices.EqualFunc(s.Records, f.of(s.Range), equal) {
				t.Errorf("%q was seen as %q", s.Range.Key, s.Records)
			}
		}
		if len(m.Seen()) != len(f.asked) {
			t.Errorf("%d ranges seen, %d asked for", len(m.Seen()), len(f.asked))
		}
	}
}

func equal(a, b store.Record) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
}

// read fails unless the Memo reads the range as it is.
func read(t testing.TB, f *far, m *store.Memo, r store.Range) {
	t.Helper()
	var got []store.Record
	var err error
	switch r.Take {
	case store.One:
		var v []byte
		if v, err = m.Get(r.Key); v != nil {
			got = []store.Record{{Key: r.Key, Value: v}}
		}
	case store.Last:
		var k, v []byte
		if k, v, err = m.Last(r.Key); k != nil {
			got = []store.Record{{Key: k, Value: v}}
		}
	default:
		err = m.Scan(r.Key, func(k, v []byte) error {
			got = append(got, store.Record{Key: k, Value: v})
			return nil
		})
	}
	if err != nil || !slices.EqualFunc(got, f.of(r), equal) {
		t.Errorf("%q (%d) is %q, want %q: %v", r.Key, r.Take, got, f.of(r), err)
	}
}

// A failed trip leaves nothing behind, and what is read is the caller's to keep
// apart from the key that it was asked with.
func TestMemoFails(t *testing.T) {
	f := newFar(t, sample)
	away := errors.New("away")
	fail := true
	m := store.NewMemo(func(r []store.Range) ([][]store.Record, error) {
		if fail {
			return nil, away
		}
		return f.fetch(r)
	})
	key := []byte("abc")
	for _, err := range []error{
		m.Fetch(store.Range{Key: key}), second(m.Get(key)), m.Scan(key, nil), third(m.Last(key)),
	} {
		if !errors.Is(err, away) {
			t.Errorf("got %v", err)
		}
	}
	if len(m.Seen()) != 0 {
		t.Errorf("%d ranges seen", len(m.Seen()))
	}
	fail = false
	if v, err := m.Get(key); string(v) != "4" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	key[0] = 'x'
	if v, err := m.Get([]byte("abc")); string(v) != "4" || err != nil || f.trips != 1 {
		t.Errorf("%q, %v, %d trips", v, err, f.trips)
	}
	if err := m.Fetch(store.Range{Take: store.Last + 1}); err == nil || f.trips != 1 {
		t.Errorf("a range that is none: %v", err)
	}
	short := store.NewMemo(func([]store.Range) ([][]store.Record, error) { return nil, nil })
	if _, err := short.Get([]byte("k")); err == nil {
		t.Error("no answer is taken for none there")
	}
	mine := errors.New("mine")
	n := 0
	if err := m.Scan([]byte("a"), func(_, _ []byte) error { n++; return mine }); !errors.Is(err, mine) || n != 1 {
		t.Errorf("after an error %d calls and %v", n, err)
	}
}

func second[A, B any](_ A, b B) B        { return b }
func third[A, B, C any](_ A, _ B, c C) C { return c }

// However ranges are fetched and read, a Memo reads as the store itself, and
// asks for nothing twice.
func FuzzMemo(f *testing.F) {
	f.Add([]byte("a1ab2abc3"), []byte("\x00\x01a\x01\x02ab\x05\x03abc"))
	f.Add([]byte("a1b2c3"), []byte("\x01\x00\x05\x01a\x02\x01b\x08\x00"))
	f.Fuzz(func(t *testing.T, fill, ops []byte) {
		records := map[string]string{}
		for len(fill) > 1 {
			n := 1 + int(fill[0])%4
			if n >= len(fill) {
				break
			}
			records[string(fill[1:1+n])] = fmt.Sprint(len(fill))
			fill = fill[1+n:]
		}
		s := newFar(t, records)
		m := store.NewMemo(s.fetch)
		var pending []store.Range
		for len(ops) > 1 {
			n := int(ops[1]) % 5
			if 2+n > len(ops) {
				break
			}
			r := store.Range{Key: ops[2 : 2+n], Take: store.Take(ops[0] % 3)}
			how := ops[0] / 3 % 3
			ops = ops[2+n:]
			if r.Check(nil) != nil {
				continue
			}
			if pending = append(pending, r); how == 0 {
				continue // fetched together with others
			}
			if how == 1 {
				if err := m.Fetch(pending...); err != nil {
					t.Fatal(err)
				}
			}
			before := s.trips
			for _, r := range pending {
				read(t, s, m, r)
			}
			if how == 1 && s.trips != before {
				t.Errorf("%d trips for what was fetched", s.trips-before)
			}
			pending = nil
		}
	})
}

func BenchmarkMemoGet(b *testing.B) {
	records := map[string]string{}
	for i := range 1000 {
		records[fmt.Sprintf("%065d", i)] = "v"
	}
	m := store.NewMemo(newFar(b, records).fetch)
	if err := m.Fetch(store.Range{Take: store.All}); err != nil {
		b.Fatal(err)
	}
	key := fmt.Appendf(nil, "%065d", 500)
	b.ReportAllocs()
	for b.Loop() {
		if v, err := m.Get(key); v == nil || err != nil {
			b.Fatal(err)
		}
	}
}
