package remote

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

const (
	// maxParts bounds the parts that the keys are divided into: a server takes
	// 32,768 ranges in a call.
	maxParts = 24 << 10
	// maxPartKeys bounds the keys of these parts together, in bytes, and so the
	// message that names them: a server takes 4 MiB.
	maxPartKeys = 1 << 20
	// A part that has fewer bytes of records than this is not divided further.
	smallPart = 128 << 10
	// Nor is one that is a smaller fraction of all.
	fewParts = 512
	// maxProbes bounds the calls that find out which parts have changed.
	maxProbes = 64
	// maxStale bounds how often in a row that is done.
	maxStale = 8
	// maxTries bounds how often a reading goes on.
	maxTries = 1000
)

// ReadAll returns all records as they are at one moment, in the order of their
// keys, like a View that scans all. Unlike that, it goes on where it was when the
// connection is lost, unless nothing comes for as long as a call is tried again.
//
// have is what the caller has from a time before, in the order of keys: what is
// still so is not sent again. Nothing of it is trusted: the server is told its
// digests by ranges, and compares these in the snapshot in which it reads all
// else. got, if not nil, is told what comes as it comes, to be kept for the next
// time should this one fail. It may be told of a key again.
func (s *Store) ReadAll(ctx context.Context, have []store.Record, got func([]store.Record)) ([]store.Record, error) {
	all := store.Range{Take: store.All}
	if all.Check(have) != nil || len(have) > 0 && have[0].Key[0] == 0 {
		have = nil
	}
	r := &resumed{snapshot: s.snapshot(ctx), have: have, got: got}
	stale := 0
	for range maxTries {
		n := len(r.have)
		err := s.call(ctx, r.try)
		if len(r.have) > n {
			stale = 0
		}
		changed := errors.Is(err, errStale)
		if changed {
			stale++
			err = r.doubt()
		}
		switch {
		case err == nil && !changed:
			if err := all.Check(r.have); err != nil {
				return nil, r.malformed("%w", err)
			}
			return r.have, nil
		case err == nil && stale <= maxStale:
		case errors.Is(err, ErrTooLarge) && len(have) > 0: // it may be what is there that is
			have, r.have, r.parts = nil, nil, nil
		case errors.Is(err, store.ErrUnavailable) && len(r.have) > n && time.Since(r.came) < s.wait && ctx.Err() == nil:
		case err != nil:
			return nil, err
		default:
			return nil, hint.Errorf("try again when less is written to the vault", "%w: %s: others have kept changing what was read", store.ErrBusy, s.url)
		}
	}
	return nil, s.unavailable("the connection was lost again and again")
}

// resumed is a reading of all that goes on from what is there.
type resumed struct {
	*snapshot
	have  []store.Record
	parts []part // of have, or nil when have has changed since
	got   func([]store.Record)
	came  time.Time // when something came the last time
}

// part is a range, and what is there of it. The parts of a division are in the
// order of their keys, do not overlap, and leave nothing out.
type part struct {
	store.Range
	have []store.Record
	read bool // the server has to send it, whatever is there
}

// try asks for what is to be read, if all else is still so. When it is cut, what
// has come is among what is there.
func (r *resumed) try(c *call) error {
	if r.parts == nil {
		r.parts = divide(r.have)
	}
	req := &vaultv1.ReadRequest{}
	var reads []*part
	r.size = 0
	for i := range r.parts {
		p := &r.parts[i]
		if p.read {
			req.Ranges, reads = append(req.Ranges, protoRange(p.Range)), append(reads, p)
			continue
		}
		req.Expect = append(req.Expect, p.expect())
		for _, rec := range p.have {
			r.size += len(rec.Key) + len(rec.Value) + overhead
		}
	}
	got, err := r.scan(c, req, func(i int, list []store.Record, n int) error {
		// With the one before, for their order.
		if err := reads[i].Check(list[max(n-1, 0):]); err != nil {
			return r.malformed("%w", err)
		}
		r.came = time.Now()
		if r.got != nil {
			r.got(list[n:])
		}
		return nil
	})
	if errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge) {
		return err
	}
	at := len(got) // all before it is here
	if err != nil {
		for at = len(got) - 1; at > 0 && len(got[at]) == 0; {
			at--
		}
	}
	if at < 0 || err != nil && len(got[at]) == 0 {
		return err // nothing has come
	}
	for i, p := range reads {
		switch {
		case i < at:
			p.have = got[i]
		case i == at: // after it, what was there may still be so
			last := got[i][len(got[i])-1].Key
			p.have = append(got[i], p.have[after(p.have, last):]...)
		}
	}
	lists := make([][]store.Record, len(r.parts))
	for i, p := range r.parts {
		lists[i] = p.have
	}
	r.have, r.parts = slices.Concat(lists...), nil
	return err
}

// after returns how many of the records have no higher key.
func after(list []store.Record, key []byte) int {
	return sort.Search(len(list), func(i int) bool { return bytes.Compare(list[i].Key, key) > 0 })
}

func (p *part) expect() *vaultv1.Expect {
	return &vaultv1.Expect{Range: protoRange(p.Range), Digest: store.DigestOf(p.have)}
}

// doubt finds the parts that are no longer so, which are then read.
func (r *resumed) doubt() error {
	var list []*part
	for i := range r.parts {
		if !r.parts[i].read {
			list = append(list, &r.parts[i])
		}
	}
	probes := 0
	// changed finds them among parts, and returns whether there are any. If that is
	// known, it need not ask.
	var changed func(parts []*part, known bool) (bool, error)
	changed = func(parts []*part, known bool) (bool, error) {
		if len(parts) == 0 {
			return false, nil
		}
		if probes == maxProbes {
			for _, p := range parts {
				p.read = true
			}
			return true, nil
		}
		if !known {
			probes++
			req := &vaultv1.ReadRequest{}
			for _, p := range parts {
				req.Expect = append(req.Expect, p.expect())
			}
			if _, err := r.read(nil, req, true); !errors.Is(err, errStale) {
				return false, err
			}
		}
		if len(parts) == 1 {
			parts[0].read = true
			return true, nil
		}
		half := len(parts) / 2
		first, err := changed(parts[:half], false)
		if err != nil {
			return false, err
		}
		_, err = changed(parts[half:], !first)
		return true, err
	}
	_, err := changed(list, true)
	return err
}

// divide divides all keys into parts, of which those that have records have few,
// so that little is sent again when one of them has changed. What has come
// before has come in the order of keys, so what is missing is where the last
// record is, and in parts that have none.
func divide(have []store.Record) []part {
	if len(have) == 0 {
		return []part{{Range: store.Range{Take: store.All}, read: true}}
	}
	sizes := make([]int, len(have)+1) // of all records before
	for i, rec := range have {
		sizes[i+1] = sizes[i] + len(rec.Key) + len(rec.Value) + overhead
	}
	d := &division{have: have, sizes: sizes, small: max(smallPart, sizes[len(have)]/fewParts)}
	queue := d.split(span{nil, 0, len(have)})
	// The one with the last record first: it is read again.
	for more := true; more && len(queue) > 0; {
		last := queue[len(queue)-1]
		next := d.split(last)
		queue, more = append(queue[:len(queue)-1], next...), len(next) > 0
	}
	for len(queue) > 0 {
		queue = append(queue[1:], d.split(queue[0])...)
	}
	slices.SortFunc(d.parts, func(a, b part) int { return bytes.Compare(a.Key, b.Key) })
	for i := range d.parts {
		p := &d.parts[i]
		p.read = len(p.have) == 0 || &p.have[len(p.have)-1] == &have[len(have)-1]
	}
	return d.parts
}

// span are the records whose keys start with prefix, by their numbers.
type span struct {
	prefix   []byte
	from, to int
}

type division struct {
	have  []store.Record
	sizes []int
	small int // in bytes
	parts []part
	keys  int // of parts, in bytes
}

// split divides a span where its keys begin to differ, if that is worth while. It
// returns the spans below, and makes parts of the ranges beside them. A span that
// is not divided is a part.
func (d *division) split(s span) []span {
	first, last := d.have[s.from].Key, d.have[s.to-1].Key
	n := len(s.prefix)
	for n < len(first) && n < len(last) && first[n] == last[n] {
		n++
	}
	count := 257 * (n + 1 - len(s.prefix))
	whole := s.to-s.from < 2 || d.sizes[s.to]-d.sizes[s.from] <= d.small ||
		len(d.parts)+count > maxParts || d.keys+count*(n+1) > maxPartKeys
	if whole {
		d.add(store.Range{Key: s.prefix, Take: store.All}, s.from, s.to)
		return nil
	}
	var below []span
	for at := len(s.prefix); at <= n; at++ {
		path := first[:at]
		if at > 0 {
			to := s.from
			if len(first) == at {
				to++
			}
			d.add(store.Range{Key: path, Take: store.One}, s.from, to)
			s.from = to
		}
		for b := range 256 {
			if at == 0 && b == 0 || at < n && b == int(first[at]) {
				continue // the server's own; what the next round divides
			}
			key := append(bytes.Clone(path), byte(b))
			to := s.from
			if at == n {
				to += sort.Search(s.to-s.from, func(i int) bool { return !bytes.HasPrefix(d.have[s.from+i].Key, key) })
			}
			if to == s.from {
				d.add(store.Range{Key: key, Take: store.All}, to, to)
			} else {
				below = append(below, span{key, s.from, to})
			}
			s.from = to
		}
	}
	return below
}

func (d *division) add(r store.Range, from, to int) {
	d.parts = append(d.parts, part{Range: r, have: d.have[from:to:to]})
	d.keys += len(r.Key)
}
