package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"time"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/rendezvous"
)

const (
	// commandTimeout bounds how long systemctl or journalctl may take.
	commandTimeout = 10 * time.Second
	// maxOutput bounds what is read of either, in bytes.
	maxOutput = 1 << 20
)

// System is the machine that is looked at. Its functions are the parts that a
// test cannot have for real.
type System struct {
	// Systemctl and Journalctl run those commands; nil where systemd is not the
	// init of the machine.
	Systemctl  func(ctx context.Context, args ...string) ([]byte, error)
	Journalctl func(ctx context.Context, args ...string) ([]byte, error)
	// User looks an account up, by name or number.
	User func(name string) (*user.User, error)
	// Locate finds the agent.
	Locate     func() (peer.Target, error)
	Rendezvous string // path of the file
	UnitDir    string // where administrators keep units
	UID        int    // the effective uid
}

// ThisMachine returns the machine that the program runs on. socket is the value
// of --socket, or "".
func ThisMachine(socket string) *System {
	s := &System{
		User: func(name string) (*user.User, error) {
			if _, err := strconv.Atoi(name); err == nil {
				return user.LookupId(name)
			}
			return user.Lookup(name)
		},
		Locate:     func() (peer.Target, error) { return peer.Locate(peer.Options{Socket: socket}) },
		Rendezvous: rendezvous.Path,
		UnitDir:    "/etc/systemd/system",
		UID:        os.Geteuid(),
	}
	if info, err := os.Lstat("/run/systemd/system"); err == nil && info.IsDir() { // as sd_booted(3)
		s.Systemctl, s.Journalctl = runner("systemctl"), runner("journalctl")
	}
	return s
}

// runner returns a function that runs a command with nobody to answer it.
func runner(name string) func(ctx context.Context, args ...string) ([]byte, error) {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		out := &bounded{}
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=", "SYSTEMD_LOG_LEVEL=err")
		cmd.Stdout, cmd.WaitDelay = out, time.Second
		err := cmd.Run()
		switch {
		case ctx.Err() != nil:
			err = fmt.Errorf("%s has not answered within %v", name, commandTimeout)
		case out.full:
			err = fmt.Errorf("%s answered with more than %d bytes", name, maxOutput)
		case err != nil:
			err = fmt.Errorf("%s: %w", name, err)
		}
		return out.buf.Bytes(), err
	}
}

// bounded is a buffer that refuses more than maxOutput bytes. It has no ReadFrom,
// which would go around Write.
type bounded struct {
	buf  bytes.Buffer
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxOutput {
		b.full = true
		return 0, errors.New("too much output")
	}
	return b.buf.Write(p)
}
