// Package peer is everything about who is at the other end of the agent's Unix
// socket, and how much of the agent they may take.
//
// The agent's side: Listen, or Inherited under systemd, gives the socket; Limit
// closes what strangers and floods open before a byte of it is read;
// ServerCredentials puts an Info into every call's context; Info.Alive asks
// again, right before a secret is released, whether the caller is still there
// and still who it was; Inflight bounds the calls of each caller.
//
// The client's side: Locate finds the agent and judges the place, Target.Dial
// connects and judges who listens, Target.Connect speaks gRPC over it.
//
// What the kernel vouches for is the uid, gid and process that called
// connect(2). A process can hand its socket to another, or become another
// program by execve(2), so an executable's name is a help to read a log and to
// share out capacity; it is never a proof that a person, or a certain program,
// is asking.
package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// Errors about a caller, for errors.Is.
var (
	ErrGone     = errors.New("the caller has gone")
	ErrChanged  = errors.New("the caller is not who it was when it connected")
	ErrStranger = errors.New("the caller's account is not served here")
)

// Info is a caller as the kernel described it when its connection was accepted.
// It implements credentials.AuthInfo.
type Info struct {
	credentials.CommonAuthInfo

	UID, GID uint32 // effective ids at connect(2)
	// PID is 0 when the caller is in a pid namespace that this process cannot see.
	PID int32
	// Exe is the path of what the caller executes, as readlink(2) gives it for
	// /proc/PID/exe: in the caller's mount namespace, and ending in " (deleted)"
	// when the file is gone. It is "" when it cannot be read: a process that is
	// not dumpable hides it from all but root. macOS: always "".
	Exe string
	// Unit is the systemd unit that the caller's cgroup belongs to, at most 511
	// bytes: "myapp.service", "session-3.scope", or for a unit of a user's own
	// manager "user@1000.service/foo.service", whose last part that user chose.
	// It is "" when there is none or it cannot be read. macOS: always "".
	Unit string

	proc process // what keeps the pid from meaning another process
	use  use     // of the connection
}

// AuthType returns "peer".
func (*Info) AuthType() string { return "peer" }

// String describes the caller for a log or an error.
func (i *Info) String() string {
	s := fmt.Sprintf("uid %d, pid %d", i.UID, i.PID)
	if i.Exe != "" {
		s += fmt.Sprintf(", executable %q", i.Exe)
	}
	if i.Unit != "" {
		s += ", unit " + i.Unit
	}
	return s
}

// FromContext returns the caller of the RPC that ctx belongs to. It is false
// when the server does not use ServerCredentials.
func FromContext(ctx context.Context) (*Info, bool) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(*Info)
	return info, ok
}

// Alive returns nil while the process that connected runs, has the uid that it
// had, executes the file that it did, and its connection is open. It is asked
// right before a secret is released. The errors are ErrGone, ErrChanged, or
// that the system does not tell; on each of them nothing may be released.
func (i *Info) Alive() error {
	if err := i.proc.alive(i); err != nil {
		return fmt.Errorf("%s: %w", i, err)
	}
	return nil
}

// Trust is a set of accounts, by uid.
type Trust []uint32

// OwnOrRoot is the account that this process runs as, and root.
func OwnOrRoot() Trust {
	if self := uint32(os.Geteuid()); self != 0 {
		return Trust{self, 0}
	}
	return Trust{0}
}

// Has reports whether uid is one of the accounts. The uid that the kernel shows
// in place of those that a user namespace does not map is nobody in particular,
// and never trusted there (user_namespaces(7)).
func (t Trust) Has(uid uint32) bool {
	return slices.Contains(t, uid) && !isUnmapped(uid)
}
