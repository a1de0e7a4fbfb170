package remote_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

func get(ctx context.Context, s store.Store, key string) (value string, err error) {
	err = s.View(ctx, func(r store.Reader) error {
		v, err := r.Get([]byte(key))
		value = string(v)
		return err
	})
	return value, err
}

// Nobody answers: the call is tried again until Wait is over, and no longer.
func TestServerAway(t *testing.T) {
	id := []byte("ov_live_secret")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	silent := listener(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	slams := listener(t, func(net.Conn) {})
	for what, c := range map[string]struct{ address, want string }{
		"refused":                  {closed.Addr().String(), "connection refused"},
		"a name that is not known": {"ov-server.invalid:443", "ov-server.invalid"},
		"no answer":                {silent, ""},
		"closed at once":           {slams, "the connection broke before it was secured"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			const wait = 700 * time.Millisecond
			var again atomic.Int32
			s := client(t, "https://"+c.address, id, func(o *remote.Options) {
				o.Wait = wait
				o.Retrying = func(err error) {
					again.Add(1)
					if !errors.Is(err, store.ErrUnavailable) {
						t.Errorf("tried again after %v", err)
					}
				}
			})
			start := time.Now()
			_, err := get(t.Context(), s, "k")
			took := time.Since(start)
			if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "https://"+c.address) ||
				!strings.Contains(err.Error(), c.want) || hint.Of(err) == "" {
				t.Errorf("got %v", err)
			}
			if took > wait+time.Second || again.Load() == 0 && what != "no answer" && what != "a name that is not known" {
				t.Errorf("%d more tries in %v", again.Load(), took)
			}

			soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start = time.Now()
			if _, err := get(soon, s, "k"); !errors.Is(err, store.ErrUnavailable) || time.Since(start) > time.Second {
				t.Errorf("with a deadline: %v in %v", err, time.Since(start))
			}
			mine := errors.New("mine")
			stopped, stop := context.WithCancelCause(t.Context())
			stop(mine)
			if _, err := get(stopped, s, "k"); !errors.Is(err, mine) && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			once := client(t, "https://"+c.address, id, func(o *remote.Options) {
				o.Wait = -1
				o.Retrying = func(error) { t.Error("tried again") }
			})
			if what != "no answer" {
				if _, err := get(t.Context(), once, "k"); !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("once: %v", err)
				}
			}
		})
	}
}

// listener runs fn with each connection, and then closes it.
func listener(t *testing.T, fn func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				fn(c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// The server comes later than its client, as at 3 a.m.; it is replaced by
// another, gently and not.
func TestServerComesAndGoes(t *testing.T) {
	a := storage(t)
	first := start(t, a, "127.0.0.1:0")
	key, address := first.tenant(t), first.address()
	_ = first.http.Close()
	s := client(t, first.url, key)
	time.AfterFunc(500*time.Millisecond, func() { start(t, a, address) })
	begin := time.Now()
	if _, err := get(t.Context(), s, "k"); err != nil {
		t.Fatal(err)
	}
	t.Logf("the server came after 500 ms, the answer after %v", time.Since(begin).Round(time.Millisecond))

	now := start(t, a, "127.0.0.1:0")
	s = client(t, now.url, key)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var n atomic.Int32
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := add(t.Context(), s, "n"); err != nil {
					t.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	for round := range 6 {
		for before := n.Load(); n.Load() < before+20; {
			time.Sleep(time.Millisecond)
		}
		if round%2 == 0 {
			if err := now.http.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		} else {
			_ = now.http.Close()
		}
		now = start(t, a, now.address())
	}
	close(stop)
	wg.Wait()
	if got, err := get(t.Context(), s, "n"); err != nil || number(got) != int(n.Load()) {
		t.Errorf("%d additions made %s: %v", n.Load(), got, err)
	}
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// add adds 1 to a counter.
func add(ctx context.Context, s store.Store, key string) error {
	return s.Update(ctx, func(r store.Reader) (store.Batch, error) {
		v, err := r.Get([]byte(key))
		return store.Batch{{Key: []byte(key), Value: strconv.AppendInt(nil, int64(number(string(v))+1), 10)}}, err
	})
}

// wire is a TCP proxy that cuts connections, or stops to forward.
type wire struct {
	to     string
	frozen atomic.Bool
	cut    func() int // after how many bytes of each direction; 0: never
	cuts   atomic.Int32
	mu     sync.Mutex
	conns  []net.Conn
}

func (w *wire) serve(t *testing.T) (url string) {
	t.Helper()
	return "https://" + listener(t, func(c net.Conn) {
		up, err := net.Dial("tcp", w.to)
		if err != nil {
			return
		}
		defer func() { _ = up.Close() }()
		w.mu.Lock()
		w.conns = append(w.conns, c, up)
		w.mu.Unlock()
		var wg sync.WaitGroup
		for _, pair := range [][2]net.Conn{{c, up}, {up, c}} {
			left := -1
			if w.cut != nil {
				left = w.cut()
			}
			wg.Go(func() { w.copy(pair[0], pair[1], left) })
		}
		wg.Wait()
	})
}

func (w *wire) copy(from, to net.Conn, left int) {
	isFrozen := false
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if w.frozen.Load() {
			isFrozen = true
		}
		if isFrozen && err == nil {
			continue
		}
		cut := left >= 0 && n >= left
		if cut {
			n = left
		}
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				err = werr
			}
		}
		left -= n
		if cut || err != nil {
			if cut {
				w.cuts.Add(1)
			}
			// A reset, as when a machine is gone.
			for _, c := range []net.Conn{from, to} {
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
			return
		}
	}
}

// Connections are cut anywhere, in either direction, while several clients add
// to one counter: none that was acknowledged is lost and none is done twice.
func TestCommitsOnceEach(t *testing.T) {
	server := startOne(t)
	key := server.tenant(t)
	commits := &noting{relay: newRelay(t, server), ids: map[string]int{}}
	url := serve(t, commits)
	w := &wire{to: strings.TrimPrefix(url, "https://")}
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same choices in each run
	w.cut = func() int {
		mu.Lock()
		defer mu.Unlock()
		// A handshake takes about 1,500 bytes there and 1,900 back.
		return 1000 + rnd.IntN(12_000)
	}
	proxy := w.serve(t)
	const clients, each = 6, 100
	var wg sync.WaitGroup
	var retries atomic.Int32
	start := time.Now()
	for range clients {
		wg.Go(func() {
			s := client(t, proxy, key, func(o *remote.Options) {
				o.Wait = time.Minute
				o.Retrying = func(error) { retries.Add(1) }
			})
			s.Bounds(10*time.Second, time.Minute, 1<<20)
			for range each {
				if err := add(t.Context(), s, "n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	again := 0
	for _, n := range commits.ids {
		again += n - 1
	}
	got, err := get(t.Context(), client(t, url, key), "n")
	if err != nil || number(got) != clients*each {
		t.Errorf("%d additions made %s: %v", clients*each, got, err)
	}
	if w.cuts.Load() < 50 || again == 0 {
		t.Errorf("%d cuts and %d commits repeated prove little", w.cuts.Load(), again)
	}
	t.Logf("%d additions by %d clients made %s in %v: %d connections cut, %d calls tried again, %d commits done, %d of them said again",
		clients*each, clients, got, time.Since(start).Round(time.Millisecond), w.cuts.Load(), retries.Load(), len(commits.ids), again)
}

// noting counts how often a commit was done, by its id.
type noting struct {
	*relay
	mu  sync.Mutex
	ids map[string]int
}

func (n *noting) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	id := &firstID{ClientStreamingServer: stream}
	err := n.relay.Commit(id)
	// The reply may be lost, but the real server has given it.
	if id.done {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.ids[id.id]++
	}
	return err
}

type firstID struct {
	grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]
	id   string
	done bool
}

func (f *firstID) Recv() (*vaultv1.CommitRequest, error) {
	m, err := f.ClientStreamingServer.Recv()
	if err == nil {
		f.id += string(m.Id)
	}
	return m, err
}

func (f *firstID) SendAndClose(m *vaultv1.CommitResponse) error {
	f.done = true
	return f.ClientStreamingServer.SendAndClose(m)
}

// A connection that died without a sign is found out when it is used.
func TestSilentDeath(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 14 s")
	}
	t.Parallel()
	server := startOne(t)
	w := &wire{to: server.address()}
	s := client(t, w.serve(t), server.tenant(t))
	if err := add(t.Context(), s, "n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10500 * time.Millisecond)
	w.frozen.Store(true)
	time.AfterFunc(time.Second, func() { w.frozen.Store(false) }) // for other connections
	start := time.Now()
	if err := add(t.Context(), s, "n"); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	} else {
		t.Logf("a dead connection was replaced after %v", took.Round(time.Millisecond))
	}
	if got, err := get(t.Context(), s, "n"); got != "2" || err != nil {
		t.Errorf("2 additions made %s: %v", got, err)
	}
}

// failing fails calls as often as it is told.
type failing struct {
	*relay
	mu   sync.Mutex
	code codes.Code
	left int
}

func (f *failing) fail() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return nil
	}
	f.left--
	return status.Error(f.code, "out of\x1b[31m order\n"+strings.Repeat("x", 5000))
}

func (f *failing) Read(ctx context.Context, r *vaultv1.ReadRequest) (*vaultv1.ReadResponse, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f.relay.Read(ctx, r)
}

func (f *failing) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.relay.Commit(stream)
}

// What each code makes of a call: tried again or not, and which error.
func TestCodes(t *testing.T) {
	server := startOne(t)
	key := server.tenant(t)
	f := &failing{relay: newRelay(t, server)}
	url := serve(t, f)
	for _, c := range []struct {
		code  codes.Code
		again bool
		err   error
	}{
		{codes.Unavailable, true, store.ErrUnavailable},
		{codes.DeadlineExceeded, true, store.ErrUnavailable},
		{codes.Canceled, true, store.ErrUnavailable},
		{codes.ResourceExhausted, true, store.ErrUnavailable},
		{codes.Aborted, true, store.ErrBusy},
		{codes.Unauthenticated, false, remote.ErrUnauthenticated},
		{codes.PermissionDenied, false, store.ErrDenied},
		{codes.NotFound, false, remote.ErrNotFound},
		{codes.Unimplemented, false, nil},
		{codes.Internal, false, nil},
		{codes.Unknown, false, nil},
		{codes.DataLoss, false, nil},
		{codes.InvalidArgument, false, nil},
		{codes.FailedPrecondition, false, nil},
		{codes.AlreadyExists, false, nil},
		{codes.OutOfRange, false, nil},
		{codes.Code(77), false, nil},
	} {
		s := warm(t, client(t, url, key, func(o *remote.Options) { o.Wait = 300 * time.Millisecond }))
		s.Bounds(time.Second, 300*time.Millisecond, 1<<20)
		f.code, f.left = c.code, 1
		err := add(t.Context(), s, "n")
		if (err == nil) != c.again {
			t.Errorf("once %v: %v", c.code, err)
		}
		f.left = 1 << 30
		start := time.Now()
		err = add(t.Context(), s, "n")
		if err == nil || c.err != nil && !errors.Is(err, c.err) || time.Since(start) > 10*time.Second {
			t.Errorf("always %v: %v in %v", c.code, err, time.Since(start))
			continue
		}
		if c.code != codes.Aborted && (strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 600 || !strings.Contains(err.Error(), "out of?[31m order?xx")) {
			t.Errorf("%v: %q", c.code, err)
		}
		if got := hint.Of(err); c.err != nil && !errors.Is(c.err, remote.ErrNotFound) && got == "" {
			t.Errorf("%v: no hint", c.code)
		}
		f.left = 0
	}
}

// When the server is lost after a commit was sent, nobody knows.
func TestUncertainCommit(t *testing.T) {
	server := startOne(t)
	url, key := serve(t, deaf{newRelay(t, server)}), server.tenant(t)
	s := warm(t, client(t, url, key, func(o *remote.Options) { o.Wait = 300 * time.Millisecond }))
	s.Bounds(300*time.Millisecond, time.Second, 1<<20)
	err := add(t.Context(), s, "n")
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "it is not known whether the change was written") {
		t.Errorf("got %v", err)
	}
}

// deaf does not answer commits.
type deaf struct{ *relay }

func (deaf) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}

func TestClosed(t *testing.T) {
	server := startOne(t)
	url, key := serve(t, deaf{newRelay(t, server)}), server.tenant(t)
	s := client(t, url, key)
	time.AfterFunc(200*time.Millisecond, func() { _ = s.Close() })
	start := time.Now()
	for range 2 {
		if err := add(t.Context(), s, "n"); err == nil || time.Since(start) > 2*time.Second {
			t.Errorf("after Close: %v in %v", err, time.Since(start))
		}
	}
}
