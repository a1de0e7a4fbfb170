// Package faults kills the real ov at random points, fills its disk, fails its
// system calls and has many processes work on one vault: afterwards the vault
// opens, and holds what it held before or what it was to hold, and nothing in
// between.
//
//	go test ./test/faults/
//
// OV_FAULTS is the number of kills for each operation: by default 120, and 60
// where it takes a password.
package faults
