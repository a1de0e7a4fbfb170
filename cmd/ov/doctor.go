package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/doctor"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/version"
)

func newDoctorCmd(g *globals) *cobra.Command {
	var o doctor.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [--unit SERVICE] [--app APP] [--env ENV] [--machine-key FILE] [--user USER]",
		Short: "Find out why ov does not work here, and say what mends it",
		Long: `Find out why ov does not work here, and say what mends it.

Looked at are, in this order: the agent; the machine key, whether the service's
account can use it and whether it still opens the vault; the app, env and
secrets that the service asks for; whether systemd has loaded the unit as it is
on disk; and .env files, for what is in them and not in the vault.

This is done for the service --unit, or for each in /etc/systemd/system that is
started by "ov run", or else for your own set-up. What a service needs is read
from its unit. A flag says what it should be: a unit that has it otherwise is a
fault. Without --unit, flags choose among the services.

Nothing is changed. Root sees more: run it with sudo for a service that has an
account of its own. Each fault comes with a command that mends it.

Exit codes: 0 if nothing is wrong, 1 if anything is.`,
		Example: `  sudo ov doctor
  sudo ov doctor --unit myapp
  ov doctor --app myapp --env production --machine-key /etc/ov/myapp.key --user deploy --json`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Vault, o.Version = g.Vault, version.String()
			found, err := doctor.Run(cmd.Context(), doctor.ThisMachine(g.Socket), o)
			if err != nil {
				return err
			}
			if asJSON {
				err = command.PrintJSON(cmd.OutOrStdout(), found)
			} else {
				printFindings(cmd.OutOrStdout(), found)
			}
			if err == nil && doctor.Failed(found) {
				err = command.Exit(errors.New(""), command.ExitFailure)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Unit, "unit", "", "systemd service to look at, such as myapp.service")
	f.StringVar(&o.App, "app", "", "app that the service should use")
	f.StringVar(&o.Env, "env", "", "env that the service should use")
	f.StringVar(&o.MachineKey, "machine-key", "", "machine key that the service should use")
	f.StringVar(&o.User, "user", "", "account that the service should run as")
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// printFindings writes a line for each finding, and below it the command that
// mends it.
func printFindings(w io.Writer, list []doctor.Finding) {
	color := func(_, text string) string { return text }
	if command.IsTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		color = func(code, text string) string { return "\x1b[" + code + "m" + text + "\x1b[0m" }
	}
	for _, f := range list {
		mark, text := color("32", "ok  "), f.Detail
		switch f.State {
		case doctor.Fail:
			mark, text = color("1;31", "FAIL"), f.Problem
		case doctor.Note:
			mark, text = color("33", "note"), f.Problem
		case doctor.OK:
		}
		fmt.Fprintf(w, "%s %s: %s\n", mark, hint.Text(f.Subject), hint.Text(text))
		if f.Fix != "" {
			fmt.Fprintf(w, "     fix: %s\n", hint.Text(f.Fix))
		}
	}
}
