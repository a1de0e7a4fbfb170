package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opaquevault/ov/docs/manpage"
)

// everyCommand calls fn for ov and all commands below it that are to be seen.
func everyCommand(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			everyCommand(c, fn)
		}
	}
}

// TestManPages: docs/man and docs/completions are what the commands say of
// themselves. `make man` writes them. What cobra does not know of a command is in
// testdata/man.
func TestManPages(t *testing.T) {
	pages := map[string][]byte{}
	everyCommand(newRootCmd(""), func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		more, err := os.ReadFile("testdata/man/" + name + ".md")
		if errors.Is(err, fs.ErrNotExist) {
			more, err = os.ReadFile("testdata/man/default.md")
		}
		if err != nil {
			t.Fatal(err)
		}
		if pages[name+".1"], err = manpage.Page(cmd, "1", more); err != nil {
			t.Fatal(err)
		}
	})
	if err := manpage.Golden("../../docs/man", "*.1", pages, *update); err != nil {
		t.Error(err)
	}

	files := map[string][]byte{}
	for shell, name := range map[string]string{"bash": "ov.bash", "zsh": "ov.zsh", "fish": "ov.fish"} {
		var b bytes.Buffer
		if err := shells[shell](newRootCmd(""), &b); err != nil {
			t.Fatal(err)
		}
		files[name] = b.Bytes()
	}
	if err := manpage.Golden("../../docs/completions", "*", files, *update); err != nil {
		t.Error(err)
	}
}

// documents are the pages for people whose commands and links are tried.
func documents(t *testing.T) map[string]string {
	t.Helper()
	names := []string{"README.md", "CONTRIBUTING.md", "deploy/systemd/README.md"}
	more, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(more) == 0 {
		t.Fatal("no documents", err)
	}
	for _, name := range more {
		names = append(names, "docs/"+filepath.Base(name))
	}
	pages := map[string]string{}
	for _, name := range names {
		b, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = string(b)
	}
	return pages
}

// Commands of ov as they are shown: on a line of their own, behind a prompt, a
// pipe or the like, or in quotation marks.
var commandLines = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^(?: {2,}|\$ )(?:sudo |ExecStart=)?(?:/usr/local/bin/)?ov ([a-z-][^&|\n>#;]*)`),
	regexp.MustCompile(`(?:\| |&& |=)(?:/usr/local/bin/)?ov ([a-z-][^&|\n>#;]*)`),
	regexp.MustCompile("`(?:sudo )?ov ([a-z-][^`]*)`"),
	regexp.MustCompile(`"(?:sudo )?ov ([a-z-][^"]*)"`),
}

// A fenced block is shown as it stands; indented, it is like any other code.
var fenced = regexp.MustCompile("(?ms)^```[a-z]*\n.*?^```$")

// TestDocumentedCommandsExist: each command that the pages and the examples of
// commands show has the flags and arguments that it is shown with.
func TestDocumentedCommandsExist(t *testing.T) {
	texts := documents(t)
	everyCommand(newRootCmd(""), func(cmd *cobra.Command) {
		texts[cmd.CommandPath()+" --help"] = cmd.Long + "\n" + cmd.Example
	})
	for _, wrong := range []string{"secret list --nope", "secret set A B", "secrets list", "agent start now"} {
		if tryCommandLine(wrong) == nil {
			t.Errorf("ov %s is taken for a command", wrong)
		}
	}
	tried := 0
	for name, text := range texts {
		text = strings.ReplaceAll(text, "\\\n", " ")
		text = fenced.ReplaceAllStringFunc(text, func(block string) string {
			return strings.ReplaceAll(block, "\n", "\n    ")
		})
		for _, re := range commandLines {
			for _, m := range re.FindAllStringSubmatch(text, -1) {
				if err := tryCommandLine(m[1]); err != nil {
					t.Errorf("%s: ov %s: %v", name, m[1], err)
				}
				tried++
			}
		}
	}
	if tried < 80 {
		t.Errorf("only %d commands were found in the documents", tried)
	}
}

// tryCommandLine parses a command line and checks its arguments, but for words
// that stand for others.
func tryCommandLine(line string) error {
	line = strings.TrimRight(line, " .,:)")
	root := newRootCmd("")
	cmd, rest, err := root.Find(words(line))
	if err != nil {
		return err
	}
	if len(rest) == 0 { // only named
		return nil
	}
	if strings.HasPrefix(rest[0], "…") || strings.HasPrefix(rest[0], "...") {
		return nil
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
	if cmd.Flags().NArg() == 0 { // only its flags are the matter
		return nil
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// words splits a line as a shell does, but for what these documents do not use.
// Brackets, for what may be left out, are dropped.
func words(line string) []string {
	var list []string
	plain := strings.NewReplacer("[", "", "]", "", `"`, "'")
	for i, part := range strings.Split(plain.Replace(line), "'") {
		if i%2 == 1 {
			list = append(list, part)
		} else {
			list = append(list, strings.Fields(part)...)
		}
	}
	return list
}

var link = regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)

// TestDocumentsLinkToFiles: what a page links to is there.
func TestDocumentsLinkToFiles(t *testing.T) {
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// A test as docs/SECURITY.md names it: folder, name, and for a script its file.
var namedTest = regexp.MustCompile("`([a-z/]+)\\.((?:Test|Fuzz)\\w*)(?:/(\\w+))?`")

// TestSecurityClaimsHaveTests: each test that docs/SECURITY.md names is there, and
// each claim names one.
func TestSecurityClaimsHaveTests(t *testing.T) {
	page, err := os.ReadFile("../../docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{} // folder.name
	testFunc := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w*)\(`)
	named := namedTest.FindAllStringSubmatch(string(page), -1)
	for _, m := range named {
		dir, name, script := m[1], m[2], m[3]
		if !found[dir] {
			found[dir] = true
			files, err := filepath.Glob("../../" + dir + "/*_test.go")
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				src, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range testFunc.FindAllSubmatch(src, -1) {
					found[dir+"."+string(f[1])] = true
				}
			}
		}
		if !found[dir+"."+name] {
			t.Errorf("there is no test %s in %s", name, dir)
		}
		if script != "" {
			if _, err := os.Stat("../../" + dir + "/testdata/script/" + script + ".txtar"); err != nil {
				t.Error(err)
			}
		}
	}
	if len(named) < 80 {
		t.Errorf("only %d tests are named", len(named))
	}
	_, claims, _ := strings.Cut(string(page), "\n## Claims and tests\n")
	claims, _, ok := strings.Cut(claims, "\n## ")
	if !ok {
		t.Fatal("no claims were found")
	}
	for line := range strings.Lines(claims) {
		if strings.HasPrefix(line, "| ") && line != "| claim | shown by |\n" && !namedTest.MatchString(line) {
			t.Errorf("no test shows: %s", line)
		}
	}
}

// TestGuideIsWhatIsTested: the commands that test/systemd runs as those of the
// guide are those that docs/GUIDE.md prints.
func TestGuideIsWhatIsTested(t *testing.T) {
	page, err := os.ReadFile("../../docs/GUIDE.md")
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile("../../test/systemd/guide_test.go")
	if err != nil {
		t.Fatal(err)
	}
	oneLine := func(s string) string {
		return strings.Join(strings.Fields(strings.ReplaceAll(s, "\\\n", " ")), " ")
	}
	guide := oneLine(string(page))
	tested := regexp.MustCompile("(?m)^\tguide\\w+ *= `([^`]+)`").FindAllStringSubmatch(string(src), -1)
	for _, m := range tested {
		if line := oneLine(m[1]); !strings.Contains(guide, line) {
			t.Errorf("the guide does not print: %s", line)
		}
	}
	if len(tested) < 15 {
		t.Errorf("only %d commands are tested", len(tested))
	}
}
