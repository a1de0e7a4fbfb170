package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opaquevault/ov/pkg/command"
)

// TestRunBecomesTheProgram: what was started as ov is the program, by pid, and
// a signal to it is the program's. Its command line holds no secret, and it has
// no file of ov's open.
func TestRunBecomesTheProgram(t *testing.T) {
	t.Parallel()
	h := newHome(t, 0)
	h.vault()
	h.must(mark+"-value", "ov", "secret", "set", "TOKEN", "--machine-key", "key")
	h.agent()
	for _, how := range [][]string{{"--agent"}, {"--machine-key", "key"}} {
		argv := append(append([]string{"ov", "run"}, how...), "--", "bash", "-c",
			`trap 'echo USR1 $TOKEN' USR1; trap 'echo TERM; exit 7' TERM; echo $$; while :; do sleep 0.02; done`)
		cmd := h.command(argv...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		line := func() string {
			if !lines.Scan() {
				t.Fatalf("%v: the output ends: %v", how, lines.Err())
			}
			return lines.Text()
		}
		if got := line(); got != fmt.Sprint(cmd.Process.Pid) {
			t.Errorf("%v: ov is %d and its program %s", how, cmd.Process.Pid, got)
		}
		proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
		if argv, err := os.ReadFile(proc + "cmdline"); err != nil || bytes.Contains(argv, []byte(mark)) {
			t.Errorf("%v: the command line holds a secret: %q %v", how, argv, err)
		}
		if exe, err := os.Readlink(proc + "exe"); err != nil || filepath.Base(exe) != "bash" {
			t.Errorf("%v: it is %s, not bash: %v", how, exe, err)
		}
		fds, err := os.ReadDir(proc + "fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			to, _ := os.Readlink(proc + "fd/" + fd.Name())
			if strings.Contains(to, "vault.db") || strings.Contains(to, "key") || strings.Contains(to, "secretmem") ||
				strings.HasPrefix(to, "socket:") {
				t.Errorf("%v: descriptor %s is open at %s", how, fd.Name(), to)
			}
		}
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if got := line(); got != "USR1 "+mark+"-value" {
			t.Errorf("%v: after SIGUSR1: %q", how, got)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := line(); got != "TERM" {
			t.Errorf("%v: after SIGTERM: %q", how, got)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("%v: exit code %d, not the program's 7", how, code)
		}
	}
}

// TestRunLeavesNoTrace: a program under ov run has the limits, signals and
// descriptors that it has without.
func TestRunLeavesNoTrace(t *testing.T) {
	t.Parallel()
	h := newHome(t, 0)
	h.vault()
	h.agent()
	argv := []string{"bash", "-c", `ulimit -a; ulimit -Ha; umask
		grep -E '^(Sig[^Q]|ShdPnd|NoNewPrivs|Seccomp|Cap)' /proc/self/status
		exec ls -l /proc/self/fd | sed -E 's/.* ([0-9]+ ->)/\1/; s/\[[0-9]+\]//; s:/proc/[0-9]+:/proc/PID:'`}
	want := h.must("", argv...)
	for _, how := range [][]string{{"--agent"}, {"--machine-key", "key"}} {
		got := h.must("", append(append([]string{"ov", "run"}, how...), append([]string{"--"}, argv...)...)...)
		if got != want {
			t.Errorf("%v: the program sees\n%s\nand without ov\n%s", how, got, want)
		}
	}
}

// TestAgentShowsNoSecret: neither the agent's command line nor its environment
// holds what it was given, and its log neither.
func TestAgentShowsNoSecret(t *testing.T) {
	t.Parallel()
	h := newHome(t, 0)
	h.vault()
	h.must(mark, "ov", "agent", "start", "--password-stdin")
	t.Cleanup(func() { h.must("", "ov", "agent", "stop") })
	h.must(mark+"-value", "ov", "secret", "set", "TOKEN")
	h.must("", "ov", "run", "--", "true")
	h.fails(command.ExitFailure, nil, "ov", "secret", "get", "NOPE", "--reveal")
	status := h.must("", "ov", "agent", "status")
	_, rest, _ := strings.Cut(status, "pid:")
	var pid int
	if _, err := fmt.Sscan(strings.TrimSuffix(strings.Fields(rest)[0], ","), &pid); err != nil {
		t.Fatalf("no pid in %q", status)
	}
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if os.Geteuid() != 0 && err != nil {
			continue // not dumpable: root alone may look
		}
		if err != nil || len(b) == 0 || bytes.Contains(b, []byte(mark)) {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(h.dir, ".local/state/ov/agent.log"))
	if err != nil || len(b) == 0 || bytes.Contains(b, []byte(mark)) || bytes.Contains(b, []byte("TOKEN")) {
		t.Errorf("the log: %q %v", b, err)
	}
}
