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
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/embedded"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/store/storetest"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
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

// serve serves the API at address until the test ends, and returns its URL.
func serve(t testing.TB, address string, s vaultv1.VaultServer) (url string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(serverTLS())))
	vaultv1.RegisterVaultServer(g, s)
	go func() { _ = g.Serve(l) }()
	stop = sync.OnceFunc(g.Stop)
	t.Cleanup(stop)
	return "https://" + l.Addr().String(), stop
}

// accounts is the storage of a server, with one account in it.
func accounts(t testing.TB) (*embedded.Accounts, store.AccountID) {
	t.Helper()
	a, err := embedded.Open(context.Background(), filepath.Join(t.TempDir(), "server"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, account(t, a)
}

// account makes one more account. As on every server, there are records of the
// server's own in it.
func account(t testing.TB, a store.Accounts) (id store.AccountID) {
	t.Helper()
	rand.Read(id[:])
	if err := a.Create(t.Context(), store.Account{ID: id, Name: t.Name(), Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	err := a.Store(id).Update(t.Context(), func(store.Reader) (store.Batch, error) {
		return store.Batch{{Key: []byte("\x00key"), Value: []byte("of the server")}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// client returns a store on the server at url.
func client(t testing.TB, url string, id store.AccountID, change ...func(*remote.Options)) *remote.Store {
	t.Helper()
	o := remote.Options{URL: url, CA: testCA().pem, Token: token(id)}
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

func TestStore(t *testing.T) {
	a, _ := accounts(t)
	url, _ := serve(t, "127.0.0.1:0", newHonest(a))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, testCA().pem, 0o600); err != nil {
		t.Fatal(err)
	}
	storetest.Run(t,
		func(t *testing.T) string { return strings.Join([]string{url, ca, string(token(account(t, a)))}, " ") },
		func(address string) (store.Store, error) {
			s, err := open(address)
			if err == nil {
				t.Cleanup(func() { _ = s.Close() })
			}
			return s, err
		})
}
