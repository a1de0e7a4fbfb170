package dotenv

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The promise of the package: what Parse accepts is what npm dotenv yields.
// testdata/npm pins the package, `npm ci` installs it.

// npmPairs is what npm dotenv yields, in its order.
type npmPairs [][2]string

type oracle struct {
	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
}

// newOracle starts testdata/npm/oracle.js. Where it cannot run, the test is
// skipped, or fails if OV_REQUIRE_REAL=1.
func newOracle(tb testing.TB) *oracle {
	tb.Helper()
	missing := func(why string) {
		tb.Helper()
		const cost = "not compared with npm dotenv: "
		if os.Getenv("OV_REQUIRE_REAL") == "1" {
			tb.Fatal(cost + why)
		}
		tb.Skip(cost + why)
	}
	const dir = "testdata/npm"
	node, err := exec.LookPath("node")
	if err != nil {
		missing("node is not installed")
	}
	for _, pkg := range []string{"dotenv", "dotenv-16"} {
		installed, err := os.ReadFile(filepath.Join(dir, "node_modules", pkg, "package.json"))
		if err != nil {
			missing("run `npm ci` in pkg/dotenv/" + dir)
		}
		manifest, err := os.ReadFile(filepath.Join(dir, "package.json"))
		if err != nil {
			tb.Fatal(err)
		}
		var have struct{ Version string }
		var want struct{ Dependencies map[string]string }
		if err := errors.Join(json.Unmarshal(installed, &have), json.Unmarshal(manifest, &want)); err != nil {
			tb.Fatal(err)
		}
		if pin := want.Dependencies[pkg]; have.Version == "" || !strings.HasSuffix("@"+pin, "@"+have.Version) {
			tb.Fatalf("%s %s is installed where %s is pinned: run `npm ci` in pkg/dotenv/%s", pkg, have.Version, pin, dir)
		}
	}
	cmd := exec.Command(node, "oracle.js")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("oracle.js: %v", err)
		}
	})
	return &oracle{in: in, out: bufio.NewReaderSize(out, 1<<20)}
}

// ask returns what npm dotenv makes of each of the files, and what the
// package's other parsers make of it where that is something else.
func (o *oracle) ask(files [][]byte) ([]npmPairs, []map[string]npmPairs, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	sent := make(chan error, 1)
	go func() {
		w := bufio.NewWriter(o.in)
		for _, f := range files {
			_, _ = w.WriteString(base64.StdEncoding.EncodeToString(f) + "\n")
		}
		sent <- w.Flush()
	}()
	pairs := make([]npmPairs, len(files))
	differ := make([]map[string]npmPairs, len(files))
	for i := range files {
		line, err := o.out.ReadBytes('\n')
		if err != nil {
			return nil, nil, fmt.Errorf("reading from oracle.js: %w", err)
		}
		reply := struct {
			Pairs  *npmPairs
			Differ *map[string]npmPairs
		}{&pairs[i], &differ[i]}
		if err := json.Unmarshal(line, &reply); err != nil {
			return nil, nil, fmt.Errorf("a reply of oracle.js: %w", err)
		}
	}
	return pairs, differ, <-sent
}

// ours has Parse's pairs in the oracle's shape.
func ours(pairs []Pair) npmPairs {
	p := npmPairs{}
	for _, pair := range pairs {
		p = append(p, [2]string{pair.Name, string(pair.Value)})
	}
	return p
}

// known has the whole list of differences from npm dotenv in what Parse
// accepts, each as what Parse's pairs must be turned into to be npm's. It is
// docs/DOTENV.md's list too.
func known(p npmPairs) npmPairs {
	var q npmPairs
	for _, pair := range p {
		// An assignment to a JavaScript object's __proto__ that is not an
		// object does nothing.
		if pair[0] != "__proto__" {
			q = append(q, pair)
		}
	}
	return q
}

func equal(a, b npmPairs) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// compare checks the promise for each of the files, and returns how many of
// them Parse accepts.
func (o *oracle) compare(tb testing.TB, files [][]byte) (accepted int) {
	tb.Helper()
	pairs, differ, err := o.ask(files)
	if err != nil {
		tb.Fatal(err)
	}
	for i, file := range files {
		got, err := Parse(file)
		if err != nil {
			continue
		}
		accepted++
		if g := known(ours(got)); !equal(g, pairs[i]) {
			tb.Errorf("file  %q\nParse %q\nnpm   %q", file, g, pairs[i])
		}
		for reader, p := range differ[i] {
			tb.Errorf("file  %q\nnpm   %q\n%s %q: Parse should refuse what the package's parsers do not agree on", file, pairs[i], reader, p)
		}
	}
	return accepted
}

// pieces are what .env files are made of, and what upsets parsers of them.
var pieces = []string{
	"A", "B_2", "export ", "export\t", "export", "=", "=", "=", " = ", ": ", ":", "'", "\"", "`", "'", "\"",
	"#", " #", "# ", "\n", "\n", "\n", "\r\n", "\r", " ", "\t", "\\", "\\n", "\\r", "\\\"", "\\'", "\\`", "\\\\",
	"$", "${A}", "x", "y z", "-", ".", "é", "\u2028", "\u2029", "\u00a0", "\ufeff", "\u0085", "\v", "\f", "1", "{", "\x1b", "__proto__=",
}

// rubbish is a file of n random pieces.
func rubbish(r *rand.Rand, n int) []byte {
	var b []byte
	for range n {
		b = append(b, pieces[r.IntN(len(pieces))]...)
	}
	return b
}

// TestShortAgainstNpm tries every file of a few pieces after "A=": whatever a
// value and what follows it can do to each other in little space.
func TestShortAgainstNpm(t *testing.T) {
	o := newOracle(t)
	alphabet := []string{"'", "\"", "`", "\\", "#", " ", "\n", "\r", "x", "B=", "n", ": "}
	var files [][]byte
	var fill func(prefix string, n int)
	fill = func(prefix string, n int) {
		files = append(files, []byte(prefix))
		if n > 0 {
			for _, c := range alphabet {
				fill(prefix+c, n-1)
			}
		}
	}
	fill("A=", 4)
	accepted := o.compare(t, files)
	t.Logf("%d files, %d accepted, each as npm dotenv reads it", len(files), accepted)
	if accepted < len(files)/10 {
		t.Errorf("only %d of %d files were accepted: this compares nothing", accepted, len(files))
	}
}

// TestRandomAgainstNpm compares whole random files: well-formed ones, the same
// with a piece put in, taken out or replaced, and rubbish.
func TestRandomAgainstNpm(t *testing.T) {
	o := newOracle(t)
	r := rand.New(rand.NewPCG(2, 2))
	var files [][]byte
	for range 4000 {
		file, _ := wellFormed(r)
		files = append(files, file)
	}
	good := len(files)
	for range 8000 {
		file, _ := wellFormed(r)
		for range 1 + r.IntN(3) {
			i := r.IntN(len(file) + 1)
			j := i + min(r.IntN(3), len(file)-i)
			file = bytes.Join([][]byte{file[:i], file[j:]}, []byte(pieces[r.IntN(len(pieces))]))
		}
		files = append(files, file)
	}
	for range 8000 {
		files = append(files, rubbish(r, 1+r.IntN(24)))
	}
	if n := o.compare(t, files[:good]); n != good {
		t.Errorf("Parse refused %d of %d well-formed files", good-n, good)
	}
	n := o.compare(t, files[good:])
	t.Logf("%d well-formed files and %d others, of which %d accepted, each as npm dotenv reads it", good, len(files)-good, n)
	if n < 500 {
		t.Errorf("only %d of the other files were accepted: this compares nothing", n)
	}
}

// FuzzAgainstNpm keeps one node process to each fuzzing process.
func FuzzAgainstNpm(f *testing.F) {
	for _, file := range corpus(f) {
		if len(file.src) < 8<<10 { // long ones slow the mutator down
			f.Add(file.src)
		}
	}
	o := newOracle(f)
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 1<<16 {
			return // npm's regular expression can be quadratic
		}
		o.compare(t, [][]byte{src})
	})
}
