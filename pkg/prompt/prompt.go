// Package prompt reads secrets from a person or a pipe into locked memory.
//
// Prompts go to the controlling terminal, never to standard output, so that
// they work while the program's output is redirected.
package prompt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
)

// ErrNoTerminal says that there is nobody to ask.
var ErrNoTerminal = errors.New("there is no terminal to ask on")

// errEmpty is how Line says that there was nothing to read.
var errEmpty = errors.New("standard input is empty")

// maxAnswer bounds what is typed, in bytes; a terminal's line holds 4,096.
const maxAnswer = 4096

// Secret asks on the controlling terminal, without echo. The answer may be
// empty. It fails with ErrNoTerminal when there is no terminal.
func Secret(question string) (*kek.Locked, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	defer func() { _ = tty.Close() }()
	fd := int(tty.Fd())
	old, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	defer restoreOnSignal(fd, old)()
	// Before the question: whoever answers at once would see the answer.
	if err := echoOff(fd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	defer func() { _ = term.Restore(fd, old) }()
	if _, err := fmt.Fprint(tty, question); err != nil {
		return nil, err
	}
	// Not term.ReadPassword: it sets the terminal again, and an interrupt just
	// before that would leave it without echo.
	answer, err := Line(tty, maxAnswer)
	_, _ = fmt.Fprintln(tty)
	if errors.Is(err, errEmpty) {
		return nil, errors.New("the input ended before an answer was given")
	}
	return answer, err
}

func echoOff(fd int) error {
	t, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return err
	}
	t.Lflag &^= unix.ECHO
	t.Lflag |= unix.ICANON | unix.ISIG
	t.Iflag |= unix.ICRNL
	return unix.IoctlSetTermios(fd, setTermios, t)
}

// restoreOnSignal turns the echo on again when the program is interrupted in
// the middle of a question, then lets the signal do its work.
func restoreOnSignal(fd int, old *term.State) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			_ = term.Restore(fd, old)
			signal.Reset(s)
			_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
		case <-done:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// Twice asks for a new secret and for its repetition, until both are the same.
func Twice(question, again string) (*kek.Locked, error) {
	for range 3 {
		a, err := Secret(question)
		if err != nil {
			return nil, err
		}
		b, err := Secret(again)
		if err != nil {
			a.Destroy()
			return nil, err
		}
		same := a.Equal(b)
		b.Destroy()
		if same {
			return a, nil
		}
		a.Destroy()
		question = "They differ. " + question
	}
	return nil, errors.New("the two answers differed three times")
}

// Line reads one line, without its end (LF or CRLF), of at most limit bytes.
// It reads no further than the line, so that another may follow.
func Line(r io.Reader, limit int) (*kek.Locked, error) {
	l, err := kek.NewLocked(limit + 2)
	if err != nil {
		return nil, err
	}
	b := l.Bytes()
	for n := 0; ; n++ {
		if n == len(b) {
			l.Destroy()
			return nil, fmt.Errorf("the line is longer than %d bytes", limit)
		}
		_, err := io.ReadFull(r, b[n:n+1])
		if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
			l.Destroy()
			if errors.Is(err, io.EOF) {
				err = hint.Wrap(errEmpty, "write it to standard input, followed by a newline")
			}
			return nil, err
		}
		if err == nil && b[n] != '\n' {
			continue
		}
		if n > 0 && b[n-1] == '\r' {
			n--
		}
		if n > limit {
			l.Destroy()
			return nil, fmt.Errorf("the line is longer than %d bytes", limit)
		}
		l.Truncate(n)
		return l, nil
	}
}

// DropNewline takes the newline from the end of a single line.
func DropNewline(l *kek.Locked) {
	b := l.Bytes()
	n := len(b)
	if n == 0 || bytes.IndexByte(b, '\n') != n-1 {
		return
	}
	n--
	if n > 0 && b[n-1] == '\r' {
		n--
	}
	l.Truncate(n)
}

// All reads everything, at most limit bytes.
func All(r io.Reader, limit int) (*kek.Locked, error) {
	l, err := kek.NewLocked(limit + 1)
	if err != nil {
		return nil, err
	}
	n, err := io.ReadFull(r, l.Bytes())
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		l.Truncate(n)
		return l, nil
	case err == nil:
		err = fmt.Errorf("more than %d bytes", limit)
	}
	l.Destroy()
	return nil, err
}
