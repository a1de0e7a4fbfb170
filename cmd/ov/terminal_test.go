package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// patience is how long a terminal may take to show what is waited for.
const patience = 20 * time.Second

// screen collects what a terminal shows.
type screen struct {
	mu    sync.Mutex
	shown []byte
	more  chan struct{} // closed and renewed when there is more
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown = append(s.shown, b...)
	close(s.more)
	s.more = make(chan struct{})
	return len(b), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(string(s.shown), "\r\n", "\n")
}

// wait waits until text is shown at or behind from, and returns where it ends.
func (s *screen) wait(text string, from int) (int, error) {
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		at, more := bytes.Index(s.shown[from:], []byte(text)), s.more
		s.mu.Unlock()
		if at >= 0 {
			return from + at + len(text), nil
		}
		select {
		case <-more:
		case <-deadline:
			return 0, fmt.Errorf("the terminal did not show %q, but: %q", text, s.String()[from:])
		}
	}
}

// cmdTTY is `tty CODE DIALOG PROGRAM ARG...`: the program is run on a terminal.
// The lines of the file DIALOG are
//
//	< TEXT     wait until the terminal shows TEXT
//	> TEXT     wait until the echo is off, then type TEXT and a return
//	! TEXT     type TEXT and a return, with the echo on
//	^ C        wait until the echo is off, then type control-C
//
// The terminal must not show what was typed, and must be as before when the
// program has ended, and be let go of by everything that it started. What it has
// shown becomes standard output.
func cmdTTY(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	dialog, argv := ts.ReadFile(args[1]), args[2:]
	ts.Check(ts.Exec("env", "-0"))
	env := strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\x00"), "\x00")

	ptmx, tty, err := pty.Open()
	ts.Check(err)
	defer func() { _ = ptmx.Close() }()
	ts.Check(pty.Setsize(ptmx, &pty.Winsize{Rows: 50, Cols: 200}))
	before, err := term.GetState(int(tty.Fd()))
	ts.Check(err)

	shown := &screen{more: make(chan struct{})}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		b := make([]byte, 4096)
		for {
			n, err := ptmx.Read(b) // EIO when nobody has the terminal any more
			_, _ = shown.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()

	path, err := exec.LookPath(lookIn(ts, argv[0]))
	ts.Check(err)
	cmd := exec.Command(path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir, cmd.Env = ts.MkAbs("."), env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	talkErr := talk(shown, ptmx, tty, dialog)
	if talkErr != nil {
		_ = cmd.Process.Kill()
	}
	late := time.AfterFunc(patience, func() {
		talkErr = errors.New("the program does not end")
		_ = cmd.Process.Kill()
	})
	status := exitStatus(ts, cmd.Wait())
	late.Stop()
	after, err := term.GetState(int(tty.Fd()))
	ts.Check(err)
	_ = tty.Close()
	select {
	case <-gone:
	case <-time.After(patience):
		ts.Fatalf("the program has ended, and something that it started keeps the terminal")
	}
	fmt.Fprint(ts.Stdout(), shown)
	switch {
	case talkErr != nil:
		ts.Fatalf("%v", talkErr)
	case status != want:
		ts.Fatalf("%s: exit code %d, not %d", strings.Join(argv, " "), status, want)
	case *before != *after:
		ts.Fatalf("the terminal is not left as it was found")
	}
}

// lookIn finds a program in the script's PATH.
func lookIn(ts *testscript.TestScript, name string) string {
	for _, dir := range strings.Split(ts.Getenv("PATH"), ":") {
		if st, err := os.Stat(dir + "/" + name); err == nil && st.Mode().IsRegular() {
			return dir + "/" + name
		}
	}
	return name
}

// talk carries out a dialog.
func talk(shown *screen, ptmx, tty *os.File, dialog string) error {
	at := 0
	var typed []string
	for line := range strings.Lines(dialog) {
		line = strings.TrimSuffix(line, "\n")
		what, text, _ := strings.Cut(line, " ")
		var err error
		switch what {
		case "<":
			at, err = shown.wait(text, at)
		case ">":
			typed = append(typed, text)
			err = typeIn(ptmx, tty, text+"\r")
		case "!":
			_, err = ptmx.WriteString(text + "\r")
		case "^":
			err = typeIn(ptmx, tty, string(rune(text[0]&0x1f)))
		default:
			err = fmt.Errorf("not a line of a dialog: %q", line)
		}
		if err != nil {
			return err
		}
	}
	for _, text := range typed {
		if text != "" && strings.Contains(shown.String(), text) {
			return fmt.Errorf("the terminal shows what was typed: %q", text)
		}
	}
	return nil
}

// typeIn types when the echo is off.
func typeIn(ptmx, tty *os.File, keys string) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		echo, err := echoes(tty)
		if err != nil {
			return err
		}
		if !echo {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the echo is still on")
		}
	}
	_, err := ptmx.WriteString(keys)
	return err
}
