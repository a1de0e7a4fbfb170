package server

import (
	"bytes"
	"fmt"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// The kinds of record that scopes tell apart, and where an id lies in the records
// of apps and envs: docs/FORMAT.md. To the server everything else is opaque.
const (
	kindAccount = 'A' // A
	kindApp     = 'a' // a, slug
	kindEnv     = 'e' // e, app id, slug
	kindKey     = 'k' // k, fingerprint, number
	kindData    = 'd' // d, app id, env id, …
	kindValue   = 'v' // v, app id, env id, …

	idSize          = 16
	fingerprintSize = 8
	headSize        = 1 + 1 + 4 + idSize // version, kind, length of the id, id
)

// grant is what an API key may do: read, write or all, in the whole account, in
// one app or in one env of it.
type grant struct {
	scope    vaultv1.Scope
	app, env string // slugs; "" is all of them
}

func grantOf(k *vaultv1.APIKey) grant { return grant{k.GetScope(), k.GetApp(), k.GetEnv()} }

func (g grant) String() string {
	switch {
	case g.app == "":
		return "the whole account"
	case g.env == "":
		return "app " + g.app
	}
	return "env " + g.env + " of app " + g.app
}

func (g grant) allows(p permission) bool {
	switch p {
	case permOpen:
		return true
	case permRead:
		return g.scope >= vaultv1.Scope_SCOPE_READ && g.scope <= vaultv1.Scope_SCOPE_ADMIN
	case permWrite:
		return g.scope == vaultv1.Scope_SCOPE_WRITE || g.scope == vaultv1.Scope_SCOPE_ADMIN
	case permAdmin:
		return g.scope == vaultv1.Scope_SCOPE_ADMIN
	}
	return false
}

// covers reports whether an API key of grant o reaches nowhere that one of g does
// not.
func (g grant) covers(o grant) bool {
	return (g.app == "" || g.app == o.app) && (g.env == "" || g.env == o.env)
}

// reach is a grant in one snapshot: slugs are what people restrict API keys to,
// and ids are what the keys of records have.
type reach struct {
	grant
	app []byte // id of the app; nil if it is not there
	env []byte // id of the env; nil if it is not there
	// envKey and envHead are of the env's record: its key, and what of it may not
	// change.
	envKey, envHead []byte
}

// in looks up where the grant reaches.
func (g grant) in(r store.Reader) (reach, error) {
	at := reach{grant: g}
	if g.app == "" {
		return at, nil
	}
	rec, err := r.Get(append([]byte{kindApp}, g.app...))
	if err != nil {
		return at, err
	}
	at.app = recordID(kindApp, rec)
	if g.env == "" || at.app == nil {
		return at, nil
	}
	at.envKey = append(append([]byte{kindEnv}, at.app...), g.env...)
	if rec, err = r.Get(at.envKey); err != nil {
		return at, err
	}
	if at.env = recordID(kindEnv, rec); at.env != nil {
		at.envHead = bytes.Clone(rec[:headSize])
	}
	return at, nil
}

// recordID returns the id in the record of an app or env, or nil.
func recordID(kind byte, rec []byte) []byte {
	if len(rec) < headSize || !bytes.Equal(rec[:headSize-idSize], []byte{1, kind, 0, 0, 0, idSize}) {
		return nil
	}
	return bytes.Clone(rec[headSize-idSize : headSize])
}

// owns reports whether a key of kind d or v, or a prefix of such, lies in the app
// or env.
func (at *reach) owns(key []byte) bool {
	id := at.app
	if at.grant.env != "" {
		if at.env == nil {
			return false
		}
		id = append(bytes.Clone(at.app), at.env...)
	}
	return at.app != nil && len(key) > 0 && bytes.HasPrefix(key[1:], id)
}

// mayRead reports whether all that the range could ever take is in reach. The
// range is one of rangeOf.
func (at *reach) mayRead(r store.Range) bool {
	if at.grant.app == "" {
		return true
	}
	if len(r.Key) == 0 {
		return false
	}
	switch r.Key[0] {
	case kindAccount:
		return r.Take == store.One && len(r.Key) == 1
	case kindApp:
		return r.Take == store.One && string(r.Key[1:]) == at.grant.app
	case kindKey:
		return len(r.Key) >= 1+fingerprintSize
	case kindEnv:
		if at.grant.env != "" {
			return r.Take == store.One && at.envKey != nil && bytes.Equal(r.Key, at.envKey)
		}
		return at.owns(r.Key)
	case kindData, kindValue:
		return at.owns(r.Key)
	}
	return false
}

// mayWrite reports whether the op is in reach, for a scope that may commit.
func (at *reach) mayWrite(op store.Op) bool {
	kind := op.Key[0]
	if at.grant.app == "" {
		admins := kind == kindKey || kind == kindAccount && len(op.Key) == 1
		return !admins || at.grant.scope == vaultv1.Scope_SCOPE_ADMIN
	}
	switch kind {
	case kindEnv:
		if at.grant.env != "" {
			// The id in the env's record says what this API key reaches: who could
			// write another, or take the record away and make it anew, could choose.
			return at.env != nil && bytes.Equal(op.Key, at.envKey) && bytes.HasPrefix(op.Value, at.envHead)
		}
		return at.owns(op.Key) && len(op.Key) > 1+idSize
	case kindData, kindValue:
		return at.owns(op.Key)
	}
	return false
}

// rangeOf refuses a range that is not sound, or is of the server's own records.
func rangeOf(r *vaultv1.Range) (store.Range, error) {
	out := store.Range{Key: r.GetKey()}
	switch r.GetTake() {
	case vaultv1.Take_TAKE_ONE:
		out.Take = store.One
	case vaultv1.Take_TAKE_ALL:
		out.Take = store.All
	case vaultv1.Take_TAKE_LAST:
		out.Take = store.Last
	default:
		return out, invalid("a range takes one, all or last")
	}
	return out, checkKey(out.Key, out.Take != store.One)
}

func checkKey(key []byte, mayBeEmpty bool) error {
	switch {
	case len(key) > store.MaxKey:
		return invalid("a record's key of %d bytes, the bound is %d", len(key), store.MaxKey)
	case len(key) == 0 && !mayBeEmpty:
		return invalid("a record's key of no bytes")
	case private(key):
		return invalid("records with keys that begin with a zero byte are the server's own")
	}
	return nil
}

func scopeName(s vaultv1.Scope) string {
	switch s {
	case vaultv1.Scope_SCOPE_READ:
		return "read"
	case vaultv1.Scope_SCOPE_WRITE:
		return "write"
	case vaultv1.Scope_SCOPE_ADMIN:
		return "admin"
	}
	return fmt.Sprintf("number %d", s)
}
