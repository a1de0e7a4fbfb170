package main

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/launch"
	"github.com/opaquevault/ov/pkg/version"
)

// Exit codes, besides those of `ov run` (package launch).
const (
	exitFailure = 1
	exitUsage   = 2
)

// exitError is an error with an exit code of its own.
type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return exitFailure
}

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{err, exitUsage}
}

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
	{"status", newStatusCmd},
	{"doctor", newDoctorCmd},
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
		Version:       version.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd.Name() == "run" {
			return &exitError{err, launch.ExitOwn}
		}
		return usage(err)
	})
	f := root.PersistentFlags()
	f.StringVar(&g.vault, "vault", "", "vault file (default: what config.toml says, or $XDG_DATA_HOME/ov/vault.db)")
	f.StringVar(&g.socket, "socket", "", "socket of the agent (default: found through /etc/ov/agent.socket, or your own)")
	root.CompletionOptions.DisableDefaultCmd = only != ""
	for _, noun := range nouns {
		if only == "" || noun.name == only {
			root.AddCommand(noun.command(g))
		}
	}
	return root
}

// args checks the number of arguments, as a matter of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, list []string) error { return usage(check(cmd, list)) }
}

// group is a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error {
		return cmd.Help()
	}}
	cmd.AddCommand(children...)
	return cmd
}

// jsonFlag adds --json.
func jsonFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "print JSON")
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
