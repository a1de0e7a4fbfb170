package main

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/command"
)

// Accounts without an entry in the user database, of which nothing else runs.
const (
	deployUID = 41001
	otherUID  = 41002
)

// TestOtherAccounts: an agent serves its own account and root, and nobody else.
func TestOtherAccounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run programs as other accounts")
	}
	t.Parallel()
	deploy, other, root := newHome(t, deployUID), newHome(t, otherUID), newHome(t, 0)
	deploy.vault()
	deploy.must(mark+"-deploy", "ov", "secret", "set", "TOKEN", "--machine-key", "key")
	deploy.agent()
	socket := deploy.dir + "/run/ov-agent/ov-agent.sock"

	other.fails(command.ExitFailure, []string{"cannot reach the agent's socket " + socket}, "ov", "--socket", socket, "secret", "list")
	other.fails(125, nil, "ov", "--socket", socket, "run", "--", "true")
	// Root may use any, but not one in /tmp, where anybody may have put it there.
	root.fails(125, []string{"/tmp is a directory that others can write"}, "ov", "--socket", socket, "run", "--", "true")
	// Neither can another account use its key or read its vault, nor root by
	// mistake: a service's key is for the service's account.
	other.fails(125, nil, "ov", "run", "--machine-key", deploy.dir+"/key", "--", "true")
	root.fails(125, []string{"is owned by 41001, not by root", "run ov as 41001 (sudo -u)"},
		"ov", "--vault", deploy.dir+"/.local/share/ov/vault.db", "run", "--machine-key", deploy.dir+"/key", "--", "true")
}

// TestRendezvous is about /etc/ov/agent.socket, in a mount namespace with an
// /etc and a /run of its own.
func TestRendezvous(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can write /etc/ov/agent.socket")
	}
	// Children are made by the thread that is in the namespace. It ends with the
	// test, as it is never unlocked.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skipf("cannot make a mount namespace: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/etc", "/run"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
	}
	const socket, file = "/run/ov-agent/ov-agent.sock", "/etc/ov/agent.socket"
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.Mkdir("/etc/ov", 0o755))
	do(os.WriteFile(file, []byte(socket+"\n"), 0o644))
	do(os.Mkdir("/run/ov-agent", 0o755))
	do(os.Chown("/run/ov-agent", deployUID, deployUID))

	deploy, other, root := newHome(t, deployUID), newHome(t, otherUID), newHome(t, 0)
	for _, h := range []*home{deploy, other} {
		h.vault()
	}
	deploy.must(mark+"-deploy", "ov", "secret", "set", "TOKEN", "--machine-key", "key")
	other.must(mark+"-other", "ov", "secret", "set", "TOKEN", "--machine-key", "key")
	show := []string{"ov", "run", "--", "printenv", "TOKEN"}

	// It names an agent that does not run: nobody falls through to a prompt.
	deploy.fails(125, []string{"no agent is running at " + socket + ", which " + file + " names"}, show...)

	deploy.must("", "ov", "--socket", socket, "agent", "start", "--machine-key", "key")
	t.Cleanup(func() { root.must("", "ov", "--socket", socket, "agent", "stop") })
	for name, h := range map[string]*home{"deploy": deploy, "root": root} {
		if got := h.must("", show...); got != mark+"-deploy\n" {
			t.Errorf("%s got %q", name, got)
		}
	}
	// Another account is told of both places, until it has an agent of its own.
	other.fails(125, []string{"no agent of yours is running at " + other.dir + "/run/ov-agent/ov-agent.sock",
		"the one at " + socket + ", which " + file + " names, is another account's"}, show...)
	do(os.Chmod(socket, 0o666)) // not even so
	other.fails(command.ExitFailure, []string{"it serves only that account and root"}, "ov", "--socket", socket, "secret", "list")
	do(os.Chmod(socket, 0o600))
	other.agent()
	if got := other.must("", show...); got != mark+"-other\n" {
		t.Errorf("the other account got %q", got)
	}

	// A file that somebody else could have written is an error for everyone, even
	// those with an agent of their own.
	for _, c := range []struct {
		fault string
		make  func() error
		says  string
	}{
		{"writable", func() error { return os.Chmod(file, 0o666) }, "can be written by others (mode 0666)"},
		{"another owner", func() error { return os.Chown(file, otherUID, 0) }, "is owned by 41002, not by root"},
		{"a link", func() error { return os.Symlink(other.dir+"/mine", file) }, "is a symbolic link, not a regular file"},
		{"relative", func() error { return os.WriteFile(file, []byte("ov-agent.sock\n"), 0o644) }, "does not hold an absolute path"},
		{"empty", func() error { return os.WriteFile(file, nil, 0o644) }, "is empty"},
		{"directory", func() error { return os.Chmod("/etc/ov", 0o777) }, "/etc/ov"},
	} {
		if c.fault == "a link" {
			do(os.Remove(file))
		}
		do(c.make())
		for _, h := range []*home{deploy, other, root} {
			h.fails(125, []string{c.says}, show...)
			h.fails(command.ExitFailure, []string{c.says}, "ov", "secret", "set", "TOKEN")
			h.fails(command.ExitFailure, []string{c.says}, "ov", "app", "list")
		}
		do(os.RemoveAll("/etc/ov"))
		do(os.Mkdir("/etc/ov", 0o755))
		do(os.WriteFile(file, []byte(socket+"\n"), 0o644))
	}
	// So is a socket in a place that others can write.
	do(os.Chmod("/run/ov-agent", 0o777))
	for _, h := range []*home{deploy, root} {
		h.fails(125, []string{"/run/ov-agent is a directory that others can write"}, show...)
	}
	do(os.Chmod("/run/ov-agent", 0o755))
	deploy.must("", show...)
}

// fails is run for what must end with the code and say these things.
func (h *home) fails(code int, says []string, argv ...string) {
	h.t.Helper()
	r := h.run("", argv...)
	if r.code != code {
		h.t.Errorf("%s: exit code %d, not %d: %s%s", strings.Join(argv, " "), r.code, code, r.stdout, r.stderr)
	}
	for _, text := range says {
		if !strings.Contains(r.stderr, text) {
			h.t.Errorf("%s: %q is not in: %s", strings.Join(argv, " "), text, r.stderr)
		}
	}
}
