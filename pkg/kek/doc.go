// Package kek holds the key-encryption key and everything that is derived from
// it: memory that is never swapped or dumped, the key tree (HKDF-SHA-256), and
// the protectors that wrap the KEK.
//
// It knows nothing of records or stores.
package kek
