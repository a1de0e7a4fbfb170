package main

import (
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/version"
)

// nouns are the commands below ov, each in a file of its name.
var nouns = []struct {
	name    string
	command func(*globals) *cobra.Command
}{
	{"run", newRunCmd},
	{"secret", newSecretCmd},
	{"app", newAppCmd},
	{"env", newEnvCmd},
	{"auth", newAuthCmd},
	{"agent", newAgentCmd},
	{"scan", newScanCmd},
	{"status", newStatusCmd},
	{"completion", newCompletionCmd},
	{"doctor", newDoctorCmd},
	{"mcp", newMCPCmd},
	{"vault", newVaultCmd},
	{"apikey", newAPIKeyCmd},
}

// onlyNoun returns the one noun that the command line is about, so that a start
// of ov run does not build fifty commands that it does not need; "" where that
// is not plain from the first word.
func onlyNoun(argv []string) string {
	for _, noun := range nouns {
		if len(argv) > 1 && argv[1] == noun.name {
			return noun.name
		}
	}
	return ""
}

// newRootCmd returns the command tree: all of it, or with only one noun.
func newRootCmd(only string) *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "ov",
		Short: "Keep secrets out of .env files, and put them into a program's environment",
		Long: `ov keeps a program's secrets in a vault whose storage never sees a plaintext,
and puts them into the program's environment at start.

Output goes to standard output, everything else to standard error. Exit codes:
0 success, 1 failure, 2 wrong usage. "ov run" exits with its program's own
code, or 125 when ov itself failed, 126 when the program cannot be executed,
127 when it was not found.`,
		Example: `  ov auth init
  ov secret import .env --app myapp --env production
  ov agent start
  ov run --app myapp --env production -- ./server`,
		Version: version.String(),
	}
	command.Root(root)
	f := root.PersistentFlags()
	f.StringVar(&g.Vault, "vault", "", "vault file, or https:// address of an ov-server (default: see ov status)")
	f.StringVar(&g.Socket, "socket", "", "socket of the agent (default: found through /etc/ov/agent.socket, or your own)")
	f.DurationVar(&g.Wait, serverTimeout, 0, "how long to wait for a server that is away (default: 10s on a terminal, else 1m)")
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) { g.prepare(cmd) }
	for _, noun := range nouns {
		if only == "" || noun.name == only {
			root.AddCommand(noun.command(g))
		}
	}
	if only == "" {
		completeNames(root, g)
	}
	return root
}
