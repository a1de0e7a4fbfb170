package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/launch"
	"github.com/opaquevault/ov/pkg/mask"
)

// grace is how long output is waited for after the program has ended, when
// something that it left behind holds its output open.
const grace = 2 * time.Second

// compileMask takes the names that the program knows the values by.
func compileMask(secrets []launch.Secret) (*mask.Set, error) {
	values := make([]mask.Value, len(secrets))
	for i, s := range secrets {
		values[i] = mask.Value{Name: s.Name, Bytes: s.Value}
	}
	return mask.Compile(values)
}

// runMasked runs argv as a child and passes its output on through set. Its error
// holds the exit code: the child's own, or 128 and the signal that ended it.
func runMasked(argv []string, env *launch.Env, set *mask.Set) error {
	defer set.Wipe()
	if skipped := set.Skipped(); len(skipped) > 0 {
		var list []string
		for _, s := range skipped {
			list = append(list, fmt.Sprintf("%s (%s)", s.Name, s.Why))
		}
		fmt.Fprintf(os.Stderr, "ov: warning: not masked: %s\n", strings.Join(list, ", "))
	}
	runtime.SetDefaultGOMAXPROCS() // run made it 1
	outputs, files, err := openOutputs(set)
	if err != nil {
		env.Wipe()
		return err
	}
	// Before the start, so that none is missed. Start takes those back that ov was
	// started to ignore and that are not known to be ignored here yet.
	signals := make(chan os.Signal, 16)
	for _, sig := range forwarded {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	// Else Go's runtime would end ov when nobody reads what it writes.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	child, err := launch.Start(argv, env, launch.StartOptions{Files: [3]*os.File{os.Stdin, files[0], files[1]}})
	_ = files[0].Close()
	_ = files[1].Close()
	if err != nil {
		return err
	}
	go forward(signals, child)
	var all sync.WaitGroup
	for _, o := range outputs {
		all.Go(o.copy)
	}
	state, err := child.Wait()
	signal.Reset(forwarded...) // nobody is left to tell: they end ov
	for _, o := range outputs {
		_ = o.from.SetReadDeadline(time.Now().Add(grace))
	}
	all.Wait()
	if err != nil {
		return fmt.Errorf("waiting for %q: %w", argv[0], err)
	}
	for _, o := range outputs {
		if o.err != nil && !errors.Is(o.err, syscall.EPIPE) {
			return fmt.Errorf("passing on the output of %q: %w", argv[0], o.err)
		}
	}
	code := state.ExitCode()
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	if code == 0 {
		return nil
	}
	return &launch.ExitError{Code: code, Err: errors.New("")} // the program has said why
}

// forwarded are the signals that are sent to a program to tell it something.
// Stopping and continuing are left to the kernel, which tells the whole process
// group of a terminal, and SIGCHLD and SIGURG are ov's own.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH,
}

// forward passes each signal on to the child, once, but for those that the
// terminal has sent to the child as well.
func forward(signals <-chan os.Signal, child *os.Process) {
	for sig := range signals {
		switch sig {
		case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH:
			if inForeground() {
				continue
			}
		}
		_ = child.Signal(sig)
	}
}

// inForeground reports whether ov is in the process group that a terminal sends
// signals to for the keys that are pressed (termios(3), ISIG).
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer func() { _ = tty.Close() }()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// output is one stream of the child's on its way.
type output struct {
	from *os.File
	to   *mask.Writer
	err  error // of writing
}

// openOutputs makes the pipes for the child's standard output and error. When
// both of ov's are the same file, as in a terminal or after 2>&1, so are the
// child's, and what is written to them stays in order.
func openOutputs(set *mask.Set) (outputs []*output, files [2]*os.File, err error) {
	to := []*os.File{os.Stdout, os.Stderr}
	one, err1 := os.Stdout.Stat()
	two, err2 := os.Stderr.Stat()
	if err1 == nil && err2 == nil && os.SameFile(one, two) {
		to = to[:1]
	}
	for i, to := range to {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, files, fmt.Errorf("a pipe for the program's output: %w", err)
		}
		outputs = append(outputs, &output{from: r, to: set.NewWriter(to)})
		files[i] = w
	}
	if files[1] == nil {
		files[1] = files[0]
	}
	return outputs, files, nil
}

// copy passes the stream on to its end, or to what has been written when the
// time after the child's end is over. When it cannot be passed on, the child is
// told so by its own writes: the pipe is closed.
func (o *output) copy() {
	defer func() { _ = o.from.Close() }()
	buf := make([]byte, 64<<10)
	defer clear(buf)
	for {
		n, err := o.from.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.drain(buf)
			err = io.EOF
		}
		if n > 0 && o.write(buf[:n]) != nil {
			break
		}
		if err != nil {
			break
		}
	}
	if err := o.to.Close(); o.err == nil {
		o.err = err
	}
}

func (o *output) write(b []byte) error {
	_, o.err = o.to.Write(b)
	return o.err
}

// drain passes on what is in the pipe already: a reader slower than the program
// must not lose the end of its output. Pipes hold 1 MiB at most (pipe(7)), so
// what is behind that is not the program's, which has ended.
func (o *output) drain(buf []byte) {
	conn, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < 1<<20 && o.err == nil; {
		n := 0
		if conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) }) != nil || err != nil || n <= 0 {
			return
		}
		total += n
		_ = o.write(buf[:n])
	}
}
