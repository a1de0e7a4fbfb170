package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
)

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "ov-server")
	now := time.Now()
	issued, err := Init(dir, []string{"vault.example.com", "10.1.2.3", "*.eu.example.com."}, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, "tls": fs.ModeDir | 0o700, "tls/ca.pem": 0o644, "tls/ca.key": 0o600, "tls/server.pem": 0o600,
	} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, mode %v, not %v", name, err, st.Mode(), mode)
		}
	}
	if names, _ := filepath.Glob(dir + "/*"); len(names) != 1 {
		t.Errorf("files: %q", names)
	}
	want := []string{"vault.example.com", "*.eu.example.com", "localhost", "10.1.2.3", "127.0.0.1", "::1"}
	if !slices.Equal(issued.Hosts, want) {
		t.Errorf("hosts %q, not %q", issued.Hosts, want)
	}
	if d := issued.Expires.Sub(now); d < 364*day || d > 366*day {
		t.Errorf("the certificate holds %v", d)
	}

	cert, key := CertificateFiles(dir)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(pair.Certificate) != 2 {
		t.Fatalf("the server shows %d certificates, not its own and the CA's", len(pair.Certificate))
	}
	if ca, err := x509.ParseCertificate(pair.Certificate[1]); err != nil || !ca.IsCA || fingerprint(ca) != issued.CAFingerprint {
		t.Errorf("the second certificate is not the CA's: %v", err)
	}
	roots := clientTLS(t, issued.CA).RootCAs
	for _, host := range []string{"vault.example.com", "a.eu.example.com", "localhost", "127.0.0.1", "::1", "10.1.2.3"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, host := range []string{"example.com", "a.b.eu.example.com", "10.1.2.4"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots}); err == nil {
			t.Errorf("the certificate is good for %s", host)
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("the certificate is good for a client")
	}
}

// Another implementation's opinion of the CA and of what it has signed.
func TestOpenSSLVerifies(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("NOT RUN: openssl is not installed")
	}
	issued, err := Init(t.TempDir(), []string{"vault.example.com"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("openssl", "verify", "-x509_strict", "-purpose", "sslserver",
		"-verify_hostname", "vault.example.com", "-CAfile", issued.CA, issued.Certificate).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command("openssl", "x509", "-in", issued.CA, "-noout", "-sha256", "-fingerprint").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "="+issued.CAFingerprint+"\n") {
		t.Errorf("%v: %s, not %s", err, out, issued.CAFingerprint)
	}
}

// A second Init changes nothing, and of many at once one has its way.
func TestInitNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []*Issued
	for range 8 {
		wg.Go(func() {
			issued, err := Init(dir, nil, time.Now())
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made = append(made, issued)
			} else if !errors.Is(err, ErrHasCA) || !strings.Contains(hint.Of(err), "ov-server init --renew --data "+dir) {
				t.Errorf("%v, hint %q", err, hint.Of(err))
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d were made", len(made))
	}
	ca, err := loadCA(dir)
	if err != nil || fingerprint(ca.cert) != made[0].CAFingerprint {
		t.Errorf("what is there is not what was reported: %v", err)
	}
	if names, _ := filepath.Glob(dir + "/.*"); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

// Whatever instant Init is killed at, there is a whole authority or none, and
// the next Init works and removes what was left.
func TestInitKilled(t *testing.T) {
	const variable = "SERVER_TEST_INIT"
	if base := os.Getenv(variable); base != "" {
		for i := 0; ; i++ {
			if _, err := Init(filepath.Join(base, strconv.Itoa(i)), nil, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
	base := t.TempDir()
	whole, unfinished := 0, 0
	for i := range 30 {
		run := filepath.Join(base, strconv.Itoa(i))
		cmd := exec.Command(os.Args[0], "-test.run=^TestInitKilled$")
		cmd.Env = append(os.Environ(), variable+"="+run)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for { // the first is there
			if _, err := os.Stat(filepath.Join(run, "0", tlsDir)); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(i*500) * time.Microsecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		dirs, err := filepath.Glob(run + "/*")
		if err != nil || len(dirs) == 0 {
			t.Fatal(len(dirs), err)
		}
		for _, dir := range dirs {
			left, _ := filepath.Glob(dir + "/.tls-*")
			unfinished += len(left)
			if _, err := os.Stat(filepath.Join(dir, tlsDir)); err == nil {
				whole++
				if _, err := Renew(dir, nil, time.Now()); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if _, err := Init(dir, nil, time.Now().Add(2*leftoverAfter)); err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(dir + "/.tls-*"); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		}
	}
	t.Logf("30 kills: %d authorities, all whole, and %d unfinished ones", whole, unfinished)
	if unfinished == 0 {
		t.Error("no kill came between")
	}
}

func TestRenew(t *testing.T) {
	dir := t.TempDir()
	if _, err := Renew(dir, nil, time.Now()); err == nil || !strings.Contains(hint.Of(err), "ov-server init --data") {
		t.Fatalf("without a CA: %v, hint %q", err, hint.Of(err))
	}
	now := time.Now()
	first, err := Init(dir, []string{"one.example.com"}, now)
	if err != nil {
		t.Fatal(err)
	}
	later, err := Renew(dir, nil, now.Add(340*day))
	if err != nil {
		t.Fatal(err)
	}
	if later.CAFingerprint != first.CAFingerprint || !slices.Equal(later.Hosts, first.Hosts) || !later.Expires.After(first.Expires) {
		t.Errorf("renewed: %+v, before %+v", later, first)
	}
	if later, err = Renew(dir, []string{"two.example.com"}, now); err != nil || later.Hosts[0] != "two.example.com" || slices.Contains(later.Hosts, "one.example.com") {
		t.Errorf("with a host: %+v %v", later, err)
	}
	if st, err := os.Stat(first.Certificate); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}

	// A certificate does not outlive its CA, and at the end there is a new CA.
	if later, err = Renew(dir, nil, now.Add(caLife-100*day)); err != nil || later.Expires.After(later.CAExpires) {
		t.Errorf("near the end of the CA: %+v %v", later, err)
	}
	if _, err := Renew(dir, nil, now.Add(caLife-20*day)); err == nil || !strings.Contains(err.Error(), "certificate authority expires on") {
		t.Errorf("at the end of the CA: %v", err)
	}

	// The key of the CA may be kept elsewhere.
	key := filepath.Join(dir, "tls", "ca.key")
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(dir, nil, now); !errors.Is(err, fs.ErrNotExist) || hint.Of(err) == "" {
		t.Errorf("without the CA's key: %v", err)
	}
	other := t.TempDir()
	if _, err := Init(other, nil, now); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(other, "tls", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(dir, nil, now); err == nil || !strings.Contains(err.Error(), "is not the key of") {
		t.Errorf("with another CA's key: %v", err)
	}
}

func TestInitRefuses(t *testing.T) {
	for _, host := range []string{"", "a b", "a..b", "https://vault.example.com", "vault.example.com:8443", "-a", "a_b", "*", "a.*.b", strings.Repeat("a", 64), strings.Repeat("a.", 130) + "a"} {
		dir := t.TempDir()
		if _, err := Init(dir, []string{host}, time.Now()); err == nil || !strings.Contains(err.Error(), "neither a DNS name nor an IP address") {
			t.Errorf("host %q: %v", host, err)
		}
		if _, err := os.Stat(filepath.Join(dir, tlsDir)); err == nil {
			t.Errorf("host %q left something", host)
		}
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil { //nolint:gosec // G302: what is refused
		t.Fatal(err)
	}
	if _, err := Init(open, nil, time.Now()); err == nil || !strings.Contains(err.Error(), "others can write") {
		t.Errorf("a directory of everybody's: %v", err)
	}
	if net.ParseIP("::1").String() != "::1" {
		t.Fatal("the form of an address is not what Hosts has")
	}
}
