package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

func newAuthCmd(g *globals) *cobra.Command {
	return command.Group("auth", "Make a vault, change its password and keys, issue machine keys, log in to a server",
		newAuthInitCmd(g), newAuthChangePasswordCmd(g), newAuthRotateKeyCmd(g),
		newAuthDeriveCmd(g), newAuthMachineKeysCmd(g), newAuthRevokeCmd(g),
		newAuthLoginCmd(g), newAuthLogoutCmd(g), newAuthStatusCmd(g))
}

// The auth commands open the vault in this process and never through an agent:
// a key or a new password is worth being asked for the old one.

func newAuthInitCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new vault under a master password",
		Long: `Make a new vault under a master password, which is asked for twice. There is no
way into the vault without it: keep a copy where you keep such things.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := g.Open("")
			if err != nil {
				return err
			}
			defer o.Close()
			exists := hint.Errorf("use it as it is, or name another: --vault ADDRESS", "there is a vault at %s", o.At.Value)
			_, err = o.Info(cmd.Context())
			switch { // before anybody is asked for a password
			case err == nil:
				return exists
			case stores.IsURL(o.At.Value) && !errors.Is(err, store.ErrNoVault):
				return err
			}
			password, err := u.newPassword(cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer password.Destroy()
			err = o.Init(cmd.Context(), func(ctx context.Context, b store.Batch) error {
				return stores.Create(ctx, o.At.Value, g.Options(""), b)
			}, password)
			if errors.Is(err, fs.ErrExist) {
				if _, again := o.Info(cmd.Context()); errors.Is(again, store.ErrNoVault) {
					return hint.Errorf("finish it: ov vault push --to "+safefile.Shell(o.At.Value),
						"at %s there are records of a vault that was not moved there wholly", o.At.Value)
				}
				return exists
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "made the vault %s\n", o.At.Value)
			return nil
		},
	}
	passwordStdinFlag(cmd, u, "read the master password from the first line of standard input")
	return cmd
}

func passwordStdinFlag(cmd *cobra.Command, u *unlockFlags, text string) {
	cmd.Flags().BoolVar(&u.passwordStdin, "password-stdin", false, text)
}

// newPassword reads a new master password, twice from a terminal.
func (u *unlockFlags) newPassword(stdin io.Reader) (*kek.Locked, error) {
	var password *kek.Locked
	var err error
	if u.passwordStdin {
		password, err = prompt.Line(stdin, kek.MaxPassword)
	} else {
		password, err = prompt.Twice("New master password: ", "The same again: ")
	}
	if err != nil {
		return nil, noTerminal(err)
	}
	if n := len(password.Bytes()); n == 0 || n > kek.MaxPassword {
		password.Destroy()
		return nil, fmt.Errorf("a master password of %d bytes, the bounds are 1 and %d", n, kek.MaxPassword)
	}
	return password, nil
}

func noTerminal(err error) error {
	if errors.Is(err, prompt.ErrNoTerminal) {
		return hint.Wrap(err, "give the password on standard input: --password-stdin")
	}
	return err
}

func newAuthChangePasswordCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	cmd := &cobra.Command{
		Use:   "change-password",
		Short: "Change the master password and the key under it",
		Long: `Change the master password. The key under it is made anew, so that every machine
key made before is dead; no value is encrypted again. The step is atomic: killed
at any instant, the vault opens with the old password or with the new one.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return u.replaceKey(cmd, "changed the master password", u.newPassword, func(ctx context.Context, v *vault.Vault, old, current *kek.Locked) error {
				return v.ChangePassword(ctx, old, current)
			})
		},
	}
	passwordStdinFlag(cmd, u, "read the old password, then the new one, from two lines of standard input")
	return cmd
}

// replaceKey asks for the password, and by next for the one that holds from
// then on if it is not to stay, lets change make a new key, then says which
// machine keys are dead and brings a running agent along.
func (u *unlockFlags) replaceKey(cmd *cobra.Command, done string, next func(io.Reader) (*kek.Locked, error), change func(ctx context.Context, v *vault.Vault, old, current *kek.Locked) error) error {
	ctx := cmd.Context()
	o, err := u.Open("")
	if err != nil {
		return err
	}
	defer o.Close()
	v := o.Vault
	if _, err := v.Info(ctx); err != nil {
		return err
	}
	before, err := v.MachineKeys(ctx)
	if err != nil {
		return err
	}
	old, err := u.password(cmd.InOrStdin(), "Master password: ")
	if err != nil {
		return noTerminal(err)
	}
	defer old.Destroy()
	if !u.passwordStdin { // a typo is worth knowing of before a new one is typed
		s, err := v.Unlock(ctx, old)
		if err != nil {
			return err
		}
		s.Destroy()
	}
	current := old
	if next != nil {
		if current, err = next(cmd.InOrStdin()); err != nil {
			return err
		}
		defer current.Destroy()
	}
	// Asked before the change: an agent that is used right after it finds its
	// key dead, and locks.
	unlocked := u.agentHas(ctx, o.At.Value)
	if err := change(ctx, v, old, current); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s\n", done, o.At.Value)
	if unlocked {
		u.refreshAgent(cmd, current)
	}
	return sayDead(cmd, v, before)
}

// agentHas reports whether an agent runs that has all of the vault unlocked.
func (u *unlockFlags) agentHas(ctx context.Context, path string) bool {
	c, err := u.Connect(ctx)
	if err != nil {
		return false // none runs, or it has another vault
	}
	defer func() { _ = c.Close() }()
	status, err := c.Status(ctx)
	return err == nil && status.Vault == path && status.Unlocked && status.Level == vault.LevelAccount.String()
}

// refreshAgent unlocks the agent with its vault's new key.
func (u *unlockFlags) refreshAgent(cmd *cobra.Command, password *kek.Locked) {
	c, err := u.Connect(cmd.Context())
	if err == nil {
		err = c.Unlock(cmd.Context(), password)
		_ = c.Close()
	}
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "ov: warning: the agent could not take the new key: %s\n  hint: ov agent unlock\n", hint.Text(err.Error()))
		return
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "the agent has the new key")
}

// sayDead lists the machine keys that were valid before and are not now.
func sayDead(cmd *cobra.Command, v *vault.Vault, before []vault.MachineKey) error {
	now, err := v.MachineKeys(cmd.Context())
	if err != nil {
		return err
	}
	var dead []string
	for i, k := range before {
		if k.Valid && i < len(now) && !now[i].Valid {
			dead = append(dead, fmt.Sprintf("  %s  %s", k.Fingerprint, describeKey(k)))
		}
	}
	if len(dead) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "These machine keys open nothing any more:\n%s\nMake new ones, then restart the services:\n  ov auth derive-machine-key --force --out FILE\n", strings.Join(dead, "\n"))
	}
	return nil
}

func describeKey(k vault.MachineKey) string {
	s := k.Level
	switch {
	case k.Env != "":
		s += " " + k.App + "/" + k.Env
	case k.App != "":
		s += " " + k.App
	}
	if k.Label != "" {
		s += fmt.Sprintf(" %q", k.Label)
	}
	return s + ", made " + k.Created.Local().Format(time.DateTime)
}

func newAuthRotateKeyCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	var app string
	cmd := &cobra.Command{
		Use:   "rotate-key [--app APP]",
		Short: "Make the vault's key, or one app's, anew under the same password",
		Long: `Make the vault's key anew under the same password, so that every machine key made
before is dead; with --app only that app's key and those of its envs, so that
only their machine keys are. No value is encrypted again.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "made a new key"
			if app != "" {
				what = "made a new key for app " + app
			}
			return u.replaceKey(cmd, what, nil, func(ctx context.Context, v *vault.Vault, password, _ *kek.Locked) error {
				if app == "" {
					return v.RotateKey(ctx, password)
				}
				s, err := v.Unlock(ctx, password)
				if err != nil {
					return err
				}
				defer s.Destroy()
				return s.RotateApp(ctx, app)
			})
		},
	}
	cmd.Flags().StringVar(&app, "app", "", "only this app")
	passwordStdinFlag(cmd, u, "read the master password from the first line of standard input")
	return cmd
}
