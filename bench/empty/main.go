//go:build unix

// Empty is a baseline for `ov run`: a Go program that does nothing but become
// its arguments.
package main

import (
	"os"
	"syscall"
)

func main() {
	if len(os.Args) < 2 || syscall.Exec(os.Args[1], os.Args[1:], os.Environ()) != nil {
		os.Exit(127)
	}
}
