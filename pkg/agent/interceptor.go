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

// admitWait is how long a request waits for others of its caller to end.
const admitWait = 10 * time.Second

// unary is the one way into every handler: who calls, may they, is it too much,
// then the handler, then whether the caller is still there.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	err = s.guard(ctx, info.FullMethod, func(ctx context.Context, release func() error) (err error) {
		if resp, err = handler(ctx, req); err == nil {
			err = release()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.guard(stream.Context(), info.FullMethod, func(ctx context.Context, release func() error) error {
		return handler(srv, &boundedStream{stream, ctx, release})
	})
}

// boundedStream gives a stream's handler the context of guard, and looks at the
// caller before it sends.
type boundedStream struct {
	grpc.ServerStream
	ctx     context.Context
	release func() error
}

func (b *boundedStream) Context() context.Context { return b.ctx }

func (b *boundedStream) SendMsg(m any) error {
	if err := b.release(); err != nil {
		return err
	}
	return b.ServerStream.SendMsg(m)
}

// guard calls handle if the caller may, with a function to call right before an
// answer goes out: it fails if the caller is no longer who it was.
func (s *Server) guard(ctx context.Context, method string, handle func(ctx context.Context, release func() error) error) (err error) {
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
	done, err := s.admit(ctx, caller)
	if err != nil {
		return toStatus(err)
	}
	defer done()
	s.requests.Add(1)
	if !r.quiet {
		s.touch()
		defer s.touch()
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return toStatus(handle(ctx, func() error {
		if !r.releases {
			return nil
		}
		if err := caller.Alive(); err != nil {
			return fmt.Errorf("%w: %w", ErrDenied, err)
		}
		return nil
	}))
}

// admit waits until the request may be served, and counts it until done.
func (s *Server) admit(ctx context.Context, caller *peer.Info) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, s.admitWait)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if done, err = s.inflight.Acquire(caller); err == nil {
			return done, nil
		}
		select {
		case <-ctx.Done():
			return nil, tooMany(err)
		case <-time.After(wait):
		}
	}
}

func tooMany(err error) error {
	return hint.Wrap(fmt.Errorf("%w: %w", ErrLimit, err), "try again when the others are done")
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
