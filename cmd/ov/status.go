package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

// status is what `ov status` tells.
type status struct {
	Context config.Context `json:"context"`
	Vault   vaultReport    `json:"vault"`
	Agent   agentReport    `json:"agent"`
}

type vaultReport struct {
	config.Choice
	Exists bool `json:"exists"`
	*vault.Info
	Problem string `json:"problem,omitempty"` // of a server
}

func newStatusCmd(g *globals) *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say which app, env, vault and agent commands here are about, and why",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s status
			var err error
			if s.Context, err = config.Resolve(config.Options{App: t.app, Env: t.env, Secrets: true}); err != nil {
				return err
			}
			if s.Vault, err = g.vaultReport(cmd.Context()); err != nil {
				return err
			}
			if s.Agent, err = g.agentReport(cmd.Context()); err != nil {
				return err
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), s)
			}
			s.print(cmd.OutOrStdout())
			return nil
		},
	}
	t.add(cmd)
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// vaultReport says which vault is meant. A server that is away, or says no, is
// told of and is no failure.
func (g *globals) vaultReport(ctx context.Context) (vaultReport, error) {
	o, err := g.Open("")
	if err != nil {
		return vaultReport{}, err
	}
	defer o.Close()
	r := vaultReport{Choice: o.At}
	info, err := o.Info(ctx)
	switch {
	case err == nil:
		r.Exists, r.Info = true, &info
	case errors.Is(err, store.ErrNoVault):
	case stores.IsURL(o.At.Value):
		r.Problem = err.Error()
	default:
		return vaultReport{}, err
	}
	return r, nil
}

func (s status) print(w io.Writer) {
	line := func(what string, c config.Choice) {
		from := string(c.Source)
		if c.File != "" {
			from = safefile.Quote(c.File)
		}
		fmt.Fprintf(w, "%-9s %s (%s)\n", what+":", hint.Text(c.Value), from)
	}
	line("app", s.Context.App)
	line("env", s.Context.Env)
	if s.Context.SecretsFile != "" {
		fmt.Fprintf(w, "secrets:  %d named in %s\n", len(s.Context.Secrets), safefile.Quote(s.Context.SecretsFile))
	}
	line("vault", s.Vault.Choice)
	switch {
	case s.Vault.Problem != "":
		fmt.Fprintf(w, "          %s\n", hint.Text(s.Vault.Problem))
	case !s.Vault.Exists:
		fmt.Fprintln(w, "          there is none: make one with ov auth init")
	}
	s.Agent.print(w)
}
