package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store/remote"
)

func newAPIKeyCmd(g *globals) *cobra.Command {
	return group("apikey", "Create, list and revoke the API keys of a server's account",
		newAPIKeyCreateCmd(g), newAPIKeyListCmd(g), newAPIKeyRevokeCmd(g))
}

// createdJSON is a new API key, once.
type createdJSON struct {
	remote.APIKey
	Token string `json:"token"`
}

func newAPIKeyCreateCmd(g *globals) *cobra.Command {
	var n remote.NewAPIKey
	var scope, expires string
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
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if n.Scope, err = remote.ParseScope(scope); err != nil {
				return usage(err)
			}
			if n.Env != "" && n.App == "" {
				return usage(errors.New("--env needs --app"))
			}
			for _, s := range []string{n.App, n.Env} {
				if s != "" && !names.ValidSlug(s) {
					return usage(fmt.Errorf("%.80q is not a valid name: lower-case letters, digits and inner dashes, at most %d", s, names.MaxSlug))
				}
			}
			if expires != "" {
				d, err := parseDays(expires)
				if err != nil {
					return usage(err)
				}
				n.Expires = time.Now().Add(d)
			}
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
			if asJSON {
				return printJSON(cmd.OutOrStdout(), createdJSON{key, string(token)})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "made the API key %s %q, scope %s, %s; it is not shown again:\n", key.ID, key.Name, describeScope(key), describeExpiry(key))
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", token)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&n.Name, "name", "", "a text to know the key by")
	_ = cmd.MarkFlagRequired("name")
	f.StringVar(&scope, "scope", string(remote.ScopeRead), "what it may do: read, write or admin")
	f.StringVar(&n.App, "app", "", "only in this app")
	f.StringVar(&n.Env, "env", "", "only in this env of the app")
	f.StringVar(&expires, "expires", "", "when it ends, such as 90d or 12h (default: never)")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// maxExpiry bounds how long an API key with an end is valid, in days.
const maxExpiry = 36500

// parseDays reads a time such as 90d or 12h30m.
func parseDays(text string) (time.Duration, error) {
	var d time.Duration
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > maxExpiry {
			return 0, fmt.Errorf("%.20q is not a number of days from 1 to %d", text, maxExpiry)
		}
		d = time.Duration(n) * 24 * time.Hour
	} else if parsed, err := time.ParseDuration(text); err == nil {
		d = parsed
	}
	if d <= 0 || d > maxExpiry*24*time.Hour {
		return 0, fmt.Errorf("%.20q is not a time such as 90d or 12h", text)
	}
	return d, nil
}

func describeExpiry(k remote.APIKey) string {
	if k.Expires == nil {
		return "without an end"
	}
	return "until " + k.Expires.Local().Format(time.DateTime)
}

func newAPIKeyListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the account's API keys, revoked and expired ones too",
		Args:    args(cobra.NoArgs),
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
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			return table(cmd.OutOrStdout(), "ID\tNAME\tSCOPE\tCREATED\tLAST USED\tSTATE", len(list), func(i int) []string {
				k := list[i]
				used := "never"
				if k.LastUsed != nil {
					used = k.LastUsed.Local().Format(time.DateTime)
				}
				return []string{k.ID, k.Name, describeScope(k), k.Created.Local().Format(time.DateTime), used, keyState(k, time.Now())}
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func keyState(k remote.APIKey, now time.Time) string {
	switch {
	case k.Revoked != nil:
		return "revoked " + k.Revoked.Local().Format(time.DateTime)
	case k.Expires != nil && !now.Before(*k.Expires):
		return "expired " + k.Expires.Local().Format(time.DateTime)
	}
	return "valid " + describeExpiry(k)
}

func newAPIKeyRevokeCmd(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an API key, at once and for good",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			id := strings.ToLower(argv[0])
			if !apikey.ValidID(id) { // not repeated: it may be the key itself
				return usage(errors.New("not the id of an API key, which has 16 hexadecimal digits: see ov apikey list"))
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
			for _, k := range revoked {
				fmt.Fprintf(cmd.ErrOrStderr(), "revoked the API key %s %q\n", k.ID, k.Name)
			}
			return nil
		},
	}
}
