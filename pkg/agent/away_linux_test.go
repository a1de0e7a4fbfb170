package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/vault"
)

// A service that starts before the network, or the server, does not fail: it
// waits, asks systemd for the time, and says what for. Whoever waits for the
// agent at a terminal is told at once.
func TestStartBeforeServer(t *testing.T) {
	n := newNotify(t, shortDir(t))
	t.Setenv("NOTIFY_SOCKET", n.path)
	away := fmt.Errorf("%w: %s: connection refused", store.ErrUnavailable, farURL)
	logged := &logBuffer{}
	d := Daemon{Vault: farURL, Log: slog.New(slog.NewTextHandler(logged, nil))}
	tries := 0
	err := d.patiently(t.Context(), func() error {
		if tries++; tries < 3 {
			return away
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
	for range 3 {
		if got := n.next(t, time.Second); got != "EXTEND_TIMEOUT_USEC=120000000" {
			t.Errorf("told %q", got)
		}
	}
	if got := logged.String(); strings.Count(got, "cannot unlock yet, and will try again") != 1 || !strings.Contains(got, "connection refused") {
		t.Errorf("logged:\n%s", got)
	}

	tries = 0
	if err := d.patiently(t.Context(), func() error { tries++; return vault.ErrWrongPassword }); !errors.Is(err, vault.ErrWrongPassword) || tries != 1 {
		t.Errorf("%v after %d tries", err, tries)
	}
	d.Ready, tries = func() error { return nil }, 0
	if err := d.patiently(t.Context(), func() error { tries++; return away }); !errors.Is(err, store.ErrUnavailable) || tries != 1 {
		t.Errorf("%v after %d tries", err, tries)
	}
	d.Ready = nil
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.patiently(ctx, func() error { return away }); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
