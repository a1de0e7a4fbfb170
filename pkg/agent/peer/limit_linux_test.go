package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// agent is a gRPC server as the real one is set up, with gRPC's own health
// service, and what its listener refused.
type agent struct {
	socket  string
	limiter *limiter
	calls   chan *Info // the caller of each health call

	mu      sync.Mutex
	refused []error
}

func serve(t testing.TB, socket string, limits Limits) *agent {
	t.Helper()
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{socket: socket, calls: make(chan *Info, 1000)}
	a.limiter = Limit(l, OwnOrRoot(), limits, func(_ *Info, why error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.refused = append(a.refused, why)
	}).(*limiter)
	s := grpc.NewServer(grpc.Creds(ServerCredentials()), grpc.ConnectionTimeout(time.Minute),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			info, ok := FromContext(ctx)
			if !ok {
				return nil, status.Error(codes.Internal, "no caller")
			}
			if err := info.Alive(); err != nil {
				return nil, status.Error(codes.PermissionDenied, err.Error())
			}
			select {
			case a.calls <- info:
			default:
			}
			return h(ctx, req)
		}))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error)
	go func() { done <- s.Serve(a.limiter) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

// connections counts those whose caller is like that.
func (a *agent) connections(like func(*Info) bool) int {
	a.limiter.mu.Lock()
	defer a.limiter.mu.Unlock()
	n := 0
	for c := range a.limiter.conns {
		if like(c.info) {
			n++
		}
	}
	return n
}

func anybody(*Info) bool { return true }

func (a *agent) refusals(kind error) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, err := range a.refused {
		if errors.Is(err, kind) {
			n++
		}
	}
	return n
}

func eventually(t testing.TB, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A process that opens 1,000 connections and says nothing over them keeps 64 of
// them, and a call from another program is served as ever.
func TestThousandConnections(t *testing.T) {
	dir := openDir(t)
	copyExe(t, dir+"/other")
	a := serve(t, dir+"/s", DefaultLimits())
	flood := spawn(t, dir+"/caller", os.Geteuid(), nil, "connect", a.socket, "1000")
	flood.expect("connected")
	// Connections are accepted in order: once this one is served, all are judged.
	spawn(t, dir+"/other", os.Geteuid(), nil, "health", a.socket, "20").expect("SERVING")
	if n := a.connections(func(i *Info) bool { return i.PID == flood.pid() }); n != 64 {
		t.Errorf("the flood has %d connections, want 64", n)
	}
	if n := a.refusals(ErrTooMany); n == 0 {
		t.Error("no refusal is told")
	}
	info := <-a.calls
	if info.Exe != dir+"/other" || int(info.UID) != os.Geteuid() {
		t.Errorf("the call is taken for one of %v", info)
	}
	flood.kill()
	eventually(t, func() error {
		a.limiter.mu.Lock()
		defer a.limiter.mu.Unlock()
		if len(a.limiter.conns) != 0 || len(a.limiter.tally.n) != 0 {
			return errors.New("closed connections are still counted")
		}
		return nil
	})
}

// A program that starts itself again and again gets no more by it, neither than
// its executable may have, nor than other programs need.
func TestFloodByRespawning(t *testing.T) {
	dir := openDir(t)
	copyExe(t, dir+"/other")
	a := serve(t, dir+"/s", DefaultLimits())
	for range 16 {
		spawn(t, dir+"/caller", os.Geteuid(), nil, "connect", a.socket, "60").expect("connected")
	}
	spawn(t, dir+"/other", os.Geteuid(), nil, "health", a.socket, "20").expect("SERVING")
	if n := a.connections(func(i *Info) bool { return i.Exe == dir+"/caller" }); n != 128 {
		t.Errorf("the flood has %d connections, want 128", n)
	}
	// And the same executable's next call takes a stalled one's place.
	time.Sleep(Grace)
	spawn(t, dir+"/caller", os.Geteuid(), nil, "health", a.socket, "20").expect("SERVING")
}

// A client that has begun to speak and stalls holds up nobody.
func TestStalledClient(t *testing.T) {
	dir := openDir(t)
	a := serve(t, dir+"/s", DefaultLimits())
	for _, begin := range []string{"", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04", strings.Repeat("\xff", 100)} {
		c, err := net.Dial("unix", a.socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write([]byte(begin)); err != nil {
			t.Fatal(err)
		}
	}
	spawn(t, dir+"/caller", os.Geteuid(), nil, "health", a.socket, "20").expect("SERVING")
}

func TestStranger(t *testing.T) {
	needRoot(t)
	dir := openDir(t)
	a := serve(t, mkdir(t, dir+"/d", 0, 0o755)+"/s", DefaultLimits())

	// The socket's mode keeps strangers out.
	if got := spawn(t, dir+"/caller", alice, nil, "connect", a.socket, "1").line(); !strings.Contains(got, "permission denied") {
		t.Errorf("a stranger's connect: %s", got)
	}
	// And if it did not, as with a careless .socket unit:
	if err := os.Chmod(a.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	spawn(t, dir+"/caller", alice, nil, "connect", a.socket, "3").expect("connected")
	eventually(t, func() error {
		if n := a.refusals(ErrStranger); n != 3 {
			return fmt.Errorf("%d of 3 refused as strangers", n)
		}
		return nil
	})
	if n := a.connections(anybody); n != 0 {
		t.Errorf("%d strangers are connected", n)
	}
	before := openFiles(t)
	for range 100 {
		c, err := net.Dial("unix", a.socket)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	eventually(t, func() error {
		if after := openFiles(t); after > before {
			return fmt.Errorf("%d files were open before 100 connections, %d after", before, after)
		}
		return nil
	})
}

// A full level takes from those that share it and from nobody else.
func TestLevels(t *testing.T) {
	limits := Halving(32)
	if limits != (Limits{Total: 32, UID: 16, Unit: 8, Exe: 4, PID: 2}) {
		t.Fatalf("%+v", limits)
	}
	f := NewInflight(limits)
	caller := func(uid uint32, unit, exe string, pid int32) *Info {
		return &Info{UID: uid, Unit: unit, Exe: exe, PID: pid}
	}
	fill := func(vary func(i int32) *Info) (got int, release []func()) {
		for i := range int32(100) {
			done, err := f.Acquire(vary(i))
			if err != nil {
				if !errors.Is(err, ErrTooMany) {
					t.Fatal(err)
				}
				continue
			}
			got++
			release = append(release, done)
		}
		return got, release
	}
	steps := []struct {
		what string
		vary func(i int32) *Info
		want int
	}{
		{"one process", func(int32) *Info { return caller(1, "u", "e", 1) }, 2},
		{"new processes of its executable", func(i int32) *Info { return caller(1, "u", "e", 100+i) }, 2},
		{"new executables in its unit", func(i int32) *Info { return caller(1, "u", "e"+string('0'+i), 1) }, 4},
		{"new units of its account", func(i int32) *Info { return caller(1, "u"+string('0'+i), "e", 1) }, 8},
		{"new accounts", func(i int32) *Info { return caller(2+uint32(i), "u", "e", 1) }, 16},
		{"anybody", func(i int32) *Info { return caller(1000+uint32(i), "u", "e", 1) }, 0},
	}
	var all []func()
	for _, s := range steps {
		got, release := fill(s.vary)
		if got != s.want {
			t.Errorf("%s got %d more, want %d", s.what, got, s.want)
		}
		all = append(all, release...)
	}
	for _, release := range all {
		release()
		release() // counts once
	}
	if len(f.tally.n) != 0 {
		t.Errorf("after all are released: %v", f.tally.n)
	}
	if got, _ := fill(steps[0].vary); got != 2 {
		t.Errorf("afterwards one process got %d", got)
	}
}

func TestInflightTogether(t *testing.T) {
	f := NewInflight(Halving(1024))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 1000 {
				release, err := f.Acquire(&Info{UID: uint32(g), PID: int32(g)})
				if err != nil {
					t.Error(err)
					return
				}
				release()
			}
		})
	}
	wg.Wait()
	if len(f.tally.n) != 0 {
		t.Errorf("left over: %v", f.tally.n)
	}
}

// Who takes whose place when a group is full.
func TestTakesSilentPlace(t *testing.T) {
	socket := filepath.Join(openDir(t), "s")
	l := listenOpen(t, socket)
	lim := Limit(l, OwnOrRoot(), Limits{Total: 100, UID: 100, Unit: 100, Exe: 100, PID: 2}, nil).(*limiter)
	pair := func() (client net.Conn, server *conn) {
		t.Helper()
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c, lim.admit(accept(t, l))
	}
	isOpen := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return os.IsTimeout(err)
	}
	older, olderServer := pair()
	newer, newerServer := pair()
	if olderServer == nil || newerServer == nil {
		t.Fatal("the first two were refused")
	}
	if third, server := pair(); server != nil || isOpen(third) {
		t.Error("a third was let in, though the two are fresh")
	}
	time.Sleep(Grace)
	if _, err := older.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := olderServer.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, server := pair(); server == nil {
		t.Error("a third was refused, though one has long been silent")
	}
	if isOpen(newer) || !isOpen(older) {
		t.Errorf("the one that spoke is open: %v, the silent one: %v", isOpen(older), isOpen(newer))
	}
	if err := newerServer.info.Alive(); !errors.Is(err, ErrGone) {
		t.Errorf("whose place was taken: %v, want ErrGone", err)
	}
	if n := len(lim.conns); n != 2 {
		t.Errorf("%d connections are counted", n)
	}
}

// A connection keeps its place while a request of it is served, however long
// that takes without a byte, and another, though it spoke later, does not.
func TestServedKeepsItsPlace(t *testing.T) {
	socket := filepath.Join(openDir(t), "s")
	l := listenOpen(t, socket)
	lim := Limit(l, OwnOrRoot(), Limits{Total: 100, UID: 100, Unit: 100, Exe: 100, PID: 2}, nil).(*limiter)
	requests := NewInflight(Halving(1024))
	connect := func() *conn {
		t.Helper()
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return lim.admit(accept(t, l))
	}
	alive := func(c *conn, what string) {
		t.Helper()
		if err := c.info.Alive(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	first, second := connect(), connect()
	if first == nil || second == nil {
		t.Fatal("the first two were refused")
	}
	firstDone, err := requests.Acquire(first.info)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(Grace)
	third := connect()
	if third == nil {
		t.Fatal("the silent one has kept its place")
	}
	alive(first, "whose request is served, and that is silent for longest")
	if err := second.info.Alive(); !errors.Is(err, ErrGone) {
		t.Errorf("the silent one: %v, want ErrGone", err)
	}

	thirdDone, err := requests.Acquire(third.info)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(Grace)
	if connect() != nil {
		t.Error("another was let in, though requests of both are served")
	}
	// A request's end counts as a byte: its answer has yet to be written.
	firstDone()
	if connect() != nil {
		t.Error("another was let in before the answer can have been read")
	}
	alive(first, "whose request has just been served")
	alive(third, "whose request is served")
	time.Sleep(Grace)
	if connect() == nil {
		t.Error("the one whose request was long served has kept its place")
	}
	alive(third, "whose request is served")
	thirdDone()
}

// Callers who leave before they are looked at, and those whose account can have
// no more, cost next to nothing: others wait in line behind them.
func TestCheapestIsAskedFirst(t *testing.T) {
	socket := filepath.Join(openDir(t), "s")
	l := listenOpen(t, socket)
	type refusal struct {
		info *Info
		why  error
	}
	var refused []refusal
	connect := func(lim *limiter, send string, leave bool) *conn {
		t.Helper()
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write([]byte(send)); err != nil {
			t.Fatal(err)
		}
		if leave {
			_ = c.Close()
		}
		return lim.admit(accept(t, l))
	}
	open := func(trust Trust, limits Limits) *limiter {
		refused = nil
		return Limit(l, trust, limits, func(info *Info, why error) { refused = append(refused, refusal{info, why}) }).(*limiter)
	}

	lim := open(OwnOrRoot(), DefaultLimits())
	for _, send := range []string{"", "PRI * HTTP/2.0\r\n"} {
		if connect(lim, send, true) != nil || len(lim.conns) != 0 || len(refused) != 0 {
			t.Errorf("having sent %q and left: %d connections, told %v", send, len(lim.conns), refused)
		}
	}

	for _, test := range []struct {
		what  string
		trust Trust
		limit Limits
		why   error
		known bool // who it is, by what /proc says
	}{
		{"no stranger and room", OwnOrRoot(), DefaultLimits(), nil, false},
		{"a full account", OwnOrRoot(), Limits{Total: 9, UID: 0, Unit: 9, Exe: 9, PID: 9}, ErrTooMany, false},
		{"a full agent", OwnOrRoot(), Limits{Total: 0, UID: 9, Unit: 9, Exe: 9, PID: 9}, ErrTooMany, false},
		{"a full process", OwnOrRoot(), Limits{Total: 9, UID: 9, Unit: 9, Exe: 9, PID: 0}, ErrTooMany, true},
		{"a stranger", Trust{alice}, DefaultLimits(), ErrStranger, false},
	} {
		lim := open(test.trust, test.limit)
		c := connect(lim, "", false)
		switch {
		case test.why == nil:
			if c == nil || len(refused) != 0 {
				t.Errorf("%s: refused: %v", test.what, refused)
			}
		case c != nil || len(refused) != 1 || !errors.Is(refused[0].why, test.why):
			t.Errorf("%s: let in: %v, told %v", test.what, c != nil, refused)
		default:
			i := refused[0].info
			if int(i.UID) != os.Geteuid() || int(i.PID) != os.Getpid() || (i.Exe != "") != test.known {
				t.Errorf("%s: %v", test.what, i)
			}
		}
	}
}

func TestDefaultLimitsFitOpenFiles(t *testing.T) {
	l := DefaultLimits()
	if l.Total > 1024 || l.PID < 1 || l.UID > l.Total/2 {
		t.Errorf("%+v", l)
	}
}

// What a client says over plain gRPC, without these credentials, is all the
// same to the server: the kernel tells it who that is.
func TestIdentityIsNotTheClientsToSay(t *testing.T) {
	a := serve(t, openDir(t)+"/s", DefaultLimits())
	cc, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	if _, err := grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if info := <-a.calls; int(info.PID) != os.Getpid() || int(info.UID) != os.Geteuid() {
		t.Errorf("taken for %v", info)
	}
}

// What Limit and the credentials add to connecting and one call.
func BenchmarkConnectAndCall(b *testing.B) {
	call := func(b *testing.B, socket string, creds grpc.DialOption) {
		for b.Loop() {
			cc, err := grpc.NewClient("unix:"+socket, creds)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := grpc_health_v1.NewHealthClient(cc).Check(b.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
				b.Fatal(err)
			}
			_ = cc.Close()
		}
	}
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	b.Run("bare", func(b *testing.B) {
		l, err := Listen(openDir(b) + "/s")
		if err != nil {
			b.Fatal(err)
		}
		s := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(s, health.NewServer())
		go func() { _ = s.Serve(l) }()
		defer s.Stop()
		call(b, l.Socket(), plain)
	})
	b.Run("peer", func(b *testing.B) {
		call(b, serve(b, openDir(b)+"/s", DefaultLimits()).socket, grpc.WithTransportCredentials(ClientCredentials(OwnOrRoot())))
	})
}
