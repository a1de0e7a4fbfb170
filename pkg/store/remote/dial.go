package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// dialTimeout bounds one try to connect, TLS included.
	dialTimeout = 5 * time.Second
	// While calls are under way, a connection on which nothing comes for pingAfter
	// is asked for a sign of life; on Linux what was sent must also be acknowledged
	// within pingTimeout (TCP_USER_TIMEOUT).
	pingAfter   = 10 * time.Second // the least that gRPC allows
	pingTimeout = 5 * time.Second
	// maxReply bounds a message from the server: a record of store.MaxValue and
	// more. maxHeaders bounds the rest, texts of errors above all.
	maxReply   = 4 << 20
	maxHeaders = 16 << 10
)

// newConn prepares the connection. It reads no variable of the environment and
// no service config, and resolves no name before it dials.
func (s *Store) newConn(host string, roots *x509.CertPool, agent string) (*grpc.ClientConn, error) {
	config := &tls.Config{
		RootCAs:          roots,
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
	}
	return grpc.NewClient("passthrough:///"+host,
		grpc.WithTransportCredentials(&handshake{credentials.NewTLS(config), s.failed, s.token}),
		grpc.WithPerRPCCredentials(bearer{"authorization": string(s.token.mark)}),
		grpc.WithContextDialer(s.dial), // this also means: no proxy
		grpc.WithConnectParams(grpc.ConnectParams{
			// When to try again is decided in call. This is for when nobody calls.
			Backoff:           backoff.Config{BaseDelay: dialTimeout, Multiplier: 2, Jitter: 0.2, MaxDelay: time.Minute},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithDisableHealthCheck(),
		grpc.WithUserAgent(agent),
	)
}

// bearer is the API key's mark, in the form in which gRPC wants it: see token.
type bearer map[string]string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return b, nil
}
func (b bearer) RequireTransportSecurity() bool { return true }

func (s *Store) dial(ctx context.Context, host string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		s.failed(&dialError{err})
		return nil, err
	}
	s.link.set(c)
	return c, nil
}

// handshake is TLS that says why it failed. gRPC would make a text of it, and
// one cannot tell from that whether it is worth to try again.
type handshake struct {
	credentials.TransportCredentials
	failed func(error)
	token  *token
}

func (h *handshake) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, c)
	if err != nil {
		h.failed(&handshakeError{err})
		return nil, nil, err
	}
	return newMarked(conn, h.token), info, nil
}

func (h *handshake) Clone() credentials.TransportCredentials {
	return &handshake{h.TransportCredentials.Clone(), h.failed, h.token}
}

// dialError and handshakeError say where on the way to a connection it failed.
type (
	dialError      struct{ error }
	handshakeError struct{ error }
)

func (e *dialError) Unwrap() error      { return e.error }
func (e *handshakeError) Unwrap() error { return e.error }

// failed tells all who wait for a connection that there is none, and why.
func (s *Store) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for tell := range s.waiting {
		(*tell)(err)
	}
}

// connect waits until there is a connection, or one try to make it has failed.
func (s *Store) connect(ctx context.Context) error {
	if s.conn.GetState() == connectivity.Ready {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tell := (func(error))(cancel)
	s.mu.Lock()
	s.waiting[&tell] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, &tell)
		s.mu.Unlock()
	}()
	for {
		state := s.conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return errClosed
		case connectivity.Idle:
			s.conn.Connect()
		case connectivity.TransientFailure:
			s.conn.ResetConnectBackoff()
		}
		if !s.conn.WaitForStateChange(ctx, state) {
			return context.Cause(ctx)
		}
	}
}
