package mcp

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// What is looked for is made here from the list in the documentation, not by the
// code that masks.

// form is a secret as a program may print it.
type form struct {
	name string
	text []byte
}

// forms returns the listed forms of a value of 6 bytes or more: itself, base64
// in both alphabets wherever it stands in what is encoded, hex, percent-encoding,
// the inside of a JSON string, and the quoting of shells.
func forms(value []byte) []form {
	list := []form{{"plain", value}}
	seen := map[string]bool{string(value): true}
	add := func(name string, text string) {
		if !seen[text] {
			seen[text] = true
			list = append(list, form{name, []byte(text)})
		}
	}
	for before := range 3 {
		// The characters that the value alone decides: 6 bits each, and the first
		// and the last may hold bits of what is around.
		from, to := (8*before+5)/6, 8*(before+len(value))/6
		padded := append(make([]byte, before), value...)
		add(fmt.Sprintf("base64, after %d bytes", before), base64.StdEncoding.EncodeToString(padded)[from:to])
		add(fmt.Sprintf("base64url, after %d bytes", before), base64.URLEncoding.EncodeToString(padded)[from:to])
	}
	add("hex", hex.EncodeToString(value))
	add("hex, upper case", strings.ToUpper(hex.EncodeToString(value)))

	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
	for _, p := range []struct {
		name, safe string
		plus       bool
	}{
		{"percent, RFC 3986", unreserved, false},
		{"percent, Python quote", unreserved + "/", false},
		{"percent, encodeURIComponent", unreserved + "!*'()", false},
		{"percent, encodeURI", unreserved + "!*'();,/?:@&=+$#", false},
		{"percent, form", unreserved, true},
		{"percent, URLSearchParams", strings.TrimSuffix(unreserved, "~") + "*", true},
		{"percent, every byte", "", false},
	} {
		upper := percent(value, p.safe, p.plus, "%%%02X")
		add(p.name, upper)
		add(p.name+", lower case", percent(value, p.safe, p.plus, "%%%02x"))
	}
	add("percent, Go PathEscape", url.PathEscape(string(value)))
	add("percent, Go QueryEscape", url.QueryEscape(string(value)))

	if utf8.Valid(value) {
		add("JSON", jsonText(value, jsonStyle{}))
		add("JSON, \\/", jsonText(value, jsonStyle{slash: true}))
		add("JSON, HTML-safe", jsonText(value, jsonStyle{html: true}))
		add("JSON, ASCII", jsonText(value, jsonStyle{ascii: true}))
		add("JSON, ASCII, upper case", jsonText(value, jsonStyle{ascii: true, upper: true}))
		add("JSON, DEL escaped", jsonText(value, jsonStyle{del: true}))
		b, err := json.Marshal(string(value))
		if err == nil {
			add("JSON, Go", string(b[1:len(b)-1]))
		}
	}
	add("shell, '\\''", strings.ReplaceAll(string(value), `'`, `'\''`))
	add("shell, '\"'\"'", strings.ReplaceAll(string(value), `'`, `'"'"'`))
	add("shell, dash", dashQuoted(string(value)))
	add("shell, double quotes", escape(value, "\\\"$`", ""))
	if !bytes.ContainsAny(value, "\n\t\r\x1b") && utf8.Valid(value) {
		// What bash's printf %q escapes, and the words of dash's `set -x`.
		add("shell, backslashes", escape(value, " \t!\"$&'()*,;<>?[\\]^`{|}", "#"))
	}
	add("shell, $'…'", ansi(value))
	return list
}

func percent(value []byte, safe string, plus bool, format string) string {
	var b strings.Builder
	for _, c := range value {
		switch {
		case strings.IndexByte(safe, c) >= 0:
			b.WriteByte(c)
		case plus && c == ' ':
			b.WriteByte('+')
		default:
			fmt.Fprintf(&b, format, c)
		}
	}
	return b.String()
}

type jsonStyle struct{ slash, html, ascii, upper, del bool }

func jsonText(value []byte, s jsonStyle) string {
	var b strings.Builder
	u := func(r uint16) {
		if s.upper {
			fmt.Fprintf(&b, `\u%04X`, r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	for _, r := range string(value) {
		switch {
		case short[r] != "":
			b.WriteString(short[r])
		case r < 0x20, s.del && r == 0x7f, s.html && strings.ContainsRune("<>&\u2028\u2029", r):
			u(uint16(r))
		case s.slash && r == '/':
			b.WriteString(`\/`)
		case s.ascii && r > 0x7f:
			if r > 0xffff {
				hi, lo := utf16.EncodeRune(r)
				u(uint16(hi))
				u(uint16(lo))
			} else {
				u(uint16(r))
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// escape puts a backslash before each of these, and before those of atStart if
// the value begins with one; then also before a tilde where a shell would expand
// it.
func escape(value []byte, these, atStart string) string {
	var b strings.Builder
	for i, c := range value {
		tilde := atStart != "" && c == '~' && (i == 0 || value[i-1] == ':' || value[i-1] == '=')
		if strings.IndexByte(these, c) >= 0 || i == 0 && strings.IndexByte(atStart, c) >= 0 || tilde {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// dashQuoted is what dash's set and export -p print between the outer quotes:
// single quotes that follow each other stand in double ones together.
func dashQuoted(value string) string {
	var b strings.Builder
	for value != "" {
		plain := strings.IndexByte(value, '\'')
		if plain < 0 {
			b.WriteString(value)
			break
		}
		rest := strings.TrimLeft(value[plain:], "'")
		quotes := value[plain : len(value)-len(rest)]
		b.WriteString(value[:plain] + `'"` + quotes + `"`)
		if rest != "" {
			b.WriteByte('\'')
		}
		value = rest
	}
	return b.String()
}

// ansi is bash's $'…', in a UTF-8 locale: what cannot be printed is in octal.
func ansi(value []byte) string {
	short := map[rune]string{'\a': `\a`, '\b': `\b`, '\t': `\t`, '\n': `\n`, '\v': `\v`, '\f': `\f`, '\r': `\r`, '\x1b': `\E`, '\\': `\\`, '\'': `\'`}
	var b strings.Builder
	for i, r := range string(value) {
		switch {
		case short[r] != "":
			b.WriteString(short[r])
		case r == utf8.RuneError:
			fmt.Fprintf(&b, `\%03o`, value[i])
		case r < 0x20, r >= 0x7f && r < 0xa0, r == '\u2028', r == '\u2029':
			for _, c := range []byte(string(r)) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// A secret is one of the vault under test. Its value is made up.
type secret struct {
	name  string
	value []byte
	shown bool // too short or too common to be masked
}

// known is what to look for: each form of each secret as a whole, and pieces of
// at least 2*piece-1 bytes of the long ones. What base64(1) and the programs that
// dump bytes put into lines and groups is looked for without white space and
// colons too.
type known struct {
	forms  map[string][]form // by the secret's name
	packed map[string][]form
	order  []string
	pieces map[uint64]string
	seed   maphash.Seed
}

const piece = 16

func compile(secrets []secret) *known {
	k := &known{forms: map[string][]form{}, packed: map[string][]form{}, pieces: map[uint64]string{}, seed: maphash.MakeSeed()}
	for _, s := range secrets {
		if s.shown {
			continue
		}
		// A program that leaves out the white space around it has shown it all.
		inner := forms(trimmed(s.value))
		all := append(forms(s.value), inner...)
		k.forms[s.name] = all
		for _, f := range all {
			if strings.HasPrefix(f.name, "base64") || strings.HasPrefix(f.name, "hex") {
				k.packed[s.name] = append(k.packed[s.name], form{f.name + ", in lines or groups", f.text})
			}
		}
		k.order = append(k.order, s.name)
		for _, f := range inner {
			for at := 0; at+piece <= len(f.text); at += piece {
				k.pieces[maphash.Bytes(k.seed, f.text[at:at+piece])] = s.name + ", part of its form " + f.name
			}
		}
	}
	return k
}

// trimmed is a value without the white space around it, or a byte order mark.
func trimmed(value []byte) []byte {
	return bytes.TrimFunc(value, func(r rune) bool { return unicode.IsSpace(r) || r == '\ufeff' })
}

// whole returns which secrets are in the text, and in which form, each once.
func (k *known) whole(text []byte) (hits []string) {
	packed := pack(text)
	for _, name := range k.order {
		if found := k.formsOf(name, text, packed); found != nil {
			hits = append(hits, name+" in the form "+found[0])
		}
	}
	return hits
}

// formsOf returns the listed forms of one secret that are in the text; packed
// is the packed text.
func (k *known) formsOf(name string, text, packed []byte) (found []string) {
	for _, f := range k.forms[name] {
		if bytes.Contains(text, f.text) {
			found = append(found, f.name)
		}
	}
	if found == nil {
		for _, f := range k.packed[name] {
			if bytes.Contains(packed, f.text) {
				found = append(found, f.name)
			}
		}
	}
	return found
}

// pack returns the text without white space and colons.
func pack(text []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == ' ' || r >= '\t' && r <= '\r' || r == ':' {
			return -1
		}
		return r
	}, text)
}

// parts returns a secret of which a piece is in the text.
func (k *known) parts(text []byte) []string {
	for at := 0; at+piece <= len(text); at++ {
		if hit, ok := k.pieces[maphash.Bytes(k.seed, text[at:at+piece])]; ok {
			return []string{hit}
		}
	}
	return nil
}

// inMessage looks at a line as it is, and at every string in it that a client
// decodes, down to JSON within JSON.
func (k *known) inMessage(line []byte) []string {
	hits := k.whole(line)
	for _, s := range decode(line, nil) {
		hits = append(hits, k.whole([]byte(s))...)
	}
	return hits
}

// decode returns all strings in a JSON text; none if it is not JSON.
func decode(text []byte, into []string) []string {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return into
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			into = append(into, v)
			if t := strings.TrimSpace(v); strings.HasPrefix(t, "{") || strings.HasPrefix(t, "[") {
				into = decode([]byte(t), into)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for name, e := range v {
				into = append(into, name)
				walk(e)
			}
		}
	}
	walk(v)
	return into
}

// TestForms holds the generator against examples made with the tools themselves.
func TestForms(t *testing.T) {
	const value = `aé"'\$ /&<+` + "\n"
	have := map[string]bool{}
	for _, f := range forms([]byte(value)) {
		have[string(f.text)] = true
	}
	for tool, want := range map[string]string{
		"base64 -w0":                        "YcOpIidcJCAvJjwrC",
		"printf xVALUE | base64":            "HDqSInXCQgLyY8Kw",
		"printf xyVALUE | base64":           "hw6kiJ1wkIC8mPCsK",
		"xxd -p":                            "61c3a922275c24202f263c2b0a",
		"xxd -p -u":                         "61C3A922275C24202F263C2B0A",
		"urllib.parse.quote":                "a%C3%A9%22%27%5C%24%20/%26%3C%2B%0A",
		"urllib.parse.quote_plus":           "a%C3%A9%22%27%5C%24+%2F%26%3C%2B%0A",
		"encodeURIComponent":                "a%C3%A9%22'%5C%24%20%2F%26%3C%2B%0A",
		"json.dumps":                        `a\u00e9\"'\\$ /&<+\n`,
		"json.dumps ensure_ascii=False":     `aé\"'\\$ /&<+\n`,
		"json.Marshal":                      "aé\\\"'\\\\$ /\\u0026\\u003c+\\n",
		"php json_encode":                   `aé\"'\\$ \/&<+\n`,
		"shlex.quote":                       `aé"'"'"'\$ /&<+` + "\n",
		"bash: ${x@Q}, printf %q, with \\n": `aé"\'\\$ /&<+\n`,
	} {
		if !have[want] {
			t.Errorf("what %s prints is not among the forms", tool)
		}
	}
	for _, f := range forms([]byte("a b&c'd")) {
		have[string(f.text)] = true
	}
	for tool, want := range map[string]string{
		"bash: printf %q":   `a\ b\&c\'d`,
		"bash: set, set -x": `a b&c'\''d`,
		"dash: set":         `a b&c'"'"'d`,
		"bash: declare -p":  `a b&c'd`,
	} {
		if !have[want] {
			t.Errorf("what %s prints is not among the forms", tool)
		}
	}
	for _, f := range forms([]byte("'a''b'")) {
		have[string(f.text)] = true
	}
	if !have[`'"'"'a'"''"'b'"'"`] {
		t.Error("what dash: set prints of quotes in a row is not among the forms")
	}
	for _, f := range forms([]byte("a\u2028\u0085b'")) {
		have[string(f.text)] = true
	}
	if !have[`a\342\200\250\302\205b\'`] {
		t.Error("what bash's printf prints of what cannot be seen is not among the forms")
	}
	for _, f := range forms([]byte("a\"b$c`d\\")) {
		have[string(f.text)] = true
	}
	if !have["a\\\"b\\$c\\`d\\\\"] {
		t.Error("what bash: declare -p prints is not among the forms")
	}
}
