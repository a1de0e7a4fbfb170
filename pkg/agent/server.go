// Package agent is ov-agent: the daemon that holds an unlocked vault and serves
// it over a Unix socket, and the client that asks it.
//
// No secret crosses the socket in the clear, because gRPC's buffers cannot be
// wiped: see seal.go. Who may ask is decided in interceptor.go and
// permissions.go, from what package peer says of the caller.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

const (
	// maxMessage bounds one gRPC message either way, in bytes.
	maxMessage = 32 << 20
	// maxRequest bounds one message to the agent, in bytes. A stalled client
	// keeps the agent from forgetting so much of each of its streams.
	maxRequest = 256 << 10
	// maxStreams is how many requests a connection may have under way; a gRPC
	// client waits with more.
	maxStreams = 8
	// window is how much a client may send ahead of what is read, in bytes: for
	// each connection, and of that for each stream.
	window = 64 << 10
	// maxPut bounds what one Put may hold, in bytes.
	maxPut = 64 << 20
	// maxRequests is how many requests are served at a time.
	maxRequests = 256
)

// Server answers for one vault. It is locked until Unlock or UnlockKey.
type Server struct {
	vault     *vault.Vault
	vaultPath string
	far       Far // nil: the vault is a file
	context   vault.Ref
	version   string
	log       *slog.Logger
	trust     peer.Trust
	inflight  *peer.Inflight
	started   time.Time
	ttl, idle time.Duration
	stop      func() // asks the daemon to end

	timeout, admitWait time.Duration // the constants; shorter in tests

	requests atomic.Uint64
	puts     *puts
	sweep    *sweeper
	keeper   *keeper

	unlocking chan struct{} // holds one thing while an Argon2id runs

	mu         sync.Mutex
	held       *held
	because    string // why it is locked
	unlocked   time.Time
	used       time.Time  // when the last request came that counts
	discarding int        // sessions that requests still work with, though replaced
	discarded  *sync.Cond // told when there is one less
}

// held is an unlocked session and how many requests work with it.
type held struct {
	session *vault.Session
	hidden  bool
	users   sync.WaitGroup
}

// Config says what a Server serves.
type Config struct {
	Vault     *vault.Vault
	VaultPath string
	Far       Far           // the vault's store if it is on a server, else nil
	Context   vault.Ref     // where a request without an app and env goes
	TTL       time.Duration // lock so long after the unlock; 0: never
	Idle      time.Duration // lock so long after the last request; 0: never
	Version   string
	Log       *slog.Logger
	Stop      func() // called once an RPC asks the agent to end
}

// NewServer returns a locked server.
func NewServer(c Config) *Server {
	s := &Server{
		vault: c.Vault, vaultPath: printable(c.VaultPath), far: c.Far, context: c.Context, version: c.Version,
		log: c.Log, trust: peer.OwnOrRoot(), inflight: peer.NewInflight(peer.Halving(maxRequests)), puts: newPuts(),
		started: time.Now(), ttl: c.TTL, idle: c.Idle, stop: c.Stop,
		sweep: newSweeper(), keeper: newKeeper(), because: "nobody has unlocked it", unlocking: make(chan struct{}, 1),
		timeout: requestTimeout, admitWait: admitWait,
	}
	s.discarded = sync.NewCond(&s.mu)
	return s
}

// GRPC returns the gRPC server to serve with, bounded and guarded.
func (s *Server) GRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.Creds(peer.ServerCredentials()),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.StatsHandler(connections{}),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(window),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
	agentv1.RegisterAgentServer(g, service{Server: s})
	return g
}

// touch puts off the lock by --idle, unless its time has come.
func (s *Server) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timeUp() == "" {
		s.used = time.Now()
	}
}

// Unlock opens the vault with the master password, which the caller keeps.
func (s *Server) Unlock(ctx context.Context, password *kek.Locked) error {
	select {
	case s.unlocking <- struct{}{}:
		defer func() { <-s.unlocking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	session, err := s.vault.Unlock(ctx, password)
	if err != nil {
		return err
	}
	s.hold(session)
	return nil
}

// UnlockKey opens the vault with a machine key, which it takes.
func (s *Server) UnlockKey(ctx context.Context, key *kek.Locked) error {
	session, err := s.vault.UnlockKey(ctx, key)
	if err != nil {
		return err
	}
	s.hold(session)
	return nil
}

func (s *Server) hold(session *vault.Session) {
	s.mu.Lock()
	if s.held != nil {
		s.discard(s.held)
	}
	now := time.Now()
	s.held = &held{session: session, hidden: session.Hidden()}
	s.because, s.unlocked, s.used = "", now, now
	s.mu.Unlock()
	s.log.Info("unlocked")
	s.sweep.soon()
}

// Lock forgets the key and returns when no request works with it any more.
func (s *Server) Lock(because string) {
	s.mu.Lock()
	was := s.held != nil
	if was {
		s.forget(because)
	}
	for s.discarding > 0 {
		s.discarded.Wait()
	}
	s.mu.Unlock()
	if was {
		s.log.Info("locked", "because", because)
		s.sweep.now()
	}
}

// forget locks. The caller holds mu, and there is a session.
func (s *Server) forget(because string) {
	s.keeper.stop()
	s.discard(s.held)
	s.held, s.because, s.unlocked = nil, because, time.Time{}
}

// discard wipes h once no request works with it. The caller holds mu and takes h
// from where new requests would find it.
func (s *Server) discard(h *held) {
	s.discarding++
	go func() {
		h.users.Wait()
		h.session.Destroy()
		s.mu.Lock()
		s.discarding--
		s.discarded.Broadcast()
		s.mu.Unlock()
		s.sweep.soon()
	}()
}

// use calls fn with the unlocked session. It fails with ErrLocked.
func (s *Server) use(fn func(*vault.Session) error) error {
	defer s.sweep.soon()
	for {
		h, err := s.session()
		if err != nil {
			return err
		}
		err = func() error {
			defer h.users.Done()
			return fn(h.session)
		}()
		if !errors.Is(err, vault.ErrDeadKey) || !s.replaced(h, err) {
			return err
		}
	}
}

// session returns what is unlocked. The caller calls users.Done.
func (s *Server) session() (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if because := s.why(); because != "" {
		return nil, hint.Errorf("ov agent unlock", "%w: %s", ErrLocked, because)
	}
	s.held.users.Add(1)
	return s.held, nil
}

// replaced reports whether another session has taken the place of h, whose key
// was found dead. If none has, the key is worth nothing any more and forgotten.
func (s *Server) replaced(h *held, dead error) bool {
	s.mu.Lock()
	same := s.held == h
	if same {
		s.forget(dead.Error())
	}
	other := s.held != nil
	s.mu.Unlock()
	if same {
		s.log.Warn("locked", "because", dead.Error())
	}
	return other
}

// Run locks by the clock, and keeps what a server has said, until ctx ends.
func (s *Server) Run(ctx context.Context) {
	if s.far != nil {
		var keeping sync.WaitGroup
		defer keeping.Wait()
		keeping.Go(func() { s.keep(ctx) })
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.lockInTime()
		}
	}
}

func (s *Server) lockInTime() {
	s.mu.Lock()
	because := s.timeUp()
	if because != "" {
		s.forget(because)
	}
	s.mu.Unlock()
	if because != "" {
		s.log.Info("locked", "because", because)
	}
}

// why returns why the server is locked, or "" when it is not. The caller holds mu.
func (s *Server) why() string {
	if s.held == nil {
		return s.because
	}
	return s.timeUp()
}

// timeUp returns why it is time to lock, or "". The caller holds mu.
func (s *Server) timeUp() string {
	switch {
	case s.held == nil:
	case s.ttl > 0 && since(s.unlocked) >= s.ttl:
		return fmt.Sprintf("it was unlocked for %v (--ttl)", s.ttl)
	case s.idle > 0 && since(s.used) >= s.idle:
		return fmt.Sprintf("it was not used for %v (--idle)", s.idle)
	}
	return ""
}

// since returns how long ago t was by the clock that says more: the monotonic
// one stands still while the machine sleeps, the other can be set back.
func since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// Healthy returns once the server's state can be looked at: what the watchdog
// asks before it tells systemd that all is well.
func (s *Server) Healthy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return true
}

// connections keeps a seal key for each connection that asks for one.
type connections struct{}

type connectionKey struct{}

// connection is the state of one connection.
type connection struct {
	mu  sync.Mutex
	key *sealKey
}

// sealKey returns the connection's key, making it at the first call.
func (c *connection) sealKey() (*sealKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key == nil {
		k, err := newSealKey()
		if err != nil {
			return nil, err
		}
		c.key = k
	}
	return c.key, nil
}

func connectionOf(ctx context.Context) (*connection, error) {
	c, ok := ctx.Value(connectionKey{}).(*connection)
	if !ok {
		return nil, errors.New("the request has no connection")
	}
	return c, nil
}

func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionKey{}, new(connection))
}
func (connections) HandleConn(context.Context, stats.ConnStats)                     {}
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (connections) HandleRPC(context.Context, stats.RPCStats)                       {}

// unseal opens what the caller sealed to its connection's key. The plaintext is
// in memory that kek.Do erases once nothing refers to it; the caller clears it.
func (s *Server) unseal(ctx context.Context, method string, sealed []byte) (plain []byte, err error) {
	c, err := connectionOf(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	k := c.key
	c.mu.Unlock()
	if k == nil {
		return nil, fmt.Errorf("%w: a sealed message before Hello", vault.ErrInvalid)
	}
	defer s.sweep.soon()
	kek.Do(func() { plain, err = k.open(method, sealed) })
	if err != nil {
		err = fmt.Errorf("%w: %w", vault.ErrInvalid, err)
	}
	return plain, err
}

// ref returns the env that a request is for.
func (s *Server) ref(r *agentv1.Ref) vault.Ref {
	if r.GetApp() == "" && r.GetEnv() == "" {
		return s.context
	}
	return vault.Ref{App: r.GetApp(), Env: r.GetEnv()}
}

// seal answers with fields under HPKE. Call it outside kek.Do when the fields
// are no secret values.
func seal(public []byte, method string, fields ...[]byte) (resp *agentv1.SealedResponse, err error) {
	kek.Do(func() { resp, err = sealInside(public, method, fields...) })
	return resp, err
}

// sealInside is seal for a caller that is inside kek.Do.
func sealInside(public []byte, method string, fields ...[]byte) (*agentv1.SealedResponse, error) {
	plain := envelope.Fields(fields...)
	defer clear(plain)
	if err := checkSize(len(plain)); err != nil {
		return nil, err
	}
	sealed, err := sealTo(public, method, plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vault.ErrInvalid, err)
	}
	return &agentv1.SealedResponse{Sealed: sealed}, nil
}

// checkSize refuses an answer that would not fit into a message.
func checkSize(n int) error {
	const most = maxMessage - 1024
	if n <= most {
		return nil
	}
	return hint.Errorf("do it in parts, by name", "%w: an answer of %d bytes, the bound is %d", ErrTooLarge, n, most)
}
