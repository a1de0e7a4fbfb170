package kek

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allocSecret maps memfd_secret(2) memory between two guard pages. Its pages
// leave the kernel's direct map: /proc/PID/mem and gcore read EIO there, even
// for root. The mapping counts against RLIMIT_MEMLOCK.
func allocSecret(n int) (Memory, error) {
	page := os.Getpagesize()
	inner := roundToPage(n)
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_secret", err)
	}
	defer func() { _ = unix.Close(fd) }() // the mapping keeps the memory
	if err := unix.Ftruncate(fd, int64(inner)); err != nil {
		return nil, os.NewSyscallError("ftruncate", err)
	}
	// Reserve the guards first, then map the secret pages between them.
	all, err := unix.MmapPtr(-1, 0, nil, uintptr(inner+2*page), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	whole := unsafe.Slice((*byte)(all), inner+2*page)
	at := unsafe.Add(all, page)
	if _, err := unix.MmapPtr(fd, 0, at, uintptr(inner), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		free(whole)
		return nil, os.NewSyscallError("mmap", err)
	}
	return &pages{all: whole, inner: unsafe.Slice((*byte)(at), inner)}, nil
}

// free releases a whole mapping. memcall.Free is not used: it would make the
// guard pages writable first to wipe them, and they never held anything.
func free(all []byte) {
	_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(all)), uintptr(len(all)))
}

// Harden keeps this process out of core dumps and away from ptrace(2) by its
// own uid: PR_SET_DUMPABLE=0. Exec resets it, so children are not affected.
func Harden() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}
