package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
)

// ReadyFlag tells ov-agent that Start is waiting for it, and to detach once it is
// ready.
const ReadyFlag = "--detach"

// readyFD is the descriptor on which a detaching agent says how its start went.
const readyFD = 3

// Executable finds ov-agent: beside this program, else in PATH.
func Executable() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), "ov-agent")
	if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
		return beside, nil
	}
	path, err := exec.LookPath("ov-agent")
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("cannot find ov-agent beside %s or in PATH: %w", self, err),
			"install both programs into one directory: make install")
	}
	return path, nil
}

// Start runs ov-agent with the arguments and returns when it is ready, or with
// the reason why it is not. The agent asks for what it needs on this process's
// terminal and standard input, then detaches: it goes on when this process ends.
func Start(program string, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	keepDescriptors()
	cmd := exec.Command(program, append(args, ReadyFlag)...)
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	cmd.ExtraFiles = []*os.File{w} // becomes readyFD
	// An interrupt at the prompt is the agent's, which puts the terminal right and
	// ends. Nobody gets the terminal back before that: this process waits.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(signals)
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(r, maxFault))
	if err != nil {
		return err
	}
	verdict, rest, _ := strings.Cut(string(said), "\n")
	switch verdict {
	case "ready":
		return cmd.Process.Release()
	case "failed":
		_ = cmd.Wait()
		text, advice, _ := strings.Cut(rest, "\x00")
		return hint.Wrap(errors.New(text), advice)
	}
	err = cmd.Wait()
	select {
	case s := <-signals: // now end of it too
		signal.Reset(s)
		_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
	default:
	}
	if err != nil {
		return fmt.Errorf("%s ended before it was ready: %w", program, err)
	}
	return fmt.Errorf("%s ended before it was ready", program)
}

// Parent is the Start that waits for this process. It is told once how things
// went: after that the descriptor may be anything, such as the vault's.
type Parent struct{ ready *os.File }

// FindParent returns the Start that waits. Call it before a file is opened. It
// fails when this process was not made by Start.
func FindParent() (*Parent, error) {
	var st unix.Stat_t
	if err := unix.Fstat(readyFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("%s is for ov agent start alone: there is no pipe to say on that the agent is ready", ReadyFlag)
	}
	unix.CloseOnExec(readyFD)
	return &Parent{os.NewFile(readyFD, "ready")}, nil
}

// Detach tells Start that the agent is ready, after leaving the terminal: a
// session of its own, standard streams on /dev/null and the log.
func (p *Parent) Detach(log *os.File) error {
	if _, err := unix.Setsid(); err != nil {
		return os.NewSyscallError("setsid", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	for fd, f := range []*os.File{null, null, log} {
		if err := dup2(int(f.Fd()), fd); err != nil {
			return os.NewSyscallError("dup2", err)
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return p.say("ready\n")
}

// Failed tells Start why the agent could not start. It fails when Start was told
// something before.
func (p *Parent) Failed(err error) error {
	return p.say("failed\n" + err.Error() + "\x00" + hint.Of(err))
}

func (p *Parent) say(text string) error {
	_, err := p.ready.WriteString(text)
	return errors.Join(err, p.ready.Close())
}
