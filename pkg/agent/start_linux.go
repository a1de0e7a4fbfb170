package agent

import (
	"math"

	"golang.org/x/sys/unix"
)

func dup2(from, to int) error { return unix.Dup3(from, to, 0) }

// keepDescriptors keeps what this process has inherited, such as a shell's lock
// file, from living on in the agent. It does nothing before Linux 5.11.
func keepDescriptors() { _ = unix.CloseRange(readyFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) }
