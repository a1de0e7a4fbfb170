package doctor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opaquevault/ov/pkg/safefile"
)

// minMemlock is the locked memory that ov run needs, in bytes: a few pages for
// the key and for each value while it is decrypted.
const minMemlock = 64 << 10

// service looks at one service, in the guide's order.
func (d *doctor) service(ctx context.Context, s *subject) {
	if s.unit != nil && !d.loaded(s) {
		return
	}
	d.fillContext(s)
	d.agrees(s)
	if s.inv.machineKey != "" {
		if session := d.key(ctx, s); session != nil {
			d.context(ctx, s, session)
			session.Destroy()
		}
	} else if s.runs {
		d.noKey(ctx, s)
	}
	d.reload(s)
	d.envFiles(s)
	d.state(ctx, s)
}

// loaded checks that systemd could load the unit, and that it is one of ov's.
func (d *doctor) loaded(s *subject) bool {
	q := safefile.Shell(s.name)
	switch s.unit.loadState {
	case "loaded":
	case "not-found":
		d.fail("service", s.name, "sudo systemctl daemon-reload && systemctl cat "+q, "systemd knows no such unit")
		return false
	case "masked":
		d.fail("service", s.name, "sudo systemctl unmask "+q, "the unit is masked: it cannot be started")
		return false
	default:
		d.fail("service", s.name, "systemd-analyze verify "+q, "systemd could not load the unit: %s", s.unit.loadState)
		return false
	}
	if !s.runs && !s.unit.needReload {
		s.failures++
		d.fail("service", s.name, editUnit(s.name), "its ExecStart= does not start with ov run: it gets nothing from the vault")
	}
	if s.runs && s.inv.path != "" {
		if _, err := os.Stat(s.inv.path); absent(err) {
			s.failures++
			own, _ := os.Executable()
			d.fail("service", s.name, "sudo install -m 755 "+safefile.Shell(own)+" "+safefile.Shell(s.inv.path),
				"it is started by %s, which does not exist", safefile.Quote(s.inv.path))
		}
	}
	if n, err := strconv.ParseUint(s.unit.memlock, 10, 64); err == nil && n < minMemlock && s.account.uid != 0 {
		s.failures++
		dir := "/etc/systemd/system/" + s.name + ".d"
		d.fail("memory", s.name, fmt.Sprintf("sudo mkdir -p %s && printf '[Service]\\nLimitMEMLOCK=8M\\n' | sudo tee %s && %s",
			safefile.Shell(dir), safefile.Shell(dir+"/ov-memlock.conf"), reload(s.name)),
			"it may lock %d bytes of memory, and ov needs %d for the key", n, minMemlock)
	}
	return true
}

// noKey is for a service whose ov run has no --machine-key: it depends on an
// agent.
func (d *doctor) noKey(ctx context.Context, s *subject) {
	if d.client != nil && d.status.Unlocked && d.agentServes(s.account) {
		d.note("key", s.name, editUnit(s.name), "it has no --machine-key, and starts only while an agent is unlocked")
		if d.sys.UID == s.account.uid || d.sys.UID == 0 {
			d.context(ctx, s, d.client)
		}
		return
	}
	s.failures++
	key := "/etc/ov/" + s.inv.app + ".key"
	s.inv.machineKey = key
	d.fail("key", s.name, d.makeKey(s, s.account, key, "")+" && "+editUnit(s.name),
		"it has no --machine-key and there is no unlocked agent for it: at boot nobody is there to type the password; put --machine-key %s into its ExecStart=", key)
	s.inv.machineKey = ""
	d.vault(ctx, s)
}

// state says whether the service runs, and how it ended if it does not.
func (d *doctor) state(ctx context.Context, s *subject) {
	if s.unit == nil {
		return
	}
	u := s.unit
	switch {
	case u.activeState == "active":
		d.ok("service", s.name, "is active (%s)", u.subState)
	case u.failed():
		fix := restart(s.name)
		if s.failures == 0 && u.programFailed() {
			fix = "journalctl -u " + safefile.Shell(s.name) + " -n 50" // not ov's affair
		}
		s.failures++
		d.fail("service", s.name, fix, "has failed: %s", d.why(ctx, u))
	default:
		d.note("service", s.name, "sudo systemctl start "+safefile.Shell(s.name), "is %s (%s)", u.activeState, u.subState)
	}
}

// why says how a unit ended.
func (d *doctor) why(ctx context.Context, u *unit) string {
	text := u.result
	switch {
	case u.result == "resources":
		text = "systemd could not set it up, as when an EnvironmentFile= is missing"
	case u.result != "exit-code" && u.result != "start-limit-hit":
	case u.mainStatus == "125":
		text = "ov itself failed (125)"
	case u.mainStatus == "126":
		text = "ov could not execute the program (126)"
	case u.mainStatus == "127":
		text = "ov did not find the program (127)"
	case u.mainStatus == "203":
		text = "systemd could not execute the program (203)"
	case len(u.mainStatus) == 3 && u.mainStatus[0] == '2': // systemd.exec(5), "Process Exit Codes"
		text = "systemd could not set it up (" + u.mainStatus + ")"
	case u.mainStatus != "" && u.mainStatus != "0":
		text = "its exit code was " + u.mainStatus
	}
	if said := d.said(ctx, u); said != "" {
		text += "; the journal has: " + said
	}
	return text
}

// said returns the last line that ov or ov-agent itself wrote to the journal for
// the unit's last run. What the service's own program wrote may hold secrets.
func (d *doctor) said(ctx context.Context, u *unit) string {
	if d.sys.Journalctl == nil || len(u.invocation) != 32 || strings.Trim(u.invocation, "0123456789abcdef") != "" {
		return ""
	}
	out, err := d.sys.Journalctl(ctx, "--no-pager", "--quiet", "--output=cat", "--lines=50", "_SYSTEMD_INVOCATION_ID="+u.invocation)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "ov: ") || strings.HasPrefix(line, "ov-agent: ") {
			last = line
		}
	}
	if len(last) > 400 {
		last = last[:400] + "…"
	}
	return last
}
