//go:build systemd && linux

package systemdtest

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/opaquevault/ov/deploy/systemd"
)

// exposureMax is the bound on what systemd-analyze security says.
const exposureMax = 1.5

type report struct {
	Args []string
	UID  int
	Core uint64
	Can  map[string]string
	Peer map[string]string
}

// TestSandbox runs a probe in the agent's place: the unit lets the agent do its
// work and little else, and paths reach the program as they were given.
func TestSandbox(t *testing.T) {
	m := boot(t)
	const agent, odd = "/usr/local/bin/ov-agent", `/home/deploy/a "vault" of 100%n $HOME \x41 : ;'é`
	m.build("./testdata/probe", agent)
	m.must("root", "install -d -m 0755 /etc/ov; head -c 32 /dev/urandom >/etc/ov/myapp.key; chown deploy: /etc/ov/myapp.key; chmod 600 /etc/ov/myapp.key")

	for name, p := range map[string]systemd.Params{
		"default":        {Vault: "/home/deploy/.local/share/ov/vault.db", MachineKey: "/etc/ov/myapp.key"},
		"odd characters": {Vault: odd + "/vault.db", MachineKey: odd + "/the key"},
		"outside home":   {Vault: "/srv/ov/vault.db", MachineKey: "/etc/ov/myapp.key"},
	} {
		p.Agent, p.App, p.Env, p.User = agent, "myapp", "production", "deploy"
		t.Run(name, func(t *testing.T) {
			m.t = t
			dir := strings.TrimSuffix(p.Vault, "/vault.db")
			m.must("root", `d="$(cat)"; install -d -o deploy -g deploy "$d" && install -m 600 -o deploy -g deploy /etc/ov/myapp.key "$d/the key"`, dir)
			unit, err := systemd.Render(p)
			if err != nil {
				t.Fatal(err)
			}
			m.write(systemd.UnitPath, unit, 0o644)
			m.must("root", "systemctl daemon-reload && systemctl restart ov-agent && systemd-analyze verify --man=no ov-agent.service")

			var r report
			if err := json.Unmarshal([]byte(m.must("deploy", agent+" call "+systemd.Socket)), &r); err != nil {
				t.Fatal(err)
			}
			want := []string{"--foreground", "--socket", systemd.Socket, "--vault", p.Vault,
				"--machine-key", p.MachineKey, "--app", p.App, "--env", p.Env}
			if strings.Join(r.Args, "\x00") != strings.Join(want, "\x00") {
				t.Errorf("the agent got the arguments\n%q, not\n%q", r.Args, want)
			}
			for _, name := range []string{"memfd_secret", "mlock", "lower RLIMIT_CORE", "child of itself", "read the key",
				"write the vault", "rename beside vault", "flock beside vault", "flock beside socket"} {
				if e, tried := r.Can[name]; !tried || e != "" {
					t.Errorf("the sandbox breaks the agent's work: %s: %q", name, e)
				}
				delete(r.Can, name)
			}
			for name, e := range r.Can {
				if e == "" {
					t.Errorf("the sandbox lets the agent do what it has no need of: %s", name)
				}
			}
			if len(r.Can) < 10 {
				t.Errorf("the probe tried only %d forbidden things", len(r.Can))
			}
			if r.Peer["exe"] != agent { // the unit's reason for PrivateUsers=no
				t.Errorf("the agent cannot tell its caller's executable: %q", r.Peer["exe"])
			}
			if r.Core != 0 {
				t.Errorf("core dumps of %d bytes", r.Core)
			}
		})
	}
	m.t = t
	socket := m.must("root", "stat -c '%U %a' /run/ov-agent "+systemd.Socket)
	if socket != "deploy 755\ndeploy 600\n" {
		t.Errorf("the socket and its directory are %q", socket)
	}
	for name, line := range map[string]string{
		"own uid, undumpable": agent + " call " + systemd.Socket + " undumpable",
		"root":                "sudo " + agent + " call " + systemd.Socket,
	} {
		var r report
		if err := json.Unmarshal([]byte(m.must("deploy", line)), &r); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"cgroup", "stat", "pidfd"} {
			if strings.HasPrefix(r.Peer[f], "error") || (f == "pidfd" && r.Peer[f] != "") {
				t.Errorf("%s: the agent cannot read its caller's %s: %q", name, f, r.Peer)
			}
		}
		t.Logf("%s: exe %q", name, r.Peer["exe"])
	}
	exposure(t, m, "ov-agent.service")
}

// exposure prints and bounds the figure of systemd-analyze security, by the
// tool's own threshold too.
func exposure(t *testing.T, m *machine, unit string) {
	t.Helper()
	out := m.must("root", "systemd-analyze --no-pager security "+unit)
	found := regexp.MustCompile(`Overall exposure level for ` + regexp.QuoteMeta(unit) + `: ([0-9.]+)`).FindStringSubmatch(out)
	mustf(t, found != nil, "no exposure level in:\n%s", out)
	level, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("exposure of %s: %.1f (at most %.1f)", unit, level, exposureMax)
	if level > exposureMax {
		t.Errorf("exposure %.1f is above %.1f", level, exposureMax)
	}
	// --threshold= is in tenths.
	m.must("root", "systemd-analyze --no-pager security --threshold="+strconv.Itoa(exposureMax*10)+" "+unit+" >/dev/null")
}
