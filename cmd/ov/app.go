package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/vault"
)

func newAppCmd(g *globals) *cobra.Command {
	return command.Group("app", "Create, list, choose and delete apps",
		newAppCreateCmd(g), newAppListCmd(g), newAppUseCmd(g), newAppDeleteCmd(g))
}

// apps lists the apps of the agent's vault if there is an agent, else those of
// the vault file. Neither needs to be unlocked.
func (g *globals) apps(ctx context.Context) ([]vault.App, error) {
	c, err := g.Connect(ctx)
	if err == nil {
		defer func() { _ = c.Close() }()
		return c.Apps(ctx)
	}
	if !access.NoAgent(err) {
		return nil, err
	}
	o, err := g.Open("")
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return o.Apps(ctx)
}

func (g *globals) envs(ctx context.Context, app string) ([]string, error) {
	apps, err := g.apps(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range apps {
		if a.Slug == app {
			return a.Envs, nil
		}
	}
	return nil, hint.Errorf("see what is there: ov app list; make it: ov app create "+app, "app %s: %w", app, vault.ErrNotFound)
}

func newAppCreateCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	cmd := &cobra.Command{
		Use:   "create APP",
		Short: "Create an app, with an env named production",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			s, done, err := u.open(cmd.Context(), cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer done()
			if err := s.CreateApp(cmd.Context(), argv[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "created app %s with env %s\n", argv[0], names.DefaultEnv)
			return nil
		},
	}
	u.add(cmd)
	return cmd
}

func newAppListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the apps and their envs",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			apps, err := g.apps(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), apps)
			}
			return command.Table(cmd.OutOrStdout(), "APP\tENVS\tCREATED", len(apps), func(i int) []string {
				a := apps[i]
				return []string{a.Slug, strings.Join(a.Envs, ","), a.Created.Local().Format(time.DateTime)}
			})
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newAppUseCmd(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "use APP",
		Short: "Make an app the one that commands are about where nothing else says so",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if _, err := g.envs(cmd.Context(), argv[0]); err != nil {
				return err
			}
			file, err := config.Use(argv[0], "")
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "using app %s (%s)\n", argv[0], file)
			return nil
		},
	}
}

func newAppDeleteCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	var confirm bool
	cmd := &cobra.Command{
		Use:   "delete APP --confirm",
		Short: "Delete an app with all its envs, secrets and versions",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if err := confirmed(confirm, "app "+argv[0]+" with all its envs and secrets"); err != nil {
				return err
			}
			s, done, err := u.open(cmd.Context(), cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer done()
			if err := s.DeleteApp(cmd.Context(), argv[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "deleted app %s\n", argv[0])
			return nil
		},
	}
	u.add(cmd)
	confirmFlag(cmd, &confirm)
	return cmd
}

// confirmFlag adds --confirm, without which nothing is deleted that holds more
// than its name says.
func confirmFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "confirm", false, "do delete it, with all that is in it")
}

func confirmed(confirm bool, what string) error {
	if confirm {
		return nil
	}
	return command.Usage(hint.Errorf("add --confirm", "this would delete %s", what))
}
