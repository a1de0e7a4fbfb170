package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/test/chance"
)

func compile(t testing.TB, pairs ...string) *Set {
	t.Helper()
	var values []Value
	for i := 0; i < len(pairs); i += 2 {
		values = append(values, Value{pairs[i], []byte(pairs[i+1])})
	}
	s, err := Compile(values)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		clear(v.Bytes) // they are the caller's, who may wipe them at once
	}
	t.Cleanup(s.Wipe)
	return s
}

func masked(t testing.TB, s *Set, text string) string {
	t.Helper()
	out, _ := through(t, s, []byte(text), func() int { return 1 + len(text)/3 })
	return out
}

func TestReplacements(t *testing.T) {
	for _, c := range []struct {
		name, want string
		text       string
		values     []string
	}{
		{"no values", "text", "text", nil},
		{"no text", "", "", []string{"A", "s3cret-a"}},
		{"only a value", "[masked A]", "s3cret-a", []string{"A", "s3cret-a"}},
		{"two that touch stay apart", "[masked A][masked A][masked B]", "s3cret-as3cret-as3cret-b", []string{"A", "s3cret-a", "B", "s3cret-b"}},
		{"overlapping ones merge", "<[masked A]>", "<abcdefghijkl>", []string{"B", "fghijkl", "A", "abcdefgh"}},
		{"one in another", "<[masked A]>", "<abcdefghijkl>", []string{"B", "cdefghi", "A", "abcdefghijkl"}},
		{"the longer of two that begin together", "<[masked A]>", "<abcdefghijkl>", []string{"B", "abcdefg", "A", "abcdefghijkl"}},
		{"the first of equal ones", "[masked B]", "s3cret-a", []string{"B", "s3cret-a", "A", "s3cret-a"}},
		{"one name of two values", "[masked A] [masked A]", "s3cret-1 s3cret-2", []string{"A", "s3cret-1", "A", "s3cret-2"}},
		{"white space around a value is not part of it", "<[masked A]\n>", "<s3cret-a\n>", []string{"A", " s3cret-a\n\n"}},
		{"nor is what else Unicode calls white space", "<[masked A]> <\ufeff[masked A]\u00a0>", "<s3cret-a> <\ufeffs3cret-a\u00a0>", []string{"A", "\ufeff\u3000s3cret-a\u00a0\u2028\u0085"}},
		{"a beginning of one", "s3cret-", "s3cret-", []string{"A", "s3cret-a"}},
		{"its own replacement holds the value", "[masked]", "LONGNAME", []string{"LONGNAME", "LONGNAME"}},
		{"so does the shorter one", "*** -", "masked -", []string{"A", "masked"}},
		{"binary", "\x00\xff[masked A]\x00", "\x00\xff\x01\x80\x00\xfe\x02\x03\x00", []string{"A", "\x01\x80\x00\xfe\x02\x03"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := masked(t, compile(t, c.values...), c.text); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestSkipped(t *testing.T) {
	s := compile(t, "SHORT", "12345", "PADDED", "  12345\n\n", "WIDE", "\u00a012345\ufeff", "WORD", "Production", "DASHES", "----====----", "EMPTY", "", "BLANK", " \n\t \u2003\n ", "GOOD", "123456")
	want := []Skipped{{"SHORT", "too short"}, {"PADDED", "too short"}, {"WIDE", "too short"}, {"WORD", "a common word"}, {"DASHES", "fewer than 3 different characters"}}
	if got := s.Skipped(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	const text = "12345 production Production ----====---- \n\t \n "
	if got := masked(t, s, text); got != text {
		t.Errorf("got %q", got)
	}
	if got := masked(t, s, "123456"); got != "[masked GOOD]" {
		t.Errorf("got %q", got)
	}
	for _, w := range commonWords {
		if len(w) < minPattern || len(w) > maxWord || strings.ToLower(w) != w {
			t.Errorf("the word %q has no effect", w)
		}
	}
}

// What is public is not masked, nor is the part of a value that is; the rest is.
func TestPublic(t *testing.T) {
	s, err := Compile([]Value{
		{"DB", []byte("billing")},
		{"URL", []byte("postgres://billing:billing@db.internal/billing")},
		{"TOKEN", []byte("billing-1")},
	}, []byte("the app billing"), []byte("billing"))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Skipped(); len(got) != 1 || got[0] != (Skipped{"DB", "a public name or word"}) {
		t.Errorf("skipped %v", got)
	}
	for text, want := range map[string]string{
		"billing": "", "billing-": "", "YmlsbGluZw==": "", "postgres://billing:billing@db.internal/billing": "URL", "billing-1": "TOKEN",
	} {
		if got, _ := s.Find([]byte(text)); got != want {
			t.Errorf("%s: found %q, want %q", text, got, want)
		}
	}
}

func TestBound(t *testing.T) {
	half := bytes.Repeat([]byte("0123456789abcdef"), maxTotal/32)
	if _, err := Compile([]Value{{"A", half}, {"B", half}}); err != nil {
		t.Error(err)
	}
	_, err := Compile([]Value{{"A", half}, {"B", half}, {"C", []byte("s3cret")}})
	if err == nil || hint.Of(err) == "" || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}

func TestFind(t *testing.T) {
	s := compile(t, "A", "s3cret-a", "B", "s3cret-b")
	for text, want := range map[string]string{
		"":                             "",
		"nothing":                      "",
		"x s3cret-b y":                 "B",
		"czNjcmV0LWE=":                 "A",
		"73 33 63 72 65 74 2d 62":      "B",
		"\"s3cret-\" \"a\"":            "",
		strings.Repeat("s3cret-", 1e4): "",
	} {
		if name, ok := s.Find([]byte(text)); name != want || ok != (want != "") {
			t.Errorf("Find(%.40q) = %q, %v", text, name, ok)
		}
	}
}

// A wiped Set holds nothing and lets nothing pass.
func TestWipe(t *testing.T) {
	s := compile(t, "A", "s3cret-a")
	var out bytes.Buffer
	before, late := s.NewWriter(&out), s.NewWriter(&out)
	if _, err := before.Write([]byte("text s3cr")); err != nil {
		t.Fatal(err)
	}
	held := before.held[:cap(before.held)]
	nodes, filter := s.text.node, s.text.filter
	s.Wipe()
	s.Wipe()
	(*Set)(nil).Wipe()
	for _, n := range nodes {
		if n != 0 {
			t.Fatal("a state is left")
		}
	}
	for _, n := range filter {
		if n != 0 {
			t.Fatal("the filter is left")
		}
	}
	if _, err := late.Write([]byte("text")); err == nil {
		t.Error("a Writer goes on")
	}
	if err := before.Close(); err == nil {
		t.Error("a Writer closes as if nothing had happened")
	}
	if out.String() != "text " {
		t.Errorf("passed on %q", &out)
	}
	if bytes.ContainsAny(held, "s3cret") {
		t.Errorf("the Writer holds %q", held)
	}
	if _, ok := s.Find([]byte("text")); !ok {
		t.Error("Find knows that there is nothing")
	}
}

type failing struct{ after int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestWriterErrors(t *testing.T) {
	s := compile(t, "A", "s3cret-a")
	w := s.NewWriter(&failing{1})
	if _, err := w.Write([]byte("text ")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.Write([]byte("text ")); !errors.Is(err, errFull) {
			t.Errorf("got %v", err)
		}
	}
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("closed: %v", err)
	}
	w = s.NewWriter(&failing{0})
	if _, err := w.Write([]byte("s3c")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("closed with something held back: %v", err)
	}
	w = s.NewWriter(io.Discard)
	for range 2 {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a closed Writer takes more")
	}
}

// TestLinesAreNotHeldBack: a line is passed on when it is written, whatever
// could follow it, and so is a prompt.
func TestLinesAreNotHeldBack(t *testing.T) {
	var pairs []string
	for c := range 64 {
		// Values whose base64, in each alignment, and hexadecimal begin with all
		// there is.
		pairs = append(pairs, fmt.Sprintf("V%d", c), string([]byte{byte(c << 2), byte(c<<4 | c>>2), byte(c<<6 | c), 0xfe})+"12345")
	}
	s := compile(t, pairs...)
	for c := byte(' '); c < 0x7f; c++ {
		for _, text := range []string{"listening on " + string(c) + "\n", "a" + string(c) + "\r\n", "name" + string(c) + ": ", "\t" + string(c) + "  "} {
			var out bytes.Buffer
			w := s.NewWriter(&out)
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if out.String() != text {
				t.Errorf("of %q, %q is passed on", text, &out)
			}
		}
	}
}

// The beginning of a value is masked, too, if it is long: programs that are
// killed, fill a pipe or cut their lines print no more.
func TestBeginnings(t *testing.T) {
	r := chance.Rand(t, 0)
	long := "a value of more than fifty bytes, which is cut somewhere"
	s := compile(t, "LONG", long, "OTHER", long[:40]+"/another end")
	for input, want := range map[string]string{
		long[:31]:             long[:31],
		long[:32]:             "[masked OTHER]",
		"<" + long[:45] + ">": "<[masked LONG]>",
		long[:40] + "/anoth":  "[masked OTHER]",
		long[:45] + long:      "[masked LONG][masked LONG]",
		hex.EncodeToString([]byte(long[:20])) + "\n.": "[masked OTHER]\n.",
	} {
		if got, _ := through(t, s, []byte(input), func() int { return 1 + r.IntN(9) }); got != want {
			t.Errorf("%q became %q, want %q", input, got, want)
		}
	}
	if name, ok := s.Find([]byte(long[:45])); ok { // whoever asks for values is not told of beginnings
		t.Errorf("found %s", name)
	}
	for range 300 {
		var values []Value
		for i := range 1 + r.IntN(3) {
			v := word(r, "ab", 33+r.IntN(20))
			if i > 0 && r.IntN(2) == 0 { // with a beginning that another one has
				copy(v, values[0].Bytes[:20+r.IntN(13)])
			}
			values = append(values, Value{fmt.Sprint("V", i), append(v, 'c')})
		}
		set, err := Compile(values)
		if err != nil {
			t.Fatal(err)
		}
		reference := newReference(values, set)
		var input []byte
		for range 12 {
			v := values[r.IntN(len(values))].Bytes
			n := r.IntN(len(v) + 1)
			input = append(append(input, v[:n]...), word(r, "ab ", r.IntN(4))...)
		}
		want := reference.mask(input)
		if got, _ := through(t, set, input, func() int { return 1 + r.IntN(40) }); got != want {
			t.Fatalf("%q\nof %q\nbecame %q\nwant   %q", input, values, got, want)
		}
	}
}

// What is held back is what could still become a value, and no more.
func TestHeldBack(t *testing.T) {
	value := string(word(chance.Rand(t, 0), "abcdefghijklmnopqrstuvwxyz", 64<<10))
	s := compile(t, "A", value)
	var out bytes.Buffer
	w := s.NewWriter(&out)
	text := strings.Repeat("TEXT ", 1e5)
	for _, b := range []string{text, value[:60000], text} {
		if _, err := w.Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	if got := out.String(); got != text+"[masked A]"+text {
		t.Errorf("%d bytes passed on of %d", len(got), len(text)*2+60000)
	}
	if n := cap(w.held) + cap(w.packer.bytes); n > 1<<20 {
		t.Errorf("%d bytes are held", n)
	}
}

// TestLinearTime: no text, however it repeats a value's beginning, takes much
// longer than any other, whether it comes at once or byte by byte.
func TestLinearTime(t *testing.T) {
	const size = 1 << 18
	period := strings.Repeat("abcab", 10000) + "x"
	s := compile(t, "PERIOD", period, "PERIOD2", "bca"+period, "SHORT", "abcabc", "PEM", "-----BEGIN KEY-----\n"+period)
	hexes := hex.EncodeToString([]byte(strings.Repeat("abcab", size/10)))
	took := func(text string, n int) time.Duration {
		start := time.Now()
		out, _ := through(t, s, []byte(text), func() int { return n })
		if len(out) > len(text)*2 {
			t.Errorf("%d bytes became %d", len(text), len(out))
		}
		return time.Since(start)
	}
	for _, n := range []int{1, 4096} {
		plain := took(string(log(size)), n)
		for name, text := range map[string]string{
			"period":            strings.Repeat("abcab", size/5),
			"another period":    strings.Repeat("abcabcab", size/8),
			"its hexadecimal":   hexes,
			"and spaced":        strings.ReplaceAll(hexes[:size/2], "6", " 6"),
			"its base64":        base64.StdEncoding.EncodeToString([]byte(strings.Repeat("abcab", size/7))),
			"its dump":          hex.Dump([]byte(strings.Repeat("abcab", size/25))),
			"lines of a dump":   strings.Repeat("00000000: 6162 6361 6261  abcaba\n", size/33),
			"offsets of a dump": strings.Repeat("00000000 ", size/9),
			"rules":             strings.Repeat("-", size),
			"white space":       strings.Repeat(" \n", size/2),
			"gaps in a prefix":  strings.Repeat("6"+strings.Repeat(" ", maxGap), size/maxGap),
		} {
			// A quadratic algorithm takes thousands of times as long.
			if took := took(text, n); took > 100*plain+time.Second {
				t.Errorf("%s in writes of %d takes %v, and a log %v", name, n, took, plain)
			} else {
				t.Logf("%s in writes of %d: %.1f", name, n, float64(took)/float64(plain))
			}
		}
	}
}

// TestParts: what programs print alone of a value.
func TestParts(t *testing.T) {
	line := "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
	s := compile(t,
		"PEM", "-----BEGIN PRIVATE KEY-----\n"+line+"\nshort+line+0123==\n-----END PRIVATE KEY-----\n",
		"ACCOUNT", `{"type": "service_account", "nested": [{"private_key": "a\/private\nkey+of-the account"}], "n": 1}`,
		"URL", "postgres://user:s3cr%2Ft%21@db.internal:5432/app",
		"PLAINURL", "redis://default@cache.internal:6379/0",
		"MYSQL", "user:my:sql-pass@tcp(db:3306)/app",
		"DSN", "host=db user=u password='lib pq-pass' dbname=app",
		"ADO", "Server=db;Pwd=ado-pass;Database=app",
		"JDBC", "jdbc:postgresql://db/app?user=u&password=jdbc-pass&ssl=true",
	)
	for text, want := range map[string]string{
		"> " + line:                                              "> [masked PEM]",
		"> " + strings.TrimSpace(line) + "\r\n":                  "> [masked PEM]\r\n",
		"short+line+0123==":                                      "[masked PEM]",
		"-----BEGIN PRIVATE KEY-----":                            "-----BEGIN PRIVATE KEY-----",
		"key: a/private\nkey+of-the account":                     "key: [masked ACCOUNT]",
		`"a/private\nkey+of-the account"`:                        `"[masked ACCOUNT]"`,
		"type service_account":                                   "type [masked ACCOUNT]",
		"connecting as user with s3cr%2Ft%21":                    "connecting as user with [masked URL]",
		"connecting as user with s3cr/t!":                        "connecting as user with [masked URL]",
		"password s3cr%2ft%21":                                   "password [masked URL]",
		"host db.internal user user":                             "host db.internal user user",
		"default@cache.internal":                                 "default@cache.internal",
		"my:sql-pass":                                            "[masked MYSQL]",
		"password is lib pq-pass":                                "password is [masked DSN]",
		"pwd ado-pass":                                           "pwd [masked ADO]",
		"jdbc-pass jdbc":                                         "[masked JDBC] jdbc",
		base64.StdEncoding.EncodeToString([]byte("u:jdbc-pass")): "dTp[masked JDBC]",
	} {
		if got := masked(t, s, text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// TestBase64Alignments: whatever is around a value, of its base64 no more is left
// than the digits that hold bits of its neighbours.
func TestBase64Alignments(t *testing.T) {
	random := chance.Rand(t, 0)
	for n := minPattern; n < 20; n++ {
		value := word(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+/", n)
		s := compile(t, "A", string(value))
		for before := range 7 {
			for after := range 7 {
				for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
					plain := slices.Concat(bytes.Repeat([]byte("!"), before), value, bytes.Repeat([]byte("!"), after))
					text := enc.EncodeToString(plain)
					got := masked(t, s, text)
					head, tail, ok := strings.Cut(got, "[masked A]")
					if !ok || len(head) > (8*before+5)/6 || len(strings.TrimRight(tail, "=")) > (8*after+5)/6+1 {
						t.Fatalf("%q in %q, %d before and %d after, leaves %q", value, text, before, after, got)
					}
				}
			}
		}
	}
}

// TestManyValues: each of 2000 is found in each of its forms.
func TestManyValues(t *testing.T) {
	values := secretLike(2000)
	s, err := Compile(values)
	if err != nil {
		t.Fatal(err)
	}
	for i := range values {
		text, packed, _, _ := patterns(values[i:i+1], nil)
		for _, p := range slices.Concat(text, packed) {
			want := "[masked " + values[i].Name + "]"
			if got, _ := through(t, s, p.b, func() int { return 7 }); got != want {
				t.Fatalf("%q became %q, want %q", p.b, got, want)
			}
		}
	}
}
