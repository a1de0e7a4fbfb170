//go:build systemd && linux

package systemdtest

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packages is what the machines have besides Debian's minbase: libpam-systemd
// gives a login its XDG_RUNTIME_DIR.
const packages = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,sudo"

// nspawnReboot is nspawn's exit status when the machine asked for a reboot.
const nspawnReboot = 133

const (
	superviseEnv     = "OV_TEST_SUPERVISE"
	superviseBaseEnv = "OV_TEST_SUPERVISE_BASE"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(superviseEnv); dir != "" {
		if err := supervisor(dir, os.Getenv(superviseBaseEnv)); err != nil {
			fmt.Fprintln(os.Stderr, "supervisor:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func cacheDir() string {
	if dir := os.Getenv("OV_TEST_CACHE"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".cache", "ov-test")
}

func runsDir() string { return filepath.Join(cacheDir(), "runs") }

// needReal skips the test where the real parts are missing, or fails it when
// OV_REQUIRE_REAL=1, and returns the directory of the Debian base.
func needReal(t *testing.T) string {
	t.Helper()
	var missing []string
	if os.Getuid() != 0 {
		missing = append(missing, "root")
	}
	for _, tool := range []string{"systemd-nspawn", "debootstrap", "nsenter", "apt-get"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if missing != nil {
		skip := t.Skipf
		if os.Getenv("OV_REQUIRE_REAL") == "1" {
			skip = t.Fatalf
		}
		skip("NOT RUN: the guide in a real systemd: missing %s", strings.Join(missing, ", "))
	}
	base, err := prepare()
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// prepare waits for other runs on this machine to end, ends what killed ones
// left, and makes the base. Machines of two runs would share a control group.
var prepare = sync.OnceValues(func() (string, error) {
	if err := os.MkdirAll(runsDir(), 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cacheDir(), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // held until this process ends
		return "", err
	}
	keepOpen = lock
	if err := endStale(); err != nil {
		return "", err
	}
	return makeBase()
})

var keepOpen *os.File

// endStale ends the machines of runs whose supervisor was killed too.
func endStale() error {
	dirs, err := filepath.Glob(filepath.Join(runsDir(), "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		// The supervisor of a run that has just been killed may be cleaning up.
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // it is done
		}
		if err != nil {
			return err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			return err
		}
		if b, err := os.ReadFile(filepath.Join(dir, "leader")); err == nil {
			pid, start, _ := strings.Cut(string(b), " ")
			if p, err := strconv.Atoi(pid); err == nil && p > 1 && startTime(p) == start {
				_ = syscall.Kill(p, syscall.SIGKILL)
				for startTime(p) == start {
					time.Sleep(50 * time.Millisecond)
				}
			}
		}
		_ = lock.Close()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// startTime tells one process from a later one of the same pid; "" if there is
// none or it is a zombie. Field 22 of proc(5)'s stat.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// makeBase runs debootstrap once for the release and machine that this is.
func makeBase() (string, error) {
	release, err := exec.Command("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").Output()
	if err != nil {
		return "", err
	}
	suite := strings.TrimSpace(string(release))
	name := fnv.New32a()
	_, _ = name.Write([]byte(packages))
	base := filepath.Join(cacheDir(), fmt.Sprintf("%s-%s-%08x", suite, runtime.GOARCH, name.Sum32()))
	if _, err := os.Stat(base); err == nil {
		return base, nil
	}
	mirror, err := aptMirror(suite)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "making the Debian base with debootstrap, once: about two minutes\n")
	part := base + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	out, err := exec.Command("debootstrap", "--variant=minbase", "--include="+packages, suite, part, mirror).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("debootstrap: %w\n%s", err, out[max(0, len(out)-3000):])
	}
	return base, os.Rename(part, base)
}

// aptMirror is where this machine's own apt takes the suite from.
func aptMirror(suite string) (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == suite && f[2] == "main" {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("no apt source of this machine has %s main", suite)
}

// supervisor boots the machine whenever its standard input says so, says on
// standard output when it went up and down, and at the end of input ends and
// removes it. It runs in a mount namespace of its own, which goes with it.
func supervisor(dir, base string) error {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			return err
		}
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", base, at("upper"), at("work"))
	if err := unix.Mount("overlay", at("root"), "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	defer func() { _ = unix.Unmount(at("root"), unix.MNT_DETACH) }()
	log, err := os.OpenFile(at("boot.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()

	orders := make(chan struct{})
	go func() {
		defer close(orders)
		for b := make([]byte, 64); ; {
			n, err := os.Stdin.Read(b)
			for range strings.Count(string(b[:n]), "\n") {
				orders <- struct{}{}
			}
			if errors.Is(err, io.EOF) || err != nil {
				return
			}
		}
	}()
	for range orders {
		for again := true; again; {
			status, ended, err := spawn(at("root"), at("leader"), log, orders)
			if err != nil || ended {
				return err
			}
			fmt.Println("down", status)
			again = status == nspawnReboot
		}
	}
	return nil
}

// spawn runs nspawn until the machine goes down, or ends it when orders ends.
func spawn(root, leaderFile string, log *os.File, orders <-chan struct{}) (status int, ended bool, err error) {
	cmd := exec.Command("systemd-nspawn", "--quiet", "-D", root, "--register=no", "--keep-unit", "--boot",
		"--console=pipe", "--private-network", "--system-call-filter=memfd_secret", "--capability=CAP_IPC_LOCK")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return 0, false, err
	}
	down := make(chan struct{})
	go func() {
		defer close(down)
		_ = cmd.Wait()
	}()
	leader := 0
	for leader == 0 {
		select {
		case <-down:
			return cmd.ProcessState.ExitCode(), false, nil
		case <-time.After(10 * time.Millisecond):
			leader = childOf(cmd.Process.Pid)
		}
	}
	if err := os.WriteFile(leaderFile, fmt.Appendf(nil, "%d %s", leader, startTime(leader)), 0o600); err != nil {
		return 0, false, err
	}
	fmt.Println("up", leader)
	for {
		select {
		case <-down:
			return cmd.ProcessState.ExitCode(), false, nil
		case _, more := <-orders:
			if !more {
				_ = syscall.Kill(leader, syscall.SIGKILL) // never nspawn itself: it cleans up
				<-down
				return 0, true, nil
			}
		}
	}
}

// childOf is the machine's PID 1: the child of nspawn that has become init.
func childOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for _, f := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			continue
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); err == nil && strings.TrimSpace(string(comm)) == "systemd" {
			return child
		}
	}
	return 0
}
