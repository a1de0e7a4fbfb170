package safefile

import "golang.org/x/sys/unix"

// dirFlags opens a directory for looking up names. O_SEARCH needs search
// permission only, not read permission.
const dirFlags = unix.O_SEARCH

func renameNoReplace(dirfd int, from, to string) error {
	return unix.RenameatxNp(dirfd, from, dirfd, to, unix.RENAME_EXCL)
}
