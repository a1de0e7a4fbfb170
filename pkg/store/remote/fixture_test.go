package remote_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/opaquevault/ov/pkg/server"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/embedded"
	"github.com/opaquevault/ov/pkg/store/postgres"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/store/storetest"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
	"github.com/opaquevault/ov/test/pg"
)

func TestMain(m *testing.M) {
	storetest.Main(m, func(address string) (store.Store, error) { return open(address) })
}

// open opens a store by an address as fresh returns it: URL, path of the CA's
// certificate, API key.
func open(address string) (*remote.Store, error) {
	f := strings.Fields(address)
	ca, err := os.ReadFile(f[1])
	if err != nil {
		return nil, err
	}
	return remote.New(remote.Options{URL: f[0], CA: ca, Token: []byte(f[2])})
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority() *authority {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a server's certificate.
func (a *authority) issue(change func(*x509.Certificate)) tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

var testCA = sync.OnceValue(newAuthority)

func serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		Certificates: []tls.Certificate{testCA().issue(nil)}, NextProtos: []string{"h2"},
	}
}

func clientTLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(testCA().cert)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// storage is where a server keeps accounts.
func storage(t testing.TB) *embedded.Accounts {
	t.Helper()
	a, err := embedded.Open(context.Background(), filepath.Join(t.TempDir(), "server"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// served is an ov-server that serves.
type served struct {
	*server.Server
	accounts store.Accounts
	url      string
	http     *http.Server
}

// start serves the accounts at address until the test ends.
func start(t testing.TB, a store.Accounts, address string) *served {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{server.New(server.Options{Accounts: a, Version: "test", Spool: t.TempDir()}), a, "https://" + l.Addr().String(), nil}
	s.http = s.HTTP(s.Handler())
	s.http.TLSConfig = serverTLS()
	go func() { _ = s.http.ServeTLS(s.Limit(l), "", "") }()
	t.Cleanup(func() {
		_ = s.http.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// one server with new storage.
func startOne(t testing.TB) *served {
	t.Helper()
	return start(t, storage(t), "127.0.0.1:0")
}

func (s *served) address() string { return strings.TrimPrefix(s.url, "https://") }

// tenant makes an account and returns its first API key.
func (s *served) tenant(t testing.TB) []byte {
	t.Helper()
	account := store.Account{Name: t.Name(), Created: time.Now()}
	rand.Read(account.ID[:])
	if err := s.accounts.Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	operator := vaultv1connect.NewOperatorClient(&http.Client{Transport: inside{s.Operator()}}, "http://operator")
	r, err := operator.CreateAPIKey(t.Context(), connect.NewRequest(&vaultv1.CreateAPIKeyRequest{
		Account: account.ID[:], Name: "first", Scope: vaultv1.Scope_SCOPE_ADMIN,
	}))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(r.Msg.Token)
}

// inside calls a handler without a connection.
type inside struct{ http.Handler }

func (h inside) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

// serve serves a test's own server until the test ends, and returns its URL.
func serve(t testing.TB, s vaultv1.VaultServer) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(serverTLS())))
	vaultv1.RegisterVaultServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return "https://" + l.Addr().String()
}

// client returns a store on the server at url.
func client(t testing.TB, url string, token []byte, change ...func(*remote.Options)) *remote.Store {
	t.Helper()
	o := remote.Options{URL: url, CA: testCA().pem, Token: token}
	for _, fn := range change {
		fn(&o)
	}
	s, err := remote.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// warm returns the store with a connection, which Options.Wait may be too short
// for when the machine is busy.
func warm(t testing.TB, s *remote.Store) *remote.Store {
	t.Helper()
	for start := time.Now(); ; {
		_, err := s.WhoAmI(t.Context())
		if err == nil {
			return s
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

func TestStore(t *testing.T) { conform(t, startOne(t)) }

// The same with the server's records in PostgreSQL.
func TestStoreOnPostgreSQL(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: starts PostgreSQL")
	}
	conform(t, start(t, onPostgreSQL(t), "127.0.0.1:0"))
}

// onPostgreSQL is storage in a PostgreSQL that is started for it.
func onPostgreSQL(t *testing.T) store.Accounts {
	t.Helper()
	dsn := pg.DSN("postgres", pg.Test(t))
	if _, err := postgres.Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	a, err := postgres.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// conform runs the conformance test over a server.
func conform(t *testing.T, s *served) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, testCA().pem, 0o600); err != nil {
		t.Fatal(err)
	}
	storetest.Run(t,
		func(t *testing.T) string { return strings.Join([]string{s.url, ca, string(s.tenant(t))}, " ") },
		func(address string) (store.Store, error) {
			s, err := open(address)
			if err == nil {
				t.Cleanup(func() { _ = s.Close() })
			}
			return s, err
		})
}
