package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/opaquevault/ov/pkg/hint"
)

// DialTimeout bounds Dial when its context has no deadline.
const DialTimeout = 5 * time.Second

// Dial connects to the agent, judging the place anew and who listens there. It
// sends nothing. The errors are those of Locate, *NotRunning if nothing
// listens, and *Untrusted.
func (t Target) Dial(ctx context.Context) (net.Conn, error) {
	c, _, err := t.dial(ctx)
	return c, err
}

func (t Target) dial(ctx context.Context) (net.Conn, Trust, error) {
	t, err := t.judge()
	if err != nil {
		return nil, nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DialTimeout)
		defer cancel()
	}
	c, err := t.connect(ctx)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, nil, notRunning(t)
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, hint.Wrap(fmt.Errorf("cannot connect to the agent at %s: %w", quote(t.Socket), unix.EACCES),
			"it serves only "+account(t.Owner)+" and root: start one of your own with ov agent start")
	case err != nil:
		return nil, nil, fmt.Errorf("cannot connect to the agent at %s: %w", quote(t.Socket), err)
	}
	if _, err := (creds{trust: t.Trust}).checkServer(c); err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return c, t.Trust, nil
}

// connect waits while the agent's queue is full: a Unix socket then refuses at
// once with EAGAIN (connect(2)).
func (t Target) connect(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		c, err := d.DialContext(ctx, "unix", t.Socket)
		if !errors.Is(err, unix.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("it is too busy: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Connect dials the agent and returns a gRPC connection over it, which dials
// again, as carefully, when that breaks. That the first dial is not left to
// gRPC keeps its error typed. The caller closes the result.
func (t Target) Connect(ctx context.Context, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	c, trust, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	var first atomic.Pointer[net.Conn]
	first.Store(&c)
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		if c := first.Swap(nil); c != nil {
			return *c, nil
		}
		return t.Dial(ctx)
	}
	opts = append([]grpc.DialOption{
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(ClientCredentials(trust)),
		grpc.WithDisableServiceConfig(),
		// An agent that has no place for this process now (Limit) may have one soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: DialTimeout,
		}),
	}, opts...)
	cc, err := grpc.NewClient("passthrough:///ov-agent", opts...)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("cannot speak to the agent at %s: %w", quote(t.Socket), err)
	}
	cc.Connect() // lest the first connection stay open unused
	return cc, nil
}
