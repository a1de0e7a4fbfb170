package dotenv

import (
	"bytes"
	"fmt"
)

// A Warning tells of an assignment that Parse has read as npm dotenv does, but
// that other common loaders read otherwise, or that may be a slip. It never
// holds a value or a part of one.
type Warning struct {
	Line int // of the assignment, from 1
	Name string
	Msg  string // the same text for the same cause, but for line numbers
}

func (w Warning) String() string { return fmt.Sprintf("line %d: %s: %s", w.Line, w.Name, w.Msg) }

// notes are causes of a Warning that are seen while parsing.
type notes uint8

const (
	noteReference notes = 1 << iota
	noteDecoded
	noteBackslash
	noteComment
	noteBacktick
)

var noteText = []struct {
	note notes
	text string
}{
	{noteReference, "a $ is kept as it is, where loaders that expand variables put in another text"},
	{noteDecoded, `\n or \r in double quotes is decoded, where systemd, docker and ruby dotenv 3 keep it as it is`},
	{noteBackslash, "a backslash is kept as it is, where some loaders drop or decode it"},
	{noteComment, "what follows # is taken for a comment, where systemd and docker take it for a part of the value"},
	{noteBacktick, "backticks are taken for quotes, where only node does that too"},
}

// Warnings returns what a person should know before trusting that pairs, as
// Parse returned them, are what the program's old loader made of the file.
// docs/DOTENV.md says which loader reads what.
func Warnings(pairs []Pair) []Warning {
	var all []Warning
	for _, p := range pairs {
		if n := len(p.Earlier); n > 0 {
			msg := fmt.Sprintf("replaces the value of line %d", p.Earlier[n-1])
			if n > 1 {
				msg += fmt.Sprintf(", and %d before that", n-1)
			}
			all = append(all, Warning{p.Line, p.Name, msg})
		}
		for _, t := range noteText {
			if p.notes&t.note != 0 {
				all = append(all, Warning{p.Line, p.Name, t.text})
			}
		}
	}
	return all
}

func unquotedNotes(text []byte, comment bool) (n notes) {
	if hasReference(text) {
		n |= noteReference
	}
	if bytes.IndexByte(text, '\\') >= 0 {
		n |= noteBackslash
	}
	if comment {
		n |= noteComment
	}
	return n
}

func quotedNotes(quote byte, raw []byte, comment bool) (n notes) {
	if comment {
		n |= noteComment
	}
	if quote == '`' {
		return n | noteBacktick
	}
	if quote == '"' && hasReference(raw) {
		n |= noteReference
	}
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		switch next := raw[i+1]; {
		case quote == '"' && (next == 'n' || next == 'r'):
			n |= noteDecoded
		case quote == '"', next == '\\':
			n |= noteBackslash
		}
	}
	return n
}

// hasReference reports whether a shell, or a loader that takes after one,
// could see a variable or a command in s.
func hasReference(s []byte) bool {
	for {
		n := bytes.IndexByte(s, '$')
		if n < 0 || n+1 == len(s) {
			return false
		}
		s = s[n+1:]
		if c := s[0]; c == '{' || c == '(' || c == '_' ||
			'0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' {
			return true
		}
	}
}
