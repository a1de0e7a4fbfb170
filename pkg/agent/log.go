package agent

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/xdg"
)

// maxLog is the size at which a start begins the log anew, in bytes.
const maxLog = 1 << 20

// OpenLog opens the log of a detached agent, $XDG_STATE_HOME/ov/agent.log
// (~/.local/state where that is not set), mode 0600.
func OpenLog() (*os.File, error) {
	path, err := xdg.State("agent.log")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if st, err := os.Lstat(path); err == nil && st.Size() > maxLog {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

// tellEvery is how often one kind of thing that others can cause at will is
// logged at most, so that they cannot fill the disk.
const tellEvery = time.Second

// seldom says when it is time for another line.
type seldom struct {
	mu   sync.Mutex
	last time.Time
	n    int
}

// now reports whether a line may be logged at t, and how many were not since
// the last one.
func (s *seldom) now(t time.Time) (untold int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && t.Sub(s.last) < tellEvery {
		s.n++
		return 0, false
	}
	untold, s.n, s.last = s.n, 0, t
	return untold, true
}
