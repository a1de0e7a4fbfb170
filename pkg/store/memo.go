package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// Memo is a Reader for a store that is far away: each range is asked for once,
// and what a wider range has brought is not asked for again. It is not safe for
// use by many goroutines.
type Memo struct {
	fetch func([]Range) ([][]Record, error)
	seen  []Seen
	at    [Last + 1]map[string]int // by Take: where in seen the range with that key is
}

// Seen is a range and the records that were there, in the order of their keys.
type Seen struct {
	Range   Range
	Records []Record
}

// NewMemo returns a Reader that asks fetch for what it has not got. fetch returns
// one list of records for each range, of which Range.Check is true.
func NewMemo(fetch func([]Range) ([][]Record, error)) *Memo {
	m := &Memo{fetch: fetch}
	for take := range m.at {
		m.at[take] = map[string]int{}
	}
	return m
}

// Seen returns all that was read so far, in the order in which it was asked for.
// What was found within something else is not among it.
func (m *Memo) Seen() []Seen { return m.seen }

// Fetch implements Reader.
func (m *Memo) Fetch(ranges ...Range) error {
	var ask []Range
	asked := [len(m.at)]map[string]bool{{}, {}, {}}
	for _, r := range ranges {
		if err := r.Check(nil); err != nil {
			return err
		}
		if _, ok := m.find(r); !ok && !asked[r.Take][string(r.Key)] {
			asked[r.Take][string(r.Key)] = true
			ask = append(ask, Range{bytes.Clone(r.Key), r.Take})
		}
	}
	if len(ask) == 0 {
		return nil
	}
	got, err := m.fetch(ask)
	if err != nil {
		return err
	}
	if len(got) != len(ask) {
		return fmt.Errorf("%d answers to %d questions", len(got), len(ask))
	}
	for i, r := range ask {
		m.at[r.Take][string(r.Key)] = len(m.seen)
		m.seen = append(m.seen, Seen{r, got[i]})
	}
	return nil
}

// Get implements Reader.
func (m *Memo) Get(key []byte) ([]byte, error) {
	list, err := m.read(Range{key, One})
	if len(list) == 0 {
		return nil, err
	}
	return list[0].Value, nil
}

// Scan implements Reader.
func (m *Memo) Scan(prefix []byte, fn func(key, value []byte) error) error {
	list, err := m.read(Range{prefix, All})
	if err != nil {
		return err
	}
	for _, rec := range list {
		if err := fn(rec.Key, rec.Value); err != nil {
			return err
		}
	}
	return nil
}

// Last implements Reader.
func (m *Memo) Last(prefix []byte) (key, value []byte, err error) {
	list, err := m.read(Range{prefix, Last})
	if len(list) == 0 {
		return nil, nil, err
	}
	return list[0].Key, list[0].Value, nil
}

func (m *Memo) read(r Range) ([]Record, error) {
	if list, ok := m.find(r); ok {
		return list, nil
	}
	if err := m.Fetch(r); err != nil {
		return nil, err
	}
	return m.seen[len(m.seen)-1].Records, nil
}

// find returns the range's records if they are known: by themselves, within all
// of a shorter prefix, or as the last of one.
func (m *Memo) find(r Range) ([]Record, bool) {
	if i, ok := m.at[r.Take][string(r.Key)]; ok {
		return m.seen[i].Records, true
	}
	for n := range len(r.Key) + 1 {
		if i, ok := m.at[All][string(r.Key[:n])]; ok {
			return r.of(m.seen[i].Records), true
		}
		if i, ok := m.at[Last][string(r.Key[:n])]; ok && r.Take == One {
			if list := m.seen[i].Records; len(list) == 1 && bytes.Equal(list[0].Key, r.Key) {
				return list, true
			}
		}
	}
	return nil, false
}

// of picks the range's records out of sorted ones.
func (r Range) of(list []Record) []Record {
	from := sort.Search(len(list), func(i int) bool { return bytes.Compare(list[i].Key, r.Key) >= 0 })
	to := from
	if r.Take == One {
		if from < len(list) && bytes.Equal(list[from].Key, r.Key) {
			to++
		}
		return list[from:to:to]
	}
	to += sort.Search(len(list)-from, func(i int) bool { return !bytes.HasPrefix(list[from+i].Key, r.Key) })
	if r.Take == Last && to > from {
		from = to - 1
	}
	return list[from:to:to]
}

// Check refuses a range that is none, and records that are not of the range, not
// in the order of their keys, out of bounds, or too many.
func (r Range) Check(list []Record) error {
	if r.Take > Last || len(r.Key) > MaxKey || r.Take == One && len(r.Key) == 0 {
		return fmt.Errorf("a range of kind %d with a key of %d bytes", r.Take, len(r.Key))
	}
	if r.Take != All && len(list) > 1 {
		return fmt.Errorf("%d records in place of one", len(list))
	}
	for i, rec := range list {
		fits := bytes.HasPrefix(rec.Key, r.Key)
		if r.Take == One {
			fits = bytes.Equal(rec.Key, r.Key)
		}
		if !fits {
			return fmt.Errorf("a record that was not asked for, with a key of %d bytes", len(rec.Key))
		}
		if n := len(rec.Key); n == 0 || n > MaxKey {
			return fmt.Errorf("a record with a key of %d bytes, the bounds are 1 and %d", n, MaxKey)
		}
		if n := len(rec.Value); n == 0 || n > MaxValue {
			return fmt.Errorf("a record of %d bytes, the bounds are 1 and %d", n, MaxValue)
		}
		if i > 0 && bytes.Compare(list[i-1].Key, rec.Key) >= 0 {
			return errors.New("records that are not in the order of their keys")
		}
	}
	return nil
}

// After is the lowest key above all that start with prefix, or nil if there is
// none.
func After(prefix []byte) []byte {
	for n := len(prefix); n > 0; n-- {
		if prefix[n-1] < 0xff {
			after := bytes.Clone(prefix[:n])
			after[n-1]++
			return after
		}
	}
	return nil
}

// Digest is a SHA-256 hash over records in the order of their keys.
type Digest struct{ h [sha256.Size]byte }

// Add appends a record.
func (d *Digest) Add(key, value []byte) {
	b := make([]byte, 0, 2*sha256.Size+4+len(key))
	b = append(b, d.h[:]...)
	v := sha256.Sum256(value)
	b = append(b, v[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(key))) //nolint:gosec // at most MaxKey
	b = append(b, key...)
	d.h = sha256.Sum256(b)
}

// Sum returns the hash: 32 bytes of zeros while there are no records.
func (d *Digest) Sum() []byte { return d.h[:] }

// DigestOf is the hash over the records.
func DigestOf(list []Record) []byte {
	var d Digest
	for _, rec := range list {
		d.Add(rec.Key, rec.Value)
	}
	return d.Sum()
}
