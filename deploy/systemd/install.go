package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/rendezvous"
	"github.com/opaquevault/ov/pkg/safefile"
)

// Install checks p against this machine and then, as root, writes the unit and
// the rendezvous file, whose directory becomes root's (0755). With enable the
// agent is started, now and at each boot; one that runs from a unit that has
// changed is started anew. out gets a line for each thing done. Nothing is
// written when a check fails, and what is there already stays as it is.
func Install(out io.Writer, p Params, enable bool) error {
	if err := preflight(p); err != nil {
		return err
	}
	if enable && !running() {
		return hint.Errorf("leave out --enable to write the files only",
			"systemd is not running on this machine")
	}
	unit, err := Render(p)
	if err != nil {
		return err
	}
	if err := rendezvous.Write(rendezvous.Path, Socket); err != nil {
		return err
	}
	say(out, "%s: root's, mode 0755", filepath.Dir(rendezvous.Path))
	say(out, "%s: names the agent's socket %s", rendezvous.Path, Socket)
	say(out, "%s: %s's, mode 0600, as it was", safefile.Quote(p.MachineKey), p.User)
	changed, err := writeUnit(out, unit)
	if err != nil {
		return err
	}
	if !enable {
		say(out, "next: sudo systemctl daemon-reload && sudo systemctl enable --now ov-agent")
		return nil
	}
	return start(out, changed)
}

func say(out io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }

// running tells whether systemd is this machine's init, as sd_booted(3) does.
func running() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// preflight looks at what the unit will name, and changes nothing.
func preflight(p Params) error {
	if err := p.Check(); err != nil {
		return err
	}
	_, uid, err := Account(p.User)
	if err != nil {
		return err
	}
	if err := checkAgent(p.Agent); err != nil {
		return err
	}
	if err := machinekey.Check(p.MachineKey, uid); err != nil {
		return err
	}
	if p.onServer() {
		return checkLogin(p, uid)
	}
	return checkVault(p, uid)
}

// checkLogin wants the machine key to have its own login, and that to be the
// service account's alone: the agent cannot see the account's home.
func checkLogin(p Params, uid int) error {
	path := login.Companion(p.MachineKey)
	mend := "make them anew: sudo -u " + p.User + " -H ov auth derive-machine-key --vault " + safefile.Shell(p.Vault) +
		" --app " + p.App + " --env " + p.Env + " --force --out " + safefile.Shell(p.MachineKey)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return hint.Errorf(mend, "the machine key %s has no login for %s: %s is not there",
			safefile.Quote(p.MachineKey), p.Vault, safefile.Quote(path))
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 || ownerOf(info) != uid:
		return hint.Errorf(mend, "%s must be a file of %s's, mode 0600", safefile.Quote(path), p.User)
	}
	return nil
}

// Account looks a service account up in the passwd file. It refuses uid 0, by
// whatever name.
func Account(name string) (u *user.User, uid int, err error) {
	u, err = user.Lookup(name)
	if err != nil {
		return nil, 0, hint.Errorf("name the account that your service runs as, or make it: sudo useradd --create-home NAME",
			"there is no user %q on this machine", name)
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return nil, 0, fmt.Errorf("user %q has no numeric uid: %w", name, err)
	}
	if uid == 0 {
		return nil, 0, hint.Errorf("name the account that your service runs as: --user NAME",
			"the agent must not run as root")
	}
	return u, uid, nil
}

// checkAgent refuses an agent that the sandbox would hide, or in whose place
// someone other than root could put another.
func checkAgent(path string) error {
	mend := "sudo install -m 0755 " + safefile.Shell(path) + " /usr/local/bin/, and the ov beside it too"
	if hidden(path) {
		return hint.Errorf(mend, "%s is where the agent's sandbox hides it", safefile.Quote(path))
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return hint.Wrap(err, mend)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return hint.Errorf(mend, "%s is not an executable file", safefile.Quote(path))
	case ownerOf(info) != 0 || info.Mode()&0o022 != 0:
		return hint.Errorf(mend, "%s can be altered by others than root", safefile.Quote(path))
	}
	return nil
}

// checkVault wants the vault and its directory to be the service account's: the
// agent writes there.
func checkVault(p Params, uid int) error {
	for _, path := range []string{p.Vault, filepath.Dir(p.Vault)} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			mend := "make it: sudo -u " + p.User + " -H ov auth init; or name another: --vault FILE"
			return hint.Errorf(mend, "user %s has no vault at %s", p.User, safefile.Quote(p.Vault))
		}
		if err != nil {
			return err
		}
		if owner := ownerOf(info); owner != uid {
			return hint.Errorf("name a vault that is "+p.User+"'s: --vault FILE",
				"%s is owned by %s, not by %s", safefile.Quote(path), safefile.User(owner), p.User)
		}
	}
	return nil
}

func ownerOf(info fs.FileInfo) (uid int) { return int(info.Sys().(*syscall.Stat_t).Uid) }

// writeUnit puts the unit in its place in one step, and tells whether another
// or none was there.
func writeUnit(out io.Writer, unit []byte) (changed bool, err error) {
	old, err := os.ReadFile(UnitPath)
	switch {
	case err == nil && bytes.Equal(old, unit):
		say(out, "%s: as it was", UnitPath)
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	done := "written"
	if err == nil {
		done = "replaced, it was another"
	}
	dir, err := safefile.OpenDir(filepath.Dir(UnitPath), safefile.Policy{})
	if err != nil {
		return false, err
	}
	defer func() { _ = dir.Close() }()
	if dir.Fault != nil {
		return false, dir.Fault
	}
	if err := dir.Write(UnitName, unit, safefile.Attr{Perm: 0o644, Replace: true}); err != nil {
		return false, err
	}
	say(out, "%s: %s", UnitPath, done)
	return true, nil
}

func systemctl(args ...string) error {
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

const mendStart = "see why: journalctl -u ov-agent -n 20"

func start(out io.Writer, changed bool) error {
	was := systemctl("is-active", "--quiet", UnitName) == nil
	if err := systemctl("daemon-reload"); err != nil {
		return err
	}
	if err := systemctl("enable", "--now", UnitName); err != nil {
		return hint.Wrap(err, mendStart)
	}
	done := "runs, and will at each boot"
	if was && changed {
		if err := systemctl("restart", UnitName); err != nil {
			return hint.Wrap(err, mendStart)
		}
		done = "runs anew, from the new unit"
	}
	say(out, "%s: %s", UnitName, done)
	return nil
}

// Uninstall stops the agent and removes what Install wrote. Machine keys and
// vaults stay. It is no error if nothing is installed.
func Uninstall(out io.Writer) error {
	_, err := os.Lstat(UnitPath)
	installed := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if installed && running() {
		if err := systemctl("disable", "--now", UnitName); err != nil {
			return err
		}
		say(out, "%s: stopped, and will not start at boot", UnitName)
	}
	if err := rendezvous.Remove(rendezvous.Path); err != nil {
		return err
	}
	say(out, "%s: removed", rendezvous.Path)
	if installed {
		if err := os.Remove(UnitPath); err != nil {
			return err
		}
		say(out, "%s: removed", UnitPath)
		if running() {
			if err := systemctl("daemon-reload"); err != nil {
				return err
			}
		}
	}
	say(out, "machine keys and vaults are as they were")
	return nil
}
