//go:build systemd && !linux

package systemdtest

import (
	"os"
	"testing"
)

func TestGuide(t *testing.T) {
	skip := t.Skip
	if os.Getenv("OV_REQUIRE_REAL") == "1" {
		skip = t.Fatal
	}
	skip("NOT RUN: the guide in a real systemd: it needs Linux")
}
