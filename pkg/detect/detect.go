// Package detect finds secrets in a text by their form, such as the prefix of a
// cloud provider's keys.
//
// The rules need 60 modules and 75 ms to load, which no other program is to pay
// for: they are in package engine, which only ov-scan links. This package holds
// what a finding is, and a client that starts ov-scan as a child and asks it.
//
// A finding says where a secret is and never what it is. A text that could not
// be scanned is an error, so that a caller who lets through only what was found
// clean fails closed.
package detect

import (
	"errors"
	"time"
)

// Bounds, the same in the client and in the engine.
const (
	MaxText     = 16 << 20         // bytes of a text
	MaxFindings = 1000             // in one text: the first by offset
	MaxTime     = 30 * time.Second // of one scan, in the engine
)

// ErrTooLarge says that a text has more than MaxText bytes.
var ErrTooLarge = errors.New("the text is too large to be scanned for secrets")

// ErrTimeout says that a scan took more than MaxTime.
var ErrTimeout = errors.New("the text takes too long to be scanned for secrets")

// A Finding is a place in a text that looks like a secret.
type Finding struct {
	Rule        string `json:"rule"`        // such as aws-access-token
	Description string `json:"description"` // of the rule, one sentence
	Start       int    `json:"start"`       // byte offset of the secret
	End         int    `json:"end"`         // behind its last byte
	Line        int    `json:"line"`        // that Start is in, from 1
}
