package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// What the packages of ov may allocate before main, in bytes: what every `ov run`
// pays. Time is not measured here, since a busy machine would fail it; what takes
// time at init takes memory too.
const maxInit = 290_000

// TestInitCost: no package makes the start of ov dearer unnoticed. Which
// packages there are is pinned by test/rules.
func TestInitCost(t *testing.T) {
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "ov"), "--version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	total := 0
	found := regexp.MustCompile(`(?m)^init (\S+) @.* ([0-9]+) bytes, [0-9]+ allocs$`).FindAllSubmatch(out, -1)
	for _, m := range found {
		n, err := strconv.Atoi(string(m[2]))
		if err != nil {
			t.Fatal(err)
		}
		total += n
		if n > maxInit/3 {
			t.Errorf("%s allocates %d bytes", m[1], n)
		}
	}
	if len(found) < 50 {
		t.Fatalf("no trace:\n%s", out)
	}
	if total > maxInit {
		t.Errorf("the packages of ov allocate %d bytes at init, and the bound is %d:\n%s", total, maxInit, out)
	}
}
