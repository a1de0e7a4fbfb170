//go:build !linux

package postgres

import "syscall"

func noticeLoss(_, _ string, _ syscall.RawConn) error { return nil }
