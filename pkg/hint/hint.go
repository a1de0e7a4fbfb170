// Package hint attaches to an error the line that says what to do about it.
//
// An error's own text says what failed and on what. The hint is for a person
// at a terminal: usually the command that mends the fault. Neither ever holds
// a secret value.
package hint

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Wrap returns err carrying the given hint, or nil if err is nil.
func Wrap(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

// Errorf is Wrap(fmt.Errorf(format, args...), hint).
func Errorf(hint, format string, args ...any) error {
	return Wrap(fmt.Errorf(format, args...), hint)
}

// Of returns the outermost hint that err carries, or "".
func Of(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// Print tells a person of err, on a line that begins with the program's name,
// and of its hint on the next. An error without a text has been told already.
func Print(w io.Writer, program string, err error) {
	if text := err.Error(); text != "" {
		_, _ = fmt.Fprintf(w, "%s: %s\n", program, Text(text))
	}
	if advice := Of(err); advice != "" {
		_, _ = fmt.Fprintf(w, "  hint: %s\n", Text(advice))
	}
}

// Text returns text as a terminal may be given it, whoever has written some of
// it: what is not printable is escaped as in Go, but for ends of lines.
func Text(text string) string {
	printable := func(r rune) bool { return unicode.IsPrint(r) && r != utf8.RuneError || r == '\n' }
	if !strings.ContainsFunc(text, func(r rune) bool { return !printable(r) }) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if printable(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.Quote(text[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}
