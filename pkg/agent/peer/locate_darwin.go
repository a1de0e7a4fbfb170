package peer

const runtimeDirVariable = "TMPDIR"

// defaultRuntimeDir is none: launchd sets TMPDIR to the account's own directory
// in every session.
func defaultRuntimeDir(string) string { return "" }
