package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/server"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// operator calls fn with a client of the server that runs on the data directory,
// or of one that this process is meanwhile.
func (g *globals) operator(ctx context.Context, fn func(context.Context, vaultv1connect.OperatorClient) error) error {
	dir, err := g.dir()
	if err != nil {
		return err
	}
	dsn, err := g.database.find() // a file of root's, maybe
	if err != nil {
		return err
	}
	if err := become(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = server.WithOperator(ctx, dir, opener(dir, dsn), fn)
	var answered *connect.Error
	if errors.As(err, &answered) && answered.Code() != connect.CodeUnavailable {
		return errors.New(answered.Message())
	}
	return err
}

// accountJSON is an account as it is printed with --json.
type accountJSON struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

func newAccountCmd(g *globals) *cobra.Command {
	return command.Group("account", "Create and list accounts, each of which is one vault",
		newAccountCreateCmd(g), newAccountListCmd(g))
}

func newAccountCreateCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create an account: one vault, empty",
		Long: `create makes an account, whose name is for you alone, and prints its id. What
comes next is an API key for the first person of it:
ov-server apikey create.`,
		Args: command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return g.operator(cmd.Context(), func(ctx context.Context, c vaultv1connect.OperatorClient) error {
				list, err := accounts(ctx, c)
				if err != nil {
					return err
				}
				for _, a := range list {
					if a.Name == argv[0] {
						return hint.Errorf("ov-server account list", "there is an account %s already", safefile.Quote(a.Name))
					}
				}
				res, err := c.CreateAccount(ctx, connect.NewRequest(&vaultv1.CreateAccountRequest{Name: argv[0]}))
				if err != nil {
					return err
				}
				a := accountOf(res.Msg.GetAccount())
				if asJSON {
					return command.PrintJSON(cmd.OutOrStdout(), a)
				}
				fmt.Fprintln(cmd.OutOrStdout(), a.ID)
				fmt.Fprintf(cmd.ErrOrStderr(), "created account %s\nnext: ov-server apikey create --account %s --name WHO --scope admin%s\n",
					safefile.Quote(a.Name), a.ID, g.dataFlag())
				return nil
			})
		},
	}
	g.database.add(cmd)
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newAccountListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List accounts, oldest first",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.operator(cmd.Context(), func(ctx context.Context, c vaultv1connect.OperatorClient) error {
				list, err := accounts(ctx, c)
				if err != nil {
					return err
				}
				if asJSON {
					return command.PrintJSON(cmd.OutOrStdout(), list)
				}
				return command.Table(cmd.OutOrStdout(), "ID\tNAME\tCREATED", len(list), func(i int) []string {
					a := list[i]
					return []string{a.ID, safefile.Quote(a.Name), a.Created.Local().Format(time.DateTime)}
				})
			})
		},
	}
	g.database.add(cmd)
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func accounts(ctx context.Context, c vaultv1connect.OperatorClient) ([]accountJSON, error) {
	res, err := c.ListAccounts(ctx, connect.NewRequest(&vaultv1.ListAccountsRequest{}))
	if err != nil {
		return nil, err
	}
	list := []accountJSON{}
	for _, a := range res.Msg.GetAccounts() {
		list = append(list, accountOf(a))
	}
	return list, nil
}

func accountOf(a *vaultv1.Account) accountJSON {
	return accountJSON{hex.EncodeToString(a.GetId()), a.GetName(), time.Unix(a.GetCreatedUnix(), 0).UTC()}
}

// findAccount returns the id of the account that has the id or the name, or of
// the only one there is, if nothing is said.
func findAccount(ctx context.Context, c vaultv1connect.OperatorClient, said string) ([]byte, error) {
	list, err := accounts(ctx, c)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, a := range list {
		if said == "" || a.ID == said || a.Name == said {
			found = append(found, a.ID)
		}
		if a.ID == said {
			found = []string{a.ID}
			break
		}
	}
	switch {
	case len(list) == 0:
		return nil, hint.Errorf("ov-server account create NAME", "there are no accounts")
	case len(found) == 0:
		return nil, hint.Errorf("ov-server account list", "there is no account %s", safefile.Quote(said))
	case len(found) > 1 && said == "":
		return nil, hint.Errorf("--account NAME; they are listed by ov-server account list", "there are %d accounts: say which", len(found))
	case len(found) > 1:
		return nil, hint.Errorf("name it by its id; they are listed by ov-server account list", "%d accounts are called %s", len(found), safefile.Quote(said))
	}
	return hex.DecodeString(found[0])
}
