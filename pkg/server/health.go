package server

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

const (
	livez  = "/livez"
	readyz = "/readyz"

	pingEvery   = 2 * time.Second
	pingTimeout = 3 * time.Second
)

// health knows whether the server should be asked: not while it drains, and not
// while its storage cannot be written. Whoever asks costs no look at the storage:
// one is done every pingEvery, at most.
type health struct {
	accounts store.Accounts
	draining atomic.Bool
	sound    atomic.Bool // the storage, when it was last asked

	known atomic.Bool // sound was ever asked for

	mu    sync.Mutex
	asked time.Time
}

// wait waits for the first answer, of which others have asked.
func (h *health) wait() bool {
	if h.known.Load() {
		return false
	}
	h.mu.Lock()
	return true
}

// ready asks the storage if it is time, and others do not do so already.
func (h *health) ready(ctx context.Context) bool {
	if h.mu.TryLock() || h.wait() {
		if time.Since(h.asked) > pingEvery {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
			h.sound.Store(h.accounts.Ping(ctx) == nil)
			cancel()
			h.asked = time.Now()
			h.known.Store(true)
		}
		h.mu.Unlock()
	}
	return h.sound.Load() && !h.draining.Load()
}

// Check implements grpchealth.Checker.
func (h *health) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && req.Service != vaultv1connect.VaultName {
		return nil, fail(connect.CodeNotFound, "", "no such service")
	}
	status := grpchealth.StatusNotServing
	if h.ready(ctx) {
		status = grpchealth.StatusServing
	}
	return &grpchealth.CheckResponse{Status: status}, nil
}

// live answers GET /livez: the process serves.
func (h *health) live(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

// readiness answers GET /readyz.
func (h *health) readiness(w http.ResponseWriter, r *http.Request) {
	if !h.ready(r.Context()) {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}
