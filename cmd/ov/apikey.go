package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store/remote"
)

func newAPIKeyCmd(g *globals) *cobra.Command {
	return command.Group("apikey", "Create, list and revoke the API keys of a server's account",
		newAPIKeyCreateCmd(g), newAPIKeyListCmd(g), newAPIKeyRevokeCmd(g))
}

// shown returns API keys as they are printed.
func shown(list ...remote.APIKey) []command.APIKey {
	out := make([]command.APIKey, len(list))
	for i, k := range list {
		out[i] = command.APIKey{
			ID: k.ID, Name: k.Name, Scope: string(k.Scope), App: k.App, Env: k.Env, State: command.StateOf(k.Expires, k.Revoked, time.Now()),
			Created: k.Created, Expires: k.Expires, LastUsed: k.LastUsed, Revoked: k.Revoked, MachineKey: k.MachineKey,
		}
	}
	return out
}

func newAPIKeyCreateCmd(g *globals) *cobra.Command {
	var n remote.NewAPIKey
	scope := command.Scope(remote.ScopeRead)
	var expires command.Expiry
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create --name NAME [--scope SCOPE] [--app APP [--env ENV]] [--expires TIME]",
		Short: "Make an API key, which is shown once",
		Long: `Make an API key and print it on standard output, once: the server keeps a hash of
it. Scopes are read; write, which may also write secrets; and admin, which may
also manage API keys and machine keys and change the master password. An API key
gives ciphertext and opens nothing: for that there are the master password and
machine keys.`,
		Example: `  ov apikey create --name ci --scope read --app myapp --env staging --expires 90d`,
		Args:    command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n.Env != "" && n.App == "" {
				return command.Usage(errors.New("--env needs --app"))
			}
			for _, s := range []string{n.App, n.Env} {
				if s != "" && !names.ValidSlug(s) {
					return command.Usage(fmt.Errorf("%.80q is not a valid name: lower-case letters, digits and inner dashes, at most %d", s, names.MaxSlug))
				}
			}
			n.Scope, n.Expires = remote.Scope(scope), expires.Time
			st, err := g.connect("", "")
			if err != nil {
				return err
			}
			defer func() { _ = st.Close() }()
			key, token, err := st.CreateAPIKey(cmd.Context(), n)
			if err != nil {
				return err
			}
			defer clear(token)
			return command.PrintNewAPIKey(cmd.OutOrStdout(), cmd.ErrOrStderr(), shown(key)[0], token, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&n.Name, "name", "", "a text to know the key by")
	_ = cmd.MarkFlagRequired("name")
	f.Var(&scope, "scope", "what it may do: read, write or admin")
	f.StringVar(&n.App, "app", "", "only in this app")
	f.StringVar(&n.Env, "env", "", "only in this env of the app")
	f.Var(&expires, "expires", command.ExpiryUsage)
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newAPIKeyListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the account's API keys, revoked and expired ones too",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := g.connect("", "")
			if err != nil {
				return err
			}
			defer func() { _ = st.Close() }()
			list, err := st.APIKeys(cmd.Context())
			if err != nil {
				return err
			}
			return command.PrintAPIKeys(cmd.OutOrStdout(), shown(list...), asJSON)
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newAPIKeyRevokeCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an API key, at once and for good",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			id, err := command.APIKeyID(argv[0], "ov apikey list")
			if err != nil {
				return err
			}
			st, err := g.connect("", "")
			if err != nil {
				return err
			}
			defer func() { _ = st.Close() }()
			revoked, err := st.RevokeAPIKey(cmd.Context(), id)
			if err != nil {
				return err
			}
			return command.PrintRevoked(cmd.OutOrStdout(), cmd.ErrOrStderr(), shown(revoked...), asJSON)
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}
