// Ov-server keeps the vaults of teams: records of ciphertext, which it cannot
// decrypt. See `ov-server help`, docs/SERVER.md.
package main

import (
	"context"
	"os"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
)

func main() {
	err := newRootCmd().ExecuteContext(context.Background())
	if err == nil {
		return
	}
	hint.Print(os.Stderr, "ov-server", err)
	os.Exit(command.ExitCode(err))
}
