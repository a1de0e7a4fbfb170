package agent

import "golang.org/x/sys/unix"

func dup2(from, to int) error { return unix.Dup2(from, to) }

// keepDescriptors keeps what this process has inherited, such as a shell's lock
// file, from living on in the agent.
func keepDescriptors() {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	for fd := range int(min(limit.Cur, 1<<16)) {
		if fd >= readyFD {
			unix.CloseOnExec(fd)
		}
	}
}
