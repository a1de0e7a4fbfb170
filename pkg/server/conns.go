package server

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxConns bounds connections; fewer where RLIMIT_NOFILE does not leave a
	// descriptor for each besides reservedFiles. One address has half of them.
	maxConns      = 32 << 10
	reservedFiles = 512
	// connGrace is how long a connection keeps its place although no call with a
	// right API key has come over it, and another wants the place.
	connGrace = 3 * time.Second
)

// connLimits returns how many connections there may be, in total and from one
// address.
func connLimits() (total, each int) {
	total = maxConns
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur < maxConns+reservedFiles {
		total = max(int(files.Cur)/2, int(files.Cur)-reservedFiles)
	}
	return total, max(total/2, 1)
}

// Limit bounds the connections of a listener, in total and for each address (of
// IPv6: each /64). When there are too many, a new one takes the place of one that
// serves no call: of those over which no right API key has come, the oldest; or
// of the others, the one that was used longest ago. So clients that connect and
// stall keep nobody out. It goes below TLS: tls.NewListener(s.Limit(l), config),
// or s.HTTP(h).ServeTLS(s.Limit(l), …).
func (s *Server) Limit(l net.Listener) net.Listener {
	total, each := connLimits()
	return &limiter{Listener: l, total: total, each: each, grace: connGrace, conns: map[*conn]bool{}, count: map[netip.Prefix]int{}}
}

type limiter struct {
	net.Listener
	total, each int
	grace       time.Duration

	mu    sync.Mutex
	conns map[*conn]bool
	count map[netip.Prefix]int
}

// conn is a connection that counts.
type conn struct {
	net.Conn
	limiter *limiter
	address netip.Prefix
	known   atomic.Bool  // a right API key has come over it
	last    atomic.Int64 // when it was accepted, or last used, in Unix nanoseconds
	serving atomic.Int32 // calls
}

func (l *limiter) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, limiter: l, address: addressOf(raw.RemoteAddr().String())}
		c.last.Store(time.Now().UnixNano())
		if l.add(c) {
			return c, nil
		}
		_ = raw.Close()
	}
}

// add counts c, and reports whether there was a place for it.
func (l *limiter) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone *conn
	switch {
	case l.count[c.address] >= l.each:
		gone = l.useless(func(other *conn) bool { return other.address == c.address })
	case len(l.conns) >= l.total:
		gone = l.useless(func(*conn) bool { return true })
	default:
		l.conns[c] = true
		l.count[c.address]++
		return true
	}
	if gone == nil {
		return false
	}
	l.drop(gone)
	go func() { _ = gone.Conn.Close() }() // may wait to send what is left
	l.conns[c] = true
	l.count[c.address]++
	return true
}

// useless returns the connection of a group whose place another may take, or
// nil. The caller holds l.mu.
func (l *limiter) useless(in func(*conn) bool) (found *conn) {
	before := func(a, b *conn) bool {
		if a.known.Load() != b.known.Load() {
			return b.known.Load()
		}
		return a.last.Load() < b.last.Load()
	}
	young := time.Now().Add(-l.grace).UnixNano()
	for c := range l.conns {
		if in(c) && c.serving.Load() == 0 && c.last.Load() < young && (found == nil || before(c, found)) {
			found = c
		}
	}
	return found
}

// drop stops counting c, if it is counted. The caller holds l.mu.
func (l *limiter) drop(c *conn) {
	if !l.conns[c] {
		return
	}
	delete(l.conns, c)
	if l.count[c.address]--; l.count[c.address] == 0 {
		delete(l.count, c.address)
	}
}

func (c *conn) Close() error {
	c.limiter.mu.Lock()
	c.limiter.drop(c)
	c.limiter.mu.Unlock()
	return c.Conn.Close()
}

type connKey struct{}

// connContext keeps the connection for the calls that come over it.
func connContext(ctx context.Context, c net.Conn) context.Context {
	for {
		if counted, ok := c.(*conn); ok {
			return context.WithValue(ctx, connKey{}, counted)
		}
		below, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return ctx
		}
		c = below.NetConn()
	}
}

// used says that a right API key has come over the connection of a request.
func used(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		c.known.Store(true)
		c.last.Store(time.Now().UnixNano())
	}
}

// serve keeps a request's connection until done.
func serve(ctx context.Context) (done func()) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return func() {}
	}
	c.serving.Add(1)
	return func() {
		c.last.Store(time.Now().UnixNano())
		c.serving.Add(-1)
	}
}
