package engine_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/detect/engine"
)

var rules = sync.OnceValues(engine.New)

func scan(t testing.TB, text, path string) []detect.Finding {
	t.Helper()
	e, err := rules()
	if err != nil {
		t.Fatal(err)
	}
	before := strings.Clone(text)
	found, err := e.Scan([]byte(text), path)
	if err != nil {
		t.Fatal(err)
	}
	if text != before {
		t.Fatal("the text was changed")
	}
	return found
}

// These have the forms of secrets. They are put together here, so that no scanner
// takes this file for a leak.
const (
	githubToken = "gh" + "p_" + "R7mK2xVq9ZtB4nWc8YfLs3HdJ6pGaE1uTiO5"
	awsKey      = "AK" + "IA" + "QYLPMN5HF3XJ7TRB"
	stripeKey   = "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dcK9x"
	pwd         = "fR7-kq" + "Z2mXw9"
)

// found1 asserts that exactly one secret is found, of that rule.
func found1(t *testing.T, text, path, rule, secret string) {
	t.Helper()
	found := scan(t, text, path)
	if len(found) != 1 || found[0].Rule != rule {
		t.Errorf("%.200q: want %s, got %+v", text, rule, found)
		return
	}
	f := found[0]
	if got := text[f.Start:f.End]; got != secret {
		t.Errorf("%.200q: the place is wrong: %q", text, got)
	}
	if want := 1 + strings.Count(text[:f.Start], "\n"); f.Line != want {
		t.Errorf("%.200q: line %d, not %d", text, f.Line, want)
	}
	if f.Description == "" {
		t.Error("no description")
	}
}

func TestPlaces(t *testing.T) {
	for _, around := range [][2]string{
		{"", ""}, {"\n", ""}, {"\n\n", "\n"}, {"a ", " b"}, {"x\r\ny ", "\r\n"}, {"é\n ", ""},
		{"\xff\xfe ", "\x00"}, {`{"a":"`, `"}`}, {"\n\n\n\t", "\n\n"}, {"secret\n", " secret"},
	} {
		found1(t, around[0]+githubToken+around[1], "", "github-pat", githubToken)
		found1(t, around[0]+awsKey+around[1], "", "aws-access-token", awsKey)
	}
	for _, line := range []string{"api_key = \"%s\"\n", "\n\nexport api_key=%s\n", "api_key: '%s'", "k := map{\"api_key\": \"%s\"}"} {
		found1(t, fmt.Sprintf(line, "q8Zr2LmX0vTn5KwJ7cYb"), "", "generic-api-key", "q8Zr2LmX0vTn5KwJ7cYb")
	}
}

// TestPieces: where in a text a secret is makes no difference.
func TestPieces(t *testing.T) {
	for _, filler := range []string{"lorem ipsum ", "x\n", "lorem,ipsum;"} {
		text := []byte(strings.Repeat(filler, 40_000/len(filler)))
		for _, at := range []int{0, 1, 7000, 8191 - 44, 8191, 8192, 8193, 8192 - 20, 8192 + 1900, 10_200, 16_384 - 10, 16_384, 30_000, len(text) - 50} {
			with := bytes.Clone(text)
			copy(with[at:], " "+githubToken+" ")
			found1(t, string(with), "", "github-pat", githubToken)
		}
	}
	// Nor does it matter that half a word looks like something else.
	word := strings.Repeat("0123456789abcdef", 3000)
	if found := scan(t, "key = "+word, ""); len(found) > 1 {
		t.Errorf("%d findings in one word", len(found))
	}
	// Many, in order, and not without end.
	many := strings.Repeat("token "+githubToken+"\n", 2*detect.MaxFindings)
	found := scan(t, many, "")
	if len(found) != detect.MaxFindings {
		t.Errorf("%d findings", len(found))
	}
	for i, f := range found {
		if f.Line != i+1 || many[f.Start:f.End] != githubToken {
			t.Fatalf("finding %d: %+v", i, f)
		}
	}
}

// TestEncoded: what is encoded is found where the encoded text is.
func TestEncoded(t *testing.T) {
	plain := "GITHUB_TOKEN=" + githubToken + " "
	once := base64.StdEncoding.EncodeToString([]byte(plain))
	for name, enc := range map[string]string{
		"base64":     once,
		"base64 url": base64.RawURLEncoding.EncodeToString([]byte(plain)),
		"hex":        hex.EncodeToString([]byte(plain)),
		"twice":      base64.StdEncoding.EncodeToString([]byte(once)),
	} {
		for _, text := range []string{enc, "data:\n  env: " + enc + "\n", strings.Repeat("line\n", 3000) + enc + "\nmore"} {
			found := scan(t, text, "")
			if len(found) != 1 || found[0].Rule != "github-pat" {
				t.Errorf("%s: %+v", name, found)
				continue
			}
			if got := text[found[0].Start:found[0].End]; !strings.Contains(got, enc) {
				t.Errorf("%s: the place is %q, which lacks what was encoded", name, got)
			}
		}
	}
}

func TestAllowComment(t *testing.T) {
	text := "a\ntoken " + githubToken + " # gitleaks:allow\n" + "url https://joe:" + pwd + "@host.com/ # gitleaks:allow\n"
	if found := scan(t, text, "x.go"); len(found) != 0 {
		t.Errorf("a file: %v", found)
	}
	if found := scan(t, text, ""); len(found) != 2 {
		t.Errorf("a message: %v", found)
	}
}

func TestFilesByName(t *testing.T) {
	if found := scan(t, "token "+githubToken, "web/package-lock.json"); len(found) != 0 {
		t.Errorf("a lock file: %v", found)
	}
	found := scan(t, "", "certs/web.p12")
	if len(found) != 1 || found[0].Rule != "pkcs12-file" || found[0].Line != 1 {
		t.Errorf("a key store: %v", found)
	}
}

func TestConnectionString(t *testing.T) {
	const rule = "connection-string-password"
	for _, format := range []string{
		"postgres://app:%s@db.internal:5432/app", "DATABASE_URL=mysql://root:%s@10.0.0.7/x?tls=true",
		`"redis://:%s@cache:6379/0"`, "amqps://u:%s@[2001:db8::1]/", "mongodb+srv://joe%%40x:%s@c0.mongodb.net/?w=1",
		`{\"url\":\"https://joe:%s@host\"}`, "a https://x.com/ b http://a.b:80/c?d=e@f ftp://me:%s@h",
	} {
		found1(t, fmt.Sprintf(format, pwd), "", rule, pwd)
	}
	for _, format := range []string{"p%%40ss%sx", "p@s%s", "%s!$&()*+,;=", "correct-horse-%s"} {
		value := fmt.Sprintf(format, pwd)
		found1(t, "postgres://app:"+value+"@db/app", "", rule, value)
	}
	for _, text := range []string{
		"postgres://user:password@localhost/db", "postgres://postgres:postgres@db/x", "mysql://root:${DB_PASSWORD}@db",
		"mysql://root:$DB_PASSWORD@db", "redis://:{{ .Values.password }}@r", "https://user:<password>@host", "http://u:****@h",
		"amqp://guest:guest@localhost", "postgres://u:%s@h", "postgres://u:your-password-here@h", "https://host:8080/a@b",
		"http://localhost:3000?email=joe@example.com", "ssh://git@github.com:22/x", "https://user:XXXXXXXX@host",
		"postgres://me:{password}@h", "postgres://me:secret123@h", "see http://a.b:8080, or mail joe@c.d", "mongodb://a:%(pass)s@h",
	} {
		if found := scan(t, text, ""); len(found) != 0 {
			t.Errorf("%q: %+v", text, found)
		}
	}
}

// keys are private keys as programs write them.
func keys(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name, kind string, der []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		out[name] = strings.TrimSuffix(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})), "\n")
	}
	add("rsa", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil)
	der, err := x509.MarshalECPrivateKey(ecKey)
	add("ec", "EC PRIVATE KEY", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(edKey)
	add("ed25519", "PRIVATE KEY", der, err)
	big := make([]byte, 9000)
	_, _ = rand.Read(big)
	add("big", "PRIVATE KEY", big, nil)
	out["encrypted"] = strings.Replace(out["rsa"], "-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF0123456789ABCDEF\n\n", 1)
	out["pgp"] = strings.ReplaceAll(strings.Replace(out["ec"], "-----\n", "-----\nVersion: GnuPG v2\n\n", 1), "EC PRIVATE KEY", "PGP PRIVATE KEY BLOCK")
	return out
}

func TestPrivateKeys(t *testing.T) {
	const rule = "private-key"
	for name, key := range keys(t) {
		quoted, err := json.Marshal(key)
		if err != nil {
			t.Fatal(err)
		}
		escaped := string(quoted[1 : len(quoted)-1])
		again := strings.ReplaceAll(escaped, `\`, `\\`)
		indented := strings.ReplaceAll(key, "\n", "\n    ")
		commented := strings.ReplaceAll(key, "\n", "\n// ")
		for form, text := range map[string]string{
			"as it is": key, "JSON": escaped, "JSON twice": again, "indented": indented, "commented": commented,
			"CRLF": strings.ReplaceAll(key, "\n", "\r\n"), "one line": strings.ReplaceAll(key, "\n", " "),
			"code": strings.ReplaceAll(key, "\n", "\\n\" +\n\t\""), "URL": url.QueryEscape(key),
		} {
			if form == "commented" || form == "URL" || form == "one line" { // where headers have no end
				if name == "encrypted" || name == "pgp" {
					continue
				}
			}
			t.Run(name+" "+form, func(t *testing.T) {
				for _, pad := range []string{"", "\n", strings.Repeat("some text\n", 900)} {
					at := strings.Index(text, "BEGIN")
					secret := strings.TrimLeft(text[max(at-5, 0):], " ")
					found1(t, pad+"x='"+text+"'\n", "", rule, secret)
				}
				// Output that was cut short.
				cut := text[:len(text)/2]
				found := scan(t, "x "+cut, "")
				if len(found) == 0 && strings.Count(cut, "")-strings.Index(cut, "KEY") > 100 {
					t.Errorf("not found when cut: %q", cut)
				}
			})
		}
		encoded := base64.StdEncoding.EncodeToString([]byte(key + "\n"))
		found := scan(t, "tls.key: "+encoded+"\n", "")
		if len(found) == 0 || found[0].Rule != rule {
			t.Errorf("%s in base64: %+v", name, found)
		}
	}
}

func TestNoPrivateKeys(t *testing.T) {
	const begin, end = "-----BEGIN RSA " + "PRIVATE KEY-----", "-----END RSA " + "PRIVATE KEY-----"
	for _, text := range []string{
		begin, begin + "\n...\n" + end, begin + "\n" + strings.Repeat("x", 200) + "\n" + end,
		"if strings.Contains(s, \"" + begin + "\") { return nil }\n" + strings.Repeat("code();\n", 50) + "\"" + end + "\"",
		"-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJRTESMBAGA1UE\n-----END CERTIFICATE-----",
		"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\n-----END PUBLIC KEY-----",
		strings.Repeat(begin, 1000),
	} {
		if found := scan(t, text, ""); len(found) != 0 {
			t.Errorf("%.200q: %+v", text, found)
		}
	}
}

// Nothing that gitleaks would log is to be seen anywhere.
func TestSilent(t *testing.T) {
	stdout, stderr := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout, os.Stderr = w, w
	e, err := engine.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{githubToken, "key = aaaaaaaaaaaaaaaaaaaa", "token: ${TOKEN_VALUE_1}", base64.StdEncoding.EncodeToString([]byte(githubToken + " "))} {
		if _, err := e.Scan([]byte(text), "x"); err != nil {
			t.Fatal(err)
		}
	}
	os.Stdout, os.Stderr = stdout, stderr
	_ = w.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil || b.Len() != 0 {
		t.Errorf("%v: it said %q", err, &b)
	}
}

func TestTooLarge(t *testing.T) {
	e, err := rules()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Scan(make([]byte, detect.MaxText+1), ""); err == nil {
		t.Error("no error")
	}
}

// FuzzScan: whatever the text is, the findings are places in it, and a secret
// that stands alone is found behind it.
func FuzzScan(f *testing.F) {
	for _, s := range []string{
		"", "\n", githubToken, "a\n\n" + awsKey + "\n", "key = \"" + stripeKey + "\"", "\xff\xfe\n\x00",
		"-----BEGIN " + "PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj", "%41%4B\\u0041 U+0041",
		base64.StdEncoding.EncodeToString([]byte("x " + githubToken + "\n")), "https://u:" + pwd + "@h", strings.Repeat("Ab1", 9000),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, path := range []string{"", "a.yaml", "b.p12"} {
			for _, x := range scan(t, string(text), path) {
				if x.Start < 0 || x.End < x.Start || x.End > len(text) || x.Rule == "" || x.Description == "" ||
					x.Line != 1+bytes.Count(text[:x.Start], []byte("\n")) {
					t.Errorf("%+v in %d bytes", x, len(text))
				}
			}
		}
		with := string(text) + "\n\nxx " + awsKey + "\n"
		at := len(text) + 5
		for _, x := range scan(t, with, "") {
			if x.Start <= at && x.End >= at+len(awsKey) {
				return
			}
		}
		t.Errorf("not found behind %q", text)
	})
}

func BenchmarkScan(b *testing.B) {
	e, err := rules()
	if err != nil {
		b.Fatal(err)
	}
	src, err := os.ReadFile("engine.go")
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{300, 10_000, 1_000_000} {
		text := bytes.Repeat(src, 1+size/len(src))[:size]
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := e.Scan(text, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
