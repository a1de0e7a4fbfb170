//go:build systemd && linux

package systemdtest

import (
	"strings"
	"testing"
)

// TestTroubleshooting brings about each fault of the guide's list. The service
// fails and says why, ov doctor names the fault and a command, and with that
// command the service starts.
func TestTroubleshooting(t *testing.T) {
	s := newSite(t)
	s.migrate()
	s.must("deploy", guideRetire)

	const doctor = "ov doctor --app myapp --env production --machine-key /etc/ov/myapp.key --user deploy --unit myapp"
	for _, c := range []struct {
		name    string
		fault   string   // brought about by root
		journal string   // what the service says
		doctor  []string // what the doctor says
		mend    string   // the command that it names
	}{
		{
			name:    "key 0644",
			fault:   "chmod 644 /etc/ov/myapp.key",
			journal: "machine key /etc/ov/myapp.key: has mode 0644, it must be 0600",
			doctor:  []string{"has mode 0644, it must be 0600"},
			mend:    "chmod 600 /etc/ov/myapp.key",
		},
		{
			name:    "key owned by root",
			fault:   "chown root /etc/ov/myapp.key",
			journal: "machine key /etc/ov/myapp.key: is owned by root, not by deploy",
			doctor:  []string{"is owned by root, not by deploy"},
			mend:    "sudo chown deploy /etc/ov/myapp.key",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			has(t, s.must("deploy", doctor), "") // nothing is wrong to begin with
			s.must("root", c.fault)
			s.fails(c.journal)
			r := s.run("deploy", doctor)
			if r.code != 1 {
				t.Errorf("the doctor's exit code is %d, not 1", r.code)
			}
			has(t, r.out, c.doctor...)
			has(t, r.out, c.mend)
			s.must("deploy", c.mend)
			s.must("deploy", "sudo systemctl reset-failed myapp; sudo systemctl start myapp")
			s.running()
			s.must("deploy", doctor)
		})
	}
	s.t = t
	s.noLeaks()
}

// fails restarts the service, which must fail with ov's own exit code and say
// why in the journal.
func (s *site) fails(why string) {
	s.t.Helper()
	if r := s.run("deploy", "sudo systemctl restart myapp"); r.code == 0 {
		s.t.Error("the service started")
	}
	if got := s.property("myapp", "ExecMainStatus"); got != "125" {
		s.t.Errorf("the service's exit status is %s, not ov's own 125", got)
	}
	id := s.property("myapp", "InvocationID")
	out := s.must("deploy", "journalctl -q --no-pager _SYSTEMD_INVOCATION_ID="+id)
	if !strings.Contains(out, why) {
		s.t.Errorf("%q is not in the journal:\n%s", why, out)
	}
}
