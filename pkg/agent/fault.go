package agent

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

var (
	// ErrLocked says that the agent runs and holds no key.
	ErrLocked = errors.New("the agent is locked")
	// ErrLimit says that the caller's user or program asks for too much at once.
	ErrLimit = errors.New("too many requests at once")
	// ErrDenied says that the caller may not do this.
	ErrDenied = errors.New("not permitted")
	// ErrTooLarge says that a request or its answer is above a bound.
	ErrTooLarge = errors.New("too large")
)

// faults are the errors that keep their identity across the socket.
var faults = []struct {
	kind string
	err  error
	code codes.Code
}{
	{"locked", ErrLocked, codes.FailedPrecondition},
	{"limit", ErrLimit, codes.ResourceExhausted},
	{"denied", ErrDenied, codes.PermissionDenied},
	{"too-large", ErrTooLarge, codes.ResourceExhausted},
	{"wrong-password", vault.ErrWrongPassword, codes.Unauthenticated},
	{"not-found", vault.ErrNotFound, codes.NotFound},
	{"exists", vault.ErrExists, codes.AlreadyExists},
	{"conflict", vault.ErrConflict, codes.Aborted},
	{"dead-key", vault.ErrDeadKey, codes.FailedPrecondition},
	{"unknown-key", vault.ErrUnknownKey, codes.Unauthenticated},
	{"closed", vault.ErrClosed, codes.FailedPrecondition},
	{"scope", vault.ErrScope, codes.PermissionDenied},
	{"damaged", vault.ErrDamaged, codes.DataLoss},
	{"withheld", vault.ErrWithheld, codes.DataLoss},
	{"rollback", vault.ErrRollback, codes.DataLoss},
	{"invalid", vault.ErrInvalid, codes.InvalidArgument},
	{"no-vault", store.ErrNoVault, codes.FailedPrecondition},
	{"busy", store.ErrBusy, codes.Unavailable},
	{"damaged-file", store.ErrDamaged, codes.DataLoss},
	{"server-denied", store.ErrDenied, codes.PermissionDenied},
	{"server-away", store.ErrUnavailable, codes.Unavailable},
}

// maxFault bounds the text of an error that crosses the socket, in bytes.
const maxFault = 8 << 10

// toStatus turns an error into what crosses the socket: its text, its hint and
// its identity.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code, kind := codes.Internal, ""
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	for _, f := range faults {
		if errors.Is(err, f.err) {
			code, kind = f.code, f.kind
			break
		}
	}
	text := printable(err.Error())
	st, derr := status.New(code, text).WithDetails(&agentv1.Fault{Kind: kind, Hint: printable(hint.Of(err))})
	if derr != nil {
		return status.Error(code, text)
	}
	return st.Err()
}

// printable makes of a text what protobuf can carry: UTF-8, which a path need
// not be, and bounded.
func printable(text string) string {
	if len(text) > maxFault {
		text = strings.ToValidUTF8(text[:maxFault], "") + " …"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// fault is an error that came from the agent.
type fault struct {
	text string
	is   error
}

func (f *fault) Error() string        { return f.text }
func (f *fault) Is(target error) bool { return f.is != nil && f.is == target }

// fromStatus is the inverse of toStatus.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, detail := range st.Details() {
		d, ok := detail.(*agentv1.Fault)
		if !ok {
			continue
		}
		f := &fault{text: st.Message(), is: ended(st.Code())}
		for _, known := range faults {
			if known.kind == d.Kind {
				f.is = known.err
			}
		}
		if d.Hint == "" {
			return f
		}
		return hint.Wrap(f, d.Hint)
	}
	// What gRPC says by itself.
	f := &fault{text: "the agent did not answer: " + st.Message(), is: ended(st.Code())}
	switch st.Code() {
	case codes.ResourceExhausted:
		f.text, f.is = ErrTooLarge.Error()+": "+st.Message(), ErrTooLarge
	case codes.Unavailable:
		return hint.Wrap(f, "see how it is: ov agent status")
	}
	return f
}

// ended returns what a context says that ended for the reason of the code.
func ended(code codes.Code) error {
	switch code {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	return nil
}
