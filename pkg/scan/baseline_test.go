package scan_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/scan"
	"github.com/opaquevault/ov/pkg/scan/options"
)

func TestBaseline(t *testing.T) {
	repository(t)
	files(t, map[string]string{"a": githubToken + "\n" + githubToken + "\n", "sub/b": "x " + awsKey + "\n", "u": "u: " + dbURL})
	const name = "known.json"
	stderr := lines(t, options.Scan{WriteBaseline: name})
	if stderr != "4 findings written to known.json; 3 files scanned\n" {
		t.Error(stderr)
	}
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		noSecret(t, name, string(text))
		return string(text)
	}
	first := read()
	// What an entry tells of a value is one in 4096.
	if n := len(regexp.MustCompile(`"tag": "[0-9a-f]{3}"`).FindAllString(first, -1)); n != 3 {
		t.Errorf("%d tags of 12 bits, not 3, in\n%s", n, first)
	}
	for range 2 { // written again, it is the same
		lines(t, options.Scan{WriteBaseline: name})
		if got := read(); got != first {
			t.Errorf("%s is not %s", got, first)
		}
	}
	known := options.Scan{Baseline: name}
	if stderr := lines(t, known); stderr != "no secrets found; 4 files scanned; 4 known from the baseline\n" {
		t.Error(stderr)
	}
	// From wherever it is looked at, and once committed or staged.
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	lines(t, options.Scan{Baseline: name, Paths: []string{wd + "/sub", "a", "./u"}})
	t.Chdir("sub")
	lines(t, options.Scan{Baseline: "../" + name})
	t.Chdir(wd)
	git(t, "add", "-A")
	lines(t, options.Scan{Baseline: name, Staged: true})
	commit(t, "x")
	lines(t, options.Scan{Baseline: name, History: true})

	// Other lines, no news.
	files(t, map[string]string{"a": "new\nlines\n\n  y " + githubToken + "\n"})
	lines(t, known)
	// Another value, another file, another rule.
	files(t, map[string]string{"a": otherToken + "\n", "c": awsKey, "sub/b": "x " + awsKey + "\n" + stripeKey})
	lines(t, known, "a:1:1: "+patShown, "c:1:1: "+awsShown, "sub/b:2:1: "+stripeShown)
	// What is gone leaves the file.
	if err := os.Remove("u"); err != nil {
		t.Fatal(err)
	}
	lines(t, options.Scan{WriteBaseline: name})
	lines(t, known)
	if now := read(); strings.Contains(now, `"u"`) || !strings.Contains(first, `"u"`) {
		t.Error(now)
	}

	// Two baselines cannot be compared.
	lines(t, options.Scan{WriteBaseline: "other.json"})
	tags := regexp.MustCompile(`"tag": "[0-9a-f]{3}"`)
	other, err := os.ReadFile("other.json")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(tags.FindAllString(read(), -1), "") == strings.Join(tags.FindAllString(string(other), -1), "") {
		t.Error("two baselines have the same tags")
	}
}

func TestBadBaselines(t *testing.T) {
	t.Chdir(t.TempDir())
	salt := strings.Repeat("0a", 32)
	files(t, map[string]string{
		"empty": "", "list": "[]", "version": `{"version":2,"salt":"` + salt + `","findings":[]}`,
		"salt": `{"version":1,"salt":"00","findings":[]}`, "more": `{"version":1,"salt":"` + salt + `","findings":[],"x":1}`,
		"two": `{"version":1,"salt":"` + salt + `","findings":[]}{}`, "behind": `{"version":1,"salt":"` + salt + `","findings":[]} x`,
		"value": `{"version":1,"salt":"` + salt + `","findings":[{"file":"a","rule":"b","secret":"` + githubToken + `"}]}`,
	})
	for _, name := range []string{"empty", "list", "version", "salt", "more", "two", "behind", "value", "absent", "."} {
		stdout, _, err := run(t, options.Scan{Baseline: name})
		if err == nil || errors.As(err, new(*scan.FoundError)) || !strings.Contains(err.Error(), name) || stdout != "" {
			t.Errorf("%s: %v", name, err)
		}
		if name == "absent" {
			continue
		}
		if _, _, err := run(t, options.Scan{WriteBaseline: name}); err == nil {
			t.Errorf("%s was overwritten, and is not a baseline", name)
		}
	}
	if _, _, err := run(t, options.Scan{WriteBaseline: "no/folder/x"}); err == nil {
		t.Error("written to nowhere")
	}
}

// A scanner that fails on one file.
type failing struct{ scan.Scanner }

func (f failing) Scan(text []byte, path string) ([]detect.Finding, error) {
	if path == "bad" {
		return nil, detect.ErrTimeout
	}
	return f.Scanner.Scan(text, path)
}

// TestIncomplete: what could not be scanned is not clean.
func TestIncomplete(t *testing.T) {
	t.Chdir(t.TempDir())
	files(t, map[string]string{"bad": githubToken, "clean": "x"})
	scanner := func() (scan.Scanner, error) {
		s, err := rules()
		return failing{s}, err
	}
	for _, o := range []options.Scan{{}, {WriteBaseline: "baseline"}} {
		var talk bytes.Buffer
		err := scan.Run(t.Context(), o, scanner, "", io.Discard, &talk)
		if err == nil || !strings.Contains(err.Error(), "not complete: 1 warning") ||
			!strings.HasPrefix(talk.String(), "ov: warning: cannot scan bad: the text takes too long") {
			t.Errorf("%v: %s", err, &talk)
		}
	}
}
