package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"connectrpc.com/connect"

	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// idleEnv makes TestIdleClients the clients: the server's address, the file of
// its CA, and how many there are.
const idleEnv = "OV_TEST_IDLE_CLIENTS"

// connections come from these addresses, as if from so many machines.
func idleAddress(i int) string { return fmt.Sprintf("127.0.1.%d", 1+i%40) }

// TestIdleClients is no test, but the clients of TestIdleConnections, in a
// process of their own: each process may have so many descriptors.
func TestIdleClients(t *testing.T) {
	address, rest, ok := strings.Cut(os.Getenv(idleEnv), " ")
	if !ok {
		return
	}
	ca, number, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	config := trusting(t, ca)
	var wg sync.WaitGroup
	var failed atomic.Int64
	conns := make([]net.Conn, n)
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < n; i += 16 {
				c, err := idleConn(address, config, i)
				if err != nil {
					if failed.Add(1) < 5 {
						fmt.Fprintln(os.Stderr, err)
					}
					continue
				}
				conns[i] = c
			}
		})
	}
	wg.Wait()
	fmt.Printf("open %d\n", n-int(failed.Load()))
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is time to look
	var open atomic.Int64
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < n; i += 16 {
				if conns[i] != nil && isIdle(conns[i]) {
					open.Add(1)
				}
			}
		})
	}
	wg.Wait()
	fmt.Printf("left %d\n", open.Load())
}

// idleConn makes a connection that has all that a server asks of one and then
// does nothing: of HTTP/2, or of HTTP/1 after a request.
func idleConn(address string, config *tls.Config, i int) (net.Conn, error) {
	config = config.Clone()
	config.NextProtos = []string{[]string{"h2", "http/1.1"}[i%2]}
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(idleAddress(i))}, Timeout: time.Minute}, Config: config}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	if i%2 == 0 {
		_, err = io.WriteString(c, http2.ClientPreface)
		return c, errors.Join(err, http2.NewFramer(c, nil).WriteSettings())
	}
	if _, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return c, err
}

// isIdle reports whether the connection is open, reading what the server has
// said.
func isIdle(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func trusting(t testing.TB, ca string) *tls.Config {
	t.Helper()
	b, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

// Ten thousand connections that do nothing, and hundreds that are slow, do not
// keep others from being served: over TLS as it is for clients, with what an
// ordinary server would have.
func TestIdleConnections(t *testing.T) {
	const want = 10_000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	n, why := min(want, int(files.Cur)-2000), fmt.Sprintf("RLIMIT_NOFILE is %d", files.Cur)
	if raceEnabled && n > 1000 { // which takes ten times as much memory, and time
		n, why = 1000, "built with -race"
	}
	if n < 100 {
		t.Skipf("%s: idle connections were not tried", why)
	}
	t.Run(fmt.Sprintf("%d connections", n), func(t *testing.T) { idleConnections(t, n) })
	if n < want {
		t.Run("10000 connections", func(t *testing.T) {
			t.Skipf("%s: only %d idle connections were tried, not %d", why, n, want)
		})
	}
}

func idleConnections(t *testing.T, n int) {
	dir := filepath.Join(t.TempDir(), "data")
	issued, err := Init(dir, []string{"localhost", "127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := LoadCertificate(CertificateFiles(dir))
	if err != nil {
		t.Fatal(err)
	}
	l := defaultLimits()
	l.headers, l.body, l.send = 5*time.Second, 5*time.Second, 5*time.Second
	s := newServer(Options{Accounts: openAccounts(t), Spool: t.TempDir()}, l)
	defer func() { _ = s.Close(context.Background()) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limit := s.Limit(listener).(*limiter)
	srv := s.HTTP(s.Handler())
	go func() { _ = srv.Serve(tls.NewListener(limit, TLSConfig(cert))) }()
	defer func() { _ = srv.Close() }()
	address := listener.Addr().String()

	account := ownAccount(t, s)
	config := trusting(t, issued.CA)
	tokenOf := func(scope vaultv1.Scope) string {
		resp, err := s.createAPIKey(t.Context(), account, grant{scope: scopeAdmin}, &vaultv1.CreateAPIKeyRequest{Name: randomName(), Scope: scope})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetToken()
	}
	normal := func(from string) vaultv1connect.VaultClient {
		tr := &http.Transport{
			DialContext:     (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext,
			TLSClientConfig: config, ForceAttemptHTTP2: true,
		}
		t.Cleanup(tr.CloseIdleConnections)
		return vaultv1connect.NewVaultClient(withToken{&http.Client{Transport: tr}, tokenOf(scopeWrite)}, "https://"+address, connect.WithGRPC())
	}
	c := normal("127.0.0.1")
	if err := commitOps(t.Context(), c, put("x", "1")); err != nil {
		t.Fatal(err)
	}

	before := resident()
	begin := time.Now()
	child := exec.Command(os.Args[0], "-test.run=^TestIdleClients$")
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", idleEnv, address, issued.CA, n))
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Wait() }()
	defer func() { _ = stdin.Close() }()
	lines := bufio.NewScanner(out)
	answer := func(word string) (got int) {
		t.Helper()
		for lines.Scan() {
			if _, err := fmt.Sscanf(lines.Text(), word+" %d", &got); err == nil {
				return got
			}
		}
		t.Fatalf("the clients did not say how many are %s", word)
		return 0
	}
	if got := answer("open"); got != n {
		t.Errorf("%d of %d connections came about", got, n)
	}
	runtime.GC()
	t.Logf("%d idle connections in %v, %d KiB for each in the server", n, time.Since(begin).Round(time.Millisecond), (resident()-before)/1024/n)

	// Slow ones besides: headers, bodies and readers.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	read, err := proto.Marshal(&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor("", 1)}})
	if err != nil {
		t.Fatal(err)
	}
	token := tokenOf(scopeRead)
	for i := range 300 {
		begin := []string{
			"POST / HTTP/1.1\r\nHost: x\r\n",
			"POST /ov.vault.v1.Vault/Read HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n",
			"POST /ov.vault.v1.Vault/Read HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\nContent-Type: application/proto\r\nContent-Length: " + strconv.Itoa(len(read)+1) + "\r\n\r\n" + string(read),
		}[i%3]
		wg.Go(func() {
			config := config.Clone()
			config.NextProtos = []string{"http/1.1"}
			for ctx.Err() == nil {
				d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(idleAddress(i))}}, Config: config}
				c, err := d.DialContext(ctx, "tcp", address)
				if err != nil {
					continue
				}
				_, err = io.WriteString(c, begin)
				for ; err == nil && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
					if i%3 == 0 {
						_, err = io.WriteString(c, "X-A: b\r\n")
					}
				}
				_ = c.Close()
			}
		})
	}
	// Who has a connection, and who comes anew, from elsewhere and from an address
	// that is one of theirs.
	for _, who := range []struct {
		name  string
		from  string
		fresh bool
	}{{"over the connection of before", "", false}, {"over new connections", "127.0.0.1", true}, {"from one of their addresses", idleAddress(0), true}} {
		var took []time.Duration
		for i := range 50 {
			c := c
			if who.fresh {
				c = normal(who.from)
			}
			begin := time.Now()
			if err := commitOps(t.Context(), c, put("x", strconv.Itoa(i))); err != nil {
				t.Errorf("%s: %v", who.name, err)
			}
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		t.Logf("50 commits %s: median %v, slowest %v", who.name, took[25].Round(time.Microsecond), took[49].Round(time.Microsecond))
		if took[49] > 5*time.Second {
			t.Errorf("%s: a commit took %v", who.name, took[49])
		}
	}
	_ = stdin.Close()
	if got := answer("left"); got < n*99/100 {
		t.Errorf("%d of %d idle connections are left: the bounds leave room for more", got, n)
	}
	stop()
	wg.Wait()

	// With room for fewer, idle ones go and others come in.
	limit.mu.Lock()
	limit.total, limit.each, limit.grace = len(limit.conns), len(limit.conns), 0
	limit.mu.Unlock()
	for range 20 {
		if err := commitOps(t.Context(), normal("127.0.0.1"), put("x", "1")); err != nil {
			t.Errorf("when all places are taken: %v", err)
		}
	}
}

func ownAccount(t testing.TB, s *Server) (id [16]byte) {
	t.Helper()
	resp, err := operatorService{s}.CreateAccount(t.Context(), connect.NewRequest(&vaultv1.CreateAccountRequest{Name: "acme"}))
	if err != nil {
		t.Fatal(err)
	}
	return [16]byte(resp.Msg.GetAccount().GetId())
}

// resident is what the process has in memory, in bytes.
func resident() int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	pages, _ := strconv.Atoi(f[1])
	return pages * os.Getpagesize()
}
