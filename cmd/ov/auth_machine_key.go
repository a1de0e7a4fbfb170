package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

// deriveFlags say what `ov auth derive-machine-key` makes.
type deriveFlags struct {
	*unlockFlags
	ref        vault.Ref
	out, label string
	force      bool
	noAPIKey   bool
	scope      string // of the API key
}

func newAuthDeriveCmd(g *globals) *cobra.Command {
	d := &deriveFlags{unlockFlags: &unlockFlags{globals: g}}
	cmd := &cobra.Command{
		Use:   "derive-machine-key --out FILE [--app APP [--env ENV]] [--label TEXT] [--force]",
		Short: "Write a key file that opens the vault without a prompt",
		Long: `Write a key file, 32 bytes, mode 0600, that opens the vault without a prompt: all
of it, or one app, or one env of an app. Whoever can read the file can read the
secrets. "ov auth machine-keys" lists the keys that were made.

For a vault on a server, an API key that may do as much is made with it, and
written to FILE.login, mode 0600, with the server's address and CA: the two files
are all that a service needs. "ov auth revoke-machine-key" revokes both.`,
		Example: `  ov auth derive-machine-key --out /etc/ov/myapp.key
  ov auth derive-machine-key --out /etc/ov/myapp.key --app myapp --env production --label web-1`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.ref.Env != "" && d.ref.App == "" {
				return command.Usage(errors.New("--env needs --app"))
			}
			if _, err := remote.ParseScope(d.scope); err != nil || d.scope == string(remote.ScopeAdmin) {
				return command.Usage(errors.New("--api-key-scope is read or write"))
			}
			return d.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.out, "out", "", "file to write")
	_ = cmd.MarkFlagRequired("out")
	f.StringVar(&d.ref.App, "app", "", "a key that opens only this app")
	f.StringVar(&d.ref.Env, "env", "", "a key that opens only this env of the app")
	f.StringVar(&d.label, "label", "", "a text to know the key by")
	f.BoolVar(&d.force, "force", false, "replace an existing file")
	f.StringVar(&d.machineKey, "machine-key", "", "derive from this machine key in place of the master password")
	f.StringVar(&d.scope, "api-key-scope", string(remote.ScopeRead), "what the API key for a server may do: read or write")
	f.BoolVar(&d.noAPIKey, "no-api-key", false, "make no API key for a server: whoever uses the key file logs in")
	passwordStdinFlag(cmd, d.unlockFlags, "read the master password from the first line of standard input")
	d.addServer(cmd)
	cmd.MarkFlagsMutuallyExclusive("machine-key", "password-stdin")
	cmd.MarkFlagsMutuallyExclusive("no-api-key", "api-key-scope")
	return cmd
}

func (d *deriveFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	at, err := access.Locate(d.Vault, d.machineKey)
	if err != nil {
		return err
	}
	withLogin := stores.IsURL(at.Value) && !d.noAPIKey
	err = machinekey.CanWrite(d.out, d.force) // before anybody is asked for a password
	if err == nil && withLogin {
		err = d.canMint(ctx, at.Value)
	}
	if err != nil {
		return err
	}
	s, done, err := d.unlock(ctx, cmd.InOrStdin())
	if err != nil {
		return noTerminal(err)
	}
	defer done()
	key, info, err := s.DeriveMachineKey(ctx, d.ref, d.label)
	if err != nil {
		return err
	}
	defer key.Destroy()
	wrote := d.out
	if withLogin {
		wrote += " and " + login.Companion(d.out)
		err = d.writeBoth(ctx, at.Value, key, info)
	} else if err = d.dropLogin(cmd); err == nil {
		err = machinekey.Write(d.out, key, d.force)
	}
	if err != nil { // then the register has no key that nobody has
		if _, rerr := s.RevokeMachineKey(context.WithoutCancel(ctx), info.Fingerprint, &info.Number); rerr != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "ov: warning: machine key %s stays in the register: %s\n", info.Fingerprint, hint.Text(rerr.Error()))
		}
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s: machine key %s, opens %s\n", wrote, info.Fingerprint, describeKey(info))
	return nil
}

// canMint says whether an API key could be made and written.
func (d *deriveFlags) canMint(ctx context.Context, server string) error {
	if err := login.CanWriteCompanion(d.out); err != nil {
		return err
	}
	st, err := stores.Server(server, d.Options(d.machineKey))
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	who, err := st.WhoAmI(ctx)
	if err == nil && who.APIKey.Scope != remote.ScopeAdmin {
		err = hint.Errorf("log in with an API key of scope admin: ov auth login --server "+safefile.Shell(server),
			"%s: %w: the API key %s has scope %s, and machine keys need admin", server, store.ErrDenied, who.APIKey.ID, who.APIKey.Scope)
	}
	return err
}

// dropLogin removes the login that another machine key has left beside the file:
// it would lead to another vault.
func (d *deriveFlags) dropLogin(cmd *cobra.Command) error {
	if !login.HasCompanion(d.out) {
		return nil
	}
	if err := login.RemoveCompanion(d.out); err != nil {
		return hint.Errorf("sudo rm "+safefile.Shell(login.Companion(d.out)), "the login of another machine key is in the way: %w", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "removed %s, which was for another machine key\n", login.Companion(d.out))
	return nil
}

// writeBoth makes an API key and writes it and the machine key: both, or none.
// Killed on the way, it leaves at most an API key that nobody has.
func (d *deriveFlags) writeBoth(ctx context.Context, server string, key *kek.Locked, info vault.MachineKey) (err error) {
	st, err := stores.Server(server, d.Options(d.machineKey))
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	name := info.Label
	if name == "" {
		name = "machine key " + info.Fingerprint
	}
	made, token, err := st.CreateAPIKey(ctx, remote.NewAPIKey{
		Name: name, Scope: remote.Scope(d.scope), App: info.App, Env: info.Env, MachineKey: info.Fingerprint,
	})
	if err != nil {
		return err
	}
	defer clear(token)
	before, berr := login.ReadCompanion(d.out) // if it is sound
	defer before.Wipe()
	defer func() {
		if err == nil {
			return
		}
		undo := login.RemoveCompanion
		if berr == nil {
			undo = func(file string) error { return login.WriteCompanion(file, before) }
		}
		_, rerr := st.RevokeAPIKey(context.WithoutCancel(ctx), made.ID)
		err = errors.Join(err, undo(d.out), rerr)
	}()
	own, err := stores.Login(server, d.machineKey)
	if err != nil {
		return err
	}
	defer own.Wipe()
	l, err := login.New(server, own.CA, token)
	if err != nil {
		return err
	}
	defer l.Wipe()
	if err := login.WriteCompanion(d.out, l); err != nil {
		return err
	}
	return machinekey.Write(d.out, key, d.force)
}

// machineKey is an issued machine key with the API keys that go with it.
type machineKeyJSON struct {
	vault.MachineKey
	APIKeys []string `json:"api_keys,omitempty"` // ids of those that are not revoked
}

func newAuthMachineKeysCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "machine-keys",
		Short: "List the machine keys that were made, what each opens and whether it still does",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := g.Open("")
			if err != nil {
				return err
			}
			defer o.Close()
			keys, err := o.MachineKeys(cmd.Context())
			if err != nil {
				return err
			}
			apiKeys, err := g.apiKeysOf(cmd.Context(), o.At.Value)
			if err != nil {
				return err
			}
			list := make([]machineKeyJSON, len(keys))
			for i, k := range keys {
				list[i] = machineKeyJSON{k, apiKeys[k.Fingerprint]}
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), list)
			}
			head := "KEY\tOPENS\tSTATE"
			if apiKeys != nil {
				head += "\tAPI KEYS"
			}
			return command.Table(cmd.OutOrStdout(), head, len(list), func(i int) []string {
				state := "valid"
				if !keys[i].Valid {
					state = keys[i].Why
				}
				row := []string{keys[i].Fingerprint, describeKey(keys[i]), state}
				if apiKeys != nil {
					row = append(row, strings.Join(list[i].APIKeys, ","))
				}
				return row
			})
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// apiKeysOf returns the ids of the API keys that go with machine keys, by their
// fingerprints. It is nil for a vault without a server, and for who may not see
// them.
func (g *globals) apiKeysOf(ctx context.Context, address string) (map[string][]string, error) {
	if !stores.IsURL(address) {
		return nil, nil
	}
	st, err := stores.Server(address, g.Options(""))
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	list, err := st.APIKeys(ctx)
	if errors.Is(err, store.ErrDenied) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, k := range list {
		if k.MachineKey != "" && k.Revoked == nil {
			found[k.MachineKey] = append(found[k.MachineKey], k.ID)
		}
	}
	return found, nil
}

func newAuthRevokeCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	var number uint32
	cmd := &cobra.Command{
		Use:   "revoke-machine-key FINGERPRINT [--number N]",
		Short: "Take a machine key out of the register, and revoke its API keys",
		Long: `Take a machine key out of the vault's register, so that ov opens nothing with it
any more, and revoke the API keys that were made with it for a server. "ov auth
machine-keys" lists them. With --number only that issue is taken out, and the API
keys are revoked with the last one.

The key's 32 bytes stay what they were: whoever has them, and a copy of the
ciphertext, can decrypt it with a program of their own. That ends, for what is
written from then on, with new keys: "ov auth rotate-key", or only for one app
"ov auth rotate-key --app APP".`,
		Args: command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if !apikey.ValidID(strings.ToLower(argv[0])) { // which has the same form
				return command.Usage(hint.Errorf("see: ov auth machine-keys", "not the fingerprint of a machine key, which has 16 hexadecimal digits"))
			}
			only := &number
			if !cmd.Flags().Changed("number") {
				only = nil
			}
			return u.revokeMachineKey(cmd, strings.ToLower(argv[0]), only)
		},
	}
	f := cmd.Flags()
	f.Uint32Var(&number, "number", 0, "only this issue of the key: see ov auth machine-keys --json")
	f.StringVar(&u.machineKey, "machine-key", "", "open the vault with this machine key in place of the master password")
	passwordStdinFlag(cmd, u, "read the master password from the first line of standard input")
	u.addServer(cmd)
	cmd.MarkFlagsMutuallyExclusive("machine-key", "password-stdin")
	return cmd
}

func (u *unlockFlags) revokeMachineKey(cmd *cobra.Command, fingerprint string, only *uint32) error {
	ctx := cmd.Context()
	at, err := access.Locate(u.Vault, u.machineKey)
	if err != nil {
		return err
	}
	s, done, err := u.unlock(ctx, cmd.InOrStdin())
	if err != nil {
		return noTerminal(err)
	}
	defer done()
	before, err := s.Vault().MachineKeys(ctx)
	if err != nil {
		return err
	}
	left := slices.ContainsFunc(before, func(k vault.MachineKey) bool {
		return k.Fingerprint == fingerprint && only != nil && k.Number != *only
	})
	// API keys first: should this be interrupted, it can be done again.
	var revoked []string
	if stores.IsURL(at.Value) && !left {
		if revoked, err = u.revokeAPIKeys(ctx, at.Value, fingerprint); err != nil {
			return err
		}
	}
	gone, err := s.RevokeMachineKey(ctx, fingerprint, only)
	if errors.Is(err, vault.ErrNotFound) && len(revoked) > 0 {
		err = nil // the rest of what was interrupted
	}
	if err != nil {
		return err
	}
	out := cmd.ErrOrStderr()
	for _, k := range gone {
		fmt.Fprintf(out, "revoked machine key %s: %s\n", k.Fingerprint, describeKey(k))
	}
	for _, id := range revoked {
		fmt.Fprintf(out, "revoked API key %s\n", id)
	}
	if left {
		fmt.Fprintln(out, "other issues of the key stay, and so do its API keys")
		return nil
	}
	rotate := "ov auth rotate-key"
	if len(gone) > 0 && gone[0].App != "" {
		rotate += " --app " + gone[0].App
	}
	fmt.Fprintf(out, "Programs that it has opened the vault for keep what they have. Whoever has the key file and\n"+
		"a copy of the ciphertext can still decrypt that; from new keys on, no more:\n  %s\n", rotate)
	return nil
}

// revokeAPIKeys revokes what goes with a machine key and returns the ids of those
// that were not revoked before.
func (u *unlockFlags) revokeAPIKeys(ctx context.Context, server, fingerprint string) ([]string, error) {
	st, err := stores.Server(server, u.Options(u.machineKey))
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	list, err := st.RevokeMachineKey(ctx, fingerprint)
	if errors.Is(err, remote.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, k := range list {
		ids = append(ids, k.ID)
	}
	return ids, nil
}
