package main

import (
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/mcp/options"
	"github.com/opaquevault/ov/pkg/sibling"
)

// newMCPCmd is "ov mcp".
func newMCPCmd(g *globals) *cobra.Command {
	return command.Group("mcp", "Let AI coding agents use secrets that they must not read",
		newMCPServeCmd(g), newMCPInstallCmd(g), newMCPUninstallCmd(g))
}

// newMCPServeCmd is "ov mcp serve".
func newMCPServeCmd(g *globals) *cobra.Command {
	var t target
	var machineKey, approve string
	cmd := &cobra.Command{
		Use:   "serve [--app APP] [--env ENV] [--machine-key FILE] [--approve auto|ask|never]",
		Short: "Serve one MCP client over standard input and output",
		Long: `Serve one MCP client over standard input and output.

The client's model can have programs run with secrets in their environment, list,
create, update and delete secrets, and never gets to see a value: no tool takes
or returns one, output is masked, and messages that hold a value of the env or
what looks like a secret are blocked. MCP clients start this command by
themselves: see "ov mcp install".

The vault is opened through the agent, or with --machine-key. Nobody is asked for
a password: while the agent is locked, every tool says so, and works as soon as
it is unlocked.

--approve says when a person is asked before a program runs or a secret changes:
"auto", the default, where the client can ask (MCP elicitation); "ask" always, so
that a client which cannot ask gets a refusal; "never". In .ov.yaml, and in
config.toml, mcp.allow lists commands that run without a question, and mcp.deny
those that never run:

  mcp: {allow: [["npm", "test"], ["go", "test", "./..."]], deny: [["curl"]]}

In a rule "*" stands for any one word, and "**" at its end for any that follow. A
rule of mcp.deny also holds for what begins with its words. The files are read
once, at the start.

OV_INTERCEPT_MODE says what happens to a message that holds a secret: block (the
default), warn, which lets it pass and says so in the log, or off.

The programs run as you, and so does the model's client: see "What it does not
protect against" in docs/SECURITY.md.`,
		Example: `  ov mcp serve --app myapp --env staging
  ov mcp serve --machine-key /etc/ov/myapp.key --approve ask`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkApprove(approve); err != nil {
				return err
			}
			if !cmd.Flags().Changed(serverTimeout) {
				g.Wait = waitForPerson // who waits for the model
			}
			return sibling.Exec(options.Program, options.Serve{
				Place: g.Place, App: t.app, Env: t.env, MachineKey: machineKey, Approve: config.Approve(approve),
			})
		},
	}
	t.add(cmd)
	f := cmd.Flags()
	f.StringVar(&machineKey, "machine-key", "", "open the vault with this machine key, without an agent")
	f.StringVar(&approve, "approve", "", "when to ask a person: auto, ask or never (default: what config.toml says, or auto)")
	return cmd
}

// checkApprove judges the value of --approve, "" if it is not given.
func checkApprove(value string) error {
	if value == "" || config.Approve(value).Valid() {
		return nil
	}
	return command.Usage(hint.Errorf("pass auto, ask or never", "--approve does not have the value %.20q", value))
}
