package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/rendezvous"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/xdg"
)

// memory checks that this process may lock what a key needs.
func (d *doctor) memory() {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil || d.sys.UID == 0 || lim.Cur >= minMemlock {
		return
	}
	d.fail("memory", "this shell", "ulimit -l "+strconv.Itoa(8<<10),
		"it may lock %d bytes of memory, and ov needs %d for the key", lim.Cur, minMemlock)
}

// agent checks whether the agent runs, the guide's first question.
func (d *doctor) agent(ctx context.Context, list []*subject) {
	var installed *subject // the agent's unit
	if d.sys.Systemctl != nil {
		u, err := d.sys.show(ctx, agentUnit)
		if err != nil {
			d.note("agent", agentUnit, "systemctl status ov-agent", "%v", err)
		} else {
			installed = d.agentUnit(ctx, u)
		}
	}
	sound := d.rendezvous(installed)
	up := installed == nil || installed.unit.activeState == "active"
	if sound && up {
		d.connect(ctx, installed, list)
	}
	if installed == nil || installed.inv.machineKey == "" {
		return
	}
	for _, s := range list { // whose check says the same
		if s.inv.machineKey == installed.inv.machineKey && s.account.uid == installed.account.uid {
			return
		}
	}
	if session := d.key(ctx, installed); session != nil {
		d.context(ctx, installed, session)
		session.Destroy()
	}
}

// agentUnit checks the unit that ov agent install makes. It returns nil when
// there is none.
func (d *doctor) agentUnit(ctx context.Context, u *unit) *subject {
	s := &subject{name: agentUnit, unit: u}
	for _, c := range u.commands {
		if inv, ok := parseAgent(c); ok {
			s.inv = inv
		}
	}
	var err error
	if s.account, err = d.account(u.user); err != nil {
		s.account = account{name: u.user, uid: -1}
	}
	s.vault, s.vaultErr = d.vaultOf(s, s.account.home, u.environment)
	switch u.loadState {
	case "loaded":
	case "not-found":
		if _, err := os.Lstat(filepath.Join(d.sys.UnitDir, agentUnit)); err == nil {
			d.fail("agent", agentUnit, "sudo systemctl daemon-reload && sudo systemctl enable --now ov-agent", "is installed, and systemd has not loaded it")
		}
		return nil
	case "masked":
		d.fail("agent", agentUnit, "sudo systemctl unmask ov-agent && sudo systemctl enable --now ov-agent", "is masked: it cannot be started")
		return s
	default:
		d.fail("agent", agentUnit, "systemd-analyze verify "+agentUnit, "systemd could not load the unit: %s", u.loadState)
		return s
	}
	if len(u.files) > 0 && !exists(u.files[0]) {
		d.fail("agent", agentUnit, d.install(s), "runs from a unit that is no longer at %s", safefile.Quote(u.files[0]))
	} else if u.needReload {
		d.fail("agent", agentUnit, reload("ov-agent"), "the unit was changed on disk, and systemd still uses what it loaded before")
	}
	switch {
	case u.activeState == "active":
		if u.fileState == "disabled" {
			d.note("agent", agentUnit, "sudo systemctl enable ov-agent", "runs, and will not after a reboot")
		} else {
			d.ok("agent", agentUnit, "is active (%s)", u.subState)
		}
	case u.failed():
		d.fail("agent", agentUnit, restart("ov-agent"), "has failed: %s", d.why(ctx, u))
	default:
		d.fail("agent", agentUnit, "sudo systemctl enable --now ov-agent", "is installed, and is %s (%s)", u.activeState, u.subState)
	}
	return s
}

// install returns the command that installs the agent as it is installed.
func (d *doctor) install(s *subject) string {
	if s == nil || s.inv.machineKey == "" || s.inv.app == "" || s.inv.env == "" || s.account.uid <= 0 {
		return "sudo ov agent uninstall"
	}
	fix := "sudo ov agent install --machine-key " + safefile.Shell(s.inv.machineKey) + " --app " + s.inv.app +
		" --env " + s.inv.env + " --user " + safefile.Shell(s.account.name) + " --enable"
	if s.inv.vault != "" && s.inv.vault != xdg.VaultOf(s.account.home, "") {
		fix += s.vaultFlag()
	}
	return fix
}

// rendezvous checks the file by which clients find the installed agent, and its
// directory. It returns false when clients cannot go by it.
func (d *doctor) rendezvous(installed *subject) bool {
	path := d.sys.Rendezvous
	socket, err := rendezvous.Read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && installed == nil:
		return true
	case err == nil && installed == nil && d.sys.Systemctl != nil:
		d.note("agent", path, "sudo ov agent uninstall", "names the socket %s, and no agent is installed", safefile.Quote(socket))
		return true
	case errors.Is(err, fs.ErrNotExist):
		d.fail("agent", path, d.install(installed), "does not exist, so clients do not find the installed agent")
		return false
	case err != nil:
		d.failErr("agent", path, err, d.install(installed))
		return false
	case installed != nil && installed.inv.socket != "" && installed.inv.socket != socket:
		d.fail("agent", path, d.install(installed), "names the socket %s, and the installed agent listens at %s", safefile.Quote(socket), safefile.Quote(installed.inv.socket))
		return false
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm() != 0o755 {
		d.fail("agent", dir, "sudo chmod 755 "+safefile.Shell(dir), "has mode %04o, it must be 0755 for clients to find the agent", info.Mode().Perm())
		return false
	}
	d.ok("agent", path, "names the socket %s", safefile.Quote(socket))
	return true
}

// connect asks the agent how it is.
func (d *doctor) connect(ctx context.Context, installed *subject, list []*subject) {
	target, err := d.sys.Locate()
	if err == nil {
		d.client, err = agent.Connect(ctx, target)
	}
	if err == nil {
		d.status, err = d.client.Status(ctx)
	}
	subject := "agent"
	if target.Socket != "" {
		subject = "agent at " + safefile.Quote(target.Socket)
	}
	none, other := (*peer.NotRunning)(nil), (*peer.OtherAccount)(nil)
	switch {
	case errors.As(err, &other), errors.As(err, &none) && none.Other != "":
		d.note("agent", "agent", "ov agent start", "%v", err)
		return
	case errors.As(err, &none) && installed != nil:
		d.fail("agent", subject, restart("ov-agent"), "%s is active, but %v", agentUnit, err)
		return
	case errors.As(err, &none) && none.Source == peer.FromRendezvous:
		d.fail("agent", subject, "sudo ov agent uninstall", "%v, and none is installed", err)
		return
	case errors.As(err, &none):
		why := "ov asks for the password each time"
		if len(list) > 0 {
			why = "a service with a machine key needs none"
		}
		d.note("agent", "agent", "ov agent start", "%v: %s", err, why)
		return
	case err != nil:
		d.failErr("agent", subject, err, "ov agent status")
		return
	}
	st := d.status
	system := installed != nil && target.Source != peer.FromRuntimeDir
	switch {
	case !st.Unlocked && system:
		d.fail("agent", subject, "sudo systemctl restart ov-agent", "is locked: %s", st.LockedBecause)
	case !st.Unlocked && len(list) > 0:
		d.note("agent", subject, "ov agent unlock", "is locked: %s", st.LockedBecause)
	case !st.Unlocked:
		d.fail("agent", subject, "ov agent unlock", "is locked: %s", st.LockedBecause)
	default:
		d.ok("agent", subject, "is unlocked, with the vault %s", safefile.Quote(st.Vault))
	}
	if far := st.Server; far != nil && far.AwaySince != nil {
		since := far.AwaySince.Local().Format(time.DateTime)
		if far.AsOf != nil {
			d.note("agent", subject, "ov agent status", "cannot reach its server since %s, and serves what that said at %s: %s",
				since, far.AsOf.Local().Format(time.DateTime), far.AwayBecause)
		} else {
			d.fail("agent", subject, "ov agent status", "cannot reach its server since %s: %s", since, far.AwayBecause)
		}
	}
	if d.opt.Version != "" && st.Version != d.opt.Version {
		fix := "ov agent stop && ov agent start"
		if system {
			fix = "sudo systemctl restart ov-agent"
		}
		d.note("agent", subject, fix, "is version %s, and this ov is %s", st.Version, d.opt.Version)
	}
	for _, s := range list {
		if s.vault != "" && s.vault != st.Vault && d.agentServes(s.account) && system {
			d.note("agent", subject, d.install(installed), "has another vault than %s, which reads %s", s.name, safefile.Quote(s.vault))
		}
	}
}

// agentServes tells whether the agent that was found answers the account: its
// own and root.
func (d *doctor) agentServes(a account) bool {
	return d.client != nil && (a.uid == 0 || a.uid == d.sys.UID)
}
