package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// The exit codes of a program that runs another, as env(1), nohup(1) and
// timeout(1) use them. Every other code is the program's own.
const (
	ExitOwn        = 125 // the launcher itself failed
	ExitCannotExec = 126 // the command was found but cannot be executed
	ExitNotFound   = 127 // the command was not found
)

// ExitError says with which code the process should exit: ExitCannotExec or
// ExitNotFound.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode returns the exit code for an error of this package or of what led to
// it: 0 for nil, the code of an *ExitError, ExitOwn for all else.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*ExitError](err); ok {
		return e.Code
	}
	return ExitOwn
}

// Exec turns this process into the program argv[0], looked up in the PATH of
// env, with argv and env. It returns only if that fails: with an *ExitError
// where the fault is the command's. env is wiped then.
//
// A failed Exec leaves signal dispositions and limits as the program would have
// had them: the caller should report the error and exit.
func Exec(argv []string, env *Env) error {
	defer env.Wipe()
	file, size, err := prepare(argv, env)
	if err != nil {
		return err
	}
	// Some of what is put back belongs to the thread that calls execve.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	putBack()
	// syscall.Exec copies the environment to the heap. Should the call fail, the
	// copy is erased as what Do's function leaves behind, at the collection.
	kek.Do(func() { err = syscall.Exec(file, argv, env.list) })
	runtime.GC()
	return explain(err, argv[0], file, size)
}

// prepare finds the command, and how many bytes the kernel is to hand it.
func prepare(argv []string, env *Env) (file string, size int, err error) {
	if env == nil || env.list == nil {
		return "", 0, errors.New("no environment to run a command in")
	}
	if len(argv) == 0 {
		return "", 0, errors.New("no command to run")
	}
	path, ok := env.path()
	if !ok {
		path = defaultPath
	}
	if file, err = LookPath(argv[0], path); err != nil {
		return "", 0, err
	}
	size = len(file) + 1
	for _, list := range [][]string{argv, env.list} {
		for _, s := range list {
			size += len(s) + 1
		}
	}
	return file, size, nil
}

// explain says in words why execve(2) of file did not work.
func explain(err error, name, file string, size int) error {
	if errors.Is(err, syscall.E2BIG) {
		return tooBig(size)
	}
	fail := func(h, format string, args ...any) error {
		err := fmt.Errorf("cannot execute %q: "+format, append([]any{name}, args...)...)
		if h != "" {
			err = hint.Wrap(err, h)
		}
		return &ExitError{ExitCannotExec, err}
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		if _, serr := os.Stat(file); serr != nil {
			return &ExitError{ExitNotFound, fmt.Errorf("%q: no such file", name)}
		}
		// The file is there, so it is what the file asks for that is not.
		if i := interpreter(file); i != "" {
			return fail("install it, or correct the first line of "+quote(file), "its interpreter %q does not exist", i)
		}
		return fail("see which with: file "+quote(file), "the dynamic linker that it names does not exist")
	case errors.Is(err, syscall.EACCES):
		return &ExitError{ExitCannotExec, cannotRead(name, file)}
	case errors.Is(err, syscall.ENOEXEC):
		switch magic := head(file, 4); {
		case magic == "\x7fELF" || strings.HasPrefix(magic, "\xcf\xfa\xed\xfe") || strings.HasPrefix(magic, "\xca\xfe\xba\xbe"):
			return fail("install the build for "+runtime.GOOS+" "+runtime.GOARCH, "it is built for another kind of machine, or damaged")
		case magic == "":
			return fail("", "it is an empty file")
		}
		return fail("if it is a script, make #!/bin/sh or the like its first line", "it is neither a program nor a script that says what runs it")
	}
	return fail("", "%w", err)
}

// cannotRead explains EACCES on file.
func cannotRead(name, file string) error {
	fi, err := os.Stat(file)
	switch {
	case err != nil:
		return fmt.Errorf("cannot execute %q: %w", name, syscall.EACCES)
	case fi.IsDir():
		return fmt.Errorf("cannot execute %q: it is a directory", name)
	case fi.Mode()&0o111 == 0:
		return hint.Errorf("chmod +x "+quote(file), "cannot execute %q: it is not marked executable", name)
	}
	return hint.Errorf("check its owner and mode, those of its interpreter, and whether the file system is mounted noexec: ls -l "+quote(file),
		"cannot execute %q: %w", name, syscall.EACCES)
}

// interpreter returns what the file's #! line names, or "".
func interpreter(file string) string {
	// BINPRM_BUF_SIZE of Linux is 256, the limit of macOS 512.
	line, ok := strings.CutPrefix(head(file, 512), "#!")
	if !ok {
		return ""
	}
	line, _, _ = strings.Cut(line, "\n")
	// A \r, not a blank to the kernel, is the usual reason why the name is wrong.
	if words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' }); len(words) > 0 {
		return words[0]
	}
	return ""
}

// head returns at most the first n bytes of a regular file, or "".
func head(file string, n int64) string {
	if fi, err := os.Stat(file); err != nil || !fi.Mode().IsRegular() {
		return "" // opening a FIFO would wait for a writer
	}
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	var b bytes.Buffer
	_, _ = io.Copy(&b, io.LimitReader(f, n))
	return b.String()
}

// quote quotes a path for a shell, where that is needed.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// tooBig is what E2BIG means.
func tooBig(size int) error {
	return &ExitError{ExitCannotExec, hint.Errorf("ask for fewer secrets, hand large ones over in files, or start from less with --clean-env",
		"arguments and environment take %d bytes, more than the system hands to a program (%s)", size, totalRule)}
}
