package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/test/chance"
)

// values that make the encoders work, each for the forms of text.
func awkward(t *testing.T) map[string]string {
	t.Helper()
	raw := make([]byte, 1200)
	random := chance.Rand(t, 1)
	for i := range raw {
		raw[i] = byte(random.Uint32())
	}
	pem := "-----BEGIN PRIVATE KEY-----\n"
	for rest := base64.StdEncoding.EncodeToString(raw); rest != ""; {
		n := min(64, len(rest))
		pem += rest[:n] + "\n"
		rest = rest[n:]
	}
	pem += "-----END PRIVATE KEY-----\n"
	return map[string]string{
		"SIMPLE": "c0rrect-horse_battery.staple~9",
		"SIX":    "aB3$x!",
		"BASE64": base64.StdEncoding.EncodeToString(raw[:45]),
		"SYMBOL": "p@ss w\"o'rd\\$x/+=&<>%#;?{}[]()*!~^|`,:end",
		"QUOTES": "it's \"quoted\" 'twice'",
		"RUNS":   "''ab''cdef'''ghij'k''",
		"TILDES": "~a~bc:~def =~#g#h",
		"NUMBER": "#a~bc:~def =~#g#h",
		"EDGES":  "'\"$start-end\"'",
		"LINES":  "first line, with 'quotes'\nsecond\tline\nthird \\ line",
		"CRLF":   "first-line-of-it\r\nsecond-line-of-it\r\nthird",
		"PEM":    pem,
		"UTF8":   "пароль-größe-🔑-値",
		"SPACES": "nbsp\u00a0zwsp\u200bbom\ufeffwide\u3000nel\u0085own\ue000line\u2028tag\U000e0001é🔑'",
		"ESCAPE": "bell\aback\bescape\x1b[1mdel\x7fff\fend",
		"URL":    "postgres://user:s3cr%2Ft+pass@db.internal:5432/app?sslmode=require&x=1",
		"JSON":   `{"type": "service", "private_key": "-----BEGIN KEY-----\nabc+/d\n", "id": "a<b>&c\u00e9"}`,
	}
}

// emptied is what is left of a form when the value in it has been masked: the
// quotes around it, and of base64 the digits that also hold bits of what comes
// before or behind.
var emptied = regexp.MustCompile(`^(V=|declare -x V=|export V=|b|\++ : )?[\\$"'` + "`" + ` ]*([A-Za-z0-9+/_-]{0,3}|eHkt?|%)\[masked V\](\\n|%0[aA]|:0A:|["'` + "`" + `:\\\s])*[A-Za-z0-9+/_=-]{0,4}["\\\s]*$`)

func emptiedBy(t *testing.T, value, out string) (string, bool) {
	t.Helper()
	s, err := Compile([]Value{{"V", []byte(value)}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wipe()
	masked, n := through(t, s, []byte(out), func() int { return 1 << 20 })
	return masked, n == 1 && emptied.MatchString(masked)
}

// drivers run the scripts that they get as arguments for every variable that
// NAMES lists, in $V, and print a NUL after each.
var drivers = map[string][]string{
	"bash": {"bash", "-c", `for s in "$@"; do for n in $NAMES; do (export V="${!n}"; eval "$s"); printf '\0'; done; done`, "bash"},
	"dash": {"dash", "-c", `for s in "$@"; do for n in $NAMES; do (eval "export V=\$$n"; eval "$s"); printf '\0'; done; done`, "dash"},
	"python3": {"python3", "-c", `
import base64, csv, html, json, os, shlex, sys, urllib.parse as u, xml.sax.saxutils as x
for s in sys.argv[1:]:
    code = compile(s, "", "exec")
    for n in os.environ["NAMES"].split():
        os.environ["V"] = v = os.environ[n]
        b = os.environb[b"V"]
        exec(code)
        print("\0", end="", flush=True)`},
	"node": {"node", "-e", `
for (const s of process.argv.slice(1)) for (const n of process.env.NAMES.split(" ")) {
	const v = process.env[n], util = require("util"), qs = require("querystring");
	process.stdout.write(eval(s) + "\0");
}`, "--"},
	"perl": {"perl", "-e", `
use Data::Dumper; use MIME::Base64; $Data::Dumper::Terse = 1;
for my $s (@ARGV) { for my $n (split / /, $ENV{NAMES}) { $v = $ENV{$n}; print eval($s), "\0"; } }`},
}

// TestPrograms has real programs print values, and finds nothing of them left.
func TestPrograms(t *testing.T) {
	scripts := map[string][]string{
		"bash": {
			`printf '%s\n' "$V"`,
			`printf '%q\n' "$V"`,
			`declare -p V`,
			`export -p | grep -a -A99 ' V=' | sed '/^declare -x [^V]/,$d'`,
			`echo "${V@Q}"`,
			`exec 2>&1; set -x; : "$V"`,
			`printf '%s' "$V" | base64`,
			`echo "$V" | base64 -w0`,
			`printf 'x%s' "$V" | base64`,
			`printf 'xy%s' "$V" | base64 -w64`,
			`printf '%s' "$V" | xxd -p`,
			`printf '%s' "$V" | xxd -p -u -c 0`,
			`printf '%s' "$V" | od -An -v -tx1`,
			`printf '%s' "$V" | hexdump -v -e '/1 "%02x "'`,
			`printf '%s' "$V" | hexdump -v -e '/1 "%02X:"'`,
			`printf '%s' "$V" | openssl base64`,
			`printf '%s' "$V" | openssl enc -base64 -A`,
		},
		"dash": {
			`export -p | grep -a -A99 '^export V=' | sed '/^export [^V]/,$d'`,
			`exec 2>&1; set -x; : "$V"`,
		},
		"python3": {
			`print(repr(v))`,
			`print(ascii(v))`,
			`print(b)`,
			`print(json.dumps(v))`,
			`print(json.dumps(v, ensure_ascii=False))`,
			`print(json.dumps(json.dumps(v, ensure_ascii=False), ensure_ascii=False))`,
			`print(json.dumps(json.dumps(v)))`,
			`print(u.quote(v))`,
			`print(u.quote(v, safe=""))`,
			`print(u.quote_plus(v))`,
			`print("".join("%%%02x" % c for c in b))`,
			`print(shlex.quote(v))`,
			`print(html.escape(v))`,
			`print(x.escape(v))`,
			`csv.writer(sys.stdout, quoting=csv.QUOTE_ALL).writerow([v])`,
			`print(base64.encodebytes(b).decode())`,
			`print(base64.urlsafe_b64encode(b"x" + b).decode())`,
			`print(b.hex())`,
			`print(b.hex(":").upper())`,
		},
		"node": {
			`v`,
			`JSON.stringify(v)`,
			`JSON.stringify(JSON.stringify(v))`,
			`util.inspect(v, {breakLength: Infinity})`,
			`encodeURIComponent(v)`,
			`encodeURI(v)`,
			`String(new URLSearchParams({V: v}))`,
			`qs.escape(v)`,
			`Buffer.from(v).toString("base64")`,
			`Buffer.from("x" + v).toString("base64url")`,
			`Buffer.from(v).toString("hex")`,
		},
		"perl": {
			`Dumper($v)`,
			`local $Data::Dumper::Useqq = 1; Dumper($v)`,
			`quotemeta($v)`,
			`encode_base64($v)`,
			`unpack("H*", $v)`,
		},
		"jq": {`.`, `@json`, `@json | @json`, `@uri`, `@sh`, `@html`, `[.] | @csv`, `@base64`, `@base64 | @json`},
	}
	values := awkward(t)
	names := slices.Sorted(maps.Keys(values))
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LC_ALL=C.UTF-8", "NAMES=" + strings.Join(names, " ")}
	for name, value := range values {
		env = append(env, name+"="+value)
	}
	for program, list := range scripts {
		t.Run(program, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("no %s here", program)
			}
			argv := append(slices.Clone(drivers[program]), list...)
			if program == "jq" {
				for i, s := range list {
					list[i] = "(" + s + ")"
				}
				all := strings.Join(list, `, "\u0000", `)
				argv = append([]string{"jq", "-nj", `$ARGS.positional[] as $n | $ENV[$n] | ` + all + `, "\u0000"`, "--args"}, names...)
			}
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env, cmd.Stderr = env, os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			outputs := strings.Split(string(out), "\x00")
			if len(outputs) != len(list)*len(names)+1 {
				t.Fatalf("%d outputs of %d scripts for %d values", len(outputs)-1, len(list), len(names))
			}
			for i, script := range list {
				for j, name := range names {
					out := outputs[i*len(names)+j]
					if program == "jq" {
						out = outputs[j*len(list)+i]
					}
					if masked, ok := emptiedBy(t, values[name], out); !ok {
						t.Errorf("%s\nprints %s as %.300q\nand of that leaves %.300q", script, name, out, masked)
					}
				}
			}
		})
	}
}

// TestPrintfWithin: bash's printf %q escapes ~ and # by where they are in a word,
// and a value may begin in the middle of it.
func TestPrintfWithin(t *testing.T) {
	for _, value := range []string{"~a~bc:~def =~#g#h", "#a~bc:~def =~#g#h"} {
		for _, before := range []string{" ", "x", "x=", ":", "~", "#"} {
			out, err := exec.Command("bash", "-c", `printf %q "$1"`, "bash", before+value).Output()
			if err != nil {
				t.Skip(err)
			}
			if masked, ok := emptiedBy(t, value, strings.TrimPrefix(strings.TrimPrefix(string(out), `\`), before)); !ok {
				t.Errorf("of %q is left %q", out, masked)
			}
		}
	}
}

// TestNotUTF8 has values of bytes that are no text, as programs print them that
// keep them in strings.
func TestNotUTF8(t *testing.T) {
	const value = "caf\xe9-\xff\xfebin\x80é\u00a0'"
	for program, out := range map[string]string{
		"Python: repr":       `"caf\udce9-\udcff\udcfebin\udc80é\xa0'"`,
		"Python: ascii":      `"caf\udce9-\udcff\udcfebin\udc80\xe9\xa0'"`,
		"Python: os.environ": `b"caf\xe9-\xff\xfebin\x80\xc3\xa9\xc2\xa0'"`,
		"Python: json.dumps": `"caf\udce9-\udcff\udcfebin\udc80\u00e9\u00a0'"`,
		"bash: printf %q":    `$'caf\351-\377\376bin\200é` + "\u00a0" + `\''`,
		"Go: %q":             fmt.Sprintf("%q", value),
		"Go: %+q":            fmt.Sprintf("%+q", value),
		"Go: JSON":           `"` + "caf\ufffd-\ufffd\ufffdbin\ufffdé\u00a0" + `'"`,
	} {
		if masked, ok := emptiedBy(t, value, out); !ok {
			t.Errorf("%s prints %q, and of that leaves %q", program, out, masked)
		}
	}
}

// TestGoForms is the same with encoders of Go.
func TestGoForms(t *testing.T) {
	plain := func(v any) string {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(v)
		return b.String()
	}
	forms := map[string]func(v string) string{
		"%q":            func(v string) string { return fmt.Sprintf("%q", v) },
		"%+q":           func(v string) string { return fmt.Sprintf("%+q", v) },
		"%x":            func(v string) string { return fmt.Sprintf("%x", v) },
		"% X":           func(v string) string { return fmt.Sprintf("% X", v) },
		"JSON":          func(v string) string { b, _ := json.Marshal(v); return string(b) },
		"JSON, no HTML": func(v string) string { return plain(v) },
		"JSON twice":    func(v string) string { return plain(strings.Trim(plain(v), "\"\n")) },
		"QueryEscape":   url.QueryEscape,
		"PathEscape":    url.PathEscape,
		"UserPassword": func(v string) string {
			return strings.TrimPrefix(url.UserPassword("", v).String(), ":")
		},
		"HTML":      html.EscapeString,
		"base64url": func(v string) string { return base64.RawURLEncoding.EncodeToString([]byte("ab" + v + "cd")) },
		"HEX":       func(v string) string { return strings.ToUpper(hex.EncodeToString([]byte(v))) },
		"CRLF":      func(v string) string { return strings.ReplaceAll(v, "\n", "\r\n") },
		"folded": func(v string) string {
			if strings.TrimSpace(v) == "" || len(v) < 20 {
				return v
			}
			v = strings.TrimSpace(v)
			return v[:len(v)/2] + "\n    " + v[len(v)/2:]
		},
	}
	for name, form := range forms {
		for which, value := range awkward(t) {
			out := form(value)
			if masked, ok := emptiedBy(t, value, out); !ok {
				t.Errorf("%s of %s, printed as %.300q\nleaves %.300q", name, which, out, masked)
			}
		}
	}
}
