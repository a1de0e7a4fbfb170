package safefile

import "golang.org/x/sys/unix"

// dirFlags opens a directory for looking up names: O_PATH needs search
// permission only, not read permission.
const dirFlags = unix.O_PATH

func renameNoReplace(dirfd int, from, to string) error {
	return unix.Renameat2(dirfd, from, dirfd, to, unix.RENAME_NOREPLACE)
}
