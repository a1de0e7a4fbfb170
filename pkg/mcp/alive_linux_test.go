package mcp

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// alive reports whether a process of the group is more than a zombie.
func alive(pgid int) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(text, []byte(") "))
		f := bytes.Fields(rest) // state, ppid, pgrp: proc_pid_stat(5)
		if len(f) > 2 && string(f[2]) == strconv.Itoa(pgid) && string(f[0]) != "Z" {
			return true
		}
	}
	return false
}
