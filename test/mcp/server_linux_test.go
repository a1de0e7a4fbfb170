package mcp

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/test/chance"
)

// demo is an account with three secrets and its agent.
func demo(t *testing.T) *account {
	t.Helper()
	r := chance.Rand(t, 1)
	a := newAccount(t,
		secret{name: "TOKEN", value: text(r, 40, alnum)},
		secret{name: "DATABASE_URL", value: []byte("postgres://app:" + string(text(r, 20, alnum)) + "@db.example.com/app")},
		// White space at its ends would stay beside what stands for it.
		secret{name: "AWKWARD", value: slices.Concat([]byte("'"), text(r, 28, awkward), []byte("\""))},
	)
	a.start()
	return a
}

func (a *account) value(name string) string {
	for _, s := range a.secrets {
		if s.name == name {
			return string(s.value)
		}
	}
	a.t.Fatalf("no secret %s", name)
	return ""
}

// everyTool is a good call of each tool that needs the vault.
var everyTool = map[string]map[string]any{
	"vault_run":           {"command": []string{"true"}},
	"vault_list_secrets":  {},
	"vault_secret_exists": {"name": "TOKEN"},
	"vault_create_secret": {"name": "NEW", "generate": map[string]any{"length": 20}},
	"vault_update_secret": {"name": "NEW", "generate": map[string]any{"length": 24, "alphabet": "hex"}},
	"vault_delete_secret": {"name": "NEW"},
}

// inOrder is their order, in which each of them succeeds.
var inOrder = []string{"vault_run", "vault_list_secrets", "vault_secret_exists", "vault_create_secret", "vault_update_secret", "vault_delete_secret"}

type status struct {
	Unlocked          bool   `json:"unlocked"`
	App               string `json:"app"`
	Env               string `json:"env"`
	HowToUnlock       string `json:"how_to_unlock"`
	InterceptMode     string `json:"intercept_mode"`
	InterceptedCount  int    `json:"intercepted_count"`
	SessionAgeSeconds int    `json:"session_age_seconds"`
}

func (c *session) status() (s status) {
	c.t.Helper()
	c.must(&s, "vault_status", map[string]any{})
	return s
}

// TestLockedAndUnlocked: whatever becomes of the agent, a session says how to
// unlock, and goes on once that is done.
func TestLockedAndUnlocked(t *testing.T) {
	t.Parallel()
	a := newAccount(t, secret{name: "TOKEN", value: []byte("a token of this test 71c6")})
	c := a.serve(nil).open(t, nil) // no agent at all
	refused := func(command string) {
		t.Helper()
		for _, name := range inOrder {
			c.refused(name, everyTool[name], "locked", command)
		}
		if s := c.status(); s.Unlocked || !strings.Contains(s.HowToUnlock, command) || s.App != "demo" || s.Env != "production" {
			t.Errorf("vault_status: %+v", s)
		}
	}
	works := func() {
		t.Helper()
		for _, name := range inOrder {
			c.must(nil, name, everyTool[name])
		}
		if s := c.status(); !s.Unlocked || s.HowToUnlock != "" {
			t.Errorf("vault_status: %+v", s)
		}
		if out := c.run([]string{"printenv", "TOKEN"}); out.Stdout != "[masked TOKEN]\n" {
			t.Errorf("vault_run printed %q", out.Stdout)
		}
	}
	refused("ov agent start")
	a.start()
	works()
	a.ov(nil, "agent", "lock")
	refused("ov agent unlock")
	a.ov(a.password, "agent", "unlock", "--password-stdin")
	works()
	a.ov(nil, "agent", "stop")
	refused("ov agent start")
	a.ov(nil, "agent", "start", "--machine-key", a.key()) // another process
	works()
}

// TestMachineKey: without an agent; and the key's path and OV_ variables are not
// passed on.
func TestMachineKey(t *testing.T) {
	t.Parallel()
	a := newAccount(t, secret{name: "TOKEN", value: []byte("a token of this test 71c6")})
	c := a.serve([]string{"OV_INTERCEPT_MODE=warn"}, "--machine-key", a.key()).open(t, nil)
	for _, name := range inOrder {
		c.must(nil, name, everyTool[name])
	}
	out := c.run([]string{"env"})
	if !strings.Contains(out.Stdout, "TOKEN=[masked TOKEN]\n") || out.MaskedCount != 1 {
		t.Errorf("env printed %q", out.Stdout)
	}
	if strings.Contains(out.Stdout, "OV_") || strings.Contains(out.Stdout, a.key()) {
		t.Errorf("env printed %q", out.Stdout)
	}
	// A key that is not fit for use is an error of each tool, with what to do.
	if err := os.Chmod(a.key(), 0o644); err != nil {
		t.Fatal(err)
	}
	c.refused("vault_run", everyTool["vault_run"], "chmod 600")
	if err := os.Chmod(a.key(), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must(nil, "vault_run", everyTool["vault_run"])
}

// TestRendezvous: the agent is found through /etc/ov/agent.socket, without
// $XDG_RUNTIME_DIR, in a mount namespace with an /etc and a /run of its own.
func TestRendezvous(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root can write /etc/ov/agent.socket")
	}
	// Children are made by the thread that is in the namespace. It ends with the
	// test, as it is never unlocked.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		missing(t, fmt.Sprintf("cannot make a mount namespace: %v", err))
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, dir := range []string{"/etc", "/run"} {
		do(unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	}
	const socket = "/run/ov-agent/ov-agent.sock"
	do(os.Mkdir("/etc/ov", 0o755))
	do(os.WriteFile("/etc/ov/agent.socket", []byte(socket+"\n"), 0o644))
	do(os.Mkdir("/run/ov-agent", 0o755))

	a := newAccount(t, secret{name: "TOKEN", value: []byte("a token of this test 71c6")})
	a.env = slices.DeleteFunc(a.env, func(v string) bool { return strings.HasPrefix(v, "XDG_RUNTIME_DIR=") })
	a.ov(nil, "--socket", socket, "agent", "start", "--machine-key", a.key())
	t.Cleanup(func() { a.ov(nil, "--socket", socket, "agent", "stop") })
	c := a.serve(nil).open(t, nil)
	if out := c.run([]string{"printenv", "TOKEN"}); out.Stdout != "[masked TOKEN]\n" {
		t.Errorf("vault_run printed %q", out.Stdout)
	}
	// One that somebody else could have written is an error, and says so.
	do(os.Chmod("/etc/ov/agent.socket", 0o666))
	a.serve(nil).open(t, nil).refused("vault_run", everyTool["vault_run"], "can be written by others")
}

// TestArguments: what is wrong is refused before anything starts, and is not
// repeated.
func TestArguments(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil).open(t, nil)
	outside := filepath.Join(a.dir, "outside")
	if err := os.WriteFile(outside, []byte("a value outside of the project"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(a.dir, filepath.Join(a.project, "link")); err != nil {
		t.Fatal(err)
	}
	a.file("project/value.txt", "a value in a file 5a9d\n")
	const mark = "XYZZY-plugh-5309" // stands for what should not be there
	run := func(more map[string]any) map[string]any {
		args := map[string]any{"command": []string{"touch", "started"}}
		for k, v := range more {
			args[k] = v
		}
		return args
	}
	for _, c2 := range []struct {
		tool string
		args any
		says []string
	}{
		{"vault_run", map[string]any{}, []string{"command"}},
		{"vault_run", map[string]any{"command": []string{}}, []string{"command"}},
		{"vault_run", map[string]any{"command": []string{""}}, []string{"command"}},
		{"vault_run", map[string]any{"command": mark}, []string{"command"}},
		{"vault_run", map[string]any{"command": []string{"true\x00" + mark}}, []string{"NUL"}},
		{"vault_run", map[string]any{"command": slices.Repeat([]string{"x"}, 5000)}, []string{"too long"}},
		{"vault_run", map[string]any{"command": []string{"no-such-program-here"}}, []string{"not found"}},
		{"vault_run", map[string]any{"command": []string{"/etc/passwd"}}, nil},
		{"vault_run", run(map[string]any{"secrets": []string{"TOKEN", "TOKEM"}}), []string{"TOKEM"}},
		{"vault_run", run(map[string]any{"secrets": []string{mark}}), []string{"name"}},
		{"vault_run", run(map[string]any{"secrets": "TOKEN"}), []string{"secrets"}},
		{"vault_run", run(map[string]any{"timeout_seconds": -1}), []string{"timeout_seconds"}},
		{"vault_run", run(map[string]any{"timeout_seconds": 3601}), []string{"timeout_seconds"}},
		{"vault_run", run(map[string]any{"timeout_seconds": mark}), []string{"timeout_seconds"}},
		{"vault_run", run(map[string]any{"timeout_seconds": 1e300}), []string{"timeout_seconds"}},
		{"vault_run", run(map[string]any{"work_dir": ".."}), []string{"outside"}},
		{"vault_run", run(map[string]any{"work_dir": "link"}), []string{"outside"}},
		{"vault_run", run(map[string]any{"work_dir": "/"}), []string{"outside"}},
		{"vault_run", run(map[string]any{"work_dir": "value.txt"}), []string{"not a directory"}},
		{"vault_run", run(map[string]any{"work_dir": "no-such-" + mark}), []string{"work_dir"}},
		{"vault_run", run(map[string]any{"env": map[string]any{"X": mark}}), []string{"unknown argument"}},
		{"vault_run", run(map[string]any{"app": "other"}), []string{"unknown argument"}},
		{"vault_run", run(map[string]any{mark: 1}), []string{"unknown argument"}},
		{"vault_list_secrets", map[string]any{"app": mark}, []string{"unknown argument"}},
		{"vault_secret_exists", map[string]any{}, []string{"name"}},
		{"vault_secret_exists", map[string]any{"name": mark}, []string{"name"}},
		{"vault_create_secret", map[string]any{"name": "A"}, []string{"generate", "from_file"}},
		{"vault_create_secret", map[string]any{"name": "A", "value": mark}, []string{"ov secret set"}},
		{"vault_create_secret", map[string]any{"name": "A", "generate": map[string]any{"value": mark}}, []string{"ov secret set"}},
		{"vault_update_secret", map[string]any{"name": "TOKEN", "value": mark}, []string{"ov secret set"}},
		{"vault_create_secret", map[string]any{"name": "A", "generate": map[string]any{}, "from_file": "value.txt"}, []string{"generate", "from_file"}},
		{"vault_create_secret", map[string]any{"name": "A", "generate": map[string]any{"length": 3}}, []string{"length"}},
		{"vault_create_secret", map[string]any{"name": "A", "generate": map[string]any{"length": 1 << 30}}, []string{"length"}},
		{"vault_create_secret", map[string]any{"name": "A", "generate": map[string]any{"alphabet": mark}}, []string{"alphabet"}},
		{"vault_create_secret", map[string]any{"name": "TOKEN", "generate": map[string]any{}}, []string{"vault_update_secret"}},
		{"vault_create_secret", map[string]any{"name": "A", "from_file": "../outside"}, []string{"outside"}},
		{"vault_create_secret", map[string]any{"name": "A", "from_file": outside}, []string{"outside"}},
		{"vault_create_secret", map[string]any{"name": "A", "from_file": "link/outside"}, nil},
		{"vault_create_secret", map[string]any{"name": "A", "from_file": "no-such-" + mark}, []string{"from_file"}},
		{"vault_create_secret", map[string]any{"name": "A", "from_file": "/dev/zero"}, []string{"outside"}},
		{"vault_create_secret", map[string]any{"name": "A", "from_file": "."}, []string{"from_file"}},
		{"vault_update_secret", map[string]any{"name": "NOT_THERE", "generate": map[string]any{}}, []string{"vault_create_secret"}},
		{"vault_delete_secret", map[string]any{"name": "NOT_THERE"}, []string{"NOT_THERE"}},
		{"vault_status", map[string]any{mark: 1}, []string{"unknown argument"}},
		{"vault_get_secret", map[string]any{"name": "TOKEN"}, nil},
	} {
		said := c.refused(c2.tool, c2.args, c2.says...)
		if strings.Contains(said, mark) {
			t.Errorf("%s %s: the answer repeats the argument: %s", c2.tool, mustJSON(t, c2.args), said)
		}
	}
	if _, err := os.Stat(filepath.Join(a.project, "started")); err == nil {
		t.Error("a command started that was refused")
	}

	// And these are good.
	var list struct{ Secrets []struct{ Name string } }
	c.must(&list, "vault_list_secrets", map[string]any{})
	if len(list.Secrets) != 3 {
		t.Errorf("there are %v", list.Secrets)
	}
	if err := os.Mkdir(filepath.Join(a.project, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	var out ran
	c.must(&out, "vault_run", map[string]any{"command": []string{"sh", "-c", `pwd; env; exit 7`}, "work_dir": "sub", "secrets": []string{"TOKEN"}, "timeout_seconds": 60})
	if *out.ExitCode != 7 || !strings.HasPrefix(out.Stdout, filepath.Join(a.project, "sub")+"\n") || strings.Contains(out.Stdout, "DATABASE_URL") ||
		!slices.Equal(out.SecretsInjected, []string{"TOKEN"}) || out.MaskedCount != 1 || out.TimedOut || out.Truncated {
		t.Errorf("vault_run: %+v", out)
	}
	out = c.run([]string{"env"})
	if len(out.SecretsInjected) != 3 {
		t.Errorf("without a list: %v", out.SecretsInjected)
	}
	c.must(&out, "vault_run", map[string]any{"command": []string{"env"}, "secrets": []string{}})
	if len(out.SecretsInjected) != 0 || strings.Contains(out.Stdout, "TOKEN") {
		t.Errorf("with an empty list: %+v", out)
	}
}

// TestWritingTools: what they store is there for programs, and in no message.
func TestWritingTools(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil).open(t, nil)
	a.file("project/key.pem", "-----BEGIN THING-----\nMIIabc\ndef\n-----END THING-----\n")
	a.file("project/line.txt", "one line 81f4\n")
	for name, args := range map[string]map[string]any{
		"GENERATED": {"generate": map[string]any{}},
		"HEX":       {"generate": map[string]any{"length": 64, "alphabet": "hex"}},
		"LONG":      {"generate": map[string]any{"length": 4096, "alphabet": "printable"}},
		"FILE":      {"from_file": "key.pem"},
		"LINE":      {"from_file": filepath.Join(a.project, "line.txt")},
	} {
		args["name"] = name
		c.must(nil, "vault_create_secret", args)
		a.secrets = append(a.secrets, secret{name: name, value: a.reveal(name)})
	}
	for name, want := range map[string]string{
		"GENERATED": `^[A-Za-z0-9]{32}$`, "HEX": `^[0-9a-f]{64}$`, "LONG": `^[!-~]{1000}`,
		"FILE": "^-----BEGIN THING-----\nMIIabc\ndef\n-----END THING-----\n$", "LINE": "^one line 81f4$",
	} {
		if !regexp.MustCompile(want).MatchString(a.value(name)) {
			t.Errorf("the value of %s is not what was asked for", name)
		}
	}
	before := a.value("HEX")
	var out struct{ Version int }
	c.must(&out, "vault_update_secret", map[string]any{"name": "HEX", "generate": map[string]any{"length": 32}})
	after := a.reveal("HEX")
	a.secrets = append(a.secrets, secret{name: "HEX_2", value: after})
	if out.Version != 2 || string(after) == before || len(after) != 32 {
		t.Errorf("version %d", out.Version)
	}
	if got := c.run([]string{"sh", "-c", `echo "$HEX" "$GENERATED"; printf %s "$HEX" | wc -c`}); got.Stdout != "[masked HEX] [masked GENERATED]\n32\n" {
		t.Errorf("vault_run printed %q", got.Stdout)
	}
	var exists struct{ Exists bool }
	if c.must(&exists, "vault_secret_exists", map[string]any{"name": "HEX"}); !exists.Exists {
		t.Error("HEX is not there")
	}
	c.must(nil, "vault_delete_secret", map[string]any{"name": "HEX"})
	if c.must(&exists, "vault_secret_exists", map[string]any{"name": "HEX"}); exists.Exists {
		t.Error("HEX is still there")
	}
}

func (a *account) reveal(name string) []byte {
	a.t.Helper()
	return a.ov(nil, "secret", "get", name, "--reveal", "--app", "demo", "--env", "production")
}

// TestTimeout: TERM first, KILL for what does not listen, and none of its
// family stays.
func TestTimeout(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil).open(t, nil)

	start := time.Now()
	// Three seconds, for the shell has to have set its trap by then.
	out := c.ran(c.tool("vault_run", map[string]any{"timeout_seconds": 3,
		"command": []string{"sh", "-c", `trap 'echo "got TERM, $TOKEN"; exit 9' TERM; echo begun; while :; do sleep 0.1; done`}}))
	if took := time.Since(start); !out.TimedOut || out.Stdout != "begun\ngot TERM, [masked TOKEN]\n" || *out.ExitCode != 9 || took < 3*time.Second || took > 15*time.Second {
		t.Errorf("in %v: %+v", took, out)
	}

	start = time.Now()
	out = c.ran(c.tool("vault_run", map[string]any{"command": family("pids"), "timeout_seconds": 1}))
	if took := time.Since(start); !out.TimedOut || *out.ExitCode != 137 || took > 20*time.Second {
		t.Errorf("in %v: %+v", took, out)
	}
	a.gone("pids")
	if n := c.run([]string{"true"}); *n.ExitCode != 0 {
		t.Errorf("afterwards: %+v", n)
	}
}

// gone waits until the family of three that wrote the file has ended.
func (a *account) gone(file string) {
	a.t.Helper()
	a.ended(file, 3)
}

// ended waits until the n processes that wrote the file have ended.
func (a *account) ended(file string, n int) {
	a.t.Helper()
	for _, pid := range a.pids(file, n) {
		eventually(a.t, 15*time.Second, fmt.Sprintf("process %d of %s has ended", pid, file), func() bool { return !alive(pid) })
	}
}

// TestCancel: the client takes a call back.
func TestCancel(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil).open(t, nil)
	id, _ := c.begin("tools/call", map[string]any{"name": "vault_run", "arguments": map[string]any{"command": family("pids")}})
	for _, pid := range a.pids("pids", 3) {
		if !alive(pid) {
			t.Errorf("process %d has ended before the call was cancelled", pid)
		}
	}
	c.notify("notifications/cancelled", map[string]any{"requestId": id, "reason": "the test"})
	a.gone("pids")
	if out := c.run([]string{"true"}); *out.ExitCode != 0 {
		t.Errorf("afterwards: %+v", out)
	}
}

// TestLeftBehind: what a program leaves running when it ends is ended too, also
// what has left its process group, if need be when the last program ends.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil).open(t, nil)
	start := time.Now()
	c.run([]string{"sh", "-c", `sleep 300 & echo $! >pids; sleep 300 & echo $! >>pids; sleep 300 & echo $! >>pids`})
	a.gone("pids")
	out := c.run([]string{"sh", "-c", `setsid sleep 300 & echo $! >held; sleep 0.5; echo done`})
	if took := time.Since(start); took > 20*time.Second || out.Stdout != "done\n" {
		t.Errorf("in %v: %+v", took, out)
	}
	a.ended("held", 1)
	out = c.run([]string{"sh", "-c", `setsid sh -c 'echo $$ >silent; setsid sh -c "echo \$\$ >>silent; exec sleep 300" & sleep 300' >/dev/null 2>&1 & sleep 0.5`})
	if warned := strings.Join(out.Warnings, "\n"); !strings.Contains(warned, "they were ended") {
		t.Errorf("warnings: %s", warned)
	}
	a.ended("silent", 2)

	_, other := c.begin("tools/call", map[string]any{"name": "vault_run", "arguments": map[string]any{"command": []string{"sh", "-c", `echo $$ >beside; sleep 3`}}})
	a.pids("beside", 1)
	c.run([]string{"sh", "-c", `setsid sh -c 'echo $$ >left; exec sleep 300' >/dev/null 2>&1 & sleep 0.5`})
	if _, err := c.wait(other); err != nil {
		t.Error(err)
	}
	a.ended("left", 1)
}

// TestServersEnd: however a server ends, what it runs ends with it.
func TestServersEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*session, int) error{
		"killed":     func(_ *session, pid int) error { return unix.Kill(pid, unix.SIGKILL) },
		"terminated": func(_ *session, pid int) error { return unix.Kill(pid, unix.SIGTERM) },
		"hung up":    func(_ *session, pid int) error { return unix.Kill(pid, unix.SIGHUP) },
		"no input":   func(c *session, _ int) error { return c.in.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := demo(t)
			server := a.serve(nil)
			c := server.open(t, nil)
			pid := server.pid(t)
			for _, file := range []string{"one", "two"} {
				c.begin("tools/call", map[string]any{"name": "vault_run", "arguments": map[string]any{"command": family(file)}})
			}
			family := append(a.pids("one", 3), a.pids("two", 3)...)
			for _, child := range family {
				if !alive(child) {
					t.Errorf("process %d has ended before the server", child)
				}
			}
			others := children(pid) // the scanner and what watches over the server
			if err := end(c, pid); err != nil {
				t.Fatal(err)
			}
			a.gone("one")
			a.gone("two")
			for _, pid := range append(others, pid) {
				eventually(t, 15*time.Second, fmt.Sprintf("process %d of the server has ended", pid), func() bool { return !alive(pid) })
			}
		})
	}
}

// children returns the pids of a process's children.
func children(pid int) (list []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for word := range strings.FieldsSeq(string(text)) {
			var child int
			if _, err := fmt.Sscan(word, &child); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}

// TestApprovalIsForWhatWasShown: at protocol 2026-07-28 the client carries the
// person's answer with a second call. It holds for the call that was shown, once.
func TestApprovalIsForWhatWasShown(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil, "--approve", "ask").dial(t, nil)
	const meta = "io.modelcontextprotocol/"
	call := func(state string, answered bool, args map[string]any) (json.RawMessage, error) {
		params := map[string]any{"name": "vault_run", "arguments": args, "_meta": map[string]any{
			meta + "protocolVersion": "2026-07-28", meta + "clientInfo": map[string]any{"name": "ov-test", "version": "1"},
			meta + "clientCapabilities": map[string]any{"elicitation": map[string]any{}}}}
		if state != "" {
			params["requestState"] = state
		}
		if answered {
			params["inputResponses"] = map[string]any{"approval": map[string]any{"action": "accept", "content": map[string]any{}}}
		}
		return c.call("tools/call", params)
	}
	touch := func(file string, more map[string]any) map[string]any {
		args := map[string]any{"command": []string{"touch", file}, "secrets": []string{"TOKEN"}}
		maps.Copy(args, more)
		return args
	}
	ask := func(args map[string]any) string {
		t.Helper()
		raw, err := call("", false, args)
		var r struct{ ResultType, RequestState string }
		if err != nil || json.Unmarshal(raw, &r) != nil || r.ResultType != "input_required" || r.RequestState == "" {
			t.Fatalf("it was not asked: %s %v", raw, err)
		}
		return r.RequestState
	}
	shown := touch("shown", nil)
	for name, refused := range map[string]func() (json.RawMessage, error){
		"a state of the client's own": func() (json.RawMessage, error) { return call("made up", true, shown) },
		"no state":                    func() (json.RawMessage, error) { return call("", true, shown) },
		"no answer":                   func() (json.RawMessage, error) { return call(ask(shown), false, shown) },
		"another command":             func() (json.RawMessage, error) { return call(ask(shown), true, touch("other", nil)) },
		"more secrets": func() (json.RawMessage, error) {
			return call(ask(shown), true, touch("shown", map[string]any{"secrets": []string{"TOKEN", "AWKWARD"}}))
		},
		"another time": func() (json.RawMessage, error) {
			return call(ask(shown), true, touch("shown", map[string]any{"timeout_seconds": 3000}))
		},
		"words that only look the same": func() (json.RawMessage, error) {
			return call(ask(shown), true, map[string]any{"command": []string{"touch shown"}, "secrets": []string{"TOKEN"}})
		},
	} {
		raw, err := refused()
		var r struct {
			ResultType string
			IsError    bool
		}
		if err == nil && json.Unmarshal(raw, &r) == nil && !r.IsError && r.ResultType != "input_required" {
			t.Errorf("%s: it ran: %s", name, raw)
		}
	}
	for _, file := range []string{"shown", "other"} {
		if _, err := os.Stat(filepath.Join(a.project, file)); err == nil {
			t.Errorf("%s was made", file)
		}
	}
	state := ask(shown)
	if r := toResult(call(state, true, shown)); r.failed() {
		t.Errorf("what was approved: %s", r.text())
	}
	if err := os.Remove(filepath.Join(a.project, "shown")); err != nil {
		t.Errorf("what was approved did not run: %v", err)
	}
	if r := toResult(call(state, true, shown)); !r.failed() {
		t.Error("one approval did for two calls")
	}
}

// TestServerIsClosedToItsAccount: the server holds values, so that no other
// process of the same account can look into it.
func TestServerIsClosedToItsAccount(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root can become another account")
	}
	const uid = 41003 // without an entry in the user database
	a := demo(t)
	as := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Env, cmd.Dir = a.env, a.project
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd
	}
	// Programs that the account may read.
	s := a.serve(nil, "--machine-key", a.key())
	self, err := os.ReadFile(s.argv[0])
	if err != nil {
		t.Fatal(err)
	}
	s.argv[0] = filepath.Join(a.dir, "recorder")
	if err := os.WriteFile(s.argv[0], self, 0o700); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(a.dir, "bin")
	if out, err := exec.Command("cp", "-r", a.bin, bin).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.argv[1] = filepath.Join(bin, "ov")
	a.ov(nil, "agent", "stop")
	t.Cleanup(func() { a.ov(nil, "agent", "start", "--machine-key", a.key()) }) // for demo's own cleanup
	if out, err := exec.Command("chown", "-R", fmt.Sprint(uid), a.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("chown", "-R", "0", a.dir).Run() })

	s.uid = uid
	c := s.open(t, nil)
	if out := c.run([]string{"printenv", "TOKEN"}); out.Stdout != "[masked TOKEN]\n" {
		t.Fatalf("%+v", out)
	}
	looks := map[string][]string{
		"its memory":      {"sh", "-c", `exec head -c 1 /proc/$0/mem`},
		"its environment": {"sh", "-c", `exec cat /proc/$0/environ`},
		"its files":       {"sh", "-c", `exec ls /proc/$0/fd`},
		"a debugger":      {"gdb", "-nx", "-batch", "-ex", "attach PID", "-ex", "info registers"},
	}
	look := func(argv []string, pid int) string {
		argv = slices.Clone(argv)
		for i, word := range argv {
			argv[i] = strings.ReplaceAll(word, "PID", fmt.Sprint(pid))
		}
		out, _ := as(exec.Command(argv[0], append(argv[1:], fmt.Sprint(pid))...)).CombinedOutput()
		return string(out)
	}
	denied := regexp.MustCompile("(?i)permission denied|not permitted")
	ours := c.cmd.Process.Pid // an ordinary process of the same account: the recorder
	for what, argv := range looks {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Logf("not tried: %s: %v", what, err)
			continue
		}
		if got := look(argv, s.pid(t)); !denied.MatchString(got) {
			t.Errorf("%s is open to its account: %.200s", what, got)
		}
		if got := look(argv, ours); strings.HasPrefix(what, "its ") && what != "its memory" && denied.MatchString(got) {
			t.Errorf("%s of an ordinary process is closed too, so this shows nothing: %.200s", what, got)
		}
	}
}

// madeUp returns keys of two families, by the rule that finds them. They are
// nobody's.
func madeUp(r *rand.Rand) map[string]string {
	// Each character once: the rule wants 3 bits of entropy a character.
	base32 := []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
	r.Shuffle(len(base32), func(i, j int) { base32[i], base32[j] = base32[j], base32[i] })
	return map[string]string{
		"aws-access-token": "AK" + "IA" + string(base32[:16]),
		"github-pat":       "gh" + "p_" + string(text(r, 36, alnum)),
	}
}

// holdsPart reports whether a piece of 6 characters of the secret is in the text.
func holdsPart(text, secret string) bool {
	secret = strings.TrimPrefix(strings.TrimPrefix(secret, "AK"+"IA"), "gh"+"p_")
	for i := 0; i+6 <= len(secret); i++ {
		if strings.Contains(text, secret[i:i+6]) {
			return true
		}
	}
	return false
}

// TestIntercept: patterns and known values, both ways, in each mode.
func TestIntercept(t *testing.T) {
	t.Parallel()
	a := demo(t)
	keys := madeUp(chance.Rand(t, 2))
	for rule, key := range keys {
		a.file("project/"+rule, "the key is "+key+"\n")
	}
	lines := "-----BEGIN RSA PRIV" + "ATE KEY-----\n" + base64.StdEncoding.EncodeToString(text(chance.Rand(t, 3), 300, printable)) + "\n-----END RSA PRIV" + "ATE KEY-----"
	for _, mode := range []string{"block", "warn", "off", ""} {
		t.Run("mode "+mode, func(t *testing.T) {
			server := a.serve([]string{"OV_INTERCEPT_MODE=" + mode})
			a.t = t
			c := server.open(t, nil)
			blocks, want := mode == "block" || mode == "", 0
			if s := c.status(); s.InterceptMode != map[bool]string{true: "block", false: mode}[blocks] || s.InterceptedCount != 0 {
				t.Errorf("vault_status: %+v", s)
			}
			// try makes a call that holds, or whose result holds, the key.
			try := func(what, rule, key string, command ...string) {
				t.Helper()
				r := c.tool("vault_run", map[string]any{"command": command})
				switch {
				case !blocks && r.failed():
					t.Errorf("%s: %s", what, r.text())
				case blocks && !r.failed():
					t.Errorf("%s: it was not blocked", what)
				case blocks:
					for _, says := range []string{rule, "ov secret set"} {
						if !strings.Contains(r.text(), says) {
							t.Errorf("%s: %q is not in: %s", what, says, r.text())
						}
					}
				}
				all := server.stderr()
				if blocks {
					all += r.text()
				}
				if holdsPart(all, key) {
					t.Errorf("%s: the message or the log holds a part of the match", what)
				}
				if mode != "off" {
					want++
					if mode == "warn" && strings.HasPrefix(what, "from") && strings.Contains(what, "echoed") {
						want++ // on its way back, too
					}
				}
				if got := c.status().InterceptedCount; got < want {
					t.Errorf("%s: intercepted_count is %d, want %d", what, got, want)
				} else {
					want = got
				}
			}
			for rule, key := range keys {
				try("from the client, "+rule, rule, key, "true", key)
				try("to the client, "+rule, rule, key, "cat", rule)
			}
			try("from the client, a key of several lines", "private-key", lines, "true", lines)
			if blocks || mode == "warn" {
				// Known values, which no pattern knows.
				token := a.value("TOKEN")
				try("from the client, a known value", "TOKEN", token, "true", token)
				try("from the client, a known value in base64", "TOKEN", token, "true", base64.StdEncoding.EncodeToString([]byte("x"+token)))
				try("from the client, a known value with quotes", "AWKWARD", a.value("AWKWARD"), "true", a.value("AWKWARD"))
			}
			if mode == "off" && c.status().InterceptedCount != 0 {
				t.Error("something was intercepted")
			}
			if mode == "warn" && !strings.Contains(server.stderr(), "github-pat") {
				t.Errorf("the log does not name the rule: %s", server.stderr())
			}
			if blocks {
				a.storedMeanwhile(c)
				c.oddPlaces(keys["aws-access-token"], a.value("TOKEN"))
			}
			// Only what was blocked is lost.
			c.run([]string{"true"})
		})
	}
	// A mode that is not known is an error, which does not repeat it.
	a.t = t
	cmd := exec.Command(filepath.Join(a.bin, "ov"), "mcp", "serve")
	cmd.Env, cmd.Dir = append(slices.Clone(a.env), "OV_INTERCEPT_MODE="+keys["github-pat"]), a.project
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "OV_INTERCEPT_MODE") || holdsPart(string(out), keys["github-pat"]) {
		t.Errorf("with a mode that is not known: %v\n%s", err, out)
	}
}

// oddPlaces sends secrets where no argument of a tool is, and written with the
// escapes of JSON. No answer may repeat one, and the session goes on.
func (c *session) oddPlaces(secrets ...string) {
	c.t.Helper()
	for _, secret := range secrets {
		var escaped strings.Builder
		for _, r := range secret {
			fmt.Fprintf(&escaped, `\u%04x`, r)
		}
		c.sent()
		before := c.status().InterceptedCount
		lines := []string{
			`{"jsonrpc":"2.0","id":"SECRET","method":"ping"}`,
			`{"jsonrpc":"2.0","id":9001,"method":"SECRET"}`,
			`{"jsonrpc":"2.0","id":9002,"method":"tools/call","params":{"name":"SECRET","arguments":{}}}`,
			`{"jsonrpc":"2.0","id":9003,"method":"tools/call","params":{"name":"vault_run","arguments":{"command":["true"],"SECRET":1}}}`,
			`{"jsonrpc":"2.0","id":9004,"method":"tools/call","params":{"name":"vault_run","arguments":{"command":["true"]},"_meta":{"progressToken":"SECRET"}}}`,
			`{"jsonrpc":"2.0","id":9005,"method":"tools/call","params":{"name":"vault_secret_exists","arguments":{"name":"SECRET"}}}`,
			`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"SECRET","reason":"SECRET"}}`,
			`{"jsonrpc":"2.0","id":"SECRET","result":{}}`,
		}
		for _, line := range lines {
			for _, written := range []string{secret, escaped.String()} {
				c.mu.Lock()
				_, _ = c.in.Write([]byte(strings.ReplaceAll(line, "SECRET", written) + "\n"))
				c.mu.Unlock()
			}
		}
		if n := c.status().InterceptedCount - before; n < 2*len(lines) {
			c.t.Errorf("%d of %d messages with a secret in an odd place were intercepted", n, 2*len(lines))
		}
		for _, message := range c.sent() {
			for _, text := range append(decode(message, nil), string(message)) {
				if holdsPart(text, secret) {
					c.t.Errorf("an answer repeats what it was sent: %d bytes", len(message))
				}
			}
		}
	}
}

// storedMeanwhile: the masker knows the values of the moment when a program
// starts; a value that was stored since is the interceptor's.
func (a *account) storedMeanwhile(c *session) {
	a.t.Helper()
	late := secret{name: "LATE", value: []byte("a value that comes late " + string(text(chance.Rand(a.t, 4), 20, alnum)))}
	a.mu.Lock()
	a.secrets = append(a.secrets, late)
	a.mu.Unlock()
	a.file("project/late", string(late.value))
	_, to := c.begin("tools/call", map[string]any{"name": "vault_run", "arguments": map[string]any{
		"command": []string{"sh", "-c", "touch running; while [ ! -e go ]; do sleep 0.1; done; cat late"}}})
	eventually(a.t, 10*time.Second, "the program runs", func() bool {
		_, err := os.Stat(filepath.Join(a.project, "running"))
		return err == nil
	})
	a.set(late)
	time.Sleep(1500 * time.Millisecond) // a look at the vault holds for a second
	a.file("project/go", "")
	r := toResult(c.wait(to))
	if !r.failed() || !strings.Contains(r.text(), "LATE") {
		a.t.Errorf("a value that was stored while the program ran came through: failed: %v", r.failed())
	}
	a.ov(nil, "secret", "delete", "LATE", "--app", "demo", "--env", "production")
	for _, name := range []string{"go", "running", "late"} {
		_ = os.Remove(filepath.Join(a.project, name))
	}
}

// TestNotMasked: values that hide nothing are named in a warning, and the output
// stays readable.
func TestNotMasked(t *testing.T) {
	t.Parallel()
	a := newAccount(t,
		secret{name: "PIN", value: []byte("48291"), shown: true},
		secret{name: "DEBUG", value: []byte("true"), shown: true},
		secret{name: "NODE_ENV", value: []byte("production"), shown: true},
		secret{name: "TOKEN", value: []byte("9c2f-masked-4410")},
	)
	a.start()
	c := a.serve([]string{"OV_INTERCEPT_MODE=off"}).open(t, nil)
	r := c.tool("vault_run", map[string]any{"command": []string{"sh", "-c", `echo "it is true: $PIN $DEBUG $NODE_ENV $TOKEN"`}})
	if out := c.ran(r); out.Stdout != "it is true: 48291 true production [masked TOKEN]\n" || out.MaskedCount != 1 {
		t.Errorf("vault_run: %+v", out)
	}
	for _, name := range []string{"PIN", "DEBUG", "NODE_ENV"} {
		if !strings.Contains(r.text(), name) {
			t.Errorf("%s is not named in a warning: %s", name, r.text())
		}
	}
	var out struct{ Warnings []string }
	if err := json.Unmarshal(r.StructuredContent, &out); err != nil || len(out.Warnings) != 3 {
		t.Errorf("the warnings are %q: %v", out.Warnings, err)
	}
}

// TestOutputIsBounded: a program that prints without end costs neither memory
// nor the client's context, and what it says first and last is kept.
func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	a := demo(t)
	server := a.serve([]string{"OV_INTERCEPT_MODE=off"})
	c := server.open(t, nil)
	out := c.run([]string{"sh", "-c", `echo first; head -c 200000000 /dev/zero | tr '\0' 'x'; echo; echo "$TOKEN"; echo last`})
	if !out.Truncated || !strings.HasPrefix(out.Stdout, "first\n") || !strings.HasSuffix(out.Stdout, "[masked TOKEN]\nlast\n") || len(out.Stdout) > 1<<20 {
		t.Errorf("%d bytes, truncated: %v", len(out.Stdout), out.Truncated)
	}
	var peak int
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", server.pid(t)))
	if m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text); m != nil {
		_, _ = fmt.Sscan(string(m[1]), &peak)
	}
	if peak == 0 || peak > 200<<10 {
		t.Errorf("the server's memory was up to %d KiB", peak)
	}
}

// TestManyAtOnce: calls run beside each other, each with its own secrets and its
// own output.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil).open(t, nil)
	var replies []<-chan reply
	for i := range 12 {
		name := []string{"TOKEN", "DATABASE_URL", "AWKWARD"}[i%3]
		_, to := c.begin("tools/call", map[string]any{"name": "vault_run", "arguments": map[string]any{
			"command": []string{"sh", "-c", fmt.Sprintf(`sleep 0.$((%d %% 4)); echo %d; printenv %s`, i, i, name)}, "secrets": []string{name}}})
		replies = append(replies, to)
	}
	for i, to := range replies {
		name := []string{"TOKEN", "DATABASE_URL", "AWKWARD"}[i%3]
		if out := c.ran(toResult(c.wait(to))); out.Stdout != fmt.Sprintf("%d\n[masked %s]\n", i, name) || !slices.Equal(out.SecretsInjected, []string{name}) {
			t.Errorf("run %d: %+v", i, out)
		}
	}
}

// TestNoise: what is not the protocol does not make the server say a value or
// leave a program behind.
func TestNoise(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"not JSON":          "this is not JSON\n",
		"an unknown call":   `{"jsonrpc":"2.0","id":77,"method":"vault/reveal","params":{"name":"TOKEN"}}` + "\n",
		"too long":          `{"jsonrpc":"2.0","id":78,"method":"ping","params":{"x":"` + strings.Repeat("x", 5<<20) + `"}}` + "\n",
		"half a message":    `{"jsonrpc":"2.0","id":79,"method":"tools/call","par`,
		"a reply to no one": `{"jsonrpc":"2.0","id":80,"result":{}}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := demo(t)
			server := a.serve(nil)
			c := server.open(t, nil)
			pid := server.pid(t)
			c.begin("tools/call", map[string]any{"name": "vault_run", "arguments": map[string]any{"command": family("pids")}})
			a.pids("pids", 3)
			c.mu.Lock()
			_, _ = c.in.Write([]byte(line))
			c.mu.Unlock()
			_ = c.in.Close()
			a.gone("pids")
			eventually(t, 15*time.Second, "the server has ended", func() bool { return !alive(pid) })
		})
	}
}
