//go:build !linux

package pg

import "syscall"

func dieWithParent(*syscall.SysProcAttr) {}
