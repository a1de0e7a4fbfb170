package agent

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/hint"
)

// requestTimeout bounds one request. Waiting for a vault file that others hold
// (bolt.Wait) is the longest part.
const requestTimeout = 60 * time.Second

// unary is the one way into every handler: who calls, may they, is it too much,
// then the handler, then whether the caller is still there.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	err = s.guard(ctx, info.FullMethod, func(ctx context.Context) (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.guard(stream.Context(), info.FullMethod, func(ctx context.Context) error {
		return handler(srv, &boundedStream{stream, ctx})
	})
}

// boundedStream gives a stream's handler the context of guard.
type boundedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (b *boundedStream) Context() context.Context { return b.ctx }

func (s *Server) guard(ctx context.Context, method string, handle func(context.Context) error) (err error) {
	start := time.Now()
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return toStatus(fmt.Errorf("%w: the connection has no caller", ErrDenied))
	}
	defer func() {
		if r := recover(); r != nil {
			// The panic's value may hold what it should not: say where, not what.
			s.log.Error("panic", "method", method, "type", fmt.Sprintf("%T", r), "at", panicSite())
			err = toStatus(fmt.Errorf("the agent failed in %s: see its log", method))
		}
		s.log.Debug("request", "method", method, "uid", caller.UID, "pid", caller.PID,
			"exe", caller.Exe, "unit", caller.Unit, "failed", err != nil, "took", time.Since(start))
	}()
	r, err := authorize(s.trust, caller, method)
	if err != nil {
		return toStatus(err)
	}
	release, err := s.inflight.Acquire(caller)
	if err != nil {
		return toStatus(hint.Wrap(fmt.Errorf("%w: %w", ErrLimit, err), "try again when the others are done"))
	}
	defer release()
	s.requests.Add(1)
	if !r.quiet {
		s.touch()
		defer s.touch()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = handle(ctx)
	if err == nil && r.releases {
		err = caller.Alive()
	}
	return toStatus(err)
}

// panicSite names the functions that a recovered panic came through.
func panicSite() []string {
	pc := make([]uintptr, 32)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	var at []string
	for {
		f, more := frames.Next()
		at = append(at, fmt.Sprintf("%s:%d", f.Function, f.Line))
		if !more {
			return at
		}
	}
}
