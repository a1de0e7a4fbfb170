package mcp

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// awaitExit returns when the child has ended, and leaves it to be waited for.
// Signal 0 to the group fails with EPERM when only zombies are in it.
func awaitExit(pid int) {
	for {
		if err := unix.Kill(-pid, 0); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ESRCH) {
			return
		}
		k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
		if err != nil || k.Proc.P_stat == 5 { // SZOMB, <sys/proc.h>
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
