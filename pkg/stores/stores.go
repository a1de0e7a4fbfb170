// Package stores opens a vault by its address: a file, or a server's URL. With a
// server it puts together what belongs to it: the login, the connection, the
// cache for when the server is away, and the memory of what it has shown before.
package stores

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/version"
)

// DefaultMaxStale is for how long a server's last answers are used while it is
// away, unless Options say otherwise.
const DefaultMaxStale = 24 * time.Hour

// Options say how a vault on a server is used. They mean nothing for a file.
type Options struct {
	// MachineKey is the file of the machine key that will open the vault, if one
	// will: its login is used in place of the account's own.
	MachineKey string
	// MaxStale is for how long what the server has said is used while it is away:
	// 0 is DefaultMaxStale, less than 0 is never.
	MaxStale time.Duration
	// AcceptRollback has the vault forget what it has seen, once: a server that
	// shows an older state is believed.
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

// Where a vault's address was found, besides the places that config knows.
const (
	FromMachineKey config.Source = "machine key"  // in the login beside it
	FromServers    config.Source = "servers.toml" // what ov auth login made the default
)

// Locate says which vault is meant: the flag --vault if it is not "", else the
// one that the machine key in a file was made for, if it has a login, else what
// config.toml says, else the default of servers.toml, else the account's own
// file. A machine key without a login is one for a file: it does not start to
// mean a server's vault because somebody has logged in.
func Locate(flag, machineKey string) (config.Choice, error) {
	if IsURL(flag) {
		server, err := login.Canonical(flag)
		return config.Choice{Value: server, Source: config.FromFlag}, err
	}
	if flag == "" && machineKey != "" && login.HasCompanion(machineKey) {
		l, err := login.ReadCompanion(machineKey)
		if err != nil {
			return config.Choice{}, err
		}
		l.Wipe()
		return config.Choice{Value: l.URL, Source: FromMachineKey, File: login.Companion(machineKey)}, nil
	}
	c, err := config.Vault(flag)
	if err == nil && IsURL(c.Value) {
		c.Value, err = login.Canonical(c.Value)
	}
	if err != nil || c.Source != config.FromDefault || machineKey != "" {
		return c, err
	}
	s, err := login.Read()
	if err != nil {
		return config.Choice{}, err
	}
	s.Wipe()
	if s.Default != "" {
		return config.Choice{Value: s.Default, Source: FromServers, File: s.File}, nil
	}
	return c, nil
}

// Open returns the vault at an address, locked, and its store. It does not
// connect: that a file or a server is not there shows when it is used.
func Open(address string, o Options) (*vault.Vault, store.Store, error) {
	if !IsURL(address) {
		st := bolt.New(address)
		return vault.New(st), st, nil
	}
	r, err := Server(address, o)
	if err != nil {
		return nil, nil, err
	}
	return vault.New(r), r, nil
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
	l, err := find(address, o.MachineKey)
	if err != nil {
		return nil, err
	}
	defer l.Wipe()
	return Dial(l, o)
}

// Dial is Server for a login that is not written down, or not yet.
func Dial(l login.Login, o Options) (*remote.Store, error) {
	options := remote.Options{URL: l.URL, CA: l.CA, Token: l.APIKey, Wait: o.Wait, UserAgent: "ov/" + version.String()}
	if o.Tell != nil {
		var once sync.Once
		options.Retrying = func(err error) {
			once.Do(func() { o.Tell(fmt.Sprintf("waiting for %s: %v", l.URL, err)) })
		}
	}
	return remote.New(options)
}

// find returns the login for a server: the machine key's own, or the account's.
func find(address, machineKey string) (login.Login, error) {
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
