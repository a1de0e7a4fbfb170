// Ov-scan finds secrets: in files for `ov scan`, and in the texts that ov-mcp
// gives it. It is not for use by itself. It is a program of its own because of
// what its rules take to load (package detect).
package main

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/detect/engine"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/scan"
	"github.com/opaquevault/ov/pkg/scan/options"
	"github.com/opaquevault/ov/pkg/sibling"
)

// exitFound is the exit code when there are secrets. 1 is a failure, which must
// not be taken for it.
const exitFound = 3

func main() {
	err := run()
	if err == nil {
		return
	}
	hint.Print(os.Stderr, "ov", err)
	var found *scan.FoundError
	if errors.As(err, &found) {
		os.Exit(exitFound)
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
	var o options.Scan
	if err := sibling.Options(os.Args, &o); err != nil {
		return err
	}
	ov, err := sibling.Path("ov")
	if err != nil {
		return err
	}
	return scan.Run(context.Background(), o, func() (scan.Scanner, error) { return engine.New() }, ov, os.Stdout, os.Stderr)
}
