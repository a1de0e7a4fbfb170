package launch

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxTotal bounds arguments and environment, in bytes: three quarters of
// _STK_LIM, which execve(2) never exceeds. RLIMIT_STACK/4 is often less; then
// the kernel says so.
const maxTotal = 6 << 20

const totalRule = "a quarter of ulimit -s, 6 MiB at most"

// maxEntry bounds one string with its NUL, in bytes: MAX_ARG_STRLEN of
// execve(2).
func maxEntry() int { return 32 * os.Getpagesize() }

// deathSignal is the parent-death signal that this process was started with
// (PR_SET_PDEATHSIG of prctl(2), setpriv --pdeathsig, bwrap --die-with-parent).
// It belongs to the first thread, and execve may be called by another.
var deathSignal int32

func init() {
	//nolint:gosec // G103: prctl(2) wants an address; init runs on the first thread
	_ = unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&deathSignal)), 0, 0, 0)
}

// Written at the entry point, before Go's runtime changes anything, if the
// program was linked with -E ov_entry: see entry_linux_amd64.s.
var (
	entered        uint64 // 1 if the entry point ran
	ignoredAtEntry uint64 // bit n-1: signal n was ignored
	blockedAtEntry uint64 // the same for the signal mask
)

// putBack undoes, for this thread and process, what Go's runtime changed and
// execve(2) would hand on.
func putBack() {
	if deathSignal != 0 {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(deathSignal), 0, 0, 0)
	}
	if entered == 0 {
		return
	}
	for n := syscall.Signal(1); n <= 64; n++ {
		if ignoredAtEntry>>(n-1)&1 != 0 {
			signal.Ignore(n)
		}
	}
	// The runtime unblocks SIGCHLD, SIGPROF and the like for itself.
	mask := unix.Sigset_t{}
	mask.Val[0] = blockedAtEntry
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil)
}
