package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/store/cache"
	"github.com/opaquevault/ov/pkg/vault"
)

// globals are the flags that every command has.
type globals struct{ access.Place }

// How long a server that is away is waited for: a person can try again, and a
// service that starts before the network is up must not fail.
const (
	waitForPerson  = 10 * time.Second
	waitForService = time.Minute
)

// prepare completes what the flags say once they are parsed.
func (g *globals) prepare(cmd *cobra.Command) {
	timeout := cmd.Flags().Lookup(serverTimeout)
	switch {
	case timeout == nil:
	case timeout.Changed && g.Wait == 0:
		g.Wait = -1 // once
	case timeout.Changed:
	case command.IsTerminal(os.Stderr):
		g.Wait = waitForPerson
	default:
		g.Wait = waitForService
	}
	if stale := cmd.Flags().Lookup(maxStale); stale != nil && g.MaxStale == 0 {
		g.MaxStale = -1 // never
	}
	g.Tell = func(text string) { fmt.Fprintf(os.Stderr, "ov: warning: %s\n", hint.Text(text)) }
}

const (
	serverTimeout = "server-timeout"
	maxStale      = "max-stale"
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
	u.addServer(cmd)
	cmd.MarkFlagsMutuallyExclusive("machine-key", "agent", "password-stdin")
	cmd.MarkFlagsMutuallyExclusive("accept-rollback", "agent")
}

// addServer adds the flags about what a server says, or has said.
func (u *unlockFlags) addServer(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&u.MaxStale, maxStale, cache.DefaultMaxStale, "how old what a server has said may be while it is away; 0 for never")
	f.BoolVar(&u.AcceptRollback, "accept-rollback", false, "believe a store that shows an older state than it has before, or an incomplete one, from now on")
}

// open opens the vault: with the machine key if one is given, else through the
// agent if there is one, else by asking for the master password. The caller
// calls the returned function when it is done.
func (u *unlockFlags) open(ctx context.Context, stdin io.Reader) (vault.Unlocked, func(), error) {
	// An agent goes by what it has seen itself.
	if u.machineKey != "" || u.passwordStdin || u.AcceptRollback {
		return unlocked(u.unlock(ctx, stdin))
	}
	c, err := u.Connect(ctx)
	if err == nil {
		return c, func() { _ = c.Close() }, nil
	}
	if u.agentOnly || !access.NoAgent(err) {
		return nil, nil, err
	}
	s, done, perr := u.unlock(ctx, stdin)
	if errors.Is(perr, prompt.ErrNoTerminal) {
		return nil, nil, hint.Wrap(fmt.Errorf("cannot unlock the vault: %w, and %w", err, prompt.ErrNoTerminal),
			"start an agent: ov agent start; without a terminal: --machine-key FILE")
	}
	return unlocked(s, done, perr)
}

func unlocked(s *vault.Session, done func(), err error) (vault.Unlocked, func(), error) {
	if err != nil {
		return nil, nil, err
	}
	return s, done, nil
}

// unlock opens the vault in this process: with the machine key or the master
// password. The caller calls the returned function when it is done.
func (u *unlockFlags) unlock(ctx context.Context, stdin io.Reader) (*vault.Session, func(), error) {
	if u.machineKey != "" {
		return u.UnlockKey(ctx, u.machineKey)
	}
	o, err := u.Open("")
	if err != nil {
		return nil, nil, err
	}
	s, err := u.unlockPassword(ctx, o.Vault, stdin)
	if err != nil {
		o.Close()
		return nil, nil, err
	}
	return s, func() { u.Done(ctx, o, s) }, nil
}

func (u *unlockFlags) unlockPassword(ctx context.Context, v *vault.Vault, stdin io.Reader) (*vault.Session, error) {
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
