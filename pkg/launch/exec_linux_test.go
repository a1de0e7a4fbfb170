package launch

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/kek"
)

// entryLauncher is the test binary linked as ov is, with -E ov_entry.
var entryLauncher = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ov-launch")
	if err != nil {
		return "", err
	}
	tempDirs = append(tempDirs, dir)
	file := filepath.Join(dir, "launcher")
	cmd := exec.Command("go", "test", "-c", "-o", file, "-ldflags=-E ov_entry", ".")
	// cgo would mean the system's linker, which takes no -E.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return file, nil
})

func linked(t *testing.T) string {
	t.Helper()
	file, err := entryLauncher()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// What differs between any two runs of cat, and the size of the table of
// descriptors, which says nothing about those that are open.
var volatile = regexp.MustCompile(`(?m)^(Pid|Tgid|NSpid|NStgid|NSpgid|SigQ|FDSize|Vm\w+|Rss\w+|HugetlbPages|\w+_ctxt_switches|Mems_allowed\w*|x86_Thread\w+):.*\n`)

// TestSameProcess compares what the kernel knows about a program that was
// started directly with what it knows about the same program launched: limits,
// signal mask and ignored signals, credentials, capabilities, process group,
// session, priority, umask, descriptors, parent-death signal.
func TestSameProcess(t *testing.T) {
	// ulimit: Go raises the soft limit of descriptors for itself, and no core
	// file of the client may hold a key. env: systemd ignores SIGPIPE, nohup
	// SIGHUP, a shell SIGINT and SIGQUIT of background jobs.
	const setup = `umask 027; ulimit -Sn 77; ulimit -Sc 8; ulimit -Ss 4096; ulimit -Sl 64; cd /; exec 5</dev/null 7>/dev/null
		exec nice -n 3 setpriv --pdeathsig USR2 env --ignore-signal=PIPE,HUP,INT,QUIT,TERM,TSTP,CHLD --block-signal=CHLD,USR1,ALRM,PROF,URG,RTMIN+3 "$@"`
	programs := [][]string{
		{"cat", "/proc/self/status", "/proc/self/limits", "/proc/self/oom_score_adj", "/proc/self/coredump_filter", "/proc/self/cgroup", "/proc/self/timerslack_ns"},
		// parent, process group, session, terminal and its foreground group,
		// priority, nice value, scheduling class
		{"cut", "-d ", "-f4-8,18,19,40,41", "/proc/self/stat"},
		{"ls", "/proc/self/fd"},
		{"readlink", "/proc/self/cwd", "/proc/self/root", "/proc/self/ns/pid"},
		{"setpriv", "--dump"}, // credentials, parent-death signal
	}
	state := func(argv []string) string {
		t.Helper()
		cmd := exec.Command("sh", append([]string{"-c", setup, "sh"}, argv...)...)
		out, stderr, code := run(t, cmd)
		if code != 0 || stderr != "" {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		return volatile.ReplaceAllString(out, "")
	}
	all := ""
	for _, program := range programs {
		direct := state(program)
		launched := state(launch(t, linked(t), order{Argv: program}).Args)
		if direct != launched {
			t.Errorf("%q differs\ndirect\n%s\nlaunched\n%s", program, direct, launched)
		}
		all += direct
	}
	// That the setup took effect is what makes the comparison worth something.
	for _, want := range []string{
		"SigIgn:\t" + ignored("95007"), "SigBlk:\t0000001004412200", "Umask:\t0027",
		"Max open files            77 ", "Max core file size        4096 ", "Parent death signal: USR2", "\n5\n7\n",
	} {
		if found, err := regexp.MatchString(want, all); err != nil || !found {
			t.Errorf("the setup failed: no %q in\n%s", want, all)
		}
	}
}

// ignored is a pattern for SigIgn with the given low bits. Some parents, GNU
// make among them, also leave signals 32 and 33 ignored, which are glibc's own.
func ignored(low string) string { return "0000000[01][08]00" + low }

// Without -E ov_entry Go's runtime still keeps what nohup(1) relies on.
func TestNohup(t *testing.T) {
	inner := launch(t, self(t), order{Argv: []string{"grep", "SigIgn", "/proc/self/status"}})
	cmd := exec.Command("env", append([]string{"--ignore-signal=HUP,INT"}, inner.Args...)...)
	out, stderr, code := run(t, cmd)
	if want := regexp.MustCompile("^SigIgn:\t" + ignored("00003") + "\n$"); !want.MatchString(out) || code != 0 {
		t.Errorf("exit %d, %q, %s", code, out, stderr)
	}
}

// TestSamePid: pid and parent are those of the process that was started.
func TestSamePid(t *testing.T) {
	cmd := launch(t, self(t), order{Argv: []string{"sh", "-c", "echo $$ $PPID"}})
	out, _, _ := run(t, cmd)
	if want := fmt.Sprintf("%d %d\n", cmd.Process.Pid, os.Getpid()); out != want {
		t.Errorf("pid and parent %q, want %q", out, want)
	}
}

// The service manager sees the notification come from the main process.
func TestNotifyPid(t *testing.T) {
	c := notifySocket(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		t.Fatal(err)
	}
	cmd := launch(t, self(t), order{Argv: []string{self(t), "notify"}})
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+c.LocalAddr().String())
	if _, stderr, code := run(t, cmd); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	oob := make([]byte, 128)
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 64), oob)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d messages, %v", len(msgs), err)
	}
	cred, err := unix.ParseUnixCredentials(&msgs[0])
	if err != nil || int(cred.Pid) != cmd.Process.Pid {
		t.Errorf("from pid %v, want %d, %v", cred, cmd.Process.Pid, err)
	}
}

func TestTooBigInTotal(t *testing.T) {
	o := order{Argv: []string{"true"}, Secrets: map[string]string{}}
	for _, name := range []string{"A", "B", "C", "D", "E"} {
		o.Secrets[name] = strings.Repeat("x", 60000)
	}
	// The order itself is an argument, so a file brings it past the limit.
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(t.TempDir(), "order"), string(b), 0o600)
	// A stack of 512 KiB leaves 128 KiB for arguments and environment.
	cmd := exec.Command("sh", "-c", `ulimit -s 512; exec "$0" launch "@$1"`, self(t), file)
	_, stderr, code := run(t, cmd)
	if code != ExitCannotExec || !strings.Contains(stderr, "more than the system hands to a program") || !strings.Contains(stderr, "--clean-env") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// The longest entry that is accepted is one that the kernel takes, and one byte
// more is one that it does not.
func TestLongestEntry(t *testing.T) {
	longest := strings.Repeat("x", maxEntry()-len("A=\x00"))
	for _, c := range []struct {
		value string
		code  int
		text  string
	}{
		{longest, 0, ""},
		{longest + "x", ExitOwn, "these secrets take more: A"},
	} {
		b, err := json.Marshal(order{Argv: []string{"sh", "-c", `[ ${#A} = ` + fmt.Sprint(len(longest)) + ` ]`}, Secrets: map[string]string{"A": c.value}})
		if err != nil {
			t.Fatal(err)
		}
		file := write(t, filepath.Join(t.TempDir(), "order"), string(b), 0o600)
		_, stderr, code := run(t, exec.Command(self(t), "launch", "@"+file))
		if code != c.code || !strings.Contains(stderr, c.text) {
			t.Errorf("%d bytes: exit %d, %.300s", len(c.value), code, stderr)
		}
	}
	if err := unix.Exec("/bin/true", []string{"true"}, []string{"A=" + longest + "x"}); err != unix.E2BIG {
		t.Errorf("the kernel's answer to one byte more: %v", err)
	}
}

// A service with no room for locked memory starts all the same.
func TestNoLockedMemory(t *testing.T) {
	inner := launch(t, self(t), order{Argv: []string{"sh", "-c", `ulimit -l; printf %s "$A"`}, Secrets: map[string]string{"A": "value"}, Hold: ""})
	args := []string{"-c", `ulimit -l 0; exec "$@"`, "sh"}
	if os.Getuid() == 0 {
		// CAP_IPC_LOCK ignores the limit.
		args = append(args, "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "--")
	}
	out, stderr, code := run(t, exec.Command("sh", append(args, inner.Args...)...))
	if out != "0\nvalue" || code != 0 {
		t.Errorf("exit %d, %q, %s", code, out, stderr)
	}
}

// TestMemory scans a process that holds a secret right before Exec, after a
// failed one, and after Start. The scanner is shown to find what is there.
func TestMemory(t *testing.T) {
	for _, hold := range []string{"before", "after", "started"} {
		t.Run(hold, func(t *testing.T) {
			if hold != "before" && !kek.Erasing {
				t.Skip("built without GOEXPERIMENT=runtimesecret: nothing erases the copy of the environment")
			}
			secret := make([]byte, 64)
			if _, err := rand.Read(secret); err != nil {
				t.Fatal(err)
			}
			secret = []byte(base64.RawURLEncoding.EncodeToString(secret)[:64])
			planted := "planted-" + base64.RawURLEncoding.EncodeToString(secret)[:32]
			o := order{Hold: hold, Argv: []string{write(t, filepath.Join(t.TempDir(), "x"), "no #! line", 0o755), planted}}
			if hold == "started" {
				o.Argv = []string{"sh", "-c", "read line || exit 0", planted}
			}
			cmd := launch(t, linked(t), o) // without the race detector and its huge maps
			// A large block is not soon used again for something else, which
			// would erase the copy by chance.
			cmd.Env = append(os.Environ(), "FILLER="+strings.Repeat("x", 100_000))
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = in.Close()
				_ = cmd.Wait()
			}()
			if _, err := in.Write(secret); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("holding\n"))); err != nil {
				t.Fatal(err)
			}
			if scan(t, cmd.Process.Pid, []byte(planted)) == 0 {
				t.Error("the scanner does not find what is there")
			}
			// memfd_secret(2) memory cannot be read from outside; where there is
			// none, the environment's block can.
			want := 0
			if fd, err := unix.MemfdSecret(unix.O_CLOEXEC); err != nil && hold == "before" {
				want = 1
			} else if err == nil {
				_ = unix.Close(fd)
			}
			n := scan(t, cmd.Process.Pid, secret)
			t.Logf("%s: %d readable copies of the secret", hold, n)
			if n != want {
				t.Errorf("%d readable copies of the secret, want %d", n, want)
			}
		})
	}
}

// scan counts what in the memory of a process that this one may read.
func scan(t *testing.T, pid int, what []byte) int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	n, read := 0, 0
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var perm string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); err != nil {
			t.Fatal(err)
		}
		if perm[0] != 'r' || to > 1<<62 { // [vsyscall] lies beyond int64
			continue
		}
		buf := make([]byte, to-from)
		m, err := mem.ReadAt(buf, int64(from))
		if err != nil {
			continue // memfd_secret, [vvar]
		}
		read += m
		n += bytes.Count(buf[:m], what)
	}
	if read < 1<<20 {
		t.Fatalf("only %d bytes could be read", read)
	}
	return n
}
