package login

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
)

// ParseCA reads certificates in PEM: one or more, and nothing else but text
// around them.
func ParseCA(b []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("a CA's file has something else in it than certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a CA's certificate cannot be read: %w", err)
		}
		list, b = append(list, c), rest
	}
	if len(list) == 0 {
		return nil, errors.New("a CA's file has no certificate in it (PEM)")
	}
	return list, nil
}

// Fingerprint is the SHA-256 of a certificate as openssl x509 -fingerprint
// prints it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// SameFingerprint reports whether text, with or without colons, in either case,
// is the certificate's fingerprint.
func SameFingerprint(c *x509.Certificate, text string) bool {
	b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(text))
	sum := sha256.Sum256(c.Raw)
	return err == nil && string(b) == string(sum[:])
}

// Seen is what a server showed of itself to somebody who does not trust it yet.
type Seen struct {
	// CA is the certificate that the server's comes from, nil if it sent none.
	CA *x509.Certificate
	// System says that CA is one of those that this system trusts.
	System bool
}

// probeTime bounds a handshake.
const probeTime = 20 * time.Second

// Probe makes a TLS connection to a server, sends nothing and returns what it
// showed. It is how trust on first use begins: nothing of it is trusted.
func Probe(ctx context.Context, server string) (*Seen, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		ServerName:         host,
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768},
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // a person, or a fingerprint, decides on what comes
	}}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, hint.Errorf("is the address right, and does ov-server run there?", "cannot reach %s: %w", server, err)
	}
	defer func() { _ = conn.Close() }()
	return judgeChain(conn.(*tls.Conn).ConnectionState().PeerCertificates, host)
}

// judgeChain says what the certificates, the server's first, are worth.
func judgeChain(chain []*x509.Certificate, host string) (*Seen, error) {
	if len(chain) == 0 {
		return nil, errors.New("the server has no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	verify := func(roots *x509.CertPool) ([][]*x509.Certificate, error) {
		return chain[0].Verify(x509.VerifyOptions{DNSName: host, Intermediates: between, Roots: roots})
	}
	if found, err := verify(nil); err == nil {
		return &Seen{CA: found[0][len(found[0])-1], System: true}, nil
	}
	ca := chain[len(chain)-1]
	if !ca.IsCA {
		return &Seen{}, nil
	}
	// What is to be trusted must at least do for this server.
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := verify(roots); err != nil {
		return nil, hint.Errorf("on the server: ov-server init --renew --host "+host, "the server's certificate is not right: %w", err)
	}
	return &Seen{CA: ca}, nil
}

// PEM is a certificate as it is kept.
func PEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
