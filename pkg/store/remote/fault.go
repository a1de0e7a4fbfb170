package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

var (
	// ErrUnauthenticated is wrapped when the server does not know the API key, or
	// no longer takes it.
	ErrUnauthenticated = errors.New("API key is not accepted")
	// ErrUntrusted is wrapped when whoever answers has not proved to be the server
	// that was logged in to, or offers less protection than this package insists
	// on. It is not tried again.
	ErrUntrusted = errors.New("not the server that was logged in to")
	// ErrMalformed is wrapped when the server has sent what no honest one sends.
	ErrMalformed = errors.New("the server's answer makes no sense")
	// ErrTooLarge is wrapped when more was asked for at once than the server gives
	// or this package takes.
	ErrTooLarge = errors.New("too much at once")
	// ErrNotFound is wrapped when there is no such API key.
	ErrNotFound = errors.New("not found")

	// errStale: what was read is no longer so.
	errStale  = errors.New("changed in the meantime")
	errStall  = errors.New("the server takes the call and does not answer")
	errClosed = errors.New("connection was closed")
)

// maxText bounds what is shown of a text from the server, in characters.
const maxText = 200

// printable makes one short line of a text that the server chose.
func printable(text string) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > maxText {
			b.WriteRune('…')
			break
		}
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// explain makes a typed error of what a call has failed with. Those that are
// store.ErrUnavailable may be tried again.
func (s *Store) explain(err error) error {
	var dial *dialError
	var shake *handshakeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &dial):
		return s.unavailable(printable(dial.Error()))
	case errors.As(err, &shake):
		return s.untrusted(shake.error)
	case errors.Is(err, errClosed):
		return fmt.Errorf("%s: %w", s.url, err)
	case errors.Is(err, errStall):
		return s.unavailable(err.Error())
	case errors.Is(err, ErrMalformed), errors.Is(err, ErrTooLarge):
		return err // of what has come
	case errors.Is(err, context.DeadlineExceeded):
		return s.unavailable("no connection in time")
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", s.url, err)
	}
	text := printable(st.Message())
	switch st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return s.unavailable(text)
	case codes.ResourceExhausted:
		// gRPC says this of messages that are longer than maxReply.
		if strings.HasPrefix(text, "grpc: received message") {
			return s.malformed("%s", text)
		}
		if isTooLarge(st) {
			return hint.Errorf("do it in parts", "%s: %w: %q", s.url, ErrTooLarge, text)
		}
		return s.unavailable(text)
	case codes.Aborted:
		return errStale
	case codes.Unauthenticated:
		return hint.Errorf("ov auth login --server "+s.url, "%s: %w: %q", s.url, ErrUnauthenticated, text)
	case codes.PermissionDenied:
		return hint.Errorf("see what your API key is for: ov auth status --server "+s.url, "%s: %w with this API key: %q", s.url, store.ErrDenied, text)
	case codes.NotFound:
		return fmt.Errorf("%s: %w: %q", s.url, ErrNotFound, text)
	case codes.Unimplemented:
		return hint.Errorf("is it an ov-server, and as new as this ov?", "%s: the server does not know this call: %q", s.url, text)
	case codes.Internal:
		if strings.HasPrefix(text, "grpc: ") { // of gRPC here, about what it has received
			return s.malformed("%s", text)
		}
	}
	return fmt.Errorf("%s: the server failed with %s: %q", s.url, st.Code(), text)
}

// isTooLarge reports whether the server says that it will never do this, rather
// than not now: with a google.rpc.ErrorInfo, whose first field is the reason. To
// link the package of that message would cost each start of ov.
func isTooLarge(st *status.Status) bool {
	for _, d := range st.Proto().GetDetails() {
		if strings.HasSuffix(d.TypeUrl, "/google.rpc.ErrorInfo") && strings.HasPrefix(string(d.Value), "\x0a\x09TOO_LARGE") {
			return true
		}
	}
	return false
}

// issuer names who says to have signed the certificate.
func issuer(err x509.UnknownAuthorityError) string {
	if err.Cert == nil {
		return "nobody"
	}
	return printable(err.Cert.Issuer.String())
}

func (s *Store) unavailable(why string) error {
	return hint.Errorf("try again, or see whether ov-server runs there and whether this machine's network is up",
		"%w: %s: %s", store.ErrUnavailable, s.url, why)
}

func (s *Store) malformed(format string, args ...any) error {
	return hint.Errorf("this server, or something on the way to it, is broken or lies",
		"%s: %w: %w", s.url, ErrMalformed, fmt.Errorf(format, args...))
}

// untrusted sorts out why TLS failed: a connection that broke may be tried
// again, anything else would only fail again.
func (s *Store) untrusted(err error) error {
	var timeout net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &timeout) && timeout.Timeout() {
		return s.unavailable("the connection broke before it was secured: " + printable(err.Error()))
	}
	const login = "if the server has a new CA, get it from whoever runs it, and: ov auth login --server "
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	text := printable(err.Error())
	switch {
	case errors.As(err, &authority):
		return hint.Errorf(login+s.url, "%s: %w: the server's certificate is not from the CA pinned at login, but from %q", s.url, ErrUntrusted, issuer(authority))
	case errors.As(err, &name):
		return hint.Errorf("use a name that is in its certificate, or have one made for this name",
			"%s: %w: the server's certificate is for another name: %s", s.url, ErrUntrusted, text)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return hint.Errorf("have the certificate renewed, or set this machine's clock",
			"%s: %w: the server's certificate is not valid at %s, by this machine's clock", s.url, ErrUntrusted, time.Now().UTC().Format(time.RFC3339))
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return hint.Errorf(login+s.url, "%s: %w: the server's certificate is not valid: %s", s.url, ErrUntrusted, text)
	case errors.As(err, &record):
		return hint.Errorf("is it an ov-server, and the right port?", "%s: %w: it does not speak TLS", s.url, ErrUntrusted)
	}
	return hint.Errorf("is it an ov-server, and the right port? something in between may end the TLS connection",
		"%s: %w: no TLS 1.3 connection with key exchange X25519MLKEM768 and HTTP/2: %s", s.url, ErrUntrusted, text)
}
