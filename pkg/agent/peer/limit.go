package peer

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTooMany says that a caller, or those it shares a limit with, have all that
// they may have at a time.
var ErrTooMany = errors.New("too many at a time")

// Limits bounds how many of a thing there may be at a time: in total, for each
// uid, for each systemd unit of a uid, for each executable in such a unit, and
// for each process of such an executable. Each level nests in the one before,
// so whoever fills one, by starting new processes for instance, leaves room to
// those beside it.
type Limits struct {
	Total, UID, Unit, Exe, PID int
}

// Halving returns limits of which each is half of the level above it, and at
// least one: the most that any one level may take leaves as much to its like.
func Halving(total int) Limits {
	half := func(n int) int { return max(n/2, 1) }
	l := Limits{Total: max(total, 1)}
	l.UID = half(l.Total)
	l.Unit = half(l.UID)
	l.Exe = half(l.Unit)
	l.PID = half(l.Exe)
	return l
}

// DefaultLimits returns the limits for connections: 1,024 in total, 512 for a
// uid, 256 for a unit, 128 for an executable and 64 for a process, or less
// where RLIMIT_NOFILE does not leave two descriptors for each besides 64 for
// the agent's own files.
func DefaultLimits() Limits {
	total := 1024
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur < 64+2*1024 {
		total = (int(files.Cur) - 64) / 2
	}
	return Halving(total)
}

// levelUnit is the first level that the caller's ids do not tell.
const levelUnit = 2

// key names one counted group. Only the fields of its level are set.
type key struct {
	level     int
	uid       uint32
	unit, exe string
	pid       int32
}

// keys are the groups that a caller counts in, the widest first.
type keys [5]key

func keysOf(i *Info) keys {
	return keys{
		{level: 0},
		{level: 1, uid: i.UID},
		{level: levelUnit, uid: i.UID, unit: i.Unit},
		{level: 3, uid: i.UID, unit: i.Unit, exe: i.Exe},
		{level: 4, uid: i.UID, unit: i.Unit, exe: i.Exe, pid: i.PID},
	}
}

// tally counts. Its owner holds a lock.
type tally struct {
	max [5]int
	n   map[key]int
}

func newTally(l Limits) tally {
	return tally{[5]int{l.Total, l.UID, l.Unit, l.Exe, l.PID}, map[key]int{}}
}

// full returns the narrowest of the groups, in the order of keys, that can take
// no more. As they nest, one place freed there is a place in every wider one.
func (t *tally) full(k []key) (level int, ok bool) {
	for level := len(k) - 1; level >= 0; level-- {
		if t.n[k[level]] >= t.max[level] {
			return level, true
		}
	}
	return 0, false
}

func (t *tally) add(k *keys) {
	for _, key := range k {
		t.n[key]++
	}
}

func (t *tally) remove(k *keys) {
	for _, key := range k {
		if t.n[key]--; t.n[key] == 0 {
			delete(t.n, key)
		}
	}
}

// tooMany says which limit was met.
func (t *tally) tooMany(what string, level int, i *Info) error {
	whose := [...]string{"in total", "of its account", "of its unit", "of its executable", "of this process"}[level]
	return fmt.Errorf("%s: %w: the limit is %d %s %s", i, ErrTooMany, t.max[level], what, whose)
}

// Grace is how long a connection keeps its place although nothing crosses it,
// no request of it is served, and another wants the place.
const Grace = time.Second

// use says whether a connection is of use to its caller.
type use struct {
	last    atomic.Int64 // when it last carried a byte or a request of it ended, by clock
	serving atomic.Int32 // requests that an Inflight counts
}

func (u *use) touch() { u.last.Store(clock()) }

// Limit returns a listener that accepts only callers that are one of trust, and
// only as many connections as limits allow. The rest is closed at once, before
// a byte is read. When a group is full, a new connection takes the place of the
// one in it over which nothing has passed for longest, if that is at least
// Grace and no request of it is served: clients that connect and stall keep
// nobody out. What is served is what an Inflight counts. Its limits should be
// lower than these, or requests that stall do keep others out.
//
// refused, if not nil, is told about each connection that is closed and why
// (ErrStranger, ErrTooMany, or that the caller could not be identified; info is
// then nil). Where the caller's account is reason enough, info has its ids and
// nothing else. A connection that the caller has closed is not told of. refused
// is called from Accept and must not block.
func Limit(l net.Listener, trust Trust, limits Limits, refused func(info *Info, why error)) net.Listener {
	if refused == nil {
		refused = func(*Info, error) {}
	}
	return &limiter{Listener: l, trust: trust, refused: refused, tally: newTally(limits), conns: map[*conn]bool{}}
}

type limiter struct {
	net.Listener
	trust   Trust
	refused func(*Info, error)

	mu    sync.Mutex
	tally tally
	conns map[*conn]bool // what is counted in tally
}

func (l *limiter) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.admit(raw); c != nil {
			return c, nil
		}
	}
}

// admit returns the connection if it may stay, or closes it and returns nil.
func (l *limiter) admit(raw net.Conn) *conn {
	uc, ok := raw.(*net.UnixConn)
	if !ok {
		_ = raw.Close()
		l.refused(nil, fmt.Errorf("cannot tell who connected over %T: not a Unix socket", raw))
		return nil
	}
	// Connections wait in line for this: what costs least is asked first.
	if hungUp(uc) {
		_ = raw.Close()
		return nil
	}
	info, err := credentialsOf(uc)
	if err != nil {
		_ = raw.Close()
		l.refused(nil, err)
		return nil
	}
	if err := l.mayAdd(info); err != nil {
		_ = raw.Close()
		l.refused(info, err)
		return nil
	}
	if err := info.identify(uc); err != nil {
		_ = raw.Close()
		l.refused(nil, err)
		return nil
	}
	c := &conn{Conn: uc, info: info, limit: l, keys: keysOf(info)}
	info.use.touch()
	if err := l.add(c); err != nil {
		_ = c.Close()
		l.refused(info, err)
		return nil
	}
	return c
}

// hungUp reports whether the other end of c is closed already, whatever was
// sent over it before: nobody is there to be served.
func hungUp(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var fds [1]unix.PollFd
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, _ = unix.Poll(fds[:], 0)
	})
	return err == nil && fds[0].Revents&unix.POLLHUP != 0
}

// mayAdd returns what is against a connection as far as the caller's account
// tells: an error of it would be one of add.
func (l *limiter) mayAdd(i *Info) error {
	if !l.trust.Has(i.UID) {
		return fmt.Errorf("%s: %w", i, ErrStranger)
	}
	k := keysOf(i)
	l.mu.Lock()
	defer l.mu.Unlock()
	if level, full := l.tally.full(k[:levelUnit]); full && l.silent(k[level]) == nil {
		return l.tally.tooMany("connections", level, i)
	}
	return nil
}

func (l *limiter) add(c *conn) error {
	l.mu.Lock()
	var silent *conn
	if level, full := l.tally.full(c.keys[:]); full {
		if silent = l.silent(c.keys[level]); silent == nil {
			l.mu.Unlock()
			return l.tally.tooMany("connections", level, c.info)
		}
		l.drop(silent)
	}
	l.conns[c] = true
	l.tally.add(&c.keys)
	l.mu.Unlock()
	if silent != nil {
		_ = silent.Close() // gRPC, which reads from it, does the rest
	}
	return nil
}

// silent returns the connection of a group whose place another may take, or
// nil. The caller holds l.mu.
func (l *limiter) silent(group key) (silent *conn) {
	for c := range l.conns {
		if c.keys[group.level] == group && c.info.use.serving.Load() == 0 &&
			(silent == nil || c.info.use.last.Load() < silent.info.use.last.Load()) {
			silent = c
		}
	}
	if silent != nil && clock()-silent.info.use.last.Load() < int64(Grace) {
		return nil
	}
	return silent
}

func (l *limiter) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(c)
}

// drop stops counting c, if it is counted. The caller holds l.mu.
func (l *limiter) drop(c *conn) {
	if l.conns[c] {
		delete(l.conns, c)
		l.tally.remove(&c.keys)
	}
}

// Inflight bounds the requests that are being served, by the same groups.
type Inflight struct {
	mu    sync.Mutex
	tally tally
}

// NewInflight returns an Inflight with the given limits.
func NewInflight(limits Limits) *Inflight {
	return &Inflight{tally: newTally(limits)}
}

// Acquire counts one request of the caller until release is called, which may
// be done twice; until then Limit spares the connection that i came from. It
// does not wait: the error is ErrTooMany.
func (f *Inflight) Acquire(i *Info) (release func(), err error) {
	k := keysOf(i)
	f.mu.Lock()
	defer f.mu.Unlock()
	if level, full := f.tally.full(k[:]); full {
		return nil, f.tally.tooMany("requests", level, i)
	}
	f.tally.add(&k)
	i.use.serving.Add(1)
	return sync.OnceFunc(func() {
		i.use.touch() // its answer is on the way
		i.use.serving.Add(-1)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.tally.remove(&k)
	}), nil
}

var epoch = time.Now()

// clock returns nanoseconds since the program's start, by the monotonic clock.
func clock() int64 { return int64(time.Since(epoch)) }
