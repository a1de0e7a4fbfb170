package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/vault"
)

// stranger is an account that need not exist: only the number matters.
const stranger = 4242

// childAs runs a child under another account and decodes what it says.
func childAs(t *testing.T, uid uint32, into any, mode string, args ...string) {
	t.Helper()
	cmd := child(mode, args...)
	cmd.Path = readableSelf(t)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatal(err)
	}
}

// readableSelf is a copy of this test binary that every account can execute.
func readableSelf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ov-self-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(self())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	path := filepath.Join(dir, "test")
	dst, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// openToAll lets every account reach the socket, as the agent never does: what
// keeps strangers out is then the agent itself.
func openToAll(t *testing.T, socket string) {
	t.Helper()
	for path, mode := range map[string]os.FileMode{filepath.Dir(socket): 0o755, socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOtherAccountIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("running a process of another account needs root")
	}
	a := newAgent(t).open(t)

	t.Run("the socket is closed to others", func(t *testing.T) {
		info, err := os.Stat(a.socket)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		var fate connectionFate
		childAs(t, stranger, &fate, "connect", a.socket)
		if fate.Connected {
			t.Error("another account connected")
		}
	})
	t.Run("the agent closes the connection unread", func(t *testing.T) {
		openToAll(t, a.socket)
		var fate connectionFate
		childAs(t, stranger, &fate, "connect", a.socket)
		if !fate.Connected || fate.Read != 0 {
			t.Errorf("connected and got nothing: want that, got %+v", fate)
		}
		if !strings.Contains(a.logged.String(), "uid 4242") {
			t.Errorf("the log does not say who was refused:\n%s", a.logged)
		}
	})
	t.Run("every request is refused, should the listener let others in", func(t *testing.T) {
		socket := filepath.Join(shortDir(t), "s")
		l, err := peer.Listen(socket)
		if err != nil {
			t.Fatal(err)
		}
		a.serve(t, peer.Limit(l, peer.Trust{0, stranger}, peer.DefaultLimits(), nil))
		openToAll(t, socket)
		var got asked
		childAs(t, stranger, &got, "ask", socket, "3")
		if len(got.Wrong) != 3 || !strings.HasPrefix(got.Wrong[0], "not permitted: the agent serves its own account and root, not uid 4242") {
			t.Errorf("another account got %+v", got)
		}
		served(t, socket, 1)
	})
	t.Run("a listener that does not look who connects serves nobody", func(t *testing.T) {
		socket := filepath.Join(shortDir(t), "s")
		l, err := peer.Listen(socket)
		if err != nil {
			t.Fatal(err)
		}
		a.serve(t, l)
		if fate := connectRaw(socket); !fate.Connected || fate.Read != 0 {
			t.Errorf("connected and got nothing: want that, got %+v", fate)
		}
	})
}

// Root may use any agent, and an account's agent serves root.
func TestRootIsServedByAnAccountsAgent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("running an agent of another account needs root")
	}
	// Not in /tmp: to root, a place is the account's only if nobody else could
	// have made it.
	dir, err := os.MkdirTemp("/run", "ov-a-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := copyVault(t, dir)
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, sharedFixture(t).account, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, path, key} {
		if err := os.Chown(name, stranger, stranger); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "run", "agent.sock")
	cmd := exec.Command(program(t, "ov-agent"), "--foreground", "--socket", socket, "--vault", path, "--machine-key", key)
	cmd.Env = []string{"HOME=" + dir}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	d := run(t, cmd, socket)
	c := d.client(t)
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	if _, err := c.Put(t.Context(), shop, []vault.Put{{Name: "BY_ROOT", Value: []byte("x")}}, vault.PutOptions{}); err != nil {
		t.Error(err)
	}
	if owner(t, path) != stranger {
		t.Error("the vault's file changed hands")
	}
	// PR_SET_DUMPABLE=0: what of it other processes of the account could read or
	// trace is root's (proc(5)); and RLIMIT_CORE=0.
	proc := fmt.Sprintf("/proc/%d/", d.Process.Pid)
	for _, name := range []string{"mem", "maps", "environ", "fd"} {
		if uid := owner(t, proc+name); uid != 0 {
			t.Errorf("%s is open to uid %d", name, uid)
		}
	}
	if limits, err := os.ReadFile(proc + "limits"); err != nil || !coreLimit.Match(limits) {
		t.Errorf("it may dump core: %v\n%s", err, limits)
	}
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// An agent that cannot lock its memory does not start, and says what to raise.
func TestNoLockedMemoryNoAgent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("taking locked memory from a process needs another account: root is not limited")
	}
	for args, detached := range map[string]bool{"--foreground --locked": false, "--locked": true} {
		h := newHome(t)
		cmd := exec.Command("/bin/sh", "-c", `ulimit -l 0 && exec "$0" `+args, program(t, "ov-agent"))
		cmd.Env, cmd.Dir = h.env, "/"
		if err := filepath.WalkDir(h.dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, stranger, stranger))
		}); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
		out, err := cmd.CombinedOutput()
		if exitCode(err) != 1 || !strings.HasPrefix(string(out), "ov-agent: cannot lock 32 bytes of memory: ") ||
			!strings.HasSuffix(string(out), "\n  hint: raise the limit of locked memory: ulimit -l, or LimitMEMLOCK= in the unit\n") {
			t.Errorf("detached %v: %v, %q", detached, err, out)
		}
		if _, err := os.Lstat(h.socket); err == nil {
			t.Errorf("detached %v: it made a socket", detached)
		}
	}
}
