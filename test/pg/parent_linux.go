package pg

import "syscall"

// dieWithParent has a test that panics leave no server behind.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGQUIT }
