package scan_test

import (
	"archive/zip"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	v210 "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"
	"github.com/xeipuuv/gojsonschema"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/scan"
	"github.com/opaquevault/ov/pkg/scan/options"
)

func TestFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	files(t, map[string]string{
		"b.txt":              "one\ntwo é " + githubToken + "\n",
		"a/deep/er/x.env":    "A=1\nAWS=" + awsKey + "\nSTRIPE=" + stripeKey + "\n",
		"key.pem":            pemKey,
		"clean.txt":          "nothing\n",
		"empty":              "",
		".hidden/.env":       "DATABASE_URL=" + dbURL,
		"package-lock.json":  `{"token": "` + githubToken + `"}`,
		"node_modules/x/a.c": githubToken,
		"binary.bin2":        "\x00\x01" + githubToken,
		"allowed.go":         "x := \"" + githubToken + "\" // gitleaks:allow\n",
		"store.p12":          "\x30\x82\x00\x00",
		"u.yml":              "url: amqp://u:" + shortPwd + "@h\n",
	})
	want := []string{
		".hidden/.env:1:29: connection-string-password: fR… (12 characters)",
		"a/deep/er/x.env:2:5: " + awsShown,
		"a/deep/er/x.env:3:8: " + stripeShown,
		"b.txt:2:7: " + patShown,
		"key.pem:1:1: private-key: --… (118 characters)",
		"store.p12:1:1: pkcs12-file: the file itself",
		"u.yml:1:15: connection-string-password: … (5 characters)",
	}
	for range 5 { // in the same order every time
		stderr := lines(t, options.Scan{}, want...)
		if want := "8 files scanned; skipped: 2 binary, 2 such as lock files or node_modules\n"; stderr != want {
			t.Errorf("stderr %q, not %q", stderr, want)
		}
	}
	lines(t, options.Scan{Paths: []string{"a", "b.txt", "clean.txt"}}, want[1:4]...)
	lines(t, options.Scan{Paths: []string{"clean.txt", "empty"}})
	// What is named is looked at wherever it is.
	lines(t, options.Scan{Paths: []string{"node_modules/x"}}, "node_modules/x/a.c:1:1: "+patShown)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	lines(t, options.Scan{Paths: []string{filepath.Join(wd, "a", "..", "b.txt")}}, wd+"/b.txt:2:7: "+patShown)
	if _, _, err := run(t, options.Scan{Paths: []string{"absent"}}); err == nil || !strings.Contains(err.Error(), "absent: no such file") {
		t.Errorf("absent: %v", err)
	}
}

// TestNames: what a name holds does not reach the terminal, or break a line.
func TestNames(t *testing.T) {
	t.Chdir(t.TempDir())
	files(t, map[string]string{
		"new\nline": githubToken, "esc\x1b[31m": githubToken, "not\xffutf8": githubToken, "a b": githubToken, "-x": githubToken, "é": githubToken,
	})
	lines(t, options.Scan{},
		`-x:1:1: `+patShown, `"a b":1:1: `+patShown, `"esc\x1b[31m":1:1: `+patShown, `"new\nline":1:1: `+patShown,
		`"not\xffutf8":1:1: `+patShown, `é:1:1: `+patShown)
	stdout, _, _ := run(t, options.Scan{Format: options.SARIF})
	for _, uri := range []string{"new%0Aline", "esc%1B%5B31m", "not%FFutf8", "a%20b"} {
		if !strings.Contains(stdout, `"uri": "`+uri+`"`) {
			t.Errorf("no %s in %s", uri, stdout)
		}
	}
}

// TestOutOfTheTree: no link leads out of what is scanned, and nothing is waited
// for.
func TestOutOfTheTree(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte(githubToken), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	files(t, map[string]string{"in/real": awsKey})
	for name, to := range map[string]string{
		"file": filepath.Join(outside, "secret"), "dir": outside, "loop": ".", "gone": "nowhere", "in/link": "real", "tty": "/dev/zero",
	} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo("pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	lines(t, options.Scan{}, "in/real:1:1: "+awsShown)
	if _, _, err := run(t, options.Scan{Paths: []string{"pipe"}}); err == nil || !strings.Contains(err.Error(), "neither a file nor a folder") {
		t.Errorf("a pipe: %v", err)
	}
	// A link that is named is meant.
	lines(t, options.Scan{Paths: []string{"dir"}}, "dir/secret:1:1: "+patShown)
}

func TestLargeFilesAndArchives(t *testing.T) {
	t.Chdir(t.TempDir())
	line := strings.Repeat("x", 99) + "\n"
	files(t, map[string]string{
		"large": strings.Repeat(line, detect.MaxText/100+1) + githubToken,
		"fits":  strings.Repeat(line, detect.MaxText/100-1) + githubToken,
	})
	f, err := os.Create("archive.zip")
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "x", Method: zip.Store})
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", githubToken)
	}
	if err != nil || z.Close() != nil || f.Close() != nil {
		t.Fatal(err)
	}
	stderr := lines(t, options.Scan{}, fmt.Sprintf("fits:%d:1: %s", detect.MaxText/100, patShown))
	if want := "1 file scanned; skipped: 1 binary, 1 larger than 16 MiB\n"; stderr != want {
		t.Errorf("%q", stderr)
	}
}

// What cannot be read is told, and is not taken for clean.
func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 && runtime.GOOS == "linux" {
		// Root may read every file, but there is nothing at address 0.
		stdout, stderr, err := run(t, options.Scan{Paths: []string{"/proc/self/mem"}})
		if stdout != "" || err == nil || !strings.HasPrefix(stderr, "ov: warning: cannot scan /proc/self/mem: input/output error\n") {
			t.Errorf("%q %q %v", stdout, stderr, err)
		}
		return
	}
	t.Chdir(t.TempDir())
	files(t, map[string]string{"a": githubToken, "dir/b": githubToken})
	if os.Chmod("a", 0) != nil || os.Chmod("dir", 0) != nil {
		t.Fatal("chmod")
	}
	t.Cleanup(func() { _ = os.Chmod("dir", 0o700) })
	stdout, stderr, err := run(t, options.Scan{})
	if stdout != "" || err == nil || strings.Count(stderr, "permission denied") != 2 || !strings.Contains(err.Error(), "not complete") {
		t.Errorf("%q %q %v", stdout, stderr, err)
	}
}

func TestMany(t *testing.T) {
	t.Chdir(t.TempDir())
	files(t, map[string]string{"many": strings.Repeat(githubToken+"\n", detect.MaxFindings+10)})
	stdout, stderr, err := run(t, options.Scan{})
	if strings.Count(stdout, "\n") != detect.MaxFindings || !strings.Contains(stderr, "more than 1000 secrets in many") || err == nil {
		t.Errorf("%d lines, %q, %v", strings.Count(stdout, "\n"), stderr, err)
	}
}

func TestJSON(t *testing.T) {
	t.Chdir(t.TempDir())
	if stdout, _, err := run(t, options.Scan{Format: options.JSON}); stdout != "[]\n" || err != nil {
		t.Errorf("nothing: %q %v", stdout, err)
	}
	files(t, map[string]string{"a": "é " + githubToken + "\n", "k": "\n" + pemKey, "u": "u: amqp://u:" + shortPwd + "@h\n"})
	stdout, _, _ := run(t, options.Scan{Format: options.JSON})
	var got []map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatal(stdout)
	}
	delete(got[0], "description")
	if fmt.Sprint(got[0]) != "map[column:3 end_column:43 end_line:1 file:a length:40 line:1 preview:gh rule:github-pat]" {
		t.Error(got[0])
	}
	if fmt.Sprint(got[1]["line"], got[1]["end_line"], got[1]["end_column"]) != "2 4 26" {
		t.Error(got[1])
	}
	if got[2]["preview"] != "" || got[2]["length"] != 5. {
		t.Error(got[2])
	}
}

// sarifSchema is OASIS' schema of SARIF 2.1.0, from the source of go-sarif. Its own
// way to validate knows only what it has made itself.
func sarifSchema(t *testing.T) *gojsonschema.Schema {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif").Output()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(out)), "schema.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	ast.Inspect(file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			text, err = strconv.Unquote(lit.Value)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := gojsonschema.NewSchema(gojsonschema.NewStringLoader(text))
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func TestSARIF(t *testing.T) {
	schema := sarifSchema(t)
	if r, err := schema.Validate(gojsonschema.NewStringLoader(`{"version": "2.1.0", "runs": [{"results": []}]}`)); err != nil || r.Valid() {
		t.Fatalf("the schema takes anything: %v", err)
	}
	repository(t)
	validate := func(o options.Scan, results int) {
		t.Helper()
		o.Format = options.SARIF
		stdout, _, _ := run(t, o)
		result, err := schema.Validate(gojsonschema.NewStringLoader(stdout))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range result.Errors() {
			t.Error(e)
		}
		var report v210.Report
		dec := json.NewDecoder(strings.NewReader(stdout))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&report); err != nil {
			t.Fatalf("%v in %s", err, stdout)
		}
		if len(report.Runs) != 1 || len(report.Runs[0].Results) != results || strings.Contains(stdout, "snippet") {
			t.Errorf("not %d results: %s", results, stdout)
		}
		for _, r := range report.Runs[0].Results {
			if *report.Runs[0].Tool.Driver.Rules[r.RuleIndex].ID != *r.RuleID {
				t.Error("a rule's index is wrong")
			}
		}
	}
	validate(options.Scan{}, 0)
	files(t, map[string]string{"a b/c:d": githubToken + "\n" + pemKey, "x": awsKey, "y": awsKey})
	commit(t, "x")
	validate(options.Scan{}, 4)
	validate(options.Scan{History: true}, 4)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	validate(options.Scan{Paths: []string{wd}}, 4)
}

func BenchmarkFiles(b *testing.B) {
	dir := b.TempDir()
	text := strings.Repeat("func f(a, b int) (sum int) { return a + b } // nothing\n", 40)
	for i := range 10_000 {
		sub := filepath.Join(dir, fmt.Sprint(i/100))
		if i%100 == 0 {
			if err := os.Mkdir(sub, 0o700); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(10_000 * len(text)))
	for b.Loop() {
		var sink discard
		if err := scan.Run(b.Context(), options.Scan{Paths: []string{dir}}, rules, "", sink, sink); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
