// Ov-mcp is the MCP server of ov. `ov mcp serve` becomes it; it is not run by
// hand.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/mcp"
	"github.com/opaquevault/ov/pkg/mcp/options"
	"github.com/opaquevault/ov/pkg/sibling"
)

func main() {
	if err := run(); err != nil {
		hint.Print(os.Stderr, "ov", err)
		os.Exit(1)
	}
}

func run() error {
	var o options.Serve
	if err := sibling.Options(os.Args, &o); err != nil {
		return err
	}
	if o.Reaper {
		return mcp.Reap(os.Stdin)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	return mcp.Serve(ctx, o, os.Stdin, os.Stdout, os.Stderr)
}
