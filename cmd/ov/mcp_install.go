package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/mcpclient"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/stores"
)

// clientFlags say whose configuration is edited.
type clientFlags struct {
	client, scope, name string
	dryRun, json        bool
}

func (c *clientFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.client, "client", "", "client: "+strings.Join(mcpclient.Names(), ", "))
	f.StringVar(&c.scope, "scope", string(mcpclient.User), "user: your own file, for all projects; project: the one that is kept with the code")
	f.StringVar(&c.name, "name", mcpclient.DefaultName, "what the server is called in the client")
	f.BoolVar(&c.dryRun, "dry-run", false, "say what would be done, and write nothing")
	command.JSONFlag(cmd, &c.json)
	_ = cmd.MarkFlagRequired("client") // fails only for a flag that is not there
	for flag, values := range map[string][]string{"client": mcpclient.Names(), "scope": {string(mcpclient.User), string(mcpclient.Project)}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

func (c *clientFlags) options() (mcpclient.Options, error) {
	client, err := mcpclient.Find(c.client)
	o := mcpclient.Options{Client: client, Scope: mcpclient.Scope(c.scope), Name: c.name, DryRun: c.dryRun}
	if err == nil {
		err = o.Check()
	}
	return o, command.Usage(err)
}

// newMCPInstallCmd is "ov mcp install".
func newMCPInstallCmd(g *globals) *cobra.Command {
	var c clientFlags
	var t target
	var machineKey, approve string
	var force bool
	cmd := &cobra.Command{
		Use:   "install --client CLIENT [--scope user|project]",
		Short: "Add ov to the servers that an MCP client starts",
		Long: `Add ov to the servers that an MCP client starts.

The client's own configuration file gets an entry that runs "ov mcp serve" with
those of --app, --env, --machine-key, --approve, --vault and --socket that are
given here. Without --app and --env it is .ov.yaml that decides, in the directory
where the client starts the server. No secret goes in.

All else in the file stays as it is, with its comments and its layout, and the
file is replaced in one step. A file that cannot be read as the client reads it
is left alone. An entry of the same name that is not for "ov mcp serve" is
replaced only with --force; in one that is, what else it holds is kept.

The entry of your own file has the absolute path of this program. That of a
project is for all who work on it: it says "ov", which the client then looks for
in its PATH, no path that is not absolute, and not that nobody is to be asked.

With --dry-run the entry is printed, but not the file, which may hold tokens of
other servers.`,
		Example: `  ov mcp install --client claude-code
  ov mcp install --client vscode --scope project --app myapp --env staging`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := c.options()
			if err != nil {
				return err
			}
			if err := checkApprove(approve); err != nil {
				return err
			}
			if a := config.Approve(approve); o.Scope == mcpclient.Project && a != "" && a != config.ApproveAsk {
				// As .ov.yaml: a checkout must not turn off the questions about itself.
				return command.Usage(hint.Errorf("let each say it in config.toml, under [mcp], or in their own file: --scope user",
					"--approve %s is not for a project's file to say", approve))
			}
			for _, f := range []struct{ flag, value string }{{"--app", t.app}, {"--env", t.env}} {
				if f.value != "" && !names.ValidSlug(f.value) {
					return command.Usage(fmt.Errorf("%s %.40q is not a valid name: lower-case letters, digits and inner dashes, at most %d", f.flag, f.value, names.MaxSlug))
				}
			}
			entry := mcpclient.Entry{Args: []string{"mcp", "serve"}}
			for _, f := range []struct {
				flag, value string
				path        bool
			}{
				{"--vault", g.Vault, !stores.IsURL(g.Vault)},
				{"--socket", g.Socket, true},
				{"--app", t.app, false},
				{"--env", t.env, false},
				{"--machine-key", machineKey, true},
				{"--approve", approve, false},
			} {
				if f.value == "" {
					continue
				}
				if f.path && !filepath.IsAbs(f.value) {
					if o.Scope == mcpclient.Project {
						return command.Usage(hint.Errorf("give a path that holds for all who work on it",
							"%s is not an absolute path, and the file is a project's", f.flag))
					}
					if f.value, err = filepath.Abs(f.value); err != nil {
						return err
					}
				}
				entry.Args = append(entry.Args, f.flag, f.value)
			}
			if entry.Command, err = serverProgram(o.Scope); err != nil {
				return err
			}
			r, err := mcpclient.Install(o, entry, force)
			if err != nil {
				return err
			}
			return c.report(cmd, o.Client, r)
		},
	}
	c.add(cmd)
	t.add(cmd)
	f := cmd.Flags()
	f.StringVar(&machineKey, "machine-key", "", "have the server open the vault with this machine key, without an agent")
	f.StringVar(&approve, "approve", "", "when the server is to ask a person: auto, ask or never")
	f.BoolVar(&force, "force", false, "replace an entry of the same name that is not for ov")
	return cmd
}

// newMCPUninstallCmd is "ov mcp uninstall".
func newMCPUninstallCmd(*globals) *cobra.Command {
	var c clientFlags
	cmd := &cobra.Command{
		Use:   "uninstall --client CLIENT [--scope user|project]",
		Short: "Remove ov from the servers that an MCP client starts",
		Long: `Remove ov from the servers that an MCP client starts.

Only an entry that runs "ov mcp serve" is removed. All else in the file stays as
it is; a file in which nothing else is left is removed.`,
		Example: `  ov mcp uninstall --client claude-code`,
		Args:    command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := c.options()
			if err != nil {
				return err
			}
			r, err := mcpclient.Uninstall(o)
			if err != nil {
				return err
			}
			return c.report(cmd, o.Client, r)
		},
	}
	c.add(cmd)
	return cmd
}

// serverProgram returns what the client runs: in a shared file ov, in the
// user's own this program, by its path in PATH where it has one there: that one
// outlives an update of a package manager which keeps versions apart.
func serverProgram(scope mcpclient.Scope) (string, error) {
	if scope == mcpclient.Project {
		return "ov", nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if found, err := exec.LookPath("ov"); err == nil && filepath.IsAbs(found) {
		foundInfo, ferr := os.Stat(found)
		selfInfo, serr := os.Stat(self)
		if ferr == nil && serr == nil && os.SameFile(foundInfo, selfInfo) {
			return found, nil
		}
	}
	return self, nil
}

// report says what was done: one line, and of a change what was and what is.
func (c *clientFlags) report(cmd *cobra.Command, client *mcpclient.Client, r mcpclient.Result) error {
	talk := cmd.ErrOrStderr()
	file := safefile.Quote(r.File)
	would, next := "", "; next: "+client.Next
	if r.DryRun {
		would, next = "would have ", ""
	}
	switch r.Action {
	case mcpclient.Unchanged:
		fmt.Fprintf(talk, "nothing to change: %s is in %s\n", r.Name, file)
	case mcpclient.Absent:
		fmt.Fprintf(talk, "nothing to remove: %s is not in %s\n", r.Name, file)
	case mcpclient.Added:
		fmt.Fprintf(talk, "%sadded %s to %s%s\n", would, r.Name, file, next)
	case mcpclient.Removed:
		if r.Deleted {
			next = ", and the file, which held nothing else" + next
		}
		fmt.Fprintf(talk, "%sremoved %s from %s%s\n", would, r.Name, file, next)
	case mcpclient.Updated:
		before := "another server"
		if r.Before != nil {
			before = commandLine(*r.Before)
		}
		fmt.Fprintf(talk, "%supdated %s in %s%s\n  was: %s\n  now: %s\n", would, r.Name, file, next, before, commandLine(*r.Entry))
	}
	if r.Missing != "" && r.Entry != nil {
		fmt.Fprintf(talk, "ov: warning: %s has never run in this account: there is no %s\n", client.Title, safefile.Quote(r.Missing))
	}
	if r.Scope == mcpclient.Project && r.Entry != nil {
		if _, err := exec.LookPath(r.Entry.Command); err != nil {
			fmt.Fprintf(talk, "ov: warning: there is no ov in PATH, where %s will look for it\n", client.Title)
		}
	}
	if c.json {
		return command.PrintJSON(cmd.OutOrStdout(), r)
	}
	if r.DryRun && r.Entry != nil {
		text, err := mcpclient.Alone(client, r.Name, *r.Entry)
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	return nil
}

// commandLine shows an entry as a person would type it.
func commandLine(e mcpclient.Entry) string {
	words := []string{safefile.Shell(e.Command)}
	for _, arg := range e.Args {
		if strings.HasPrefix(arg, "-") {
			words = append(words, safefile.Quote(arg))
			continue
		}
		words = append(words, safefile.Shell(arg))
	}
	return strings.Join(words, " ")
}
