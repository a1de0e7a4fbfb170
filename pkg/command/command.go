// Package command is how ov's programs take their command lines and print: what
// is wrong usage and how it is told of, exit codes, groups of commands, JSON and
// tables, and what is shown of an API key.
//
// An argument or a flag's value may be a secret in the wrong place: no error
// repeats one. What a server or a teammate has named is never given to a
// terminal as it is.
package command

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/near"
)

// Exit codes that all programs have.
const (
	ExitFailure = 1
	ExitUsage   = 2
)

// exitError is an error with an exit code of its own.
type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

// Exit returns err, nil if it is nil, with an exit code of its own.
func Exit(err error, code int) error {
	if err == nil {
		return nil
	}
	return &exitError{err, code}
}

// ExitCode returns the exit code that an error has, the outermost one, or
// ExitFailure.
func ExitCode(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return ExitFailure
}

// Usage returns err, nil if it is nil, as one about a command line that is wrong.
func Usage(err error) error { return Exit(err, ExitUsage) }

// ownUsage is the annotation of a command whose wrong usage has another exit code
// than ExitUsage.
const ownUsage = "exit code of wrong usage"

// UsageExit returns the annotations of a command whose wrong usage has the exit
// code, as that of one which becomes another program, whose other codes are that
// program's.
func UsageExit(code int) map[string]string {
	return map[string]string{ownUsage: strconv.Itoa(code)}
}

// Misuse is a command line that is wrong whatever it was meant to do.
func Misuse(cmd *cobra.Command, err error) error {
	if hint.Of(err) == "" {
		err = hint.Wrap(err, "see: "+cmd.CommandPath()+" --help")
	}
	if code, aerr := strconv.Atoi(cmd.Annotations[ownUsage]); aerr == nil {
		return Exit(err, code)
	}
	return Usage(err)
}

// Root makes cmd the root of a program's commands. Its errors are the caller's to
// print.
func Root(cmd *cobra.Command) {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.Args, cmd.RunE = subcommand, help
	cmd.SetFlagErrorFunc(flagError)
	cmd.SetHelpCommand(newHelpCmd())
	cmd.CompletionOptions.DisableDefaultCmd = true
}

// Group is a command that only holds others.
func Group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: subcommand, RunE: help}
	cmd.AddCommand(children...)
	return cmd
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// Args judges a command line as a whole: the number of arguments, and the flags
// that belong together or must not.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, list []string) error {
		if check(cmd, list) != nil {
			return Misuse(cmd, hint.Errorf("usage: "+strings.TrimSuffix(cmd.CommandPath(), cmd.Name())+cmd.Use,
				"wrong arguments for %s: %d given", cmd.CommandPath(), len(list)))
		}
		err := cmd.ValidateRequiredFlags()
		if err == nil {
			err = cmd.ValidateFlagGroups()
		}
		if err != nil {
			return Misuse(cmd, err)
		}
		return nil
	}
}

// flagError says what is wrong with a flag without repeating its value.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		err = fmt.Errorf("unknown flag%s", like(" -", unknown.GetSpecifiedName()))
	case errors.As(err, &unknown):
		err = fmt.Errorf("unknown flag%s", like(" --", unknown.GetSpecifiedName()))
	case errors.As(err, &missing):
		err = fmt.Errorf("--%s needs a value", missing.GetFlag().Name)
	case errors.As(err, &invalid):
		flag := invalid.GetFlag()
		err = fmt.Errorf("the value of --%s is not a %s", flag.Name, flag.Value.Type())
	default: // pflag.InvalidSyntaxError, which holds the argument, or one to come
		err = errors.New("a flag that is not of the form --name=value")
	}
	return Misuse(cmd, err)
}

// maxLike bounds the names of commands and flags, in bytes.
const maxLike = 24

// like returns a word behind a prefix, if it is like the name of a command or a
// flag, and else nothing: then it is none that was mistyped, and may be a secret.
func like(prefix, word string) string {
	const letters = "abcdefghijklmnopqrstuvwxyz-"
	if word == "" || len(word) > maxLike || strings.Trim(word, letters) != "" {
		return ""
	}
	return prefix + word
}

// subcommand takes no arguments: the first one is a command that is not there.
func subcommand(cmd *cobra.Command, list []string) error {
	if len(list) == 0 {
		return nil
	}
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
	}
	advice := ""
	if alike := near.Find(list[0], known, 1); len(alike) == 1 {
		advice = "did you mean: " + cmd.CommandPath() + " " + alike[0]
	}
	name := like("", list[0])
	if name != "" {
		name = strconv.Quote(name) + " "
	}
	return Misuse(cmd, hint.Wrap(fmt.Errorf("unknown command %sof %s", name, cmd.CommandPath()), advice))
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
