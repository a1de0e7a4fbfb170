package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

// Names are completed with what a running agent says. Nobody is asked for a
// password, no server is, and no value is read. Whatever goes wrong, there is
// just nothing to offer.

// completeWait bounds how long somebody who has pressed Tab waits.
const completeWait = time.Second

// completeNames has all commands of a tree complete the apps, envs and secrets
// that are there. It is not for a start of ov run, which would pay for it.
func completeNames(root *cobra.Command, g *globals) {
	flags := map[string]cobra.CompletionFunc{
		"app": g.complete(findApps), "env": g.complete(findEnvs), "secrets": commaSeparated(g.complete(findSecrets)),
	}
	arguments := g.completeArguments()
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.ValidArgsFunction = arguments[cmd.CommandPath()]
		for name, fn := range flags {
			if cmd.Flags().Lookup(name) != nil {
				_ = cmd.RegisterFlagCompletionFunc(name, fn) // once: it fails the second time
			}
		}
		for _, c := range cmd.Commands() {
			visit(c)
		}
	}
	visit(root)
}

// completeArguments says how arguments are completed, by the commands' paths.
func (g *globals) completeArguments() map[string]cobra.CompletionFunc {
	app, env, secret := first(g.complete(findApps)), first(g.complete(findEnvs)), g.complete(findSecrets)
	return map[string]cobra.CompletionFunc{
		"ov app create":              cobra.NoFileCompletions,
		"ov app use":                 app,
		"ov app delete":              app,
		"ov env create":              cobra.NoFileCompletions,
		"ov env use":                 env,
		"ov env delete":              env,
		"ov secret set":              first(secret),
		"ov secret get":              first(secret),
		"ov secret history":          first(secret),
		"ov secret rollback":         first(secret),
		"ov secret delete":           several(secret),
		"ov auth revoke-machine-key": first(g.completeMachineKeys),
	}
}

// A finder asks the agent for names of one kind, as far as a command line says
// where they are.
type finder func(ctx context.Context, c *agent.Client, cmd *cobra.Command) ([]string, error)

// complete offers the names that are found and begin with what was typed.
func (g *globals) complete(find finder) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
		defer cancel()
		c, err := access.Place{Vault: g.Vault, Socket: g.Socket}.Connect(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer func() { _ = c.Close() }()
		found, err := find(ctx, c, cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offered(found, typed), cobra.ShellCompDirectiveNoFileComp
	}
}

// offered returns the names that begin with what was typed, without those that a
// shell would take for something else: bash expands what is offered to it.
func offered(found []string, typed string) []string {
	return slices.DeleteFunc(slices.Clone(found), func(name string) bool {
		return !names.ValidName(name) && !names.ValidSlug(name) || !strings.HasPrefix(name, typed)
	})
}

func findApps(ctx context.Context, c *agent.Client, _ *cobra.Command) ([]string, error) {
	apps, err := c.Apps(ctx)
	var found []string
	for _, a := range apps {
		found = append(found, a.Slug)
	}
	return found, err
}

func findEnvs(ctx context.Context, c *agent.Client, cmd *cobra.Command) ([]string, error) {
	where, err := config.Resolve(config.Options{App: flagValue(cmd, "app")})
	if err != nil {
		return nil, err
	}
	apps, err := c.Apps(ctx)
	for _, a := range apps {
		if a.Slug == where.App.Value {
			return a.Envs, err
		}
	}
	return nil, err
}

func findSecrets(ctx context.Context, c *agent.Client, cmd *cobra.Command) ([]string, error) {
	where, err := config.Resolve(config.Options{App: flagValue(cmd, "app"), Env: flagValue(cmd, "env")})
	if err != nil {
		return nil, err
	}
	list, err := c.List(ctx, vault.Ref{App: where.App.Value, Env: where.Env.Value})
	var found []string
	for _, v := range list {
		found = append(found, v.Name)
	}
	return found, err
}

func flagValue(cmd *cobra.Command, name string) string {
	if flag := cmd.Flags().Lookup(name); flag != nil {
		return flag.Value.String()
	}
	return ""
}

// completeMachineKeys offers fingerprints, with what the keys open. They are not
// sealed, and the agent has nothing to do with them: a file is read, and a server
// is not asked.
func (g *globals) completeMachineKeys(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	at, err := access.Locate(g.Vault, "")
	if err != nil || stores.IsURL(at.Value) {
		return nil, none
	}
	o, err := access.Place{Vault: at.Value}.Open("")
	if err != nil {
		return nil, none
	}
	defer o.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
	defer cancel()
	keys, err := o.MachineKeys(ctx)
	if err != nil {
		return nil, none
	}
	var list []string
	for _, k := range keys {
		if apikey.ValidID(k.Fingerprint) && strings.HasPrefix(k.Fingerprint, typed) { // which has the same form
			k.Label = "" // any text
			list = append(list, cobra.CompletionWithDesc(k.Fingerprint, describeKey(k)))
		}
	}
	return list, none
}

// first completes the first argument only.
func first(fn cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(argv) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return fn(cmd, argv, typed)
	}
}

// several completes every argument, each with what is not there yet.
func several(fn cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
		list, directive := fn(cmd, argv, typed)
		return without(list, argv), directive
	}
}

// commaSeparated completes the last of several names in one argument.
func commaSeparated(fn cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
		at := strings.LastIndexByte(typed, ',') + 1
		list, directive := fn(cmd, argv, typed[at:])
		list = without(list, strings.Split(typed[:at], ","))
		for i := range list {
			list[i] = typed[:at] + list[i]
		}
		return list, directive | cobra.ShellCompDirectiveNoSpace
	}
}

func without(list, gone []string) []string {
	return slices.DeleteFunc(list, func(name string) bool { return slices.Contains(gone, name) })
}
