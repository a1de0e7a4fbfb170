package mcp

// alive says that what signals reach is alive: launchd leaves no zombies.
func alive(int) bool { return true }
