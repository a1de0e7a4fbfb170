package remote

import (
	"context"
	"crypto/rand"
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// commit writes the batch if what was read is still so. When it cannot know
// whether the server has done it, it says the same again with the same id, at
// which the server does it once.
func (s *Store) commit(ctx context.Context, expects []*vaultv1.Expect, b store.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	id := make([]byte, 16)
	rand.Read(id)
	sent := false // so far that the server may have done it
	err := s.call(ctx, func(c *call) error {
		stream, err := s.rpc.Commit(c)
		if err != nil {
			return err
		}
		err = sendCommit(c, stream, id, expects, b)
		// On EOF the reason is in the reply.
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		sent = sent || err == nil
		_, err = stream.CloseAndRecv()
		return err
	})
	if sent && errors.Is(err, store.ErrUnavailable) {
		return hint.Errorf("look whether it was, and do it again if not", "%w; it is not known whether the change was written", err)
	}
	return err
}

// sendCommit sends what a commit consists of, in messages of bounded size.
func sendCommit(c *call, stream grpc.ClientStreamingClient[vaultv1.CommitRequest, vaultv1.CommitResponse], id []byte, expects []*vaultv1.Expect, b store.Batch) error {
	m, size := &vaultv1.CommitRequest{Id: id}, 0
	send := func() error {
		err := stream.Send(m)
		c.sent(size)
		m, size = &vaultv1.CommitRequest{}, 0
		return err
	}
	room := func(n int) error {
		if size > 0 && size+n > maxRequest {
			if err := send(); err != nil {
				return err
			}
		}
		size += n
		return nil
	}
	for _, e := range expects {
		if err := room(len(e.Range.Key) + overhead); err != nil {
			return err
		}
		m.Expect = append(m.Expect, e)
	}
	for _, op := range b {
		if err := room(len(op.Key) + len(op.Value) + overhead); err != nil {
			return err
		}
		m.Ops = append(m.Ops, &vaultv1.Op{Key: op.Key, Value: op.Value, Delete: op.Value == nil})
	}
	m.End, m.Count = true, uint64(len(b))
	return send()
}
