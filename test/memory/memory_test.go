//go:build linux

package memory

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/test/memory/memscan"
)

const (
	secretCount = 40
	requests    = 1000
)

// account is a throwaway vault with an agent, as one user has it.
type account struct {
	t        *testing.T
	bin, dir string
	env      []string
	password []byte
	control  []byte // not secret, in the environment: must be found
	mu       sync.Mutex
	values   map[string][]byte // of the secrets, by name
	keys     map[string][]byte
	apiKey   []byte // of a server that has the vault, if one does
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("reading another process's memory needs root")
	}
}

// newAccount makes a vault with secretCount secrets, with the programs in bin.
func newAccount(t *testing.T, bin string) *account {
	t.Helper()
	needRoot(t)
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"ov", "ov-agent"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	// A Unix socket's path has at most 107 bytes, which t.TempDir exceeds.
	dir, err := os.MkdirTemp("", "ov-mem-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a := &account{t: t, bin: bin, dir: dir, password: []byte(random()), control: []byte(random()), values: map[string][]byte{}}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	a.env = []string{
		"PATH=" + bin + ":/usr/bin:/bin", "HOME=" + dir, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + run,
		"XDG_DATA_HOME=" + dir + "/data", "XDG_CONFIG_HOME=" + dir + "/config", "XDG_STATE_HOME=" + dir + "/state",
		"CONTROL=" + string(a.control),
	}
	// No value is part of the test's own arguments or files that live on.
	var dotenv bytes.Buffer
	for i := range secretCount {
		name, value := fmt.Sprintf("SECRET_%d", i), random()
		a.values[name] = []byte(value)
		fmt.Fprintf(&dotenv, "%s=%s\n", name, value)
	}
	file := filepath.Join(dir, "import.env")
	if err := os.WriteFile(file, dotenv.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	a.ov(a.password, "auth", "init", "--password-stdin")
	a.ov(a.password, "secret", "import", file, "--app", "myapp", "--env", "production", "--password-stdin")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	a.readKeys()
	return a
}

// start starts the account's agent, under the command wrap if there is one.
func (a *account) start(wrap ...string) {
	a.t.Helper()
	cmd := a.command(a.password, "agent", "start", "--password-stdin")
	if len(wrap) > 0 {
		cmd.Path, cmd.Args = wrap[0], slices.Concat(wrap, cmd.Args)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		_, _ = a.try(nil, "agent", "stop")
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err := a.try(nil, "agent", "status"); err == nil {
			return
		}
	}
	a.t.Fatalf("the agent did not start\n%s", &stderr)
}

func (a *account) readKeys() { a.keys = keysOf(a.t, a.dir+"/data/ov/vault.db", a.password) }

// random is text of 32 characters that no program holds by chance.
func random() string { return rand.Text() + rand.Text()[:6] }

func (a *account) command(stdin []byte, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(a.bin, "ov"), args...)
	cmd.Env, cmd.Dir = a.env, a.dir
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(append(bytes.Clone(stdin), '\n'))
	}
	return cmd
}

func (a *account) try(stdin []byte, args ...string) ([]byte, error) {
	cmd := a.command(stdin, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ov %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return stdout.Bytes(), nil
}

func (a *account) ov(stdin []byte, args ...string) []byte {
	a.t.Helper()
	out, err := a.try(stdin, args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

func (a *account) agentStatus() (status struct {
	PID      int    `json:"pid"`
	Requests int    `json:"requests"`
	Memory   string `json:"memory"`
	Unlocked bool   `json:"unlocked"`
}) {
	a.t.Helper()
	a.statusInto(&status)
	if status.PID == 0 {
		a.t.Fatal("agent status has no pid")
	}
	return status
}

func (a *account) statusInto(status any) {
	a.t.Helper()
	out := a.ov(nil, "agent", "status", "--json")
	if err := json.Unmarshal(out, status); err != nil {
		a.t.Fatalf("agent status: %v\n%s", err, out)
	}
}

// patterns are all forms of all that must not be found, and the control.
func (a *account) patterns() []memscan.Pattern {
	all := memscan.Forms("control", a.control)
	all = append(all, memscan.Forms("password", a.password)...)
	if a.apiKey != nil {
		all = append(all, memscan.Forms("API key", a.apiKey)...)
	}
	for _, from := range []map[string][]byte{a.keys, a.values} {
		for name, secret := range from {
			all = append(all, memscan.Forms(name, secret)...)
		}
	}
	return all
}

// kind turns "DEK 01ab/3" into "DEK": a line of the printed table.
func kind(name string) string {
	for _, k := range []string{"KEK", "slot key", "app key", "env key", "index key", "DEK", "password", "API key", "control"} {
		if strings.HasPrefix(name, k) {
			return k
		}
	}
	return "value"
}

// check prints the counts and fails on whatever is found and not allowed.
func (a *account) check(what string, report *memscan.Report, allowed func(memscan.Hit) bool) {
	a.t.Helper()
	count := map[string]int{}
	for _, h := range report.Hits {
		count[kind(h.Name)]++
	}
	line := fmt.Sprintf("%s: %d KiB read, %d KiB refused; found", what, report.Read>>10, report.Unreadable>>10)
	for _, k := range []string{"KEK", "slot key", "app key", "env key", "index key", "DEK", "password", "API key", "value"} {
		line += fmt.Sprintf(" %s %d,", k, count[k])
	}
	a.t.Logf("%s control %d", line, count["control"])
	if count["control"] == 0 {
		a.t.Errorf("%s: the control is not found, so the scan shows nothing", what)
	}
	told := 0
	for _, h := range report.Hits {
		if h.Name == "control" || allowed(h) {
			continue
		}
		if told++; told <= 20 {
			a.t.Errorf("%s: %s", what, h)
		}
	}
}

func nothing(memscan.Hit) bool { return false }

// scan stops the process, so that nothing moves, and scans it.
func (a *account) scan(pid int) *memscan.Report {
	a.t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	report, err := memscan.Process(pid, a.patterns())
	if err != nil {
		a.t.Fatal(err)
	}
	return report
}

func (a *account) core(pid int) *memscan.Report {
	a.t.Helper()
	prefix := filepath.Join(a.dir, "core")
	if out, err := exec.Command("gcore", "-a", "-o", prefix, fmt.Sprint(pid)).CombinedOutput(); err != nil {
		a.t.Fatalf("gcore: %v\n%s", err, out)
	}
	file := fmt.Sprintf("%s.%d", prefix, pid)
	defer func() { _ = os.Remove(file) }()
	report, err := memscan.Core(file, a.patterns())
	if err != nil {
		a.t.Fatal(err)
	}
	return report
}

// serve makes the agent answer n requests of every kind, four clients at a time.
func (a *account) serve(n int) {
	a.t.Helper()
	first := maps.Clone(a.values)
	names := slices.Sorted(maps.Keys(first))
	jobs := make(chan int)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for i := range jobs {
				name := names[i%len(names)]
				ref := []string{"--app", "myapp", "--env", "production"}
				var err error
				switch i % 8 {
				case 0:
					_, err = a.try(nil, append([]string{"secret", "list"}, ref...)...)
				case 1:
					var out []byte
					if out, err = a.try(nil, append([]string{"secret", "get", name, "--reveal"}, ref...)...); err == nil && !bytes.Equal(out, first[name]) {
						err = fmt.Errorf("secret get %s did not print its value", name)
					}
				case 2:
					value := []byte(random())
					a.mu.Lock()
					a.values[fmt.Sprintf("SET_%d", i)] = value
					a.mu.Unlock()
					_, err = a.try(value, append([]string{"secret", "set", fmt.Sprintf("SET_%d", i)}, ref...)...)
				case 3:
					_, err = a.try(nil, append(append([]string{"run", "--secrets", name}, ref...), "--", "/bin/true")...)
				default:
					_, err = a.try(nil, append(append([]string{"run"}, ref...), "--", "/bin/true")...)
				}
				if err != nil {
					a.t.Error(err)
				}
			}
		})
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	clients.Wait()
	if a.t.Failed() {
		a.t.FailNow()
	}
}

func TestAgentHoldsNoSecretThatRootCanRead(t *testing.T) {
	needRoot(t)
	if !hasSecretMem(t) {
		t.Skip("this kernel has no memfd_secret(2); see TestAgentWithoutMemfdSecret")
	}
	a := newAccount(t, "../../bin")
	a.start()
	a.ov(nil, "agent", "lock")
	a.ov(a.password, "agent", "unlock", "--password-stdin")
	a.serve(requests)
	a.readKeys() // of versions written meanwhile
	time.Sleep(time.Second)

	status := a.agentStatus()
	if status.Requests < requests || !status.Unlocked {
		t.Fatalf("the agent answered %d requests (unlocked: %v), want %d", status.Requests, status.Unlocked, requests)
	}
	t.Logf("the agent answered %d requests; its key is in %s", status.Requests, status.Memory)
	// The request for the status may have left something too.
	time.Sleep(time.Second)

	if status.Memory != "memfd_secret" {
		t.Errorf("the kernel has memfd_secret, and the key is in %s", status.Memory)
	}
	a.check("unlocked agent", a.scan(status.PID), nothing)
	if _, err := exec.LookPath("gcore"); err != nil {
		t.Error("gcore (gdb) is not installed: make setup")
	} else {
		a.check("gcore -a of it", a.core(status.PID), nothing)
	}

	a.ov(nil, "agent", "lock")
	time.Sleep(time.Second)
	a.check("locked agent", a.scan(status.PID), nothing)
}

func hasSecretMem(t *testing.T) bool {
	t.Helper()
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		t.Logf("memfd_secret: %v", err)
		return false
	}
	_ = unix.Close(fd)
	return true
}

// TestAgentWithoutMemfdSecret is the same where the kernel refuses
// memfd_secret(2): of all secrets, the KEK alone may be found, in memory that is
// locked and left out of core dumps.
func TestAgentWithoutMemfdSecret(t *testing.T) {
	needRoot(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("refusing a system call to a process needs strace")
	}
	a := newAccount(t, "../../bin")
	a.start(strace, "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=memfd_secret", "-e", "inject=memfd_secret:error=ENOSYS")
	a.serve(requests / 5)
	a.readKeys()
	time.Sleep(time.Second)
	status := a.agentStatus()
	if status.Memory != "mlock" {
		t.Fatalf("the key is in %q, want mlock", status.Memory)
	}
	time.Sleep(time.Second)
	report := a.scan(status.PID)
	if report.Count("KEK") == 0 {
		t.Error("the KEK is nowhere: what is shown of its page shows nothing")
	}
	a.check("agent without memfd_secret", report, func(h memscan.Hit) bool {
		return h.Name == "KEK" && strings.HasPrefix(h.Form, "raw") && h.Mapping.Has("lo") && h.Mapping.Has("dd")
	})
	a.ov(nil, "agent", "lock")
	time.Sleep(time.Second)
	a.check("locked", a.scan(status.PID), nothing)
}

// TestScanFindsWhatAnAgentLeaks is the counterproof: the same agent, built
// without runtime/secret, leaves keys behind, and the same scan finds them.
func TestScanFindsWhatAnAgentLeaks(t *testing.T) {
	needRoot(t)
	bin := t.TempDir()
	build := exec.Command("go", "build", "-tags=grpcnotrace", "-o", bin, "../../cmd/ov", "../../cmd/ov-agent")
	build.Env = append(os.Environ(), "GOEXPERIMENT=", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a := newAccount(t, bin)
	a.start()
	a.serve(requests / 10)
	a.readKeys()
	found := map[string]int{}
	for _, h := range a.scan(a.agentStatus().PID).Hits {
		found[kind(h.Name)]++
	}
	t.Logf("without runtime/secret: %v", found)
	if found["DEK"] == 0 || found["env key"] == 0 {
		t.Error("no key is found where some must be: the scan shows nothing")
	}
}

func TestRunHoldsOnlyTheEnvironmentItHandsOver(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("holding a process before execve needs strace")
	}
	a := newAccount(t, "../../bin")
	a.start()
	key := filepath.Join(a.dir, "machine.key")
	a.ov(a.password, "auth", "derive-machine-key", "--out", key, "--password-stdin")
	ref := []string{"--app", "myapp", "--env", "production", "--", "/bin/true"}
	for _, way := range []struct {
		name  string
		stdin []byte
		args  []string
	}{
		{"over the agent", nil, []string{"run", "--agent"}},
		{"with a machine key", nil, []string{"run", "--machine-key", key}},
		{"with the password", a.password, []string{"run", "--password-stdin"}},
	} {
		t.Run(way.name, func(t *testing.T) {
			run := a.command(way.stdin, append(way.args, ref...)...)
			pid, release := beforeExec(t, run)
			defer release()
			report, err := memscan.Process(pid, a.patterns())
			if err != nil {
				t.Fatal(err)
			}
			// The values are on their way to the child: raw, in the block of
			// arguments that execve(2) is about to take, once each.
			raw := map[string]int{}
			for _, h := range report.Hits {
				if kind(h.Name) == "value" && h.Form == "raw" {
					raw[h.Name]++
				}
			}
			a.t = t
			a.check("ov run "+way.name, report, func(h memscan.Hit) bool {
				return kind(h.Name) == "value" && strings.HasPrefix(h.Form, "raw")
			})
			for name := range a.values {
				if raw[name] != 1 {
					t.Errorf("the value of %s is there %d times, want once", name, raw[name])
				}
			}
		})
	}
}

// beforeExec starts the program under strace(1), which holds every execve(2) at
// its entry for a while, and returns its pid when it is in its own: the program
// becoming its child.
func beforeExec(t *testing.T, program *exec.Cmd) (pid int, release func()) {
	t.Helper()
	const hold = 5 * time.Second
	cmd := exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=execve",
		"-e", fmt.Sprintf("inject=execve:delay_enter=%ds", int(hold.Seconds()))},
		append([]string{program.Path}, program.Args[1:]...)...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = program.Env, program.Dir, program.Stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	}
	for deadline := time.Now().Add(2 * hold); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		for _, child := range strings.Fields(string(children)) {
			if exe, _ := os.Readlink("/proc/" + child + "/exe"); exe != program.Path {
				continue
			}
			calls, _ := filepath.Glob("/proc/" + child + "/task/*/syscall")
			for _, call := range calls {
				if now, _ := os.ReadFile(call); strings.HasPrefix(string(now), fmt.Sprintf("%d ", unix.SYS_EXECVE)) {
					if pid, err := strconv.Atoi(child); err == nil {
						return pid, release
					}
				}
			}
		}
	}
	release()
	t.Fatalf("the program did not come to its execve\n%s", &stderr)
	return 0, nil
}
