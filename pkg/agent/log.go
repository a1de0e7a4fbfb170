package agent

import (
	"os"
	"path/filepath"

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
