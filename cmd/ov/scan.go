package main

import (
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/scan/options"
	"github.com/opaquevault/ov/pkg/sibling"
)

func newScanCmd(*globals) *cobra.Command {
	var o options.Scan
	var asJSON, asSARIF, install, uninstall bool
	cmd := &cobra.Command{
		Use:   "scan [PATH...]",
		Short: "Find secrets in files, in git history and in what is staged",
		Long: `Find secrets in files and folders (default: the current folder), and say where
they are. Of a value, only the first two characters and the length are shown,
whatever the format.

The rules are those of gitleaks, and some more: see docs/DETECTION.md. Encoded
values are decoded. Scanned is also what git ignores, since that is where .env
files are; --tracked leaves it out. Not scanned are: .git (see --history);
binary files; files larger than 16 MiB; what symbolic links lead to; what is in
archives; and what the rules pass over by name, such as lock files, pictures and
node_modules.

--history looks at every line that a commit added, in all refs of the
repositories that PATH is in, and names the commit that brought a secret. A
secret that was removed later is found: it is still there for whoever has the
repository. --staged looks at the lines that the next commit would add.
--install-hook has git do that before every commit.

A line that holds the comment gitleaks:allow is passed over. --write-baseline
writes what is found now to a file, and --baseline leaves that out later, also
when it has moved to another line. The file tells nothing of use about a value.

Exit codes: 0 no secrets, 1 failure, also when something could not be scanned,
2 wrong usage, 3 secrets were found.`,
		Example: `  ov scan
  ov scan --history --json
  ov scan --install-hook
  ov scan --write-baseline .ov-baseline.json
  ov scan --baseline .ov-baseline.json --sarif src > ov.sarif`,
		Args: command.Args(cobra.ArbitraryArgs),
		RunE: func(_ *cobra.Command, paths []string) error {
			o.Paths = paths
			switch {
			case asJSON:
				o.Format = options.JSON
			case asSARIF:
				o.Format = options.SARIF
			}
			switch {
			case install:
				o.Hook = options.Install
			case uninstall:
				o.Hook = options.Uninstall
			}
			return sibling.Exec(options.Program, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.History, "history", false, "scan the git history, all refs")
	f.BoolVar(&o.Staged, "staged", false, "scan what is staged for the next commit")
	f.BoolVar(&o.Tracked, "tracked", false, "leave out files that git ignores")
	command.JSONFlag(cmd, &asJSON)
	f.BoolVar(&asSARIF, "sarif", false, "print SARIF 2.1.0, for code scanning")
	f.StringVar(&o.Baseline, "baseline", "", "leave out the findings in this file")
	f.StringVar(&o.WriteBaseline, "write-baseline", "", "write the findings to this file, and print none")
	f.BoolVar(&install, "install-hook", false, "have git run \"ov scan --staged\" before every commit")
	f.BoolVar(&uninstall, "uninstall-hook", false, "take that hook away again")
	cmd.MarkFlagsMutuallyExclusive("history", "staged", "tracked", "install-hook", "uninstall-hook")
	cmd.MarkFlagsMutuallyExclusive("json", "sarif", "write-baseline", "install-hook", "uninstall-hook")
	cmd.MarkFlagsMutuallyExclusive("baseline", "write-baseline", "install-hook", "uninstall-hook")
	return cmd
}
