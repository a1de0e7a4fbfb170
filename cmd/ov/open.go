package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// globals are the flags that every command has.
type globals struct{ vault, socket string }

// secrets is an unlocked vault: a *vault.Session in this process, or an
// *agent.Client.
type secrets interface {
	Reveal(ctx context.Context, ref vault.Ref, sel vault.Select, fn func([]vault.Secret) error) error
	List(ctx context.Context, ref vault.Ref) ([]vault.Version, error)
	History(ctx context.Context, ref vault.Ref, name string) ([]vault.Version, error)
	Put(ctx context.Context, ref vault.Ref, list []vault.Put, opt vault.PutOptions) ([]vault.PutResult, error)
	Delete(ctx context.Context, ref vault.Ref, names []string) error
	Rollback(ctx context.Context, ref vault.Ref, name string, version uint32) (vault.PutResult, error)
	Apps(ctx context.Context) ([]vault.App, error)
	CreateApp(ctx context.Context, slug string) error
	DeleteApp(ctx context.Context, slug string) error
	CreateEnv(ctx context.Context, ref vault.Ref) error
	DeleteEnv(ctx context.Context, ref vault.Ref) error
}

var (
	_ secrets = (*vault.Session)(nil)
	_ secrets = (*agent.Client)(nil)
)

// unlockFlags say how the vault is opened.
type unlockFlags struct {
	*globals
	machineKey    string
	agentOnly     bool
	passwordStdin bool
}

func (u *unlockFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&u.machineKey, "machine-key", "", "open the vault with this machine key, without an agent or a prompt")
	f.BoolVar(&u.agentOnly, "agent", false, "use the agent, or fail")
	f.BoolVar(&u.passwordStdin, "password-stdin", false, "read the master password from the first line of standard input")
	cmd.MarkFlagsMutuallyExclusive("machine-key", "agent", "password-stdin")
}

// open opens the vault: with the machine key if one is given, else through the
// agent if there is one, else by asking for the master password. The caller
// calls the returned function when it is done.
func (u *unlockFlags) open(ctx context.Context, stdin io.Reader) (secrets, func(), error) {
	if u.machineKey != "" || u.passwordStdin {
		s, err := u.unlock(ctx, stdin)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Destroy, nil
	}
	c, err := u.connect(ctx)
	if err == nil {
		return c, func() { _ = c.Close() }, nil
	}
	if u.agentOnly || !noAgent(err) {
		return nil, nil, err
	}
	s, perr := u.unlock(ctx, stdin)
	if errors.Is(perr, prompt.ErrNoTerminal) {
		return nil, nil, hint.Wrap(fmt.Errorf("cannot unlock the vault: %w, and %w", err, prompt.ErrNoTerminal),
			"start an agent: ov agent start; without a terminal: --machine-key FILE")
	}
	if perr != nil {
		return nil, nil, perr
	}
	return s, s.Destroy, nil
}

// connect finds the agent and connects to it.
func (g *globals) connect(ctx context.Context) (*agent.Client, error) {
	target, err := peer.Locate(peer.Options{Socket: g.socket})
	if err != nil {
		return nil, err
	}
	c, err := agent.Connect(ctx, target)
	if err != nil || g.vault == "" {
		return c, err
	}
	// A vault that was named must be the one that the agent has.
	status, err := c.Status(ctx)
	if err == nil {
		var want string
		if want, err = filepath.Abs(g.vault); err == nil && !sameFile(status.Vault, want) {
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

// noAgent reports whether connect found no agent for the vault: then, and only
// then, a command may do without one.
func noAgent(err error) bool {
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

// file returns the vault, locked.
func (g *globals) file() (*vault.Vault, *bolt.Store, error) {
	path, err := config.Vault(g.vault)
	if err != nil {
		return nil, nil, err
	}
	st := bolt.New(path.Value)
	return vault.New(st), st, nil
}

// unlock opens the vault in this process: with the machine key or the master
// password.
func (u *unlockFlags) unlock(ctx context.Context, stdin io.Reader) (*vault.Session, error) {
	v, _, err := u.file()
	if err != nil {
		return nil, err
	}
	if u.machineKey != "" {
		key, err := machinekey.Read(u.machineKey)
		if err != nil {
			return nil, err
		}
		return v.UnlockKey(ctx, key)
	}
	if _, err := v.Info(ctx); err != nil {
		return nil, err // before anybody is asked for a password
	}
	password, err := u.password(stdin, "Master password: ")
	if err != nil {
		return nil, err
	}
	defer password.Destroy()
	return v.Unlock(ctx, password)
}

// password reads the master password, which the caller destroys.
func (u *unlockFlags) password(stdin io.Reader, question string) (*kek.Locked, error) {
	if u.passwordStdin {
		return prompt.Line(stdin, kek.MaxPassword)
	}
	return prompt.Secret(question)
}

// target is the app and env that a command is about.
type target struct{ app, env string }

func (t *target) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.app, "app", "", "app (default: .ov.yaml, ov app use, or default)")
	cmd.Flags().StringVar(&t.env, "env", "", "env (default: .ov.yaml, ov env use, or production)")
}

func (t *target) ref() (vault.Ref, error) {
	c, err := config.Resolve(config.Options{App: t.app, Env: t.env})
	return vault.Ref{App: c.App.Value, Env: c.Env.Value}, err
}
