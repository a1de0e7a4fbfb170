package postgres

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// noticeLoss has a connection end when what was sent is not acknowledged for ten
// seconds (tcp(7), TCP_USER_TIMEOUT).
func noticeLoss(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000) // a socket(7) of AF_UNIX has none
	})
}
