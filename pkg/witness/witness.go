// Package witness keeps what this user has seen of vaults on servers, so that a
// server cannot go back to an earlier time unnoticed: a vault.Witness in files.
//
// There is one file for each account, of mode 0600 in a directory of mode 0700.
// It holds no secret and no name of one. Whoever can write it can make us forget;
// that is who could also replace the program.
package witness

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/xdg"
)

// ErrDamaged is wrapped when what was remembered cannot be read.
var ErrDamaged = errors.New("the memory of the vault is damaged")

const (
	lockName = "lock"
	// lockWait is how long another process is waited for. Writing takes
	// milliseconds.
	lockWait = 5 * time.Second
)

// Witness is a vault.Witness.
type Witness struct {
	dir    string
	err    error // there is no place
	report func(error)
	once   sync.Once
}

var _ vault.Witness = (*Witness)(nil)

// Open returns the witness that keeps its files in dir, by default
// $XDG_STATE_HOME/ov/seen (xdg.State).
//
// When nothing can be kept there, report is told why, once, and nothing is
// remembered. Nobody but the caller hears of it.
func Open(dir string, report func(error)) *Witness {
	w := &Witness{dir: dir, report: report}
	if dir == "" {
		w.dir, w.err = xdg.State("seen")
	}
	return w
}

// Recall implements vault.Witness. It fails with ErrDamaged.
func (w *Witness) Recall(account [16]byte) (*vault.Seen, error) {
	d, err := w.open()
	if err == nil {
		defer func() { _ = d.Close() }()
		var s *vault.Seen
		if s, _, err = w.read(d, account); err == nil || errors.Is(err, ErrDamaged) {
			return s, err
		}
	}
	w.tell(err)
	return &vault.Seen{}, nil
}

// Remember implements vault.Witness. Nothing is written when nothing is new.
func (w *Witness) Remember(account [16]byte, note func(*vault.Seen) bool) {
	if err := w.remember(account, note); err != nil {
		w.tell(err)
	}
}

func (w *Witness) remember(account [16]byte, note func(*vault.Seen) bool) error {
	d, err := w.open()
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	s, _, err := w.read(d, account)
	if err != nil || !note(s) {
		return err
	}
	unlock, err := lock(d)
	if err != nil {
		return err
	}
	defer unlock()
	s, old, err := w.read(d, account)
	if err != nil || !note(s) {
		return err
	}
	b := encode(s)
	if string(b) == string(old) {
		return nil
	}
	return d.Write(hex.EncodeToString(account[:]), b, safefile.Attr{Perm: 0o600, UID: -1, GID: -1, Replace: true})
}

// tell reports that nothing can be remembered, the first time.
func (w *Witness) tell(err error) {
	w.once.Do(func() {
		if w.report != nil {
			w.report(hint.Wrap(fmt.Errorf("cannot remember what the server showed, so that it could go back unnoticed: %w", err),
				"give a place that can be written: XDG_STATE_HOME, or StateDirectory= for a service"))
		}
	})
}

// open opens the directory, which it makes if it is not there.
func (w *Witness) open() (*safefile.Dir, error) {
	if w.err != nil {
		return nil, w.err
	}
	policy := safefile.Policy{Owner: os.Geteuid(), Sticky: true}
	d, err := safefile.OpenDir(w.dir, policy)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(w.dir, 0o700); err != nil {
			return nil, err
		}
		d, err = safefile.OpenDir(w.dir, policy)
	}
	if err != nil {
		return nil, err
	}
	if d.Fault != nil {
		_ = d.Close()
		return nil, d.Fault
	}
	return d, nil
}

// read returns what is remembered of the account, and the file.
func (w *Witness) read(d *safefile.Dir, account [16]byte) (*vault.Seen, []byte, error) {
	name := hex.EncodeToString(account[:])
	fd, info, err := d.Open(name, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return &vault.Seen{}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	damaged := func(err error) error {
		path := filepath.Join(d.Path(), name)
		return hint.Errorf("find out why, then forget what it showed: rm "+safefile.Shell(path), "%w: %s: %w", ErrDamaged, safefile.Quote(path), err)
	}
	// Without a name it is one that has just been replaced.
	if info.Type != unix.S_IFREG || info.UID != os.Geteuid() || info.Perm&0o077 != 0 || info.Links > 1 {
		return nil, nil, damaged(errors.New("it is not a file of mode 0600 that is yours alone"))
	}
	if info.Size > maxFile {
		return nil, nil, damaged(fmt.Errorf("%w: %d bytes", envelope.ErrMalformed, info.Size))
	}
	b := make([]byte, info.Size+1) // and see that it ends there
	n, err := safefile.ReadAll(fd, b)
	if err != nil {
		return nil, nil, err
	}
	s, err := decode(b[:n])
	if err != nil {
		return nil, nil, damaged(err)
	}
	return s, b[:n], nil
}

// lock keeps other processes out (flock(2)), until the returned function.
func lock(d *safefile.Dir) (unlock func(), err error) {
	path := filepath.Join(d.Path(), lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", safefile.Quote(path), err)
		}
	}
}
