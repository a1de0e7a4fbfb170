package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/store/postgres"
)

// migrateJSON is what migrate prints with --json: versions of the schema, 0 for
// none.
type migrateJSON struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

func newMigrateCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the schema in PostgreSQL up to this version's",
		Long: `migrate makes the tables in PostgreSQL, or changes those of an older version
into this one's. It is safe to run more than once, and by two at a time. The
embedded storage needs none of it.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dsn, err := g.database.find()
			if err != nil {
				return err
			}
			var done migrateJSON
			if dsn != "" {
				if done.From, err = postgres.Migrate(cmd.Context(), dsn); err != nil {
					return err
				}
				done.To = postgres.SchemaVersion
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), done)
			}
			switch {
			case dsn == "":
				fmt.Fprintln(cmd.ErrOrStderr(), "nothing to do: the embedded storage needs no migration")
			case done.From == done.To:
				fmt.Fprintf(cmd.ErrOrStderr(), "the schema was of version %d already\n", done.To)
			default:
				fmt.Fprintf(cmd.ErrOrStderr(), "the schema is of version %d now\n", done.To)
			}
			return nil
		},
	}
	g.database.add(cmd)
	command.JSONFlag(cmd, &asJSON)
	return cmd
}
