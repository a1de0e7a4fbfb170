package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

const (
	commitIDSize = 16
	// opSize is what an op costs besides its key and value, in bytes.
	opSize = 96
)

// commit is one that has come completely.
type commit struct {
	id     []byte
	expect []expect
	ops    store.Batch
	digest []byte // of ops
}

// Commit reads the whole of a commit, and then writes all of it or nothing.
func (s vaultService) Commit(ctx context.Context, stream *connect.ClientStream[vaultv1.CommitRequest]) (*connect.Response[vaultv1.CommitResponse], error) {
	c := callOf(ctx)
	m, err := s.receive(c, stream)
	if err != nil {
		c.work(0)
		return nil, err
	}
	deadline, _ := ctx.Deadline() // guard has set one
	c.work(time.Until(deadline))
	if err := m.write(ctx, c, s.accounts.Store(c.account)); err != nil {
		return nil, s.storageError(ctx, err)
	}
	s.commits.add(c.account)
	c.work(0)
	return connect.NewResponse(&vaultv1.CommitResponse{}), nil
}

// receive reads a commit's messages.
func (s vaultService) receive(c *call, stream *connect.ClientStream[vaultv1.CommitRequest]) (*commit, error) {
	m := &commit{}
	h := sha256.New()
	c.await(s.limits.part)
	for ended := false; stream.Receive(); c.await(s.limits.part) {
		msg := stream.Msg()
		switch {
		case ended:
			return nil, invalid("something comes after the end of the commit")
		case m.id == nil && len(msg.GetId()) != commitIDSize:
			return nil, invalid("the commit's id has %d bytes, not %d", len(msg.GetId()), commitIDSize)
		case m.id == nil:
			m.id = msg.GetId()
		case len(msg.GetId()) > 0:
			return nil, invalid("the commit's id comes twice")
		}
		if len(m.expect)+len(msg.GetExpect()) > maxExpects {
			return nil, tooLarge("more than %d ranges", maxExpects)
		}
		if !c.memory.take(int64(opSize * (len(msg.GetOps()) + len(msg.GetExpect())))) {
			return nil, busy("too much at a time")
		}
		expects, err := expectsOf(msg.GetExpect())
		if err != nil {
			return nil, err
		}
		m.expect = append(m.expect, expects...)
		for _, o := range msg.GetOps() {
			op, err := opOf(o)
			if err != nil {
				return nil, err
			}
			hashOp(h, op)
			m.ops = append(m.ops, op)
		}
		if ended = msg.GetEnd(); ended && msg.GetCount() != uint64(len(m.ops)) {
			return nil, invalid("%d ops came of %d", len(m.ops), msg.GetCount())
		}
		if ended {
			m.digest = h.Sum(nil)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if m.digest == nil {
		return nil, invalid("the commit has no end")
	}
	return m, nil
}

func opOf(o *vaultv1.Op) (op store.Op, err error) {
	if err := checkKey(o.GetKey(), false); err != nil {
		return op, err
	}
	n := len(o.GetValue())
	switch {
	case o.GetDelete() && n > 0:
		return op, invalid("a deletion with a value")
	case !o.GetDelete() && (n == 0 || n > store.MaxValue):
		return op, invalid("a record of %d bytes, the bounds are 1 and %d", n, store.MaxValue)
	case o.GetDelete():
		return store.Op{Key: o.GetKey()}, nil
	}
	return store.Op{Key: o.GetKey(), Value: o.GetValue()}, nil
}

// hashOp is injective: a deletion is a value of no bytes, which nothing else is.
func hashOp(h io.Writer, op store.Op) {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(op.Key)))
	b = append(b, op.Key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(op.Value)))
	_, _ = h.Write(b) // a hash's does not fail
	_, _ = h.Write(op.Value)
}

const (
	// maxVerifyAlone bounds what a commit compares while other writers wait, in
	// bytes. What is more is compared before, and holds if nothing was committed
	// since. At the last try maxVerifyLast is the bound, a tenth of a second: those
	// who write little all the time do not keep out who writes much.
	maxVerifyAlone = 4 << 20
	maxVerifyLast  = 64 << 20
	// maxTries bounds how often it is tried.
	maxTries = 4
)

var errMuch = errors.New("much to compare")

func (m *commit) write(ctx context.Context, c *call, account store.Store) error {
	verified := uint64(0) // as of which commit what is expected is so; 0: none
	for try := range maxTries {
		most := int64(maxVerifyAlone)
		if try == maxTries-1 {
			most = maxVerifyLast
		}
		err := account.Update(ctx, func(r store.Reader) (store.Batch, error) {
			return m.batch(ctx, c, r, verified, most)
		})
		if !errors.Is(err, errMuch) {
			return err
		}
		if try == maxTries-1 {
			break
		}
		err = account.View(ctx, func(r store.Reader) (err error) {
			if _, err := c.reach(r, nil, m.expect); err != nil {
				return err
			}
			if verified, err = commits(r); err != nil {
				return err
			}
			l := &look{ctx: ctx, r: r, memory: c.memory}
			defer l.done()
			return l.verify(m.expect, maxVerify)
		})
		if err != nil {
			return err
		}
	}
	return changed()
}

// commits returns how many there were, and one.
func commits(r store.Reader) (uint64, error) {
	value, err := r.Get(commitCount)
	if err != nil || len(value) != 8 {
		return 1, err
	}
	return 1 + binary.BigEndian.Uint64(value), nil
}

// batch is what the commit writes, given what is there, or why it may not: it
// compares at most so many bytes, unless that was done as of the last commit.
func (m *commit) batch(ctx context.Context, c *call, r store.Reader, verified uint64, most int64) (store.Batch, error) {
	now := time.Now()
	before := commitRanges(now, m.id)
	own := keyOf(kindAPIKey, c.key.GetId())
	if err := r.Fetch(append(before, store.Range{Key: own}, store.Range{Key: commitCount})...); err != nil {
		return nil, err
	}
	// Another server may have revoked the API key a moment ago.
	value, err := r.Get(own)
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, unauthenticated(ReasonUnknownKey, "the API key is not known")
	}
	key, err := decodeAPIKey(own, value)
	if err != nil {
		return nil, err
	}
	if err := key.state(now); err != nil {
		return nil, err
	}
	at, err := c.reach(r, nil, m.expect)
	if err != nil {
		return nil, err
	}
	for _, op := range m.ops {
		if !at.mayWrite(op) {
			return nil, denied("the API key has the scope %s for %s, and may not write this", scopeName(c.grant.scope), c.grant)
		}
	}
	for _, rng := range before {
		digest, err := r.Get(rng.Key)
		switch {
		case err != nil:
			return nil, err
		case digest == nil:
		case bytes.Equal(digest, m.digest):
			// It was written before, and maybe not yet to a standby: whoever was to
			// wait for that may have been cut off. A write that is acknowledged says
			// that those before it are there too.
			return store.Batch{{Key: rng.Key, Value: m.digest}}, nil
		default:
			return nil, invalid("the id is of another commit")
		}
	}
	count, err := commits(r)
	if err != nil {
		return nil, err
	}
	if count != verified {
		l := &look{ctx: ctx, r: r, memory: c.memory}
		defer l.done()
		if err := l.verify(m.expect, most); err != nil {
			return nil, err
		}
	}
	if len(m.ops) == 0 {
		return nil, nil
	}
	b := make(store.Batch, len(m.ops), len(m.ops)+2)
	copy(b, m.ops)
	b.Put(commitKey(dayOf(now), m.id), m.digest)
	b.Put(commitCount, binary.BigEndian.AppendUint64(nil, count))
	return b, nil
}
