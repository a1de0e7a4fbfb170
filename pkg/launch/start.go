package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// StartOptions says how a child is started.
type StartOptions struct {
	Dir   string      // its working directory, which a command with a slash is relative to; "" is this one's
	Files [3]*os.File // its standard input, output and error; nil is /dev/null
	Group bool        // it gets a process group of its own, which has its pid as number
}

// Start runs argv as a child with env, which it wipes. The command is looked up
// and errors are told as Exec does; that Dir is no directory is not the
// command's fault, so not an *ExitError. The caller waits for the child.
//
// The child has the signal mask and the limits that this process was started
// with. Signals that this process was started to ignore, where it is known (see
// entry_linux_amd64.s), are ignored again from the first Start on, in this
// process too: a caller that wants to hear of them has to ask afterwards. On
// Linux the child is killed when this process ends, however it ends; what the
// child has started is not. Besides Files it gets the descriptors that this
// process was started with.
func Start(argv []string, env *Env, opts StartOptions) (*os.Process, error) {
	defer env.Wipe()
	file, size, err := prepare(argv, env)
	if err != nil {
		return nil, err
	}
	list := env.list
	if opts.Dir != "" {
		dir, err := directory(opts.Dir)
		if err != nil {
			return nil, err
		}
		// A program that asks PWD first would take the old one for its own.
		list = slices.DeleteFunc(slices.Clone(list), func(entry string) bool { return strings.HasPrefix(entry, "PWD=") })
		list = append(list, "PWD="+dir)
		opts.Dir = dir
	}
	if slices.Contains(opts.Files[:], nil) {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = null.Close() }()
		for i, f := range opts.Files {
			if f == nil {
				opts.Files[i] = null
			}
		}
	}
	attr := &os.ProcAttr{Dir: opts.Dir, Env: list, Files: opts.Files[:], Sys: attributes(opts)}
	var child *os.Process
	onStarter(func() {
		restore := lend()
		// The environment is copied to the heap, as in Exec.
		kek.Do(func() { child, err = os.StartProcess(file, argv, attr) })
		restore()
	})
	clear(list)
	go runtime.GC() // which erases the copy; the child need not wait for it
	if err == nil {
		return child, nil
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno // without the words fork/exec and the path
	}
	if opts.Dir != "" && !filepath.IsAbs(file) {
		file = filepath.Join(opts.Dir, file)
	}
	return nil, explain(err, argv[0], file, size)
}

// directory returns the absolute path of a directory that can be entered.
func directory(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &os.PathError{Op: "stat", Path: dir, Err: syscall.ENOTDIR}
	}
	if err == nil {
		if err = unix.Faccessat(unix.AT_FDCWD, dir, unix.X_OK, unix.AT_EACCESS); err != nil {
			err = &os.PathError{Op: "access", Path: dir, Err: err}
		}
	}
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("cannot run a command in that directory: %w", err), "give one that is there and can be entered")
	}
	return dir, nil
}

// starter is the thread that starts all children, and never ends: the kernel
// takes the end of the thread that forked for the end of the parent
// (PR_SET_PDEATHSIG of prctl(2)).
var starter struct {
	once sync.Once
	work chan func()
}

// onStarter runs f on the starter's thread.
func onStarter(f func()) {
	starter.once.Do(func() {
		starter.work = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range starter.work {
				f()
			}
		}()
	})
	done := make(chan struct{})
	starter.work <- func() {
		defer close(done)
		f()
	}
	<-done
}
