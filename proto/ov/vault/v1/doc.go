// Package vaultv1 is the API of ov-server. No message of it could hold a key of a
// vault or a plaintext.
package vaultv1
