package main

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// shown returns API keys as they are printed.
func shown(list ...*vaultv1.APIKey) []command.APIKey {
	out := make([]command.APIKey, len(list))
	for i, k := range list {
		expires, revoked := unix(k.GetExpiresUnix()), unix(k.GetRevokedUnix())
		out[i] = command.APIKey{
			ID: k.GetId(), Name: k.GetName(), Scope: strings.ToLower(strings.TrimPrefix(k.GetScope().String(), scopePrefix)),
			App: k.GetApp(), Env: k.GetEnv(), State: command.StateOf(expires, revoked, time.Now()),
			Created: time.Unix(k.GetCreatedUnix(), 0).UTC(), Expires: expires, LastUsed: unix(k.GetLastUsedUnix()),
			Revoked: revoked, MachineKey: k.GetMachineKey(),
		}
	}
	return out
}

// scopePrefix begins the names of scopes in the API.
const scopePrefix = "SCOPE_"

func newAPIKeyCmd(g *globals) *cobra.Command {
	return command.Group("apikey", "Create, list and revoke the API keys of an account",
		newAPIKeyCreateCmd(g), newAPIKeyListCmd(g), newAPIKeyRevokeCmd(g))
}

// onAccount adds --account and the like to cmd, which calls fn with the account.
func onAccount(g *globals, cmd *cobra.Command,
	fn func(ctx context.Context, cmd *cobra.Command, argv []string, c vaultv1connect.OperatorClient, account []byte) error,
) *cobra.Command {
	var said string
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		return g.operator(cmd.Context(), func(ctx context.Context, c vaultv1connect.OperatorClient) error {
			account, err := findAccount(ctx, c, said)
			if err != nil {
				return err
			}
			return fn(ctx, cmd, argv, c, account)
		})
	}
	cmd.Flags().StringVar(&said, "account", "", "name or id of the account (default: the only one)")
	g.database.add(cmd)
	return cmd
}

func newAPIKeyCreateCmd(g *globals) *cobra.Command {
	var name, app, env string
	var scope command.Scope
	var expires command.Expiry
	var asJSON bool
	cmd := onAccount(g, &cobra.Command{
		Use:   "create",
		Short: "Create an API key and print it, once",
		Long: `create prints a new API key. It is shown this once: the server keeps a hash.
With the scope admin its holder makes further keys: ov apikey create.`,
		Example: `  ov-server apikey create --name alice --scope admin
  ov-server apikey create --account example --name ci --scope read --app shop --env production --expires 90d`,
		Args: command.Args(cobra.NoArgs),
	}, func(ctx context.Context, cmd *cobra.Command, _ []string, c vaultv1connect.OperatorClient, account []byte) error {
		req := &vaultv1.CreateAPIKeyRequest{
			Account: account, Name: name, App: app, Env: env,
			Scope: vaultv1.Scope(vaultv1.Scope_value[scopePrefix+strings.ToUpper(scope.String())]),
		}
		if !expires.Time.IsZero() {
			req.ExpiresUnix = expires.Unix()
		}
		res, err := c.CreateAPIKey(ctx, connect.NewRequest(req))
		if err != nil {
			return err
		}
		return command.PrintNewAPIKey(cmd.OutOrStdout(), cmd.ErrOrStderr(), shown(res.Msg.GetApiKey())[0], []byte(res.Msg.GetToken()), asJSON)
	})
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "what it is for, or whose it is")
	f.Var(&scope, "scope", "what it may do: read, write (and read) or admin (and write)")
	f.StringVar(&app, "app", "", "for this app only")
	f.StringVar(&env, "env", "", "for this env of the app only")
	f.Var(&expires, "expires", command.ExpiryUsage)
	for _, required := range []string{"name", "scope"} {
		_ = cmd.MarkFlagRequired(required)
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newAPIKeyListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := onAccount(g, &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the API keys of an account, oldest first, revoked ones too",
		Args:    command.Args(cobra.NoArgs),
	}, func(ctx context.Context, cmd *cobra.Command, _ []string, c vaultv1connect.OperatorClient, account []byte) error {
		res, err := c.ListAPIKeys(ctx, connect.NewRequest(&vaultv1.ListAPIKeysRequest{Account: account}))
		if err != nil {
			return err
		}
		return command.PrintAPIKeys(cmd.OutOrStdout(), shown(res.Msg.GetApiKeys()...), asJSON)
	})
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newAPIKeyRevokeCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := onAccount(g, &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an API key: it works no more",
		Args:  command.Args(cobra.ExactArgs(1)),
	}, func(ctx context.Context, cmd *cobra.Command, argv []string, c vaultv1connect.OperatorClient, account []byte) error {
		id, err := command.APIKeyID(argv[0], "ov-server apikey list")
		if err != nil {
			return err
		}
		res, err := c.RevokeAPIKey(ctx, connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: account, Id: id}))
		if err != nil {
			return err
		}
		return command.PrintRevoked(cmd.OutOrStdout(), cmd.ErrOrStderr(), shown(res.Msg.GetRevoked()...), asJSON)
	})
	command.JSONFlag(cmd, &asJSON)
	return cmd
}
