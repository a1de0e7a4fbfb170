package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

const (
	// maxAnswer bounds the answer to Read, in bytes of records and 16 for each:
	// gRPC's clients take messages of 4 MiB.
	maxAnswer = 4<<20 - 256<<10
	// maxPart bounds a message of Scan, in the same, unless one record is larger.
	maxPart = 256 << 10
	// maxRanges bounds the ranges of a call, and what it expects.
	maxRanges = 32 << 10
	// maxExpects bounds what a commit expects.
	maxExpects = 1 << 20
	// maxVerify bounds the records that one call has compared with what it
	// expects, in bytes: one may expect the same of many ranges, or of large ones.
	maxVerify = 1 << 30
	// recordSize is what a record costs besides its key and value, in bytes.
	recordSize = 16
	// snapshotTimeout bounds how long Scan reads from the storage.
	snapshotTimeout = 5 * time.Minute
)

// vaultService is the service Vault.
type vaultService struct{ *Server }

func (s vaultService) WhoAmI(ctx context.Context, _ *connect.Request[vaultv1.WhoAmIRequest]) (*connect.Response[vaultv1.WhoAmIResponse], error) {
	c := callOf(ctx)
	return connect.NewResponse(&vaultv1.WhoAmIResponse{
		Account: c.account[:], ApiKey: s.about(c.account, c.key), Version: s.version,
	}), nil
}

// reading is a request to read, checked as far as it can be without a snapshot.
type reading struct {
	ranges []store.Range
	expect []expect
}

// expect is what a client has read before.
type expect struct {
	store.Range
	digest []byte
}

func readingOf(req *vaultv1.ReadRequest) (q reading, err error) {
	if len(req.GetRanges()) > maxRanges || len(req.GetExpect()) > maxRanges {
		return q, tooLarge("more than %d ranges", maxRanges)
	}
	for _, r := range req.GetRanges() {
		rng, err := rangeOf(r)
		if err != nil {
			return q, err
		}
		q.ranges = append(q.ranges, rng)
	}
	q.expect, err = expectsOf(req.GetExpect())
	return q, err
}

func expectsOf(list []*vaultv1.Expect) (out []expect, err error) {
	for _, e := range list {
		r, err := rangeOf(e.GetRange())
		if err != nil {
			return nil, err
		}
		if len(e.GetDigest()) != sha256.Size {
			return nil, invalid("a digest of %d bytes, not %d", len(e.GetDigest()), sha256.Size)
		}
		out = append(out, expect{r, e.GetDigest()})
	}
	return out, nil
}

func tooLarge(format string, args ...any) error {
	return fail(connect.CodeResourceExhausted, ReasonTooLarge, format, args...)
}

// read calls fn for each record of each range, in one snapshot in which all that
// was expected is so. It may start over: then it calls begin again.
func (s vaultService) read(ctx context.Context, q reading, begin func(), fn func(i int, key, value []byte) error) error {
	c := callOf(ctx)
	err := s.accounts.Store(c.account).View(ctx, func(r store.Reader) error {
		if _, err := c.reach(r, q.ranges, q.expect); err != nil {
			return err
		}
		begin()
		l := &look{ctx: ctx, r: r, memory: c.memory}
		defer l.done()
		if err := l.verify(q.expect, maxVerify); err != nil {
			return err
		}
		return l.each(q.ranges, func(i int) error {
			return l.read(q.ranges[i], func(key, value []byte) error { return fn(i, key, value) })
		})
	})
	return s.storageError(ctx, err)
}

// reach returns where the call's API key reaches, and refuses ranges that lie
// beyond.
func (c *call) reach(r store.Reader, ranges []store.Range, expects []expect) (reach, error) {
	at, err := c.grant.in(r)
	if err != nil {
		return at, err
	}
	for _, rng := range allOf(ranges, expects) {
		if !at.mayRead(rng) {
			return at, denied("the API key is for %s, and this is not of it", c.grant)
		}
	}
	return at, nil
}

func allOf(ranges []store.Range, expects []expect) []store.Range {
	list := make([]store.Range, 0, len(ranges)+len(expects))
	for _, e := range expects {
		list = append(list, e.Range)
	}
	return append(list, ranges...)
}

// look reads ranges in one snapshot.
type look struct {
	ctx    context.Context
	r      store.Reader
	memory *room
	kept   int64
}

const (
	// maxFetch bounds what is fetched ahead, in ranges: each may bring a record of
	// store.MaxValue before anybody has seen how large it is.
	maxFetch = 64
	// maxKept bounds what a snapshot keeps, in bytes: storage that is far away
	// remembers what was read one by one.
	maxKept = 128 << 20
)

// each calls fn for each of the ranges, when what is in it is near.
func (l *look) each(ranges []store.Range, fn func(i int) error) error {
	for i := range ranges {
		if i%maxFetch == 0 {
			if err := l.r.Fetch(ranges[i:min(i+maxFetch, len(ranges))]...); err != nil {
				return err
			}
		}
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// read calls fn for each record in the range that is not the server's own.
func (l *look) read(rng store.Range, fn func(key, value []byte) error) (err error) {
	if rng.Take == store.All {
		n := 0
		return l.r.Scan(rng.Key, func(key, value []byte) error {
			if n++; n%1024 == 0 && l.ctx.Err() != nil {
				return l.ctx.Err()
			}
			if private(key) {
				return nil
			}
			return fn(key, value)
		})
	}
	key := rng.Key
	var value []byte
	if rng.Take == store.One {
		value, err = l.r.Get(rng.Key)
	} else {
		// The server's own keys come before all others: if they are the last, there
		// are no others.
		key, value, err = l.r.Last(rng.Key)
	}
	if err != nil || value == nil || private(key) {
		return err
	}
	n := int64(len(key) + len(value) + recordSize)
	if l.kept+n > maxKept {
		return tooLarge("more than %d bytes of single records", maxKept)
	}
	if !l.memory.take(n) {
		return busy("too much at a time")
	}
	l.kept += n
	return fn(key, value)
}

func (l *look) done() {
	l.memory.give(l.kept)
	l.kept = 0
}

// verify fails with ABORTED if something is not as it was when the client has
// read it, and with errMuch if there are more than so many bytes to compare.
func (l *look) verify(expects []expect, most int64) error {
	return l.each(allOf(nil, expects), func(i int) error {
		var d store.Digest
		err := l.read(expects[i].Range, func(key, value []byte) error {
			if most -= int64(len(key) + len(value) + recordSize); most < 0 {
				return errMuch
			}
			d.Add(key, value)
			return nil
		})
		if err != nil {
			return err
		}
		if !bytes.Equal(d.Sum(), expects[i].digest) {
			return changed()
		}
		return nil
	})
}

func changed() error {
	return fail(connect.CodeAborted, ReasonChanged, "what was read is no longer so")
}

func (s vaultService) Read(ctx context.Context, req *connect.Request[vaultv1.ReadRequest]) (*connect.Response[vaultv1.ReadResponse], error) {
	c := callOf(ctx)
	q, err := readingOf(req.Msg)
	if err != nil {
		return nil, err
	}
	var resp *vaultv1.ReadResponse
	size := 0
	begin := func() {
		resp, size = &vaultv1.ReadResponse{Results: make([]*vaultv1.Records, len(q.ranges))}, 0
		for i := range resp.Results {
			resp.Results[i] = &vaultv1.Records{}
		}
	}
	err = s.read(ctx, q, begin, func(i int, key, value []byte) error {
		n := len(key) + len(value) + recordSize
		if size += n; size > maxAnswer {
			return tooLarge("more than %d bytes of records: use Scan", maxAnswer)
		}
		if !c.memory.take(int64(n)) {
			return busy("too much at a time")
		}
		resp.Results[i].Records = append(resp.Results[i].Records, record(key, value))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// record is a copy: what a Reader returns does not outlive its snapshot.
func record(key, value []byte) *vaultv1.Record {
	return &vaultv1.Record{Key: bytes.Clone(key), Value: bytes.Clone(value)}
}

// Scan reads all before it sends the first byte, to memory or to a file: no
// client, however slow, keeps a snapshot open, which in PostgreSQL takes a
// connection out of the pool and in bbolt keeps pages from being used again.
func (s vaultService) Scan(ctx context.Context, req *connect.Request[vaultv1.ReadRequest], stream *connect.ServerStream[vaultv1.ScanResponse]) error {
	c := callOf(ctx)
	q, err := readingOf(req.Msg)
	if err != nil {
		return err
	}
	c.work(snapshotTimeout)
	sp := &spool{dir: s.spoolDir, memory: c.memory, files: c.spool}
	defer sp.reset()
	var part *vaultv1.ScanResponse
	size := 0
	begin := func() {
		part, size = &vaultv1.ScanResponse{}, 0
		sp.reset()
	}
	flush := func() error {
		if len(part.GetRecords()) == 0 {
			return nil
		}
		err := sp.add(part, size)
		part, size = &vaultv1.ScanResponse{}, 0
		return err
	}
	reading, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	err = s.read(reading, q, begin, func(i int, key, value []byte) error {
		n := len(key) + len(value) + recordSize
		if size+n > maxPart || part.GetRange() != uint32(i) {
			if err := flush(); err != nil {
				return err
			}
		}
		part.Range = uint32(i)
		part.Records, size = append(part.Records, record(key, value)), size+n
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return s.storageError(ctx, err)
	}
	send := func(m *vaultv1.ScanResponse) error {
		c.work(0)
		return stream.Send(m)
	}
	if err := sp.each(send); err != nil {
		var spoiled *spoolError
		if errors.As(err, &spoiled) {
			return s.storageError(ctx, err)
		}
		return err
	}
	return send(&vaultv1.ScanResponse{End: true})
}
