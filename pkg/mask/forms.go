package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// The forms of a value are looked for in two streams: the text forms in the
// output as it is, and the packed forms in the output without white space and
// colons, because base64(1) and PEM break their lines, and xxd(1), od(1) and
// openssl(1) put hexadecimal digits in groups.

// dropped are the bytes that the packed forms are found across.
func dropped(c byte) bool {
	return c == ' ' || c >= '\t' && c <= '\r' || c == ':'
}

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

// textForms are those of v in which white space counts.
func textForms(v []byte) [][]byte {
	var forms list
	lf := bytes.ReplaceAll(v, []byte("\r\n"), []byte("\n"))
	for _, v := range [][]byte{v, lf, bytes.ReplaceAll(lf, []byte("\n"), []byte("\r\n"))} {
		forms.add(v)
		forms.add(replaceInvalid(v))
	}
	all := escapes()
	for _, v := range slices.Clone(forms) {
		for _, e := range all {
			forms.add(e.apply(v))
		}
		forms.add(all[0].apply(all[0].apply(v))) // JSON in JSON, as in the logs of containers
		for _, r := range replacements {
			forms.add(r.apply(v))
		}
		for _, p := range percentStyles {
			forms.add(p.apply(v, upperHex))
			forms.add(p.apply(v, lowerHex))
		}
	}
	return forms
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
		if !dropped(c) {
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

// percentStyle is a way to percent-encode (RFC 3986).
type percentStyle struct {
	keep string // the bytes that are kept besides letters and digits
	plus bool   // a space becomes +
	all  bool   // letters and digits are encoded too
}

var percentStyles = [...]percentStyle{
	{keep: "-_.~"},                         // Python's quote(safe=""), jq's @uri, curl
	{keep: "-_.~", plus: true},             // Go's QueryEscape, Python's quote_plus
	{keep: "-_.*", plus: true},             // HTML forms, Java
	{keep: "-_.~!*'()"},                    // encodeURIComponent
	{keep: "-_.~/"},                        // Python's quote
	{keep: "-_.~$&+=:@"},                   // Go's PathEscape
	{keep: "-_.~$&+,;="},                   // Go's URL.User
	{keep: "-_.~!*'();,/?:@&=+$#"},         // encodeURI
	{keep: "-_.~!*'();,/?:@&=+$#[]%\"<>|"}, // only what no URL can have
	{all: true},
}

func (p percentStyle) apply(v []byte, digits string) []byte {
	b := make([]byte, 0, 3*len(v))
	for _, c := range v {
		switch {
		case !p.all && (alphanumeric(c) || strings.IndexByte(p.keep, c) >= 0):
			b = append(b, c)
		case p.plus && c == ' ':
			b = append(b, '+')
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}

const lowerHex, upperHex = "0123456789abcdef", "0123456789ABCDEF"

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// escape is a way to write a string with backslashes. control and unicode are u
// or U for \u001b and UTF-16, x or X for \x1b, the capitals for upper-case
// digits, and o for \033.
type escape struct {
	named   string // bytes and the letters that stand for them, in pairs
	quoted  string // bytes that get a backslash
	control string // how other bytes below 0x20 are written; "": as they are
	unicode string // how what is not ASCII is written; "": as it is
	asU     string // bytes written as \u00..
}

const (
	cNames     = "\nn\rr\tt\bb\ff"
	allCNames  = cNames + "\aa\vv"
	bashQuoted = " \t'\"\\|&;()<>!{}*[]?^$`,"
)

// escapes is not a variable: what a package initializes, every start pays for.
func escapes() []escape {
	return append(jsonEscapes(),
		// Literals of Python, Go, Perl, Ruby and C, in either quotes.
		escape{named: "\nn\rr\tt", quoted: `\`, control: "x"},
		escape{named: "\nn\rr\tt", quoted: `\'`, control: "x"},
		escape{named: "\nn\rr\tt", quoted: `\`, control: "x", unicode: "x"},
		escape{named: "\nn\rr\tt", quoted: `\'`, control: "x", unicode: "x"},
		escape{named: "\nn\rr\tt", quoted: `\"`, control: "x", unicode: "x"},
		escape{named: allCNames, quoted: `\"`, control: "x"},
		escape{named: allCNames, quoted: `\"`, control: "x", unicode: "u"},
		escape{named: allCNames + "\x1be", quoted: `\"#`, control: "x"},
		escape{named: cNames + "\vv", quoted: `\'`, control: "X"}, // util.inspect of Node
		escape{named: allCNames, quoted: `\"`, control: "o", unicode: "o"},
		escape{quoted: `\'`}, // Perl and PHP in single quotes
		// Shells: "…", $'…' of bash, printf %q, and a backslash before all that
		// could need one.
		escape{quoted: "\"\\$`"},
		escape{quoted: "\"\\$`!"},
		escape{named: allCNames + "\x1bE", quoted: `\'`, control: "o"},
		escape{named: allCNames + "\x1bE", quoted: `\'`, control: "o", unicode: "o"},
		escape{named: allCNames + "\x1be", quoted: `\'`, control: "o", unicode: "o"},
		escape{quoted: bashQuoted},
		escape{quoted: bashQuoted + "~#"},
		escape{quoted: bashQuoted + "~#="},
		escape{quoted: bashQuoted + "~#=%"},
		escape{quoted: bashQuoted + "~#=%:@+"},
	)
}

// jsonEscapes are what JSON encoders make of a string. They differ in whether
// they keep what is not ASCII, / and what HTML gives a meaning to, and in the
// case of hexadecimal digits.
func jsonEscapes() []escape {
	var list []escape
	for _, u := range []string{"u", "U"} {
		for _, unicode := range []string{"", u} {
			for _, quoted := range []string{`\"`, `\"/`} {
				// Go's HTML escaping; PHP's and Gson's; System.Text.Json.
				for _, asU := range []string{"", "<>&", "<>&'=", "<>&'\"+`"} {
					list = append(list, escape{cNames, quoted, u, unicode, asU})
				}
			}
		}
		list = append(list, escape{"\nn\rr\tt", `\"`, u, "", ""}, escape{"\nn\rr\tt", `\"`, u, "", "<>&"})
	}
	return list
}

func (e escape) apply(v []byte) []byte {
	b := make([]byte, 0, len(v)+len(v)/8+16)
	for len(v) > 0 {
		c := v[0]
		if c >= utf8.RuneSelf && e.unicode != "" {
			r, n := utf8.DecodeRune(v)
			if e.unicode == "x" || e.unicode == "o" {
				for _, c := range v[:n] {
					b = appendEscape(b, e.unicode, uint16(c))
				}
			} else {
				for _, u := range utf16.AppendRune(nil, r) {
					b = appendEscape(b, e.unicode, u)
				}
			}
			v = v[n:]
			continue
		}
		v = v[1:]
		if strings.IndexByte(e.asU, c) >= 0 {
			b = appendEscape(b, e.control, uint16(c))
		} else if name := e.name(c); name != 0 {
			b = append(b, '\\', name)
		} else if strings.IndexByte(e.quoted, c) >= 0 {
			b = append(b, '\\', c)
		} else if e.control != "" && (c < 0x20 || c == 0x7f && strings.Contains("xXo", e.control)) {
			b = appendEscape(b, e.control, uint16(c))
		} else {
			b = append(b, c)
		}
	}
	return b
}

func (e escape) name(c byte) byte {
	for i := 0; i < len(e.named); i += 2 {
		if e.named[i] == c {
			return e.named[i+1]
		}
	}
	return 0
}

func appendEscape(b []byte, how string, u uint16) []byte {
	digits := lowerHex
	switch how {
	case "X":
		return append(b, '\\', 'x', upperHex[u>>4], upperHex[u&15])
	case "x":
		return append(b, '\\', 'x', lowerHex[u>>4], lowerHex[u&15])
	case "o":
		return append(b, '\\', '0'+byte(u>>6), '0'+byte(u>>3&7), '0'+byte(u&7))
	case "U":
		digits = upperHex
	}
	return append(b, '\\', 'u', digits[u>>12], digits[u>>8&15], digits[u>>4&15], digits[u&15])
}

// replacement is a way to write a string in which some bytes become others.
type replacement []string // what, and by what, in pairs

var replacements = []replacement{
	{`'`, `'\''`},  // '…' of a shell
	{`'`, `'"'"'`}, // the same: Python's shlex.quote
	{`'`, `''`},    // SQL, YAML
	{`"`, `""`},    // CSV
	{`'`, `\'\'`},  // '…' of fish within another
	{"\n", "'\n'"}, // Ruby's Shellwords
	{"\n", "\\n"},  // dotenv in single quotes, and other careless writers
	{"\n", " "},    // unquoted in a shell
	{"&", "&amp;", "<", "&lt;", ">", "&gt;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;"},
	{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;"},
}

func (r replacement) apply(v []byte) []byte {
	b := make([]byte, 0, len(v)+16)
next:
	for i := range v {
		for j := 0; j < len(r); j += 2 {
			if r[j][0] == v[i] {
				b = append(b, r[j+1]...)
				continue next
			}
		}
		b = append(b, v[i])
	}
	return b
}
