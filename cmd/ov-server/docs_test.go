package main

import (
	"errors"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opaquevault/ov/docs/manpage"
)

var update = flag.Bool("update", false, "rewrite the man pages")

func everyCommand(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			everyCommand(c, fn)
		}
	}
}

// TestManPages: docs/man/ov-server*.8 are what the commands say of themselves.
// `make man` writes them. What cobra does not know is in testdata/man.
func TestManPages(t *testing.T) {
	pages := map[string][]byte{}
	everyCommand(newRootCmd(), func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		file := "testdata/man/default.md"
		if cmd.Parent() == nil {
			file = "testdata/man/ov-server.md"
		}
		more, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if pages[name+".8"], err = manpage.Page(cmd, "8", more); err != nil {
			t.Fatal(err)
		}
	})
	if err := manpage.Golden("../../docs/man", "ov-server*.8", pages, *update); err != nil {
		t.Error(err)
	}
}

// Commands as documents show them, see cmd/ov.
var commandLines = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^(?: {2,}|\$ )(?:sudo |ExecStart=)?(?:/usr/local/bin/)?ov-server ([a-z-][^&|\n>#;]*)`),
	regexp.MustCompile("`(?:sudo )?ov-server ([a-z-][^`]*)`"),
	regexp.MustCompile(`"(?:sudo )?ov-server ([a-z-][^"]*)"`),
	regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/ov-server (.*)`),
}

// TestDocumentedCommandsExist: each command that is shown has the flags and
// arguments that it is shown with.
func TestDocumentedCommandsExist(t *testing.T) {
	texts := map[string]string{}
	for _, name := range []string{"docs/SERVER.md", "deploy/systemd/README.md", "deploy/systemd/ov-server.service"} {
		b, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(b)
	}
	everyCommand(newRootCmd(), func(cmd *cobra.Command) {
		texts[cmd.CommandPath()+" --help"] = cmd.Long + "\n" + cmd.Example
	})
	for _, wrong := range []string{"serve --nope", "account create", "accounts list"} {
		if tryCommandLine(wrong) == nil {
			t.Errorf("ov-server %s is taken for a command", wrong)
		}
	}
	tried := 0
	for name, text := range texts {
		text = strings.ReplaceAll(text, "\\\n", " ")
		for _, re := range commandLines {
			for _, m := range re.FindAllStringSubmatch(text, -1) {
				if err := tryCommandLine(m[1]); err != nil {
					t.Errorf("%s: ov-server %s: %v", name, m[1], err)
				}
				tried++
			}
		}
	}
	if tried < 25 {
		t.Errorf("only %d commands were found", tried)
	}
}

func tryCommandLine(line string) error {
	line, _, _ = strings.Cut(strings.TrimRight(line, " .,:)"), "  ")
	cmd, rest, err := newRootCmd().Find(strings.Fields(line))
	if err != nil || len(rest) == 0 && cmd.HasParent() && cmd.Use == cmd.Name() {
		return err
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	err = cmd.ParseFlags(rest)
	if errors.As(err, new(*pflag.ValueRequiredError)) { // only named
		return nil
	}
	if err != nil {
		return err
	}
	return cmd.Args(cmd, cmd.Flags().Args())
}
