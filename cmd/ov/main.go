// The runtime would read the cgroup's CPU limit at start and again every second;
// a program that is gone in milliseconds has no use for it.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Ov keeps a program's secrets in a vault and puts them into its environment at
// start. See `ov help`.
package main

import (
	"context"
	"os"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
)

func main() {
	// Signals keep their defaults: an interrupt ends what waits, the vault is safe
	// at any instant, and locked memory goes with the process.
	err := newRootCmd(onlyNoun(os.Args)).ExecuteContext(context.Background())
	if err == nil {
		return
	}
	hint.Print(os.Stderr, "ov", err)
	os.Exit(command.ExitCode(err))
}
