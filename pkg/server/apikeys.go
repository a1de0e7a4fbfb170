package server

import (
	"cmp"
	"context"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

const (
	// maxAPIKeys bounds an account's API keys. When there are more, the ones that
	// have been dead for longest are forgotten.
	maxAPIKeys = 1000
	// maxName bounds names of API keys and accounts, in bytes.
	maxName = 256
	// maxTime is the end of the year 9999, in Unix seconds.
	maxTime = 253402300799
)

// createAPIKey makes an API key that reaches nowhere that by does not.
func (s *Server) createAPIKey(ctx context.Context, account store.AccountID, by grant, req *vaultv1.CreateAPIKeyRequest) (*vaultv1.CreateAPIKeyResponse, error) {
	now := time.Now()
	about, err := apiKeyOf(req, now)
	if err != nil {
		return nil, err
	}
	if !by.covers(grantOf(about)) {
		return nil, denied("the API key is for %s: it makes only API keys for that", by)
	}
	token := apikey.New(account)
	defer token.Wipe()
	key := &apiKey{token.Hash(), about}
	key.Id = token.ID()
	value, err := key.encode()
	if err != nil {
		return nil, s.storageError(ctx, err)
	}
	err = s.accounts.Store(account).Update(ctx, func(r store.Reader) (store.Batch, error) {
		keys, err := readAPIKeys(r)
		if err != nil {
			return nil, err
		}
		b, err := roomForAPIKey(keys, about, now)
		b.Put(keyOf(kindAPIKey, key.GetId()), value)
		return b, err
	})
	if err != nil {
		return nil, s.storageError(ctx, err)
	}
	s.keys.changed(account)
	s.log.Info("made an API key", "account", idString(account), "api_key", key.GetId(), "scope", scopeName(key.GetScope()))
	text := token.Text()
	defer clear(text)
	return &vaultv1.CreateAPIKeyResponse{ApiKey: about, Token: string(text)}, nil
}

// apiKeyOf checks what a new API key is to be.
func apiKeyOf(req *vaultv1.CreateAPIKeyRequest, now time.Time) (*vaultv1.APIKey, error) {
	if err := checkName(req.GetName()); err != nil {
		return nil, err
	}
	switch {
	case req.GetScope() < vaultv1.Scope_SCOPE_READ || req.GetScope() > vaultv1.Scope_SCOPE_ADMIN:
		return nil, invalid("an API key has the scope read, write or admin")
	case req.GetApp() != "" && !names.ValidSlug(req.GetApp()), req.GetEnv() != "" && !names.ValidSlug(req.GetEnv()):
		return nil, invalid("an app or env of the API key is not a slug")
	case req.GetEnv() != "" && req.GetApp() == "":
		return nil, invalid("an API key for an env is for an app too")
	case req.GetExpiresUnix() != 0 && req.GetExpiresUnix() <= now.Unix(), req.GetExpiresUnix() > maxTime:
		return nil, invalid("an API key expires in the future")
	case req.GetMachineKey() != "" && !validFingerprint(req.GetMachineKey()):
		return nil, invalid("a machine key's fingerprint is 16 hexadecimal digits")
	}
	return &vaultv1.APIKey{
		Name: req.GetName(), Scope: req.GetScope(), App: req.GetApp(), Env: req.GetEnv(),
		CreatedUnix: now.Unix(), ExpiresUnix: req.GetExpiresUnix(), MachineKey: req.GetMachineKey(),
	}, nil
}

func validFingerprint(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == fingerprintSize && hex.EncodeToString(b) == s
}

// checkName refuses a name that cannot be printed on a line.
func checkName(name string) error {
	switch {
	case name == "":
		return invalid("a name is missing")
	case len(name) > maxName || !utf8.ValidString(name) || name != strings.TrimSpace(name) ||
		strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return invalid("a name is at most %d bytes of characters that can be printed, without spaces around it", maxName)
	}
	return nil
}

// roomForAPIKey returns what is deleted to make room for one more. Names are
// unique among the keys that are alive, so that a person knows which to revoke;
// those that go with a machine key are told apart, and revoked, by that.
func roomForAPIKey(keys map[string]*apiKey, about *vaultv1.APIKey, now time.Time) (b store.Batch, err error) {
	var dead []*apiKey
	for _, k := range keys {
		if k.state(now) != nil {
			dead = append(dead, k)
		} else if k.GetName() == about.GetName() && k.GetMachineKey() == "" && about.GetMachineKey() == "" {
			return nil, fail(connect.CodeAlreadyExists, "", "an API key of that name exists: revoke it, or take another name")
		}
	}
	slices.SortFunc(dead, func(x, y *apiKey) int {
		return cmp.Or(cmp.Compare(endOf(x), endOf(y)), strings.Compare(x.GetId(), y.GetId()))
	})
	for n := len(keys); n >= maxAPIKeys; n-- {
		if len(dead) == 0 {
			return nil, tooLarge("the account has %d API keys: revoke some", n)
		}
		b.Delete(keyOf(kindAPIKey, dead[0].GetId()))
		b.Delete(keyOf(kindUsed, dead[0].GetId()))
		dead = dead[1:]
	}
	return b, nil
}

// endOf is when a dead key died.
func endOf(k *apiKey) int64 {
	if k.GetRevokedUnix() != 0 {
		return k.GetRevokedUnix()
	}
	return k.GetExpiresUnix()
}

// about describes an API key as it is now.
func (s *Server) about(account store.AccountID, k *apiKey) *vaultv1.APIKey {
	out := &vaultv1.APIKey{
		Id: k.GetId(), Name: k.GetName(), Scope: k.GetScope(), App: k.GetApp(), Env: k.GetEnv(),
		CreatedUnix: k.GetCreatedUnix(), ExpiresUnix: k.GetExpiresUnix(), RevokedUnix: k.GetRevokedUnix(),
		MachineKey: k.GetMachineKey(), LastUsedUnix: max(k.GetLastUsedUnix(), s.usage.of(account, k.GetId())),
	}
	return out
}

// listAPIKeys returns the API keys that reach nowhere that by does not.
func (s *Server) listAPIKeys(ctx context.Context, account store.AccountID, by grant) (*vaultv1.ListAPIKeysResponse, error) {
	resp := &vaultv1.ListAPIKeysResponse{}
	err := s.accounts.Store(account).View(ctx, func(r store.Reader) error {
		keys, err := readAPIKeys(r)
		resp.ApiKeys = nil
		for _, k := range keys {
			if by.covers(grantOf(k.APIKey)) {
				resp.ApiKeys = append(resp.ApiKeys, s.about(account, k))
			}
		}
		return err
	})
	sortAPIKeys(resp.ApiKeys)
	return resp, s.storageError(ctx, err)
}

func sortAPIKeys(list []*vaultv1.APIKey) {
	slices.SortFunc(list, func(x, y *vaultv1.APIKey) int {
		return cmp.Or(cmp.Compare(x.GetCreatedUnix(), y.GetCreatedUnix()), strings.Compare(x.GetId(), y.GetId()))
	})
}

// revokeAPIKey revokes the API key with an id, or those that go with a machine
// key. Those that reach further than by are not there. One that was revoked
// before stays as it was.
func (s *Server) revokeAPIKey(ctx context.Context, account store.AccountID, by grant, req *vaultv1.RevokeAPIKeyRequest) (*vaultv1.RevokeAPIKeyResponse, error) {
	switch {
	case (req.GetId() == "") == (req.GetMachineKey() == ""):
		return nil, invalid("either the API key's id or a machine key")
	case req.GetId() != "" && !apikey.ValidID(req.GetId()):
		return nil, invalid("an API key's id is 16 hexadecimal digits")
	case req.GetMachineKey() != "" && !validFingerprint(req.GetMachineKey()):
		return nil, invalid("a machine key's fingerprint is 16 hexadecimal digits")
	}
	var revoked []*apiKey
	err := s.accounts.Store(account).Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		revoked = nil
		keys, err := readAPIKeys(r)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k.GetId() != req.GetId() && (req.GetMachineKey() == "" || k.GetMachineKey() != req.GetMachineKey()) || !by.covers(grantOf(k.APIKey)) {
				continue
			}
			if revoked = append(revoked, k); k.GetRevokedUnix() != 0 {
				continue
			}
			k.RevokedUnix = time.Now().Unix()
			value, err := k.encode()
			if err != nil {
				return nil, err
			}
			b.Put(keyOf(kindAPIKey, k.GetId()), value)
		}
		return b, nil
	})
	if err != nil {
		return nil, s.storageError(ctx, err)
	}
	s.keys.changed(account)
	if len(revoked) == 0 {
		return nil, fail(connect.CodeNotFound, "", "no such API key")
	}
	resp := &vaultv1.RevokeAPIKeyResponse{}
	for _, k := range revoked {
		s.log.Info("revoked an API key", "account", idString(account), "api_key", k.GetId())
		resp.Revoked = append(resp.Revoked, s.about(account, k))
	}
	sortAPIKeys(resp.Revoked)
	return resp, nil
}

// errAccount refuses an account in a call that is about that of its API key.
func errAccount(account []byte) error {
	if len(account) > 0 {
		return invalid("the account is that of the API key")
	}
	return nil
}

func (s vaultService) CreateAPIKey(ctx context.Context, req *connect.Request[vaultv1.CreateAPIKeyRequest]) (*connect.Response[vaultv1.CreateAPIKeyResponse], error) {
	c := callOf(ctx)
	if err := errAccount(req.Msg.GetAccount()); err != nil {
		return nil, err
	}
	return respond(s.createAPIKey(ctx, c.account, c.grant, req.Msg))
}

func (s vaultService) ListAPIKeys(ctx context.Context, req *connect.Request[vaultv1.ListAPIKeysRequest]) (*connect.Response[vaultv1.ListAPIKeysResponse], error) {
	c := callOf(ctx)
	if err := errAccount(req.Msg.GetAccount()); err != nil {
		return nil, err
	}
	return respond(s.listAPIKeys(ctx, c.account, c.grant))
}

func (s vaultService) RevokeAPIKey(ctx context.Context, req *connect.Request[vaultv1.RevokeAPIKeyRequest]) (*connect.Response[vaultv1.RevokeAPIKeyResponse], error) {
	c := callOf(ctx)
	if err := errAccount(req.Msg.GetAccount()); err != nil {
		return nil, err
	}
	return respond(s.revokeAPIKey(ctx, c.account, c.grant, req.Msg))
}

func respond[T any](msg *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(msg), nil
}
