//go:build !goexperiment.runtimesecret

package kek

// Erasing reports whether Do erases what its function leaves behind.
const Erasing = false

// Do calls f. This build lacks GOEXPERIMENT=runtimesecret, so nothing that f
// leaves on its stack or heap is erased.
func Do(f func()) { f() }
