package dotenv

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
)

// TestRefused has what npm dotenv skips or misreads without a word.
func TestRefused(t *testing.T) {
	const (
		statement = "not an assignment"
		more      = "the value of A has more text after its closing quote"
		noClose   = "the value of A has no closing quote"
		glued     = "the value of A has a # with no space before it"
		odd       = "the value of A has white space around it that is neither space nor tab"
		oddStart  = "starts with white space that is neither space nor tab"
		backslash = "the value of A has a backslash before a quote of its own kind"
		escaped   = "the value of A has an escaped backslash in double quotes"
		separator = "a Unicode line or paragraph separator"
		dot       = "a name with a dot or a dash in it"
		digit     = "a name that starts with a digit"
	)
	long := strings.Repeat("x", MaxValue)
	for _, tt := range []struct {
		src  string
		line int
		msg  string
	}{
		// Lines that are nothing.
		{"A", 1, statement},
		{"A=1\nB\nC=3", 2, statement},
		{"export A", 1, statement},
		{"export", 1, statement},
		{"export \nA=1", 1, statement},
		{"=x", 1, statement},
		{"A\n=x", 1, statement},
		{"A B=x", 1, statement},
		{"export A B=x", 1, statement},
		{"set A=x", 1, statement},
		{"A+=x", 1, statement},
		{"A[0]=x", 1, statement},
		{"'A'=x", 1, statement},
		{"É=x", 1, statement},
		{"; a comment", 1, statement},
		{"// a comment", 1, statement},
		{"[section]", 1, statement},
		{"source other.env", 1, statement},
		{"---\nA=1", 1, statement},
		{"A:x", 1, statement},
		{"A :x", 1, statement},
		{"A : x", 1, statement},
		{"export : x", 1, statement},
		{"A:", 1, statement},
		{"A:\nB=x", 1, statement},
		{"A=\n'x'", 2, statement},
		{"A=\n\n\"B=x\"\n", 3, statement},
		{"A=one \\\ntwo", 2, statement},
		{"KEY=-----BEGIN PRIVATE KEY-----\nMIIEXAMPLE/+==\n-----END PRIVATE KEY-----", 2, statement},

		// Names.
		{"A.B=x", 1, dot},
		{"A-B=x", 1, dot},
		{".=x", 1, dot},
		{"export -A=x", 1, dot},
		{"A=1\n\n2B=x", 3, digit},
		{strings.Repeat("A", 256) + "=x", 1, "a name of more than 255 bytes"},

		// Quotes.
		{`A="x`, 1, noClose},
		{"A='x\nB=y\n", 1, noClose},
		{"B=1\nA=`x\n", 2, noClose},
		{`A="`, 1, noClose},
		{`A="x\"`, 1, backslash},
		{`A='C:\'`, 1, backslash},
		{"A='C:\\'\nB='x'\n", 1, backslash},
		{"A=`x\\`", 1, backslash},
		{`A='it\'s'`, 1, backslash},
		{`A="{\"a\": \"b\"}"`, 1, backslash},
		{"B=1\nA=\"x\ny \\\"z\\\"\n\"\n", 2, backslash},
		{`A="x\\y"`, 1, escaped},
		{`A="x\\ny"`, 1, escaped},
		{`A="x\\"`, 1, backslash},
		{`A="x" y`, 1, more},
		{`A="x"y`, 1, more},
		{`A='x''y'`, 1, more},
		{`A="""x"""`, 1, more},
		{`A='it's'`, 1, more},
		{`A="x" "y" # z`, 1, more},
		{"A=\"x\nB=\"y\"\n", 1, "the value of A ends on line 2, with more text after its closing quote"},
		{"C=1\r\nA='x\r\n\r\nB='y'\r\n", 2, "the value of A ends on line 4, with more text after its closing quote"},

		// A # that half of the loaders take for a comment.
		{"A=x#y", 1, glued},
		{"A=#fff", 1, glued},
		{"A=x#y # z", 1, glued},
		{"A=https://example.com/#/x", 1, glued},
		{"A=x\u00a0#y", 1, glued},

		// White space that loaders do not treat alike.
		{"A=\u00a0x", 1, odd},
		{"A=x\u3000", 1, odd},
		{"A=\ufeff", 1, odd},
		{"A=\u0085x", 1, odd},
		{"A=x\v # y", 1, odd},
		{"A=x\f", 1, odd},
		{"A=\u00a0'x'", 1, odd},
		{"A='x'\u00a0", 1, more},
		{"\u00a0A=x", 1, oddStart},
		{"A=1\n\ufeffB=x", 2, oddStart},
		{"A=1\n\f\n", 2, oddStart},
		{"A\u00a0=x", 1, statement},
		{"export\u00a0A=x", 1, statement},
		{"A=x\u2028B=y", 1, separator},
		{"# x\u2028A=y", 1, separator},
		{"A=1\n\n  # x\u2029A=y", 3, separator},
		{"A=x # y\u2028B=z", 1, separator},
		{"A='x\ny' # y\u2028B=z", 2, separator},
		{"\u2028", 1, oddStart},

		// Not text.
		{"A=x\x00", 1, "a NUL byte"},
		{"A=1\r\n# \x00", 2, "a NUL byte"},
		{"A=\xff", 1, "not valid UTF-8"},
		{"A=1\rB=2\nC='caf\xe9'\n", 3, "not valid UTF-8"},
		{"# \xc3", 1, "not valid UTF-8"},
		{"A=\xed\xa0\x80", 1, "not valid UTF-8"}, // a surrogate
		{"A=\ufffd\n\xff", 2, "not valid UTF-8"},
		{"\xff\xfeA\x00=\x00x\x00", 1, "the file is UTF-16, not UTF-8"},
		{"\xfe\xff\x00A\x00=\x00x", 1, "the file is UTF-16, not UTF-8"},

		// Bounds.
		{"A=" + long + "x", 1, "the value of A is longer than 64 KiB"},
		{"B=1\nA='" + long + "x'", 2, "the value of A is longer than 64 KiB"},
		{"A=\"" + long + "\\n\"", 1, "the value of A is longer than 64 KiB"},
	} {
		_, err := checkParse(t, []byte(tt.src))
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.80q: %v", tt.src, err)
		} else if e.Line != tt.line || e.Msg != tt.msg {
			t.Errorf("%.80q: line %d: %s\nwant line %d: %s", tt.src, e.Line, e.Msg, tt.line, tt.msg)
		}
	}
}

func TestHint(t *testing.T) {
	_, err := Parse([]byte("A=1\nDB_PASS=tr0ub4dor#3\n"))
	if got, want := err.Error(), "line 2: the value of DB_PASS has a # with no space before it"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := hint.Of(err), "put the value in quotes if the # belongs to it, or a space before the # if a comment starts there"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFileBounds(t *testing.T) {
	file := bytes.Repeat([]byte("#"), MaxFile+1)
	if _, err := Parse(file); err == nil || err.Error() != "the file is larger than 64 MiB" {
		t.Errorf("%d bytes: %v", len(file), err)
	}
	if pairs, err := Parse(file[:MaxFile]); err != nil || len(pairs) != 0 {
		t.Errorf("%d bytes: %v", MaxFile, err)
	}
	file = bytes.Repeat([]byte("A=\n"), MaxPairs)
	pairs, err := Parse(file)
	if err != nil || len(pairs) != 1 || len(pairs[0].Earlier) != MaxPairs-1 || pairs[0].Line != MaxPairs {
		t.Errorf("%d assignments: %v", MaxPairs, err)
	}
	if _, err := Parse(append(file, "B="...)); err == nil || err.Error() != fmt.Sprintf("line %d: more than %d assignments", MaxPairs+1, MaxPairs) {
		t.Errorf("%d assignments: %v", MaxPairs+1, err)
	}
}

func TestDuplicates(t *testing.T) {
	pairs, err := checkParse(t, []byte("A=first\nB=2\nA='second\n'\nA=third\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Pair{
		{Name: "A", Value: []byte("third"), Line: 5, Earlier: []int{1, 3}},
		{Name: "B", Value: []byte("2"), Line: 2},
	}
	if !reflect.DeepEqual(pairs, want) {
		t.Errorf("got %+v, want %+v", pairs, want)
	}
}

func TestWarnings(t *testing.T) {
	text := map[notes]string{}
	for _, n := range noteText {
		text[n.note] = n.text
	}
	for _, tt := range []struct {
		src  string
		want []string
	}{
		{"A=x\nB='y'\nC=\"z w\"\nD=\n# $X \\n\nexport E: 1\n", nil},
		{"A=1\nA=2", []string{"line 2: A: replaces the value of line 1"}},
		{"A=1\nB=1\nA=2\n\nA=3\n", []string{"line 5: A: replaces the value of line 3, and 1 before that"}},
		{"A=$X\n", []string{"line 1: A: " + text[noteReference]}},
		{`A="${X}"`, []string{"line 1: A: " + text[noteReference]}},
		{`A="$(x)"`, []string{"line 1: A: " + text[noteReference]}},
		{"A=a$$b", []string{"line 1: A: " + text[noteReference]}},
		{"A='$X'\nB=$\nC=5$ \nD=\"$$.$\"", nil},
		{`A="x\ny"`, []string{"line 1: A: " + text[noteDecoded]}},
		{`A="x\ny\z"`, []string{"line 1: A: " + text[noteDecoded], "line 1: A: " + text[noteBackslash]}},
		{`A="x\ty"`, []string{"line 1: A: " + text[noteBackslash]}},
		{`A='a\\b'`, []string{"line 1: A: " + text[noteBackslash]}},
		{`A='a\nb\"c'`, nil},
		{`A=C:\dir`, []string{"line 1: A: " + text[noteBackslash]}},
		{"A=x # y", []string{"line 1: A: " + text[noteComment]}},
		{"A= # y", []string{"line 1: A: " + text[noteComment]}},
		{"A='x' # y", []string{"line 1: A: " + text[noteComment]}},
		{"A=`$x`", []string{"line 1: A: " + text[noteBacktick]}},
		// Of a replaced value there is nothing to say.
		{"A=$X\nA=2", []string{"line 2: A: replaces the value of line 1"}},
	} {
		pairs, _ := checkParse(t, []byte(tt.src))
		var got []string
		for _, w := range Warnings(pairs) {
			got = append(got, w.String())
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.src, got, tt.want)
		}
	}
}

func TestWipe(t *testing.T) {
	pairs, err := Parse([]byte("A=secret\nB='also\\secret'\n"))
	if err != nil {
		t.Fatal(err)
	}
	values := [][]byte{pairs[0].Value, pairs[1].Value}
	Wipe(pairs)
	for i, v := range values {
		if len(v) == 0 || !bytes.Equal(v, make([]byte, len(v))) || pairs[i].Value != nil {
			t.Errorf("value %d is still %q", i, v)
		}
	}
}

// TestUnreturnedIsWiped looks at values that Parse makes but does not return.
func TestUnreturnedIsWiped(t *testing.T) {
	for name, rest := range map[string]string{"replaced": "A='x'\n", "before an error": "B=x#y\n"} {
		p := &parser{rest: []byte("A=secret\n" + rest), line: 1, index: map[string]int{}}
		if err := p.statement(); err != nil {
			t.Fatal(err)
		}
		value := p.pairs[0].Value
		if string(value) != "secret" {
			t.Fatalf("%q", value)
		}
		err := p.file()
		if (err != nil) != (name == "before an error") || !bytes.Equal(value, make([]byte, len(value))) {
			t.Errorf("%s: %q left, error %v", name, value, err)
		}
	}
}

// TestNoCopies bounds what Parse allocates: each value once and nothing else
// of that size. A buffer that grew or a detour by a string would double it.
func TestNoCopies(t *testing.T) {
	const n, size = 50, 60_000
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for name, quote := range map[string]string{"unquoted": "", "single": "'", "double": `"`} {
		var src []byte
		for i := range n {
			src = fmt.Appendf(src, "NAME_%d=%s%s%s\n", i, quote, strings.Repeat("s", size), quote)
		}
		for _, tt := range []struct {
			name, tail string
			want       bool
		}{{name, "", true}, {name + " refused", "oops", false}} {
			src := append(bytes.Clone(src), tt.tail...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			pairs, err := Parse(src)
			runtime.ReadMemStats(&after)
			if (err == nil) != tt.want {
				t.Fatal(err)
			}
			got := float64(after.TotalAlloc-before.TotalAlloc) / (n * size)
			if got > 1.15 { // size classes and names
				t.Errorf("%s: allocated %.2f times the size of the values", tt.name, got)
			}
			Wipe(pairs)
		}
	}
}

// TestLinear parses what would take a quadratic parser minutes or hours.
func TestLinear(t *testing.T) {
	const size = 1 << 20
	for name, part := range map[string]string{
		"blank lines":         "\n",
		"CR only":             "\r",
		"CRLF":                "\r\n",
		"comments":            "#\n",
		"comments with CR":    "#\r",
		"spaces":              " ",
		"no line end":         "x",
		"escaped quotes":      `A='\'`,
		"quotes":              `'`,
		"open quotes":         "A='\"`\n",
		"names":               "export ",
		"one value":           `A="` + strings.Repeat("\n", 1000) + "\"\n",
		"short values":        "A=x # y\n",
		"many backslashes":    `\`,
		"hash":                "A=x #",
		"unicode separators":  "\u2028",
		"not quite separator": "\u2027",
	} {
		for _, prefix := range []string{"", "A=", "A='", "#"} {
			src := append([]byte(prefix), bytes.Repeat([]byte(part), size/len(part))...)
			start := time.Now()
			pairs, err := Parse(src)
			Wipe(pairs)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("%s after %q: %v (%v)", name, prefix, took, err)
			}
		}
	}
}

// manyPairs is a file of n assignments as they are found in real ones.
func manyPairs(n int) []byte {
	var src []byte
	for i := range n {
		switch i % 4 {
		case 0:
			src = fmt.Appendf(src, "export SECRET_%d=sk_test_%032d\n", i, i)
		case 1:
			src = fmt.Appendf(src, "SECRET_%d=\"postgres://user:%016d@127.0.0.1:5432/app\" # the database\n", i, i)
		case 2:
			src = fmt.Appendf(src, "# a comment\n\nSECRET_%d='%064d'\r\n", i, i)
		case 3:
			src = fmt.Appendf(src, "SECRET_%d=\"-----BEGIN KEY-----\\n%064d\\n-----END KEY-----\\n\"\n", i, i)
		}
	}
	return src
}

func BenchmarkParse(b *testing.B) {
	for exp := 1; exp <= 5; exp++ {
		n := int(math.Pow10(exp))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			src := manyPairs(n)
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for b.Loop() {
				pairs, err := Parse(src)
				if err != nil || len(pairs) != n {
					b.Fatal(len(pairs), err)
				}
				Wipe(pairs)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/pair")
		})
	}
}
