package login

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newCert makes a certificate for localhost, signed by parent or by itself.
func newCert(t testing.TB, isCA bool, parent *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "a test's"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true, DNSNames: []string{"localhost"},
	}
	by, signer := template, key
	if parent != nil {
		by, signer = parent.Leaf, parent.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, signer)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func newLogin(t testing.TB, address string) Login {
	t.Helper()
	token := apikey.New([16]byte{1, 2, 3})
	l, err := New(address, PEM(newCert(t, true, nil).Leaf), token.Text())
	must(t, err)
	return l
}

func newHome(t *testing.T) string {
	t.Helper()
	home, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	return home
}

func TestCanonical(t *testing.T) {
	for address, want := range map[string]string{
		"https://vault.example.com:7443":   "https://vault.example.com:7443",
		"HTTPS://Vault.Example.COM:07443/": "https://vault.example.com:7443",
		"https://vault.example.com":        "https://vault.example.com",
		"https://vault.example.com:443":    "https://vault.example.com",
		"https://[::1]:7443":               "https://[::1]:7443",
		"https://10.0.0.1":                 "https://10.0.0.1",
		"http://vault.example.com":         "",
		"https://":                         "",
		"https://:7443":                    "",
		"https://h:0":                      "",
		"https://h:70000":                  "",
		"https://h/path":                   "",
		"https://h?query":                  "",
		"https://h?":                       "",
		"https://h#part":                   "",
		"https://[fe80::1%25eth0]":         "",
		"https://a b":                      "",
		"https://a\"b":                     "",
		"https://ov_live_hunter2@h":        "",
		"https://user:ov_live_hunter2@h":   "",
		"https:h":                          "",
		"ssh://h":                          "",
		"https://h\x00":                    "",
	} {
		got, err := Canonical(address)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", address, got, err)
		}
		if err == nil {
			if again, err := Canonical(got); again != got || err != nil {
				t.Errorf("%q is not canonical: %q, %v", got, again, err)
			}
			if !IsURL(address) {
				t.Errorf("%q is not a URL", address)
			}
		} else if hint.Of(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", address, err)
		}
	}
	for _, file := range []string{"vault.db", "/a/b", "a:b", "", "://x", "./https://x", "/https://x"} {
		if IsURL(file) {
			t.Errorf("%q is a URL", file)
		}
	}
}

// What is saved is what is read, the default included, and others stay.
func TestServers(t *testing.T) {
	home := newHome(t)
	if s, err := Read(); err != nil || len(s.Logins) != 0 || s.Default != "" {
		t.Fatal(s, err)
	}
	one, two := newLogin(t, "https://one.example.com:7443"), newLogin(t, "https://two.example.com")
	file, err := Save(one, true)
	must(t, err)
	if want := filepath.Join(home, ".config/ov/servers.toml"); file != want {
		t.Errorf("%s, not %s", file, want)
	}
	_, err = Save(two, false)
	must(t, err)
	s, err := Read()
	must(t, err)
	if !reflect.DeepEqual(s, Servers{file, one.URL, []Login{one, two}}) {
		t.Errorf("got %+v", s)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
	renewed := newLogin(t, one.URL)
	_, err = Save(renewed, false)
	must(t, err)
	must(t, Remove(two.URL))
	s, err = Read()
	must(t, err)
	if !reflect.DeepEqual(s, Servers{file, one.URL, []Login{renewed}}) {
		t.Errorf("got %+v", s)
	}
	if _, err := s.Find(two.URL); !errors.Is(err, ErrNone) || !strings.Contains(hint.Of(err), two.URL) {
		t.Error(err)
	}
	if err := Remove(two.URL); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	must(t, Remove(one.URL))
	if s, err := Read(); err != nil || s.Default != "" || len(s.Logins) != 0 {
		t.Error(s, err)
	}
}

// Of many that log in at once, none loses another one's login.
func TestSaveAtOnce(t *testing.T) {
	newHome(t)
	base := newLogin(t, "https://h")
	const n = 16
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			l := base
			l.URL = fmt.Sprintf("https://h%d", i)
			if _, err := Save(l, false); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if s, err := Read(); err != nil || len(s.Logins) != n {
		t.Error(len(s.Logins), err)
	}
}

func TestCompanion(t *testing.T) {
	dir := newHome(t)
	key := filepath.Join(dir, "my.key")
	if HasCompanion(key) {
		t.Error("there is one before it is made")
	}
	if _, err := ReadCompanion(key); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	must(t, CanWriteCompanion(key))
	l := newLogin(t, "https://h:7443")
	must(t, WriteCompanion(key, l))
	got, err := ReadCompanion(key)
	must(t, err)
	if !HasCompanion(key) || !reflect.DeepEqual(got, l) {
		t.Errorf("got %+v", got)
	}
	two := Servers{Logins: []Login{l, newLogin(t, "https://i")}}
	must(t, os.WriteFile(Companion(key), two.format(), 0o600))
	if _, err := ReadCompanion(key); err == nil {
		t.Error("two logins were taken for one")
	}
	must(t, os.WriteFile(Companion(key), nil, 0o600)) // as root leaves it to be written over
	if _, err := ReadCompanion(key); err == nil {
		t.Error("an empty file was taken for a login")
	}
	must(t, RemoveCompanion(key))
	must(t, RemoveCompanion(key))
}

// Where the directory is root's, the owner of the file writes over it, as
// `ov agent install` leaves /etc/ov. Root can write everywhere: then there is
// nothing to try.
func TestOverwrite(t *testing.T) {
	dir := newHome(t)
	key := filepath.Join(dir, "my.key")
	long, short := newLogin(t, "https://a-longer-name.example.com"), newLogin(t, "https://h")
	must(t, WriteCompanion(key, long))
	d, name, err := vacant(Companion(key))
	must(t, err)
	defer func() { _ = d.Close() }()
	must(t, overwritable(d, Companion(key), name))
	must(t, overwrite(d, Companion(key), name, Servers{Logins: []Login{short}}.format()))
	got, err := ReadCompanion(key)
	must(t, err)
	if !reflect.DeepEqual(got, short) {
		t.Errorf("got %+v", got)
	}
	must(t, RemoveCompanion(key))
	if err := overwrite(d, Companion(key), name, nil); err == nil || !strings.Contains(hint.Of(err), "sudo install") {
		t.Error(err)
	}
}

// A file that others could have read or written is not used.
func TestUnsafeFiles(t *testing.T) {
	dir := newHome(t)
	l := newLogin(t, "https://h")
	for name, spoil := range map[string]func(file string){
		"has mode 0644":         func(file string) { must(t, os.Chmod(file, 0o644)) },
		"has mode 0660":         func(file string) { must(t, os.Chmod(file, 0o660)) },
		"has mode 0400":         func(file string) { must(t, os.Chmod(file, 0o400)) },
		"has 2 hard links":      func(file string) { must(t, os.Link(file, file+".2")) },
		"is a symbolic link":    func(file string) { must(t, os.Rename(file, file+".1")); must(t, os.Symlink(file+".1", file)) },
		"is a directory, not":   func(file string) { must(t, os.Remove(file)); must(t, os.Mkdir(file, 0o700)) },
		"that others can write": func(file string) { must(t, os.Chmod(filepath.Dir(file), 0o777)) },
	} {
		sub, err := os.MkdirTemp(dir, "d")
		must(t, err)
		key := filepath.Join(sub, "k")
		must(t, WriteCompanion(key, l))
		spoil(Companion(key))
		_, err = ReadCompanion(key)
		if !errors.As(err, new(*safefile.Unsafe)) || !strings.Contains(err.Error(), name) || hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if os.Geteuid() == 0 {
		key := filepath.Join(dir, "k")
		must(t, WriteCompanion(key, l))
		must(t, os.Chown(Companion(key), 54322, -1))
		if _, err := ReadCompanion(key); err == nil || !strings.Contains(err.Error(), "is owned by 54322") {
			t.Error(err)
		}
	}
	// A credential that systemd has passed on may be 0400, in its own place alone.
	creds, err := os.MkdirTemp(dir, "credentials")
	must(t, err)
	key := filepath.Join(creds, "k")
	must(t, WriteCompanion(key, l))
	must(t, os.Chmod(Companion(key), 0o400))
	must(t, os.Chmod(creds, 0o500))
	if _, err := ReadCompanion(key); err == nil {
		t.Error("0400 was taken elsewhere")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", creds)
	if _, err := ReadCompanion(key); err != nil {
		t.Error(err)
	}
}

// Errors say where, and nothing of what is there.
func TestBadFiles(t *testing.T) {
	l := newLogin(t, "https://h")
	good := string(Servers{Default: l.URL, Logins: []Login{l}}.format())
	if s, err := parse([]byte(good)); err != nil || !reflect.DeepEqual(s, Servers{Default: l.URL, Logins: []Login{l}}) {
		t.Fatalf("%+v, %v", s, err)
	}
	const marker = "hunter2"
	for _, c := range []struct {
		old, new string
		line     int
		msg      string
	}{
		{"api_key =", "api_kez =", 6, "unknown key"},
		{"default =", "api_key =", 2, "unknown key"},
		{"default =", "marker " + marker + " =", 2, "unknown key"},
		{"api_key =", "default =", 6, "unknown key"},
		{`api_key = "`, `api_key = '` + marker, 6, "not of the form"},
		{`api_key = "`, `api_key = "` + marker, 0, "not an API key"},
		{`api_key = "`, `api_key = "\u0041`, 6, "not of the form"},
		{"[\"https://h\"]", "[\"https://H\"]", 4, "not the address"},
		{"[\"https://h\"]", "['https://h']", 4, "not the address"},
		{"[\"https://h\"]", "[\"http://h\"]", 4, "not the address"},
		{"[\"https://h\"]", "[https]", 4, "not the address"},
		{"default = \"https://h\"", "default = \"https://other\"", 0, "no login"},
		{"key_id = \"", "key_id = \"0", 0, "key_id is not"},
		{"\"\"\"\n-----BEGIN", "\"-----BEGIN", 7, "not of the form"},
		{"-----BEGIN", "BEGIN", 0, "no certificate"},
		{"-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n\"\"\"\n", 10, "not of the form"},
		{"-----END CERTIFICATE-----\n\"\"\"", "-----END CERTIFICATE-----", 0, "middle of ca"},
		{"-----END", "\\-----END", 0, "ca is not PEM"},
		{"# Written", "# \x1b[2J", 1, "comment"},
	} {
		src := strings.Replace(good, c.old, c.new, 1)
		if src == good {
			t.Fatalf("%q is not in the file", c.old)
		}
		_, err := parse([]byte(src))
		var bad *FormatError
		if !errors.As(err, &bad) || c.line != 0 && bad.Line != c.line || !strings.Contains(bad.Msg, c.msg) || strings.Contains(bad.Msg, marker) {
			t.Errorf("%q in place of %q: %v", c.new, c.old, err)
		}
	}
	_, table, _ := strings.Cut(good, "\n\n")
	twice := good + table
	if _, err := parse([]byte(twice)); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
	file := filepath.Join(newHome(t), "k.login")
	must(t, os.WriteFile(file, []byte("nonsense"), 0o600))
	if _, err := read(file); err == nil || !strings.HasPrefix(err.Error(), file+":1: ") || hint.Of(err) == "" {
		t.Error(err)
	}
	must(t, os.Truncate(file, maxFile+1))
	if _, err := read(file); err == nil || !strings.Contains(err.Error(), "the bound is") {
		t.Error(err)
	}
}

// FuzzParse: what is accepted is TOML that says the same to a TOML library, and
// is written and read again as it is.
func FuzzParse(f *testing.F) {
	l := newLogin(f, "https://h:7443")
	f.Add(Servers{Default: l.URL, Logins: []Login{l, newLogin(f, "https://[::1]")}}.format())
	f.Fuzz(func(t *testing.T, src []byte) {
		s, err := parse(bytes.Clone(src))
		if err != nil {
			return
		}
		var doc map[string]any
		if err := toml.Unmarshal(src, &doc); err != nil {
			t.Fatalf("not TOML: %v\n%s", err, src)
		}
		if d, _ := doc["default"].(string); d != s.Default {
			t.Errorf("default %q, in TOML %q", s.Default, d)
		}
		delete(doc, "default")
		if len(doc) != len(s.Logins) {
			t.Errorf("%d logins, in TOML %d", len(s.Logins), len(doc))
		}
		for _, l := range s.Logins {
			table, _ := doc[l.URL].(map[string]any)
			if table["api_key"] != string(l.APIKey) || table["ca"] != string(l.CA) {
				t.Errorf("%s differs from what is in TOML: %v", l.URL, table)
			}
		}
		again, err := parse(s.format())
		if err != nil || again.Default != s.Default || len(again.Logins) != len(s.Logins) {
			t.Errorf("written again: %v", err)
		}
	})
}

// server shows a chain of certificates to all who connect.
func server(t *testing.T, chain ...*tls.Certificate) string {
	t.Helper()
	cert := *chain[0]
	for _, c := range chain[1:] {
		cert.Certificate = append(cert.Certificate, c.Certificate[0])
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	})
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			if n, _ := c.Read(make([]byte, 1)); n > 0 {
				t.Error("something was sent to a server that is not trusted")
			}
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return "https://localhost:" + port
}

func TestProbe(t *testing.T) {
	ca, other := newCert(t, true, nil), newCert(t, true, nil)
	leaf := newCert(t, false, ca)
	for name, c := range map[string]struct {
		chain []*tls.Certificate
		ca    *tls.Certificate
		err   string
	}{
		"with its CA":      {[]*tls.Certificate{leaf, ca}, ca, ""},
		"without its CA":   {[]*tls.Certificate{leaf}, nil, ""},
		"another one's CA": {[]*tls.Certificate{leaf, other}, nil, "is not right"},
	} {
		seen, err := Probe(context.Background(), server(t, c.chain...))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		must(t, err)
		if seen.System || (seen.CA == nil) != (c.ca == nil) || seen.CA != nil && !seen.CA.Equal(c.ca.Leaf) {
			t.Errorf("%s: %+v", name, seen)
		}
	}
	// Right in all but the name.
	if _, err := judgeChain([]*x509.Certificate{leaf.Leaf, ca.Leaf}, "elsewhere"); err == nil {
		t.Error("a certificate for another name was taken")
	}
	text := Fingerprint(ca.Leaf)
	for _, same := range []string{text, strings.ToLower(text), strings.ReplaceAll(text, ":", "")} {
		if !SameFingerprint(ca.Leaf, same) || SameFingerprint(other.Leaf, same) {
			t.Errorf("fingerprint %s", same)
		}
	}
	if SameFingerprint(ca.Leaf, "") || SameFingerprint(ca.Leaf, text[:len(text)-3]) {
		t.Error("a part of a fingerprint was taken for it")
	}
}

// A server that the system's CAs vouch for needs no question, and its CA is
// pinned all the same. Which these are is read once in a process.
func TestProbeSystem(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the system's CAs can be chosen by SSL_CERT_FILE on Linux alone")
	}
	if address := os.Getenv("LOGIN_PROBE"); address != "" {
		seen, err := Probe(context.Background(), address)
		must(t, err)
		if !seen.System || seen.CA == nil {
			t.Fatalf("%+v", seen)
		}
		fmt.Println("CA", Fingerprint(seen.CA))
		return
	}
	ca := newCert(t, true, nil)
	file := filepath.Join(newHome(t), "system.pem")
	must(t, os.WriteFile(file, PEM(ca.Leaf), 0o600))
	cmd := exec.Command(os.Args[0], "-test.run=^TestProbeSystem$")
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+file, "LOGIN_PROBE="+server(t, newCert(t, false, ca)))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CA "+Fingerprint(ca.Leaf)) {
		t.Errorf("%v\n%s", err, out)
	}
}
