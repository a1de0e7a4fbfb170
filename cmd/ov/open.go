package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/vault"
)

// globals are the flags that every command has.
type globals struct{ access.Place }

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
func (u *unlockFlags) open(ctx context.Context, stdin io.Reader) (vault.Unlocked, func(), error) {
	if u.machineKey != "" || u.passwordStdin {
		s, err := u.unlock(ctx, stdin)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Destroy, nil
	}
	c, err := u.Connect(ctx)
	if err == nil {
		return c, func() { _ = c.Close() }, nil
	}
	if u.agentOnly || !access.NoAgent(err) {
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

// unlock opens the vault in this process: with the machine key or the master
// password.
func (u *unlockFlags) unlock(ctx context.Context, stdin io.Reader) (*vault.Session, error) {
	if u.machineKey != "" {
		return u.UnlockKey(ctx, u.machineKey)
	}
	v, _, err := u.File()
	if err != nil {
		return nil, err
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
