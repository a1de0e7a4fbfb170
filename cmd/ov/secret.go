package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/vault"
)

func newSecretCmd(g *globals) *cobra.Command {
	return command.Group("secret", "Set, get, list, import and roll back secrets",
		newSecretSetCmd(g), newSecretGetCmd(g), newSecretListCmd(g), newSecretDeleteCmd(g),
		newSecretHistoryCmd(g), newSecretRollbackCmd(g), newSecretImportCmd(g))
}

// secretCmd is a command about the secrets of one env.
func secretCmd(g *globals, cmd *cobra.Command, do func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error) *cobra.Command {
	u := &unlockFlags{globals: g}
	var t target
	u.add(cmd)
	t.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		ref, err := t.ref()
		if err != nil {
			return err
		}
		s, done, err := u.open(cmd.Context(), cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer done()
		return do(cmd, argv, s, ref)
	}
	return cmd
}

func newSecretSetCmd(g *globals) *cobra.Command {
	var file string
	var replaces uint32
	cmd := secretCmd(g, &cobra.Command{
		Use:   "set NAME [--from-file FILE]",
		Short: "Store a secret's value as a new version",
		Long: `Store a secret's value as a new version.

The value is asked for on the terminal; when standard input is not a terminal,
it is read from there, without the newline at its end if there is exactly one
line; with --from-file it is the file's bytes as they are. It is never taken
from the command line, where other users of the machine could read it. The same
value again makes no new version.`,
		Example: `  ov secret set DATABASE_URL --app myapp --env production
  pwgen -s 32 1 | ov secret set SESSION_KEY
  ov secret set TLS_KEY --from-file key.pem`,
		Args: func(cmd *cobra.Command, list []string) error {
			if len(list) == 2 {
				return command.Misuse(cmd, hint.Errorf("leave it out: ov asks for it, or reads standard input or --from-file",
					"a secret's value is never taken from the command line"))
			}
			return command.Args(cobra.ExactArgs(1))(cmd, list)
		},
	}, func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error {
		value, err := readValue(cmd.InOrStdin(), argv[0], file)
		if err != nil {
			return err
		}
		defer value.Destroy()
		put := vault.Put{Name: argv[0], Value: value.Bytes()}
		if cmd.Flags().Changed("replaces") {
			put.Replaces = &replaces
		}
		res, err := s.Put(cmd.Context(), ref, []vault.Put{put}, vault.PutOptions{Note: "set"})
		if err != nil {
			return err
		}
		return reportPut(cmd, ref, res[0])
	})
	cmd.Flags().StringVar(&file, "from-file", "", "read the value from this file")
	cmd.Flags().Uint32Var(&replaces, "replaces", 0, "fail unless this is the newest version now, 0 for none")
	command.JSONFlag(cmd, new(bool))
	return cmd
}

// reportPut says what became of one secret.
func reportPut(cmd *cobra.Command, ref vault.Ref, res vault.PutResult) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return command.PrintJSON(cmd.OutOrStdout(), putJSON(ref, res))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s %s in %s (version %d)\n", res.Outcome, res.Name, ref, res.Version)
	return nil
}

// putResult is a vault.PutResult for --json.
type putResult struct {
	App     string `json:"app"`
	Env     string `json:"env"`
	Name    string `json:"name"`
	Version uint32 `json:"version"`
	Outcome string `json:"outcome"` // created, updated, unchanged or kept
}

func putJSON(ref vault.Ref, res vault.PutResult) putResult {
	return putResult{ref.App, ref.Env, res.Name, res.Version, res.Outcome.String()}
}

// readValue reads a secret's value into locked memory, which the caller
// destroys.
func readValue(stdin io.Reader, name, file string) (*kek.Locked, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		value, err := prompt.All(f, vault.MaxValue)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return value, nil
	}
	if command.IsTerminal(stdin) {
		return prompt.Secret("Value of " + name + ": ")
	}
	value, err := prompt.All(stdin, vault.MaxValue)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	prompt.DropNewline(value)
	return value, nil
}

func newSecretGetCmd(g *globals) *cobra.Command {
	var reveal, asJSON bool
	var version uint32
	cmd := secretCmd(g, &cobra.Command{
		Use:   "get NAME [--version N] [--reveal]",
		Short: "Print a secret's value",
		Long: `Print a secret's value, to a terminal; with --reveal also to a pipe or file,
where exactly the value's bytes are written, without a newline. With --json the
value is in "value", or in "value_base64" if it is not UTF-8 text.`,
		Args: command.Args(cobra.ExactArgs(1)),
	}, func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error {
		out := cmd.OutOrStdout()
		terminal := command.IsTerminal(out)
		if !terminal && !reveal {
			return hint.Errorf("if that is what you want: --reveal", "standard output is not a terminal: the value of %s was not printed", argv[0])
		}
		return s.Reveal(cmd.Context(), ref, vault.Select{Names: argv, Version: version}, func(found []vault.Secret) error {
			if asJSON {
				return command.PrintJSON(out, revealedJSON(ref, found[0]))
			}
			if _, err := out.Write(found[0].Value); err != nil || !terminal {
				return err
			}
			_, err := io.WriteString(out, "\n")
			return err
		})
	})
	cmd.Flags().BoolVar(&reveal, "reveal", false, "print the value even where it is not a terminal")
	cmd.Flags().Uint32Var(&version, "version", 0, "an older version (default: the newest)")
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// revealed is a secret for --json. JSON holds text only, so a value that is not
// UTF-8 is in base64.
type revealed struct {
	App     string  `json:"app"`
	Env     string  `json:"env"`
	Name    string  `json:"name"`
	Version uint32  `json:"version"`
	Value   *string `json:"value,omitempty"`
	Base64  []byte  `json:"value_base64,omitempty"`
}

func revealedJSON(ref vault.Ref, s vault.Secret) revealed {
	r := revealed{App: ref.App, Env: ref.Env, Name: s.Name, Version: s.Version}
	if utf8.Valid(s.Value) {
		text := string(s.Value)
		r.Value = &text
	} else {
		r.Base64 = s.Value
	}
	return r
}

func newSecretListCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := secretCmd(g, &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the secrets of an env, without their values",
		Args:    command.Args(cobra.NoArgs),
	}, func(cmd *cobra.Command, _ []string, s vault.Unlocked, ref vault.Ref) error {
		list, err := s.List(cmd.Context(), ref)
		if err != nil {
			return err
		}
		return printVersions(cmd, list, asJSON)
	})
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func printVersions(cmd *cobra.Command, list []vault.Version, asJSON bool) error {
	if asJSON {
		if list == nil {
			list = []vault.Version{}
		}
		return command.PrintJSON(cmd.OutOrStdout(), list)
	}
	return command.Table(cmd.OutOrStdout(), "NAME\tVERSION\tCREATED\tBY", len(list), func(i int) []string {
		v := list[i]
		return []string{v.Name, strconv.Itoa(int(v.Version)), v.Created.Local().Format(time.DateTime), v.Note}
	})
}

func newSecretDeleteCmd(g *globals) *cobra.Command {
	return secretCmd(g, &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete secrets with all their versions",
		Args:    command.Args(cobra.MinimumNArgs(1)),
	}, func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error {
		if err := s.Delete(cmd.Context(), ref, argv); err != nil {
			return err
		}
		for _, name := range argv {
			fmt.Fprintf(cmd.ErrOrStderr(), "deleted %s in %s\n", name, ref)
		}
		return nil
	})
}

func newSecretHistoryCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := secretCmd(g, &cobra.Command{
		Use:   "history NAME",
		Short: "List the versions of a secret that are kept, newest first",
		Args:  command.Args(cobra.ExactArgs(1)),
	}, func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error {
		list, err := s.History(cmd.Context(), ref, argv[0])
		if err != nil {
			return err
		}
		return printVersions(cmd, list, asJSON)
	})
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newSecretRollbackCmd(g *globals) *cobra.Command {
	cmd := secretCmd(g, &cobra.Command{
		Use:   "rollback NAME VERSION",
		Short: "Make an older version's value the newest version",
		Args:  command.Args(cobra.ExactArgs(2)),
	}, func(cmd *cobra.Command, argv []string, s vault.Unlocked, ref vault.Ref) error {
		n, err := strconv.ParseUint(argv[1], 10, 32)
		if err != nil || n == 0 {
			return command.Usage(hint.Errorf("see what is kept: ov secret history "+argv[0], "VERSION is not a number from 1"))
		}
		res, err := s.Rollback(cmd.Context(), ref, argv[0], uint32(n))
		if err != nil {
			return err
		}
		return reportPut(cmd, ref, res)
	})
	command.JSONFlag(cmd, new(bool))
	return cmd
}
