package mcp

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

const (
	hexDigits = "0123456789abcdef"
	base64set = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	alnum     = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	printable = " !\"#$%&'()*+,-./" + "0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
	awkward   = `"'$\%&` + "`" + ` !/<>;|`
)

// makeSecrets returns the secrets of the leak test: of 6 bytes to 64 KiB, in the
// alphabets that credentials have.
func makeSecrets(r *rand.Rand) []secret {
	var list []secret
	add := func(name string, value []byte) { list = append(list, secret{name: name, value: value}) }
	// Six hexadecimal digits stand somewhere in a dump of 64 KiB by chance.
	for _, n := range []int{8, 16, 40, 1024, 64 << 10} {
		add(fmt.Sprintf("HEX_%d", n), text(r, n, hexDigits))
	}
	for _, n := range []int{12, 44, 4096} {
		add(fmt.Sprintf("BASE64_%d", n), text(r, n, base64set))
	}
	for _, n := range []int{6, 8, 20, 64, 500, 8 << 10, 60 << 10} {
		add(fmt.Sprintf("PRINTABLE_%d", n), worth(func() []byte { return text(r, n, printable) }))
	}
	add("AWKWARD_12", text(r, 12, awkward))
	add("AWKWARD_60", text(r, 60, awkward))
	for _, n := range []int{6, 24, 300} {
		add(fmt.Sprintf("UTF8_%d", n), worth(func() []byte { return wide(r, n) }))
	}
	add("PASTED", slices.Concat([]byte("\ufeff"), wide(r, 12), text(r, 8, alnum), []byte("\u00a0\u3000")))
	add("DIGITS_9", text(r, 9, "0123456789"))
	add("REPEATED", []byte(strings.Repeat(string(text(r, 2, alnum))+"-", 14)+"!"))
	add("PASSPHRASE", []byte(fmt.Sprintf(" %s\t%s %s ", text(r, 7, alnum), text(r, 5, alnum), text(r, 9, alnum))))
	add("LINES", []byte(fmt.Sprintf("%s\r\n%s\n\n%s", text(r, 14, alnum), text(r, 30, printable), text(r, 9, alnum))))
	add("CONTROL", []byte(fmt.Sprintf("%s\x1b[31m%s\a\x7f%s", text(r, 6, alnum), text(r, 6, alnum), text(r, 6, alnum))))
	body := make([]byte, 1190)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: body})
	add("PEM", key)
	account, err := json.MarshalIndent(map[string]string{
		"type": "service_account", "project_id": string(text(r, 10, hexDigits)), "private_key_id": string(text(r, 40, hexDigits)),
		"private_key": string(key[:900]), "client_email": "robot@" + string(text(r, 8, hexDigits)) + ".example.com",
	}, "", "  ")
	if err != nil {
		panic(err)
	}
	add("JSON_DOCUMENT", account)
	add("URL", []byte(fmt.Sprintf("postgres://app:%s@db.example.com:5432/app?sslmode=require&x=%s", text(r, 18, alnum+"-_.~%!*"), text(r, 8, alnum))))
	// Two that overlap, and one that begins like another.
	a := text(r, 30, alnum)
	add("OVERLAP_A", a[:20])
	add("OVERLAP_B", a[10:])
	add("PREFIX", a[:9])
	return list
}

// wide is random and of n characters, most of which are not ASCII.
func wide(r *rand.Rand, n int) []byte {
	var b strings.Builder
	for range n {
		b.WriteRune([]rune("aZ5-éßλЖ中語😀🔑\u00a0\u200b\u2028")[r.IntN(15)])
	}
	return []byte(b.String())
}

// worth draws until the value is worth masking: it has 6 bytes or more without
// the white space around it, and is not of two characters.
func worth(draw func() []byte) []byte {
	for {
		v := draw()
		if b := trimmed(v); len(b) >= 6 && len(slices.Compact(slices.Sorted(slices.Values(b)))) > 2 {
			return v
		}
	}
}

// A program shows a secret. In its arguments NAME stands for the variable that
// holds it.
type program struct {
	name string
	argv []string
	// other is the form in which it shows some secrets or all, if that is not a
	// listed one: then what comes through is counted, and not a failure.
	other string
	// needs says which secrets it is for; all if nil.
	needs func(secret) bool
}

func sh(script string) []string   { return []string{"sh", "-c", script} }
func bash(script string) []string { return []string{"bash", "-c", script} }
func dash(script string) []string { return []string{"dash", "-c", script} }
func perl(script string) []string { return []string{"perl", "-e", script} }

// python has the value as bytes in v and as text in s.
func python(script string) []string {
	return []string{"python3", "-c", "import os,sys,json,base64,time\nv=os.environb[b'NAME'];s=v.decode('utf-8','surrogateescape')\n" + script}
}

// js has the value in s.
func js(script string) []string {
	return []string{"node", "-e", "const s=process.env.NAME;" + script}
}

func oneLine(s secret) bool { return !strings.ContainsAny(string(s.value), "\r\n\x1b\a") }

// header is what can stand in an HTTP header's value or a URL that curl is given.
func header(s secret) bool {
	return oneLine(s) && len(s.value) <= 8<<10 && strings.TrimSpace(string(s.value)) == string(s.value)
}

// showsNoOther is for programs that show all of a secret but its end: PREFIX would
// be in that.
func showsNoOther(s secret) bool { return s.name != "OVERLAP_A" }

func upTo(n int) func(secret) bool { return func(s secret) bool { return len(s.value) <= n } }

// programs are those of the leak test; ORIGIN stands for a local HTTP server that
// answers with the request, CRASH for a C program.
var programs = []program{
	// The environment.
	{name: "env", argv: []string{"env"}},
	{name: "env -0", argv: []string{"env", "-0"}},
	{name: "env | sort", argv: sh(`env | sort`), other: "its lines apart from each other"},
	{name: "printenv", argv: []string{"printenv"}},
	{name: "printenv NAME", argv: []string{"printenv", "NAME"}},
	{name: "/proc/self/environ", argv: []string{"cat", "/proc/self/environ"}},
	{name: "tr on /proc/self/environ", argv: sh(`tr '\0' '\n' </proc/self/environ`)},
	{name: "make -p", argv: []string{"make", "-pn", "-f", "/dev/null"}, needs: oneLine},

	// Shells.
	{name: "sh: echo", argv: dash(`echo "$NAME"`), other: "echo's backslashes"},
	{name: "bash: echo", argv: bash(`echo "$NAME"`)},
	{name: "bash: echo, unquoted", argv: bash(`set -f; echo $NAME`), other: "white space made one"},
	{name: "printf", argv: sh(`printf '<%s>' "$NAME"`)},
	{name: "printf %q", argv: bash(`printf '%q\n' "$NAME"`)},
	{name: "${NAME@Q}", argv: bash(`echo "${NAME@Q}"`)},
	{name: "bash: set", argv: bash(`set`)},
	{name: "bash: declare -p", argv: bash(`declare -p NAME`)},
	{name: "bash: export -p", argv: bash(`export -p`)},
	{name: "dash: set", argv: dash(`set`)},
	{name: "dash: export -p", argv: dash(`export -p`)},
	{name: "bash -x", argv: []string{"bash", "-xc", `: "$NAME"`}},
	{name: "dash -x", argv: []string{"dash", "-xc", `: "$NAME"`}},
	{name: "here document", argv: sh("cat <<END\n[$NAME]\nEND\n")},
	{name: "both outputs", argv: sh(`printf %s "$NAME"; printf %s "$NAME" >&2; printf %s "$NAME"`)},
	{name: "many times", argv: bash(`for i in {1..50}; do printf '%s' "$NAME"; done`), needs: upTo(8 << 10)},
	{name: "without its last newline", argv: bash(`x=$(printenv NAME); echo "$x"`)},
	{name: "in another's name", argv: bash(`export COPY=$NAME; unset NAME; exec env`)},
	{name: "in an argument", argv: bash(`exec sh -c 'tr "\0" "\n" </proc/$$/cmdline' x "$NAME"`)},
	{name: "command not found", argv: bash(`"$NAME"`), needs: func(s secret) bool {
		// A path is not looked for, and %1 is a job.
		return upTo(200)(s) && oneLine(s) && !bytes.Contains(s.value, []byte("/")) && s.value[0] != '%'
	}},
	{name: "no such file", argv: bash(`cat -- "$NAME"`), needs: func(s secret) bool { return upTo(100)(s) }, other: "ls-style quoting"},
	{name: "bad parameter", argv: bash(`: "${NOTHING:?$NAME}"`), other: "white space made one"},
	{name: "arithmetic error", argv: bash(`: $((NAME+1))`), needs: func(s secret) bool { return upTo(100)(s) && !strings.Contains(string(s.value), "[") }, other: "an expression's rest"},

	// Text tools.
	{name: "awk", argv: []string{"awk", `BEGIN{printf "%s", ENVIRON["NAME"]}`}},
	{name: "sed", argv: sh(`printf %s "$NAME" | sed 's/x$/x/'`)},
	{name: "tee", argv: sh(`printf %s "$NAME" | tee /dev/stderr`)},
	{name: "dd of one byte", argv: sh(`printf %s "$NAME" | dd bs=1 status=none`), needs: upTo(8 << 10)},
	{name: "grep", argv: sh(`env | grep -a ^NAME=`), other: "its first line"},
	{name: "sed: indented", argv: sh(`printf '%s\n' "$NAME" | sed 's/^/    /'`), other: "its lines apart from each other"},
	{name: "cat -n", argv: sh(`printf '%s\n' "$NAME" | cat -n`), other: "its lines apart from each other"},
	{name: "paste", argv: sh(`printf '%s\n' "$NAME" | paste -sd,`), other: "its lines apart from each other"},
	{name: "script (a terminal)", argv: sh(`script -qec 'printenv NAME' /dev/null </dev/null`), other: "its lines with CR LF"},
	{name: "rev", argv: sh(`printf '%s\n' "$NAME" | rev`), other: "reversed"},
	{name: "fold", argv: sh(`printf %s "$NAME" | fold -w 5`), other: "cut into pieces"},
	{name: "head", argv: sh(`printf %s "$NAME" | head -c -3`), other: "all but its last 3 bytes", needs: showsNoOther},
	{name: "tail", argv: sh(`printf %s "$NAME" | tail -c +4`), other: "all but its first 3 bytes"},
	{name: "a log's bound", argv: python(`print(("%s the token is %s and more" % ("x"*(990-len(v)//2), s))[:1000]+"...")`), other: "its beginning", needs: func(s secret) bool { return len(s.value) > 30 && upTo(1800)(s) }},
	{name: "sed: spaced out", argv: sh(`printf %s "$NAME" | sed 's/./& /g'`), other: "cut into pieces"},
	{name: "tr: upper case", argv: sh(`printf %s "$NAME" | tr a-z A-Z`), other: "in upper case"},
	{name: "tr: rot13", argv: sh(`printf %s "$NAME" | tr A-Za-z N-ZA-Mn-za-m`), other: "rot13"},
	{name: "cat -v", argv: sh(`printf %s "$NAME" | cat -v`), other: "carets"},
	{name: "sed -n l", argv: sh(`printf '%s\n' "$NAME" | sed -n l`), other: "wrapped"},
	{name: "strace", argv: []string{"strace", "-qqvs999999", "-e", "execve", "true"}, other: "C escapes"},

	// Encoders.
	{name: "base64", argv: sh(`printf %s "$NAME" | base64`)},
	{name: "base64 -w0", argv: sh(`printf %s "$NAME" | base64 -w0`)},
	{name: "base64, after 1 byte", argv: sh(`printf 'x%sy' "$NAME" | base64 -w0`)},
	{name: "base64, after 2 bytes", argv: sh(`printf 'xy%sz' "$NAME" | base64 -w0`)},
	{name: "base64 of the environment", argv: sh(`base64 -w0 /proc/self/environ`)},
	{name: "base64url", argv: sh(`printf %s "$NAME" | base64 -w0 | tr +/ -_ | tr -d =`)},
	{name: "openssl base64", argv: sh(`printf %s "$NAME" | openssl base64 -A`)},
	{name: "openssl base64, wrapped", argv: sh(`printf %s "$NAME" | openssl base64`)},
	{name: "xxd -p", argv: sh(`printf %s "$NAME" | xxd -p`)},
	{name: "xxd -p -c0", argv: sh(`printf %s "$NAME" | xxd -p | tr -d '\n'`)},
	{name: "xxd -p -u", argv: sh(`printf %s "$NAME" | xxd -p -u | tr -d '\n'`)},
	{name: "hexdump, no spaces", argv: sh(`printf %s "$NAME" | hexdump -ve '/1 "%02x"'`)},
	{name: "xxd", argv: sh(`printf %s "$NAME" | xxd`), other: "a dump with offsets"},
	{name: "hexdump -C", argv: sh(`printf %s "$NAME" | hexdump -vC`), other: "a dump with offsets"},
	{name: "od -c", argv: sh(`printf %s "$NAME" | od -An -vc`), other: "a dump with offsets"},
	{name: "od -tx1", argv: sh(`printf %s "$NAME" | od -An -vtx1`)},
	{name: "od, words", argv: sh(`printf %s "$NAME" | od -v`), other: "a dump with offsets"},
	{name: "base32", argv: sh(`printf %s "$NAME" | base32 -w0`), other: "base32"},
	{name: "base64 twice", argv: sh(`printf %s "$NAME" | base64 -w0 | base64 -w0`), other: "base64 of base64"},
	{name: "gzip", argv: sh(`printf %s "$NAME" | gzip -n9 | base64 -w0`), other: "compressed"},
	{name: "openssl enc", argv: sh(`printf %s "$NAME" | openssl enc -aes-128-cbc -K 00112233445566778899aabbccddeeff -iv 00112233445566778899aabbccddeeff -a -A`), other: "encrypted"},

	// jq.
	{name: "jq", argv: []string{"jq", "-n", `env.NAME`}},
	{name: "jq -r", argv: []string{"jq", "-nr", `env.NAME`}},
	{name: "jq env", argv: []string{"jq", "-n", `env`}},
	{name: "jq --ascii-output", argv: []string{"jq", "-na", `env.NAME`}},
	{name: "jq @sh", argv: []string{"jq", "-nr", `env.NAME|@sh`}},
	{name: "jq @uri", argv: []string{"jq", "-nr", `env.NAME|@uri`}},
	{name: "jq @base64", argv: []string{"jq", "-nr", `env.NAME|@base64`}},
	{name: "jq @json", argv: []string{"jq", "-nr", `env.NAME|@json`}},
	{name: "jq @csv", argv: []string{"jq", "-nr", `[env.NAME]|@csv`}, other: "quotes doubled"},
	{name: "jq @html", argv: []string{"jq", "-nr", `env.NAME|@html`}, other: "HTML"},
	{name: "jq explode", argv: []string{"jq", "-nc", `env.NAME|explode`}, other: "numbers"},
	{name: "jq, a part", argv: sh(`printf %s "$NAME" | jq -r .private_key`), other: "a part of it", needs: func(s secret) bool { return s.name == "JSON_DOCUMENT" }},

	// Python.
	{name: "python print", argv: python(`print("token is", s, "!")`)},
	{name: "python repr", argv: python(`print(repr(s))`), other: "repr's quoting"},
	{name: "python os.environ", argv: python(`print(os.environ)`), other: "repr's quoting"},
	{name: "python json.dumps", argv: python(`print(json.dumps({"a":[s]}))`)},
	{name: "python json.dumps, not ASCII", argv: python(`print(json.dumps(dict(os.environ), ensure_ascii=False, indent=2))`)},
	{name: "python quote", argv: python(`import urllib.parse as u; print(u.quote(s), u.quote(s,safe=''), u.quote_plus(s), u.urlencode({"k":s}))`)},
	{name: "python base64", argv: python(`print(base64.b64encode(v).decode(), base64.urlsafe_b64encode(v).decode())`)},
	{name: "python basic auth", argv: python(`print("Authorization: Basic", base64.b64encode(b"user:"+v).decode())`)},
	{name: "python hex", argv: python(`print(v.hex(), v.hex().upper())`)},
	{name: "python hex, apart", argv: python(`print(v.hex(':'))`)},
	{name: "python shlex", argv: python(`import shlex; print(shlex.quote(s))`)},
	{name: "python, byte by byte", argv: python(`
for i,b in enumerate(v):
    os.write(1,bytes([b]))
    if i<40: time.sleep(0.002)
`), needs: upTo(8 << 10)},
	{name: "python, in two writes", argv: python(`
for k in range(1,min(len(v),12)):
    os.write(1,v[:k]); time.sleep(0.005); os.write(1,v[k:]); os.write(1,b"\n")
`)},
	{name: "python, both outputs in turn", argv: python(`
for i in range(0,len(v),7):
    os.write(1,v[i:i+7]); os.write(2,v[i:i+7])
    if i<200: time.sleep(0.002)
`)},
	{name: "python, two in turn", argv: python(`
w=base64.b64encode(v)
for k in range(1,len(w)//4,max(1,len(w)//60)):
    os.write(1,w[:k]); os.write(1,w[k:]+v)
`)},
	{name: "python, a false start", argv: python(`os.write(1,v[:-1]+v[:len(v)//2]+v+b' '+v[1:]+b' '+v)`), other: "all but a byte of it, and it", needs: showsNoOther},
	{name: "python, in noise", argv: python(`
import random; random.seed(7)
n=bytes(random.randrange(256) for _ in range(4000))
os.write(1,n+v+n+v); os.write(2,b"\0"+v+b"\xff\xfe\0")
`)},
	{name: "python, over the bound", argv: python(`
out=sys.stdout.buffer
for i in range(3000):
    out.write(b"%06d "%i+b"."*(i%701)+v[:9000]+b"\n") if len(v)<=9000 else out.write(b"."*61+b"\n")
    if i%500==0: out.write(v)
out.flush()
`)},
	{name: "python traceback", argv: python(`raise RuntimeError("cannot log in with "+s)`), other: "backslashreplace"},
	{name: "python KeyError", argv: python(`{}[s]`), other: "repr's quoting"},
	{name: "python logging", argv: python(`import logging; logging.error("the token %s is wrong", s)`), other: "backslashreplace"},
	{name: "python pprint", argv: python(`import pprint; pprint.pprint({"v":s})`), other: "repr's quoting, wrapped"},
	{name: "python html", argv: python(`import html; print(html.escape(s))`), other: "HTML"},
	{name: "python reversed", argv: python(`os.write(1,v[::-1])`), other: "reversed"},
	{name: "python zlib", argv: python(`import zlib; print(zlib.compress(v).hex())`), other: "compressed"},
	{name: "python UTF-16", argv: python(`os.write(1,s.encode("utf-16-le","surrogatepass"))`), other: "UTF-16"},
	{name: "python xor", argv: python(`print(bytes(b^90 for b in v).hex())`), other: "encrypted"},
	{name: "python halves", argv: python(`h=len(v)//2; os.write(1,v[:h]+b"\n"+v[h:])`), other: "cut into pieces"},
	{name: "python ascii85", argv: python(`print(base64.a85encode(v).decode())`), other: "base85"},

	// Node.
	{name: "node console.log", argv: js(`console.log(s)`)},
	{name: "node process.env", argv: js(`console.log(process.env)`), other: "inspect's quoting"},
	{name: "node JSON.stringify", argv: js(`console.log(JSON.stringify(process.env))`)},
	{name: "node encodeURIComponent", argv: js(`console.log(encodeURIComponent(s),encodeURI(s),new URLSearchParams({s})+"")`)},
	{name: "node inspect", argv: js(`console.log(require("util").inspect({s}))`), other: "inspect's quoting"},
	{name: "node Buffer", argv: js(`for(const e of ["hex","base64","base64url"])console.log(Buffer.from(s).toString(e))`)},
	{name: "node uncaught exception", argv: js(`throw new Error("refused: "+s)`), needs: upTo(32 << 10)}, // at the end Node waits for no full pipe
	{name: "node Buffer itself", argv: js(`console.log(Buffer.from(s))`), other: "a dump with offsets"},
	{name: "node escape", argv: js(`console.log(escape(s))`), other: "%uXXXX"},

	// Others.
	{name: "perl", argv: perl(`print $ENV{NAME}`)},
	{name: "perl die", argv: perl(`die "no luck with $ENV{NAME}"`)},
	{name: "perl unpack", argv: perl(`print unpack("H*",$ENV{NAME})`)},
	{name: "perl MIME::Base64", argv: []string{"perl", "-MMIME::Base64", "-e", `print encode_base64($ENV{NAME})`}},
	{name: "perl Dumper", argv: []string{"perl", "-MData::Dumper", "-e", `print Dumper($ENV{NAME})`}, other: "Perl's quoting"},
	{name: "a crash", argv: []string{"CRASH", "NAME"}},
	{name: "git", argv: sh(`git config --file /dev/null --get x; git -c "x.y=$NAME" config x.y`)},
	{name: "gdb", argv: []string{"gdb", "-nx", "-batch", "-ex", "show environment NAME"}, needs: oneLine},

	// curl against a local server, which sends back what it was sent.
	{name: "curl -v, header", argv: bash(`curl -sv -H "Authorization: Bearer $NAME" ORIGIN`), needs: header},
	{name: "curl -v, basic auth", argv: bash(`curl -sv -u "user:$NAME" ORIGIN`), needs: header},
	{name: "curl -v, query", argv: bash(`curl -svG --data-urlencode "k=$NAME" ORIGIN`), needs: header},
	{name: "curl -v, form", argv: bash(`curl -sv --data-urlencode "k=$NAME" ORIGIN`), needs: header},
	{name: "curl -v, body", argv: bash(`printf %s "$NAME" | curl -sv --data-binary @- ORIGIN`), needs: upTo(60 << 10)},
	{name: "curl, a cookie and a redirect", argv: bash(`curl -svL -b "session=$NAME" ORIGIN/redirect`), needs: func(s secret) bool {
		return header(s) && upTo(2000)(s) // curl sends no longer cookie
	}},
}
