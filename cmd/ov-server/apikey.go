package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/safefile"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// apiKeyJSON is an API key as it is printed with --json.
type apiKeyJSON struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Scope      string     `json:"scope"`
	App        string     `json:"app,omitempty"`
	Env        string     `json:"env,omitempty"`
	Created    *time.Time `json:"created"`
	Expires    *time.Time `json:"expires,omitempty"`
	LastUsed   *time.Time `json:"last_used,omitempty"`
	Revoked    *time.Time `json:"revoked,omitempty"`
	MachineKey string     `json:"machine_key,omitempty"`
	State      string     `json:"state"`             // active, expired or revoked
	Token      string     `json:"api_key,omitempty"` // only where it was made
}

func apiKeyOf(k *vaultv1.APIKey) apiKeyJSON {
	out := apiKeyJSON{
		ID: k.GetId(), Name: k.GetName(), App: k.GetApp(), Env: k.GetEnv(), MachineKey: k.GetMachineKey(),
		Created: unix(k.GetCreatedUnix()), Expires: unix(k.GetExpiresUnix()),
		LastUsed: unix(k.GetLastUsedUnix()), Revoked: unix(k.GetRevokedUnix()), State: "active",
		Scope: scopeName(k.GetScope()),
	}
	switch {
	case out.Revoked != nil:
		out.State = "revoked"
	case out.Expires != nil && time.Now().After(*out.Expires):
		out.State = "expired"
	}
	return out
}

// reach says what the key is for, if for less than all.
func (k apiKeyJSON) reach() string {
	switch {
	case k.App == "":
		return "all"
	case k.Env == "":
		return k.App
	}
	return k.App + "/" + k.Env
}

func newAPIKeyCmd(g *globals) *cobra.Command {
	return group("apikey", "Create, list and revoke the API keys of an account",
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
	var scope scopeFlag
	var expires expiry
	var asJSON bool
	cmd := onAccount(g, &cobra.Command{
		Use:   "create",
		Short: "Create an API key and print it, once",
		Long: `create prints a new API key. It is shown this once: the server keeps a hash.
With the scope admin its holder makes further keys: ov apikey create.`,
		Example: `  ov-server apikey create --name alice --scope admin
  ov-server apikey create --account example --name ci --scope read --app shop --env production --expires 90d`,
		Args: args(cobra.NoArgs),
	}, func(ctx context.Context, cmd *cobra.Command, _ []string, c vaultv1connect.OperatorClient, account []byte) error {
		req := &vaultv1.CreateAPIKeyRequest{Account: account, Name: name, Scope: vaultv1.Scope(scope), App: app, Env: env}
		if !expires.Time.IsZero() {
			req.ExpiresUnix = expires.Unix()
		}
		res, err := c.CreateAPIKey(ctx, connect.NewRequest(req))
		if err != nil {
			return err
		}
		k := apiKeyOf(res.Msg.GetApiKey())
		if asJSON {
			k.Token = res.Msg.GetToken()
			return printJSON(cmd.OutOrStdout(), k)
		}
		fmt.Fprintln(cmd.OutOrStdout(), res.Msg.GetToken())
		fmt.Fprintf(cmd.ErrOrStderr(), "created API key %s for %s: %s, %s, expires %s. It is not shown again.\n",
			k.ID, safefile.Quote(k.Name), k.Scope, k.reach(), stamp(k.Expires, "never"))
		return nil
	})
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "what it is for, or whose it is")
	f.Var(&scope, "scope", "what it may do: read, write (and read) or admin (and write)")
	f.StringVar(&app, "app", "", "for this app only")
	f.StringVar(&env, "env", "", "for this env of the app only")
	f.Var(&expires, "expires", "when it ends: after a time such as 90d or 12h, or on a date such as 2027-01-31 (default: never)")
	for _, required := range []string{"name", "scope"} {
		_ = cmd.MarkFlagRequired(required)
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func newAPIKeyListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := onAccount(g, &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the API keys of an account, oldest first, revoked ones too",
		Args:    args(cobra.NoArgs),
	}, func(ctx context.Context, cmd *cobra.Command, _ []string, c vaultv1connect.OperatorClient, account []byte) error {
		res, err := c.ListAPIKeys(ctx, connect.NewRequest(&vaultv1.ListAPIKeysRequest{Account: account}))
		if err != nil {
			return err
		}
		list := []apiKeyJSON{}
		var rows [][]string
		for _, key := range res.Msg.GetApiKeys() {
			k := apiKeyOf(key)
			list = append(list, k)
			rows = append(rows, []string{k.ID, safefile.Quote(k.Name), k.Scope, k.reach(), k.State,
				stamp(k.Expires, "never"), stamp(k.LastUsed, "never")})
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), list)
		}
		return table(cmd.OutOrStdout(), "ID\tNAME\tSCOPE\tFOR\tSTATE\tEXPIRES\tLAST USED", rows)
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}

func newAPIKeyRevokeCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := onAccount(g, &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an API key: it works no more",
		Args:  args(cobra.ExactArgs(1)),
	}, func(ctx context.Context, cmd *cobra.Command, argv []string, c vaultv1connect.OperatorClient, account []byte) error {
		res, err := c.RevokeAPIKey(ctx, connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: account, Id: argv[0]}))
		if err != nil {
			return err
		}
		list := []apiKeyJSON{}
		for _, key := range res.Msg.GetRevoked() {
			list = append(list, apiKeyOf(key))
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), list)
		}
		for _, k := range list {
			fmt.Fprintf(cmd.ErrOrStderr(), "revoked API key %s of %s\n", k.ID, safefile.Quote(k.Name))
		}
		return nil
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}

// scopeName is a scope as people write it.
func scopeName(s vaultv1.Scope) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SCOPE_"))
}

// scopeFlag is the flag for what an API key may do.
type scopeFlag vaultv1.Scope

// Set implements pflag.Value.
func (f *scopeFlag) Set(s string) error {
	for _, known := range []vaultv1.Scope{vaultv1.Scope_SCOPE_READ, vaultv1.Scope_SCOPE_WRITE, vaultv1.Scope_SCOPE_ADMIN} {
		if s == scopeName(known) {
			*f = scopeFlag(known)
			return nil
		}
	}
	return errors.New("no such scope")
}

// String implements pflag.Value.
func (f *scopeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return scopeName(vaultv1.Scope(*f))
}

// Type implements pflag.Value.
func (f *scopeFlag) Type() string { return "scope" }

// expiry is the flag for a time to come.
type expiry struct{ time.Time }

// Set takes a number of days (90d), what time.ParseDuration takes, or a date,
// whose end in UTC is meant.
func (e *expiry) Set(s string) error {
	var d time.Duration
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return err
		}
		d = time.Duration(n) * 24 * time.Hour
	} else if on, err := time.Parse(time.DateOnly, s); err == nil {
		d = time.Until(on.AddDate(0, 0, 1))
	} else if d, err = time.ParseDuration(s); err != nil {
		return err
	}
	if d <= 0 {
		return errors.New("it is over already")
	}
	e.Time = time.Now().Add(d)
	return nil
}

// String implements pflag.Value.
func (e *expiry) String() string {
	if e.IsZero() {
		return ""
	}
	return e.Format(time.RFC3339)
}

// Type implements pflag.Value.
func (e *expiry) Type() string { return "time to come" }
