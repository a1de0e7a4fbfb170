//go:build systemd && linux

package systemdtest

import (
	"encoding/json"
	"strings"
	"testing"
)

const doctor = "ov doctor --app myapp --env production --machine-key /etc/ov/myapp.key --user deploy --unit myapp"

// A trouble is one fault of the guide's troubleshooting list.
type trouble struct {
	name  string
	fault func(s *site)
	// journal is what the service says when it is started; "" if it does start.
	journal string
	status  string // of the service's process; "" is ov's own failure, 125
	// problem is part of what the doctor says of it.
	problem string
	// mend is part of the command that it names for it.
	mend string
}

func byRoot(line string) func(*site) { return func(s *site) { s.must("root", line) } }

var troubles = []trouble{
	{
		name:    "agent stopped",
		fault:   byRoot("systemctl stop ov-agent"),
		problem: "is installed, and is inactive",
		mend:    "sudo systemctl enable --now ov-agent",
	}, {
		name:    "key missing",
		fault:   byRoot("rm /etc/ov/myapp.key"),
		journal: "machine key /etc/ov/myapp.key: no such file or directory",
		problem: "no such file or directory",
		mend:    "ov auth derive-machine-key",
	}, {
		name:    "key 0644",
		fault:   byRoot("chmod 644 /etc/ov/myapp.key"),
		journal: "machine key /etc/ov/myapp.key: has mode 0644, it must be 0600",
		problem: "has mode 0644, it must be 0600",
		mend:    "chmod 600 /etc/ov/myapp.key",
	}, {
		name:    "key owned by root",
		fault:   byRoot("chown root: /etc/ov/myapp.key"),
		journal: "machine key /etc/ov/myapp.key: is owned by root, not by deploy",
		problem: "is owned by root, not by deploy",
		mend:    "sudo chown deploy",
	}, {
		name:    "key a symlink",
		fault:   byRoot("mv /etc/ov/myapp.key /etc/ov/real.key && ln -s real.key /etc/ov/myapp.key"),
		journal: "machine key /etc/ov/myapp.key: is a symbolic link, not a regular file",
		problem: "is a symbolic link, not a regular file",
		mend:    "sudo mv",
	}, {
		name: "wrong env",
		fault: func(s *site) {
			s.must("root", "sed -i 's/--env production/--env staging/' "+unitPath+" && systemctl daemon-reload")
		},
		journal: "staging",
		problem: "staging",
		mend:    unitPath,
	}, {
		// The guide: "the old EnvironmentFile= line is still authoritative".
		name: "missed daemon-reload",
		fault: func(s *site) {
			s.write(unitPath, []byte(unitBefore), 0o644)
			s.must("root", "systemctl daemon-reload")
			s.write(unitPath, []byte(unitAfter), 0o644)
		},
		journal: "Failed to load environment files",
		status:  "0",
		problem: "the unit was changed on disk, and systemd still uses what it loaded before",
		mend:    "sudo systemctl daemon-reload",
	}, {
		name: "password changed",
		fault: func(s *site) {
			old := s.password
			s.password += " changed"
			s.asked(guideChange, ask, old, askNew, s.password, askAgain, s.password)
		},
		journal: "before the password change",
		problem: "before the password change",
		mend:    "ov auth derive-machine-key --force",
	}, {
		name:    ".env retired with a secret that was not imported",
		fault:   func(s *site) { s.must("deploy", "ov secret delete STRIPE_SECRET_KEY --app myapp --env production") },
		journal: "STRIPE_SECRET_KEY",
		problem: "STRIPE_SECRET_KEY",
		mend:    "ov secret",
	},
}

// TestTroubleshooting brings about each fault of the guide's list. The service
// fails and says why, ov doctor names the fault and a command, and after that
// command the service starts and the doctor is content.
func TestTroubleshooting(t *testing.T) {
	s := newSite(t)
	s.migrate()
	s.must("deploy", guideRetire)
	if faults := s.diagnose(); len(faults) != 0 {
		t.Fatalf("the doctor finds faults in a machine that is in order: %+v", faults)
	}
	for _, c := range troubles {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			c.fault(s)
			if c.journal != "" {
				s.fails(c)
			}
			s.mend(c)
			s.must("deploy", "sudo systemctl reset-failed myapp; sudo systemctl restart myapp")
			s.running()
			// Past the limit of starts in ten seconds, which is for an agent that fails.
			s.must("deploy", "sudo systemctl reset-failed ov-agent; sudo systemctl restart ov-agent && "+guideList)
			if left := s.diagnose(); len(left) != 0 {
				t.Errorf("the doctor still finds %+v", left)
			}
		})
	}
	s.t = t
	s.noLeaks()
}

// fails restarts the service, which must fail and say why in the journal.
func (s *site) fails(c trouble) {
	s.t.Helper()
	if r := s.run("deploy", "sudo systemctl restart myapp"); r.code == 0 {
		s.t.Error("the service started")
	}
	want := c.status
	if want == "" {
		want = "125"
	}
	if got := s.property("myapp", "ExecMainStatus"); got != want {
		s.t.Errorf("the service's exit status is %s, not %s", got, want)
	}
	has(s.t, s.must("deploy", "journalctl -q --no-pager -n 8 -u myapp"), c.journal)
}

// finding is what "ov doctor --json" prints a list of.
type finding struct{ Check, State, Subject, Problem, Fix, Detail string }

// diagnose returns the faults that the doctor finds.
func (s *site) diagnose() []finding {
	s.t.Helper()
	r := s.run("deploy", doctor+" --json")
	var all, faults []finding
	if err := json.Unmarshal([]byte(r.out), &all); err != nil {
		s.t.Fatalf("%s --json: %v\n%s", doctor, err, r.out)
	}
	for _, f := range all {
		if f.State == "fail" {
			faults = append(faults, f)
		}
	}
	if (r.code == 1) != (len(faults) > 0) || r.code > 1 {
		s.t.Errorf("the doctor's exit code is %d with %d faults", r.code, len(faults))
	}
	// For a person it is the same.
	text := s.run("deploy", doctor)
	if text.code != r.code {
		s.t.Errorf("the doctor's exit code is %d, with --json %d", text.code, r.code)
	}
	for _, f := range faults {
		has(s.t, text.out, f.Problem, f.Fix)
	}
	return faults
}

// mend runs the command that the doctor names for the trouble, as its user
// would paste it.
func (s *site) mend(c trouble) {
	s.t.Helper()
	faults := s.diagnose()
	for _, f := range faults {
		if !strings.Contains(f.Problem, c.problem) || !strings.Contains(f.Fix, c.mend) {
			continue
		}
		tt := s.terminal("deploy", f.Fix)
		if r := tt.converse(map[string]string{ask: s.password}); r.code != 0 {
			s.t.Errorf("the doctor's command fails with %d: %s\n%s", r.code, f.Fix, r.out)
		}
		return
	}
	s.t.Errorf("no fault with %q and the command %q among %+v", c.problem, c.mend, faults)
}
