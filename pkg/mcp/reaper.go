package mcp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/mcp/options"
	"github.com/opaquevault/ov/pkg/sibling"
)

// reaper is a process that ends the process groups of a server that was killed:
// on Linux the kernel ends its direct children, but not theirs. The server says
// over a pipe which groups there are; the pipe's end is the server's.
type reaper struct {
	mu   sync.Mutex
	pipe io.WriteCloser
	cmd  *exec.Cmd
}

// startReaper runs this program again.
func startReaper() (*reaper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv, err := sibling.Args(options.Program, options.Serve{Reaper: true})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self) //nolint:gosec // G204: this program
	cmd.Args = argv
	cmd.Env = []string{}
	// Signals that the server's group gets are not meant for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the process that ends programs after a crash: %w", err)
	}
	return &reaper{pipe: pipe, cmd: cmd}, nil
}

// add and remove tell of a group. An error means that the reaper is gone.
func (r *reaper) add(pgid int) error { return r.tell('+', pgid) }

func (r *reaper) remove(pgid int) { _ = r.tell('-', pgid) }

func (r *reaper) tell(what byte, pgid int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := fmt.Fprintf(r.pipe, "%c%d\n", what, pgid)
	return err
}

// close ends the reaper. Every group has ended before.
func (r *reaper) close() {
	_ = r.pipe.Close()
	_ = r.cmd.Wait()
}

// Reap is the reaper's own part: it reads lines from r until it ends, and then
// ends the groups that are left.
func Reap(r io.Reader) error {
	groups := map[int]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		pgid, err := strconv.Atoi(strings.TrimLeft(line, "+-"))
		if err != nil || pgid <= 1 {
			return errors.New("a line that is not from the server")
		}
		if line[0] == '+' {
			groups[pgid] = true
		} else {
			delete(groups, pgid)
		}
	}
	for pgid := range groups {
		signalGroup(pgid, unix.SIGTERM)
	}
	if len(groups) > 0 {
		time.Sleep(termGrace)
	}
	for pgid := range groups {
		signalGroup(pgid, unix.SIGKILL)
	}
	return lines.Err()
}

func signalGroup(pgid int, sig syscall.Signal) { _ = unix.Kill(-pgid, sig) }
