package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/opaquevault/ov/pkg/store"
)

// errorDomain is the domain of the google.rpc.ErrorInfo in an error's details.
const errorDomain = "ov.vault.v1"

// Reasons stand in an error's google.rpc.ErrorInfo where a client needs to know
// more than the code. Where trying again helps, there is a google.rpc.RetryInfo
// too, and the header Retry-After.
const (
	ReasonUnknownKey = "UNKNOWN_KEY" // UNAUTHENTICATED: no API key, or none that is right
	ReasonRevokedKey = "REVOKED_KEY" // UNAUTHENTICATED, to who has the key
	ReasonExpiredKey = "EXPIRED_KEY" // UNAUTHENTICATED, to who has the key
	ReasonScope      = "SCOPE"       // PERMISSION_DENIED: more than the API key may
	ReasonTooLarge   = "TOO_LARGE"   // RESOURCE_EXHAUSTED: never so; for Read: use Scan
	ReasonBusy       = "BUSY"        // RESOURCE_EXHAUSTED: not now; try again
	ReasonFailedKeys = "FAILED_KEYS" // RESOURCE_EXHAUSTED: too many wrong keys from this address
	ReasonChanged    = "CHANGED"     // ABORTED: what was read is no longer so; start over
)

// fail is an error for a client, with a reason if it is not "".
func fail(code connect.Code, reason, format string, args ...any) *connect.Error {
	err := connect.NewError(code, fmt.Errorf(format, args...))
	if reason != "" {
		// Marshalling two short strings does not fail.
		if detail, e := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}); e == nil {
			err.AddDetail(detail)
		}
	}
	return err
}

func invalid(format string, args ...any) *connect.Error {
	return fail(connect.CodeInvalidArgument, "", format, args...)
}

func denied(format string, args ...any) *connect.Error {
	return fail(connect.CodePermissionDenied, ReasonScope, format, args...)
}

// later is an error that says when to try again.
func later(code connect.Code, reason string, after time.Duration, format string, args ...any) *connect.Error {
	err := fail(code, reason, format, args...)
	if detail, e := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); e == nil {
		err.AddDetail(detail)
	}
	err.Meta().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	return err
}

func busy(text string) *connect.Error {
	return later(connect.CodeResourceExhausted, ReasonBusy, 2*time.Second, "%s", text)
}

// storageError makes an error for a client of one of the storage. What the client
// need not know is logged.
func (s *Server) storageError(ctx context.Context, err error) error {
	var already *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &already):
		return already
	case errors.Is(err, errMuch):
		return tooLarge("more than %d bytes to compare with what is expected", maxVerify)
	case errors.Is(ctx.Err(), context.Canceled):
		return fail(connect.CodeCanceled, "", "the call was canceled")
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fail(connect.CodeDeadlineExceeded, "", "it took too long")
	case errors.Is(err, store.ErrNoAccount), errors.Is(err, store.ErrNoVault):
		return fail(connect.CodeNotFound, "", "no such account")
	case errors.Is(err, store.ErrAccountExists):
		return fail(connect.CodeAlreadyExists, "", "the account exists already")
	case errors.Is(err, store.ErrBusy), errors.Is(err, store.ErrUnavailable):
		s.log.Warn("storage", "err", err)
		return later(connect.CodeUnavailable, "", time.Second, "the server's storage is not available")
	}
	s.log.Error("storage", "err", err)
	return fail(connect.CodeInternal, "", "the server failed: see its log")
}
