package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// recordEnv makes a child of the test binary a recorder: what stands between a
// client and the server that it starts.
const recordEnv = "OV_TEST_RECORD"

func TestMain(m *testing.M) {
	if prefix, ok := os.LookupEnv(recordEnv); ok {
		_ = os.Unsetenv(recordEnv)
		os.Exit(record(prefix, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// record runs the server, passes on what is said both ways, and keeps what the
// server says: prefix.N.out and prefix.N.err, its pid in prefix.N.pid. N counts
// the servers, for a client may start more than one.
func record(prefix string, argv []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "recorder:", err)
		return 99
	}
	var out *os.File
	var err error
	n := 0
	for ; ; n++ {
		out, err = os.OpenFile(fmt.Sprintf("%s.%d.out", prefix, n), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if !errors.Is(err, os.ErrExist) {
			break
		}
	}
	if err != nil {
		return fail(err)
	}
	stderr, err := os.Create(fmt.Sprintf("%s.%d.err", prefix, n))
	if err != nil {
		return fail(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout = io.MultiWriter(out, os.Stdout)
	cmd.Stderr = io.MultiWriter(stderr, os.Stderr)
	in, err := cmd.StdinPipe()
	if err != nil {
		return fail(err)
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(fmt.Sprintf("%s.%d.pid", prefix, n), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return fail(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	go func() {
		_, _ = io.Copy(in, os.Stdin)
		_ = in.Close()
	}()
	_ = cmd.Wait()
	return max(cmd.ProcessState.ExitCode(), 0)
}

// missing skips the test, or fails it if OV_REQUIRE_REAL=1.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("OV_REQUIRE_REAL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// account is a throwaway vault with an agent and a project, as one user has it.
type account struct {
	t                 *testing.T
	bin, dir, project string
	env               []string
	password          []byte
	mu                sync.Mutex
	secrets           []secret // all that must not be seen
	servers           int
}

// newAccount makes a vault with the secrets, in demo/production.
func newAccount(t *testing.T, secrets ...secret) *account {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"ov", "ov-agent", "ov-mcp", "ov-scan"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	// A Unix socket's path has at most 107 bytes, which t.TempDir exceeds.
	dir, err := os.MkdirTemp("", "ov-mcp-")
	if err != nil {
		t.Fatal(err)
	}
	a := &account{t: t, bin: bin, dir: dir, project: filepath.Join(dir, "project"), password: []byte("the password of this test"), secrets: secrets}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"run", "tmp", "project", "record"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	a.env = []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir + "/tmp", "XDG_RUNTIME_DIR=" + dir + "/run",
		"XDG_DATA_HOME=" + dir + "/data", "XDG_CONFIG_HOME=" + dir + "/config", "XDG_STATE_HOME=" + dir + "/state",
		"LANG=C.UTF-8", "TZ=UTC",
	}
	a.file("project/.ov.yaml", "app: demo\nenv: production\n")
	a.ov(a.password, "auth", "init", "--password-stdin")
	a.ov(a.password, "auth", "derive-machine-key", "--out", a.key(), "--password-stdin")
	a.ov(nil, "app", "create", "demo", "--machine-key", a.key())
	for _, s := range secrets {
		a.set(s)
	}
	t.Cleanup(a.search)
	return a
}

func (a *account) key() string { return filepath.Join(a.dir, "machine.key") }

func (a *account) file(name, text string) {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		a.t.Fatal(err)
	}
}

// set stores a secret, with the account's key.
func (a *account) set(s secret) {
	a.t.Helper()
	a.file("value", string(s.value))
	a.ov(nil, "secret", "set", s.name, "--from-file", filepath.Join(a.dir, "value"), "--app", "demo", "--env", "production", "--machine-key", a.key())
	if err := os.Remove(filepath.Join(a.dir, "value")); err != nil {
		a.t.Fatal(err)
	}
}

// start starts the agent, unlocked.
func (a *account) start() {
	a.t.Helper()
	a.ov(nil, "agent", "start", "--machine-key", a.key())
	a.t.Cleanup(func() { a.ov(nil, "agent", "stop") })
}

func (a *account) try(stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.Command(filepath.Join(a.bin, "ov"), args...)
	cmd.Env, cmd.Dir = a.env, a.dir
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(append(bytes.Clone(stdin), '\n'))
	}
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

// server is how to start one, under a recorder.
type server struct {
	prefix string // of the recorder's files
	argv   []string
	env    []string
	dir    string
	uid    uint32 // of the account that runs it, if it is another
}

// serve returns `ov mcp serve` with these flags, and with more variables.
func (a *account) serve(env []string, flags ...string) server {
	a.t.Helper()
	self, err := os.Executable()
	if err != nil {
		a.t.Fatal(err)
	}
	a.mu.Lock()
	a.servers++
	prefix := filepath.Join(a.dir, "record", strconv.Itoa(a.servers))
	a.mu.Unlock()
	return server{
		prefix: prefix,
		argv:   slices.Concat([]string{self, filepath.Join(a.bin, "ov"), "mcp", "serve"}, flags),
		env:    slices.Concat(a.env, env, []string{recordEnv + "=" + prefix}),
		dir:    a.project,
	}
}

// pid is that of the server itself: `ov mcp serve` becomes it.
func (s server) pid(t *testing.T) int {
	t.Helper()
	for range 200 {
		if text, err := os.ReadFile(s.prefix + ".0.pid"); err == nil && len(text) > 0 {
			pid, err := strconv.Atoi(string(text))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the server has not started")
	return 0
}

// stderr is what the server has said to its log.
func (s server) stderr() string {
	text, _ := os.ReadFile(s.prefix + ".0.err")
	return string(text)
}

// search looks through every byte that the servers of the account have sent for
// every secret in every listed form.
func (a *account) search() {
	a.t.Helper()
	files, err := filepath.Glob(filepath.Join(a.dir, "record", "*"))
	if err != nil {
		a.t.Fatal(err)
	}
	known := compile(a.secrets)
	total := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".pid") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			a.t.Fatal(err)
		}
		total += len(data)
		for line := range bytes.Lines(data) {
			for _, hit := range known.inMessage(line) {
				a.t.Errorf("%s: the server sent %s", filepath.Base(file), hit)
			}
		}
	}
	if len(files) > 0 && total == 0 {
		a.t.Error("nothing was recorded: the search shows nothing")
	}
}

// alive reports whether the process runs. One that is dead may stay as a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// eventually waits for something to be so.
func eventually(t *testing.T, within time.Duration, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("after %s it is not so: %s", within, what)
			return
		}
	}
}

// pids waits for a file with n pids, which a child wrote.
func (a *account) pids(name string, n int) []int {
	a.t.Helper()
	path := filepath.Join(a.project, name)
	for range 500 {
		text, _ := os.ReadFile(path)
		var list []int
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				list = append(list, pid)
			}
		}
		if len(list) >= n && bytes.HasSuffix(text, []byte("\n")) {
			return list
		}
		time.Sleep(20 * time.Millisecond)
	}
	a.t.Fatalf("the child has not written %d pids into %s", n, name)
	return nil
}

// family is a command that leaves a tree of processes: a shell that ignores
// SIGTERM, and a child and a grandchild of it, all in the file named.
func family(file string) []string {
	script := `trap '' TERM; sh -c 'sleep 300 & echo $! >>` + file + `; echo $$ >>` + file + `; wait' & echo $$ >>` + file + `; wait; sleep 300`
	return []string{"sh", "-c", script}
}

// text is random and printable, of n characters.
func text(r *rand.Rand, n int, alphabet string) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return b
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
