package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/launch"
	"github.com/opaquevault/ov/pkg/near"
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

// misuse is a command line that is wrong whatever it was meant to do.
func misuse(cmd *cobra.Command, err error) error {
	if hint.Of(err) == "" {
		err = hint.Wrap(err, "see: "+cmd.CommandPath()+" --help")
	}
	if cmd.Name() == "run" { // whose other exit codes are its program's
		return &exitError{err, launch.ExitOwn}
	}
	return usage(err)
}

// flagError says what is wrong with a flag without repeating its value, which
// may be a secret in the wrong place.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	var syntax *pflag.InvalidSyntaxError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		err = fmt.Errorf("unknown flag -%s", unknown.GetSpecifiedName())
	case errors.As(err, &unknown):
		err = fmt.Errorf("unknown flag --%s", unknown.GetSpecifiedName())
	case errors.As(err, &invalid):
		flag := invalid.GetFlag()
		err = fmt.Errorf("the value of --%s is not a %s", flag.Name, flag.Value.Type())
	case errors.As(err, &syntax):
		err = errors.New("a flag that is not of the form --name=value")
	}
	return misuse(cmd, err)
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
		Version:       version.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.Args, root.RunE = subcommand, help
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelpCmd())
	root.CompletionOptions.DisableDefaultCmd = true
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
	return root
}

// args judges a command line as a whole: the number of arguments, and the flags
// that belong together or must not. Arguments are not repeated in the error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, list []string) error {
		if check(cmd, list) != nil {
			return misuse(cmd, hint.Errorf("usage: "+strings.TrimSuffix(cmd.CommandPath(), cmd.Name())+cmd.Use,
				"wrong arguments for %s: %d given", cmd.CommandPath(), len(list)))
		}
		err := cmd.ValidateRequiredFlags()
		if err == nil {
			err = cmd.ValidateFlagGroups()
		}
		if err != nil {
			return misuse(cmd, err)
		}
		return nil
	}
}

// group is a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: subcommand, RunE: help}
	cmd.AddCommand(children...)
	return cmd
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// subcommand takes no arguments: the first one is a command that is not there.
func subcommand(cmd *cobra.Command, list []string) error {
	if len(list) == 0 {
		return nil
	}
	var known []string
	for _, c := range cmd.Commands() {
		known = append(known, c.Name())
	}
	advice := ""
	if alike := near.Find(list[0], known, 1); len(alike) == 1 {
		advice = "did you mean: " + cmd.CommandPath() + " " + alike[0]
	}
	return misuse(cmd, hint.Wrap(fmt.Errorf("unknown command %.40q of %s", list[0], cmd.CommandPath()), advice))
}

// newHelpCmd is cobra's own but for its exit code when there is no such command.
func newHelpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		RunE: func(cmd *cobra.Command, argv []string) error {
			about, rest, err := cmd.Root().Find(argv)
			if err == nil {
				err = subcommand(about, rest)
			}
			if err != nil {
				return err
			}
			about.InitDefaultHelpFlag()
			about.InitDefaultVersionFlag()
			return about.Help()
		},
	}
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
