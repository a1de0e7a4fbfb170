package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestCompletionsNameEverything: what a command line names, it completes.
func TestCompletionsNameEverything(t *testing.T) {
	named := regexp.MustCompile(`^[a-z-]+ (NAME|APP|ENV|FINGERPRINT)\b`)
	arguments := (&globals{}).completeArguments()
	everyCommand(newRootCmd(""), func(cmd *cobra.Command) {
		if named.MatchString(cmd.Use) != (cmd.ValidArgsFunction != nil) {
			t.Errorf("%s: its arguments are completed: %v", cmd.CommandPath(), cmd.ValidArgsFunction != nil)
		}
		delete(arguments, cmd.CommandPath())
		for _, name := range []string{"app", "env", "secrets"} {
			if _, ok := cmd.GetFlagCompletionFunc(name); cmd.Flags().Lookup(name) != nil && !ok {
				t.Errorf("%s: --%s is not completed", cmd.CommandPath(), name)
			}
		}
	})
	for path := range arguments {
		t.Errorf("there is no command %s", path)
	}
	// What ov run does not use, it does not pay for.
	run, _, err := newRootCmd("run").Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := run.GetFlagCompletionFunc("app"); ok {
		t.Error("a start of ov run makes completions")
	}
}

// TestCompletionOffersOnlyNames: whatever an agent says, a shell gets no text
// that it could expand, and a terminal none that it could act upon.
func TestCompletionOffersOnlyNames(t *testing.T) {
	said := []string{"WEB", "web-1", "$(touch x)", "`x`", "W;x", "W x", "W\x1b[2J", "W\n:0", "W\tx", "", "-W", "W'", `W"`, "W\\", "W*", "~", "_activeHelp_ x", "W\u202e"}
	if got := offered(said, ""); !slices.Equal(got, []string{"WEB", "web-1"}) {
		t.Errorf("%q", got)
	}
	if got := offered(said, "W"); !slices.Equal(got, []string{"WEB"}) || len(said) != 18 {
		t.Errorf("%q", got)
	}
}

// TestCompletionDoesNotWait: an agent that does not answer costs about a second.
func TestCompletionDoesNotWait(t *testing.T) {
	h := newHome(t, 0)
	h.vault()
	h.agent()
	var status struct{ PID int }
	if err := json.Unmarshal([]byte(h.must("", "ov", "agent", "status", "--json")), &status); err != nil || status.PID <= 1 {
		t.Fatalf("%+v, %v", status, err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(status.PID, syscall.SIGCONT) }()
	start := time.Now()
	out := h.must("", "ov", "__complete", "secret", "get", "")
	if took := time.Since(start); out != ":4\n" || took < completeWait || took > 8*completeWait {
		t.Errorf("%q after %v", out, took)
	}
}

// TestCompletionInBash: bash, given what `ov completion bash` prints, completes.
func TestCompletionInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("not run: no bash")
	}
	const library = "/usr/share/bash-completion/bash_completion"
	if _, err := os.Stat(library); err != nil {
		t.Skip("not run: no bash-completion")
	}
	h := newHome(t, 0)
	h.vault()
	h.must("", "ov", "app", "create", "web", "--machine-key", "key")
	for _, name := range []string{"DATABASE_URL", "DATABASE_USER", "STRIPE_KEY"} {
		h.must(mark, "ov", "secret", "set", name, "--app", "web", "--machine-key", "key")
	}
	h.agent()
	const script = `. ` + library + ` && . <(ov completion bash) || exit 9
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
$(complete -p ov | sed 's/.* -F \([^ ]*\) .*/\1/') ov "${COMP_WORDS[COMP_CWORD]}"
printf '%s\n' "${COMPREPLY[@]}"`
	for line, want := range map[string]string{
		"ov secret get --app web STR":                 "STRIPE_KEY",
		"ov secret get --app web DATABASE_U":          "DATABASE_URL DATABASE_USER",
		"ov secret get --app web NOPE":                "",
		"ov run --app w":                              "web",
		"ov run --app web --secrets STRIPE_KEY,DATA":  "STRIPE_KEY,DATABASE_URL STRIPE_KEY,DATABASE_USER",
		"ov app use w":                                "web",
		"ov secret delete --app web STRIPE_KEY STRIP": "",
		"ov comple": "completion",
	} {
		cmd := exec.Command(bash, append([]string{"--norc", "--noprofile", "-c", script, "bash"}, strings.Fields(line)...)...)
		cmd.Env, cmd.Dir = h.env, h.dir
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if got := strings.Join(strings.Fields(stdout.String()), " "); err != nil || got != want {
			t.Errorf("%s: %q, not %q: %v\n%s", line, got, want, err, &stderr)
		}
	}
}
