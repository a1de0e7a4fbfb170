package remote_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// relay is a server that passes on calls to a real one, and counts them. What a
// test's server does otherwise, it does by embedding a relay.
type relay struct {
	vaultv1.UnimplementedVaultServer
	to vaultv1.VaultClient

	mu    sync.Mutex
	calls map[string]int
}

func newRelay(t testing.TB, s *served) *relay {
	t.Helper()
	conn, err := grpc.NewClient(s.address(), grpc.WithTransportCredentials(credentials.NewTLS(clientTLS())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &relay{to: vaultv1.NewVaultClient(conn), calls: map[string]int{}}
}

// on returns the context of the call that is passed on.
func (r *relay) on(ctx context.Context, method string) context.Context {
	r.mu.Lock()
	r.calls[method]++
	r.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", md.Get("authorization")[0]))
}

// trips returns how many calls there were since it was asked the last time.
func (r *relay) trips() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = map[string]int{}
	return calls
}

func (r *relay) Read(ctx context.Context, m *vaultv1.ReadRequest) (*vaultv1.ReadResponse, error) {
	return r.to.Read(r.on(ctx, "Read"), m)
}

func (r *relay) Scan(m *vaultv1.ReadRequest, stream grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	from, err := r.to.Scan(r.on(stream.Context(), "Scan"), m)
	if err != nil {
		return err
	}
	for {
		m, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = stream.Send(m)
		}
		if err != nil {
			return err
		}
	}
}

func (r *relay) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	to, err := r.to.Commit(r.on(stream.Context(), "Commit"))
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = to.Send(m)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	m, err := to.CloseAndRecv()
	if err != nil {
		return err
	}
	return stream.SendAndClose(m)
}

func (r *relay) WhoAmI(ctx context.Context, m *vaultv1.WhoAmIRequest) (*vaultv1.WhoAmIResponse, error) {
	return r.to.WhoAmI(r.on(ctx, "WhoAmI"), m)
}

func (r *relay) CreateAPIKey(ctx context.Context, m *vaultv1.CreateAPIKeyRequest) (*vaultv1.CreateAPIKeyResponse, error) {
	return r.to.CreateAPIKey(r.on(ctx, "CreateAPIKey"), m)
}

func (r *relay) ListAPIKeys(ctx context.Context, m *vaultv1.ListAPIKeysRequest) (*vaultv1.ListAPIKeysResponse, error) {
	return r.to.ListAPIKeys(r.on(ctx, "ListAPIKeys"), m)
}

func (r *relay) RevokeAPIKey(ctx context.Context, m *vaultv1.RevokeAPIKeyRequest) (*vaultv1.RevokeAPIKeyResponse, error) {
	return r.to.RevokeAPIKey(r.on(ctx, "RevokeAPIKey"), m)
}
