package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"
)

// The forms of a value are looked for in two streams: the text forms in the
// output as it is, and the packed forms in the output without white space and
// colons, because base64(1) and PEM break their lines, and xxd(1), od(1) and
// openssl(1) put hexadecimal digits in groups.

// dropped is 1 for the bytes that the packed forms are found across.
var dropped = [256]byte{' ': 1, '\t': 1, '\n': 1, '\v': 1, '\f': 1, '\r': 1, ':': 1}

// maxGap is how many dropped bytes in a row a packed form goes on after. It
// bounds what is held back, and is enough for a line break and indentation.
const maxGap = 64

// minUnwrapped is the length from which on a value is also found when the
// program broke it into lines, in bytes.
const minUnwrapped = 16

// list collects forms, each once.
type list [][]byte

func (l *list) add(b []byte) {
	if len(b) >= minPattern && !slices.ContainsFunc(*l, func(other []byte) bool { return bytes.Equal(other, b) }) {
		*l = append(*l, b)
	}
}

// textForms are those of v in which white space counts: v itself, with either
// kind of line break, in every style that writes it in another way.
func textForms(v []byte) [][]byte {
	var forms list
	lf := bytes.ReplaceAll(v, []byte("\r\n"), []byte("\n"))
	for _, v := range [][]byte{v, lf, bytes.ReplaceAll(lf, []byte("\n"), []byte("\r\n"))} {
		forms.add(v)
		forms.add(replaceInvalid(v))
	}
	all := styles()
	for _, v := range slices.Clone(forms) {
		forms.add(unquoted(v, dashQuoted(v)))
		forms.add(printfQuoted(v, true))
		forms.add(printfQuoted(v, false))
		var has byteSet
		for _, c := range v {
			has.add(c)
		}
		for i := range all {
			s := &all[i]
			if !s.changed.meets(&has) {
				continue
			}
			form := unquoted(v, s.apply(v))
			forms.add(form)
			if s.json {
				forms.add(all[0].apply(form)) // JSON in JSON, as in the logs of containers
			}
		}
	}
	return forms
}

// unquoted is form, which v has within '…', without a quotation mark that ends
// the quotes where v begins or ends with one of its own.
func unquoted(v, form []byte) []byte {
	if v[0] == '\'' {
		form = bytes.TrimPrefix(form, []byte("'"))
	}
	if v[len(v)-1] == '\'' {
		form = bytes.TrimSuffix(form, []byte("'"))
	}
	return form
}

// dashQuoted is v within '…' as dash's set and export -p print it: marks that
// follow each other are together in "…".
func dashQuoted(v []byte) []byte {
	var b []byte
	for len(v) > 0 {
		n := len(v) - len(bytes.TrimLeft(v, "'"))
		if n > 0 {
			b = append(append(append(b, `'"`...), v[:n]...), `"'`...)
		} else if n = bytes.IndexByte(v, '\''); n < 0 {
			n = len(v)
			b = append(b, v...)
		} else {
			b = append(b, v[:n]...)
		}
		v = v[n:]
	}
	return b
}

// printfQuoted is v as printf %q of bash prints it: ~ has a backslash where it
// would be expanded, # where it would begin a comment. That is also at the start
// of v, if a word starts there.
func printfQuoted(v []byte, start bool) []byte {
	var b []byte
	for i, c := range v {
		switch {
		case i == 0 && start && (c == '~' || c == '#'),
			i > 0 && c == '~' && (v[i-1] == ':' || v[i-1] == '='),
			strings.IndexByte(bashQuoted, c) >= 0:
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return b
}

// packedForms are those of v in which dropped bytes do not count.
func packedForms(v []byte) [][]byte {
	var forms list
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for before := range 3 {
			for _, form := range base64Forms(v, enc, before) {
				forms.add(form)
			}
		}
	}
	lower := []byte(hex.EncodeToString(v))
	forms.add(lower)
	forms.add(bytes.ToUpper(lower))
	if bare := pack(v); len(bare) >= minUnwrapped {
		forms.add(bare)
	}
	return forms
}

// pack returns v without the dropped bytes.
func pack(v []byte) []byte {
	b := make([]byte, 0, len(v))
	for _, c := range v {
		if dropped[c] == 0 {
			b = append(b, c)
		}
	}
	return b
}

// base64Forms are what v leaves in the base64 of a text that it is part of, when
// the number of bytes before it is, modulo 3, before: the digits that depend on
// v alone and, in case v ends the text, those with the last digit and padding.
func base64Forms(v []byte, enc *base64.Encoding, before int) [][]byte {
	padded := make([]byte, before+len(v))
	copy(padded[before:], v)
	all := []byte(enc.EncodeToString(padded))
	// Digit i holds the bits from 6i on.
	first := (8*before + 5) / 6
	stable := 8 * len(padded) / 6
	digits := enc.WithPadding(base64.NoPadding).EncodedLen(len(padded))
	return [][]byte{all[first:stable], all[first:digits], all[first:]}
}

// replaceInvalid returns v as programs keep it that read text: with U+FFFD for
// each byte that is not UTF-8.
func replaceInvalid(v []byte) []byte {
	if utf8.Valid(v) {
		return v
	}
	b := make([]byte, 0, len(v)+8)
	for _, r := range string(v) {
		b = utf8.AppendRune(b, r)
	}
	return b
}
