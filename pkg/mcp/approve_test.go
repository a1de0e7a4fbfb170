package mcp

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/mcp/options"
)

func words(s string) []string { return strings.Fields(s) }

// A rule allows the command that it is, and nothing longer or shorter.
func TestAllow(t *testing.T) {
	p := policy{allow: []config.Rule{words("npm test"), words("go test ./..."), words("make *"), words("docker compose **"), {"a", "b c"}, words("**x")}}
	for command, want := range map[string]bool{
		"npm test":             true,
		"npm":                  false,
		"npm test --x":         false,
		"npm run test":         false,
		"NPM test":             false,
		"/usr/bin/npm test":    false,
		"go test ./...":        true,
		"go test ./pkg/...":    false,
		"make all":             true,
		"make":                 false,
		"make a b":             false,
		"docker compose":       true,
		"docker compose up -d": true,
		"docker run":           false,
		"a b c":                false,
		"**x":                  true,
		"anything":             false,
	} {
		if got := p.allowed(words(command)); got != want {
			t.Errorf("%s: %v", command, got)
		}
	}
	if !p.allowed([]string{"a", "b c"}) {
		t.Error("a word with a space in it")
	}
}

// A checkout's file cannot allow everything.
func TestAllowNamesAProgram(t *testing.T) {
	for _, rule := range []string{"**", "* **", "*", "* test"} {
		t.Run(rule, func(t *testing.T) {
			t.Chdir(t.TempDir())
			t.Setenv("HOME", t.TempDir())
			t.Setenv("XDG_CONFIG_HOME", t.TempDir())
			text := `mcp: {allow: [["npm", "test"], ["` + strings.Join(words(rule), `", "`) + `"]]}`
			if err := os.WriteFile(".ov.yaml", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := newServer(t.Context(), options.Serve{}, io.Discard)
			if err == nil || !strings.Contains(err.Error(), "names no program: ") || hint.Of(err) == "" {
				t.Errorf("%v", err)
			}
		})
	}
	if err := checkAllow([]config.Rule{words("npm test"), words("docker **")}); err != nil {
		t.Error(err)
	}
}

// A rule denies whatever begins with it.
func TestDeny(t *testing.T) {
	p := policy{deny: []config.Rule{words("curl"), words("git push"), words("npm * --force")}}
	for command, want := range map[string]bool{
		"curl": true, "curl -v x": true, "curly": false, "git push": true, "git push origin": true, "git": false,
		"git pull": false, "npm i --force": true, "npm i x --force": false,
	} {
		if got := p.denied(words(command)) != nil; got != want {
			t.Errorf("%s: %v", command, got)
		}
	}
}

// An answer approves what was shown, once.
func TestQuestions(t *testing.T) {
	var q questions
	a, b := q.ask("A"), q.ask("B")
	if a == b || q.answered("", "A") || q.answered(a+"x", "A") {
		t.Error("a token that was not given")
	}
	if q.answered(a, "B") || q.answered(a, "A") {
		t.Error("a token that was used for something else")
	}
	if !q.answered(b, "B") || q.answered(b, "B") {
		t.Error("not once")
	}
	first := q.ask("first")
	for i := range maxQuestions {
		q.ask(fmt.Sprint(i))
	}
	if len(q.open) != maxQuestions || q.answered(first, "first") {
		t.Error("the oldest does not go")
	}
}

// What is to be approved cannot hide.
func TestVisible(t *testing.T) {
	for word, want := range map[string]string{
		"npm": "npm", "--a=b,c": "--a=b,c", "": `""`, "a b": `"a b"`, "a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`,
		"\u202egpj.sh": `"\u202egpj.sh"`, "a\u200bb": `"a\u200bb"`, `"`: `"\""`, "$(x)": `"$(x)"`, "é": `"é"`, "\xff": `"\xff"`,
		"a\u3164\u2800\ufe0f\U000e0101b":          `"a\u3164\u2800\ufe0f\U000e0101b"`,
		"if x:\n" + strings.Repeat(" ", 16) + "y": `"if x:\n                y"`,
		"ls" + strings.Repeat(" ", 17) + ";x":     `"ls` + strings.Repeat(`\x20`, 17) + `;x"`,
	} {
		if got := visible(word); got != want {
			t.Errorf("%q: got %s, want %s", word, got, want)
		}
	}
}
