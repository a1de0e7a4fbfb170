package detection

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/detect/engine"
)

// A source is a folder of text that others wrote and published, without a
// secret in it that is one.
type source struct{ name, dir, pattern string }

const (
	mostReal  = 1_500_000 // bytes of one source
	chunk     = 4000      // bytes of a message, as one call of a tool returns
	realWrong = 5         // findings per MB in all: far above what is measured
)

// TestRealText: texts that were not made for this test give hardly more
// findings than those that were. Which there are depends on the machine and on
// the versions in go.mod, so what docs/DETECTION.md says of them is of one day.
func TestRealText(t *testing.T) {
	if raceDetector || testing.Short() {
		t.Skip("the made texts are enough here")
	}
	e, err := engine.New()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| text | files | MB | findings | per MB | messages of 4 kB blocked, %% |\n|---|---:|---:|---:|---:|---:|\n")
	bytes, found := 0, 0
	rules := map[string]int{}
	for _, s := range sources(t) {
		files, size, wrong, messages, blocked := 0, 0, 0, 0, 0
		err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || size > mostReal:
				return fs.SkipAll
			case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git"):
				return fs.SkipDir
			case d.IsDir() || strings.HasSuffix(path, "_test.go") || !matches(s.pattern, d.Name()):
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil || len(text) == 0 || len(text) > 400_000 {
				return nil //nolint:nilerr // what cannot be read is no text
			}
			rel, err := filepath.Rel(s.dir, path)
			if err != nil {
				return err
			}
			files++
			size += len(text)
			findings, err := e.Scan(text, rel)
			if err != nil {
				return err
			}
			wrong += len(findings)
			for _, f := range findings {
				rules[f.Rule]++
				if *show == "real" {
					line := text[max(f.Start-60, 0):min(f.End+20, len(text))]
					t.Logf("%s: %s: %.200q", rel, f.Rule, line)
				}
			}
			for part := range slices.Chunk(text, chunk) {
				messages++
				found, err := e.Scan(part, "")
				if err != nil {
					return err
				}
				if len(found) > 0 {
					blocked++
					if *show == "messages" {
						t.Logf("%s: %s: %.200q", rel, found[0].Rule, part[max(found[0].Start-60, 0):min(found[0].End+20, len(part))])
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if files == 0 {
			t.Logf("NOT RUN: there is no %s here", s.name)
			continue
		}
		bytes, found = bytes+size, found+wrong
		mb := float64(size) / 1e6
		fmt.Fprintf(&b, "| %s | %d | %.1f | %d | %.1f | %.1f |\n", s.name, files, mb, wrong, float64(wrong)/mb, 100*float64(blocked)/float64(messages))
	}
	fmt.Fprintf(&b, "\nThe findings by rule:")
	for _, id := range slices.SortedFunc(maps.Keys(rules), func(x, y string) int { return rules[y] - rules[x] }) {
		fmt.Fprintf(&b, " `%s` %d", id, rules[id])
	}
	fmt.Fprintf(&b, ".\n")
	t.Log("\n" + b.String())
	if perMB := float64(found) / (float64(bytes) / 1e6); perMB > realWrong {
		t.Errorf("%.1f findings per MB", perMB)
	}
	section(t, "real text", b.String(), false)
}

func matches(pattern, name string) bool {
	for _, p := range strings.Fields(pattern) {
		if ok, err := filepath.Match(p, name); err == nil && ok {
			return true
		}
	}
	return false
}

func sources(t *testing.T) []source {
	t.Helper()
	list := []source{
		{"this repository: go.sum and lock files", "../..", "go.sum package-lock.json"},
		{"this repository: Go", "../../pkg", "*.go"},
		{"licences of Debian packages", "/usr/share/common-licenses", "*"},
		{"JavaScript packages: code", "../mcp/node_modules", "*.js *.mjs *.cjs *.ts"},
		{"JavaScript packages: minified", "../mcp/node_modules", "*.min.js *-deps.js *.map"},
		{"JavaScript packages: documents", "../mcp/node_modules", "*.md *.json *.yml"},
	}
	list = append(list, source{"Go's own library", filepath.Join(output(t, "go", "env", "GOROOT"), "src"), "*.go"})
	for _, m := range []string{"google.golang.org/grpc", "github.com/modelcontextprotocol/go-sdk", "golang.org/x/crypto"} {
		list = append(list, source{m, output(t, "go", "list", "-m", "-f", "{{.Dir}}", m), "*.go *.md *.yml"})
	}
	return list
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}
