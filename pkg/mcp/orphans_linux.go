package mcp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of what its programs leave behind, and
// their programs, wherever it went: PR_SET_CHILD_SUBREAPER(2const).
func adopt() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// sweepTime bounds how long programs that start others are run after.
const sweepTime = time.Second

// sweep kills the children of this process that have left its process group, but
// for spare, and their children, and returns how many lived. No program may be
// running that is meant to.
func sweep(spare int) (killed int, err error) {
	own := unix.Getpgrp()
	for end := time.Now().Add(sweepTime); ; time.Sleep(time.Millisecond) {
		found := 0
		lists, err := filepath.Glob("/proc/self/task/*/children") // proc_tid_children(5)
		if err != nil {
			return killed, err
		}
		for _, file := range lists {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // the thread has ended, and another one has its children
			}
			for _, word := range strings.Fields(string(text)) {
				pid, err := strconv.Atoi(word)
				if err != nil || pid == spare {
					continue
				}
				if pgid, err := unix.Getpgid(pid); err != nil || pgid == own {
					continue
				}
				found++
				_ = unix.Kill(pid, unix.SIGKILL)
				var status unix.WaitStatus
				gone, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
				if gone == pid && status.Signal() == unix.SIGKILL {
					killed++
				}
				if errors.Is(err, unix.ECHILD) {
					found--
				}
			}
		}
		if found == 0 {
			return killed, nil
		}
		if time.Now().After(end) {
			return killed, fmt.Errorf("%d processes that programs have left behind do not end", found)
		}
	}
}
