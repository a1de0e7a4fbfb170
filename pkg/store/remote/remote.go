// Package remote is a store.Store whose records lie on an ov-server.
//
// The server is not trusted. It has to prove that it is the one that was logged
// in to, and whatever it sends is checked before it is used: records for being
// those that were asked for, replies for their size, texts for being printable.
// That records are genuine is for pkg/vault to find out, which has the keys.
//
// A snapshot is made of several calls: each says by digests what was read before,
// and the server refuses it when that is no longer so. Then the function that
// reads is called again. A commit says the same of all that its writer has read,
// so that no lock outlives a call.
//
// HTTPS_PROXY and its like are not heeded: a vault's address says where it is,
// and a variable in the environment of `ov run` must not lead elsewhere.
package remote

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// DefaultWait is how long a call is tried again while the server is away, unless
// Options say otherwise.
const DefaultWait = 10 * time.Second

// Options say which server it is, and whose account.
type Options struct {
	URL   string // https://host:port
	CA    []byte // the certificates, in PEM, one of which must have signed the server's
	Token []byte // the API key; it is used until Close, and not copied but to be sent
	// Wait bounds how long a call is tried again while the server cannot be
	// reached or cannot work. 0 is DefaultWait; less than 0 tries once.
	Wait time.Duration
	// Retrying, if not nil, is told why a call has to be tried again, each time.
	Retrying  func(error)
	UserAgent string
	// Release, if not nil, is called by Close, when Token is used no more.
	Release func()
}

// Store is an account's records on a server. It has one connection, made when
// it is first used and again whenever it is lost.
type Store struct {
	url  string // as errors name it
	conn *grpc.ClientConn
	rpc  vaultv1.VaultClient

	wait     time.Duration // how long a call is tried again
	stall    time.Duration // how long a connected server may send nothing
	contend  time.Duration // how long a snapshot is taken again
	bound    int           // of one snapshot, in bytes
	retrying func(error)
	token    *token
	release  func()

	link link

	mu      sync.Mutex
	waiting map[*func(error)]struct{} // to be told why no connection came about
}

// What the bounds of a Store are, save in tests.
const (
	// A server that has taken a call must go on with it. Whether the connection
	// still works is found out sooner, by pings.
	stall = 15 * time.Second
	// As long as a writer of a vault file waits for others.
	contend = 30 * time.Second
	// A million secrets, so that no server can fill the memory.
	bound = 1 << 30
)

// New returns the store of the account that the API key is for. It does not
// connect: errors are of the options alone.
func New(o Options) (*Store, error) {
	host, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	roots, err := parseCA(o.CA)
	if err != nil {
		return nil, err
	}
	if !validToken(o.Token) {
		return nil, hint.Errorf("make one with: ov apikey create", "the API key for %s is none: %d bytes", o.URL, len(o.Token))
	}
	s := &Store{
		url: "https://" + host, wait: o.Wait, stall: stall, contend: contend, bound: bound,
		retrying: o.Retrying, token: newToken(o.Token), release: o.Release, waiting: map[*func(error)]struct{}{},
	}
	if s.wait == 0 {
		s.wait = DefaultWait
	}
	if s.conn, err = s.newConn(host, roots, o.UserAgent); err != nil {
		return nil, fmt.Errorf("%s: %w", s.url, err)
	}
	s.rpc = vaultv1.NewVaultClient(s.conn)
	return s, nil
}

// parseURL returns host:port.
func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") ||
		u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return "", fmt.Errorf("%.200q is no address of a server: it has the form https://host:port", text)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

func parseCA(text []byte) (*x509.CertPool, error) {
	roots, n := x509.NewCertPool(), 0
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the CA's certificate is not one in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the CA's certificate: %w", err)
		}
		roots.AddCert(cert)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("no certificate of a CA")
	}
	return roots, nil
}

// validToken reports whether an API key can be one, so that it can be in a header.
func validToken(b []byte) bool {
	return len(b) > 0 && len(b) <= 256 && !bytes.ContainsFunc(b, func(r rune) bool { return r <= ' ' || r > '~' })
}

// URL returns the server's address.
func (s *Store) URL() string { return s.url }

// Close ends the connection, and calls that are under way. Then the API key is
// the caller's alone again.
func (s *Store) Close() error {
	err := s.conn.Close()
	s.token.forget()
	if s.release != nil {
		s.release()
	}
	return err
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	return s.settle(ctx, func(sn *snapshot) error { return sn.settled(fn(sn.memo)) })
}

// Update implements store.Store. When the server is lost at the very end, the
// error says that it is not known whether the batch was written.
func (s *Store) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	return s.settle(ctx, func(sn *snapshot) error {
		b, err := fn(sn.memo)
		if err != nil || len(b) == 0 || sn.err != nil {
			return sn.settled(err)
		}
		return s.commit(ctx, sn.expects, b)
	})
}

// Create writes a batch if the account has no record yet. Otherwise it fails
// with fs.ErrExist.
func (s *Store) Create(ctx context.Context, b store.Batch) error {
	err := s.Update(ctx, func(r store.Reader) (store.Batch, error) {
		key, _, err := r.Last(nil)
		if err == nil && key != nil {
			err = fmt.Errorf("%s: %w", s.url, fs.ErrExist)
		}
		return b, err
	})
	return err
}
