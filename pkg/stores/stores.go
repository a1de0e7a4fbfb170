// Package stores opens a vault by its address: a file, or a server's URL. With a
// server it puts together what belongs to it: the login, the connection, the
// cache for when the server is away, and the memory of what it has shown before.
package stores

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/store/cache"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/version"
	"github.com/opaquevault/ov/pkg/witness"
	"github.com/opaquevault/ov/pkg/xdg"
)

// Options say how a vault on a server is used. For a file they mean nothing, but
// for AcceptRollback.
type Options struct {
	// MachineKey is the file of the machine key that will open the vault, if one
	// will: its login is used in place of the account's own.
	MachineKey string
	// MaxStale is for how long what the server has said is used while it is away:
	// 0 is cache.DefaultMaxStale, less than 0 is never.
	MaxStale time.Duration
	// AcceptRollback believes a store that shows an older state than it has before,
	// or an incomplete one: what it shows is what is remembered from then on. It is
	// for files too.
	AcceptRollback bool
	// Wait is how long a server that is away is waited for: 0 is a few seconds,
	// less than 0 tries once.
	Wait time.Duration
	// Tell, if not nil, is given what a person should know, a line without its
	// end. It may be called by many goroutines.
	Tell func(string)
}

// IsURL reports whether an address is a server's and not that of a file.
func IsURL(address string) bool { return login.IsURL(address) }

// Default returns the address of the vault of who names none: the one that the
// machine key in a file was made for, if it has a login; without a machine key,
// the one that ov auth login made the default; else the account's own file. So a
// machine key for a file does not start to mean a server's vault because somebody
// has logged in.
func Default(machineKey string) (string, error) {
	if machineKey != "" {
		if login.HasCompanion(machineKey) {
			l, err := login.ReadCompanion(machineKey)
			l.Wipe()
			return l.URL, err
		}
		return xdg.Vault()
	}
	s, err := login.Read()
	if err != nil {
		return "", err
	}
	s.Wipe()
	if s.Default != "" {
		return s.Default, nil
	}
	return xdg.Vault()
}

// Open returns the vault at an address, locked, and its store. It does not
// connect: that a file or a server is not there shows when it is used.
func Open(address string, o Options) (*vault.Vault, store.Store, error) {
	var options []vault.Option
	if o.AcceptRollback {
		options = append(options, vault.AcceptRollback())
	}
	if !IsURL(address) {
		st := bolt.New(address)
		return vault.New(st, options...), st, nil
	}
	l, err := Login(address, o.MachineKey)
	if err != nil {
		return nil, nil, err
	}
	defer l.Wipe()
	r, err := Dial(l, o)
	if err != nil {
		return nil, nil, err
	}
	seen := witness.Open("", func(err error) {
		if o.Tell != nil {
			o.Tell(err.Error())
		}
	})
	st := &Remote{Store: cached(&account{r, l.URL}, l, o), far: r}
	return vault.New(st, append(options, vault.WithWitness(seen))...), st, nil
}

// cached puts the login's cache before a server. An account without a place for
// one has none.
func cached(far store.Store, l login.Login, o Options) *cache.Store {
	dir, err := xdg.Cache(l.KeyID())
	switch {
	case err != nil, o.MaxStale < 0:
		o.MaxStale = 0 // none
	case o.MaxStale == 0:
		o.MaxStale = cache.DefaultMaxStale
	}
	return cache.New(far, cache.Options{Dir: dir, Server: l.URL, MaxStale: o.MaxStale, Tell: o.Tell})
}

// Forget removes what is cached for a login.
func Forget(l login.Login) error {
	dir, err := xdg.Cache(l.KeyID())
	if err != nil {
		return nil //nolint:nilerr // no place for a cache, so there is none
	}
	return cache.Remove(dir)
}

// Remote is a vault's store on a server, with its cache.
type Remote struct {
	*cache.Store
	far *remote.Store
}

// Keep brings the cache to what the session has read. Call it when that has
// proven good.
func (r *Remote) Keep(ctx context.Context, s *vault.Session) error {
	return r.Refresh(ctx, func(ctx context.Context, app, env string) error {
		_, err := s.Snapshot(ctx, vault.Ref{App: app, Env: env})
		return err
	})
}

// Close ends the connection.
func (r *Remote) Close() error {
	r.Store.Close()
	return r.far.Close()
}

// account tells a server's account that has no vault yet from one that has lost
// a record.
type account struct {
	store.Store
	url string
}

func (a *account) View(ctx context.Context, fn func(store.Reader) error) error {
	return a.Store.View(ctx, func(r store.Reader) error { return fn(reader{r, a.url}) })
}

func (a *account) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	return a.Store.Update(ctx, func(r store.Reader) (store.Batch, error) { return fn(reader{r, a.url}) })
}

type reader struct {
	store.Reader
	url string
}

func (r reader) Get(key []byte) ([]byte, error) {
	value, err := r.Reader.Get(key)
	if err == nil && value == nil && string(key) == "A" { // docs/FORMAT.md: every vault has it
		err = hint.Errorf("make one: ov auth init, or move one there: ov vault push --to "+safefile.Shell(r.url), "%w at %s", store.ErrNoVault, r.url)
	}
	return value, err
}

// Create makes a vault at an address, whose first records are the batch. The
// error is fs.ErrExist if there is one.
func Create(ctx context.Context, address string, o Options, b store.Batch) error {
	if !IsURL(address) {
		return bolt.New(address).Create(ctx, b)
	}
	r, err := Server(address, o)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return r.Create(ctx, b)
}

// Server returns the store on a server by itself, which the caller closes:
// without a cache, for what is about API keys or is to be as it is now.
func Server(address string, o Options) (*remote.Store, error) {
	l, err := Login(address, o.MachineKey)
	if err != nil {
		return nil, err
	}
	defer l.Wipe()
	return Dial(l, o)
}

// Dial is Server for a login that is not written down, or not yet.
func Dial(l login.Login, o Options) (*remote.Store, error) {
	key, err := kek.LockedFrom(bytes.Clone(l.APIKey))
	if err != nil {
		return nil, err
	}
	options := remote.Options{URL: l.URL, CA: l.CA, Token: key.Bytes(), Release: key.Destroy, Wait: o.Wait, UserAgent: "ov/" + version.String()}
	if o.Tell != nil {
		var once sync.Once
		options.Retrying = func(err error) {
			once.Do(func() { o.Tell(fmt.Sprintf("waiting for %s: %v", l.URL, err)) })
		}
	}
	r, err := remote.New(options)
	if err != nil {
		key.Destroy()
	}
	return r, err
}

// Login returns the login for a server: the machine key's own, or the account's.
// The caller wipes it.
func Login(address, machineKey string) (login.Login, error) {
	server, err := login.Canonical(address)
	if err != nil {
		return login.Login{}, err
	}
	if machineKey != "" {
		l, err := login.ReadCompanion(machineKey)
		if err == nil && l.URL == server {
			return l, nil
		}
		l.Wipe()
		if err != nil && !errors.Is(err, login.ErrNone) {
			return login.Login{}, err
		}
	}
	s, err := login.Read()
	if err != nil {
		return login.Login{}, err
	}
	l, err := s.Find(server)
	if err != nil && machineKey != "" {
		err = hint.Errorf("with an API key of its own: ov auth derive-machine-key --force --out "+safefile.Shell(machineKey), "%s: %w", server, login.ErrNone)
	}
	return l, err
}
