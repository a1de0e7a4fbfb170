package detect

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the engine when this process ends, however
// it does: see PR_SET_PDEATHSIG in prctl(2).
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
