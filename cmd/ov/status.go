package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/store"
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
}

func newStatusCmd(g *globals) *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say which app, env, vault and agent commands here are about, and why",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s status
			var err error
			if s.Context, err = config.Resolve(config.Options{App: t.app, Env: t.env, Secrets: true}); err != nil {
				return err
			}
			if s.Vault.Choice, err = config.Vault(g.Vault); err != nil {
				return err
			}
			v, _, err := g.File()
			if err != nil {
				return err
			}
			info, err := v.Info(cmd.Context())
			if err == nil {
				s.Vault.Exists, s.Vault.Info = true, &info
			} else if !errors.Is(err, store.ErrNoVault) {
				return err
			}
			if s.Agent, err = g.agentReport(cmd.Context()); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			s.print(cmd.OutOrStdout())
			return nil
		},
	}
	t.add(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (s status) print(w io.Writer) {
	line := func(what string, c config.Choice) {
		from := string(c.Source)
		if c.File != "" {
			from = c.File
		}
		fmt.Fprintf(w, "%-9s %s (%s)\n", what+":", c.Value, from)
	}
	line("app", s.Context.App)
	line("env", s.Context.Env)
	if s.Context.SecretsFile != "" {
		fmt.Fprintf(w, "secrets:  %d named in %s\n", len(s.Context.Secrets), s.Context.SecretsFile)
	}
	line("vault", s.Vault.Choice)
	if !s.Vault.Exists {
		fmt.Fprintln(w, "          there is none: make one with ov auth init")
	}
	s.Agent.print(w)
}
