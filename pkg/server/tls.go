package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// TLSConfig is how the server speaks TLS: version 1.3 with the key exchange
// X25519MLKEM768 and nothing else, so that what is recorded today cannot be read
// with a quantum computer later. A client that cannot do it gets the alert
// handshake_failure; there is nothing to fall back to.
//
// (Certificates are signed as ever: a signature has to hold only while a
// connection is made.)
func TLSConfig(c *Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		NextProtos:       []string{"h2", "http/1.1"},
		// Each connection proves the certificate anew, so that one that was
		// replaced is used no more. Clients keep connections, not sessions.
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now.Load(), nil },
	}
}

// Certificate is the server's certificate and private key as they are in files,
// which may be replaced while the server runs. It is safe for use by many
// goroutines.
type Certificate struct {
	certFile, keyFile string
	now               atomic.Pointer[tls.Certificate]
}

// LoadCertificate reads a certificate, followed by those that lead to its CA, and
// its private key: PEM, in two files or in the same one.
func LoadCertificate(certFile, keyFile string) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile}
	return c, c.Reload()
}

// Reload reads the files again. When it fails, the certificate stays as it was.
// Connections that are open stay so.
func (c *Certificate) Reload() error {
	key, err := ReadPrivate(c.keyFile)
	if err != nil {
		return err
	}
	defer clear(key)
	cert := key
	if c.certFile != c.keyFile {
		if cert, err = readBounded(c.certFile); err != nil {
			return err
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("cannot use the certificate %s with the key %s: %w",
			safefile.Quote(c.certFile), safefile.Quote(c.keyFile), err)
	}
	c.now.Store(&pair)
	return nil
}

// NotAfter returns the time from which on clients refuse the certificate.
func (c *Certificate) NotAfter() time.Time { return c.now.Load().Leaf.NotAfter }

// Hosts returns the DNS names and IP addresses that the certificate is for.
func (c *Certificate) Hosts() []string { return hostsOf(c.now.Load().Leaf) }

// maxFile bounds the small files that the server reads, in bytes.
const maxFile = 1 << 20

// ReadPrivate reads a small file with a secret in it. One that everybody can read
// is refused. The caller wipes the result.
func ReadPrivate(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o007 != 0 {
		return nil, hint.Wrap(&safefile.Unsafe{Path: path, Fault: fmt.Sprintf("is open to everybody (mode %04o)", st.Mode().Perm())},
			"chmod o= "+safefile.Shell(path))
	}
	return readBounded(path)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, unreadable(path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", safefile.Quote(path), maxFile)
	}
	return b, nil
}

// unreadable leaves out of err what it repeats.
func unreadable(path string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return fmt.Errorf("cannot read %s: %w", safefile.Quote(filepath.Clean(path)), err)
}
