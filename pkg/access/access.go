// Package access opens a vault without asking anybody: through the agent or
// with a machine key.
package access

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// Place says where a vault and its agent are; "" is where they are by default.
type Place struct {
	Vault  string `json:"vault,omitempty"`  // file
	Socket string `json:"socket,omitempty"` // of the agent
}

// File returns the vault, locked.
func (p Place) File() (*vault.Vault, *bolt.Store, error) {
	path, err := config.Vault(p.Vault)
	if err != nil {
		return nil, nil, err
	}
	st := bolt.New(path.Value)
	return vault.New(st), st, nil
}

// UnlockKey opens the vault in this process with the machine key in a file. The
// caller destroys the session.
func (p Place) UnlockKey(ctx context.Context, file string) (*vault.Session, error) {
	v, _, err := p.File()
	if err != nil {
		return nil, err
	}
	key, err := machinekey.Read(file)
	if err != nil {
		return nil, err
	}
	return v.UnlockKey(ctx, key)
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
		var want string
		if want, err = filepath.Abs(p.Vault); err == nil && !sameFile(status.Vault, want) {
			err = hint.Wrap(&otherVault{target.Socket, status.Vault, want}, "leave --vault out to use the agent's")
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

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	sa, erra := os.Stat(a)
	sb, errb := os.Stat(b)
	return erra == nil && errb == nil && os.SameFile(sa, sb)
}
