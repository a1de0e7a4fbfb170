package embedded

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a file system of some bytes.
func mountTmpfs(dir string, size int) error {
	return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))
}
