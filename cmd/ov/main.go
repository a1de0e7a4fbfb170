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
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/opaquevault/ov/pkg/hint"
)

func main() {
	// An interrupt ends what waits; ov run hands its process over before that
	// matters. Secrets in locked memory go with the process.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := newRootCmd(onlyNoun(os.Args)).ExecuteContext(ctx)
	if err == nil {
		return
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(os.Stderr, "ov: %s\n", text)
	}
	if advice := hint.Of(err); advice != "" {
		fmt.Fprintf(os.Stderr, "  hint: %s\n", advice)
	}
	os.Exit(exitCode(err))
}
