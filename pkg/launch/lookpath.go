package launch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
)

// defaultPath is searched when the program's environment has no PATH, as
// execvp(3) of glibc does with the one of confstr(_CS_PATH).
const defaultPath = "/bin:/usr/bin"

// LookPath finds the file that execvp(3) would run for name: name itself when
// it has a slash, else the first executable of that name in the directories of
// path. A match through a relative directory, or the empty one, which is the
// working directory, is refused, as os/exec does: the working directory may
// belong to someone else. Errors are *ExitError.
func LookPath(name, path string) (string, error) {
	if name == "" {
		return "", &ExitError{ExitNotFound, errors.New("the command to run is an empty word")}
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := ""
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		switch err := executable(file); {
		case errors.Is(err, fs.ErrPermission):
			if denied == "" {
				denied = file
			}
		case err != nil: // not here, or nothing that can be run
		case !filepath.IsAbs(dir):
			return "", &ExitError{ExitCannotExec, hint.Errorf("run ./"+file+" if it is meant, or take the relative directory out of PATH",
				"cannot execute %q: PATH finds it only relative to the working directory", name)}
		default:
			return file, nil
		}
	}
	if denied != "" {
		return "", &ExitError{ExitCannotExec, cannotRead(name, denied)}
	}
	return "", &ExitError{ExitNotFound, hint.Errorf("check the spelling, or give the full path: a service's PATH is shorter than a shell's",
		"%q: command not found in PATH", name)}
}

// executable returns nil if this process may execute the file.
func executable(file string) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return unix.EISDIR
	}
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS); err != nil {
		return err
	}
	return nil
}
