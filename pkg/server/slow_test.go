package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// quick are timeouts that a test can wait for.
func quick(l *limits) {
	l.headers, l.idle, l.body, l.refused, l.part, l.send = 500*time.Millisecond, 700*time.Millisecond, 600*time.Millisecond, 400*time.Millisecond, 500*time.Millisecond, 600*time.Millisecond
}

// dialTLS is a connection that speaks a protocol of ALPN (RFC 7301).
func dialTLS(t testing.TB, ts *testServer, protocol string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(ts.url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// endsWithin reads until the server closes the connection.
func endsWithin(t testing.TB, what string, c net.Conn, d time.Duration) string {
	t.Helper()
	begin := time.Now()
	_ = c.SetReadDeadline(begin.Add(d))
	b, err := io.ReadAll(c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%s: the connection is open after %v", what, d)
	}
	return string(b)
}

// trickle sends a byte now and then until the connection ends.
func trickle(c net.Conn, text string, every time.Duration) {
	for i := 0; ; i++ {
		if _, err := c.Write([]byte{text[i%len(text)]}); err != nil {
			return
		}
		time.Sleep(every)
	}
}

const patience = 5 * time.Second

// Connections on which nothing comes, or a byte now and then, end, whatever they
// began.
func TestSlowClients(t *testing.T) {
	ts := start(t, quick)
	account, _ := admin(t, ts)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	head := "POST /ov.vault.v1.Vault/Read HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
	for name, test := range map[string]struct{ begin, trickle string }{
		"no TLS":                        {"-", ""},
		"half a TLS handshake":          {"-\x16\x03\x01", ""},
		"nothing":                       {"", ""},
		"half a line":                   {"POST /ov.vau", ""},
		"headers that trickle":          {"POST / HTTP/1.1\r\nHost: x\r\n", "X-A: b\r\n"},
		"no key, no body":               {head + "\r\n", ""},
		"no key, a body that trickles":  {head + "\r\n", " "},
		"a key, no body":                {head + "Authorization: Bearer " + token + "\r\n\r\n", ""},
		"a key, a body that trickles":   {head + "Authorization: Bearer " + token + "\r\n\r\n", " "},
		"chunks that trickle":           {strings.Replace(head, "Content-Length: 1000000", "Transfer-Encoding: chunked", 1) + "Authorization: Bearer " + token + "\r\n\r\n", "1\r\n \r\n"},
		"a commit that does not begin":  {strings.NewReplacer("Read", "Commit", "application/json", "application/connect+json", "Content-Length: 1000000", "Transfer-Encoding: chunked").Replace(head) + "Authorization: Bearer " + token + "\r\n\r\n", ""},
		"a commit that trickles":        {strings.NewReplacer("Read", "Commit", "application/json", "application/connect+json", "Content-Length: 1000000", "Transfer-Encoding: chunked").Replace(head) + "Authorization: Bearer " + token + "\r\n\r\n", "1\r\n\x00\r\n"},
		"a request, and nothing after":  {"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", ""},
		"a request and half of another": {"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c net.Conn
			if plain, ok := strings.CutPrefix(test.begin, "-"); ok {
				var err error
				if c, err = net.Dial("tcp", strings.TrimPrefix(ts.url, "https://")); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				test.begin = plain
			} else {
				c = dialTLS(t, ts, "http/1.1")
			}
			if _, err := io.WriteString(c, test.begin); err != nil {
				t.Fatal(err)
			}
			if test.trickle != "" {
				go trickle(c, test.trickle, 50*time.Millisecond)
			}
			endsWithin(t, name, c, patience)
		})
	}
}

// h2 is a connection of HTTP/2 (RFC 9113) of which the test writes the frames.
type h2 struct {
	*http2.Framer
	c   *tls.Conn
	buf bytes.Buffer
	enc *hpack.Encoder
}

func dialH2(t testing.TB, ts *testServer) *h2 {
	t.Helper()
	c := dialTLS(t, ts, "h2")
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	h := &h2{Framer: http2.NewFramer(c, bufio.NewReader(c)), c: c}
	h.enc = hpack.NewEncoder(&h.buf)
	// A window of nothing: who asks reads no answer.
	if err := h.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

// head is the block of headers of a call.
func (h *h2) head(procedure, token, contentType string) []byte {
	h.buf.Reset()
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", procedure}, {"content-type", contentType}, {"authorization", "Bearer " + token}} {
		_ = h.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return bytes.Clone(h.buf.Bytes())
}

// ended reads until a stream, or the connection, ends.
func (h *h2) ended(stream uint32, within time.Duration) error {
	_ = h.c.SetReadDeadline(time.Now().Add(within))
	for {
		f, err := h.ReadFrame()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return err
			}
			return nil
		}
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return nil
			}
		case *http2.HeadersFrame:
			if f.StreamID == stream && f.StreamEnded() {
				return nil
			}
		case *http2.DataFrame:
			if f.StreamID == stream && f.StreamEnded() {
				return nil
			}
		case *http2.GoAwayFrame:
			return nil
		}
	}
}

// The same with streams of HTTP/2.
func TestSlowStreams(t *testing.T) {
	ts := start(t, quick)
	account, _ := admin(t, ts)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	for name, test := range map[string]struct{ procedure, token, contentType string }{
		"no key":          {"Read", "x", "application/json"},
		"no key, gRPC":    {"Commit", "x", "application/grpc"},
		"a read":          {"Read", token, "application/json"},
		"a read by gRPC":  {"Read", token, "application/grpc"},
		"a scan":          {"Scan", token, "application/grpc"},
		"a commit":        {"Commit", token, "application/grpc"},
		"an unknown call": {"Other", token, "application/grpc"},
	} {
		for how, every := range map[string]time.Duration{"stalls": 0, "trickles": 50 * time.Millisecond} {
			t.Run(name+" that "+how, func(t *testing.T) {
				t.Parallel()
				h := dialH2(t, ts)
				if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: h.head("/ov.vault.v1.Vault/"+test.procedure, test.token, test.contentType)}); err != nil {
					t.Fatal(err)
				}
				if every > 0 {
					go func() {
						for h.WriteData(1, false, []byte{0}) == nil {
							time.Sleep(every)
						}
					}()
				}
				if err := h.ended(1, patience); err != nil {
					t.Errorf("the stream has not ended: %v", err)
				}
			})
		}
	}
	t.Cleanup(func() {
		eventually(t, "all is given back", patience, func() bool { return ts.inflight.taken() == 0 && ts.memory.taken() == 0 })
	})
}

// A client that reads nothing of its answer holds it for a while only, and no
// snapshot meanwhile.
func TestSlowReaders(t *testing.T) {
	accounts := &looks{Accounts: openAccounts(t)}
	ts := startOn(t, accounts, quick)
	account, c := admin(t, ts)
	_, token := ts.apiKey(t, account, grant{scope: scopeRead})
	fill(t, ts, account, 24)
	ask, err := proto.Marshal(&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor("", store.All)}})
	if err != nil {
		t.Fatal(err)
	}
	message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(ask))), ask...)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			h := dialH2(t, ts)
			err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: h.head("/ov.vault.v1.Vault/Scan", token, "application/grpc")})
			if err := errors.Join(err, h.WriteData(1, true, message)); err != nil {
				t.Error(err)
				return
			}
			// It reads frames, and gives no more window than 64 KiB.
			if err := h.ended(1, 2*patience); err != nil {
				t.Errorf("HTTP/2: %v", err)
			}
		})
		wg.Go(func() {
			c := dialTLS(t, ts, "http/1.1")
			_, err := fmt.Fprintf(c, "POST /ov.vault.v1.Vault/Scan HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/connect+proto\r\nContent-Length: %d\r\n\r\n%s", token, len(message), message)
			if err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Second)
		})
	}
	eventually(t, "answers are under way", patience, func() bool { return ts.spool.taken() > 24<<20 })
	// Others are served, and write.
	for i := range 20 {
		if err := commitOps(t.Context(), c, put("x", fmt.Sprint(i))); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	eventually(t, "all is given back", patience, func() bool {
		return ts.inflight.taken() == 0 && ts.memory.taken() == 0 && ts.spool.taken() == 0
	})
}

// Headers have a bound, in one frame or many, compressed or not.
func TestHeaderBombs(t *testing.T) {
	ts := start(t, func(l *limits) { l.idle = 2 * time.Second })
	_, admin := admin(t, ts)
	c := dialTLS(t, ts, "http/1.1")
	go func() {
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n")
		for {
			if _, err := io.WriteString(c, "X-A: "+strings.Repeat("b", 1000)+"\r\n"); err != nil {
				return
			}
		}
	}()
	if answer := endsWithin(t, "headers of HTTP/1", c, patience); answer != "" && !strings.HasPrefix(answer, "HTTP/1.1 431") {
		t.Errorf("%.100s", answer)
	}
	for name, send := range map[string]func(h *h2){
		"one block, compressed": func(h *h2) {
			h.head("/ov.vault.v1.Vault/Read", "x", "application/json")
			field := hpack.HeaderField{Name: "x-a", Value: strings.Repeat("b", 3000)}
			for range 60_000 { // an index of one byte each
				_ = h.enc.WriteField(field)
			}
			block := h.buf.Bytes()
			_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:min(len(block), 16<<10)]})
			for block = block[min(len(block), 16<<10):]; len(block) > 0; {
				n := min(len(block), 16<<10)
				if h.WriteContinuation(1, n == len(block), block[:n]) != nil {
					return
				}
				block = block[n:]
			}
		},
		"continuations without end": func(h *h2) {
			_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.head("/ov.vault.v1.Vault/Read", "x", "application/json")})
			for h.WriteContinuation(1, false, []byte{}) == nil {
				time.Sleep(time.Millisecond)
			}
		},
	} {
		h := dialH2(t, ts)
		go send(h)
		if err := h.ended(1, patience); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := commitOps(t.Context(), admin, put("x", "1")); err != nil {
		t.Error(err)
	}
}

// Streams that are opened and reset at once (CVE-2023-44487), or opened and left,
// cost others nothing.
func TestRapidReset(t *testing.T) {
	ts := start(t)
	account, _ := admin(t, ts)
	_, token := ts.apiKey(t, account, grant{scope: scopeWrite})
	// An account that floods itself is not served; another is.
	_, elsewhere := admin(t, ts)
	if err := commitOps(t.Context(), elsewhere, put("x", "1")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var streams atomic.Int64
	for _, token := range []string{token, "x"} {
		for _, reset := range []bool{true, false} {
			wg.Go(func() {
				for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
					h := dialH2(t, ts)
					go func() { _, _ = io.Copy(io.Discard, h.c) }()
					for i := range uint32(20_000) {
						err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, EndHeaders: true, BlockFragment: h.head("/ov.vault.v1.Vault/Commit", token, "application/grpc")})
						if err == nil && reset {
							err = h.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
						}
						if err != nil {
							break // the server has had enough of it
						}
						streams.Add(1)
					}
					_ = h.c.Close()
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var worst time.Duration
	for n := 0; ; n++ {
		begin := time.Now()
		if err := commitOps(t.Context(), elsewhere, put("x", "1")); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(begin))
		select {
		case <-done:
			t.Logf("%d streams; %d commits meanwhile, the slowest in %v", streams.Load(), n, worst)
			if worst > 10*time.Second {
				t.Errorf("a commit took %v", worst)
			}
			eventually(t, "all is given back", 3*patience, func() bool {
				return ts.inflight.taken() == 0 && ts.waiting.taken() == 0 && ts.memory.taken() == 0
			})
			return
		default:
		}
	}
}

// What is compressed is not taken: there is no bomb.
func TestNoCompression(t *testing.T) {
	ts := start(t)
	account, _ := admin(t, ts)
	_, token := ts.apiKey(t, account, grant{scope: scopeRead})
	h, closeIdle := newHTTPClient("")
	defer closeIdle()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, ts.url+"/ov.vault.v1.Vault/Read", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}
	resp, err := h.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), "unimplemented") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	_, err = read(t.Context(), ts.client(t, token, connect.WithGRPC(), connect.WithSendGzip()), rangeFor("x", store.One))
	fails(t, "gRPC with gzip", err, connect.CodeUnimplemented, "")
}

// When there are too many connections, those go over which no right key has come,
// then those that were used longest ago, and never one that serves a call.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(Options{Accounts: openAccounts(t)}, defaultLimits())
	defer func() { _ = s.Close(t.Context()) }()
	limit := s.Limit(l).(*limiter)
	limit.total, limit.each, limit.grace = 5, 3, 20*time.Millisecond
	defer func() { _ = limit.Close() }()
	accepted := make(chan *conn, 100)
	go func() {
		for {
			c, err := limit.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c.(*conn)
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	open := func(from string) (net.Conn, *conn) {
		t.Helper()
		c := dial(from)
		select {
		case s := <-accepted:
			return c, s
		case <-time.After(patience):
			t.Fatal("it was not accepted")
			return nil, nil
		}
	}
	isOpen := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		var timeout net.Error
		return errors.As(err, &timeout) && timeout.Timeout()
	}
	// Three of one address: one known, one serving, one stranger.
	known, knownServer := open("127.0.0.1")
	serving, servingServer := open("127.0.0.1")
	stranger, _ := open("127.0.0.1")
	ctx := connContext(t.Context(), tls.Server(knownServer, &tls.Config{}))
	used(ctx)
	done := serve(connContext(t.Context(), servingServer))
	time.Sleep(2 * limit.grace)
	fourth, _ := open("127.0.0.1")
	if isOpen(stranger) || !isOpen(known) || !isOpen(serving) || !isOpen(fourth) {
		t.Error("the stranger is not the one that went")
	}
	time.Sleep(2 * limit.grace)
	fifth, _ := open("127.0.0.1")
	if isOpen(fourth) || !isOpen(known) || !isOpen(serving) {
		t.Error("the older stranger is not the one that went")
	}
	// Within the grace a new one is refused.
	limit.mu.Lock()
	limit.grace = time.Hour
	limit.mu.Unlock()
	if refused := dial("127.0.0.1"); isOpen(refused) {
		t.Error("a fourth of an address is open")
	}
	// Others have room, up to the total.
	open("127.0.0.2")
	open("127.0.0.3")
	if refused := dial("127.0.0.4"); isOpen(refused) {
		t.Error("a sixth is open")
	}
	limit.mu.Lock()
	limit.grace = time.Millisecond
	limit.mu.Unlock()
	done()
	open("127.0.0.4")
	if isOpen(fifth) || !isOpen(known) || !isOpen(serving) {
		t.Error("the oldest stranger is not the one that went")
	}
	// A connection that ends is not counted.
	for _, c := range []net.Conn{known, serving} {
		_ = c.Close()
	}
	_ = knownServer.Close()
	_ = knownServer.Close()
	_ = servingServer.Close()
	limit.mu.Lock()
	defer limit.mu.Unlock()
	if n := len(limit.conns); n != 3 {
		t.Errorf("%d connections are counted", n)
	}
	if n := limit.count[addressOf("127.0.0.1:1")]; n != 0 {
		t.Errorf("%d connections of the first address are counted", n)
	}
}
