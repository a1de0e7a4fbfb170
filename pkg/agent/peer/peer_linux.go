package peer

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process pins the caller. With SO_PEERPIDFD (Linux 6.5) the pidfd refers to
// the very process that called connect(2), for ever. Without it the pid may
// have been given to another process before we look: then what has it must at
// least have the uid that connected, and is pinned from there on, by a pidfd of
// our own, or before Linux 5.3 by /proc/PID kept open. A start time, to compare
// with, would not do: it counts hundredths of a second, and a pid can be had
// again in less.
//
// Files in /proc are read only beside a pidfd that is alive afterwards, or
// through one open /proc/PID, so that all of them are about one process.
type process struct {
	mu    sync.RWMutex // held while a descriptor is used, so that none is closed then
	by    pin
	pidfd int
	dir   procDir
	exe   fileID // zero if it could not be read
}

// pin says which descriptor is open.
type pin int

const (
	byNothing pin = iota // not yet, or not any more
	byPidfd
	byDir
)

type fileID struct {
	major, minor uint32
	ino          uint64
}

// rungs are the ways to pin a process that may be used, the first that works
// wins. Tests cut off the upper ones.
type rungs struct{ peerPidfd, pidfdOpen, pidfdInfo bool }

var kernel = rungs{true, true, true}

// credentialsOf returns what the kernel noted of the process at the other end
// of c when it called connect(2), or listen(2): its ids. They are had at once.
func credentialsOf(c *net.UnixConn) (*Info, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, os.NewSyscallError("getsockopt SO_PEERCRED", credErr)
	}
	info := &Info{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
	info.SecurityLevel = localSecurity
	return info, nil
}

// identify pins the process that connected c and has the credentials in info,
// and looks at it in /proc. If it succeeds the caller closes info.
func (i *Info) identify(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	pidfd, pidfdErr := -1, error(unix.ENOPROTOOPT)
	if err := raw.Control(func(fd uintptr) {
		if kernel.peerPidfd {
			// The kernel always sets close-on-exec on a pidfd.
			pidfd, pidfdErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	}); err != nil {
		return err
	}
	switch {
	case pidfdErr == nil:
	case errors.Is(pidfdErr, unix.ENOPROTOOPT): // before Linux 6.5
		pidfd = -1
	case errors.Is(pidfdErr, unix.EINVAL), errors.Is(pidfdErr, unix.ESRCH): // reaped, Linux 6.5 to 6.15
		return ErrGone
	default:
		return os.NewSyscallError("getsockopt SO_PEERPIDFD", pidfdErr)
	}
	exact := pidfd >= 0
	if !exact && kernel.pidfdOpen && i.PID > 0 {
		pidfd, err = unix.PidfdOpen(int(i.PID), 0)
		if errors.Is(err, unix.ESRCH) {
			return ErrGone
		} else if err != nil { // before Linux 5.3, or a system call filter
			pidfd = -1
		}
	}
	if pidfd >= 0 {
		i.proc.by, i.proc.pidfd = byPidfd, pidfd
	}
	dir, err := openProc(i.PID)
	switch {
	case err == nil && pidfd >= 0:
		defer dir.close()
		err = i.look(dir, exact)
	case err == nil:
		i.proc.by, i.proc.dir = byDir, dir
		err = i.look(dir, exact)
	case pidfd >= 0 && isHidden(err):
		err = i.proc.running()
	default:
		err = fmt.Errorf("cannot tell which process connected: %w", gone(err))
	}
	if err != nil {
		i.close()
	}
	return err
}

// look fills in what /proc tells about the caller. exact says that the pidfd is
// the one that came with the connection.
func (i *Info) look(dir procDir, exact bool) error {
	if i.proc.exe = dir.exeID(); i.proc.exe != (fileID{}) {
		i.Exe = dir.exePath()
	}
	if cgroup, err := dir.read("cgroup", maxCgroup); err == nil {
		i.Unit = unitOf(cgroup)
	}
	if !exact {
		uid, err := dir.uid()
		if err != nil {
			return gone(err)
		}
		if uid != i.UID {
			return ErrChanged // another process has the pid by now
		}
	}
	return i.proc.running()
}

// running returns ErrGone once the process has exited, reaped or not. The
// caller holds mu, or has the process to itself.
func (p *process) running() error {
	switch p.by {
	case byPidfd: // poll(2) knows zombies for dead; a signal 0 reaches them
		fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 0)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return os.NewSyscallError("poll", err)
			case n != 0:
				return ErrGone
			}
			return nil
		}
	case byDir:
		return gone(p.dir.running())
	}
	return ErrGone // as its connection is
}

func (p *process) alive(i *Info) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.running(); err != nil {
		return err
	}
	uid, known := p.uidByPidfd()
	if known && uid != i.UID {
		return ErrChanged
	}
	if known && p.exe == (fileID{}) {
		return nil
	}
	dir := p.dir
	if p.by != byDir {
		var err error
		if dir, err = openProc(i.PID); err != nil {
			if p.exe == (fileID{}) && isHidden(err) {
				return p.running() // as it has been all along
			}
			return gone(err)
		}
		defer dir.close()
	}
	if !known {
		uid, err := dir.uid()
		if err != nil {
			return gone(err)
		}
		if uid != i.UID {
			return ErrChanged
		}
	}
	same := p.exe == (fileID{}) || p.exe == dir.exeID()
	if err := p.running(); err != nil {
		return err // it has exited, and executes nothing
	}
	if !same {
		return ErrChanged
	}
	return nil
}

// uidByPidfd returns the effective uid, which Linux 6.13 tells without /proc.
func (p *process) uidByPidfd() (uid uint32, ok bool) {
	if p.by != byPidfd || !kernel.pidfdInfo {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CREDS}
	err := unix.IoctlPidfdInfo(p.pidfd, &info)
	return info.Euid, err == nil && info.Mask&unix.PIDFD_INFO_CREDS != 0
}

// close lets go of the process, after a call that is in Alive meanwhile. Those
// that follow get ErrGone.
func (i *Info) close() {
	i.proc.mu.Lock()
	defer i.proc.mu.Unlock()
	switch i.proc.by {
	case byPidfd:
		_ = unix.Close(i.proc.pidfd)
	case byDir:
		i.proc.dir.close()
	}
	i.proc.by = byNothing
}

// isHidden reports whether a failure to open the /proc/PID of a process that is
// there is due to hidepid= (proc(5)), which ProtectProc= sets.
func isHidden(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// gone turns the errors of reading a process that no longer exists into ErrGone.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}

// procDir is an open /proc/PID. It stays with its process: once that is gone,
// what is looked up in it fails with ESRCH, whoever has the pid.
type procDir int

func openProc(pid int32) (procDir, error) {
	if pid <= 0 {
		return -1, fmt.Errorf("pid %d: %w", pid, unix.ENOENT)
	}
	// Not O_PATH, which would open a directory that is hidden from us.
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(pid)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open /proc/PID", err)
	}
	return procDir(fd), nil
}

func (d procDir) close() { _ = unix.Close(int(d)) }

// exePath names the file that the process executes, or is "".
func (d procDir) exePath() string {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(int(d), "exe", buf[:])
	if err != nil || n == len(buf) {
		return ""
	}
	return string(buf[:n])
}

// exeID identifies the file that the process executes in a way that no rename,
// deletion or mount namespace alters. It is zero if that cannot be read.
func (d procDir) exeID() fileID {
	var st unix.Statx_t
	// DONT_SYNC: a caller whose file system is of its own making (fuse(4))
	// must not be able to keep the agent waiting for an answer.
	if err := unix.Statx(int(d), "exe", unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return fileID{}
	}
	return fileID{st.Dev_major, st.Dev_minor, st.Ino}
}

// running returns ErrGone for a zombie, and for what is reaped ESRCH.
func (d procDir) running() error {
	b, err := d.read("stat", maxStat)
	if err != nil {
		return err
	}
	state, err := parseState(b)
	if err == nil && (state == 'Z' || state == 'X' || state == 'x') {
		return ErrGone
	}
	return err
}

// uid returns the process's effective uid. The owner of /proc/PID would not do:
// it is root for a process that is not dumpable.
func (d procDir) uid() (uint32, error) {
	b, err := d.read("status", maxStatus)
	if err != nil {
		return 0, err
	}
	return parseUID(b)
}

// Bounds on what is read from /proc, in bytes. A cgroup's path has at most
// PATH_MAX, and a system that has the first version at most 16 hierarchies.
const (
	maxStat   = 4 << 10
	maxStatus = 16 << 10
	maxCgroup = 80 << 10
)

// read returns the file called name, or an error if it is longer than limit.
func (d procDir) read(name string, limit int) ([]byte, error) {
	fd, err := unix.Openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open /proc/PID/"+name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 0, 2048)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, os.NewSyscallError("read /proc/PID/"+name, err)
		case n == 0:
			return buf, nil
		}
		if buf = buf[:len(buf)+n]; len(buf) > limit {
			return nil, fmt.Errorf("/proc/PID/%s is longer than %d bytes", name, limit)
		}
	}
}

// parseState returns field 3 of /proc/PID/stat (proc_pid_stat(5)). The command
// in field 2 is the process's to choose and may hold spaces and parentheses.
func parseState(stat []byte) (byte, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	if end < 0 || len(fields) < 2 || len(fields[0]) != 1 {
		return 0, errors.New("cannot read /proc/PID/stat: no state")
	}
	return fields[0][0], nil
}

// parseUID returns the effective uid in /proc/PID/status (proc_pid_status(5)):
// the second of "Uid:". The kernel escapes newlines in the name before it.
func parseUID(status []byte) (uint32, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nUid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	fields := bytes.Fields(line)
	if !ok || len(fields) != 4 {
		return 0, errors.New("cannot read /proc/PID/status: no line of four uids")
	}
	uid, err := strconv.ParseUint(string(fields[1]), 10, 32)
	if err != nil {
		return 0, errors.New("cannot read /proc/PID/status: the uid is no number")
	}
	return uint32(uid), nil
}

// unitOf returns the systemd unit in /proc/PID/cgroup (cgroups(7)), or "". As
// systemd does it, the slices that a path starts with are passed over, and the
// first component after them is the unit: what a service or a container makes
// of the cgroups under its own cannot be mistaken for another unit. Under a
// user's manager the same goes for the rest of the path.
func unitOf(cgroup []byte) string {
	var v2 string
	for line := range strings.Lines(string(cgroup)) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		switch {
		case !ok || !strings.HasPrefix(path, "/"):
		case controllers == "name=systemd": // version 1 and hybrid
			return unitOfPath(path)
		case id == "0" && controllers == "":
			v2 = path
		}
	}
	return unitOfPath(v2)
}

func unitOfPath(path string) string {
	unit, rest := firstUnit(path)
	if isManager(unit) {
		if inner, _ := firstUnit(rest); inner != "" {
			return unit + "/" + inner
		}
	}
	return unit
}

// isManager reports whether a unit is a user's manager: "user@1000.service".
func isManager(unit string) bool {
	s, isUser := strings.CutPrefix(unit, "user@")
	s, isService := strings.CutSuffix(s, ".service")
	_, err := strconv.ParseUint(s, 10, 32)
	return isUser && isService && err == nil
}

// firstUnit passes over the slices at the start of path and returns the unit
// that follows, or "", and what is left of path.
func firstUnit(path string) (unit, rest string) {
	for path != "" {
		name, tail, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		// systemd puts "_" before names that cgroup files could have.
		name = strings.TrimPrefix(name, "_")
		if !isUnitName(name) {
			return "", ""
		}
		if !strings.HasSuffix(name, ".slice") {
			return name, tail
		}
		path = tail
	}
	return "", ""
}

// isUnitName reports whether name is one that processes can run under
// (systemd.unit(5)): at most 255 bytes.
func isUnitName(name string) bool {
	const valid = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 || len(name) > 255 {
		return false
	}
	for i := range len(name) {
		if strings.IndexByte(valid, name[i]) < 0 {
			return false
		}
	}
	switch name[dot:] {
	case ".service", ".scope", ".slice", ".socket", ".mount", ".swap":
		return true
	}
	return false
}

// overflowUID is what unmapped uids are shown as where some are unmapped.
var overflowUID = sync.OnceValues(func() (uid uint32, some bool) {
	uid = 65534
	if b, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil {
			uid = uint32(n)
		}
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	return uid, err == nil && !mapsAll(string(b))
})

// mapsAll reports whether a uid_map maps every uid to itself.
func mapsAll(uidMap string) bool {
	return strings.Join(strings.Fields(uidMap), " ") == "0 0 4294967295"
}

func isUnmapped(uid uint32) bool {
	overflow, some := overflowUID()
	return some && uid == overflow
}
