package server

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/store"
)

// keyring knows the API keys of accounts, for limits.trust at a time: that is
// how long a key may go on to read after another server has revoked it. A commit
// looks again in the storage, in the step that writes.
//
// It knows all keys of an account, not those that were used. So a wrong key for
// a known account costs nothing, and a right one is told from it however many
// wrong ones come from the same address (which may be that of many, behind NAT).
// The limit by address is for what is left: keys for accounts that are not known
// here, of which each would cost a look at the storage. It follows that an
// address which is over its limit can at that time make no first use, on this
// server, of an account; all others go on.
type keyring struct {
	accounts store.Accounts
	trust    time.Duration
	failed   *failures
	loads    singleflight.Group
	// strangers has one thing for each look after an account that is not known.
	strangers chan struct{}

	mu      sync.Mutex
	known   *simplelru.LRU[store.AccountID, *accountKeys]
	count   int    // of keys in known
	changes uint64 // of keys, on this server
}

type accountKeys struct {
	byID map[string]*apiKey
	read time.Time // the zero time: look again
}

const (
	// maxKnown and maxKnownKeys bound what the keyring remembers: accounts, and
	// API keys of some 400 bytes.
	maxKnown     = 1 << 16
	maxKnownKeys = 1 << 18
	// loadTimeout bounds a look at the storage, which may be for many calls.
	loadTimeout = 10 * time.Second
	// maxStrangers bounds looks after accounts that are not known: those who send
	// such keys wait for each other, and others do not wait for them.
	maxStrangers = 16
)

func newKeyring(accounts store.Accounts, l limits) *keyring {
	k := &keyring{accounts: accounts, trust: l.trust, failed: newFailures(l.failed), strangers: make(chan struct{}, maxStrangers)}
	k.known, _ = simplelru.NewLRU(maxKnown, func(_ store.AccountID, keys *accountKeys) {
		k.count -= len(keys.byID)
	}) // the size is positive
	return k
}

var errUnknownAccount = errors.New("unknown account")

func unauthenticated(reason, text string) *connect.Error {
	err := fail(connect.CodeUnauthenticated, reason, "%s", text)
	err.Meta().Set("WWW-Authenticate", "Bearer")
	return err
}

// verify returns the account and the API key of a token that came from an
// address, and wipes it. A stranger learns only that it is not right.
func (k *keyring) verify(ctx context.Context, text []byte, from netip.Prefix) (store.AccountID, *apiKey, Refusal, error) {
	if len(text) == 0 {
		return store.AccountID{}, nil, RefusedKey, unauthenticated(ReasonUnknownKey, "there is no API key: send Authorization: Bearer ov_live_…")
	}
	token, err := apikey.Parse(text)
	if err != nil {
		return store.AccountID{}, nil, RefusedKey, k.wrong(from)
	}
	clear(text)
	defer token.Wipe()
	account, hash := store.AccountID(token.Account()), token.Hash()
	keys, err := k.of(ctx, account, from)
	if errors.Is(err, errUnknownAccount) {
		return account, nil, RefusedKey, k.wrong(from)
	}
	if err != nil {
		return account, nil, RefusedStorage, err
	}
	key := keys[hash.ID()]
	if key == nil || !key.hash.Equal(hash) {
		return account, nil, RefusedKey, k.wrong(from)
	}
	if err := key.state(time.Now()); err != nil {
		return account, nil, RefusedDeadKey, err
	}
	return account, key, "", nil
}

// wrong counts a wrong key, and returns the error of it.
func (k *keyring) wrong(from netip.Prefix) error {
	if k.failed.over(from) {
		return later(connect.CodeResourceExhausted, ReasonFailedKeys, failedEvery, "too many wrong API keys from this address")
	}
	k.failed.add(from)
	return unauthenticated(ReasonUnknownKey, "the API key is not known")
}

// of returns an account's keys. The error is errUnknownAccount if it has none,
// or if it may have and it is not worth a look.
func (k *keyring) of(ctx context.Context, account store.AccountID, from netip.Prefix) (map[string]*apiKey, error) {
	k.mu.Lock()
	keys, known := k.known.Get(account)
	fresh := known && time.Since(keys.read) < k.trust
	k.mu.Unlock()
	if fresh {
		return keys.byID, nil
	}
	if !known {
		if k.failed.over(from) {
			return nil, errUnknownAccount
		}
		select {
		case k.strangers <- struct{}{}:
			defer func() { <-k.strangers }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	// A call that gives up leaves the look to those that wait for it too.
	looked := k.loads.DoChan(string(account[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		return k.load(ctx, account)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case got := <-looked:
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(map[string]*apiKey), nil
	}
}

func (k *keyring) load(ctx context.Context, account store.AccountID) (byID map[string]*apiKey, err error) {
	k.mu.Lock()
	changes := k.changes
	k.mu.Unlock()
	read := time.Now()
	err = k.accounts.Store(account).View(ctx, func(r store.Reader) (err error) {
		byID, err = readAPIKeys(r)
		return err
	})
	if errors.Is(err, store.ErrNoAccount) || err == nil && len(byID) == 0 {
		err = errUnknownAccount
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case errors.Is(err, errUnknownAccount):
		k.known.Remove(account)
	case err == nil && k.changes == changes:
		k.known.Remove(account)
		k.known.Add(account, &accountKeys{byID, read})
		for k.count += len(byID); k.count > maxKnownKeys && k.known.Len() > 1; {
			k.known.RemoveOldest()
		}
	}
	return byID, err
}

// changed says that the account's keys are others now. Whoever calls verify
// after it returns is judged by the new ones.
func (k *keyring) changed(account store.AccountID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes++
	if keys, ok := k.known.Peek(account); ok {
		keys.read = time.Time{}
	}
	k.loads.Forget(string(account[:]))
}
