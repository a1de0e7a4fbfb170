package command_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
)

// program is a small one, with a command that becomes another program.
func program(out *bytes.Buffer) *cobra.Command {
	root := &cobra.Command{Use: "prog", Version: "v1"}
	command.Root(root)
	root.SetOut(out)
	root.SetErr(out)
	nothing := func(*cobra.Command, []string) error { return nil }
	set := &cobra.Command{Use: "set NAME", Args: command.Args(cobra.ExactArgs(1)), RunE: nothing}
	f := set.Flags()
	f.String("app", "", "")
	f.StringP("file", "f", "", "")
	f.Bool("stdin", false, "")
	f.Int("version", 0, "")
	f.Var(new(command.Scope), "scope", "")
	f.Var(new(command.Expiry), "expires", "")
	set.MarkFlagsMutuallyExclusive("app", "stdin")
	run := &cobra.Command{
		Use: "run COMMAND", Args: command.Args(cobra.MinimumNArgs(1)), RunE: nothing,
		Annotations: command.UsageExit(125),
	}
	root.AddCommand(command.Group("secret", "", set), run)
	return root
}

func execute(line ...string) (string, error) {
	var out bytes.Buffer
	root := program(&out)
	root.SetArgs(line)
	err := root.Execute()
	return out.String(), err
}

// TestMisuseRepeatsNothing: whatever is wrong with a command line, no argument
// and no flag's value is repeated, nor what only looks like a flag or a command.
func TestMisuseRepeatsNothing(t *testing.T) {
	const secret = "Hunter2=s3cret"
	for _, line := range [][]string{
		{"secret", "set", "A", secret},
		{"secret", secret},
		{secret},
		{"help", secret},
		{"help", "secret", secret},
		{"secret", "set", "A", "--" + secret},
		{"secret", "set", "A", "---" + secret},
		{"secret", "set", "A", "-" + secret},
		{"secret", "set", "A", "-f"},
		{"secret", "set", "A", "--=" + secret},
		{"secret", "set", "A", "--stdin=" + secret},
		{"secret", "set", "A", "--version", secret},
		{"secret", "set", "A", "--scope", secret},
		{"secret", "set", "A", "--expires", secret},
		{"secret", "set", "A", "--expires", secret + "d"},
		{"secret", "set", secret, "--app", secret, "--stdin"},
		{"secret", "set", "A", "--unknown", secret},
		{"secret", "set", "A", "--unknown=" + secret},
		{"secret", "set", "A", "-x" + secret},
		{"secret", "set", "A", "-----BEGIN PRIVATE KEY-----" + secret},
	} {
		out, err := execute(line...)
		if err == nil {
			t.Errorf("%q is accepted", line)
			continue
		}
		said := out + err.Error() + hint.Of(err)
		if strings.Contains(said, "unter2") || strings.Contains(said, "s3cret") || strings.Contains(said, "BEGIN") {
			t.Errorf("%q: %s", line, said)
		}
		if command.ExitCode(err) != command.ExitUsage || hint.Of(err) == "" {
			t.Errorf("%q: exit code %d, hint %q", line, command.ExitCode(err), hint.Of(err))
		}
	}
}

// TestMisuseSaysWhat: what a person has mistyped is named, and what helps too.
func TestMisuseSaysWhat(t *testing.T) {
	for _, c := range []struct{ line, err, hint string }{
		{"secret ste", `unknown command "ste" of prog secret`, "did you mean: prog secret set"},
		{"nothing-like-it", `unknown command "nothing-like-it" of prog`, "see: prog --help"},
		{"help secret ste", `unknown command "ste" of prog secret`, "did you mean: prog secret set"},
		{"secret set", "wrong arguments for prog secret set: 0 given", "usage: prog secret set NAME"},
		{"secret set A --nope", "unknown flag --nope", "see: prog secret set --help"},
		{"secret set A -n", "unknown flag -n", "see: prog secret set --help"},
		{"secret set A --file", "--file needs a value", "see: prog secret set --help"},
		{"secret set A --version x", "the value of --version is not a int", "see: prog secret set --help"},
		{"secret set A --expires soon", "the value of --expires is not a time to come", "see: prog secret set --help"},
	} {
		_, err := execute(strings.Fields(c.line)...)
		if err == nil || err.Error() != c.err || hint.Of(err) != c.hint {
			t.Errorf("%s: %v, hint %q", c.line, err, hint.Of(err))
		}
	}
	for line, want := range map[string]string{"": "secret", "secret": "set", "help run": "prog run COMMAND"} {
		if out, err := execute(strings.Fields(line)...); err != nil || !strings.Contains(out, want) {
			t.Errorf("prog %s: %v\n%s", line, err, out)
		}
	}
}

func TestExitCodes(t *testing.T) {
	cause := errors.New("cause")
	for want, err := range map[int]error{
		command.ExitFailure: cause,
		command.ExitUsage:   fmt.Errorf("more: %w", command.Usage(cause)),
		126:                 command.Exit(command.Usage(cause), 126),
	} {
		if got := command.ExitCode(err); got != want || !errors.Is(err, cause) {
			t.Errorf("%v has exit code %d, not %d", err, got, want)
		}
	}
	if command.Exit(nil, 3) != nil || command.Usage(nil) != nil {
		t.Error("nothing became an error")
	}
	// Wrong usage of a command that becomes another program: arguments, and flags.
	for _, line := range []string{"run", "run --nope x"} {
		if _, err := execute(strings.Fields(line)...); err == nil || command.ExitCode(err) != 125 {
			t.Errorf("prog %s: %v, exit code %d", line, err, command.ExitCode(err))
		}
	}
}

// hostile is a name that a server or a teammate could choose.
const hostile = "ci\x1b]0;owned\a\x9b2J\t\n\u202egpj"

func checkPrintable(t *testing.T, what, said string) {
	t.Helper()
	if said == "" || strings.ContainsAny(said, "\x1b\a\t\u202e") || strings.Count(said, "\n") != 1 || hint.Text(said) != said {
		t.Errorf("%s: %q", what, said)
	}
}

// TestTableUpsetsNoTerminal: a cell is one cell, and moves no cursor.
func TestTableUpsetsNoTerminal(t *testing.T) {
	var out bytes.Buffer
	row := []string{hostile, "web 1"}
	if err := command.Table(&out, "A\tB", 1, func(int) []string { return row }); err != nil {
		t.Fatal(err)
	}
	checkPrintable(t, "table", out.String())
	if !strings.HasSuffix(out.String(), "  web 1\n") || row[0] != hostile {
		t.Errorf("%q of %q", &out, row)
	}
}

// TestAPIKeyUpsetsNoTerminal: a name is whatever a server says.
func TestAPIKeyUpsetsNoTerminal(t *testing.T) {
	k := command.APIKey{ID: "0123456789abcdef", Name: hostile, Scope: "read", App: hostile, Env: "x", State: command.Active}
	var out, talk bytes.Buffer
	if err := command.PrintNewAPIKey(&out, &talk, k, []byte("ov_live_x"), false); err != nil || out.String() != "ov_live_x\n" {
		t.Errorf("%q, %v", &out, err)
	}
	checkPrintable(t, "made", talk.String())
	out.Reset()
	talk.Reset()
	if err := command.PrintAPIKeys(&out, []command.APIKey{k}, false); err != nil {
		t.Error(err)
	}
	checkPrintable(t, "list", out.String())
	out.Reset()
	if err := command.PrintRevoked(&out, &talk, []command.APIKey{k}, false); err != nil || out.Len() > 0 {
		t.Errorf("%q, %v", &out, err)
	}
	checkPrintable(t, "revoked", talk.String())
}

// TestAPIKeyJSON: the key itself is shown where it was made, and in no list.
func TestAPIKeyJSON(t *testing.T) {
	k := command.APIKey{ID: "0123456789abcdef", Name: "ci", Scope: "read", State: command.Active, Created: time.Unix(1, 0).UTC()}
	var out bytes.Buffer
	if err := command.PrintNewAPIKey(&out, nil, k, []byte("ov_live_x"), true); err != nil {
		t.Fatal(err)
	}
	const made = `{
  "id": "0123456789abcdef",
  "name": "ci",
  "scope": "read",
  "state": "active",
  "created": "1970-01-01T00:00:01Z",
  "token": "ov_live_x"
}
`
	if out.String() != made {
		t.Errorf("%s", &out)
	}
	out.Reset()
	if err := command.PrintAPIKeys(&out, nil, true); err != nil || out.String() != "[]\n" {
		t.Errorf("%q, %v", &out, err)
	}
}

func TestStateOf(t *testing.T) {
	now := time.Unix(1000, 0)
	before, after := now.Add(-1), now.Add(1)
	for _, c := range []struct {
		expires, revoked *time.Time
		want             command.State
	}{
		{nil, nil, command.Active}, {&after, nil, command.Active}, {&now, nil, command.Expired},
		{&before, nil, command.Expired}, {&after, &before, command.Revoked}, {&before, &before, command.Revoked},
	} {
		if got := command.StateOf(c.expires, c.revoked, now); got != c.want {
			t.Errorf("%v %v: %s, not %s", c.expires, c.revoked, got, c.want)
		}
	}
}

func TestExpiry(t *testing.T) {
	var e command.Expiry
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "12h": 12 * time.Hour, "90m": 90 * time.Minute} {
		err := e.Set(text)
		if off := time.Until(e.Time) - want; err != nil || off > 0 || off < -time.Minute {
			t.Errorf("%s: %v, %v", text, e.Time, err)
		}
	}
	date := time.Now().UTC().AddDate(1, 0, 0).Format(time.DateOnly)
	if err := e.Set(date); err != nil || e.UTC().AddDate(0, 0, -1).Format(time.DateOnly) != date || e.Unix()%86400 != 0 {
		t.Errorf("%s: %v, %v", date, e.Time, err)
	}
	was := e
	for _, text := range []string{"", "d", "0d", "-1d", "1.5d", "36501d", "99999999999d", "0s", "-1h", "900000h", "2020-01-01", "2999-01-01", "2027-13-01", "soon"} {
		if err := e.Set(text); err == nil || e != was {
			t.Errorf("%q: %v, %v", text, e.Time, err)
		}
	}
}

// TestAPIKeyID: what is no id may be the key itself, and is not repeated.
func TestAPIKeyID(t *testing.T) {
	if id, err := command.APIKeyID("0123456789ABCDEF", "prog list"); err != nil || id != "0123456789abcdef" {
		t.Errorf("%q, %v", id, err)
	}
	for _, text := range []string{"", "ov_live_hunter2", "0123456789abcdeg", "0123456789abcdef00"} {
		_, err := command.APIKeyID(text, "prog list")
		if err == nil || command.ExitCode(err) != command.ExitUsage || text != "" && strings.Contains(err.Error(), text) || hint.Of(err) != "see: prog list" {
			t.Errorf("%q: %v", text, err)
		}
	}
}
