package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

// stopGrace is how long a request in flight may take once the agent was told to
// end.
const stopGrace = 10 * time.Second

// Daemon is one life of ov-agent.
type Daemon struct {
	Socket     string // "": the one that systemd passed, else the account's own
	Vault      string // path of the vault file, or URL of the server
	Context    vault.Ref
	MachineKey string // file to unlock with; "": ask
	// PasswordStdin reads the master password from Stdin in place of asking.
	PasswordStdin bool
	Locked        bool // start without a key
	TTL, Idle     time.Duration
	// MaxStale and AcceptRollback are those of stores.Options.
	MaxStale       time.Duration
	AcceptRollback bool
	Version        string
	Stdin          io.Reader
	Log            *slog.Logger
	// Ready is called once, when the agent listens and is unlocked.
	Ready func() error
}

// Run serves until SIGTERM, SIGINT, Stop or ctx end it. Everything that can go
// wrong at the start is an error before Ready is called.
func (d *Daemon) Run(ctx context.Context) error {
	if err := harden(); err != nil {
		return err
	}
	if d.TTL < 0 || d.Idle < 0 {
		return fmt.Errorf("--ttl %v and --idle %v: neither may be below zero", d.TTL, d.Idle)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()

	// Listen first: it says at once that another agent has the socket, before
	// anybody types a password.
	listener, err := d.listen()
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()

	config, closeVault, err := d.open()
	if err != nil {
		return err
	}
	defer closeVault()
	config.Stop = stop
	s := NewServer(config)
	defer s.Lock("the agent ends")
	if err := d.unlock(ctx, s); err != nil {
		return err
	}
	// Not before: a read of a password cannot be called off, and a signal has to
	// end it.
	ctx, release := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer release()
	if d.Ready != nil {
		if err := d.Ready(); err != nil {
			return err
		}
	}
	var refusals seldom
	limited := peer.Limit(listener, s.trust, peer.DefaultLimits(), func(_ *peer.Info, why error) {
		if untold, ok := refusals.now(time.Now()); ok {
			d.Log.Warn("connection refused", "why", why.Error(), "untold", untold)
		}
	})
	return d.serve(ctx, s, limited)
}

// harden keeps the process out of dumps and makes sure that memory can be
// locked: an agent that cannot does not start.
func harden() error {
	if err := kek.Harden(); err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	probe, err := kek.NewLocked(kek.KeySize)
	if err != nil {
		return err
	}
	probe.Destroy()
	return nil
}

func (d *Daemon) listen() (*peer.Listener, error) {
	l, err := peer.Inherited()
	if !errors.Is(err, peer.ErrNotInherited) {
		return l, err
	}
	socket := d.Socket
	if socket == "" {
		if socket, err = peer.OwnSocket(); err != nil {
			return nil, err
		}
	}
	return peer.Listen(socket)
}

// open returns what a Server is to serve, and a function that ends the connection
// to the vault.
func (d *Daemon) open() (Config, func(), error) {
	v, st, err := stores.Open(d.Vault, stores.Options{
		MachineKey: d.MachineKey, MaxStale: d.MaxStale, AcceptRollback: d.AcceptRollback,
		Tell: func(text string) { d.Log.Warn(text) },
	})
	if err != nil {
		return Config{}, nil, err
	}
	c := Config{
		Vault: v, VaultPath: d.Vault, Context: d.Context,
		TTL: d.TTL, Idle: d.Idle, Version: d.Version, Log: d.Log,
	}
	done := func() {}
	if far, ok := st.(*stores.Remote); ok {
		c.Far, done = far, func() { _ = far.Close() }
	}
	return c, done, nil
}

func (d *Daemon) unlock(ctx context.Context, s *Server) error {
	if d.Locked {
		return nil
	}
	if d.MachineKey != "" {
		return d.patiently(ctx, func() error {
			key, err := machinekey.Read(d.MachineKey)
			if err != nil {
				return err
			}
			return s.UnlockKey(ctx, key)
		})
	}
	if d.PasswordStdin {
		password, err := prompt.Line(d.Stdin, kek.MaxPassword)
		if err != nil {
			return err
		}
		defer password.Destroy()
		return d.patiently(ctx, func() error { return s.Unlock(ctx, password) })
	}
	// Look before asking: a vault that is not there needs no password.
	if _, err := s.vault.Info(ctx); err != nil {
		return err
	}
	const tries = 3
	for try := 1; ; try++ {
		password, err := prompt.Secret("Master password: ")
		if errors.Is(err, prompt.ErrNoTerminal) {
			return hint.Wrap(fmt.Errorf("cannot ask for the master password: %w", err),
				"unlock with --machine-key FILE or --password-stdin, or start with --locked and use ov agent unlock")
		}
		if err != nil {
			return err
		}
		err = s.Unlock(ctx, password)
		password.Destroy()
		if err == nil || !errors.Is(err, vault.ErrWrongPassword) || try == tries {
			return err
		}
		fmt.Fprintln(os.Stderr, "ov-agent: wrong master password, try again")
	}
}

const (
	// retryEvery is about how long a start waits until it asks again for a vault
	// that is away, on top of what each try waits by itself.
	retryEvery = 2 * time.Second
	// startExtension is what systemd is asked for with each try. One takes less.
	startExtension = 2 * time.Minute
	// retryTell is how often the log is told at least that it still waits.
	retryTell = time.Minute
)

// patiently calls unlock again while the vault is away. A service that starts
// before the network does not fail, and neither does what is ordered after it:
// it waits. A person who waits for the agent is told at once.
func (d *Daemon) patiently(ctx context.Context, unlock func() error) error {
	if !stores.IsURL(d.Vault) {
		return unlock()
	}
	var told time.Time
	for {
		_, _ = daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", startExtension.Microseconds()))
		err := unlock()
		if !errors.Is(err, store.ErrUnavailable) || d.Ready != nil {
			return err
		}
		if time.Since(told) >= retryTell {
			told = time.Now()
			d.Log.Warn("cannot unlock yet, and will try again", "why", err.Error())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery/2 + rand.N(retryEvery)): //nolint:gosec // only so that not all try at once
		}
	}
}

// serve answers until ctx ends, then lets what is in flight finish.
func (d *Daemon) serve(ctx context.Context, s *Server, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := s.GRPC()
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	wg.Go(func() { watchdog(ctx, s) })
	wg.Go(func() {
		<-ctx.Done()
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
		end := time.AfterFunc(stopGrace, g.Stop)
		defer end.Stop()
		g.GracefulStop()
	})
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		d.Log.Warn("cannot tell systemd that the agent is ready", "why", err.Error())
	}
	d.Log.Info("serving", "socket", l.Addr().String(), "vault", d.Vault)
	err := g.Serve(l)
	cancel()
	wg.Wait()
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil
	}
	return err
}

// watchdog tells systemd that the agent works, twice as often as it must
// (sd_watchdog_enabled(3)).
func watchdog(ctx context.Context, s *Server) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.Healthy() {
				_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		}
	}
}
