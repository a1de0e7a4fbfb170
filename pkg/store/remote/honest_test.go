package remote_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// honest is the API over a store.Accounts, for API keys that are `ov_live_` and
// the account's id.
type honest struct {
	vaultv1.UnimplementedVaultServer
	accounts store.Accounts

	mu      sync.Mutex
	done    map[string]bool // ids of commits
	apiKeys []*vaultv1.APIKey
	calls   map[string]int
}

func newHonest(a store.Accounts) *honest {
	return &honest{accounts: a, done: map[string]bool{}, calls: map[string]int{}}
}

func (h *honest) count(method string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[method]++
}

// trips returns how many calls there were since it was asked the last time.
func (h *honest) trips() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	calls := h.calls
	h.calls = map[string]int{}
	return calls
}

func token(id store.AccountID) []byte { return fmt.Appendf(nil, "ov_live_%x", id) }

func (h *honest) account(ctx context.Context) (id store.AccountID, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, a := range md.Get("authorization") {
		if text, ok := strings.CutPrefix(a, "Bearer ov_live_"); ok {
			if n, err := hex.Decode(id[:], []byte(text)); err == nil && n == len(id) {
				return id, nil
			}
		}
	}
	return id, status.Error(codes.Unauthenticated, "unknown API key")
}

func (h *honest) store(ctx context.Context) (store.Store, error) {
	id, err := h.account(ctx)
	return h.accounts.Store(id), err
}

// read returns the records of a range, but for the server's own.
func read(r store.Reader, p *vaultv1.Range) (list []store.Record, err error) {
	switch p.GetTake() {
	case vaultv1.Take_TAKE_ONE:
		v, err := r.Get(p.Key)
		if v != nil {
			list = append(list, store.Record{Key: bytes.Clone(p.Key), Value: bytes.Clone(v)})
		}
		return list, err
	case vaultv1.Take_TAKE_LAST:
		k, v, err := r.Last(p.Key)
		if k != nil && k[0] != 0 {
			list = append(list, store.Record{Key: bytes.Clone(k), Value: bytes.Clone(v)})
		}
		return list, err
	}
	err = r.Scan(p.Key, func(k, v []byte) error {
		if k[0] != 0 {
			list = append(list, store.Record{Key: bytes.Clone(k), Value: bytes.Clone(v)})
		}
		return nil
	})
	return list, err
}

var errChanged = status.Error(codes.Aborted, "changed in the meantime")

func verify(r store.Reader, expect []*vaultv1.Expect) error {
	for _, e := range expect {
		list, err := read(r, e.Range)
		if err != nil {
			return err
		}
		if !bytes.Equal(store.DigestOf(list), e.Digest) {
			return errChanged
		}
	}
	return nil
}

func (h *honest) ranges(ctx context.Context, req *vaultv1.ReadRequest) (all [][]store.Record, err error) {
	st, err := h.store(ctx)
	if err != nil {
		return nil, err
	}
	err = st.View(ctx, func(r store.Reader) error {
		all = nil
		if err := verify(r, req.Expect); err != nil {
			return err
		}
		for _, p := range req.Ranges {
			list, err := read(r, p)
			if err != nil {
				return err
			}
			all = append(all, list)
		}
		return nil
	})
	return all, err
}

func (h *honest) Read(ctx context.Context, req *vaultv1.ReadRequest) (*vaultv1.ReadResponse, error) {
	h.count("Read")
	all, err := h.ranges(ctx, req)
	if err != nil {
		return nil, err
	}
	resp, size := &vaultv1.ReadResponse{}, 0
	for _, list := range all {
		records := &vaultv1.Records{}
		for _, rec := range list {
			size += len(rec.Key) + len(rec.Value)
			records.Records = append(records.Records, &vaultv1.Record{Key: rec.Key, Value: rec.Value})
		}
		resp.Results = append(resp.Results, records)
	}
	if size > 1<<20 {
		return nil, status.Error(codes.ResourceExhausted, "too large for one message")
	}
	return resp, nil
}

func (h *honest) Scan(req *vaultv1.ReadRequest, stream grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	h.count("Scan")
	all, err := h.ranges(stream.Context(), req)
	if err != nil {
		return err
	}
	for i, list := range all {
		m, size := &vaultv1.ScanResponse{Range: uint32(i)}, 0
		for _, rec := range list {
			m.Records = append(m.Records, &vaultv1.Record{Key: rec.Key, Value: rec.Value})
			if size += len(rec.Key) + len(rec.Value); size > 256<<10 {
				if err := stream.Send(m); err != nil {
					return err
				}
				m, size = &vaultv1.ScanResponse{Range: uint32(i)}, 0
			}
		}
		if len(m.Records) > 0 {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
	return stream.Send(&vaultv1.ScanResponse{End: true})
}

func (h *honest) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	h.count("Commit")
	st, err := h.store(stream.Context())
	if err != nil {
		return err
	}
	var id string
	var expect []*vaultv1.Expect
	var b store.Batch
	for end := false; !end; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.InvalidArgument, "a commit without its end")
		}
		if err != nil {
			return err
		}
		id += string(m.Id)
		expect = append(expect, m.Expect...)
		for _, op := range m.Ops {
			if op.Delete {
				op.Value = nil
			}
			b = append(b, store.Op{Key: op.Key, Value: op.Value})
		}
		if end = m.End; end && m.Count != uint64(len(b)) {
			return status.Error(codes.InvalidArgument, "operations were lost")
		}
	}
	if len(id) != 16 {
		return status.Error(codes.InvalidArgument, "an id of another length")
	}
	again := false
	err = st.Update(stream.Context(), func(r store.Reader) (store.Batch, error) {
		h.mu.Lock()
		again = h.done[id]
		h.mu.Unlock()
		if again {
			return nil, nil
		}
		return b, verify(r, expect)
	})
	if err != nil {
		return err
	}
	if again {
		h.count("again")
	}
	h.mu.Lock()
	h.done[id] = true
	h.mu.Unlock()
	return stream.SendAndClose(&vaultv1.CommitResponse{})
}

func (h *honest) WhoAmI(ctx context.Context, _ *vaultv1.WhoAmIRequest) (*vaultv1.WhoAmIResponse, error) {
	h.count("WhoAmI")
	id, err := h.account(ctx)
	return &vaultv1.WhoAmIResponse{Account: id[:], Version: "test", ApiKey: &vaultv1.APIKey{
		Id: "0011223344556677", Name: "test", Scope: vaultv1.Scope_SCOPE_ADMIN, CreatedUnix: 1,
	}}, err
}

func (h *honest) CreateAPIKey(_ context.Context, r *vaultv1.CreateAPIKeyRequest) (*vaultv1.CreateAPIKeyResponse, error) {
	h.count("CreateAPIKey")
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &vaultv1.APIKey{
		Id: fmt.Sprintf("%016x", len(h.apiKeys)), Name: r.Name, Scope: r.Scope, App: r.App, Env: r.Env,
		CreatedUnix: time.Now().Unix(), ExpiresUnix: r.ExpiresUnix, MachineKey: r.MachineKey,
	}
	h.apiKeys = append(h.apiKeys, k)
	return &vaultv1.CreateAPIKeyResponse{ApiKey: k, Token: "ov_live_" + strings.Repeat("a", 84)}, nil
}

func (h *honest) ListAPIKeys(context.Context, *vaultv1.ListAPIKeysRequest) (*vaultv1.ListAPIKeysResponse, error) {
	h.count("ListAPIKeys")
	h.mu.Lock()
	defer h.mu.Unlock()
	return &vaultv1.ListAPIKeysResponse{ApiKeys: slices.Clone(h.apiKeys)}, nil
}

func (h *honest) RevokeAPIKey(_ context.Context, r *vaultv1.RevokeAPIKeyRequest) (*vaultv1.RevokeAPIKeyResponse, error) {
	h.count("RevokeAPIKey")
	h.mu.Lock()
	defer h.mu.Unlock()
	resp := &vaultv1.RevokeAPIKeyResponse{}
	for _, k := range h.apiKeys {
		if r.Id != "" && k.Id == r.Id || r.MachineKey != "" && k.MachineKey == r.MachineKey {
			k.RevokedUnix = time.Now().Unix()
			resp.Revoked = append(resp.Revoked, k)
		}
	}
	if len(resp.Revoked) == 0 {
		return nil, status.Error(codes.NotFound, "no such API key")
	}
	return resp, nil
}
