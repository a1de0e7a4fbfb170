package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/vault"
)

func newEnvCmd(g *globals) *cobra.Command {
	return command.Group("env", "Create, list, choose and delete envs of an app",
		newEnvCreateCmd(g), newEnvListCmd(g), newEnvUseCmd(g), newEnvDeleteCmd(g))
}

// appFlag adds --app to a command about an app's envs.
func appFlag(cmd *cobra.Command, t *target) {
	cmd.Flags().StringVar(&t.app, "app", "", "app (default: .ov.yaml, ov app use, or default)")
}

// within returns the env of that name in the app that the command is about.
func (t target) within(env string) (vault.Ref, error) {
	t.env = env
	return t.ref()
}

func newEnvCreateCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	var t target
	cmd := &cobra.Command{
		Use:   "create ENV",
		Short: "Create an env in an app",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ref, err := t.within(argv[0])
			if err != nil {
				return err
			}
			s, done, err := u.open(cmd.Context(), cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer done()
			if err := s.CreateEnv(cmd.Context(), ref); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "created env %s\n", ref)
			return nil
		},
	}
	u.add(cmd)
	appFlag(cmd, &t)
	return cmd
}

func newEnvListCmd(g *globals) *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the envs of an app",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ref, err := t.ref()
			if err != nil {
				return err
			}
			envs, err := g.envs(cmd.Context(), ref.App)
			if err != nil {
				return err
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), envs)
			}
			return command.Table(cmd.OutOrStdout(), "ENV", len(envs), func(i int) []string { return envs[i : i+1] })
		},
	}
	appFlag(cmd, &t)
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newEnvUseCmd(g *globals) *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use:   "use ENV",
		Short: "Make an env the one that commands are about where nothing else says so",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ref, err := t.within(argv[0])
			if err != nil {
				return err
			}
			envs, err := g.envs(cmd.Context(), ref.App)
			if err != nil {
				return err
			}
			if !slices.Contains(envs, ref.Env) {
				return hint.Errorf("make it: ov env create "+ref.Env+" --app "+ref.App, "env %s: %w", ref, vault.ErrNotFound)
			}
			file, err := config.Use(t.app, ref.Env) // the app too, if it was given
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "using env %s (%s)\n", ref, file)
			return nil
		},
	}
	appFlag(cmd, &t)
	return cmd
}

func newEnvDeleteCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	var t target
	var confirm bool
	cmd := &cobra.Command{
		Use:   "delete ENV --confirm",
		Short: "Delete an env with all its secrets and versions",
		Args:  command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ref, err := t.within(argv[0])
			if err != nil {
				return err
			}
			if err := confirmed(confirm, "env "+ref.String()+" with all its secrets"); err != nil {
				return err
			}
			s, done, err := u.open(cmd.Context(), cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer done()
			if err := s.DeleteEnv(cmd.Context(), ref); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "deleted env %s\n", ref)
			return nil
		},
	}
	u.add(cmd)
	appFlag(cmd, &t)
	confirmFlag(cmd, &confirm)
	return cmd
}
