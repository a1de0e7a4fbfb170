package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// operatorService is the service Operator.
type operatorService struct{ *Server }

func idString(id store.AccountID) string { return hex.EncodeToString(id[:]) }

func accountOf(id []byte) (store.AccountID, error) {
	if len(id) != len(store.AccountID{}) {
		return store.AccountID{}, invalid("an account's id of %d bytes, not %d", len(id), len(store.AccountID{}))
	}
	return store.AccountID(id), nil
}

func (s operatorService) CreateAccount(ctx context.Context, req *connect.Request[vaultv1.CreateAccountRequest]) (*connect.Response[vaultv1.CreateAccountResponse], error) {
	a := store.Account{Name: req.Msg.GetName(), Created: time.Now().UTC().Truncate(time.Second)}
	if err := checkName(a.Name); err != nil {
		return nil, err
	}
	_, _ = rand.Read(a.ID[:]) // it does not fail: crypto/rand
	if err := s.accounts.Create(ctx, a); err != nil {
		return nil, s.storageError(ctx, err)
	}
	s.log.Info("made an account", "account", idString(a.ID))
	return connect.NewResponse(&vaultv1.CreateAccountResponse{Account: aboutAccount(a)}), nil
}

func aboutAccount(a store.Account) *vaultv1.Account {
	return &vaultv1.Account{Id: a.ID[:], Name: a.Name, CreatedUnix: a.Created.Unix()}
}

func (s operatorService) ListAccounts(ctx context.Context, _ *connect.Request[vaultv1.ListAccountsRequest]) (*connect.Response[vaultv1.ListAccountsResponse], error) {
	list, err := s.accounts.List(ctx)
	if err != nil {
		return nil, s.storageError(ctx, err)
	}
	resp := &vaultv1.ListAccountsResponse{}
	for _, a := range list {
		resp.Accounts = append(resp.Accounts, aboutAccount(a))
	}
	return connect.NewResponse(resp), nil
}

func (s operatorService) CreateAPIKey(ctx context.Context, req *connect.Request[vaultv1.CreateAPIKeyRequest]) (*connect.Response[vaultv1.CreateAPIKeyResponse], error) {
	account, err := accountOf(req.Msg.GetAccount())
	if err != nil {
		return nil, err
	}
	return respond(s.createAPIKey(ctx, account, callOf(ctx).grant, req.Msg))
}

func (s operatorService) ListAPIKeys(ctx context.Context, req *connect.Request[vaultv1.ListAPIKeysRequest]) (*connect.Response[vaultv1.ListAPIKeysResponse], error) {
	account, err := accountOf(req.Msg.GetAccount())
	if err != nil {
		return nil, err
	}
	return respond(s.listAPIKeys(ctx, account, callOf(ctx).grant))
}

func (s operatorService) RevokeAPIKey(ctx context.Context, req *connect.Request[vaultv1.RevokeAPIKeyRequest]) (*connect.Response[vaultv1.RevokeAPIKeyResponse], error) {
	account, err := accountOf(req.Msg.GetAccount())
	if err != nil {
		return nil, err
	}
	return respond(s.revokeAPIKey(ctx, account, callOf(ctx).grant, req.Msg))
}
