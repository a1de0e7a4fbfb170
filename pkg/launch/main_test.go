package launch

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// order tells a re-executed test binary what to launch. It comes as an
// argument, so that the environment stays what the test made it.
type order struct {
	Argv    []string
	Secrets map[string]string
	Opts    Options
	Hold    string // "before" or "after" a failing Exec, or "started": wait to be scanned
	Dir     string // for Start
	Group   bool   // for Start
}

// The test binary is also the launcher and some of the programs it launches.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 {
		os.Exit(runTests(m))
	}
	switch os.Args[1] {
	case "launch", "start":
		// The first thread is kept busy, so that Exec runs on another, as it
		// mostly does in a program with goroutines.
		runtime.LockOSThread()
		go func() { os.Exit(launcher(os.Args[2])) }()
		select {}
	case "environment":
		_ = json.NewEncoder(os.Stdout).Encode(os.Environ())
	case "notify":
		c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_, _ = io.WriteString(c, "READY=1")
	default:
		os.Exit(runTests(m))
	}
	os.Exit(0)
}

// tempDirs are removed when all tests are done.
var tempDirs []string

func runTests(m *testing.M) int {
	code := m.Run()
	for _, dir := range tempDirs {
		_ = os.RemoveAll(dir)
	}
	return code
}

// launcher does what the order says, JSON or @ and the file that holds it.
func launcher(arg string) int {
	text := []byte(arg)
	if file, ok := strings.CutPrefix(arg, "@"); ok {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			panic(err)
		}
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		panic(err)
	}
	if o.Hold == "" {
		// What the client does for itself must not reach the child.
		if err := kek.Harden(); err != nil {
			panic(err)
		}
	}
	if o.Opts.Inherit == nil {
		o.Opts.Inherit = os.Environ()
	}
	var secrets []Secret
	for name, value := range o.Secrets {
		secrets = append(secrets, Secret{name, []byte(value)})
	}
	if o.Hold != "" {
		return hold(o)
	}
	env, err := Environ(o.Opts, secrets)
	if err == nil && os.Args[1] == "start" {
		var child *os.Process
		child, err = Start(o.Argv, env, StartOptions{Dir: o.Dir, Group: o.Group, Files: [3]*os.File{os.Stdin, os.Stdout, os.Stderr}})
		if err == nil {
			return wait(child)
		}
	} else if err == nil {
		err = Exec(o.Argv, env)
	}
	fmt.Fprintf(os.Stderr, "test: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", h)
	}
	return ExitCode(err)
}

// hold reads the value of SECRET from standard input, builds the environment,
// wipes its own copy, says so and waits for the end of the input.
func hold(o order) int {
	value := make([]byte, 64)
	if _, err := io.ReadFull(os.Stdin, value); err != nil {
		panic(err)
	}
	env, err := Environ(o.Opts, []Secret{{"SECRET", value}})
	clear(value)
	if err != nil {
		panic(err)
	}
	if o.Hold == "after" {
		if err = Exec(o.Argv, env); ExitCode(err) != ExitCannotExec {
			panic(err)
		}
	}
	if o.Hold == "started" {
		r, w, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		child, err := Start(o.Argv, env, StartOptions{Files: [3]*os.File{r}})
		if err != nil {
			panic(err)
		}
		defer func() {
			_ = w.Close()
			if code := wait(child); code != 0 {
				panic(code)
			}
		}()
	}
	fmt.Println("holding")
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(env)
	return 0
}

// wait returns the exit code, or 128 and the signal.
func wait(child *os.Process) int {
	state, err := child.Wait()
	if err != nil {
		panic(err)
	}
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// self is the test binary.
func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// launch returns the command that has binary launch what o says.
func launch(t testing.TB, binary string, o order) *exec.Cmd {
	t.Helper()
	return by(t, "launch", binary, o)
}

func by(t testing.TB, how, binary string, o order) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(binary, how, string(b))
}

// run runs the command and returns its output and exit code.
func run(t testing.TB, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}
