// Package server is ov-server: ciphertext records for many accounts, over gRPC,
// gRPC-Web and plain HTTP with JSON.
//
// Nothing in it could decrypt. What it decides is who may read and write which
// records: every call comes in through guard.go, permissions.go says what it
// takes, and scope.go which records an API key reaches.
//
// Its limits are by account once a call has shown a right API key, and by address
// before: an account that asks too much, and whoever has no key, harm only
// themselves. Behind a proxy all clients have one address, so a proxy passes on
// TCP (where the connection has the client's address) or is the limit itself.
package server

import (
	"context"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// Options says what a Server serves.
type Options struct {
	Accounts store.Accounts
	Log      *slog.Logger
	Version  string
	// Interceptors see the calls that were let in: for telemetry. They do not see
	// API keys.
	Interceptors []connect.Interceptor
	// Refused, if not nil, is told of each call that was not let in: the
	// procedure, "" if there is no such, and why. It must not block.
	Refused func(procedure string, why Refusal)
	// Reflection serves the API's description (grpcreflect).
	Reflection bool
	// Spool is a directory for answers that are too large for memory, "" for the
	// system's. They are ciphertext, in files without names.
	Spool string
}

// Server answers calls about accounts.
type Server struct {
	accounts   store.Accounts
	log        *slog.Logger
	version    string
	options    []connect.HandlerOption
	onRefused  func(string, Refusal)
	reflection bool
	spoolDir   string
	errors     *connect.ErrorWriter
	limits     limits

	keys     *keyring
	usage    *usage
	commits  accountSet // to which something was written
	inflight *shares
	waiting  *shares
	memory   *shares
	spool    *shares
	health   *health

	stop    context.CancelFunc
	stopped chan struct{}
}

// New returns a server, which works in the background until Close.
func New(o Options) *Server { return newServer(o, defaultLimits()) }

func newServer(o Options, l limits) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{
		accounts: o.Accounts, log: o.Log, version: o.Version, onRefused: o.Refused,
		reflection: o.Reflection, spoolDir: o.Spool, errors: connect.NewErrorWriter(), limits: l,
		keys: newKeyring(o.Accounts, l), usage: newUsage(),
		inflight: newShares(l.requests, l.requestsEach), waiting: newShares(l.waiting, l.waitingEach),
		memory: newShares(l.memory, l.memoryEach), spool: newShares(l.spool, l.spoolEach),
		health: &health{accounts: o.Accounts},
		options: []connect.HandlerOption{
			connect.WithReadMaxBytes(maxMessage),
			// Ciphertext does not get smaller, and what is not there is no bomb.
			connect.WithCompression("gzip", nil, nil),
		},
		stop: stop, stopped: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(o.Interceptors) > 0 {
		s.options = append(s.options, connect.WithInterceptors(o.Interceptors...))
	}
	go func() {
		defer close(s.stopped)
		s.upkeep(ctx)
	}()
	return s
}

// Handler serves clients: the Vault service, health (grpc.health.v1), reflection
// if asked for, and GET /livez and /readyz.
func (s *Server) Handler() http.Handler {
	mux := s.open()
	mux.Handle(vaultv1connect.NewVaultHandler(vaultService{s}, s.options...))
	if s.reflection {
		about := grpcreflect.NewStaticReflector(vaultv1connect.VaultName, grpchealth.HealthV1ServiceName)
		mux.Handle(grpcreflect.NewHandlerV1(about, s.options...))
		mux.Handle(grpcreflect.NewHandlerV1Alpha(about, s.options...))
	}
	return s.guard(false, mux)
}

// Operator serves whoever runs the server, and asks for no API key: it is for a
// Unix socket that only they can reach.
func (s *Server) Operator() http.Handler {
	mux := s.open()
	mux.Handle(vaultv1connect.NewOperatorHandler(operatorService{s}, s.options...))
	return s.guard(true, mux)
}

// open has what tells of no account.
func (s *Server) open() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+livez, s.health.live)
	mux.HandleFunc("GET "+readyz, s.health.readiness)
	mux.Handle(grpchealth.NewHandler(s.health, s.options...))
	return mux
}

// HTTP returns an HTTP server with all timeouts and limits of a connection. Its
// listener is one of Limit.
func (s *Server) HTTP(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: s.limits.headers,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // strangers' faults
		ConnContext:       connContext,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          64,
			MaxDecoderHeaderTableSize:     4 << 10,
			MaxReadFrameSize:              64 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     512 << 10,
			WriteByteTimeout:              s.limits.send,
		},
	}
}

// Drain makes the server say that it is not ready, so that no new clients are
// sent to it. It serves those that come.
func (s *Server) Drain() { s.health.draining.Store(true) }

// Close ends the work in the background and writes down when API keys were last
// used. The HTTP servers have been shut down before, and the storage is closed
// after.
func (s *Server) Close(ctx context.Context) error {
	s.Drain()
	s.stop()
	select {
	case <-s.stopped:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.flush(ctx)
}
