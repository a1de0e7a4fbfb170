package dotenv

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
)

// messages has every text that an Error can have. Whatever is not in it may be
// a part of a value.
var messages = regexp.MustCompile(`\A(?:` + strings.Join([]string{
	`the file is larger than 64 MiB`,
	`line \d+: (?:` + strings.Join([]string{
		`the file is UTF-16, not UTF-8`,
		`a NUL byte`,
		`not valid UTF-8`,
		`not an assignment`,
		`starts with white space that is neither space nor tab`,
		`a name with a dot or a dash in it`,
		`a name of more than 255 bytes`,
		`a name that starts with a digit`,
		`more than 1048576 assignments`,
		`a Unicode line or paragraph separator`,
		`the value of (?P<name>[A-Za-z_][A-Za-z0-9_]{0,254}) (?:` + strings.Join([]string{
			`has no closing quote`,
			`has a backslash before a quote of its own kind`,
			`has an escaped backslash in double quotes`,
			`has more text after its closing quote`,
			`ends on line \d+, with more text after its closing quote`,
			`has a # with no space before it`,
			`has white space around it that is neither space nor tab`,
			`is longer than 64 KiB`,
		}, "|") + `)`,
	}, "|") + `)`,
}, "|") + `)\z`)

// warnings has every text that a Warning can have.
var warnings = func() *regexp.Regexp {
	all := []string{`replaces the value of line \d+(?:, and \d+ before that)?`}
	for _, n := range noteText {
		all = append(all, regexp.QuoteMeta(n.text))
	}
	return regexp.MustCompile(`\A(?:` + strings.Join(all, "|") + `)\z`)
}()

var assignment = regexp.MustCompile(`\A[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)(?:[ \t]*=|:[ \t])`)

// lines splits src at the line ends that Parse knows.
func lines(src []byte) []string {
	s := strings.ReplaceAll(strings.TrimPrefix(string(src), "\ufeff"), "\r\n", "\n")
	return strings.Split(strings.ReplaceAll(s, "\r", "\n"), "\n")
}

// checkParse checks what must hold for any input, and returns Parse's result.
func checkParse(tb testing.TB, src []byte) ([]Pair, error) {
	tb.Helper()
	before := bytes.Clone(src)
	pairs, err := Parse(src)
	if !bytes.Equal(src, before) {
		tb.Fatalf("Parse changed its input %q", before)
	}
	all := lines(src)
	startsWith := func(line int, name string) bool {
		if line < 1 || line > len(all) {
			return false
		}
		m := assignment.FindStringSubmatch(all[line-1])
		return m != nil && m[1] == name
	}
	if err != nil {
		if pairs != nil {
			tb.Errorf("pairs and the error %v for %q", err, src)
		}
		var e *Error
		if !errors.As(err, &e) || hint.Of(err) == "" {
			tb.Fatalf("no *Error with a hint: %#v", err)
		}
		if e.Line < 1 || e.Line > len(all) {
			tb.Errorf("line %d of %d: %q", e.Line, len(all), src)
		}
		m := messages.FindStringSubmatch(err.Error())
		if m == nil {
			tb.Fatalf("an error with something unknown in it: %q for %q", err, src)
		}
		if name := m[messages.SubexpIndex("name")]; name != "" && !startsWith(e.Line, name) {
			tb.Errorf("line %d does not assign %s: %q", e.Line, name, src)
		}
		return nil, err
	}
	seen := map[string]bool{}
	size := 0
	for _, p := range pairs {
		size += len(p.Value)
		if !names.ValidName(p.Name) || seen[p.Name] {
			tb.Errorf("name %q (seen: %v) in %q", p.Name, seen[p.Name], src)
		}
		seen[p.Name] = true
		if p.Value == nil || len(p.Value) > MaxValue || !utf8.Valid(p.Value) || bytes.IndexByte(p.Value, 0) >= 0 {
			tb.Errorf("value of %s: %q in %q", p.Name, p.Value, src)
		}
		if cap(p.Value) > 0 && len(src) > 0 && bytes.Contains(src, p.Value) && aliases(src, p.Value) {
			tb.Errorf("the value of %s is in the memory of %q", p.Name, src)
		}
		at := append(slices.Clone(p.Earlier), p.Line)
		for i, l := range at {
			if !startsWith(l, p.Name) || i > 0 && l <= at[i-1] {
				tb.Errorf("lines %v of %s in %q", at, p.Name, src)
			}
		}
	}
	if size > len(src) {
		tb.Errorf("%d bytes of values from %d", size, len(src))
	}
	for _, w := range Warnings(pairs) {
		if !seen[w.Name] || !warnings.MatchString(w.Msg) {
			tb.Errorf("warning %q for %q", w, src)
		}
	}
	return pairs, nil
}

// aliases reports whether the two share memory.
func aliases(a, b []byte) bool {
	for i := range a {
		if &a[i] == &b[:1][0] {
			return true
		}
	}
	return false
}

// render writes pairs as a file that Parse reads as the same pairs, and drops
// those that no quoting can hold.
func render(pairs []Pair) (file []byte, kept []Pair) {
	for _, p := range pairs {
		v := string(p.Value)
		quote, escape := "", false
		// A quote can hold a value that has none of it, and no backslash that
		// would hide the closing one. CR is there only as \r, in double quotes.
		fits := func(q string) bool { return !strings.Contains(v, q) && !strings.HasSuffix(v, `\`) }
		switch cr := strings.Contains(v, "\r"); {
		case !cr && fits("'"):
			quote = "'"
		case !cr && fits("`"):
			quote = "`"
		case fits(`"`) && !strings.Contains(v, `\\`) && !strings.Contains(v, `\n`) && !strings.Contains(v, `\r`) && !strings.Contains(v, "\\\r"):
			quote, escape = `"`, true
		case !cr && v != "" && !strings.ContainsAny(v, "\n#'\"`") && !hasSeparator(p.Value) && strings.TrimFunc(v, func(r rune) bool {
			return r == ' ' || r == '\t' || isOddSpace(r)
		}) == v:
		default:
			continue
		}
		if escape {
			v = strings.ReplaceAll(v, "\r", `\r`)
		}
		file = fmt.Appendf(file, "%s=%s%s%s\n", p.Name, quote, v, quote)
		kept = append(kept, p)
	}
	return file, kept
}

func FuzzParse(f *testing.F) {
	for _, file := range corpus(f) {
		if len(file.src) < 8<<10 { // long ones slow the mutator down
			f.Add(file.src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		pairs, err := checkParse(t, src)
		if err != nil {
			return
		}
		file, want := render(pairs)
		again, err := checkParse(t, file)
		if err != nil {
			t.Fatalf("%q written as %q: %v", src, file, err)
		}
		if !equal(ours(again), ours(want)) {
			t.Errorf("%q written as %q is %q, not %q", src, file, ours(again), ours(want))
		}
	})
}

// wellFormed is a random file in the dialect, with the pairs it stands for.
func wellFormed(r *rand.Rand) (file []byte, want npmPairs) {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	blank := func() string { return pick("", "", "", " ", "\t", "  ") }
	eol := pick("\n", "\n", "\n", "\r\n", "\r")
	text := func(bad string, parts ...string) string {
		var b strings.Builder
		for range r.IntN(8) {
			if p := pick(parts...); !strings.ContainsAny(p, bad) {
				b.WriteString(p)
			}
		}
		return b.String()
	}
	common := []string{"x", "Pa55", "=", "==", " ", "\t", "é", "日本", "🔑", "'", `"`, "`", "$", "${HOST}", "$(id)", "%h", ":", ";",
		"/", "{", "}", "&", "\\t", "\\\\", "\u200b", "\x1b", "https://u:p@h:1/db?x=y", "postgres", "-----BEGIN KEY-----"}
	if r.IntN(8) == 0 {
		file = append(file, "\ufeff"...)
	}
	index := map[string]int{}
	for range 1 + r.IntN(10) {
		switch r.IntN(6) {
		case 0:
			file = append(file, blank()+eol...)
			continue
		case 1:
			file = append(file, blank()+"#"+text("", append(common, "#", "A=b", "it's")...)+eol...)
			continue
		}
		name := pick("A", "B", "_", "DATABASE_URL", "aws_secret", "X9", "export", "__proto__", "STRIPE_KEY")
		comment := ""
		var raw, value string
		switch quote := pick("", "'", `"`, "`"); quote {
		case "":
			value = strings.Trim(text("", append(common, `\n`, `\r`)...), " \t")
			if value != "" && strings.ContainsAny(value[:1], "'\"`") {
				value = "v" + value
			}
			raw = value
			if r.IntN(3) == 0 {
				comment = pick(" ", "\t", "  \t") + "#" + text("", append(common, "#")...)
			}
		default:
			body := text(quote, append(common, "#", " # ", "\n", "\r", "A=b", "\u2028", "\u00a0")...)
			for quote == `"` && strings.Contains(body, `\\`) {
				body = strings.ReplaceAll(body, `\\`, `\`)
			}
			// No backslash before the closing quote, or before an escape.
			body = strings.TrimRight(body, `\`)
			// CR and LF side by side would be one line end.
			body = strings.ReplaceAll(body, "\r", "\n")
			raw = quote + strings.ReplaceAll(body, "\n", eol) + quote
			value = body
			if quote == `"` && r.IntN(2) == 0 {
				raw = strings.TrimSuffix(raw, quote) + pick(`\n`, `\r`) + quote
				value += map[bool]string{true: "\n", false: "\r"}[strings.HasSuffix(raw, `\n"`)]
			}
			comment = pick("", "", blank()+"#"+text("", append(common, "#", quote)...))
		}
		sep := blank() + "=" + blank()
		if r.IntN(8) == 0 {
			sep = ":" + pick(" ", "\t") + blank()
		}
		line := blank() + pick("", "", "export ", "export\t ") + name + sep + raw + comment + pick("", " ", "\t")
		file = append(file, line+eol...)
		if i, ok := index[name]; ok {
			want[i][1] = value
			continue
		}
		index[name] = len(want)
		want = append(want, [2]string{name, value})
	}
	if r.IntN(3) == 0 {
		file = bytes.TrimRight(file, "\r\n")
	}
	return file, want
}

// TestRandom needs no node: the files' pairs are known as they are made.
func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 10000 {
		file, want := wellFormed(r)
		got, err := checkParse(t, file)
		if err != nil {
			t.Fatalf("%q: %v", file, err)
		}
		if !equal(ours(got), want) {
			t.Fatalf("%q\ngot  %q\nwant %q", file, ours(got), want)
		}
	}
	for range 10000 {
		_, _ = checkParse(t, rubbish(r, r.IntN(40)))
	}
}
