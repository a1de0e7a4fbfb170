// Package memory looks for keys, passwords and secret values in all the memory
// of the real programs that root can read.
package memory
