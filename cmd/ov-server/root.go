package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/version"
	"github.com/opaquevault/ov/pkg/xdg"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

// usageError is about a command line that is wrong.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if errors.As(err, new(*usageError)) {
		return exitUsage
	}
	return exitFailure
}

// globals are what all commands that touch a server's data have.
type globals struct {
	data     string
	database database
}

// newRootCmd returns the command tree.
func newRootCmd() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "ov-server",
		Short: "Keep the vaults of teams, without being able to read them",
		Long: `ov-server keeps records of ciphertext for the vaults of many people and
machines, in a file of its own or in PostgreSQL. It has no key to any of them
and no code that could decrypt.

Output goes to standard output, everything else to standard error. Exit codes:
0 success, 1 failure, 2 wrong usage.`,
		Example: `  ov-server init --host vault.example.com
  ov-server serve
  ov-server account create example
  ov-server apikey create --name alice --scope admin`,
		Version:       version.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          subcommand,
		RunE:          help,
	}
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&g.data, "data", "",
		"data directory (default: /var/lib/ov-server for root, else $XDG_DATA_HOME/ov-server)")
	root.AddCommand(newInitCmd(g), newServeCmd(g), newAccountCmd(g), newAPIKeyCmd(g), newMigrateCmd(g), newVersionCmd())
	return root
}

// dir returns the data directory.
func (g *globals) dir() (string, error) {
	if g.data != "" {
		return filepath.Abs(g.data)
	}
	if os.Geteuid() == 0 {
		return "/var/lib/ov-server", nil
	}
	vault, err := xdg.Vault() // of ov, beside whose folder is ov-server's
	if err != nil {
		return "", hint.Wrap(err, "name it: --data DIR")
	}
	return filepath.Join(filepath.Dir(filepath.Dir(vault)), "ov-server"), nil
}

func newVersionCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": version.String(), "go": runtime.Version()})
			}
			fmt.Fprintln(cmd.OutOrStdout(), version.String())
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// misuse is a command line that is wrong whatever it was meant to do.
func misuse(cmd *cobra.Command, err error) error {
	if hint.Of(err) == "" {
		err = hint.Wrap(err, "see: "+cmd.CommandPath()+" --help")
	}
	return &usageError{err}
}

// flagError says what is wrong with a flag without repeating its value, which
// may be a secret in the wrong place.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		err = fmt.Errorf("unknown flag %s", unknown.GetSpecifiedName())
	case errors.As(err, &invalid):
		flag := invalid.GetFlag()
		err = fmt.Errorf("the value of --%s is not a %s", flag.Name, flag.Value.Type())
	}
	return misuse(cmd, err)
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
	return misuse(cmd, fmt.Errorf("unknown command %.40q of %s", list[0], cmd.CommandPath()))
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

// table prints rows in columns; the header only to a terminal, so that a count
// of the lines is a count of the rows.
func table(w io.Writer, header string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(tw, header)
	}
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// unix is a time of the API, in seconds; nil for 0, which says never.
func unix(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

// stamp is a time for a person.
func stamp(t *time.Time, never string) string {
	if t == nil {
		return never
	}
	return t.Local().Format(time.DateTime)
}
