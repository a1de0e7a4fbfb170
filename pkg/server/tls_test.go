package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// x25519MLKEM768 is the code point of the key exchange in the registry of IANA
// and in draft-ietf-tls-ecdhe-mlkem.
const x25519MLKEM768 = 0x11ec

// tlsServer answers "hello" over TLSConfig with a certificate of its own CA.
func tlsServer(t *testing.T) (addr, caPath string, c *Certificate) {
	t.Helper()
	dir := t.TempDir()
	issued, err := Init(dir, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err = LoadCertificate(CertificateFiles(dir))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         TLSConfig(c),
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String(), issued.CA, c
}

func clientTLS(t *testing.T, caPath string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(caPath)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in ", caPath)
	}
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

// recorded keeps what the other side has sent.
type recorded struct {
	net.Conn
	got bytes.Buffer
}

func (r *recorded) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.got.Write(b[:n])
	return n, err
}

// serverHello takes version and group of the key share from the bytes that a
// server has sent, RFC 8446 section 4.1.3.
func serverHello(b []byte) (version, group uint16, err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("no ServerHello in %d bytes", len(b))
		}
	}()
	if b[0] != 22 || b[5] != 2 {
		return 0, 0, fmt.Errorf("record of type %d, message of type %d", b[0], b[5])
	}
	b = b[5+4+2+32:]      // record header, message header, version, random
	b = b[1+int(b[0])+3:] // session id, cipher suite, compression
	extensions := b[2 : 2+binary.BigEndian.Uint16(b)]
	for len(extensions) > 0 {
		kind, size := binary.BigEndian.Uint16(extensions), int(binary.BigEndian.Uint16(extensions[2:]))
		data := extensions[4 : 4+size]
		extensions = extensions[4+size:]
		switch kind {
		case 43:
			version = binary.BigEndian.Uint16(data)
		case 51:
			group = binary.BigEndian.Uint16(data)
		}
	}
	return version, group, nil
}

// What the server answers on the wire to a client that would take anything: TLS
// 1.3 and X25519MLKEM768.
func TestKeyExchangeOnTheWire(t *testing.T) {
	addr, ca, _ := tlsServer(t)
	for name, groups := range map[string][]tls.CurveID{
		"of Go":              nil,
		"by a hello request": {tls.X25519, tls.X25519MLKEM768, tls.CurveP256},
		"alone":              {tls.X25519MLKEM768},
	} {
		raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		rec := &recorded{Conn: raw}
		config := clientTLS(t, ca)
		config.CurvePreferences = groups
		conn := tls.Client(rec, config)
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		version, group, err := serverHello(rec.got.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: version %#04x, group %#04x", name, version, group)
		if version != tls.VersionTLS13 || group != x25519MLKEM768 {
			t.Errorf("%s: version %#04x and group %#04x were agreed", name, version, group)
		}
		_ = conn.Close()
	}
}

// Clients of Go that would do with less, each refused.
func TestNoOtherKeyExchange(t *testing.T) {
	addr, ca, _ := tlsServer(t)
	try := func(change func(*tls.Config)) error {
		config := clientTLS(t, ca)
		change(config)
		d := tls.Dialer{Config: config}
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := try(func(*tls.Config) {}); err != nil {
		t.Fatal(err)
	}
	const handshakeFailure, protocolVersion = tls.AlertError(40), tls.AlertError(70)
	for _, c := range []struct {
		name   string
		want   tls.AlertError
		change func(*tls.Config)
	}{
		{"X25519", handshakeFailure, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }},
		{"P-256", handshakeFailure, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }},
		{"P-384 and P-521", handshakeFailure, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP384, tls.CurveP521} }},
		{"SecP256r1MLKEM768", handshakeFailure, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.SecP256r1MLKEM768} }},
		{"SecP384r1MLKEM1024", handshakeFailure, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.SecP384r1MLKEM1024} }},
		{"TLS 1.2", protocolVersion, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
		{"TLS 1.0", protocolVersion, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }},
	} {
		err := try(c.change)
		var alert tls.AlertError
		if !errors.As(err, &alert) && err != nil {
			// Go tells of the other side's alert by its text alone.
			if strings.Contains(err.Error(), "remote error: "+c.want.Error()) {
				alert = c.want
			}
		}
		if alert != c.want {
			t.Errorf("%s: %v, not the alert %v", c.name, err, c.want)
		}
	}
}

// Where Go's default key exchanges are changed by the environment, the server
// has none rather than another.
func TestGODEBUGDoesNotWeaken(t *testing.T) {
	addr, ca, _ := tlsServer(t)
	t.Setenv("GODEBUG", "tlsmlkem=0")
	d := tls.Dialer{Config: clientTLS(t, ca)}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err == nil {
		t.Fatalf("%v was agreed", conn.(*tls.Conn).ConnectionState().CurveID)
	}
	t.Log(err)
}

// Sessions are not resumed: each connection is judged by the certificate of now.
func TestNoResumption(t *testing.T) {
	addr, ca, _ := tlsServer(t)
	config := clientTLS(t, ca)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		d := tls.Dialer{Config: config}
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		_, _ = io.ReadAll(conn) // tickets come with the first bytes
		if conn.(*tls.Conn).ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = conn.Close()
	}
}

// OpenSSL's own client: refused with all that OpenSSL 3.0 has, and served with
// X25519MLKEM768 where it has that (3.5 and newer).
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("NOT RUN: openssl is not installed")
	}
	addr, ca, _ := tlsServer(t)
	client := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		args = append([]string{"s_client", "-connect", addr, "-CAfile", ca, "-verify_return_error"}, args...)
		cmd := exec.CommandContext(ctx, "openssl", args...)
		cmd.Stdin = strings.NewReader("Q\n")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, c := range []struct{ args, alert string }{
		{"-tls1_3 -groups X25519", "alert handshake failure:"},
		{"-tls1_3 -groups P-256", "alert handshake failure:"},
		{"-tls1_3 -groups P-384:P-521:X448", "alert handshake failure:"},
		{"-groups X25519:P-256", "alert handshake failure:"},
		{"-tls1_2", "alert protocol version:"},
		{"-tls1_2 -groups P-256", "alert protocol version:"},
	} {
		out, err := client(strings.Fields(c.args)...)
		if err == nil || !strings.Contains(out, c.alert) {
			t.Errorf("openssl s_client %s: %v, without %q:\n%s", c.args, err, c.alert, out)
		}
	}
	has, _ := exec.Command("openssl", "list", "-kem-algorithms").Output()
	version, _ := exec.Command("openssl", "version").Output()
	out, err := client("-tls1_3", "-groups", "X25519MLKEM768")
	if !bytes.Contains(has, []byte("X25519MLKEM768")) {
		t.Logf("%s has no X25519MLKEM768", bytes.TrimSpace(version))
		if err == nil {
			t.Errorf("it connected all the same:\n%s", out)
		}
		return
	}
	if err != nil || !strings.Contains(out, "X25519MLKEM768") {
		t.Errorf("openssl s_client: %v\n%s", err, out)
	}
}

// nodeResult is what testdata/node/client.mjs prints.
type nodeResult struct {
	Protocol, Cipher string
	Group            struct{ Type, Name string }
	Authorized       bool
	Status           int
	Body             string
	Error, Code      string
}

// node runs client.mjs in the pinned Node, which has OpenSSL 3.5 in it.
func node(t *testing.T, args ...string) nodeResult {
	t.Helper()
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	bin := filepath.Join("testdata/node/node_modules", "node-"+runtime.GOOS+"-"+arch, "bin/node")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("NOT RUN: pkg/server/testdata/node has no Node for this machine: make setup")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"testdata/node/client.mjs"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r nodeResult
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		t.Fatalf("node %q: %v, %v: %s\n%s", args, err, jsonErr, out, &stderr)
	}
	return r
}

// An implementation of TLS and of ML-KEM that is not Go's agrees on the same
// secret, and gets nowhere without.
func TestNode(t *testing.T) {
	addr, ca, _ := tlsServer(t)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	r := node(t, "X25519MLKEM768", "TLSv1.3", host, port, ca)
	t.Logf("%+v", r)
	if r.Protocol != "TLSv1.3" || !r.Authorized || r.Status != http.StatusOK || r.Body != "hello" || r.Error != "" {
		t.Errorf("node was not served: %+v", r)
	}
	for _, c := range []struct{ group, version, alert string }{
		{"X25519", "TLSv1.3", "handshake failure"},
		{"P-256", "TLSv1.3", "handshake failure"},
		{"SecP256r1MLKEM768", "TLSv1.3", "handshake failure"},
		{"X25519:P-256:P-384:MLKEM768", "TLSv1.3", "handshake failure"},
		{"P-256", "TLSv1.2", "protocol version"},
	} {
		if r := node(t, c.group, c.version, host, port, ca); !strings.Contains(r.Error, c.alert) {
			t.Errorf("node with %s, %s: %+v", c.group, c.version, r)
		}
	}
}

// Anyone with an API key can see what the server gives out, as JSON, with a
// program that is not ov: what was put there, and nothing else.
func TestNodeReads(t *testing.T) {
	ts := start(t)
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	if err := commitOps(t.Context(), ts.client(t, token), put("d1", "ciphertext")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	issued, err := Init(dir, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := LoadCertificate(CertificateFiles(dir))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := ts.HTTP(ts.Handler())
	srv.TLSConfig = TLSConfig(cert)
	go func() { _ = srv.ServeTLS(ts.Limit(l), "", "") }()
	t.Cleanup(func() { _ = srv.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(key string) nodeResult {
		return node(t, "X25519MLKEM768", "TLSv1.3", "localhost", port, issued.CA,
			"/ov.vault.v1.Vault/Read", `{"ranges":[{"take":"TAKE_ALL"}]}`, key)
	}
	r := ask(token)
	want := `{"results":[{"records":[{"key":"` + base64.StdEncoding.EncodeToString([]byte("d1")) +
		`","value":"` + base64.StdEncoding.EncodeToString([]byte("ciphertext")) + `"}]}]}`
	if r.Status != http.StatusOK || strings.ReplaceAll(r.Body, " ", "") != want {
		t.Errorf("node got %d %s, not %s", r.Status, r.Body, want)
	}
	if r := ask("ov_live_no"); r.Status != http.StatusUnauthorized || strings.Contains(r.Body, "records") {
		t.Errorf("node got %d %s for a wrong API key", r.Status, r.Body)
	}
}

func TestReload(t *testing.T) {
	addr, caPath, c := tlsServer(t)
	dir := filepath.Dir(filepath.Dir(caPath))
	before := c.NotAfter()
	d := tls.Dialer{Config: clientTLS(t, caPath)}
	open, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	serial := func(c net.Conn) string {
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}

	if _, err := Renew(dir, nil, time.Now().Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	if !c.NotAfter().After(before) {
		t.Errorf("it expires at %v, as before", c.NotAfter())
	}
	renewed, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = renewed.Close() }()
	if serial(open) == serial(renewed) {
		t.Error("the new connection has the old certificate")
	}
	for name, conn := range map[string]net.Conn{"old": open, "new": renewed} {
		_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		if b, err := io.ReadAll(conn); err != nil || !bytes.Contains(b, []byte("hello")) {
			t.Errorf("the %s connection: %v %q", name, err, b)
		}
	}

	// What cannot be used leaves things as they are.
	certFile, _ := CertificateFiles(dir)
	if err := os.WriteFile(certFile, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); err == nil {
		t.Error("half a file was taken for a certificate")
	}
	after, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = after.Close() }()
	if serial(after) != serial(renewed) {
		t.Error("the certificate did not stay as it was")
	}
}

func TestReadPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o440: true, 0o644: false, 0o604: false, 0o602: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		b, err := ReadPrivate(path)
		if (err == nil) != ok || ok && string(b) != "secret" {
			t.Errorf("mode %04o: %q, %v", mode, b, err)
		}
		if err != nil && !strings.Contains(err.Error(), "open to everybody") {
			t.Error(err)
		}
	}
	if err := os.WriteFile(path, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPrivate(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file of more than %d bytes: %v", maxFile, err)
	}
}
