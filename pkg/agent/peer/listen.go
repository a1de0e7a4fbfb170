package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// ErrAlreadyRunning says that another agent has the socket.
var ErrAlreadyRunning = errors.New("an agent is already running")

// Listener is the agent's socket.
type Listener struct {
	*net.UnixListener
	socket string
	lock   *os.File    // nil for an inherited socket
	made   os.FileInfo // the socket as it was bound
	close  sync.Once
	err    error
}

// Socket returns the socket's path.
func (l *Listener) Socket() string { return l.socket }

// Close stops listening and removes the socket if it is still the one that
// Listen made. An inherited socket stays for systemd. The lock file stays too:
// removing it could take the lock from under an agent that is starting.
func (l *Listener) Close() error {
	l.close.Do(func() {
		if l.made != nil {
			if now, err := os.Lstat(l.socket); err == nil && os.SameFile(now, l.made) {
				_ = os.Remove(l.socket)
			}
		}
		l.err = l.UnixListener.Close()
		if l.lock != nil {
			_ = l.lock.Close()
		}
	})
	return l.err
}

// Listen makes the socket, mode 0600, in a directory that only this account or
// root can write; it makes that directory, mode 0700, but not the ones above.
// A lock on SOCKET.lock, held until Close, lets one agent have it at a time:
// otherwise the error is ErrAlreadyRunning. The socket of an agent that ended
// without removing it is replaced, after a try at connecting to it.
func Listen(socket string) (*Listener, error) {
	if !path.IsAbs(socket) {
		return nil, fmt.Errorf("cannot listen on %s: not an absolute path", quote(socket))
	}
	if err := checkLength(socket); err != nil {
		return nil, err
	}
	dir := filepath.Dir(socket)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cannot make the socket's directory: %w", err)
	}
	d, err := safefile.OpenDir(dir, safefile.Policy{Owner: os.Geteuid(), Sticky: true})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", quote(socket), err)
	}
	defer func() { _ = d.Close() }()
	if d.Fault != nil {
		return nil, d.Fault
	}
	lock, err := takeLock(socket)
	if err != nil {
		return nil, err
	}
	l, err := bind(socket)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	l.lock = lock
	return l, nil
}

// takeLock takes the flock(2) that says who has the socket, and leaves the pid
// in the file for the message to the next one who asks.
func takeLock(socket string) (*os.File, error) {
	name := socket + ".lock"
	// NONBLOCK: nothing is waited for, should it be a named pipe.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("cannot open the lock of the agent's socket: %w", err), "ls -l "+safefile.Shell(name))
	}
	fail := func(err error) (*os.File, error) {
		_ = f.Close()
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if !info.Mode().IsRegular() {
		return fail(hint.Wrap(&safefile.Unsafe{Path: name, Fault: "is not a regular file"}, "rm "+safefile.Shell(name)))
	}
	var lockErr error
	if err := withFD(f, func(fd int) { lockErr = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return fail(err)
	}
	if errors.Is(lockErr, unix.EWOULDBLOCK) {
		return fail(alreadyRunning(socket, lockPID(f)))
	} else if lockErr != nil {
		return fail(&fs.PathError{Op: "flock", Path: name, Err: lockErr})
	}
	if err := f.Truncate(0); err != nil {
		return fail(err)
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		return fail(err)
	}
	return f, nil
}

func lockPID(f *os.File) int {
	b, _ := io.ReadAll(io.LimitReader(f, 16))
	pid, _ := strconv.Atoi(string(bytes.TrimSpace(b)))
	return pid
}

func alreadyRunning(socket string, pid int) error {
	err := fmt.Errorf("%w at %s", ErrAlreadyRunning, quote(socket))
	if pid > 0 {
		err = fmt.Errorf("%w, pid %d", err, pid)
	}
	return hint.Wrap(err, "ov agent status, or stop it first: ov agent stop")
}

// bind makes the socket. The caller holds the lock.
func bind(socket string) (*Listener, error) {
	old, err := os.Lstat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("cannot listen: %w", err)
	case old.Mode().Type() != fs.ModeSocket:
		return nil, hint.Wrap(&safefile.Unsafe{Path: socket, Fault: "exists and is not a socket"},
			"remove it: rm "+safefile.Shell(socket))
	default:
		if err := checkStale(socket); err != nil {
			return nil, err
		}
		if err := os.Remove(socket); err != nil {
			return nil, fmt.Errorf("cannot remove the socket of an agent that has ended: %w", err)
		}
	}
	l, err := listenPrivately(socket)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	l.SetUnlinkOnClose(false) // Close looks first whose it is
	made, err := os.Lstat(socket)
	if err == nil && made.Mode() != fs.ModeSocket|0o600 {
		err = &safefile.Unsafe{Path: socket, Fault: fmt.Sprintf("was made with mode %v, not 0600", made.Mode())}
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return &Listener{UnixListener: l, socket: socket, made: made}, nil
}

// checkStale returns nil if nothing listens on the socket: then and only then
// connect(2) is refused.
func checkStale(socket string) error {
	c, err := net.DialTimeout("unix", socket, time.Second) //nolint:gosec // G704: the caller names the socket
	switch {
	case err == nil:
		_ = c.Close()
		return alreadyRunning(socket, 0)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EAGAIN), os.IsTimeout(err): // its queue is full
		return alreadyRunning(socket, 0)
	}
	return fmt.Errorf("cannot tell whether an agent is running at %s: %w", quote(socket), err)
}

var umask sync.Mutex

// listenPrivately binds the socket with mode 0600 from the start. The umask is
// the whole process's: a file that is made meanwhile gets a stricter mode.
func listenPrivately(socket string) (*net.UnixListener, error) {
	umask.Lock()
	defer umask.Unlock()
	defer unix.Umask(unix.Umask(0o177))
	return net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
}

// ErrNotInherited says that no socket was passed to this process.
var ErrNotInherited = errors.New("no socket was passed by systemd")

// Inherited returns the socket that systemd passed to this process
// (sd_listen_fds(3)), and takes the variables that say so out of the
// environment. There must be exactly one, a listening Unix stream socket with a
// path. The error is ErrNotInherited if there is none.
func Inherited() (*Listener, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			_ = f.Close() // FileListener made a copy
		}
	}()
	if len(files) == 0 {
		return nil, ErrNotInherited
	}
	const mend = "look at the .socket unit: it needs one ListenStream= with an absolute path, and Accept=no"
	if len(files) > 1 {
		return nil, hint.Errorf(mend, "systemd passed %d sockets, not one", len(files))
	}
	// FileListener takes a connected socket for a listening one.
	var listening int
	var optErr error
	if err := withFD(files[0], func(fd int) {
		listening, optErr = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	}); err != nil {
		return nil, err
	}
	if optErr != nil || listening == 0 {
		return nil, hint.Errorf(mend, "what systemd passed is not a listening socket")
	}
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, hint.Errorf(mend, "cannot use the socket that systemd passed: %w", err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok || ul.Addr().Network() != "unix" || !path.IsAbs(ul.Addr().String()) {
		_ = l.Close()
		return nil, hint.Errorf(mend, "the socket that systemd passed is no Unix stream socket with a path: %s %s",
			l.Addr().Network(), quote(l.Addr().String()))
	}
	ul.SetUnlinkOnClose(false)
	return &Listener{UnixListener: ul, socket: ul.Addr().String()}, nil
}

func withFD(f *os.File, do func(fd int)) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { do(int(fd)) })
}
