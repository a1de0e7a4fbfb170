package machinekey

import "golang.org/x/sys/unix"

// mountTmpfs mounts a file system of 8 KiB.
func mountTmpfs(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k") }
