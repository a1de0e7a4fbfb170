// Ov-scan finds secrets: in files for `ov scan`, and in the texts that ov-mcp
// gives it. It is not for use by itself. It is a program of its own because of
// what its rules take to load (package detect).
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/detect/engine"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

func main() {
	err := run()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "ov: %v\n", err)
	if advice := hint.Of(err); advice != "" {
		fmt.Fprintf(os.Stderr, "  hint: %s\n", advice)
	}
	os.Exit(1)
}

func run() error {
	// What is scanned holds secrets: no debugger, no core dump.
	if err := kek.Harden(); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	if len(os.Args) == 2 && os.Args[1] == detect.EngineArg {
		return engine.Serve(os.Stdin, os.Stdout)
	}
	return hint.Errorf("it is part of ov and not for use by itself: ov help", "wrong arguments")
}
