package detect

import "os/exec"

// dieWithParent does nothing: the engine ends with its standard input.
func dieWithParent(*exec.Cmd) {}
