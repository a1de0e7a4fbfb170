// Package guard makes memguard the fallback for locked memory (kek.Fallback).
//
// Only the agent imports it: memguard's init sets RLIMIT_CORE to 0 for good,
// which is right for a daemon and wrong for a program that becomes its child.
package guard

import (
	"fmt"

	"github.com/awnumar/memguard"

	"github.com/opaquevault/ov/pkg/kek"
)

// Install replaces kek.Fallback. Call it before any locked memory is asked for.
func Install() { kek.Fallback = alloc }

// alloc turns memguard's panic, its only way to say that mlock(2) failed, into
// an error.
func alloc(n int) (mem kek.Memory, err error) {
	defer func() {
		if r := recover(); r != nil {
			mem, err = nil, fmt.Errorf("memguard: %v", r)
		}
	}()
	return memguard.NewBuffer(n), nil
}
