package mcpclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	if os.Getenv(editForever) != "" {
		loop()
	}
	os.Exit(m.Run())
}

// setup makes a home and a project in it, with no client, and returns them.
func setup(t *testing.T) (home, project string) {
	t.Helper()
	home = t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("CLAUDE_CONFIG_DIR", "")
	project = filepath.Join(home, "src", "web")
	if err := os.MkdirAll(filepath.Join(project, ".git"), 0o700); err != nil {
		t.Fatal(err)
	}
	return home, project
}

var entry = Entry{Command: "/opt/ov/bin/ov", Args: []string{"mcp", "serve", "--app", "web"}}

func options(t *testing.T, client string, scope Scope, project string) Options {
	t.Helper()
	c, err := Find(client)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Client: c, Scope: scope, Dir: project, Name: DefaultName}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPlaces pins where each client has its file.
func TestPlaces(t *testing.T) {
	home, project := setup(t)
	sub := filepath.Join(project, "a", "b")
	if err := os.MkdirAll(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ client, linux, darwin, project string }{
		{"claude-code", ".claude.json", ".claude.json", ".mcp.json"},
		{"claude-desktop", ".config/Claude/claude_desktop_config.json", "Library/Application Support/Claude/claude_desktop_config.json", ""},
		{"cursor", ".cursor/mcp.json", ".cursor/mcp.json", ".cursor/mcp.json"},
		{"vscode", ".config/Code/User/mcp.json", "Library/Application Support/Code/User/mcp.json", ".vscode/mcp.json"},
	} {
		client, err := Find(c.client)
		if err != nil {
			t.Fatal(err)
		}
		for goos, want := range map[string]string{"linux": c.linux, "darwin": c.darwin} {
			p, err := client.user(goos)
			if want = filepath.Join(home, want); err != nil || p.file != want {
				t.Errorf("%s on %s: %s, %v, not %s", c.client, goos, p.file, err, want)
			}
		}
		for scope, ok := range map[Scope]bool{User: true, Project: c.project != "", "local": false, "": false} {
			o := Options{Client: client, Scope: scope, Name: "ov"}
			if err := o.Check(); (err == nil) != ok {
				t.Errorf("%s, scope %q: %v", c.client, scope, err)
			}
		}
		p, err := client.place(Project, sub)
		if want := filepath.Join(project, c.project); err != nil || p.file != want {
			t.Errorf("%s: %s, %v, not %s", c.client, p.file, err, want)
		}
	}

	t.Setenv("XDG_CONFIG_HOME", "/x")
	t.Setenv("CLAUDE_CONFIG_DIR", "/c")
	for client, want := range map[string]string{
		"claude-code": "/c/.claude.json", "claude-desktop": "/x/Claude/claude_desktop_config.json", "vscode": "/x/Code/User/mcp.json",
	} {
		c, _ := Find(client)
		if p, err := c.user("linux"); err != nil || p.file != want {
			t.Errorf("%s: %s, %v, not %s", client, p.file, err, want)
		}
	}
	// What Claude Code's first releases left comes first.
	t.Setenv("CLAUDE_CONFIG_DIR", "")
	old := filepath.Join(home, ".claude/.config.json")
	write(t, old, "{}")
	c, _ := Find("claude-code")
	if p, err := c.user("linux"); err != nil || p.file != old {
		t.Errorf("%s, %v, not %s", p.file, err, old)
	}
	if _, err := Find("emacs"); err == nil || !strings.Contains(hint.Of(err), "cursor") {
		t.Errorf("an unknown client: %v", err)
	}
}

// TestProjectRoot: a project ends where its git working tree does, at the
// home directory, and at what belongs to somebody else.
func TestProjectRoot(t *testing.T) {
	home, project := setup(t)
	if err := os.Mkdir(filepath.Join(home, ".git"), 0o700); err != nil { // for dotfiles
		t.Fatal(err)
	}
	loose := filepath.Join(home, "loose", "dir")
	if err := os.MkdirAll(loose, 0o700); err != nil {
		t.Fatal(err)
	}
	worktree := filepath.Join(home, "tree")
	write(t, filepath.Join(worktree, ".git"), "gitdir: elsewhere\n")
	foreign := filepath.Join(home, "foreign")
	within := filepath.Join(foreign, "within")
	if err := os.MkdirAll(within, 0o700); err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{project: project, loose: loose, worktree: worktree, home: home}
	if os.Geteuid() == 0 {
		if err := os.Mkdir(filepath.Join(foreign, ".git"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(foreign, ".git"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		dirs[within] = within
	}
	for dir, want := range dirs {
		if got, err := projectRoot(dir); err != nil || got != want {
			t.Errorf("%s: %s, %v, not %s", dir, got, err, want)
		}
	}
}

// Texts that people and clients have. KEY is the object that holds the servers.
var texts = []struct {
	name, text string
	jsonc      bool // not for clients that read strict JSON only
}{
	{"absent", "", false},
	{"empty file", "", false},
	{"blank", " \n\n", false},
	{"empty object", "{}\n", false},
	{"empty object, spaced", "{\n}\n", false},
	{"no servers", "{\n  \"numStartups\": 7,\n  \"theme\": \"dark\"\n}\n", false},
	{"no server", "{\n  \"KEY\": {},\n  \"theme\": \"dark\"\n}\n", false},
	{"no end of line", "{\n  \"theme\": \"dark\"\n}", false},
	{"servers", `{
  "theme": "dark",
  "KEY": {
    "zebra": {
      "command": "npx",
      "args": ["-y", "@zebra/server"],
      "env": { "TOKEN": "t0ken" }
    },
    "ape": { "url": "https://ape.example/mcp?a=1&b=<2>" }
  },
  "projects": { "/p": { "KEY": { "opaquevault": 1 } } },
  "number": 1.50e+10, "escaped": "\u0041\/\ud83d\ude00"
}
`, false},
	{"four spaces", "{\n    \"KEY\": {\n        \"a\": {\n            \"command\": \"a\"\n        }\n    }\n}\n", false},
	{"tabs", "{\n\t\"KEY\": {\n\t\t\"a\": {\n\t\t\t\"command\": \"a\"\n\t\t}\n\t}\n}\n", false},
	{"tabs, no servers", "{\n\t\"theme\": \"dark\"\n}\n", false},
	{"CRLF", "{\r\n  \"KEY\": {\r\n    \"a\": {\r\n      \"command\": \"a\"\r\n    }\r\n  }\r\n}\r\n", false},
	{"BOM", "\ufeff{\n  \"KEY\": {\n    \"a\": {\n      \"command\": \"a\"\n    }\n  }\n}\n", false},
	{"minified", `{"KEY":{"a":{"command":"a"}},"theme":"dark"}`, false},
	{"one line", `{ "KEY": { "a": { "command": "a" } } }` + "\n", false},
	{"one line, no servers", `{"theme": "dark"}`, false},
	{"servers on one line", "{\n  \"KEY\": {\"a\": {\"command\": \"a\"}}\n}\n", false},
	{"key escaped", "{\n  \"\\u0073ervers\": {},\n  \"mcp\\u0053ervers\": {\n    \"a\": {}\n  }\n}\n", false},
	{"comments", `// Servers of this project. // TODO: fewer
{
  /* first */ "KEY": { // the servers
    // one
    "a": {
      "command": "a" // "quoted"
    } /* after one */, // and at its end
    "b": { "command": "b" } // the last   
    // nothing follows
  }, // end of servers
  "inputs": [] /* none */
} // end`, true},
	{"comment in an empty object", "{\n  \"KEY\": {\n    // nothing yet\n  }\n}\n", true},
	{"comment on one line", `{"KEY": {"a": {} /* a */}}`, true},
	{"trailing commas", "{\n  \"KEY\": {\n    \"a\": {\n      \"command\": \"a\",\n    }, // c\n  },\n}\n", true},
}

// TestGolden shows what comes of each text in each client, and that uninstall
// gives back what was there.
func TestGolden(t *testing.T) {
	for _, client := range clients {
		for _, scope := range []Scope{User, Project} {
			if scope == Project && client.project == "" {
				continue
			}
			name := client.Name + "-" + string(scope)
			t.Run(name, func(t *testing.T) {
				var got bytes.Buffer
				for _, text := range texts {
					if text.jsonc && !client.jsonc {
						continue
					}
					fmt.Fprintf(&got, "== %s ==\n%s\n", text.name, visible.Replace(golden(t, client, scope, text.name, text.text)))
				}
				path := filepath.Join("testdata", "golden", name)
				if *update {
					write(t, path, got.String())
				}
				if want := read(t, path); got.String() != want {
					t.Errorf("%s is not what comes out (write it with -update):\n%s", path, &got)
				}
			})
		}
	}
}

var visible = strings.NewReplacer("\r", "<CR>", "\ufeff", "<BOM>", "\t", "<TAB>")

// golden installs into text, twice, and uninstalls.
func golden(t *testing.T, client *Client, scope Scope, name, text string) string {
	t.Helper()
	_, project := setup(t)
	o := options(t, client.Name, scope, project)
	p, err := client.place(scope, project)
	if err != nil {
		t.Fatal(err)
	}
	text = strings.ReplaceAll(text, "KEY", client.key)
	if name != "absent" {
		write(t, p.file, text)
	}
	r, err := Install(o, entry, false)
	if err != nil || r.Action != Added || r.File != p.file {
		t.Fatalf("%s: %+v, %v", name, r, err)
	}
	got := read(t, p.file)
	if !client.jsonc && !json.Valid([]byte(strings.TrimPrefix(got, "\ufeff"))) {
		t.Errorf("%s: not strict JSON:\n%s", name, got)
	}
	if r, err = Install(o, entry, false); err != nil || r.Action != Unchanged || read(t, p.file) != got {
		t.Errorf("%s: a second time: %+v, %v", name, r, err)
	}
	if r, err = Uninstall(o); err != nil || r.Action != Removed {
		t.Errorf("%s: uninstall: %+v, %v", name, r, err)
	}
	var want string
	switch {
	case strings.Trim(text, "{}"+blank) == "": // then install made all that there was
		if exists(p.file) || !r.Deleted {
			t.Errorf("%s: the file is still there", name)
		}
		return got
	case strings.Contains(text, client.key), name == "key escaped" && client.key == "mcpServers":
		want = text
	default: // but for the object, which stays
		e, err := set([]byte(text), client, "x", entry, false)
		if err != nil {
			t.Fatal(err)
		}
		e, err = unset(e.text, client, "x")
		if err != nil {
			t.Fatal(err)
		}
		want = string(e.text)
		if d, err := parse(e.text, client); err != nil {
			t.Fatal(err)
		} else if h, err := d.holder(client.key); h == nil || err != nil {
			t.Errorf("%s: no object is left: %v", name, err)
		}
	}
	if left := read(t, p.file); left != want {
		t.Errorf("%s: uninstall left\n%s\nnot\n%s", name, visible.Replace(left), visible.Replace(want))
	}
	if r, err = Uninstall(o); err != nil || r.Action != Absent {
		t.Errorf("%s: uninstall a second time: %+v, %v", name, r, err)
	}
	return got
}

// TestUpdate: an entry of ours is made right, and what else it holds stays.
func TestUpdate(t *testing.T) {
	c, _ := Find("vscode")
	for name, test := range map[string]struct{ have, want string }{
		"another path and args": {
			`{
  "servers": {
    // ours
    "opaquevault": {
      "args": ["mcp", "serve"], // none
      "command": "/old/ov",
      "env": {"LANG": "C"}
    }
  }
}`, `{
  "servers": {
    // ours
    "opaquevault": {
      "args": [
        "mcp",
        "serve",
        "--app",
        "web"
      ], // none
      "command": "/opt/ov/bin/ov",
      "env": {"LANG": "C"}
    }
  }
}`},
		"on one line": {
			`{"servers":{"opaquevault":{"command":"ov","args":["--vault","v","mcp","serve"]}}}`,
			`{"servers":{"opaquevault":{"command":"/opt/ov/bin/ov","args":["mcp","serve","--app","web"]}}}`,
		},
		"another type": {
			`{"servers":{"opaquevault":{"type":"http","command":"/opt/ov/bin/ov","args":["mcp","serve","--app","web"]}}}`,
			`{"servers":{"opaquevault":{"type":"stdio","command":"/opt/ov/bin/ov","args":["mcp","serve","--app","web"]}}}`,
		},
		"the same, written in another way": {
			`{"servers":{"opaquevault":{"args":["mcp","serve","--app","\u0077eb",],"command":"\/opt/ov/bin/ov"}}}`, "",
		},
	} {
		e, err := set([]byte(test.have), c, DefaultName, entry, false)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if test.want == "" && (e.action != Unchanged || string(e.text) != test.have) {
			t.Errorf("%s: %s:\n%s", name, e.action, e.text)
		}
		if test.want != "" && (e.action != Updated || string(e.text) != test.want || e.before == nil) {
			t.Errorf("%s: %s, before %v:\n%s", name, e.action, e.before, e.text)
		}
	}
}

// TestForeign: an entry that is not for ov mcp serve is replaced by force only,
// removed never, and its text is nowhere in what is said of it.
func TestForeign(t *testing.T) {
	c, _ := Find("cursor")
	for _, have := range []string{
		`{"command":"npx","args":["t0ken"]}`,
		`{"command":"/usr/bin/ov","args":["run","--","npx","t0ken"]}`,
		`{"command":"ov","args":["serve","mcp"],"env":{"T":"t0ken"}}`,
		`{"command":"ov mcp serve t0ken"}`,
		`{"command":"ov"}`,
		`{"command":"ov","args":"mcp serve"}`,
		`{"url":"https://t0ken"}`,
		`"t0ken"`, `null`, `[]`,
	} {
		text := "{\n  \"mcpServers\": {\n    \"opaquevault\": " + have + ",\n    \"b\": {}\n  }\n}\n"
		for _, change := range []func() (edited, error){
			func() (edited, error) { return set([]byte(text), c, DefaultName, entry, false) },
			func() (edited, error) { return unset([]byte(text), c, DefaultName) },
		} {
			e, err := change()
			foreign := (*Foreign)(nil)
			if !errors.As(err, &foreign) || foreign.Line != 3 || e.text != nil || strings.Contains(err.Error(), "t0ken") {
				t.Errorf("%s: %+v, %v", have, e, err)
			}
		}
		e, err := set([]byte(text), c, DefaultName, entry, true)
		if err != nil || e.action != Updated || e.before != nil || strings.Contains(string(e.text), "t0ken") {
			t.Errorf("%s by force: %s %v", have, e.text, err)
		}
		fresh, err := set([]byte("{\n  \"mcpServers\": {\n    \"b\": {}\n  }\n}\n"), c, DefaultName, entry, false)
		if err != nil || !equalText(t, e.text, fresh.text) {
			t.Errorf("%s by force: %v\n%s", have, err, e.text)
		}
	}
}

func equalText(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal(a, &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	xs, _ := json.Marshal(x)
	ys, _ := json.Marshal(y)
	return bytes.Equal(xs, ys)
}

// TestRemove: comments around the entry stay, and commas are right.
func TestRemove(t *testing.T) {
	const ours = `"opaquevault": {"command": "ov", "args": ["mcp", "serve"]}`
	c, _ := Find("vscode")
	for have, want := range map[string]string{
		"{\"servers\": {\n  OURS,\n  \"b\": {}\n}}":                     "{\"servers\": {\n  \"b\": {}\n}}",
		"{\"servers\": {\n  \"a\": {},\n  OURS\n}}":                     "{\"servers\": {\n  \"a\": {}\n}}",
		"{\"servers\": {\n  \"a\": {},\n  OURS,\n}}":                    "{\"servers\": {\n  \"a\": {},\n}}",
		"{\"servers\": {\n  \"a\": {} /*a*/,\n  OURS\n}}":               "{\"servers\": {\n  \"a\": {} /*a*/\n}}",
		"{\"servers\": {\n  \"a\": {}, // a\n  // o\n  OURS // p\n}}":   "{\"servers\": {\n  \"a\": {} // a\n  // o\n // p\n}}",
		"{\"servers\": {\n  // o\n  OURS, // p\n  \"b\": {}\n}}":        "{\"servers\": {\n  // o\n // p\n  \"b\": {}\n}}",
		"{\"servers\": {\n  // o\n  OURS\n}}":                           "{\"servers\": {\n  // o\n}}",
		"{\"servers\": {\n  OURS,\n}, \"x\": 1}":                        "{\"servers\": {}, \"x\": 1}",
		"{\"servers\": {\"a\": {}, OURS}}":                              "{\"servers\": {\"a\": {}}}",
		"{\"servers\": {OURS, \"b\": {}}}":                              "{\"servers\": { \"b\": {}}}",
		"{\"servers\": {\"a\": {} // a\n, OURS}}":                       "{\"servers\": {\"a\": {} // a\n}}",
		"{\r\n\"servers\": {\r\n  // o\r\n  OURS,\r\n  \"b\": {}\r\n}}": "{\r\n\"servers\": {\r\n  // o\r\n  \"b\": {}\r\n}}",
	} {
		e, err := unset([]byte(strings.ReplaceAll(have, "OURS", ours)), c, DefaultName)
		if err != nil || string(e.text) != want {
			t.Errorf("%s\nbecame\n%s\nnot\n%s\n%v", have, e.text, want, err)
		}
	}
}

// TestFaults: what cannot be read as the client reads it is an error that names
// the line and quotes nothing.
func TestFaults(t *testing.T) {
	deep := strings.Repeat("[", 2000) + strings.Repeat("]", 2000)
	for _, test := range []struct {
		client, text, want string
	}{
		{"claude-code", "{\n  \"t0ken\": tru\n}", "FILE:2: not valid JSON"},
		{"vscode", "{\n  \"t0ken\": t0ken\n}", "FILE:2: not valid JSON"},
		{"vscode", "{\n  \"a\": \"t0ken\n", "FILE:3: not valid JSON"},
		{"claude-code", "{\n\n \"a\": 1,\n}\n", "FILE:4: not valid JSON: Claude Code reads no comments and no trailing commas"},
		{"claude-desktop", "// t0ken\n{}\n", "FILE:1: not valid JSON: Claude Desktop reads no comments and no trailing commas"},
		{"cursor", "{} {}", "FILE:1: not valid JSON"},
		{"claude-code", "\n[\"t0ken\"]", "FILE:2: not a JSON object"},
		{"claude-code", "null", "FILE:1: not a JSON object"},
		{"cursor", "{\n\"mcpServers\":\n[\"t0ken\"]}", "FILE:3: mcpServers is not a JSON object"},
		{"vscode", "{\"servers\": null}", "FILE:1: servers is not a JSON object"},
		{"cursor", "{\"mcpServers\": {},\n\"mcpServers\": {}}", "FILE:2: the key mcpServers stands here a second time"},
		{"cursor", "{\"mcpServers\": {\"opaquevault\": 1,\n\"opaquevault\": {}}}", "FILE:2: the key opaquevault stands here a second time"},
		{"cursor", "{\"mcpServers\": {\"opaquevault\": {\"command\": \"ov\",\n\"command\": \"ov\"}}}", "FILE:2: the key command stands here a second time"},
		{"claude-code", "{\"a\":\n" + deep + "}", "FILE:2: nested too deep"},
		{"vscode", "{\"b\": \"[[\\\"[\", /*[*/\n\"a\":\n" + deep + "}", "FILE:3: nested too deep"},
		{"vscode", strings.Repeat("{\"a\":", 1<<20), "FILE:1: nested too deep"},
	} {
		_, project := setup(t)
		o := options(t, test.client, User, project)
		p, err := o.Client.place(User, "")
		if err != nil {
			t.Fatal(err)
		}
		write(t, p.file, test.text)
		want := strings.ReplaceAll(test.want, "FILE", p.file)
		_, ierr := Install(o, entry, true)
		_, uerr := Uninstall(o)
		for _, err := range []error{ierr, uerr} {
			if !errors.As(err, new(*Error)) || err.Error() != want {
				t.Errorf("%.60q: %v, not %s", test.text, err, want)
			}
		}
		if read(t, p.file) != test.text {
			t.Errorf("%.60q: the file was changed", test.text)
		}
	}
}

// TestNames: names and programs that clients, or we, would not know again.
func TestNames(t *testing.T) {
	_, project := setup(t)
	o := options(t, "cursor", User, project)
	for _, name := range []string{"", "a b", "a.b", "ä", "a\n", strings.Repeat("a", 33)} {
		o.Name = name
		if _, err := Install(o, entry, false); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	o.Name = DefaultName
	for _, e := range []Entry{{Command: "/bin/ov-2"}, {Command: "/\xff/ov"}, {Command: "ov", Args: []string{"\xff"}}, {}} {
		if _, err := Install(o, e, false); err == nil {
			t.Errorf("%+q is installed", e)
		}
	}
	if p, _ := o.Client.place(User, ""); exists(filepath.Dir(p.file)) {
		t.Error("something was made")
	}
}
