package scan_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opaquevault/ov/pkg/detect/engine"
	"github.com/opaquevault/ov/pkg/scan"
	"github.com/opaquevault/ov/pkg/scan/options"
)

// These have the forms of secrets. They are put together here, so that no scanner
// takes this file for a leak.
const (
	githubToken = "gh" + "p_" + "R7mK2xVq9ZtB4nWc8YfLs3HdJ6pGaE1uTiO5"
	otherToken  = "gh" + "p_" + "bN4vLq8ZwXc2RtY7uJm5KdPs9HfGa3E6iTo1"
	awsKey      = "AK" + "IA" + "QYLPMN5HF3XJ7TRB"
	stripeKey   = "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dcK9x"
	pwd         = "fR7-kq" + "Z2mXw9"
	shortPwd    = "q8" + "Z!v"
	dbURL       = "postgres://app:" + pwd + "@db.internal/app"
	pemKey      = "-----BEGIN " + "PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEM3BqOgx32ojQwtNh+Hw0QTWf8qF+wAWj7hCrEYzbom\n-----END " + "PRIVATE KEY-----\n"
)

var secrets = []string{githubToken, otherToken, awsKey, stripeKey, pwd, shortPwd, "MC4CAQAwBQYDK2VwBCIEIEM3BqOgx32ojQwtNh"}

var rules = sync.OnceValues(func() (scan.Scanner, error) { return engine.New() })

// noSecret asserts that no secret, and no half of one, is in what was said.
func noSecret(t *testing.T, what, text string) {
	t.Helper()
	for _, s := range secrets {
		for _, part := range []string{s, s[:max(len(s)/2, 4)], s[len(s)/2:]} {
			if strings.Contains(text, part) {
				t.Errorf("%s holds %q, of a secret:\n%s", what, part, text)
			}
		}
	}
}

// run scans, and holds what it says to what all of it must be.
func run(t *testing.T, o options.Scan) (stdout, stderr string, err error) {
	t.Helper()
	var out, talk bytes.Buffer
	err = scan.Run(t.Context(), o, rules, "/opt/ov", &out, &talk)
	noSecret(t, "stdout", out.String())
	noSecret(t, "stderr", talk.String())
	if err != nil {
		noSecret(t, "the error", err.Error())
	}
	if strings.ContainsAny(out.String()+talk.String(), "\x1b\r\x00\x07") {
		t.Errorf("control characters: %q %q", &out, &talk)
	}
	return out.String(), talk.String(), err
}

// lines runs a scan that must find secrets, or none if none are wanted, and
// compares what it prints, line by line.
func lines(t *testing.T, o options.Scan, want ...string) (stderr string) {
	t.Helper()
	stdout, stderr, err := run(t, o)
	var found *scan.FoundError
	if errors.As(err, &found) != (len(want) > 0) || err != nil && found == nil {
		t.Errorf("error: %v", err)
	}
	if found != nil && found.Count != len(want) {
		t.Errorf("%d secrets, not %d", found.Count, len(want))
	}
	got := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if stdout == "" {
		got = nil
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", stdout, strings.Join(want, "\n"))
	}
	return stderr
}

// files writes files below the current directory, by name.
func files(t *testing.T, content map[string]string) {
	t.Helper()
	for name, text := range content {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// git runs git in the current directory, as somebody, with nobody's configuration.
func git(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Ann", "GIT_AUTHOR_EMAIL=ann@example.com", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z",
		"GIT_COMMITTER_NAME=Ann", "GIT_COMMITTER_EMAIL=ann@example.com", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// repository makes one and goes there.
func repository(t *testing.T, args ...string) {
	t.Helper()
	t.Chdir(t.TempDir())
	git(t, append([]string{"init", "-q", "-b", "main"}, args...)...)
}

// commit commits everything and returns the commit, short.
func commit(t testing.TB, message string) string {
	t.Helper()
	git(t, "add", "-A")
	git(t, "commit", "-q", "--allow-empty", "-m", message)
	return git(t, "rev-parse", "HEAD")[:12]
}

func in(file string, line, column int, commit, what string) string {
	return fmt.Sprintf("%s:%d:%d in %s of 2026-01-02: %s", file, line, column, commit, what)
}

const (
	patShown    = "github-pat: gh… (40 characters)"
	awsShown    = "aws-access-token: AK… (20 characters)"
	stripeShown = "stripe-access-token: sk… (35 characters)"
)
