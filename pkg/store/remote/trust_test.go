package remote_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

func TestOptions(t *testing.T) {
	ca := testCA().pem
	key := []byte("ov_live_x")
	for url, want := range map[string]string{
		"https://vault.example.com":       "https://vault.example.com:443",
		"https://vault.example.com:8443":  "https://vault.example.com:8443",
		"https://vault.example.com:8443/": "https://vault.example.com:8443",
		"https://127.0.0.1:1":             "https://127.0.0.1:1",
		"https://[::1]:1":                 "https://[::1]:1",
	} {
		s, err := remote.New(remote.Options{URL: url, CA: ca, Token: key})
		if err != nil || s.URL() != want {
			t.Errorf("%s: %v, %v", url, s.URL(), err)
			continue
		}
		_ = s.Close()
	}
	for _, url := range []string{
		"", "vault", "vault:8443", "http://vault:8443", "https://", "https://:8443", "https://a@vault", "https://vault/path",
		"https://vault?q", "https://vault#f", "https:vault", "unix:///run/x", "https://vault:port", "\x1b[31m",
	} {
		_, err := remote.New(remote.Options{URL: url, CA: ca, Token: key})
		if err == nil || !strings.Contains(err.Error(), "https://host:port") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", url, err)
		}
	}
	for what, ca := range map[string][]byte{
		"none": nil, "text": []byte("ca"), "a part": ca[:len(ca)/2], "one and more": append(append([]byte{}, ca...), "more"...),
		"a key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
	} {
		if _, err := remote.New(remote.Options{URL: "https://vault", CA: ca, Token: key}); err == nil {
			t.Errorf("CA: %s", what)
		}
	}
	for _, key := range []string{"", "a b", "a\n", "ä", strings.Repeat("a", 257)} {
		_, err := remote.New(remote.Options{URL: "https://vault", CA: ca, Token: []byte(key)})
		if err == nil || key != "" && strings.Contains(err.Error(), key) {
			t.Errorf("API key %q: %v", key, err)
		}
	}
}

// listen counts the connections that it lets in.
type counting struct {
	net.Listener
	n atomic.Int32
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// Whoever is not the server that was logged in to, or offers less than TLS 1.3
// with X25519MLKEM768, is refused at once, and told why.
func TestUntrustedServers(t *testing.T) {
	id := []byte("ov_live_secret")
	good := serverTLS
	with := func(change func(*tls.Config)) *tls.Config {
		c := good()
		change(c)
		return c
	}
	cert := func(change func(*x509.Certificate)) *tls.Config {
		return with(func(c *tls.Config) { c.Certificates = []tls.Certificate{testCA().issue(change)} })
	}
	for _, c := range []struct {
		what, want string
		config     *tls.Config // nil: no TLS
	}{
		{"another CA", "the server's certificate is not from the CA pinned at login", with(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{newAuthority().issue(nil)}
		})},
		{"another name", "the server's certificate is for another name", cert(func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"vault.example.com"}
		})},
		{"no longer valid", "by this machine's clock", cert(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		{"not yet valid", "by this machine's clock", cert(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })},
		{"a client's certificate", "the server's certificate is not valid", cert(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})},
		{"TLS 1.2", "no TLS 1.3 connection with key exchange X25519MLKEM768", with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 })},
		{"classical key exchange", "no TLS 1.3 connection with key exchange X25519MLKEM768", with(func(c *tls.Config) {
			c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
		})},
		{"another hybrid", "no TLS 1.3 connection with key exchange X25519MLKEM768", with(func(c *tls.Config) {
			c.CurvePreferences = []tls.CurveID{tls.SecP256r1MLKEM768}
		})},
		{"HTTP/1.1", "HTTP/2", with(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} })},
		{"no ALPN", "HTTP/2", with(func(c *tls.Config) { c.NextProtos = nil })},
		{"no TLS", "it does not speak TLS", nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			n := &counting{Listener: l}
			defer func() { _ = l.Close() }()
			go func() {
				for {
					conn, err := n.Accept()
					if err != nil {
						return
					}
					go func() {
						defer func() { _ = conn.Close() }()
						_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
						if c.config == nil {
							_, _ = conn.Read(make([]byte, 1))
							_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
							return
						}
						// gRPC's own server would not go without ALPN.
						s := tls.Server(conn, c.config)
						if s.Handshake() == nil {
							_, _ = s.Read(make([]byte, 1))
						}
					}()
				}
			}()
			s := client(t, "https://"+l.Addr().String(), id, func(o *remote.Options) {
				o.Retrying = func(err error) { t.Errorf("tried again: %v", err) }
			})
			_, err = s.WhoAmI(t.Context())
			if !errors.Is(err, remote.ErrUntrusted) || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "" {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if n.n.Load() != 1 {
				t.Errorf("%d connections", n.n.Load())
			}
			t.Logf("%v\nhint: %s", err, hint.Of(err))
		})
	}

	// And the one that is right, although it could do less, too.
	right := startOne(t)
	var version, curve atomic.Uint32
	weak := with(func(c *tls.Config) {
		c.MinVersion, c.CurvePreferences = 0, nil
		c.VerifyConnection = func(s tls.ConnectionState) error {
			version.Store(uint32(s.Version))
			curve.Store(uint32(s.CurveID))
			return nil
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(weak)))
	vaultv1.RegisterVaultServer(g, newRelay(t, right))
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	if _, err := client(t, "https://"+l.Addr().String(), right.tenant(t)).WhoAmI(t.Context()); err != nil {
		t.Error(err)
	}
	if version.Load() != tls.VersionTLS13 || curve.Load() != uint32(tls.X25519MLKEM768) {
		t.Errorf("TLS %#x with %v", version.Load(), tls.CurveID(curve.Load()))
	}
}

// A proxy in the environment is not asked.
func TestNoProxy(t *testing.T) {
	s := startOne(t)
	key := s.tenant(t)
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "GRPC_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	t.Setenv("NO_PROXY", "")
	if _, err := client(t, strings.Replace(s.url, "127.0.0.1", "localhost", 1), key).WhoAmI(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUnknownAPIKey(t *testing.T) {
	url := startOne(t).url
	s := client(t, url, []byte("ov_live_nobody"))
	_, err := s.WhoAmI(t.Context())
	if !errors.Is(err, remote.ErrUnauthenticated) || hint.Of(err) != "ov auth login --server "+url {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
	err = s.View(t.Context(), func(r store.Reader) error { _, err := r.Get([]byte("k")); return err })
	if !errors.Is(err, remote.ErrUnauthenticated) {
		t.Error(err)
	}
	if strings.Contains(err.Error(), "nobody") {
		t.Error("the error holds the API key")
	}
}
