package launch

import (
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

func attributes(opts StartOptions) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: opts.Group, Pdeathsig: syscall.SIGKILL}
}

var ignoring sync.Once

// ignoreAgain undoes what Go's runtime did to the signals that were ignored.
// The fork resets those that the runtime handles, so there is no doing it for
// the child alone.
func ignoreAgain() {
	for n := syscall.Signal(1); n <= 64; n++ {
		if ignoredAtEntry>>(n-1)&1 != 0 {
			signal.Ignore(n)
		}
	}
}

// lend gives this thread, and so the child that it forks, the signal mask that
// the process was started with, and returns what takes it back.
func lend() (restore func()) {
	if entered == 0 {
		return func() {}
	}
	ignoring.Do(ignoreAgain)
	var own unix.Sigset_t
	mask := unix.Sigset_t{}
	mask.Val[0] = blockedAtEntry
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &mask, &own)
	return func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &own, nil) }
}
