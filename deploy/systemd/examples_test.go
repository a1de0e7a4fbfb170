package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each unit that is shipped as a file passes systemd's own check, as far as it
// goes on a machine that lacks the programs and the user it names.
func TestExamples(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("NOT RUN: no systemd-analyze on this machine")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"examples/myapp.service", "examples/myapp-credential.service", "user/ov-agent.service"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		unit := strings.NewReplacer("/usr/local/bin/ov-agent", self, "/usr/local/bin/ov", self,
			"Requires=ov-agent.socket\n", "").Replace(string(text))
		path := filepath.Join(t.TempDir(), "checked.service")
		if err := os.WriteFile(path, []byte(unit), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "verify", "--man=no", path).CombinedOutput()
		if err != nil || strings.Contains(string(out), "checked.service") {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}
