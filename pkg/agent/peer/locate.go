package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/rendezvous"
	"github.com/opaquevault/ov/pkg/safefile"
)

// MaxSocketPath is the longest path of a Unix socket in bytes: 107 on Linux
// (unix(7)), 103 on macOS.
const MaxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// Source says how a socket was found.
type Source string

// The places that Locate looks at.
const (
	FromFlag       Source = "flag"       // --socket
	FromRendezvous Source = "rendezvous" // the file that `ov agent install` wrote
	FromRuntimeDir Source = "user"       // the caller's own runtime directory
)

// Target is an agent's socket and who may be listening on it.
type Target struct {
	Socket string // absolute path
	Source Source
	Owner  uint32 // uid of the socket's owner
	Trust  Trust  // who may listen: the caller's account, root and, for root, Owner
	// Other is the socket that the rendezvous names, when it was passed over
	// because another account's agent has it, or "".
	Other string

	rendezvous string // path of the file, for messages
}

// Options are what Locate goes by.
type Options struct {
	Socket string // the value of --socket, or ""
	// Rendezvous is the file to read in place of rendezvous.Path. It is for
	// tests: no flag, file or variable may lead here.
	Rendezvous string

	runUser string // in place of /run/user
}

// NotRunning says that there is no agent where one was looked for.
type NotRunning struct {
	Socket string // "" when there is no runtime directory to look in
	Other  string // see Target
	Source Source

	rendezvous string
}

func (e *NotRunning) Error() string {
	switch {
	case e.Other != "" && e.Socket == "":
		return fmt.Sprintf("no agent of yours is running, and the one at %s, which %s names, is another account's", quote(e.Other), quote(e.rendezvous))
	case e.Other != "":
		return fmt.Sprintf("no agent of yours is running at %s, and the one at %s, which %s names, is another account's", quote(e.Socket), quote(e.Other), quote(e.rendezvous))
	case e.Socket == "":
		return "no agent is running: there is no runtime directory to find it in"
	case e.Source == FromRendezvous:
		return fmt.Sprintf("no agent is running at %s, which %s names", quote(e.Socket), quote(e.rendezvous))
	}
	return "no agent is running at " + quote(e.Socket)
}

func notRunning(t Target) error {
	e := &NotRunning{Socket: t.Socket, Other: t.Other, Source: t.Source, rendezvous: t.rendezvous}
	switch {
	case t.Source == FromRendezvous:
		return hint.Wrap(e, "sudo systemctl start ov-agent, or see: ov doctor")
	case t.Source == FromFlag:
		return hint.Wrap(e, "ov agent start --socket "+safefile.Shell(t.Socket))
	case t.Socket == "":
		return hint.Wrap(e, noRuntimeDir)
	}
	return hint.Wrap(e, "ov agent start")
}

// OtherAccount says that a socket is sound, but an agent of an account other
// than the caller's has it. Such an agent serves its own account and root.
type OtherAccount struct {
	Socket string
	UID    uint32
}

func (e *OtherAccount) Error() string {
	return fmt.Sprintf("the agent at %s is %s's: it serves only that account and root", quote(e.Socket), account(e.UID))
}

// Locate finds the agent for the account that this process runs as. It looks at
// --socket, then at the rendezvous, then in the account's runtime directory:
// $XDG_RUNTIME_DIR, or /run/user/UID where that is not set, or on macOS
// $TMPDIR. The first of them that is given or exists decides, except that a
// rendezvous of another account's agent gives way to the caller's own.
//
// The errors are *NotRunning, *OtherAccount, and what is wrong with a place
// that cannot be trusted: a *safefile.Unsafe, or what rendezvous.Read returns.
func Locate(o Options) (Target, error) {
	if o.Socket != "" {
		abs, err := filepath.Abs(o.Socket)
		if err != nil {
			return Target{}, fmt.Errorf("cannot tell where --socket %s is: %w", quote(o.Socket), err)
		}
		return Target{Socket: abs, Source: FromFlag}.judge()
	}
	file := o.Rendezvous
	if file == "" {
		file = rendezvous.Path
	}
	socket, err := rendezvous.Read(file)
	var other string
	switch {
	case err == nil:
		t, err := Target{Socket: socket, Source: FromRendezvous, rendezvous: file}.judge()
		var theirs *OtherAccount
		if !errors.As(err, &theirs) {
			return t, err
		}
		other = socket
	case !errors.Is(err, fs.ErrNotExist):
		return Target{}, err
	}
	t := Target{Source: FromRuntimeDir, Other: other, rendezvous: file}
	if t.Socket, err = ownSocket(o.runUser); err != nil {
		return Target{}, err
	}
	if t.Socket == "" {
		return t, notRunning(t)
	}
	return t.judge()
}

// OwnSocket returns where an agent that the account of this process starts for
// itself listens: ov-agent/ov-agent.sock in its runtime directory. If that
// ov-agent is there already, it must be such as Locate accepts.
func OwnSocket() (string, error) {
	socket, err := ownSocket("")
	if err != nil {
		return "", err
	}
	if socket == "" {
		return "", hint.Errorf(noRuntimeDir, "there is no runtime directory to put the agent's socket in")
	}
	self := os.Geteuid()
	dir, err := safefile.OpenDir(filepath.Dir(socket), safefile.Policy{Owner: self, Sticky: true})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return socket, nil
	case err != nil:
		return "", cannotLook(socket, err)
	}
	defer func() { _ = dir.Close() }()
	if dir.Fault != nil {
		return "", dir.Fault
	}
	return socket, checkOwnDir(dir.Path(), dir.Info(), uint32(self))
}

const noRuntimeDir = "set " + runtimeDirVariable + " to a directory that only you can write, or name a socket in one: --socket PATH"

// ownSocket returns "" if there is no runtime directory.
func ownSocket(runUser string) (string, error) {
	dir := os.Getenv(runtimeDirVariable)
	if dir == "" {
		if dir = defaultRuntimeDir(runUser); dir == "" {
			return "", nil
		}
	}
	if !path.IsAbs(dir) {
		return "", hint.Errorf(noRuntimeDir, "%s is not an absolute path: %s", runtimeDirVariable, quote(dir))
	}
	socket := filepath.Join(dir, "ov-agent", "ov-agent.sock")
	return socket, checkLength(socket)
}

func checkLength(socket string) error {
	if len(socket) > MaxSocketPath {
		return hint.Errorf("choose a shorter one: --socket PATH",
			"the socket's path is %d bytes long, and the system allows %d: %s", len(socket), MaxSocketPath, quote(socket))
	}
	return nil
}

// judge says whether the target's place can be trusted, and whose it is.
//
// Where the caller would trust an account only because the socket is its (the
// rendezvous, and root), the place must show that nobody else could have put it
// there: every directory down to it is root's or that account's, and closed to
// others. Otherwise what listens has to be the caller's or root's in any case,
// and a directory such as /tmp may be on the way.
func (t Target) judge() (Target, error) {
	if !path.IsAbs(t.Socket) {
		return t, fmt.Errorf("the socket's path is not absolute: %s", quote(t.Socket))
	}
	if err := checkLength(t.Socket); err != nil {
		return t, err
	}
	self := uint32(os.Geteuid())
	dirName, name := filepath.Split(t.Socket)

	// Whose does it look to be? The walk below shows whether that is so.
	seen, err := os.Lstat(t.Socket)
	absent := errors.Is(err, fs.ErrNotExist)
	if absent {
		if seen, err = os.Stat(dirName); errors.Is(err, fs.ErrNotExist) {
			return t, notRunning(t)
		}
	}
	if err != nil {
		return t, cannotLook(t.Socket, err)
	}
	t.Owner = seen.Sys().(*syscall.Stat_t).Uid
	ours := t.Owner == self || t.Owner == 0
	policy := safefile.Policy{Owner: int(self), Sticky: true}
	if t.Source == FromRendezvous || !ours {
		policy = safefile.Policy{Owner: int(t.Owner)}
	}

	dir, err := safefile.OpenDir(dirName, policy)
	if errors.Is(err, fs.ErrNotExist) {
		return t, notRunning(t)
	} else if err != nil {
		return t, cannotLook(t.Socket, err)
	}
	defer func() { _ = dir.Close() }()
	if dir.Fault != nil {
		return t, dir.Fault
	}
	if t.Source == FromRuntimeDir {
		if err := checkOwnDir(dir.Path(), dir.Info(), self); err != nil {
			return t, err
		}
	}
	if !absent {
		info, err := dir.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			absent = true
		case err != nil:
			return t, cannotLook(t.Socket, err)
		case info.Type != unix.S_IFSOCK:
			return t, hint.Wrap(&safefile.Unsafe{Path: t.Socket, Fault: "is " + safefile.TypeName(info.Type) + ", not a socket"},
				"remove it, and start the agent again: rm "+safefile.Shell(t.Socket))
		case info.UID != int(t.Owner):
			return t, &safefile.Unsafe{Path: t.Socket, Fault: "changed hands while it was looked at"}
		}
	}
	switch {
	case !ours && self != 0:
		return t, hint.Wrap(&OtherAccount{t.Socket, t.Owner}, "start an agent of your own: ov agent start")
	case absent:
		return t, notRunning(t)
	}
	t.Trust = OwnOrRoot()
	if !ours {
		t.Trust = append(t.Trust, t.Owner)
	}
	return t, nil
}

// checkOwnDir holds the directory of an account's own agent to mode 0700.
func checkOwnDir(dir string, info safefile.Info, self uint32) error {
	if info.UID != int(self) {
		return hint.Wrap(&safefile.Unsafe{Path: dir, Fault: "is owned by " + safefile.User(info.UID) + ", not by you"},
			"set "+runtimeDirVariable+" to your own runtime directory")
	}
	if info.Perm&0o077 != 0 {
		return hint.Wrap(&safefile.Unsafe{Path: dir, Fault: fmt.Sprintf("is open to others (mode %04o)", info.Perm)},
			"chmod 700 "+safefile.Shell(dir))
	}
	return nil
}

func cannotLook(socket string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return hint.Wrap(fmt.Errorf("cannot reach the agent's socket %s: %w", quote(socket), err),
			"it is another account's: start an agent of your own with ov agent start")
	}
	return fmt.Errorf("cannot look at the agent's socket %s: %w", quote(socket), err)
}

func quote(path string) string { return safefile.Quote(path) }

// account names a uid for a person: "deploy (uid 1001)".
func account(uid uint32) string {
	name := safefile.User(int(uid))
	if id := strconv.FormatUint(uint64(uid), 10); name != id {
		return name + " (uid " + id + ")"
	}
	return "uid " + name
}
