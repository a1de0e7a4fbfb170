//go:build systemd && linux

package systemdtest

import (
	"encoding/json"
	"strings"
	"testing"
)

// What docs/SERVER.md has one do on the server, here the same machine.
const (
	serverUnitPath = "/etc/systemd/system/ov-server.service"
	serverData     = "/var/lib/ov-server"
	serverURL      = "https://localhost:8443"
	ownAPIKey      = `sudo ov-server apikey create --name deploy --scope admin`
	login          = `ov auth login --server ` + serverURL + ` --ca /tmp/ca.pem --api-key-stdin`

	// late starts the server long after its clients.
	late = "[Service]\nExecStartPre=+/bin/sleep 8\n"
)

// withServer sets up ov-server by its unit and logs deploy in.
func (s *site) withServer() {
	t := s.t
	t.Helper()
	s.build("../../cmd/ov-server", "/usr/local/bin/ov-server")
	s.put("../../deploy/systemd/ov-server.service", serverUnitPath, 0o644)
	s.put("../../deploy/systemd/ov-server.sysusers", "/etc/sysusers.d/ov-server.conf", 0o644)
	s.must("root", "systemd-sysusers && install -d -o ov-server -g ov-server -m 0700 "+serverData)
	s.must("deploy", "sudo ov-server init --host localhost")
	s.must("root", "systemctl daemon-reload && systemctl enable --now ov-server")
	// Debian's minbase has no kill(1), which ExecReload= names.
	if r := s.run("root", "systemd-analyze verify --man=no ov-server.service"); strings.ReplaceAll(r.out, "ov-server.service: Command /bin/kill is not executable: No such file or directory\n", "") != "" {
		t.Errorf("systemd finds fault with the unit:\n%s", r.out)
	}
	s.must("deploy", "sudo ov-server account create myteam")
	key := s.must("deploy", ownAPIKey+" 2>/dev/null")
	s.must("root", "install -m 644 "+serverData+"/tls/ca.pem /tmp/ca.pem")
	has(t, s.must("deploy", login, key), serverURL)
	if got := s.must("deploy", "stat -c '%a %F' .config/ov/servers.toml"); got != "600 regular file\n" {
		t.Errorf("servers.toml is %s", got)
	}
	s.apiKey = strings.TrimSpace(key)
}

// clientsFirst waits until the service has started while the server has not.
func (s *site) clientsFirst() {
	s.t.Helper()
	s.eventuallyIn(60, "the service and the server are up", func() bool {
		return s.property("myapp", "ActiveState") == "active" && s.property("ov-server", "ActiveState") == "active"
	})
	app, server := s.property("myapp", "ExecMainStartTimestampMonotonic"), s.property("ov-server", "ActiveEnterTimestampMonotonic")
	if len(app) > len(server) || len(app) == len(server) && app >= server {
		s.t.Errorf("the service began at %s, after the server was up at %s", app, server)
	}
	if n := s.property("myapp", "NRestarts"); n != "0" {
		s.t.Errorf("the service was started %s times over", n)
	}
}

// TestGuideOnServer is the guide with the vault on an ov-server: the same
// commands, after one login.
func TestGuideOnServer(t *testing.T) {
	s := newSite(t)
	s.withServer()
	s.migrate()
	if r := s.run("deploy", "ls .local/share/ov/vault.db"); r.code == 0 {
		t.Error("there is a vault in a file as well")
	}
	if got := s.must("root", "stat -c '%U:%G %a %F' /etc/ov/myapp.key.login"); got != "deploy:deploy 600 regular file\n" {
		t.Errorf("the machine key's login is %s", got)
	}
	exposure(t, s.machine, "ov-server.service")

	// From here on the server starts after its clients.
	s.write(serverUnitPath+".d/late.conf", []byte(late), 0o644)
	s.must("deploy", guideRetire)

	t.Run("the server comes later", func(t *testing.T) {
		s.t = t
		s.reboot()
		s.clientsFirst()
		s.running()
		has(t, s.must("root", "journalctl -q --no-pager -b -u myapp"), serverURL)
		s.must("deploy", guideList) // over the agent
	})
	t.Run("nothing is cached", func(t *testing.T) {
		s.t = t
		s.must("root", "systemctl stop myapp ov-agent; rm -rf /home/deploy/.cache/ov /var/cache/ov-agent; sync")
		s.reboot()
		s.clientsFirst()
		s.running()
		s.eventuallyIn(60, "the agent answers", func() bool { return s.run("deploy", guideList).code == 0 })
		// What was read through the agent is what it has when the server is away.
		s.must("deploy", "ov secret get STRIPE_SECRET_KEY --reveal --app myapp --env production >/dev/null")
		s.eventuallyIn(30, "the agent has kept it", func() bool {
			return s.run("root", "find /var/cache -type f -user deploy | grep -q .").code == 0
		})
	})
	t.Run("the server does not come", func(t *testing.T) {
		s.t = t
		s.must("root", "systemctl disable ov-server")
		s.reboot()
		s.eventuallyIn(90, "the service is up", func() bool { return s.property("myapp", "ActiveState") == "active" })
		s.running()
		if got := s.property("ov-server", "ActiveState"); got != "inactive" {
			t.Errorf("the server is %s", got)
		}
		has(t, s.must("root", "journalctl -q --no-pager -b -u myapp"), serverURL)
		var status map[string]any
		if err := json.Unmarshal([]byte(s.must("deploy", "ov agent status --json")), &status); err != nil {
			t.Fatal(err)
		}
		t.Logf("the agent's status: %v", status)
		if r := s.run("deploy", "ov secret set ADDED --app myapp --env production", "not to be queued"); r.code == 0 || !strings.Contains(r.out, "not available") {
			t.Errorf("a write without the server: exit %d\n%s", r.code, r.out)
		}
		s.must("root", "systemctl enable --now ov-server")
		s.eventuallyIn(60, "the agent is back with the server", func() bool {
			s.run("deploy", guideList)
			return !strings.Contains(s.must("deploy", "ov agent status --json"), "away_since")
		})
	})
	t.Run("the machine key is taken back", func(t *testing.T) {
		s.t = t
		var keys []struct {
			Fingerprint string `json:"fingerprint"`
		}
		if err := json.Unmarshal([]byte(s.must("deploy", "ov auth machine-keys --json")), &keys); err != nil {
			t.Fatal(err)
		}
		mustf(t, len(keys) == 1, "%d machine keys", len(keys))
		s.asked("ov auth revoke-machine-key "+keys[0].Fingerprint, ask, s.password)
		s.run("root", "systemctl restart myapp")
		s.eventuallyIn(30, "the service is refused, cache or not", func() bool {
			return strings.Contains(s.must("root", "journalctl -q --no-pager -b -u myapp -n 20"), "revoked")
		})
	})
	s.t = t
	s.noLeaks()
	if strings.Contains(s.must("root", "journalctl --no-pager -q -a; cat /proc/[0-9]*/cmdline; true"), s.apiKey) {
		t.Error("the API key is in the journal or a command line")
	}
	s.onlyCiphertext()
}

// onlyCiphertext looks for values, names and the password in all that the server
// has on disk.
func (s *site) onlyCiphertext() {
	s.t.Helper()
	var words []string
	for name, v := range s.values {
		words = append(words, name)
		for line := range strings.Lines(v) {
			words = append(words, strings.TrimSpace(line))
		}
	}
	words = append(words, s.password)
	out := s.must("root", "cat >/tmp/words; grep -RaF -D skip -f /tmp/words -l "+serverData+"; true", strings.Join(words, "\n"))
	if strings.TrimSpace(out) != "" {
		s.t.Errorf("a name, a value or the password is in the server's files:\n%s", out)
	}
}
