package pg

import "syscall"

// attributes start a process as a user, and end it with this one: SIGQUIT is
// PostgreSQL's immediate shutdown.
func attributes(who *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: who, Pdeathsig: syscall.SIGQUIT}
}
