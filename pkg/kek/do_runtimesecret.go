//go:build goexperiment.runtimesecret

package kek

import "runtime/secret"

// Erasing reports whether Do erases what its function leaves behind.
const Erasing = true

// Do calls f and erases the registers, stack and, at the next garbage
// collection, the heap that f used (package runtime/secret). f must not start
// goroutines: what they touch is not erased. Results that should outlive f go
// into memory that the caller allocated before.
func Do(f func()) { secret.Do(f) }
