package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

// mcpFiles makes a project and a home with these files and returns the project.
func mcpFiles(t *testing.T, project, user string) string {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	dir := filepath.Join(home, "code")
	for path, text := range map[string]string{
		filepath.Join(dir, ".ov.yaml"):                  project,
		filepath.Join(home, "config/ov", "config.toml"): user,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The rules of both files hold, the user's own first.
func TestMCP(t *testing.T) {
	dir := mcpFiles(t, `
app: shop
mcp: {allow: [["npm","test"], ["go","test","./..."], [make, 1]], deny: [[rm]]}
`, `
[mcp]
approve = "ask"
allow = [["true"]]
deny = [["curl"], ["wget", ""]]
`)
	below := filepath.Join(dir, "sub")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := ResolveMCP(below)
	if err != nil {
		t.Fatal(err)
	}
	want := MCP{
		Approve: ApproveAsk,
		Allow:   []Rule{{"true"}, {"npm", "test"}, {"go", "test", "./..."}, {"make", "1"}},
		Deny:    []Rule{{"curl"}, {"wget", ""}, {"rm"}},
		Project: dir,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMCPErrors(t *testing.T) {
	for name, c := range map[string]struct{ project, user, want string }{
		"approve in a project": {"mcp: {approve: never}", "", ":1: approve is not for a project to say"},
		"unknown key":          {"mcp: {permit: []}", "", ":1: unknown key: those of mcp"},
		"twice":                {"mcp:\n  allow: []\n  allow: []", "", ":3: the key stands here a second time"},
		"not a mapping":        {"mcp: [npm]", "", ":1: mcp is not a mapping"},
		"not a list":           {"mcp: {allow: npm test}", "", ":1: not a list of commands"},
		"a string":             {"mcp: {allow: [npm test]}", "", ":1: a command is a list"},
		"an empty one":         {"mcp: {deny: [[]]}", "", ":1: a command is empty"},
		"no program":           {`mcp: {deny: [["", x]]}`, "", ":1: a command is empty"},
		"null":                 {"mcp: {deny: [[~]]}", "", ":1: not a word"},
		"nested":               {"mcp: {deny: [[[a]]]}", "", ":1: not a word"},
		"approve, unknown":     {"", "mcp.approve = 'yes'", "mcp.approve is not auto, ask or never"},
		"unknown in toml":      {"", "[mcp]\npermit = 1", ":2: unknown key"},
		"empty in toml":        {"", "[mcp]\nallow = [[]]", "is empty"},
		"string in toml":       {"", "[mcp]\nallow = ['npm test']", "not valid TOML, or of the wrong type"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ResolveMCP(mcpFiles(t, c.project, c.user))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if strings.HasPrefix(c.project, "mcp: {approve") && hint.Of(err) == "" {
				t.Error("no hint")
			}
		})
	}
}

// `ov app use` leaves what is there for ov mcp.
func TestUseKeepsMCP(t *testing.T) {
	dir := mcpFiles(t, "", "[mcp]\napprove = \"ask\" # always\nallow = [[\"npm\", \"test\"]]\n")
	if _, err := Use("shop", ""); err != nil {
		t.Fatal(err)
	}
	got, err := ResolveMCP(dir)
	if err != nil || got.Approve != ApproveAsk || len(got.Allow) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
