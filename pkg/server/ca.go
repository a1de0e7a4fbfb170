package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// The certificate authority that a server makes for itself lies in the folder
// tls of its data directory. The server's certificate and its key are one file,
// so that both are replaced at one instant.
const (
	tlsDir     = "tls"
	caFile     = "ca.pem"
	caKeyFile  = "ca.key"
	serverFile = "server.pem"
)

// How long certificates hold. Clients keep the CA's, so that the server's can be
// made anew each year without telling them.
const (
	day            = 24 * time.Hour
	caLife         = 10 * 365 * day
	certLife       = 365 * day
	clockSkew      = time.Hour // a client's clock may be that much behind
	leftoverAfter  = time.Minute
	expiryWarning  = 30 * day
	leftoverPrefix = ".tls-"
)

// ErrHasCA says that the data directory has a certificate authority, which is
// never overwritten: clients trust it.
var ErrHasCA = errors.New("has a certificate authority already")

// Issued says what a certificate authority is and what it has issued.
type Issued struct {
	CA            string    // path of its certificate
	CAFingerprint string    // SHA-256 of the certificate, as openssl x509 -fingerprint has it
	CAExpires     time.Time // from then on all clients need another
	Certificate   string    // path of the server's certificate and key
	Hosts         []string  // whose certificate it is
	Expires       time.Time
}

// CertificateFiles are where Init puts the server's certificate and key below
// the data directory dir: two names for LoadCertificate.
func CertificateFiles(dir string) (certFile, keyFile string) {
	name := filepath.Join(dir, tlsDir, serverFile)
	return name, name
}

// Init makes the data directory dir (0700) if it is absent, and in it a
// certificate authority and a certificate for hosts: DNS names and IP addresses,
// besides those by which this machine calls itself. All of it is there when Init
// returns, or nothing. The error is ErrHasCA when there is one already.
//
// The keys are ECDSA on P-256, which every TLS library verifies; Ed25519 is what
// Go and OpenSSL know but browsers and macOS's own library do not.
func Init(dir string, hosts []string, now time.Time) (*Issued, error) {
	hosts, err := allHosts(hosts)
	if err != nil {
		return nil, err
	}
	if err := OpenDir(dir); err != nil {
		return nil, err
	}
	final := filepath.Join(dir, tlsDir)
	if _, err := os.Lstat(filepath.Join(final, caFile)); err == nil {
		return nil, hasCA(dir)
	}
	removeLeftovers(dir, now)
	ca, err := newCA(hosts[0], now)
	if err != nil {
		return nil, err
	}
	cert, pair, err := ca.issue(hosts, now)
	if err != nil {
		return nil, err
	}
	defer clear(pair)
	caKey, err := pemKey(ca.key)
	if err != nil {
		return nil, err
	}
	defer clear(caKey)

	tmp, err := os.MkdirTemp(dir, leftoverPrefix)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	d, err := safefile.OpenDir(tmp, policy())
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	for _, f := range []struct {
		name string
		data []byte
		perm uint32
	}{{caFile, pemCert(ca.cert), 0o644}, {caKeyFile, caKey, 0o600}, {serverFile, pair, 0o600}} {
		if err := d.Write(f.name, f.data, safefile.Attr{Perm: f.perm, UID: -1, GID: -1}); err != nil {
			return nil, err
		}
	}
	// rename(2) refuses to replace a directory that has files in it.
	if err := os.Rename(tmp, final); errors.Is(err, fs.ErrExist) {
		return nil, hasCA(dir)
	} else if err != nil {
		return nil, err
	}
	return ca.issued(dir, cert), syncDir(dir)
}

// Renew makes a new certificate and key for the server from the authority that
// Init has made: for hosts, or for those of the one before if there are none.
func Renew(dir string, hosts []string, now time.Time) (*Issued, error) {
	d, err := safefile.OpenDir(filepath.Join(dir, tlsDir), policy())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint.Errorf("make one: "+command("init", dir), "%s has no certificate authority", safefile.Quote(dir))
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	if d.Fault != nil {
		return nil, d.Fault
	}
	ca, err := loadCA(dir)
	if err != nil {
		return nil, err
	}
	if len(hosts) == 0 {
		hosts, err = currentHosts(dir)
	} else {
		hosts, err = allHosts(hosts)
	}
	if err != nil {
		return nil, err
	}
	if ca.cert.NotAfter.Sub(now) < expiryWarning {
		return nil, hint.Errorf("move "+safefile.Shell(filepath.Join(dir, tlsDir))+" away, run "+command("init", dir)+
			", and have every client log in with the new CA",
			"the certificate authority expires on %s", date(ca.cert.NotAfter))
	}
	cert, pair, err := ca.issue(hosts, now)
	if err != nil {
		return nil, err
	}
	defer clear(pair)
	if err := d.Write(serverFile, pair, safefile.Attr{Perm: 0o600, UID: -1, GID: -1, Replace: true}); err != nil {
		return nil, err
	}
	return ca.issued(dir, cert), nil
}

// OpenDir makes the data directory, mode 0700, if it is absent, and refuses one
// that others than this account and root could alter.
func OpenDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the data directory: %w", err)
	}
	d, err := safefile.OpenDir(dir, policy())
	if err != nil {
		return fmt.Errorf("cannot open the data directory: %w", err)
	}
	defer func() { _ = d.Close() }()
	return d.Fault
}

func policy() safefile.Policy { return safefile.Policy{Owner: os.Geteuid(), Sticky: true} }

// command is how a person gives one of the program's commands about dir.
func command(args, dir string) string { return "ov-server " + args + " --data " + safefile.Shell(dir) }

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func hasCA(dir string) error {
	return hint.Errorf("for a new certificate from the same authority: "+command("init --renew", dir),
		"%s %w", safefile.Quote(dir), ErrHasCA)
}

// removeLeftovers removes what an Init left that was killed: it takes
// milliseconds.
func removeLeftovers(dir string, now time.Time) {
	names, _ := filepath.Glob(filepath.Join(dir, leftoverPrefix+"*"))
	for _, name := range names {
		if st, err := os.Lstat(name); err == nil && st.IsDir() && now.Sub(st.ModTime()) > leftoverAfter {
			_ = os.RemoveAll(name)
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Sync()
}

// label is one of a DNS name's, RFC 1123 section 2.1.
var label = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

// allHosts adds the names of this machine: its host name if there are no others,
// and those of its loopback interface.
func allHosts(hosts []string) ([]string, error) {
	const use = "name the host that clients connect to: --host vault.example.com"
	if len(hosts) == 0 {
		name, err := os.Hostname()
		if err != nil {
			return nil, hint.Errorf(use, "cannot tell the host name: %w", err)
		}
		hosts = []string{name}
	}
	var all []string
	for _, h := range append(slices.Clone(hosts), "localhost", "127.0.0.1", "::1") {
		h = strings.TrimSuffix(h, ".")
		if net.ParseIP(h) == nil {
			labels := strings.Split(strings.TrimPrefix(h, "*."), ".")
			if len(h) > 253 || slices.ContainsFunc(labels, func(l string) bool { return !label.MatchString(l) }) {
				return nil, hint.Errorf(use, "%q is neither a DNS name nor an IP address", h)
			}
		}
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	return all, nil
}

// currentHosts are those of the server's certificate as it is.
func currentHosts(dir string) ([]string, error) {
	certFile, keyFile := CertificateFiles(dir)
	c, err := LoadCertificate(certFile, keyFile)
	if err != nil {
		return nil, hint.Wrap(err, command("init --renew --host HOST", dir))
	}
	return c.Hosts(), nil
}

func hostsOf(c *x509.Certificate) []string {
	hosts := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// RFC 5280 section 4.2.1. It signs certificates of servers, not of CAs.
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "ov-server CA of " + clip(name)},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(t, t, &key.PublicKey, key)
	return &authority{cert, key}, err
}

// sign makes a certificate. Its serial number is random.
func sign(t, parent *x509.Certificate, of *ecdsa.PublicKey, by *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, of, by)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// clip fits a host name into a common name, which has at most 64 characters
// (RFC 5280 appendix A.1).
func clip(name string) string { return name[:min(len(name), 40)] }

// loadCA reads the authority of Init.
func loadCA(dir string) (*authority, error) {
	certName, keyName := filepath.Join(dir, tlsDir, caFile), filepath.Join(dir, tlsDir, caKeyFile)
	certPEM, err := readBounded(certName)
	if err != nil {
		return nil, err
	}
	keyPEM, err := ReadPrivate(keyName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint.Wrap(err, "put the key of the CA back for as long as this takes")
	}
	if err != nil {
		return nil, err
	}
	defer clear(keyPEM)
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s or %s is not PEM", safefile.Quote(certName), safefile.Quote(keyName))
	}
	defer clear(keyBlock.Bytes)
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", safefile.Quote(certName), err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", safefile.Quote(keyName), err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", safefile.Quote(keyName), safefile.Quote(certName))
	}
	return &authority{cert, signer}, nil
}

// issue returns a new certificate, and in PEM it, the authority's, which clients
// are shown at their first login, and its key.
func (a *authority) issue(hosts []string, now time.Time) (*x509.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: clip(hosts[0])},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	cert, err := sign(t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := pemKey(key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(keyPEM)
	return cert, slices.Concat(pemCert(cert), pemCert(a.cert), keyPEM), nil
}

func pemKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func pemCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// issued describes what lies in dir.
func (a *authority) issued(dir string, cert *x509.Certificate) *Issued {
	certFile, _ := CertificateFiles(dir)
	return &Issued{
		CA: filepath.Join(dir, tlsDir, caFile), CAFingerprint: fingerprint(a.cert), CAExpires: a.cert.NotAfter,
		Certificate: certFile, Hosts: hostsOf(cert), Expires: cert.NotAfter,
	}
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}
