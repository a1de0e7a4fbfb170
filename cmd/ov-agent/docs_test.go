package main

import (
	"flag"
	"os"
	"testing"

	"github.com/opaquevault/ov/docs/manpage"
)

var update = flag.Bool("update", false, "rewrite the man page")

// TestManPages: docs/man/ov-agent.8 is what the command says of itself. `make man`
// writes it.
func TestManPages(t *testing.T) {
	more, err := os.ReadFile("testdata/man/ov-agent.md")
	if err != nil {
		t.Fatal(err)
	}
	page, err := manpage.Page(newCommand(), "8", more)
	if err != nil {
		t.Fatal(err)
	}
	if err := manpage.Golden("../../docs/man", "ov-agent*.8", map[string][]byte{"ov-agent.8": page}, *update); err != nil {
		t.Error(err)
	}
}
