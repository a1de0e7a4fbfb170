package kek

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func allocSecret(int) (Memory, error) { return nil, errors.ErrUnsupported }

func free(all []byte) {
	_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(all)), uintptr(len(all)))
}

// ptDenyAttach is PT_DENY_ATTACH of ptrace(2): no debugger may attach.
const ptDenyAttach = 31

// Harden keeps debuggers away from this process: PT_DENY_ATTACH.
func Harden() error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptDenyAttach, 0, 0, 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("ptrace", errno)
	}
	return nil
}
