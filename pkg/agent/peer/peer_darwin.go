package peer

import (
	"errors"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// process pins the caller by its start time and uid, to the microsecond: macOS
// has no descriptor for a process.
type process struct {
	start unix.Timeval
	// ended is set, and never unset, when the connection is closed.
	ended atomic.Bool
}

// stateZombie is SZOMB of <sys/proc.h>.
const stateZombie = 5

// credentialsOf returns what the kernel noted of the process at the other end
// of c when it called connect(2), or listen(2): its ids.
func credentialsOf(c *net.UnixConn) (*Info, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Xucred
	var pid int
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		if cred, sockErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); sockErr == nil {
			pid, sockErr = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID)
		}
	}); err != nil {
		return nil, err
	}
	if sockErr != nil {
		return nil, os.NewSyscallError("getsockopt", sockErr)
	}
	if cred.Version != 0 || cred.Ngroups < 1 { // XUCRED_VERSION
		return nil, errors.New("cannot tell who connected: the kernel's answer has an unknown form")
	}
	info := &Info{UID: cred.Uid, GID: cred.Groups[0], PID: int32(pid)}
	info.SecurityLevel = localSecurity
	return info, nil
}

// identify pins the process that has the credentials in info. If it succeeds
// the caller closes info.
func (i *Info) identify(*net.UnixConn) error {
	p, err := lookUp(i)
	if err != nil {
		return err
	}
	i.proc.start = p.Proc.P_starttime
	return nil
}

// lookUp returns the process that has the caller's pid and uid.
func lookUp(i *Info) (*unix.KinfoProc, error) {
	p, err := unix.SysctlKinfoProc("kern.proc.pid", int(i.PID))
	if err != nil || p.Proc.P_pid != i.PID || p.Proc.P_stat == stateZombie {
		return nil, ErrGone // EIO: no such process
	}
	if p.Eproc.Ucred.Uid != i.UID {
		return nil, ErrChanged
	}
	return p, nil
}

func (p *process) alive(i *Info) error {
	if p.ended.Load() {
		return ErrGone
	}
	now, err := lookUp(i)
	if err != nil {
		return err
	}
	if now.Proc.P_starttime != p.start {
		return ErrGone // the pid is another's now
	}
	return nil
}

func (i *Info) close() { i.proc.ended.Store(true) }

// isUnmapped is false: macOS has no user namespaces.
func isUnmapped(uint32) bool { return false }
