package remote

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

const (
	// maxRequest bounds a message to the server, in bytes, when it has more than
	// one record.
	maxRequest = 1 << 20
	// maxInline bounds the digests that every read carries with it. Beyond that
	// they are sent once, at the end.
	maxInline = 16 << 10
	// overhead is a generous bound on what frames a key and a digest, or a key and
	// a value, in a message.
	overhead = 64
)

// snapshot is what was read, and what a server has to know to say whether it is
// still so.
type snapshot struct {
	*Store
	ctx     context.Context
	memo    *store.Memo
	ranges  []store.Range     // that were read
	expects []*vaultv1.Expect // one for each
	vouched int               // how many of these the last call has confirmed, or read
	weight  int               // of the expects in a message, in bytes
	size    int               // of all records, in bytes
	err     error             // of a read that failed, after which nothing counts
}

func (s *Store) snapshot(ctx context.Context) *snapshot {
	sn := &snapshot{Store: s, ctx: ctx}
	sn.memo = store.NewMemo(func(ranges []store.Range) ([][]store.Record, error) {
		if sn.err != nil {
			return nil, sn.err
		}
		var all [][]store.Record
		for len(ranges) > 0 {
			n, size := 0, 0
			for n < len(ranges) && (n == 0 || size+len(ranges[n].Key)+overhead <= maxRequest) {
				size += len(ranges[n].Key) + overhead
				n++
			}
			got, err := sn.fetch(ranges[:n])
			if err != nil {
				if !errors.Is(err, store.ErrDenied) { // which a reader may live with
					sn.err = err
				}
				return nil, err
			}
			all, ranges = append(all, got...), ranges[n:]
		}
		return all, nil
	})
	return sn
}

// fetch reads ranges, as they are while all that was read before is still so.
func (sn *snapshot) fetch(ranges []store.Range) ([][]store.Record, error) {
	req := &vaultv1.ReadRequest{Ranges: make([]*vaultv1.Range, len(ranges))}
	if sn.weight <= maxInline {
		req.Expect = sn.expects
	}
	streamed := false
	for i, r := range ranges {
		if err := r.Check(nil); err != nil {
			return nil, err
		}
		req.Ranges[i] = protoRange(r)
		streamed = streamed || r.Take == store.All
	}
	got, err := sn.read(ranges, req, streamed)
	if err != nil {
		return nil, err
	}
	if err := sn.accept(ranges, req.Ranges, got); err != nil {
		return nil, err
	}
	if len(req.Expect) > 0 || len(sn.expects) == len(ranges) {
		sn.vouched = len(sn.expects)
	}
	return got, nil
}

// accept takes note of what was read, if it can be what was asked for.
func (sn *snapshot) accept(ranges []store.Range, asked []*vaultv1.Range, got [][]store.Record) error {
	for i, r := range ranges {
		if err := r.Check(got[i]); err != nil {
			return sn.malformed("%w", err)
		}
		sn.expects = append(sn.expects, &vaultv1.Expect{Range: asked[i], Digest: store.DigestOf(got[i])})
		sn.ranges = append(sn.ranges, r)
		sn.weight += len(r.Key) + overhead
	}
	return nil
}

func protoRange(r store.Range) *vaultv1.Range {
	return &vaultv1.Range{Key: r.Key, Take: vaultv1.Take(r.Take)}
}

// read asks for the ranges in one message, or for a stream of them.
func (sn *snapshot) read(ranges []store.Range, req *vaultv1.ReadRequest, streamed bool) (got [][]store.Record, err error) {
	before := sn.size
	err = sn.call(sn.ctx, func(c *call) error {
		if !streamed {
			r, err := sn.rpc.Read(c, req)
			if err == nil {
				sn.size = before
				got, err = sn.records(r, len(ranges))
				return err
			}
			if status.Code(err) != codes.ResourceExhausted {
				return err
			}
			streamed = true
		}
		sn.size = before
		got, err = sn.scan(c, req, nil)
		return err
	})
	return got, err
}

// records takes the records out of a reply.
func (sn *snapshot) records(r *vaultv1.ReadResponse, n int) ([][]store.Record, error) {
	if len(r.Results) != n {
		return nil, sn.malformed("%d results for %d ranges", len(r.Results), n)
	}
	got := make([][]store.Record, n)
	for i, list := range r.Results {
		var err error
		if got[i], err = sn.add(nil, list.GetRecords()); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// add appends records, within the bound on all of the snapshot.
func (sn *snapshot) add(to []store.Record, list []*vaultv1.Record) ([]store.Record, error) {
	for _, rec := range list {
		sn.size += len(rec.GetKey()) + len(rec.GetValue()) + overhead
		if sn.size > sn.bound {
			return nil, hint.Errorf("do it in parts", "%s: %w: more than %d MiB of records", sn.url, ErrTooLarge, sn.bound>>20)
		}
		to = append(to, store.Record{Key: rec.GetKey(), Value: rec.GetValue()})
	}
	return to, nil
}

// scan reads the records of a stream. It takes no message that brings nothing,
// or the stream might never end. came, if not nil, is called for each message,
// with the range's number, its records so far, and how many were there before.
// What has come is returned with an error too.
func (sn *snapshot) scan(c *call, req *vaultv1.ReadRequest, came func(i int, list []store.Record, n int) error) ([][]store.Record, error) {
	c.slow(7 * sn.stall) // it reads all before it sends anything
	got := make([][]store.Record, len(req.Ranges))
	stream, err := sn.rpc.Scan(c, req)
	if err != nil {
		return got, err
	}
	at := 0
	for ended := false; ; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !ended {
				return got, sn.malformed("a scan without its end")
			}
			return got, nil
		}
		if err != nil {
			return got, err
		}
		i := int(m.Range)
		if ended || !m.End && len(m.Records) == 0 || len(m.Records) > 0 && (i < at || i >= len(got)) {
			return got, sn.malformed("a scan out of order")
		}
		ended = m.End
		before := sn.size
		if len(m.Records) > 0 {
			at = i
			n := len(got[i])
			if got[i], err = sn.add(got[i], m.Records); err == nil && came != nil {
				err = came(i, got[i], n)
			}
			if err != nil {
				return got, err
			}
		}
		c.received(sn.size - before)
	}
}

// settled is the end of a snapshot that nothing is written after: it must have
// been one, whatever the function that has read it says.
func (sn *snapshot) settled(err error) error {
	if sn.err == nil {
		sn.err = sn.vouch()
	}
	if sn.err != nil {
		return sn.err
	}
	return err
}

// vouch has the server confirm what the last call has not.
//
// That may take several calls. What the server confirms in one of them was so
// all the time since it was read, hence at the moment of the last read: unless a
// record that was not there came and went, which no two readers need agree on.
func (sn *snapshot) vouch() error {
	if sn.vouched == len(sn.expects) {
		return nil
	}
	return chunks(sn.expects, func(list []*vaultv1.Expect) error {
		_, err := sn.read(nil, &vaultv1.ReadRequest{Expect: list}, false)
		return err
	})
}

// chunks calls fn with as many expects at a time as fit into a message.
func chunks(list []*vaultv1.Expect, fn func([]*vaultv1.Expect) error) error {
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && size <= maxRequest-store.MaxKey-overhead {
			size += len(list[n].Range.Key) + overhead
			n++
		}
		if err := fn(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}
