package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/version"
	"github.com/opaquevault/ov/pkg/xdg"
)

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
		Version: version.String(),
	}
	command.Root(root)
	root.PersistentFlags().StringVar(&g.data, "data", "",
		"data directory (default: /var/lib/ov-server for root, else $XDG_DATA_HOME/ov-server)")
	root.AddCommand(newInitCmd(g), newServeCmd(g), newAccountCmd(g), newAPIKeyCmd(g), newMigrateCmd(g), newVersionCmd())
	return root
}

// dataFlag is the flag for the data directory as the next command needs it.
func (g *globals) dataFlag() string {
	if g.data == "" {
		return ""
	}
	return " --data " + safefile.Shell(g.data)
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
		Args:  command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), map[string]string{"version": version.String(), "go": runtime.Version()})
			}
			fmt.Fprintln(cmd.OutOrStdout(), version.String())
			return nil
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// unix is a time of the API, in seconds; nil for 0, which says never.
func unix(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}
