package kek

// selfExecutable is this very program, even when its file has been replaced by
// an upgrade since it started.
func selfExecutable() (string, error) { return "/proc/self/exe", nil }
