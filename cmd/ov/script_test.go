package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/opaquevault/ov/pkg/command"
)

// mark is in every secret value and master password of the scripts. It must not
// be found where no secret belongs.
const mark = "hunter2"

// TestScripts runs testdata/script/*.txtar against the real programs. Each
// script has a home of its own, which is also its working directory. Besides
// testscript's own commands there are
//
//	ov ARG... [INPUT]             run ov, which must exit with 0, or with 1 after !
//	exit CODE PROGRAM ARG... [INPUT]  run a program, which must exit with CODE
//	tty CODE DIALOG PROGRAM ARG...    the same on a terminal of its own: see tty
//	vault                         make a vault, password hunter2, and its machine
//	                              key in the file key
//	server start|stop             start an ov-server of the script's own, which has an
//	                              account, or stop it: its URL is in $URL, its CA in
//	                              ca.pem, an API key of scope admin in admin.key
//	norm [-sort]                  make times, keys, pids and paths in the output
//	                              of the last command the same in every run, and
//	                              sort its lines
//
// INPUT is <FILE or <<TEXT for standard input: a newline is put behind TEXT, and
// \n in it stands for one. Without it the input is empty.
//
// No standard error of ov, nothing that ov or ov-agent write to the home, and
// nothing in TMPDIR may hold a secret.
func TestScripts(t *testing.T) {
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         scratch,
		UpdateScripts:       *update,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup:               func(env *testscript.Env) error { return setup(env, bin) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ov": func(ts *testscript.TestScript, neg bool, argv []string) {
				code := 0
				if neg {
					code = command.ExitFailure
				}
				run1(ts, code, append([]string{"ov"}, argv...))
			},
			"exit": func(ts *testscript.TestScript, _ bool, argv []string) {
				code, err := strconv.Atoi(argv[0])
				ts.Check(err)
				run1(ts, code, argv[1:])
			},
			"vault": func(ts *testscript.TestScript, _ bool, _ []string) {
				run1(ts, 0, []string{"ov", "auth", "init", "--password-stdin", "<<" + mark})
				run1(ts, 0, []string{"ov", "auth", "derive-machine-key", "--out", "key", "--password-stdin", "<<" + mark})
			},
			"server": cmdServer,
			"norm":   norm,
			"tty":    cmdTTY,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
	})
}

func setup(env *testscript.Env, bin string) error {
	runtimeDir := filepath.Join(env.WorkDir, "run")
	if err := os.Mkdir(runtimeDir, 0o700); err != nil {
		return err
	}
	env.Vars = append(env.Vars,
		"HOME="+env.WorkDir,
		"XDG_RUNTIME_DIR="+runtimeDir,
		"PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"),
		"USER=tester", "LANG=C.UTF-8", "TZ=UTC", "TERM=xterm",
		"INPUT="+filepath.Join(scratch, filepath.Base(env.WorkDir)+".in"))
	env.Values[serverKey] = new([]*server)
	env.Defer(func() {
		stopAgents(env, bin)
		if err := checkHome(env.WorkDir); err != nil {
			env.T().Fatal(err)
		}
	})
	return nil
}

// stopAgents stops what a script has left running.
func stopAgents(env *testscript.Env, bin string) {
	_ = filepath.WalkDir(env.WorkDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type() == fs.ModeSocket {
			cmd := exec.Command(filepath.Join(bin, "ov"), "--socket", path, "agent", "stop")
			cmd.Env = env.Vars
			if out, err := cmd.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("no agent is running")) {
				env.T().Log("the agent at ", path, " does not stop: ", string(out))
			}
		}
		return nil
	})
}

// checkHome looks for secrets where none belong.
func checkHome(home string) error {
	for _, dir := range []string{".local", ".config", "data", "config", "state", ".tmp"} {
		err := filepath.WalkDir(filepath.Join(home, dir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if dir == ".tmp" {
				return fmt.Errorf("a temporary file was left: %s", path)
			}
			b, err := os.ReadFile(path)
			if err == nil && bytes.Contains(b, []byte(mark)) {
				err = fmt.Errorf("%s holds a secret", path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// run1 runs a program, which must exit with code, or 128 and the signal that
// ended it.
func run1(ts *testscript.TestScript, code int, argv []string) {
	input := os.DevNull
	if last := argv[len(argv)-1]; strings.HasPrefix(last, "<<") {
		input = ts.Getenv("INPUT")
		text := strings.ReplaceAll(last[2:], `\n`, "\n") + "\n"
		ts.Check(os.WriteFile(input, []byte(text), 0o600))
		argv = argv[:len(argv)-1]
	} else if strings.HasPrefix(last, "<") {
		input = ts.MkAbs(last[1:])
		argv = argv[:len(argv)-1]
	}
	err := ts.Exec("sh", append([]string{"-c", `exec "$@" <"$0"`, input}, argv...)...)
	if got := exitStatus(ts, err); got != code {
		ts.Fatalf("%s: exit code %d, not %d", strings.Join(argv, " "), got, code)
	}
	checkOutput(ts, argv, ts.ReadFile("stderr"))
}

func exitStatus(ts *testscript.TestScript, err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// An error is one line, and the hint another.
var errorForm = regexp.MustCompile(`\Aov: [^\n]+(\n {2}hint: [^\n]+)?\z`)

// checkOutput holds standard error to the rules for all commands.
func checkOutput(ts *testscript.TestScript, argv []string, stderr string) {
	if argv[0] != "ov" {
		return
	}
	if strings.Contains(stderr, mark) {
		ts.Fatalf("a secret is in standard error")
	}
	if at := strings.LastIndex("\n"+stderr, "\nov: "); at >= 0 && !strings.Contains(stderr[at:], "warning: ") {
		text := strings.TrimSuffix(stderr[at:], "\n")
		if !errorForm.MatchString(text) {
			ts.Fatalf("the error is not of the form `ov: lowercase` and `  hint: …`: %q", text)
		}
		if c := text[len("ov: ")]; c >= 'A' && c <= 'Z' && !upperWord.MatchString(text) {
			ts.Fatalf("the error does not start in lowercase: %q", text)
		}
	}
}

// upperWord is a name that is written in capitals.
var upperWord = regexp.MustCompile(`\Aov: [A-Z_]{2,}`)

var varying = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d`), "DATE"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "KEY"},
	{regexp.MustCompile(`(pid:? +|"pid": )\d+`), "${1}PID"},
	{regexp.MustCompile(`(memory"?: "?)(memfd_secret|mlock)`), "${1}MEMORY"},
	{regexp.MustCompile(`("requests": )\d+`), "${1}N"},
}

func norm(ts *testscript.TestScript, _ bool, argv []string) {
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	for _, s := range []*string{&stdout, &stderr} {
		*s = strings.ReplaceAll(*s, ts.Getenv("WORK"), "$WORK")
		for _, v := range varying {
			*s = v.re.ReplaceAllString(*s, v.by)
		}
		if len(argv) > 0 && argv[0] == "-sort" {
			*s = strings.Join(slices.Sorted(strings.Lines(*s)), "")
		}
	}
	fmt.Fprint(ts.Stdout(), stdout)
	fmt.Fprint(ts.Stderr(), stderr)
}
