package main

import "github.com/spf13/cobra"

// newMCPCmd is "ov mcp".
func newMCPCmd(g *globals) *cobra.Command {
	return group("mcp", "Serve secrets to AI coding agents that must not read them",
		newMCPInstallCmd(g), newMCPUninstallCmd(g))
}
