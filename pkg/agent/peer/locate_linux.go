package peer

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

const runtimeDirVariable = "XDG_RUNTIME_DIR"

// defaultRuntimeDir is where pam_systemd(8) keeps the account's runtime
// directory. Services, cron jobs and su(1) run without the variable.
func defaultRuntimeDir(base string) string {
	if base == "" {
		base = "/run/user"
	}
	uid := os.Geteuid()
	dir := filepath.Join(base, strconv.Itoa(uid))
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != uid {
		return ""
	}
	return dir
}
