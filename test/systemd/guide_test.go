//go:build systemd && linux

package systemdtest

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opaquevault/ov/deploy/systemd"
)

// The commands of the migration guide, as printed there.
const (
	guideImport  = `ov secret import /opt/myapp/.env.production --app myapp --env production`
	guideList    = `ov secret list --app myapp --env production`
	guideEtc     = `sudo install -d -o $USER -g $USER -m 700 /etc/ov`
	guideDerive  = `ov auth derive-machine-key --out /etc/ov/myapp.key`
	guideInstall = `sudo ov agent install \
  --machine-key /etc/ov/myapp.key \
  --app myapp --env production \
  --user $USER --enable`
	guideStop = `sudo systemctl stop myapp`
	guideRun  = `ov run --app myapp --env production \
  --machine-key /etc/ov/myapp.key \
  --secrets DATABASE_URL,STRIPE_SECRET_KEY \
  -- /opt/myapp/bin/server`
	guideUnit = `ExecStart=/usr/local/bin/ov run \
  --app myapp --env production \
  --machine-key /etc/ov/myapp.key \
  --secrets DATABASE_URL,STRIPE_SECRET_KEY \
  -- /opt/myapp/bin/server
`
	guideReload  = `sudo systemctl daemon-reload`
	guideStart   = `sudo systemctl start myapp`
	guideReboot  = `sudo reboot`
	guideStatus  = `systemctl status myapp`
	guideJournal = `journalctl -u myapp -n 50`
	guideRetire  = `sudo mv /opt/myapp/.env.production /opt/myapp/.env.production.bak`

	guideChange   = `ov auth change-password`
	guideRederive = `ov auth derive-machine-key --force --out /etc/ov/myapp.key`
)

const (
	unitPath = "/etc/systemd/system/myapp.service"
	// unitBefore runs the service as it was before the guide.
	unitHead = `[Unit]
Description=myapp

[Service]
Type=notify
User=deploy
`
	unitTail = `
[Install]
WantedBy=multi-user.target
`
	unitBefore = unitHead + `ExecStart=/opt/myapp/bin/server
EnvironmentFile=/opt/myapp/.env.production
` + unitTail
	unitAfter = unitHead + guideUnit + unitTail
)

// A site is a machine with the service of the guide, and what is secret there.
type site struct {
	*machine
	password string
	values   map[string]string // name to value, in .env.production
	apiKey   string            // of an ov-server, if there is one
}

// newSite boots a machine on which the service runs with its .env file.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{machine: boot(t), password: "correct horse " + rand.Text(), values: map[string]string{
		"DATABASE_URL":      "postgres://app:" + rand.Text() + "@db.internal:5432/app?sslmode=require",
		"STRIPE_SECRET_KEY": "stripe-" + rand.Text(),
		"SMTP_PASSWORD":     rand.Text() + ` $HOME #1 "x"`,
		"TLS_PRIVATE":       "-- first line " + rand.Text() + "\nsecond line",
	}}
	s.build("../../cmd/ov", "/usr/local/bin/ov")
	s.build("../../cmd/ov-agent", "/usr/local/bin/ov-agent")
	s.build("./testdata/server", "/opt/myapp/bin/server")
	env := fmt.Sprintf("# secrets of myapp\nDATABASE_URL=%s\nSTRIPE_SECRET_KEY=\"%s\"\n\nSMTP_PASSWORD='%s'\nTLS_PRIVATE=\"%s\"\n",
		s.values["DATABASE_URL"], s.values["STRIPE_SECRET_KEY"], s.values["SMTP_PASSWORD"], s.values["TLS_PRIVATE"])
	s.write("/opt/myapp/.env.production", []byte(env), 0o600)
	s.write(unitPath, []byte(unitBefore), 0o644)
	s.must("root", "chown deploy: /opt/myapp/.env.production; usermod -aG adm deploy; systemctl enable --now myapp")
	return s
}

// serves asks the service what it has: each of the names with its true value.
func (s *site) serves(names ...string) string {
	s.t.Helper()
	out := s.must("deploy", `exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3`)
	for _, name := range names {
		has(s.t, out, fmt.Sprintf("%s=sha256:%x\n", name, sha256.Sum256([]byte(s.values[name]))))
	}
	return out
}

// running asserts what the guide expects after a reboot.
func (s *site) running() {
	s.t.Helper()
	has(s.t, s.must("deploy", guideStatus), "Active: active (running)")
	has(s.t, s.must("deploy", guideJournal), "server started with")
	out := s.serves("DATABASE_URL", "STRIPE_SECRET_KEY")
	has(s.t, out, "pid "+s.property("myapp", "MainPID")+"\n", `args ["/opt/myapp/bin/server"]`)
	hasNot(s.t, out, "SMTP_PASSWORD", "TLS_PRIVATE", "OV_", "/etc/ov")
}

// The prompts of ov, each followed by what the test types.
const (
	ask      = "Master password: "
	askNew   = "New master password: "
	askAgain = "The same again: "
)

// prompted runs a line on a terminal, where it asks and is answered: prompt,
// answer, prompt, answer.
func (s *site) prompted(line string, dialogue ...string) result {
	s.t.Helper()
	tt := s.terminal("deploy", line)
	for i := 0; i < len(dialogue); i += 2 {
		tt.expect(dialogue[i])
		tt.send(dialogue[i+1] + "\n")
	}
	r := tt.wait()
	for i := 0; i < len(dialogue); i += 2 {
		hasNot(s.t, r.out, dialogue[i+1]) // no echo
	}
	return r
}

// asked is prompted for what has to succeed.
func (s *site) asked(line string, dialogue ...string) string {
	s.t.Helper()
	r := s.prompted(line, dialogue...)
	if r.code != 0 {
		s.t.Fatalf("%s: exit %d\n%s", line, r.code, r.out)
	}
	return r.out
}

// noLeaks looks for the values in what systemd logged and shows to everyone.
func (s *site) noLeaks() {
	s.t.Helper()
	out, err := s.enter("sh", "-c", "journalctl --no-pager -q -a && systemctl show myapp ov-agent && { cat /proc/[0-9]*/cmdline; true; }").Output()
	seen := string(out)
	mustf(s.t, err == nil && strings.Contains(seen, "server started with"), "cannot read the journal: %v", err)
	for name, v := range s.values {
		for part := range strings.Lines(v) {
			if strings.Contains(seen, strings.TrimSpace(part)) {
				s.t.Errorf("the value of %s is in the journal, a unit's properties or a command line", name)
			}
		}
	}
	if strings.Contains(seen, s.password) {
		s.t.Error("the master password is in the journal, a unit's properties or a command line")
	}
}

// migrate runs steps 1 to 4 of the guide.
func (s *site) migrate() {
	t := s.t
	t.Helper()
	s.serves("DATABASE_URL", "STRIPE_SECRET_KEY", "SMTP_PASSWORD", "TLS_PRIVATE")
	s.asked("ov auth init", askNew, s.password, askAgain, s.password)

	// 1. Import. 2. Verify.
	out := s.asked(guideImport, ask, s.password)
	has(t, out, "Imported 4/4 secret(s) into myapp/production")
	for name := range s.values {
		has(t, out, name)
	}
	if n := strings.Count(out, "✓"); n != 4 {
		t.Errorf("%d lines with a tick, not 4", n)
	}
	out = s.asked(guideList, ask, s.password)
	for name, v := range s.values {
		has(t, out, name)
		hasNot(t, out, v)
	}

	// 3. Setup.
	s.must("deploy", guideEtc)
	s.asked(guideDerive, ask, s.password)
	s.must("deploy", guideInstall)
	for path, want := range map[string]string{ // the guide's table
		"/etc/ov":              "root:root 755 directory",
		"/etc/ov/agent.socket": "root:root 644 regular file",
		"/etc/ov/myapp.key":    "deploy:deploy 600 regular file",
		systemd.UnitPath:       "root:root 644 regular file",
	} {
		if got := strings.TrimSpace(s.must("root", "stat -c '%U:%G %a %F' "+path)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if size := s.must("root", "stat -c %s /etc/ov/myapp.key"); size != "32\n" {
		t.Errorf("the machine key has %s bytes", size)
	}
	if got := s.read("/etc/ov/agent.socket"); got != systemd.Socket+"\n" {
		t.Errorf("the rendezvous file holds %q", got)
	}
	has(t, s.must("deploy", "systemctl status ov-agent"), "Active: active (running)")
	if got := s.property("ov-agent", "UnitFileState"); got != "enabled" {
		t.Errorf("ov-agent.service is %s", got)
	}

	// 4. Cut over.
	s.must("deploy", guideStop)
	tt := s.terminal("deploy", guideRun)
	tt.expect("server started with")
	hasNot(t, s.serves("DATABASE_URL", "STRIPE_SECRET_KEY"), "SMTP_PASSWORD", "OV_")
	tt.send("\x03")
	tt.expect("server stops: interrupt")
	if r := tt.wait(); r.code != 0 {
		t.Errorf("after Ctrl-C: exit %d", r.code)
	}
	s.write(unitPath, []byte(unitAfter), 0o644)
	s.must("deploy", guideReload)
	s.must("deploy", guideStart)
	s.running()
}

// reboot is step 5: the machine goes down and comes back up.
func (s *site) reboot() {
	s.t.Helper()
	before := s.must("root", "cat /proc/sys/kernel/random/boot_id; journalctl --list-boots -q | wc -l")
	s.run("deploy", guideReboot) // the answer may be lost on the way down
	s.rebooted()
	if after := s.must("root", "cat /proc/sys/kernel/random/boot_id; journalctl --list-boots -q | wc -l"); after == before {
		s.t.Errorf("the machine did not reboot: boot id and count of boots are still %q", after)
	}
}

func TestGuide(t *testing.T) {
	s := newSite(t)
	s.migrate()

	// 5. Reboot-test.
	s.reboot()
	s.running()

	// 6. Retire the .env file. From here on nothing can come from it.
	s.must("deploy", guideRetire)
	s.reboot()
	s.running()
	hasNot(t, s.property("myapp", "EnvironmentFiles"), ".env")
	if r := s.run("root", "ls /opt/myapp/.env.production"); r.code == 0 {
		t.Error("the .env file is still there")
	}
	has(t, s.must("deploy", "systemctl status ov-agent"), "Active: active (running)")
	s.must("deploy", guideList) // over the agent: no prompt
	exposure(t, s.machine, "ov-agent.service")
	s.noLeaks()

	t.Run("power cut", func(t *testing.T) {
		s.t = t
		s.powerCut()
		s.bootUp()
		s.running()
		s.must("deploy", guideList)
	})
	t.Run("watchdog", func(t *testing.T) {
		s.t = t
		pid := s.property("ov-agent", "MainPID")
		s.must("root", "kill -STOP "+pid)
		s.eventuallyIn(60, "systemd has replaced an agent that hangs", func() bool {
			now := s.property("ov-agent", "MainPID")
			return now != pid && now != "0" && s.property("ov-agent", "SubState") == "running"
		})
		out := s.must("root", "journalctl -q --no-pager -b -u ov-agent")
		has(t, out, "Watchdog timeout")
		hasNot(t, out, "goroutine ")
		s.must("deploy", guideList)
	})
	t.Run("agent writes", func(t *testing.T) {
		s.t = t
		s.must("deploy", "ov secret set ADDED --app myapp --env production", "through the agent")
		has(t, s.must("deploy", "ov secret get ADDED --reveal --app myapp --env production"), "through the agent")
	})
	t.Run("install twice", func(t *testing.T) {
		s.t = t
		pid := s.property("ov-agent", "MainPID")
		has(t, s.must("deploy", guideInstall), "as it was")
		if now := s.property("ov-agent", "MainPID"); now != pid {
			t.Errorf("installing what is there replaced the agent %s with %s", pid, now)
		}
		s.must("root", "sed -i s/WatchdogSec=30/WatchdogSec=99/ "+systemd.UnitPath)
		has(t, s.must("deploy", guideInstall), "replaced", "runs anew")
		hasNot(t, s.read(systemd.UnitPath), "WatchdogSec=99")
		if now := s.property("ov-agent", "MainPID"); now == pid {
			t.Error("the agent still runs from the unit that was replaced")
		}
	})
	t.Run("uninstall", func(t *testing.T) {
		s.t = t
		s.must("deploy", "sudo ov agent uninstall")
		if got := s.property("ov-agent", "LoadState"); got != "not-found" {
			t.Errorf("ov-agent.service is still %s", got)
		}
		for path, want := range map[string]int{systemd.UnitPath: 1, "/etc/ov/agent.socket": 1, "/etc/ov/myapp.key": 0,
			"/home/deploy/.local/share/ov/vault.db": 0} {
			if got := s.run("root", "test -e "+path).code; got != want {
				t.Errorf("after uninstall, test -e %s says %d", path, got)
			}
		}
		s.must("root", "systemctl restart myapp") // which needs no agent
		s.running()
		s.must("deploy", "sudo ov agent uninstall") // once more is no error
	})
	s.t = t
	s.noLeaks()
}

// What "ov agent install" refuses, it refuses before it writes anything.
func TestInstallRefuses(t *testing.T) {
	s := newSite(t)
	s.asked("ov auth init", askNew, s.password, askAgain, s.password)
	s.must("deploy", guideEtc)
	s.asked(guideDerive, ask, s.password)
	const rest = " --app myapp --env production"
	for name, c := range map[string]struct{ before, line, say string }{
		"not root":       {"", "ov agent install --machine-key /etc/ov/myapp.key --user deploy" + rest, "sudo ov agent install"},
		"user root":      {"", "sudo ov agent install --machine-key /etc/ov/myapp.key --user root" + rest, "must not run as root"},
		"user uid 0":     {"sudo useradd -o -u 0 toor", "sudo ov agent install --machine-key /etc/ov/myapp.key --user toor" + rest, "must not run as root"},
		"no such user":   {"", "sudo ov agent install --machine-key /etc/ov/myapp.key --user nosuch" + rest, `no user "nosuch"`},
		"no user":        {"", "sudo ov agent install --machine-key /etc/ov/myapp.key" + rest, "--user"},
		"no app":         {"", "sudo ov agent install --machine-key /etc/ov/myapp.key --user deploy --env production", "app"},
		"app not a slug": {"", "sudo ov agent install --machine-key /etc/ov/myapp.key --user deploy --app My_App --env production", "not a slug"},
		"no key":         {"", "sudo ov agent install --machine-key /etc/ov/nosuch.key --user deploy" + rest, "ov auth derive-machine-key"},
		"key of another": {"sudo install -m 600 /etc/ov/myapp.key /etc/ov/root.key", "sudo ov agent install --machine-key /etc/ov/root.key --user deploy" + rest, "owned by root"},
		"key mode":       {"install -m 644 /etc/ov/myapp.key /etc/ov/open.key", "sudo ov agent install --machine-key /etc/ov/open.key --user deploy" + rest, "chmod 600"},
		"no vault":       {"", "sudo ov agent install --vault /srv/vault.db --machine-key /etc/ov/myapp.key --user deploy" + rest, "ov auth init"},
		"vault of another": {"sudo install -m 600 /home/deploy/.local/share/ov/vault.db /srv/vault.db",
			"sudo ov agent install --vault /srv/vault.db --machine-key /etc/ov/myapp.key --user deploy" + rest, "owned by root"},
		"agent others can alter": {"sudo cp -r /usr/local/bin /opt/bin; sudo chown deploy /opt/bin/ov-agent",
			"sudo /opt/bin/ov agent install --machine-key /etc/ov/myapp.key --user deploy" + rest, "sudo install -m 0755"},
		"agent at home": {"sudo cp -r /usr/local/bin /home/deploy/bin",
			"sudo /home/deploy/bin/ov agent install --machine-key /etc/ov/myapp.key --user deploy" + rest, "sudo install -m 0755"},
	} {
		if c.before != "" {
			s.must("deploy", c.before)
		}
		r := s.run("deploy", c.line)
		if r.code == 0 || !strings.Contains(r.out, c.say) {
			t.Errorf("%s: exit %d, want %q in\n%s", name, r.code, c.say, r.out)
		}
		if s.run("root", "test -e "+systemd.UnitPath+" || test -e /etc/ov/agent.socket").code == 0 {
			t.Fatalf("%s: something was written", name)
		}
		if got := s.must("root", "stat -c '%U %a' /etc/ov"); got != "deploy 700\n" {
			t.Errorf("%s: /etc/ov is now %s", name, got)
		}
	}
}

// exampleCommands returns the commands in the comments of an example, in
// groups as they stand there.
func exampleCommands(unit string) [][]string {
	groups := [][]string{nil}
	for line := range strings.Lines(unit) {
		last := len(groups) - 1
		if c, ok := strings.CutPrefix(line, "#   "); ok {
			groups[last] = append(groups[last], strings.TrimSpace(c))
		} else if groups[last] != nil {
			groups = append(groups, nil)
		}
	}
	return groups[:len(groups)-1]
}

// The example unit with the key as a systemd credential, plain and encrypted,
// by the commands that it names.
func TestCredentials(t *testing.T) {
	s := newSite(t)
	s.asked("ov auth init", askNew, s.password, askAgain, s.password)
	s.asked(guideImport, ask, s.password)
	s.must("deploy", guideRetire)
	example, err := os.ReadFile("../../deploy/systemd/examples/myapp-credential.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := string(example)
	groups := exampleCommands(unit)
	mustf(t, len(groups) == 2, "the example has %d groups of commands, not 2", len(groups))
	const plain, encrypted = "\nLoadCredential=", "\n#LoadCredentialEncrypted="
	mustf(t, strings.Count(unit, plain) == 1 && strings.Count(unit, encrypted) == 1, "the example's credentials have changed")
	for i, c := range []struct{ name, unit string }{
		{"LoadCredential", unit},
		{"LoadCredentialEncrypted", strings.NewReplacer(plain, "\n#LoadCredential=", encrypted, encrypted[:1]+encrypted[2:]).Replace(unit)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			s.must("deploy", guideEtc)
			s.asked(guideRederive, ask, s.password)
			s.must("root", "chown root: /etc/ov && chmod 755 /etc/ov")
			for _, line := range groups[i] {
				s.must("deploy", line)
			}
			s.write(unitPath, []byte(c.unit), 0o644)
			s.must("root", "systemctl daemon-reload && systemctl restart myapp")
			s.running()
			s.reboot()
			s.running()
			if r := s.run("deploy", "find /etc/ov -type f -readable -size 32c 2>/dev/null"); r.out != "" {
				t.Errorf("the service's account can read a key at rest: %s", r.out)
			}
			if r := s.run("root", "ls /etc/ov/myapp.key"); r.code == 0 {
				t.Error("the key is still on disk, readable to its account")
			}
			s.noLeaks()
		})
	}
}

// A laptop: the user's own units as shipped. The first call starts the agent,
// which stays locked until its user unlocks it.
func TestUserUnits(t *testing.T) {
	s := newSite(t)
	s.asked("ov auth init", askNew, s.password, askAgain, s.password)
	s.asked(guideImport, ask, s.password)
	for _, name := range []string{"ov-agent.socket", "ov-agent.service"} {
		s.put("../../deploy/systemd/user/"+name, "/home/deploy/.config/systemd/user/"+name, 0o644)
	}
	s.must("root", "chown -R deploy: /home/deploy/.config && loginctl enable-linger deploy")
	s.must("deploy", "systemctl --user enable --now ov-agent.socket")
	has(t, s.must("deploy", "stat -c '%a %F' $XDG_RUNTIME_DIR/ov-agent $XDG_RUNTIME_DIR/ov-agent/ov-agent.sock"),
		"700 directory\n600 socket\n")

	has(t, s.run("deploy", guideList).out, "locked")
	s.asked("ov agent unlock", ask, s.password)
	has(t, s.must("deploy", guideList), "DATABASE_URL")
	has(t, s.must("deploy", "systemctl --user show -p SubState ov-agent.service"), "SubState=running")

	s.must("deploy", "systemctl --user stop ov-agent.service") // the socket stays
	has(t, s.run("deploy", guideList).out, "locked")
	s.noLeaks()
}
