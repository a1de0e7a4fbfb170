package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernels are the ways to pin a process, by the kernels that have them.
var kernels = map[string]rungs{
	"6.13 or later": {peerPidfd: true, pidfdOpen: true, pidfdInfo: true},
	"6.5 to 6.12":   {peerPidfd: true, pidfdOpen: true},
	"5.3 to 6.4":    {pidfdOpen: true},
	"before 5.3":    {},
}

// eachRung runs a test as on each of them.
func eachRung(t *testing.T, test func(t *testing.T)) {
	for name, r := range kernels {
		t.Run(name, func(t *testing.T) {
			was := kernel
			kernel = r
			defer func() { kernel = was }()
			test(t)
		})
	}
}

func TestKernelHasWhatIsTested(t *testing.T) {
	dir := openDir(t)
	l := listenOpen(t, filepath.Join(dir, "s"))
	spawn(t, dir+"/caller", os.Geteuid(), nil, "connect", dir+"/s", "1").expect("connected")
	raw, _ := accept(t, l).SyscallConn()
	_ = raw.Control(func(fd uintptr) {
		pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if err != nil {
			t.Skipf("not run: this kernel has no SO_PEERPIDFD (%v), so what the tests call so is pidfd_open", err)
		}
		_ = unix.Close(pidfd)
	})
}

func TestIdentity(t *testing.T) {
	dir := openDir(t)
	for _, uid := range accounts() {
		eachRung(t, func(t *testing.T) {
			socket := filepath.Join(dir, "s")
			defer func() { _ = os.Remove(socket) }()
			l := listenOpen(t, socket)
			caller := spawn(t, dir+"/caller", uid, nil, "connect", socket, "1")
			caller.expect("connected")
			info, err := identify(accept(t, l))
			if err != nil {
				t.Fatal(err)
			}
			defer info.close()
			own, err := os.ReadFile("/proc/self/cgroup")
			if err != nil {
				t.Fatal(err)
			}
			if int(info.UID) != uid || info.PID != caller.pid() || info.Exe != dir+"/caller" || info.Unit != unitOf(own) {
				t.Errorf("caller is %+v; want uid %d, pid %d, %s, unit %q", info, uid, caller.pid(), dir+"/caller", unitOf(own))
			}
			if isRoot && int(info.GID) != uid {
				t.Errorf("gid %d, want %d", info.GID, uid)
			}
			fd := info.proc.pidfd
			if info.proc.by == byDir {
				fd = int(info.proc.dir)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor would be inherited: flags %x, %v", flags, err)
			}
			if err := info.Alive(); err != nil {
				t.Errorf("living caller: %v", err)
			}

			// Ended but not reaped, then reaped.
			if err := caller.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			waitZombie(t, caller.pid())
			if err := info.Alive(); !errors.Is(err, ErrGone) {
				t.Errorf("zombie: %v, want ErrGone", err)
			}
			caller.kill()
			if err := info.Alive(); !errors.Is(err, ErrGone) {
				t.Errorf("killed caller: %v, want ErrGone", err)
			}
		})
	}
}

func waitZombie(t *testing.T, pid int32) {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, int(pid), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// A caller asks, gives its connection to another process and ends: what is
// asked over that connection is not its request any more.
func TestConnectionHandedOver(t *testing.T) {
	dir := openDir(t)
	eachRung(t, func(t *testing.T) {
		socket := filepath.Join(dir, "s")
		defer func() { _ = os.Remove(socket) }()
		l := listenOpen(t, socket)
		caller := spawn(t, dir+"/caller", os.Geteuid(), nil, "handover", socket)
		c := accept(t, l)
		info, err := identify(c)
		if err != nil {
			t.Fatal(err)
		}
		defer info.close()
		caller.expect("connected")
		if err := info.Alive(); err != nil {
			t.Fatal(err)
		}
		caller.end()
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Fatalf("the connection is not open any more, which is not what is tested: %v", err)
		}
		if err := info.Alive(); !errors.Is(err, ErrGone) {
			t.Errorf("%v, want ErrGone", err)
		}
	})
}

// The same, and another process is given the pid.
func TestPidReused(t *testing.T) {
	needRoot(t)
	dir := openDir(t)
	eachRung(t, func(t *testing.T) {
		socket := filepath.Join(dir, "s")
		defer func() { _ = os.Remove(socket) }()
		l := listenOpen(t, socket)
		for range 200 {
			early := spawn(t, dir+"/caller", alice, nil, "handover", socket)
			c := accept(t, l)
			info, err := identify(c)
			if err != nil {
				t.Fatal(err)
			}
			early.expect("connected")
			early.end()
			pid := early.pid()
			other := takePid(t, dir, pid, alice)
			if other == nil {
				info.close()
				continue // somebody else was faster
			}
			if err := info.Alive(); !errors.Is(err, ErrGone) {
				t.Errorf("the pid is another process's: %v, want ErrGone", err)
			}
			info.close()
			other.kill()

			// The pid is another account's before the connection is even
			// accepted. (One of the same account cannot be told apart before
			// Linux 6.5, nor has it less of a right to ask.)
			late := spawn(t, dir+"/caller", alice, nil, "handover", socket)
			late.expect("connected")
			late.end()
			other = takePid(t, dir, late.pid(), bob)
			if other == nil {
				_ = accept(t, l)
				continue
			}
			if info, err = identify(accept(t, l)); err == nil {
				t.Errorf("taken for %v", info)
			} else if !errors.Is(err, ErrGone) && !errors.Is(err, ErrChanged) {
				t.Errorf("%v, want ErrGone or ErrChanged", err)
			}
			return
		}
		t.Skip("not run: no pid could be had twice")
	})
}

// takePid starts a process with the given pid, or returns nil.
func takePid(t *testing.T, dir string, pid int32, uid int) *child {
	t.Helper()
	last := strconv.Itoa(int(pid) - 1)
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(last), 0o644); err != nil {
		t.Skipf("not run: cannot choose a pid: %v", err)
	}
	c := spawn(t, dir+"/caller", uid, nil, "sit")
	if c.pid() != pid {
		c.kill()
		return nil
	}
	return c
}

func TestBecomesAnotherProgram(t *testing.T) {
	dir := openDir(t)
	eachRung(t, func(t *testing.T) {
		socket := filepath.Join(dir, "s")
		defer func() { _ = os.Remove(socket) }()
		l := listenOpen(t, socket)
		caller := spawn(t, dir+"/caller", os.Geteuid(), nil, "exec", socket, "/bin/cat")
		info, err := identify(accept(t, l))
		if err != nil {
			t.Fatal(err)
		}
		defer info.close()
		caller.expect("connected")
		if err := info.Alive(); err != nil {
			t.Fatal(err)
		}
		caller.say()
		caller.expect("becoming another")
		caller.say() // cat answers once it is there
		caller.expect("")
		if err := info.Alive(); !errors.Is(err, ErrChanged) {
			t.Errorf("%v, want ErrChanged", err)
		}
	})
}

// A program that is replaced on disk while it runs, by an upgrade, is still
// the one that connected.
func TestExecutableReplaced(t *testing.T) {
	dir := openDir(t)
	copyExe(t, dir+"/upgraded")
	l := listenOpen(t, dir+"/s")
	spawn(t, dir+"/upgraded", os.Geteuid(), nil, "connect", dir+"/s", "1").expect("connected")
	info, err := identify(accept(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer info.close()
	if err := os.Rename(dir+"/caller", dir+"/upgraded"); err != nil {
		t.Fatal(err)
	}
	if err := info.Alive(); err != nil {
		t.Error(err)
	}
}

func TestChangesAccount(t *testing.T) {
	needRoot(t)
	dir := openDir(t)
	eachRung(t, func(t *testing.T) {
		socket := filepath.Join(dir, "s")
		defer func() { _ = os.Remove(socket) }()
		l := listenOpen(t, socket)
		caller := spawn(t, dir+"/caller", 0, nil, "setuid", socket, strconv.Itoa(alice))
		info, err := identify(accept(t, l))
		if err != nil {
			t.Fatal(err)
		}
		defer info.close()
		caller.expect("connected")
		caller.say()
		caller.expect("changed")
		if err := info.Alive(); !errors.Is(err, ErrChanged) {
			t.Errorf("%v, want ErrChanged", err)
		}
	})
}

func TestConnectionClosed(t *testing.T) {
	dir := openDir(t)
	l := listenOpen(t, dir+"/s")
	spawn(t, dir+"/caller", os.Geteuid(), nil, "connect", dir+"/s", "1").expect("connected")
	c := Limit(l, OwnOrRoot(), DefaultLimits(), nil).(*limiter).admit(accept(t, l))
	if c == nil {
		t.Fatal("refused")
	}
	secured, auth, err := ServerCredentials().ServerHandshake(c)
	if err != nil {
		t.Fatal(err)
	}
	info := auth.(*Info)
	if err := info.Alive(); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	if err := secured.Close(); err != nil {
		t.Fatal(err)
	}
	if err := info.Alive(); !errors.Is(err, ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
	if after := openFiles(t); after != before-2 {
		t.Errorf("%d files open before closing a connection, %d after: want its socket gone and what pins its caller", before, after)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// An agent that is not root sees less of a caller that is not dumpable, as ov
// makes itself, and nothing in /proc if it has ProtectProc=invisible.
func TestHiddenCaller(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("not run: no setpriv (util-linux)")
	}
	dir := openDir(t)
	mkdir(t, dir+"/d", alice, 0o755)
	id := strconv.Itoa(alice)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, proc := range []struct{ name, mount, unit string }{
		{"plain proc", ":", unitOf(own)},
		{"hidepid", "mount -t proc -o hidepid=2 proc /proc", ""},
	} {
		for rung := range kernels {
			t.Run(proc.name+", Linux "+rung, func(t *testing.T) {
				script := proc.mount + ` && exec setpriv --reuid ` + id + ` --regid ` + id + ` --clear-groups "$0" "$@"`
				observer := spawnCmd(t, exec.Command("unshare", "-m", "sh", "-c", script, dir+"/caller", dir+"/d/s", rung),
					0, []string{childVariable + "=observe"})
				observer.expect("listening")
				caller := spawn(t, dir+"/caller", alice, nil, "hidden", dir+"/d/s")
				caller.expect("connected")
				answer := observer.line()
				defer observer.kill() // lest it have the socket when the next one comes
				if proc.name == "hidepid" && rung == "before 5.3" {
					if !strings.Contains(answer, "cannot tell which process connected") {
						t.Errorf("nothing holds the caller, and the observer says %q", answer)
					}
					return
				}
				var o observed
				if err := json.Unmarshal([]byte(answer), &o); err != nil {
					t.Fatal(answer)
				}
				if want := (observed{UID: alice, PID: caller.pid(), Unit: proc.unit, Trusted: true}); o != want {
					t.Errorf("observed %+v, want %+v", o, want)
				}
				observer.say()
				observer.expect("alive: <nil>")
				caller.kill()
				observer.say()
				if got := observer.line(); !strings.HasSuffix(got, ErrGone.Error()) {
					t.Errorf("after its end: %s", got)
				}
			})
		}
	}
}

// In a user namespace (PrivateUsers=) every account that is not mapped looks
// like one uid. Even an agent that has that uid must not take it for its own.
func TestUnmappedAccount(t *testing.T) {
	needRoot(t)
	dir := openDir(t)
	mkdir(t, dir+"/d", alice, 0o755)
	overflow, some := overflowUID()
	if some {
		t.Skip("not run: the tests are in a user namespace themselves")
	}
	cmd := exec.Command(dir+"/caller", dir+"/d/s", "6.13 or later")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: int(overflow), HostID: alice, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: int(overflow), HostID: alice, Size: 1}},
		Credential:  &syscall.Credential{Uid: overflow, Gid: overflow, NoSetGroups: true},
	}
	observer := spawnCmd(t, cmd, 0, []string{childVariable + "=observe"})
	if got := observer.line(); got != "listening" {
		t.Fatal(got)
	}
	spawn(t, dir+"/caller", bob, nil, "connect", dir+"/d/s", "1").expect("connected")
	var o observed
	if err := json.Unmarshal([]byte(observer.line()), &o); err != nil {
		t.Fatal(err)
	}
	if o.UID != overflow || o.Trusted {
		t.Errorf("observed %+v; want uid %d, not trusted", o, overflow)
	}
}

func TestMapsAll(t *testing.T) {
	for uidMap, want := range map[string]bool{
		"         0          0 4294967295\n": true,
		"         0       1000          1\n": false,
		"      1000       1000          1\n": false,
		"0 0 1\n1 100000 65536\n":            false,
		"0 0 1000\n1000 1000 4294966295\n":   false,
		"":                                   false,
	} {
		if mapsAll(uidMap) != want {
			t.Errorf("%q: %v", uidMap, !want)
		}
	}
}

func TestUnitOf(t *testing.T) {
	long := strings.Repeat("x", 300) + ".service"
	for cgroup, want := range map[string]string{
		"0::/system.slice/myapp.service\n":                                         "myapp.service",
		"0::/system.slice/system-getty.slice/getty@tty1.service\n":                 "getty@tty1.service",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                         "session-3.scope",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service\n": "user@1000.service/foo.service",
		"0::/user.slice/user-1000.slice/user@1000.service/init.scope\n":            "user@1000.service/init.scope",
		"0::/user.slice/user-1000.slice/user@1000.service/session.slice\n":         "user@1000.service",
		"0::/init.scope\n": "init.scope",
		"12:pids:/a\n1:name=systemd:/system.slice/a.service\n0::/\n": "a.service",
		"9:name=systemd:/\n0::/\n":                                   "",
		"0::/system.slice/_tasks.service\n":                          "tasks.service",
		"0::/system.slice/dev-disk\\x2duuid.swap\n":                  "dev-disk\\x2duuid.swap",
		// What a unit or a container has below its own cgroup is its own affair.
		"0::/system.slice/evil.service/system.slice/ov-agent.service\n":             "evil.service",
		"0::/machine.slice/machine-x.scope/payload/system.slice/ov-agent.service\n": "machine-x.scope",
		"0::/docker/0123/system.slice/ov-agent.service\n":                           "",
		"0::/lxc/x.service\n":                    "",
		"0::/../../user.slice/x.service\n":       "",
		"0::/system.slice/a.service (deleted)\n": "",
		"0::/system.slice/" + long + "\n":        "",
		"0::/system.slice\n":                     "",
		"0::/\n":                                 "",
		"0::system.slice/a.service\n":            "",
		"":                                       "",
	} {
		if got := unitOf([]byte(cgroup)); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}

// A process chooses its own name, which stands before the fields.
func TestNameCannotForge(t *testing.T) {
	for _, name := range []string{"cat", "a) S 1 1", ")", "((", "x\nUid:\t0\t0\t0\t0", ""} {
		state, err := parseState([]byte("7085 (" + name + ") Z 1 1 1 0 -1"))
		if err != nil || state != 'Z' {
			t.Errorf("%q: %q, %v", name, state, err)
		}
	}
	for _, bad := range []string{"", "1 (x)", "1 (x) S", "1 x S 1", "1 (x) SS 1"} {
		if state, err := parseState([]byte(bad)); err == nil {
			t.Errorf("%q: %q", bad, state)
		}
	}
	for _, bad := range []string{"", "Uid:\t1\t1\t1\t1\n", "\nUid:\t1\t1\t1\n", "\nUid:\t1\t-1\t1\t1\n", "\nUid:\t1\t4294967296\t1\t1\n"} {
		if uid, err := parseUID([]byte(bad)); err == nil {
			t.Errorf("%q: %d", bad, uid)
		}
	}
	// The kernel's own rendering, of a name made to deceive.
	cmd := exec.Command("sh", "-c", `printf 'x\nUid: 7 7) Z' > /proc/self/comm; echo; read _; :`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	d, err := openProc(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if b, err := d.read("status", maxStatus); err != nil || !strings.Contains(string(b), "Uid: 7 7) Z") {
		t.Fatalf("the name is not what is tested: %q, %v", b, err)
	}
	if uid, err := d.uid(); err != nil || int(uid) != os.Geteuid() {
		t.Errorf("uid %d, %v", uid, err)
	}
	if err := d.running(); err != nil {
		t.Error(err)
	}
}

func FuzzUnitOf(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		unit := unitOf(b)
		if unit == "" {
			return
		}
		outer, inner, nested := strings.Cut(unit, "/")
		if nested && !isManager(outer) {
			t.Errorf("%q from a path under no user's manager", unit)
		}
		for _, name := range []string{outer, inner} {
			if (name != "" || name == outer) && (!isUnitName(name) || strings.HasSuffix(name, ".slice")) {
				t.Errorf("%q is no unit", name)
			}
		}
		if !strings.Contains(string(b), outer) || !strings.Contains(string(b), inner) || len(unit) > 511 {
			t.Errorf("%q is not in the input", unit)
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		state, err := parseState(b)
		if end := strings.LastIndexByte(string(b), ')'); err == nil && strings.IndexByte(string(b[end:]), state) < 0 {
			t.Errorf("%q is not after the name", state)
		}
	})
}

func FuzzStatus(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		uid, err := parseUID(b)
		if err == nil && !strings.Contains(string(b), fmt.Sprint(uid)) && !strings.Contains(string(b), "0") {
			t.Errorf("%d is not in the input", uid)
		}
	})
}

func BenchmarkIdentify(b *testing.B) {
	dir := openDir(b)
	l := listenOpen(b, dir+"/s")
	spawn(b, dir+"/caller", os.Geteuid(), nil, "connect", dir+"/s", "1").expect("connected")
	c := accept(b, l)
	b.ReportAllocs()
	for b.Loop() {
		info, err := identify(c)
		if err != nil {
			b.Fatal(err)
		}
		info.close()
	}
}

func BenchmarkAlive(b *testing.B) {
	dir := openDir(b)
	l := listenOpen(b, dir+"/s")
	spawn(b, dir+"/caller", os.Geteuid(), nil, "connect", dir+"/s", "1").expect("connected")
	for name, r := range kernels {
		b.Run(name, func(b *testing.B) {
			was := kernel
			kernel = r
			defer func() { kernel = was }()
			c, err := net.Dial("unix", dir+"/s")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			info, err := identify(accept(b, l))
			if err != nil {
				b.Fatal(err)
			}
			defer info.close()
			b.ReportAllocs()
			for b.Loop() {
				if err := info.Alive(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
