// Package mcp runs the real `ov mcp serve` under the real clients that npm has
// for it, and sends hundreds of programs with made-up secrets through vault_run:
// no value may reach a client, in any form that the masker promises to know.
package mcp
