// Probe stands in for ov-agent under its unit and tells what the sandbox lets
// it do. It serves one report per connection; "probe call SOCKET" fetches one.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

type report struct {
	Args []string
	UID  int
	Core uint64            // RLIMIT_CORE
	Can  map[string]string // what was tried: "" when it went, else the error
	Peer map[string]string
}

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "child":
		_, err = io.Copy(os.Stdout, os.Stdin)
	case len(os.Args) >= 3 && os.Args[1] == "call":
		err = call(os.Args[2], len(os.Args) > 3)
	default:
		err = serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// call prints a report, undumpable as ov is where so asked.
func call(socket string, undumpable bool) error {
	if undumpable {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return err
		}
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

func flag(name string) string {
	for i, a := range os.Args[:len(os.Args)-1] {
		if a == name {
			return os.Args[i+1]
		}
	}
	return ""
}

func serve() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	socket := flag("--socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	beat, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return err
	}
	go func() {
		for range time.Tick(beat / 2) {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}()
	go func() {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		<-term
		os.Exit(0)
	}()
	if ok, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil || !ok {
		return fmt.Errorf("sd_notify: %v %v", ok, err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		r := try()
		r.Peer = peer(c.(*net.UnixConn))
		_ = json.NewEncoder(c).Encode(r)
		_ = c.Close()
	}
}

func say(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func try() report {
	vault := flag("--vault")
	var core unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
	r := report{Args: os.Args[1:], UID: os.Getuid(), Core: core.Max, Can: map[string]string{}}
	for name, f := range map[string]func() error{
		// What the agent's work needs.
		"memfd_secret": func() error {
			fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Ftruncate(fd, 4096); err != nil {
				return err
			}
			b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			return unix.Munmap(b)
		},
		"mlock": func() error {
			b, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				return err
			}
			defer unix.Munmap(b)
			return unix.Mlock(b)
		},
		"lower RLIMIT_CORE": func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) },
		"child of itself": func() error {
			cmd := exec.Command("/proc/self/exe", "child")
			cmd.Stdin = strings.NewReader("through a pipe")
			out, err := cmd.Output()
			if err == nil && string(out) != "through a pipe" {
				err = fmt.Errorf("the child said %q", out)
			}
			return err
		},
		"read the key":    func() error { _, err := os.ReadFile(flag("--machine-key")); return err },
		"write the vault": func() error { return os.WriteFile(vault, []byte("vault"), 0o600) },
		"rename beside vault": func() error {
			if err := os.WriteFile(vault+".tmp", nil, 0o600); err != nil {
				return err
			}
			return os.Rename(vault+".tmp", vault+".new")
		},
		"flock beside vault":  func() error { return flock(vault + ".lock") },
		"flock beside socket": func() error { return flock(flag("--socket") + ".lock") },
		// What nothing of the agent's work needs.
		"write /etc/ov":   func() error { return os.WriteFile("/etc/ov/planted", nil, 0o600) },
		"write home":      func() error { return os.WriteFile(filepath.Join(home(), "planted"), nil, 0o600) },
		"read home":       func() error { _, err := os.Lstat(filepath.Join(home(), ".profile")); return err },
		"exec sh":         func() error { return exec.Command("/bin/sh", "-c", "true").Run() },
		"exec from vault": func() error { return plant(filepath.Dir(vault)) },
		"exec from /tmp":  func() error { return plant("/tmp") },
		"exec from /run":  func() error { return plant(filepath.Dir(flag("--socket"))) },
		"internet socket": func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
		"netlink socket":  func() error { _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); return err },
		"user namespace":  func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"memory W+X": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return err
		},
		"keyring":          func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err },
		"process_vm_readv": func() error { _, err := unix.ProcessVMReadv(os.Getppid(), nil, nil, 0); return err },
		"setuid file":      func() error { return os.Chmod(vault, 0o600|os.ModeSetuid) },
		"/proc/kallsyms":   func() error { _, err := os.Lstat("/proc/kallsyms"); return err },
		"a disk":           func() error { _, err := os.Lstat("/dev/vda"); return err },
	} {
		r.Can[name] = say(f())
	}
	return r
}

// plant runs a copy of this program from the directory.
func plant(dir string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	copied := filepath.Join(dir, "planted")
	defer os.Remove(copied)
	if err := os.WriteFile(copied, self, 0o700); err != nil {
		return err
	}
	return exec.Command(copied, "child").Run()
}

func home() string { return "/home/" + os.Getenv("USER") }

func flock(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// peer tells what the agent can learn of its caller.
func peer(c *net.UnixConn) map[string]string {
	got := map[string]string{}
	raw, err := c.SyscallConn()
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			got["cred"] = err.Error()
			return
		}
		got["uid"] = fmt.Sprint(cred.Uid)
		const soPeerPIDFD = 77 // SO_PEERPIDFD, Linux 6.5
		if _, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, soPeerPIDFD); err != nil {
			got["pidfd"] = err.Error()
		}
		at := fmt.Sprintf("/proc/%d/", cred.Pid)
		if got["exe"], err = os.Readlink(at + "exe"); err != nil {
			got["exe"] = "error: " + err.Error()
		}
		for _, name := range []string{"cgroup", "stat"} {
			b, err := os.ReadFile(at + name)
			got[name] = string(b)
			if err != nil {
				got[name] = "error: " + err.Error()
			}
		}
	})
	return got
}
