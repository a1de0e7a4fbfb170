package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/opaquevault/ov"

var update = flag.Bool("update", false, "rewrite the pinned dependency list")

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Dir        string
	Standard   bool
	GoFiles    []string
	Imports    []string
	Module     *struct{ Path string }
}

// list runs go list in the module's root, as the programs are built. What does
// not compile is the compiler's to say (-e).
func list(t *testing.T, env []string, args ...string) []pkg {
	t.Helper()
	fields := "-json=ImportPath,Name,Doc,Dir,Standard,GoFiles,Imports,Module"
	cmd := exec.Command("go", append([]string{"list", "-e", "-tags=grpcnotrace", fields}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT=runtimesecret"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// hasGo reports whether the folder dir, below the module's root, has Go files.
func hasGo(t *testing.T, dir string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files) > 0
}

// deps returns the import paths that the package in dir links, itself
// included, on every platform that we build for.
func deps(t *testing.T, dir string) map[string]pkg {
	t.Helper()
	all := map[string]pkg{}
	for _, goos := range []string{"linux", "darwin"} {
		for _, p := range list(t, []string{"GOOS=" + goos, "GOARCH=amd64"}, "-deps", "./"+dir) {
			all[p.ImportPath] = p
		}
	}
	return all
}

func TestEveryPackageHasADocComment(t *testing.T) {
	for _, p := range list(t, nil, "./...") {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment: say what it is for and what it promises", p.ImportPath)
		}
	}
}

// forbidden says which import paths a package must not link. A prefix that
// ends in "/..." covers the paths below it too.
var forbidden = []struct {
	dir   string
	paths []string
	why   string
}{
	{"cmd/ov-agent", []string{
		"net/http/pprof", "html/template", "expvar", "plugin",
		"github.com/spf13/cobra/doc", "github.com/pelletier/go-toml/...", "go.yaml.in/...", "gopkg.in/yaml.v3",
		"github.com/schollz/progressbar/...", "github.com/creack/pty", "github.com/rogpeppe/go-internal/...",
		"google.golang.org/grpc/reflection/...", "google.golang.org/grpc/channelz/service",
		"github.com/modelcontextprotocol/...", "github.com/zricethezav/...", "github.com/google/jsonschema-go/...",
		"database/sql", "testing",
	}, "what the agent links is its attack surface (DESIGN.md §2)"},
	{"cmd/ov", []string{
		module + "/pkg/kek/guard", "github.com/awnumar/memguard/...",
	}, "memguard's init sets a hard RLIMIT_CORE of 0, which every child of `ov run` would inherit"},
	{"cmd/ov-mcp", []string{
		module + "/pkg/detect/engine", "github.com/zricethezav/...", module + "/pkg/kek/guard", "net/http/pprof", "testing",
	}, "it holds values while programs run: the scanner and its 60 modules are in a process of their own"},
	{"cmd/ov", []string{
		"net/http/pprof", "html/template", "expvar", "plugin", "github.com/creack/pty",
		"github.com/rogpeppe/go-internal/...", "github.com/spf13/cobra/doc",
		"github.com/modelcontextprotocol/...", "github.com/zricethezav/...", "github.com/google/jsonschema-go/...",
		"database/sql", "testing", "google.golang.org/grpc/reflection/...",
	}, "it would cost every `ov run` start-up time or attack surface (DESIGN.md §8)"},
	{"cmd/ov-server", []string{
		module + "/pkg/kek/...", module + "/pkg/envelope/...", module + "/pkg/vault/...",
	}, "the server must have no code that could decrypt (DESIGN.md §2)"},
	{"pkg/server", []string{
		module + "/pkg/kek/...", module + "/pkg/envelope/...", module + "/pkg/vault/...",
	}, "the server must have no code that could decrypt (DESIGN.md §2)"},
	{"pkg/store", []string{
		module + "/pkg/kek/...", module + "/pkg/envelope/...", module + "/pkg/vault/...", module + "/pkg/agent/...",
	}, "a store knows no keys (DESIGN.md §8)"},
	{"pkg/store/bolt", []string{
		module + "/pkg/kek/...", module + "/pkg/envelope/...", module + "/pkg/vault/...", module + "/pkg/agent/...",
	}, "a store knows no keys (DESIGN.md §8)"},
	{"pkg/kek", []string{
		module + "/pkg/store/...", module + "/pkg/envelope/...", module + "/pkg/vault/...", module + "/pkg/agent/...",
		"github.com/awnumar/memguard/...",
	}, "kek knows no records (DESIGN.md §8)"},
	{"pkg/launch", []string{
		module + "/pkg/agent/...", module + "/pkg/vault/...", module + "/pkg/store/...", "google.golang.org/...",
	}, "launch is below the agent and the vault (DESIGN.md §8)"},
}

func covers(pattern, path string) bool {
	base, below := strings.CutSuffix(pattern, "/...")
	return path == base || below && strings.HasPrefix(path, base+"/")
}

func TestForbiddenImports(t *testing.T) {
	for _, f := range forbidden {
		t.Run(f.dir, func(t *testing.T) {
			if !hasGo(t, f.dir) {
				t.Logf("%s has no Go files yet", f.dir)
				return
			}
			linked := deps(t, f.dir)
			for _, path := range slices.Sorted(maps.Keys(linked)) {
				for _, pattern := range f.paths {
					if covers(pattern, path) {
						t.Errorf("%s links %s: %s\n  by way of %s", f.dir, path, f.why, strings.Join(chain(linked, module+"/"+f.dir, path), " → "))
					}
				}
			}
		})
	}
}

// chain is one shortest way of imports from one package to another.
func chain(linked map[string]pkg, from, to string) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			var path []string
			for at := to; at != ""; at = before[at] {
				path = append([]string{at}, path...)
			}
			return path
		}
		for _, next := range linked[queue[0]].Imports {
			if _, seen := before[next]; !seen {
				before[next] = queue[0]
				queue = append(queue, next)
			}
		}
	}
	return []string{from, to}
}

// layers is DESIGN.md §8 from the bottom up: a package imports only packages
// of lower layers, or of its own when it is below them in the tree.
var layers = []struct {
	layer int
	path  string
}{
	{0, "pkg/hint"},
	{0, "pkg/names"},
	{0, "pkg/near"},
	{0, "pkg/version"},
	{0, "proto"},
	{1, "pkg/xdg"},
	{2, "pkg/prompt"},
	{1, "pkg/safefile"},
	{1, "pkg/kek"},
	{1, "pkg/apikey"},
	{1, "pkg/store"},
	{2, "pkg/machinekey"},
	{2, "pkg/rendezvous"},
	{2, "pkg/envelope"},
	{2, "pkg/dotenv"},
	{2, "pkg/config"},
	{2, "pkg/sibling"},
	{2, "pkg/mask"},
	{2, "pkg/detect"},
	{2, "pkg/mcpclient"},
	{2, "pkg/login"},
	{2, "pkg/command"},
	{3, "pkg/vault"},
	{3, "pkg/launch"},
	{3, "pkg/scan"},
	{3, "pkg/server"},
	{4, "pkg/witness"},
	{4, "pkg/transfer"},
	{5, "pkg/stores"},
	{6, "pkg/agent"},
	{7, "pkg/access"},
	{7, "pkg/doctor"},
	{8, "pkg/mcp"},
	{7, "deploy"},
	{9, "cmd"},
}

func layerOf(path string) (int, string) {
	for _, l := range layers {
		if path == l.path || strings.HasPrefix(path, l.path+"/") {
			return l.layer, l.path
		}
	}
	return -1, ""
}

// TestImportsPointDown also fails on a package that has no layer: a new
// package's place is decided, not left to chance.
func TestImportsPointDown(t *testing.T) {
	for _, p := range list(t, nil, "./...") {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		if strings.HasPrefix(from, "test/") || from == "bench" || strings.HasPrefix(from, "bench/") || strings.HasPrefix(from, "docs") || len(p.GoFiles) == 0 {
			continue
		}
		layer, root := layerOf(from)
		if layer < 0 {
			t.Errorf("%s has no layer: give it one in test/rules", from)
			continue
		}
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			below, toRoot := layerOf(to)
			if below >= layer && toRoot != root {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point down (DESIGN.md §8)", from, layer, to, below)
			}
			if strings.HasPrefix(to, "test/") || strings.HasPrefix(to, "cmd/") && root != "cmd" {
				t.Errorf("%s imports %s", from, to)
			}
		}
	}
}

// TestGuardIsTheAgentsAlone: memguard reaches no program but ov-agent.
func TestGuardIsTheAgentsAlone(t *testing.T) {
	for _, p := range list(t, nil, "./...") {
		for _, imported := range p.Imports {
			if imported == module+"/pkg/kek/guard" && p.ImportPath != module+"/cmd/ov-agent" {
				t.Errorf("%s imports pkg/kek/guard, which is for cmd/ov-agent alone: its init sets a hard RLIMIT_CORE of 0", p.ImportPath)
			}
			if strings.HasPrefix(imported, "github.com/awnumar/memguard") && p.ImportPath != module+"/pkg/kek/guard" {
				t.Errorf("%s imports %s: only pkg/kek/guard does", p.ImportPath, imported)
			}
		}
	}
}

// TestDependencies pins what the programs that hold keys or values link beyond
// the standard library, and with ov what each `ov run` pays for.
func TestDependencies(t *testing.T) {
	for _, program := range []string{"ov", "ov-agent", "ov-mcp"} {
		t.Run(program, func(t *testing.T) { pinned(t, program) })
	}
}

func pinned(t *testing.T, program string) {
	var lines []string
	modules := map[string]bool{}
	for path, p := range deps(t, "cmd/"+program) {
		// Packages vendored into the standard library are its own.
		if p.Standard || strings.HasPrefix(path, "vendor/") {
			continue
		}
		lines = append(lines, path)
		if p.Module != nil {
			modules[p.Module.Path] = true
		}
	}
	for m := range modules {
		lines = append(lines, "module "+m)
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"

	golden := "testdata/" + program + ".deps"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	before := strings.Split(string(want), "\n")
	for _, l := range lines {
		if !slices.Contains(before, l) {
			t.Errorf("new in %s: %s", program, l)
		}
	}
	for _, l := range before {
		if l != "" && !slices.Contains(lines, l) {
			t.Errorf("no longer in %s: %s", program, l)
		}
	}
	if t.Failed() {
		t.Error("what a program links is its attack surface, and its time to start. If each change above is needed " +
			"and has been read, pin it:\n  go test ./test/rules -run TestDependencies -update")
	}
}

// tracked returns the files that git has, and the new ones that it would take.
func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// machine matches what is true of one machine only. It is written in pieces so
// that it does not match itself.
var machine = []struct {
	re  *regexp.Regexp
	why string
}{
	{regexp.MustCompile(`/wo` + `rk/`), "a path of one machine"},
	{regexp.MustCompile(`"reso` + `lved": *"http`), "a lock file that names a registry's host: set omit-lockfile-registry-resolved=true in .npmrc"},
	{regexp.MustCompile(`(?m)^regis` + `try *=`), "a registry's host"},
	{regexp.MustCompile(`/root/g` + `o/pkg/`), "a path of one machine"},
}

func TestFilesNameNoMachine(t *testing.T) {
	for _, name := range tracked(t) {
		data, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			continue // a link, or deleted and not yet committed
		}
		for _, m := range machine {
			if at := m.re.FindIndex(data); at != nil {
				t.Errorf("%s:%d: %s", name, 1+bytes.Count(data[:at[0]], []byte("\n")), m.why)
			}
		}
	}
}

// TestFuzzTargetsHaveSeeds: a fuzz target without committed seeds is a unit
// test of nothing.
func TestFuzzTargetsHaveSeeds(t *testing.T) {
	target := regexp.MustCompile(`(?m)^func (Fuzz[A-Z]\w*)\(`)
	files := tracked(t)
	found := 0
	for _, name := range files {
		if !strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			continue
		}
		for _, m := range target.FindAllSubmatch(src, -1) {
			found++
			dir := filepath.Join(filepath.Dir(name), "testdata", "fuzz", string(m[1])) + "/"
			if !slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(f, dir) }) {
				t.Errorf("%s: %s has no seeds in %s", name, m[1], dir)
			}
		}
	}
	t.Logf("%d fuzz targets", found)
}

// TestSuitesExist: once the programs are there, so are the tests that need
// more than `go test`, and `make test` does not pass for want of them.
func TestSuitesExist(t *testing.T) {
	if !hasGo(t, "cmd/ov") || !hasGo(t, "cmd/ov-agent") {
		t.Log("the programs have no Go files yet")
		return
	}
	for _, dir := range []string{"test/systemd", "test/memory", "test/faults", "test/mcp", "test/teams", "test/detection"} {
		if !slices.ContainsFunc(tracked(t), func(f string) bool {
			return strings.HasPrefix(f, dir+"/") && strings.HasSuffix(f, "_test.go")
		}) {
			t.Errorf("%s has no tests", dir)
		}
	}
}
