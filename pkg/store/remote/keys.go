package remote

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// Scope says what an API key may do.
type Scope string

// The scopes, each of which includes the ones before it.
const (
	ScopeRead  Scope = "read"
	ScopeWrite Scope = "write"
	ScopeAdmin Scope = "admin" // and API keys, the account's record, machine keys
)

var protoScopes = map[Scope]vaultv1.Scope{
	ScopeRead: vaultv1.Scope_SCOPE_READ, ScopeWrite: vaultv1.Scope_SCOPE_WRITE, ScopeAdmin: vaultv1.Scope_SCOPE_ADMIN,
}

// ParseScope returns the scope of that name.
func ParseScope(name string) (Scope, error) {
	if _, ok := protoScopes[Scope(name)]; !ok {
		return "", fmt.Errorf("scope %.80q is none of read, write, admin", name)
	}
	return Scope(name), nil
}

// APIKey describes an API key. What the server says in it is for people: it is
// printable, and true only if the server is honest.
type APIKey struct {
	ID         string     `json:"id"` // 16 hexadecimal digits
	Name       string     `json:"name"`
	Scope      Scope      `json:"scope"`
	App        string     `json:"app,omitempty"` // if not empty, it is for this app alone
	Env        string     `json:"env,omitempty"` // if not empty, for this env of it
	Created    time.Time  `json:"created"`
	Expires    *time.Time `json:"expires,omitempty"`
	LastUsed   *time.Time `json:"last_used,omitempty"`
	Revoked    *time.Time `json:"revoked,omitempty"`
	MachineKey string     `json:"machine_key,omitempty"` // fingerprint of the machine key that it goes with
}

// Identity says who one is to the server.
type Identity struct {
	Account store.AccountID `json:"-"`
	APIKey  APIKey          `json:"api_key"`
	Version string          `json:"version"` // of the server
}

// WhoAmI asks whose API key it is that the store uses.
func (s *Store) WhoAmI(ctx context.Context) (id Identity, err error) {
	err = s.call(ctx, func(c *call) error {
		r, err := s.rpc.WhoAmI(c, &vaultv1.WhoAmIRequest{})
		if err != nil {
			return err
		}
		id, err = s.identity(r)
		return err
	})
	return id, err
}

func (s *Store) identity(r *vaultv1.WhoAmIResponse) (id Identity, err error) {
	if len(r.Account) != len(id.Account) {
		return id, s.malformed("an account id of %d bytes", len(r.Account))
	}
	id.Account, id.Version = store.AccountID(r.Account), printable(r.Version)
	id.APIKey, err = s.apiKey(r.ApiKey)
	return id, err
}

// NewAPIKey says what an API key is to be like. See APIKey.
type NewAPIKey struct {
	Name       string
	Scope      Scope
	App, Env   string
	Expires    time.Time // zero: never
	MachineKey string
}

// CreateAPIKey makes an API key. The token is returned here and never again; the
// caller wipes it.
//
// It is not tried again once the server may have done it: that would leave a key
// behind that nobody has.
func (s *Store) CreateAPIKey(ctx context.Context, n NewAPIKey) (key APIKey, token []byte, err error) {
	req := &vaultv1.CreateAPIKeyRequest{Name: n.Name, Scope: protoScopes[n.Scope], App: n.App, Env: n.Env, MachineKey: n.MachineKey}
	if !n.Expires.IsZero() {
		req.ExpiresUnix = n.Expires.Unix()
	}
	if _, err := s.WhoAmI(ctx); err != nil { // this is tried again
		return key, nil, err
	}
	err = s.once(ctx, time.Now(), func(c *call) error {
		r, err := s.rpc.CreateAPIKey(c, req)
		if err != nil {
			return err
		}
		if key, err = s.apiKey(r.ApiKey); err != nil {
			return err
		}
		if token = []byte(r.Token); !validToken(token) {
			return s.malformed("a new API key that is none: %d bytes", len(token))
		}
		if key.Name != n.Name || key.Scope != n.Scope || key.App != n.App || key.Env != n.Env || key.MachineKey != n.MachineKey ||
			r.ApiKey.ExpiresUnix != req.ExpiresUnix || key.Revoked != nil {
			return s.malformed("a new API key that is not what was asked for")
		}
		return nil
	})
	if err != nil {
		return APIKey{}, nil, err
	}
	return key, token, nil
}

// APIKeys lists the account's API keys, oldest first, revoked ones too.
func (s *Store) APIKeys(ctx context.Context) (list []APIKey, err error) {
	err = s.call(ctx, func(c *call) error {
		r, err := s.rpc.ListAPIKeys(c, &vaultv1.ListAPIKeysRequest{})
		if err != nil {
			return err
		}
		list, err = s.apiKeys(r.ApiKeys)
		return err
	})
	return list, err
}

// RevokeAPIKey revokes the API key with that id, and returns it. It fails with
// ErrNotFound. Revoking again changes nothing.
func (s *Store) RevokeAPIKey(ctx context.Context, id string) ([]APIKey, error) {
	return s.revoke(ctx, &vaultv1.RevokeAPIKeyRequest{Id: id})
}

// RevokeMachineKey revokes all API keys that go with the machine key of that
// fingerprint, in hexadecimal, and returns them.
func (s *Store) RevokeMachineKey(ctx context.Context, fingerprint string) ([]APIKey, error) {
	return s.revoke(ctx, &vaultv1.RevokeAPIKeyRequest{MachineKey: fingerprint})
}

func (s *Store) revoke(ctx context.Context, req *vaultv1.RevokeAPIKeyRequest) (list []APIKey, err error) {
	err = s.call(ctx, func(c *call) error {
		r, err := s.rpc.RevokeAPIKey(c, req)
		if err != nil {
			return err
		}
		revoked, err := s.apiKeys(r.Revoked)
		if err != nil {
			return err
		}
		for _, k := range revoked {
			if k.Revoked == nil || req.Id != "" && k.ID != req.Id || req.MachineKey != "" && k.MachineKey != req.MachineKey {
				return s.malformed("an API key that was not to be revoked, or is not")
			}
		}
		if req.Id != "" && len(revoked) != 1 {
			return s.malformed("%d API keys revoked in place of one", len(revoked))
		}
		list = revoked
		return nil
	})
	return list, err
}

func (s *Store) apiKeys(list []*vaultv1.APIKey) ([]APIKey, error) {
	out := make([]APIKey, len(list))
	for i, k := range list {
		var err error
		if out[i], err = s.apiKey(k); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// apiKey refuses what could be taken for something else, and makes the rest
// printable.
func (s *Store) apiKey(k *vaultv1.APIKey) (APIKey, error) {
	out := APIKey{ID: k.GetId(), Name: printable(k.GetName()), App: k.GetApp(), Env: k.GetEnv(), MachineKey: k.GetMachineKey()}
	for scope, p := range protoScopes {
		if p == k.GetScope() {
			out.Scope = scope
		}
	}
	switch {
	case !isHex(out.ID):
		return out, s.malformed("an API key's id of %d bytes", len(out.ID))
	case out.Scope == "":
		return out, s.malformed("an API key of scope %d", k.GetScope())
	case out.App != "" && !names.ValidSlug(out.App), out.Env != "" && !names.ValidSlug(out.Env), out.Env != "" && out.App == "":
		return out, s.malformed("an API key for what is no app or env")
	case out.MachineKey != "" && !isHex(out.MachineKey):
		return out, s.malformed("an API key for what is no machine key")
	}
	for _, t := range []struct {
		unix int64
		to   **time.Time
	}{{k.CreatedUnix, nil}, {k.ExpiresUnix, &out.Expires}, {k.LastUsedUnix, &out.LastUsed}, {k.RevokedUnix, &out.Revoked}} {
		if t.unix < 0 || t.unix > maxTime {
			return out, s.malformed("an API key of time %d", t.unix)
		}
		at := time.Unix(t.unix, 0).UTC()
		if t.to == nil {
			out.Created = at
		} else if t.unix != 0 {
			*t.to = &at
		}
	}
	return out, nil
}

// maxTime is the end of the year 9999, beyond which RFC 3339 has no times.
const maxTime = 253402300799

// isHex reports whether text is 8 bytes in hexadecimal.
func isHex(text string) bool {
	b, err := hex.DecodeString(text)
	return err == nil && len(b) == 8
}
