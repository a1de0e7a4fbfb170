// Package access opens a vault without asking anybody: through the agent or
// with a machine key.
package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

// Place says where a vault and its agent are; "" is where they are by default.
type Place struct {
	Vault  string `json:"vault,omitempty"`  // file, or URL of a server
	Socket string `json:"socket,omitempty"` // of the agent
	// How a vault on a server is used: see stores.Options.
	MaxStale       time.Duration     `json:"max_stale,omitempty"`
	AcceptRollback bool              `json:"accept_rollback,omitempty"`
	Wait           time.Duration     `json:"wait,omitempty"`
	Tell           func(text string) `json:"-"`
}

// Where a vault's address was found, besides the places that config knows.
const (
	FromMachineKey config.Source = "machine key"  // in the login beside it
	FromServers    config.Source = "servers.toml" // what ov auth login made the default
)

// Locate says which vault is meant: the flag --vault if it is not "", else the
// one that the machine key in a file was made for, if it has a login, else what
// config.toml says, else what stores.Default does.
func Locate(flag, machineKey string) (config.Choice, error) {
	if stores.IsURL(flag) {
		server, err := login.Canonical(flag)
		return config.Choice{Value: server, Source: config.FromFlag}, err
	}
	if flag == "" && machineKey != "" && login.HasCompanion(machineKey) {
		server, err := stores.Default(machineKey)
		return config.Choice{Value: server, Source: FromMachineKey, File: login.Companion(machineKey)}, err
	}
	c, err := config.Vault(flag)
	if err == nil && stores.IsURL(c.Value) {
		c.Value, err = login.Canonical(c.Value)
	}
	if err != nil || c.Source != config.FromDefault || machineKey != "" {
		return c, err
	}
	if c.Value, err = stores.Default(""); err == nil && stores.IsURL(c.Value) {
		c.Source = FromServers
		c.File, err = login.Path()
	}
	return c, err
}

// Opened is a vault, locked, and where it is.
type Opened struct {
	*vault.Vault
	At config.Choice
	// Store is where its records are. As a vault's it is used through Vault alone.
	Store store.Store
}

// Open returns the vault that is meant when it is to be opened with the machine
// key in a file, or otherwise if that is "". The caller closes it.
func (p Place) Open(machineKey string) (*Opened, error) {
	at, err := Locate(p.Vault, machineKey)
	if err != nil {
		return nil, err
	}
	v, st, err := stores.Open(at.Value, p.Options(machineKey))
	if err != nil {
		return nil, err
	}
	return &Opened{v, at, st}, nil
}

// Options are those of the vault's store.
func (p Place) Options(machineKey string) stores.Options {
	return stores.Options{MachineKey: machineKey, MaxStale: p.MaxStale, AcceptRollback: p.AcceptRollback, Wait: p.Wait, Tell: p.Tell}
}

// Close ends the connection to a server.
func (o *Opened) Close() {
	if c, ok := o.Store.(io.Closer); ok {
		_ = c.Close()
	}
}

// Done ends the use of a vault with a session of it: what was read, and has
// proven good, is kept for when the server is away.
func (p Place) Done(ctx context.Context, o *Opened, s *vault.Session) {
	if r, ok := o.Store.(*stores.Remote); ok {
		if err := r.Keep(ctx, s); err != nil && p.Tell != nil {
			p.Tell(err.Error())
		}
	}
	s.Destroy()
	o.Close()
}

// UnlockKey opens the vault in this process with the machine key in a file. The
// caller calls the returned function when it is done.
func (p Place) UnlockKey(ctx context.Context, file string) (*vault.Session, func(), error) {
	o, err := p.Open(file)
	if err != nil {
		return nil, nil, err
	}
	key, err := machinekey.Read(file)
	if err != nil {
		o.Close()
		return nil, nil, err
	}
	s, err := o.UnlockKey(ctx, key)
	if err != nil {
		o.Close()
		return nil, nil, err
	}
	return s, func() { p.Done(ctx, o, s) }, nil
}

// Connect finds the agent and connects to it. The caller closes the client. See
// NoAgent for its errors.
func (p Place) Connect(ctx context.Context) (*agent.Client, error) {
	target, err := peer.Locate(peer.Options{Socket: p.Socket})
	if err != nil {
		return nil, err
	}
	c, err := agent.Connect(ctx, target)
	if err != nil || p.Vault == "" {
		return c, err
	}
	// A vault that was named must be the one that the agent has.
	status, err := c.Status(ctx)
	if err == nil {
		var want config.Choice
		if want, err = Locate(p.Vault, ""); err == nil && !same(status.Vault, want.Value) {
			err = hint.Wrap(&otherVault{target.Socket, status.Vault, want.Value}, "leave --vault out to use the agent's")
		}
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// otherVault says that the agent has another vault than the one that was named.
type otherVault struct{ socket, has, want string }

func (e *otherVault) Error() string {
	return fmt.Sprintf("the agent at %s has the vault %s, not %s", e.socket, e.has, e.want)
}

// NoAgent reports whether Connect found no agent for the vault: then, and only
// then, a command may do without one.
func NoAgent(err error) bool {
	var none *peer.NotRunning
	var other *otherVault
	return errors.As(err, &none) || errors.As(err, &other)
}

// same reports whether two addresses are of one vault.
func same(a, b string) bool {
	if a == b || stores.IsURL(a) || stores.IsURL(b) {
		return a == b
	}
	sa, erra := os.Stat(a)
	sb, errb := os.Stat(b)
	return erra == nil && errb == nil && os.SameFile(sa, sb)
}
