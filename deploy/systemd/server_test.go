package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemd has no complaint about the unit of ov-server, and its exposure stays
// below 1.5 of 10.
func TestServerUnit(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("NOT RUN: no systemd-analyze on this machine")
	}
	self, err := os.Executable() // something that exists, in the server's place
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("ov-server.service")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ov-server.service")
	unit := strings.NewReplacer("/usr/local/bin/ov-server", self, "User=ov-server", "User=daemon").Replace(string(text))
	if err := os.WriteFile(path, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "verify", "--man=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "ov-server.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if help, _ := exec.Command(tool, "--help").Output(); !strings.Contains(string(help), "--threshold") {
		t.Skip("NOT RUN: this systemd-analyze has no --threshold")
	}
	out, err = exec.Command(tool, "security", "--no-pager", "--offline=true", "--threshold=15", path).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
