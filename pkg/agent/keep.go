package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/store/cache"
	"github.com/opaquevault/ov/pkg/vault"
)

// Far is a vault's store on a server, which keeps what the server has said for
// when it is away: *stores.Remote.
type Far interface {
	State() cache.State
	Keep(context.Context, *vault.Session) error
}

const (
	// keepEvery is how often the cache is brought to what was read, at most.
	keepEvery = time.Second
	// keepWait bounds that.
	keepWait = 30 * time.Second
)

// keeper says when there is something to keep. That happens behind the back of
// who asked, who has the answer by then.
type keeper struct {
	wanted chan struct{} // holds one thing when there is

	mu   sync.Mutex
	quit context.CancelFunc // of what is under way; nil: nothing is
}

func newKeeper() *keeper { return &keeper{wanted: make(chan struct{}, 1)} }

// soon says that something was read or written.
func (k *keeper) soon() {
	select {
	case k.wanted <- struct{}{}:
	default:
	}
}

// begin returns the context for one time, and what ends it.
func (k *keeper) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, keepWait)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.quit = cancel
	return ctx, func() {
		cancel()
		k.mu.Lock()
		defer k.mu.Unlock()
		k.quit = nil
	}
}

// stop calls off what is under way: it works with a key that shall be forgotten.
func (k *keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.quit != nil {
		k.quit()
	}
}

// useKept is use for what reads or writes secrets: what that shows is kept.
func (s *Server) useKept(fn func(*vault.Session) error) error {
	err := s.use(fn)
	if err == nil && s.far != nil {
		s.keeper.soon()
	}
	return err
}

// keep brings the cache to what was read, again and again until ctx ends.
func (s *Server) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.keeper.wanted:
		}
		s.keepOnce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(keepEvery):
		}
	}
}

func (s *Server) keepOnce(ctx context.Context) {
	err := s.use(func(v *vault.Session) error {
		ctx, done := s.keeper.begin(ctx)
		defer done()
		return s.far.Keep(ctx, v)
	})
	if err != nil && !errors.Is(err, ErrLocked) && !errors.Is(err, context.Canceled) {
		s.log.Warn("what the server has said is not kept", "why", err.Error())
	}
}
