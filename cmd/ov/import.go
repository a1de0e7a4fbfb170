package main

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/dotenv"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/vault"
)

// manySecrets is from how many on an import on a terminal has a progress bar.
const manySecrets = 1000

func newSecretImportCmd(g *globals) *cobra.Command {
	var overwrite, skip, dryRun, asJSON bool
	cmd := secretCmd(g, &cobra.Command{
		Use:   "import FILE",
		Short: "Import a .env file, all of it or nothing",
		Long: `Import a .env file, all of it or nothing. FILE may be - for standard input.

A line that cannot be read, or a secret that is there with another value, fails
the import before anything is written; --overwrite or --skip-existing say what
to do about the latter. A value that is already there makes no new version. The
app and the env are made if they are missing. docs/DOTENV.md describes the
dialect.`,
		Example: `  ov secret import /opt/myapp/.env.production --app myapp --env production`,
		Args:    command.Args(cobra.ExactArgs(1)),
	}, func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error {
		opt := vault.PutOptions{Existing: vault.RefuseExisting, DryRun: dryRun, Create: true, Note: "import"}
		switch {
		case overwrite:
			opt.Existing = vault.ReplaceExisting
		case skip:
			opt.Existing = vault.KeepExisting
		}
		return importFile(cmd, s, ref, argv[0], opt, asJSON)
	})
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "say what would be imported, write nothing")
	f.BoolVar(&overwrite, "overwrite", false, "make new versions of secrets that are there with another value")
	f.BoolVar(&skip, "skip-existing", false, "leave secrets alone that are there with another value")
	cmd.MarkFlagsMutuallyExclusive("overwrite", "skip-existing")
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// imported is the outcome of an import, for --json.
type imported struct {
	App      string      `json:"app"`
	Env      string      `json:"env"`
	DryRun   bool        `json:"dry_run"`
	Imported int         `json:"imported"` // in the vault now as in the file
	Total    int         `json:"total"`    // in the file
	Secrets  []putResult `json:"secrets"`
}

func importFile(cmd *cobra.Command, s vault.Unlocked, ref vault.Ref, file string, opt vault.PutOptions, asJSON bool) error {
	pairs, err := readDotenv(cmd.InOrStdin(), file)
	if err != nil {
		return err
	}
	defer dotenv.Wipe(pairs)
	for _, w := range dotenv.Warnings(pairs) {
		fmt.Fprintf(cmd.ErrOrStderr(), "ov: %s: warning: %s\n", file, w)
	}
	if !opt.DryRun {
		if err := sayWhatIsMade(cmd, s, ref); err != nil {
			return err
		}
	}
	puts := make([]vault.Put, len(pairs))
	for i, p := range pairs {
		puts[i] = vault.Put{Name: p.Name, Value: p.Value}
	}
	if len(puts) >= manySecrets && command.IsTerminal(cmd.ErrOrStderr()) {
		bar := progressbar.NewOptions(len(puts), progressbar.OptionSetWriter(cmd.ErrOrStderr()),
			progressbar.OptionSetDescription("encrypting"), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())
		_ = bar.RenderBlank()
		opt.Progress = func(n int) { _ = bar.Set(n) }
		defer func() { _ = bar.Finish() }()
	}
	results, err := s.Put(cmd.Context(), ref, puts, opt)
	if err != nil {
		return fmt.Errorf("nothing was imported: %w", err)
	}
	sum := imported{App: ref.App, Env: ref.Env, DryRun: opt.DryRun, Total: len(results), Secrets: []putResult{}}
	for _, r := range results {
		if r.Outcome != vault.Kept {
			sum.Imported++
		}
		sum.Secrets = append(sum.Secrets, putJSON(ref, r))
	}
	if asJSON {
		return command.PrintJSON(cmd.OutOrStdout(), sum)
	}
	return printImport(cmd, ref, file, sum)
}

func printImport(cmd *cobra.Command, ref vault.Ref, file string, sum imported) error {
	out := cmd.OutOrStdout()
	for _, r := range sum.Secrets {
		mark := "✓"
		if r.Outcome == vault.Kept.String() {
			mark = "-"
		}
		fmt.Fprintf(out, "%s %s (%s)\n", mark, r.Name, r.Outcome)
	}
	verb := "Imported"
	if sum.DryRun {
		verb = "Would import"
	}
	if _, err := fmt.Fprintf(out, "%s %d/%d secret(s) into %s\n", verb, sum.Imported, sum.Total, ref); err != nil {
		return err
	}
	if !sum.DryRun && sum.Total > 0 {
		fmt.Fprint(cmd.ErrOrStderr(), nextSteps(runtime.GOOS, ref, file))
	}
	return nil
}

// readDotenv reads and parses the file. The caller wipes the pairs.
func readDotenv(stdin io.Reader, file string) ([]dotenv.Pair, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		if st, err := f.Stat(); err == nil && st.IsDir() {
			return nil, fmt.Errorf("%s is a directory", file)
		}
		r = f
	}
	src, err := io.ReadAll(io.LimitReader(r, dotenv.MaxFile+1))
	defer clear(src)
	if err != nil {
		return nil, err
	}
	pairs, err := dotenv.Parse(src)
	if err != nil {
		return nil, fmt.Errorf("nothing was imported: %s: %w", file, err)
	}
	return pairs, nil
}

// sayWhatIsMade tells of an app or env that the import is about to make.
func sayWhatIsMade(cmd *cobra.Command, s vault.Unlocked, ref vault.Ref) error {
	apps, err := s.Apps(cmd.Context())
	if err != nil {
		return err
	}
	for _, a := range apps {
		if a.Slug != ref.App {
			continue
		}
		for _, e := range a.Envs {
			if e == ref.Env {
				return nil
			}
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "env %s is new\n", ref)
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "app %s is new\n", ref.App)
	return nil
}

// nextSteps is what the migration guide has next, for the platform.
func nextSteps(goos string, ref vault.Ref, file string) string {
	retire := "retire the file that it came from"
	if file != "-" {
		file = safefile.Shell(file)
		retire = fmt.Sprintf("retire the file:\n       mv %s %s.bak", file, file)
	}
	at := fmt.Sprintf("--app %s --env %s", ref.App, ref.Env)
	verify := fmt.Sprintf("\nNext steps:\n  1. Verify that nothing is missing:\n       ov secret list %s\n", at)
	if goos == "linux" {
		key := "/etc/ov/" + ref.App + ".key"
		return verify + fmt.Sprintf(`  2. On a server, let this machine unlock without a prompt:
       sudo install -d -o $USER -g $USER -m 700 /etc/ov
       ov auth derive-machine-key --out %s
       sudo ov agent install --machine-key %s %s --user $USER --enable
     On a laptop: ov agent start
  3. Start the service through ov:
       ov run %s --machine-key %s -- COMMAND
  4. Reboot and see that it comes back. Only then %s
`, key, key, at, at, key, retire)
	}
	return verify + fmt.Sprintf(`  2. Unlock for this session:
       ov agent start
  3. Start the program through ov:
       ov run %s -- COMMAND
  4. When it works, %s
`, at, retire)
}
