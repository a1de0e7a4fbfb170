package mask

import (
	"strconv"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// style is a way to write a string: what programs put in the place of bytes.
type style struct {
	to      [256]string         // "" keeps the byte
	rune    func(r rune) string // if not nil, for what is not ASCII, and to is for what is not UTF-8
	changed byteSet             // the bytes that are not kept
	few     bool                // of what is ASCII, the style before it makes the same
	json    bool
}

// byteSet is a set of bytes, a bit each.
type byteSet [4]uint64

func (s *byteSet) add(c byte) { s[c/64] |= 1 << (c % 64) }

func (s *byteSet) meets(t *byteSet) bool {
	return s[0]&t[0]|s[1]&t[1]|s[2]&t[2]|s[3]&t[3] != 0
}

func (s *style) apply(v []byte) []byte {
	b := make([]byte, 0, len(v)+len(v)/4+16)
	for i := 0; i < len(v); {
		c := v[i]
		if c >= utf8.RuneSelf && s.rune != nil {
			if r, n := utf8.DecodeRune(v[i:]); n > 1 {
				b = append(b, s.rune(r)...)
				i += n
				continue
			}
		}
		if i++; s.to[c] != "" {
			b = append(b, s.to[c]...)
		} else {
			b = append(b, c)
		}
	}
	return b
}

var made struct {
	once sync.Once
	list []style
}

// styles returns all of them, the plainest of JSON first. They are made when they
// are first asked for: what a package initializes, every start of ov pays for.
func styles() []style {
	made.once.Do(func() { made.list = makeStyles() })
	return made.list
}

func makeStyles() (list []style) {
	for _, e := range jsonEscapes() {
		s := e.style()
		s.json = true
		list = append(list, s)
	}
	for _, e := range otherEscapes {
		list = append(list, e.style())
	}
	for _, p := range percents {
		list = append(list, p.style(lowerHex), p.style(upperHex))
	}
	for _, r := range replacements {
		list = append(list, r.style())
	}
	for i := range list {
		s := &list[i]
		for c := range s.to {
			if c >= utf8.RuneSelf && s.rune != nil || s.to[c] != "" && !s.few {
				s.changed.add(byte(c))
			}
		}
	}
	return list
}

const (
	lowerHex = "0123456789abcdef"
	upperHex = "0123456789ABCDEF"
)

// escape is a style with backslashes.
type escape struct {
	named   string            // bytes, and the letters that stand for them, in turn
	quoted  string            // bytes that get a backslash
	control form              // of other control characters
	wide    form              // of what is not ASCII
	html    string            // bytes that are written like control characters
	only    func(r rune) bool // if not nil, which of what is not ASCII is not kept
}

// What is not ASCII and can be seen, programs keep more often than what cannot:
// a no-break space, an invisible joiner, a byte order mark.

// unseen is what Python's repr and Go's %q escape, as far as both have the same
// edition of Unicode.
func unseen(r rune) bool { return !strconv.IsPrint(r) }

// c1 is the second set of control characters (ISO 6429).
func c1(r rune) bool { return r >= 0x80 && r < 0xa0 }

// separator ends a line in JavaScript, though not in JSON.
func separator(r rune) bool { return r == '\u2028' || r == '\u2029' }

// unseenInC is what is no iswprint(3) of the GNU C library.
func unseenInC(r rune) bool { return c1(r) || separator(r) }

// form is how a character is written by number.
type form byte

const (
	asIs     form = iota
	lowerU        // \u001b, UTF-16
	upperU        // \u001B
	lowerX        // \x1b, bytes
	upperX        // \x1B
	octal         // \033, bytes
	slash         // \ and the byte itself
	longU         // \u00fc, \U0001f511: Go
	shortest      // \xfc, \u043f, \U0001f511: Python
)

func (f form) digits() string {
	if f == upperU || f == upperX {
		return upperHex
	}
	return lowerHex
}

func (f form) unit(u uint16) string {
	d := f.digits()
	return string([]byte{'\\', 'u', d[u>>12], d[u>>8&15], d[u>>4&15], d[u&15]})
}

func (f form) byte(c byte) string {
	d := f.digits()
	switch f {
	case asIs:
		return ""
	case lowerU, upperU:
		return f.unit(uint16(c))
	case slash:
		return string([]byte{'\\', c})
	case octal:
		return string([]byte{'\\', '0' + c>>6, '0' + c>>3&7, '0' + c&7})
	}
	return string([]byte{'\\', 'x', d[c>>4], d[c&15]})
}

// numbers reports whether a character is written by its own number, and not byte
// by byte.
func (f form) numbers() bool {
	return f == lowerU || f == upperU || f == longU || f == shortest
}

// stray is how a byte is written that is not UTF-8. In Python's text it is half
// of a surrogate pair (PEP 383); what keeps U+FFFD in its place has that from
// replaceInvalid.
func (f form) stray(c byte) string {
	switch f {
	case lowerU, upperU, shortest:
		return lowerU.unit(0xdc00 | uint16(c))
	case longU:
		return lowerX.byte(c)
	}
	return f.byte(c)
}

// rune is how a character is written that is not ASCII.
func (e escape) rune(r rune) (text string) {
	switch {
	case e.only != nil && !e.only(r):
		return string(r)
	case e.wide == shortest && r < 0x100:
		return e.control.byte(byte(r))
	case e.wide == shortest, e.wide == longU:
		if r < 0x10000 {
			return lowerU.unit(uint16(r))
		}
		return `\U` + lowerU.unit(uint16(r >> 16))[2:] + lowerU.unit(uint16(r))[2:]
	case e.wide.numbers():
		for _, u := range utf16.AppendRune(nil, r) {
			text += e.wide.unit(u)
		}
		return text
	}
	for _, c := range []byte(string(r)) {
		text += e.wide.byte(c)
	}
	return text
}

func (e escape) style() (s style) {
	for c := range byte(0x20) {
		s.to[c] = e.control.byte(c)
	}
	if e.control != lowerU && e.control != upperU || e.wide != asIs && e.only == nil {
		s.to[0x7f] = e.control.byte(0x7f) // part of JSON that may be Unicode
	}
	if e.wide != asIs {
		for c := 0x80; c < 0x100; c++ {
			s.to[c] = e.wide.stray(byte(c))
		}
	}
	if s.few = e.only != nil; s.few || e.wide.numbers() {
		s.rune = e.rune
	}
	for _, c := range []byte(e.html) {
		s.to[c] = e.control.byte(c)
	}
	for _, c := range []byte(e.quoted) {
		s.to[c] = `\` + string(rune(c))
	}
	for i := 0; i < len(e.named); i += 2 {
		s.to[e.named[i]] = `\` + e.named[i+1:i+2]
	}
	return s
}

const (
	threeNames = "\nn\rr\tt"
	jsonNames  = threeNames + "\bb\ff"
	cNames     = jsonNames + "\aa\vv"
	bashQuoted = " \t'\"\\|&;()<>!{}*[]?^$`,"
)

// jsonEscapes are what JSON encoders make of a string. They differ in whether
// they keep what is not ASCII, the slash, and what HTML gives a meaning to, and
// in the case of digits.
func jsonEscapes() []escape {
	var list []escape
	for _, u := range []form{lowerU, upperU} {
		for _, wide := range []form{asIs, u} {
			for _, quoted := range []string{`\"`, `\"/`} {
				// None; Go's HTML escaping; Gson's; that of System.Text.Json.
				for _, html := range []string{"", "<>&", "<>&'=", "<>&'+`"} {
					list = append(list, escape{jsonNames, quoted, u, wide, html, nil})
					if wide == asIs {
						list = append(list, escape{jsonNames, quoted, u, u, html, separator}) // Go's, PHP's
					}
				}
			}
		}
		// Go before 1.22, and encoders whose quote is \u0022.
		for _, html := range []string{"", "<>&"} {
			list = append(list, escape{threeNames, `\"`, u, asIs, html, nil}, escape{threeNames, `\"`, u, u, html, separator})
		}
		list = append(list, escape{jsonNames, `\`, u, u, "\"<>&'+`", nil})
	}
	return list
}

var otherEscapes = [...]escape{
	// Literals of Python, in either quotes, as a string, bytes and ascii().
	{named: threeNames, quoted: `\`, control: lowerX},
	{named: threeNames, quoted: `\`, control: lowerX, wide: shortest, only: unseen},
	{named: threeNames, quoted: `\'`, control: lowerX},
	{named: threeNames, quoted: `\'`, control: lowerX, wide: shortest, only: unseen},
	{named: threeNames, quoted: `\`, control: lowerX, wide: lowerX},
	{named: threeNames, quoted: `\'`, control: lowerX, wide: lowerX},
	{named: threeNames, quoted: `\"`, control: lowerX, wide: lowerX},
	{named: threeNames, quoted: `\`, control: lowerX, wide: shortest},
	{named: threeNames, quoted: `\'`, control: lowerX, wide: shortest},
	// Go, C, Perl, Ruby.
	{named: cNames, quoted: `\"`, control: lowerX},
	{named: cNames, quoted: `\"`, control: lowerX, wide: longU, only: unseen},
	{named: cNames, quoted: `\"`, control: lowerX, wide: lowerX},
	{named: cNames, quoted: `\"`, control: lowerX, wide: longU},
	{named: cNames + "\x1be", quoted: `\"#`, control: upperX},
	{named: cNames + "\x1be", quoted: `\"$@`, control: octal},
	{named: cNames, quoted: `\"`, control: octal, wide: octal},
	// util.inspect of Node, in each of the three quotes.
	{named: jsonNames, quoted: `\'`, control: upperX},
	{named: jsonNames, quoted: `\'`, control: upperX, wide: shortest, only: c1},
	{named: jsonNames, quoted: `\`, control: upperX},
	{named: jsonNames, quoted: `\`, control: upperX, wide: shortest, only: c1},
	// Single quotes of Perl and PHP.
	{quoted: `\'`},
	// Shells: "…", with and without history; $'…' of bash; printf %q; a
	// backslash before all that could need one.
	{quoted: "\"\\$`"},
	{quoted: "\"\\$`!"},
	{named: cNames + "\x1bE", quoted: `\'`, control: octal},
	{named: cNames + "\x1bE", quoted: `\'`, control: octal, wide: octal, only: unseenInC},
	{named: cNames + "\x1bE", quoted: `\'`, control: octal, wide: octal},
	{named: cNames + "\x1be", quoted: `\'`, control: octal},
	{quoted: bashQuoted},
	{quoted: bashQuoted + "~#"},
	{quoted: bashQuoted + "~#="},
	{quoted: bashQuoted + "~#=%"},
	{quoted: bashQuoted + "~#=%:@+"},
	// Regular expressions of JavaScript, Go, Python and Perl.
	{quoted: `.*+?^${}()|[]\`},
	{quoted: "()[]{}?*+-|^$\\.&~# \t\n\r\v\f"},
	{quoted: " !\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~", control: slash, wide: slash},
}

// percent is a style of percent-encoding (RFC 3986).
type percent struct {
	keep string // the bytes that are kept, besides letters and digits
	plus bool   // a space becomes +
	all  bool   // letters and digits are encoded too
}

var percents = [...]percent{
	{keep: "-_.~"},                         // Python's quote(safe=""), jq's @uri
	{keep: "-_.~", plus: true},             // Go's QueryEscape, Python's quote_plus
	{keep: "-_.*", plus: true},             // HTML forms, Java
	{keep: "-_.~!*'()"},                    // encodeURIComponent
	{keep: "-_.~/"},                        // Python's quote
	{keep: "-_.~$&+=:@"},                   // Go's PathEscape
	{keep: "-_.~$&+,;="},                   // Go's UserPassword
	{keep: "-_.~!*'();,/?:@&=+$#"},         // encodeURI
	{keep: "-_.~!*'();,/?:@&=+$#[]%\"<>|"}, // what no URL can have
	{all: true},
}

func (p percent) style(digits string) (s style) {
	for n := range s.to {
		switch c := byte(n); {
		case c == ' ' && p.plus:
			s.to[c] = "+"
		case p.all || !alphanumeric(c) && strings.IndexByte(p.keep, c) < 0:
			s.to[c] = string([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return s
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// replacement is bytes, and what becomes of them, in turn.
type replacement []string

var replacements = [...]replacement{
	{`'`, `'\''`},  // '…' of a shell
	{`'`, `'"'"'`}, // the same: Python's shlex.quote, dash
	{`'`, `''`},    // SQL, YAML
	{`"`, `""`},    // CSV
	{"\n", "'\n'"}, // Ruby's Shellwords
	{"\n", `\n`},   // writers of .env files, and other careless ones
	{"\n", " "},    // unquoted in a shell
	{"&", "&amp;", "<", "&lt;", ">", "&gt;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;"},
}

func (r replacement) style() (s style) {
	for i := 0; i < len(r); i += 2 {
		s.to[r[i][0]] = r[i+1]
	}
	return s
}
