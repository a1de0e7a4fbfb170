// Package dotenv reads .env files.
//
// The dialect is the one of the npm package dotenv, less what that package
// skips or misreads without a word: for every file that Parse accepts, the
// pairs are those that npm dotenv yields, and every other file is an error that
// names a line. docs/DOTENV.md describes the dialect and where other loaders
// read the same line otherwise; Warnings finds such lines in a file.
//
// Values are secrets. Each is made once, in memory of its own that the caller
// wipes; none becomes a string, and no error or warning holds any part of one.
package dotenv

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
)

// The bounds of what Parse accepts. Names are bounded by names.MaxName.
const (
	MaxFile  = 64 << 20 // bytes of a file
	MaxValue = 64 << 10 // bytes of a value, after decoding
	MaxPairs = 1 << 20  // assignments in a file, those that a later one replaces too
)

// A Pair is one name with its value.
type Pair struct {
	Name  string // names.ValidName
	Value []byte // valid UTF-8 without NUL; the caller's, to be wiped
	Line  int    // where the assignment starts, from 1
	// Earlier holds the lines of the assignments to the same name that this
	// one replaced, in order. In all loaders the last one wins.
	Earlier []int

	notes notes // what Warnings tells of
}

// Wipe zeroes the values of pairs and lets go of them.
func Wipe(pairs []Pair) {
	for i := range pairs {
		clear(pairs[i].Value)
		pairs[i].Value = nil
	}
}

// An Error says what is wrong with a file, and where. It never holds a value
// or a part of one.
type Error struct {
	Line int // from 1; 0 when the fault is of the file as a whole
	Msg  string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Msg
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Msg)
}

// Hints, where several errors share one.
const (
	hintStatement = "a line is NAME=value, a # comment, or blank; a value of several lines needs quotes around it"
	hintQuote     = "a value ends at the next quote of the kind it starts with: if it holds such a quote, put it in another of ' \" and `"
)

// Parse returns the pairs of a .env file in the order in which their names
// first appear. Of several values for one name the last wins: see Pair.Earlier.
//
// src is not changed or kept, and its owner wipes it. An error is an *Error
// with a hint (package hint), and then no pair is returned: what was made of
// the file by then is wiped. Time and memory are linear in the size of src.
func Parse(src []byte) ([]Pair, error) {
	if err := checkText(src); err != nil {
		return nil, err
	}
	p := &parser{rest: bytes.TrimPrefix(src, []byte("\ufeff")), line: 1, index: map[string]int{}}
	if err := p.file(); err != nil {
		return nil, err
	}
	return p.pairs, nil
}

// checkText refuses what is not bounded UTF-8 text without NUL. npm dotenv
// would put U+FFFD in the place of each wrong byte, and an environment cannot
// hold a NUL (environ(7)).
func checkText(src []byte) error {
	fault := func(i int, mend, msg string) error {
		return hint.Wrap(&Error{Line: 1 + lineEnds(src[:i]), Msg: msg}, mend)
	}
	switch {
	case len(src) > MaxFile:
		return hint.Wrap(&Error{Msg: fmt.Sprintf("the file is larger than %d MiB", MaxFile>>20)},
			"is this a .env file? if so, import it in parts")
	case bytes.HasPrefix(src, []byte("\xff\xfe")), bytes.HasPrefix(src, []byte("\xfe\xff")):
		return fault(0, "convert it: iconv -f UTF-16 -t UTF-8 FILE", "the file is UTF-16, not UTF-8")
	}
	if i := bytes.IndexByte(src, 0); i >= 0 {
		return fault(i, "is this a text file? store a binary value with ov secret set --from-file", "a NUL byte")
	}
	if utf8.Valid(src) {
		return nil
	}
	i := 0
	for r, n := utf8.DecodeRune(src); r != utf8.RuneError || n > 1; r, n = utf8.DecodeRune(src[i:]) {
		i += n
	}
	return fault(i, "convert the file to UTF-8: iconv -f LATIN1 -t UTF-8 FILE", "not valid UTF-8")
}

// blanks is the white space that may stand around names and values. npm dotenv
// takes any that Unicode knows, which no two loaders do alike.
const blanks = " \t"

type parser struct {
	rest  []byte // starts at the start of a line
	line  int    // that line's number
	count int    // assignments so far
	pairs []Pair
	index map[string]int // by name, into pairs
}

func (p *parser) fault(mend, format string, args ...any) error {
	return hint.Wrap(&Error{Line: p.line, Msg: fmt.Sprintf(format, args...)}, mend)
}

// file reads all statements. On an error it wipes the values it has made.
func (p *parser) file() error {
	for len(p.rest) > 0 {
		if err := p.statement(); err != nil {
			Wipe(p.pairs)
			return err
		}
	}
	return nil
}

// statement reads a blank line, a comment or an assignment, with its line end.
func (p *parser) statement() error {
	line := firstLine(p.rest)
	text := bytes.TrimLeft(line, blanks)
	if len(text) == 0 || text[0] == '#' {
		if hasSeparator(text) {
			return p.separatorFault()
		}
		p.next(len(line))
		return nil
	}
	name, value, ok := cutAssignment(text)
	if !ok {
		if r, _ := utf8.DecodeRune(text); isOddSpace(r) {
			return p.fault("remove it", "starts with white space that is neither space nor tab")
		}
		return p.fault(hintStatement, "not an assignment")
	}
	if err := p.checkName(name); err != nil {
		return err
	}
	if p.count++; p.count > MaxPairs {
		return p.fault("import the file in parts", "more than %d assignments", MaxPairs)
	}
	start := len(line) - len(value)
	if len(value) > 0 && (value[0] == '\'' || value[0] == '"' || value[0] == '`') {
		return p.quoted(string(name), start)
	}
	return p.unquoted(string(name), line, start)
}

// cutAssignment splits a line at its separator. The value has no blanks before
// it; what follows it is still there.
//
//	[export ] NAME [ ] = [ ] VALUE
//	[export ] NAME : VALUE              with no blank before the colon, and one after
func cutAssignment(text []byte) (name, value []byte, ok bool) {
	name, value = cutName(text)
	if string(name) == "export" {
		if n, v := cutName(bytes.TrimLeft(value, blanks)); len(n) > 0 {
			name, value = n, v
		}
	}
	if len(name) == 0 {
		return nil, nil, false
	}
	if len(value) > 1 && value[0] == ':' && (value[1] == ' ' || value[1] == '\t') {
		return name, bytes.TrimLeft(value[1:], blanks), true
	}
	value = bytes.TrimLeft(value, blanks)
	if len(value) == 0 || value[0] != '=' {
		return nil, nil, false
	}
	return name, bytes.TrimLeft(value[1:], blanks), true
}

// cutName splits off what npm dotenv takes for a name: [A-Za-z0-9_.-]*.
func cutName(s []byte) (name, rest []byte) {
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] == '.' || s[n] == '-' ||
		'0' <= s[n] && s[n] <= '9' || 'A' <= s[n] && s[n] <= 'Z' || 'a' <= s[n] && s[n] <= 'z') {
		n++
	}
	return s[:n], s[n:]
}

// checkName refuses what cutName returns and names.ValidName does not accept.
// The name stays out of the error, and no string is made of it: it may be a
// part of a value that a missing quote has let loose.
func (p *parser) checkName(name []byte) error {
	const rule = "a name is letters, digits and _, as in a shell"
	switch {
	case bytes.ContainsAny(name, ".-"):
		return p.fault("write _ in its place: "+rule, "a name with a dot or a dash in it")
	case len(name) > names.MaxName:
		return p.fault(hintStatement, "a name of more than %d bytes", names.MaxName)
	case '0' <= name[0] && name[0] <= '9':
		return p.fault(rule, "a name that starts with a digit")
	}
	return nil
}

// quoted reads the value whose opening quote is p.rest[start], and the rest of
// its last line.
func (p *parser) quoted(name string, start int) error {
	quote, body := p.rest[start], p.rest[start+1:]
	n := bytes.IndexByte(body, quote)
	if n < 0 {
		return p.fault(hintQuote, "the value of %s has no closing quote", name)
	}
	// npm dotenv leaves the backslash in the value and in some cases ends the
	// value all the same; other loaders drop it, or let it escape nothing.
	if n > 0 && body[n-1] == '\\' {
		return p.fault("put the value in another of ' \" and `, or in none, without that backslash: loaders do not agree on it",
			"the value of %s has a backslash before a quote of its own kind", name)
	}
	raw, after := body[:n], firstLine(body[n+1:])
	if quote == '"' && bytes.Contains(raw, []byte(`\\`)) {
		return p.fault("put the value in single quotes, with one backslash for one: npm dotenv keeps two where other loaders make them one",
			"the value of %s has an escaped backslash in double quotes", name)
	}
	last := p.line + lineEnds(raw)
	text := bytes.TrimLeft(after, blanks)
	comment := len(text) > 0 && text[0] == '#'
	switch {
	case len(text) > 0 && !comment && last == p.line:
		return p.fault(hintQuote, "the value of %s has more text after its closing quote", name)
	case len(text) > 0 && !comment:
		return p.fault(hintQuote, "the value of %s ends on line %d, with more text after its closing quote", name, last)
	case hasSeparator(text):
		p.line = last
		return p.separatorFault()
	}
	value := decode(raw, quote == '"')
	if len(value) > MaxValue {
		clear(value)
		return p.tooLong(name)
	}
	p.add(Pair{Name: name, Value: value, Line: p.line, notes: quotedNotes(quote, raw, comment)})
	p.line = last
	p.next(start + 1 + n + 1 + len(after))
	return nil
}

// decode returns what raw, the text between two quotes, stands for: each line
// end is LF, and if escapes is set, \n is LF and \r is CR. Before anything else
// a backslash is a backslash.
func decode(raw []byte, escapes bool) []byte {
	// Never longer than raw: a buffer that grew would leave a copy behind.
	value := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c, next := raw[i], byte(0)
		if i+1 < len(raw) {
			next = raw[i+1]
		}
		switch {
		case c == '\r' && next == '\n':
			continue
		case c == '\r':
			c = '\n'
		case c == '\\' && escapes && next == 'n':
			c = '\n'
			i++
		case c == '\\' && escapes && next == 'r':
			c = '\r'
			i++
		}
		value = append(value, c)
	}
	return value
}

// unquoted reads the value that starts at line[start] and ends with the line
// or at a comment.
func (p *parser) unquoted(name string, line []byte, start int) error {
	text := line[start:]
	if hasSeparator(text) {
		return p.separatorFault()
	}
	comment := bytes.IndexByte(text, '#')
	if comment >= 0 {
		// npm dotenv would drop the # and what follows, python-dotenv keep it:
		// half a password must not be imported for a whole one.
		if before := line[start+comment-1]; before != ' ' && before != '\t' {
			return p.fault("put the value in quotes if the # belongs to it, or a space before the # if a comment starts there",
				"the value of %s has a # with no space before it", name)
		}
		text = text[:comment]
	}
	text = bytes.TrimRight(text, blanks)
	first, _ := utf8.DecodeRune(text)
	last, _ := utf8.DecodeLastRune(text)
	if isOddSpace(first) || isOddSpace(last) {
		return p.fault("remove it, or put the value in quotes if it belongs to it",
			"the value of %s has white space around it that is neither space nor tab", name)
	}
	if len(text) > MaxValue {
		return p.tooLong(name)
	}
	value := make([]byte, len(text))
	copy(value, text)
	p.add(Pair{Name: name, Value: value, Line: p.line, notes: unquotedNotes(text, comment >= 0)})
	p.next(len(line))
	return nil
}

func (p *parser) tooLong(name string) error {
	return p.fault("keep data of this size in a file, and the key to it in the vault",
		"the value of %s is longer than %d KiB", name, MaxValue>>10)
}

// separatorFault is for U+2028 and U+2029 outside quotes. npm dotenv ends a
// line at them, so what looks like a comment could hold an assignment.
func (p *parser) separatorFault() error {
	return p.fault("remove it, or put it in quotes if it belongs to a value",
		"a Unicode line or paragraph separator")
}

// add keeps the place of a name's first assignment and the value of its last.
func (p *parser) add(pair Pair) {
	i, ok := p.index[pair.Name]
	if !ok {
		p.index[pair.Name] = len(p.pairs)
		p.pairs = append(p.pairs, pair)
		return
	}
	old := &p.pairs[i]
	clear(old.Value)
	old.Earlier = append(old.Earlier, old.Line)
	pair.Earlier = old.Earlier
	*old = pair
}

// next steps over n bytes and the line end after them, if there is one.
func (p *parser) next(n int) {
	p.rest = p.rest[n:]
	if len(p.rest) == 0 {
		return
	}
	p.line++
	if bytes.HasPrefix(p.rest, []byte("\r\n")) {
		p.rest = p.rest[1:]
	}
	p.rest = p.rest[1:]
}

// firstLine returns s up to its first line end: LF, CRLF or CR.
func firstLine(s []byte) []byte {
	if n := bytes.IndexAny(s, "\r\n"); n >= 0 {
		return s[:n]
	}
	return s
}

// lineEnds counts the line ends in s. It must not split a CRLF.
func lineEnds(s []byte) int {
	return bytes.Count(s, []byte("\n")) + bytes.Count(s, []byte("\r")) - bytes.Count(s, []byte("\r\n"))
}

// hasSeparator reports whether s holds U+2028 or U+2029.
func hasSeparator(s []byte) bool {
	return bytes.Contains(s, []byte("\u2028")) || bytes.Contains(s, []byte("\u2029"))
}

// isOddSpace reports whether r is white space to Unicode or to ECMAScript, but
// neither blank nor line end here.
func isOddSpace(r rune) bool {
	switch r {
	case ' ', '\t', '\n', '\r':
		return false
	case '\ufeff':
		return true
	}
	return unicode.IsSpace(r)
}
