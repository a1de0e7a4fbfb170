package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
)

const (
	// drainGrace is how long calls in flight may take once the server was told to
	// end; what is left is cut off.
	drainGrace = 20 * time.Second
	// closeGrace is how long it may then take to write down what is in memory.
	closeGrace = 5 * time.Second
	// lockWait is how long it waits for one of the operator's commands to end.
	lockWait = 3 * time.Second
	// lookEvery is how often the certificate's expiry is looked at.
	lookEvery = 12 * time.Hour
)

// Daemon is one life of ov-server.
type Daemon struct {
	Dir     string // the data directory: the certificate, the operator's socket, the embedded storage
	Listen  string // TCP address, unless systemd passes a socket
	Metrics string // TCP address of the metrics, plain HTTP; "": none
	// CertFile and KeyFile are a certificate that Init has not made.
	CertFile, KeyFile string
	Reflection        bool
	Version           string
	Log               *slog.Logger
	// Open opens the storage.
	Open func(context.Context) (store.Accounts, error)
	// Serving, if not nil, is called once it serves, with the addresses of clients
	// and of metrics ("" if none).
	Serving func(clients, metrics string)
}

// Run serves until SIGTERM, SIGINT or ctx end it, and then finishes what is in
// flight. A second such signal ends the process as it does any other. SIGHUP
// makes it read the certificate again.
func (d *Daemon) Run(ctx context.Context) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ends, reloads := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(reloads, syscall.SIGHUP)
	defer signal.Stop(ends)
	defer signal.Stop(reloads)
	go func() {
		select {
		case s := <-ends:
			d.Log.Info("told to end", "signal", s.String())
			signal.Stop(ends) // the next one is the system's again
			stop()
		case <-ctx.Done():
		}
	}()

	cert, err := d.certificate()
	if err != nil {
		return err
	}
	if err := OpenDir(d.Dir); err != nil {
		return err
	}
	operator, err := listenOperator(d.Dir)
	for end := time.Now().Add(lockWait); errors.Is(err, ErrRunning) && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(20 * time.Millisecond)
		operator, err = listenOperator(d.Dir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, operator.Close()) }()
	telemetry, err := NewTelemetry(ctx, d.Version, d.Log)
	if err != nil {
		return err
	}
	defer closing(&err, telemetry.Close)
	storage, err := d.Open(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // told to end before it began
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, storage.Close()) }()
	if err := telemetry.Watch(storage, cert.NotAfter); err != nil {
		return err
	}
	interceptors, err := telemetry.Interceptors()
	if err != nil {
		return err
	}
	s := New(Options{
		Accounts: telemetry.Accounts(storage), Log: d.Log, Version: d.Version, Reflection: d.Reflection,
		Interceptors: interceptors, Refused: telemetry.Refused, Spool: d.Dir,
	})
	defer closing(&err, s.Close)

	clients, err := d.listen()
	if err != nil {
		return err
	}
	defer func() { _ = clients.Close() }()
	r := &running{Daemon: d, server: s, cert: cert, failed: make(chan error, 3)}
	// The metrics go last: they say that the server is not ready any more.
	if d.Metrics != "" {
		l, err := net.Listen("tcp", d.Metrics)
		if err != nil {
			return fmt.Errorf("cannot listen for metrics: %w", err)
		}
		r.metrics = l.Addr().String()
		metrics := r.serve(l, d.metricsHandler(s, telemetry), nil)
		defer func() { _ = metrics.Close() }()
	}
	return r.run(ctx, clients, operator, reloads)
}

// closing calls fn, which may take closeGrace, and adds its error.
func closing(err *error, fn func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	*err = errors.Join(*err, fn(ctx))
}

// certificate reads the certificate, with a hint if there is none.
func (d *Daemon) certificate() (*Certificate, error) {
	certFile, keyFile := d.CertFile, d.KeyFile
	if certFile == "" {
		certFile, keyFile = CertificateFiles(d.Dir)
	}
	c, err := LoadCertificate(certFile, keyFile)
	if d.CertFile == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, hint.Errorf("make one: "+command("init", d.Dir)+", or give your own: --tls-cert FILE --tls-key FILE",
			"there is no certificate in %s", safefile.Quote(d.Dir))
	}
	return c, err
}

// listen returns the socket that systemd passed (sd_listen_fds(3)), or one of
// its own.
func (d *Daemon) listen() (net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("cannot use the socket that systemd passed: %w", err)
	}
	switch len(passed) {
	case 0:
		l, err := net.Listen("tcp", d.Listen)
		if err != nil {
			return nil, hint.Errorf("name another address: --listen HOST:PORT", "cannot listen: %w", err)
		}
		return l, nil
	case 1:
		if l, ok := passed[0].(*net.TCPListener); ok {
			return l, nil
		}
	}
	return nil, hint.Errorf("look at the .socket unit: it needs one ListenStream= with a port, and Accept=no",
		"systemd passed %d sockets, not one of TCP", len(passed))
}

// running is a Daemon that has all it needs.
type running struct {
	*Daemon
	server  *Server
	cert    *Certificate
	metrics string
	failed  chan error // of what serves
}

// serve serves on l until the result is closed.
func (r *running) serve(l net.Listener, h http.Handler, config *tls.Config) *http.Server {
	srv := r.server.HTTP(h)
	go func() {
		var err error
		if config != nil {
			srv.TLSConfig = config
			err = srv.ServeTLS(r.server.Limit(l), "", "")
		} else {
			err = srv.Serve(l)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			r.failed <- err
		}
	}()
	return srv
}

func (d *Daemon) metricsHandler(s *Server, t *Telemetry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", t.Handler())
	public := s.Handler()
	mux.Handle("GET "+livez, public)
	mux.Handle("GET "+readyz, public)
	return mux
}

// run serves clients and the operator until ctx ends, and drains.
func (r *running) run(ctx context.Context, clients net.Listener, operator *operatorListener, reloads <-chan os.Signal) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	front := r.serve(clients, r.server.Handler(), TLSConfig(r.cert))
	back := r.serve(operator, r.server.Operator(), nil)

	r.look()
	r.notify(daemon.SdNotifyReady + "\nSTATUS=serving at " + clients.Addr().String())
	r.Log.Info("serving", "address", clients.Addr().String(), "metrics", r.metrics, "data", r.Dir, "version", r.Version)
	if r.Serving != nil {
		r.Serving(clients.Addr().String(), r.metrics)
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.watchdog(ctx) })
	err := r.wait(ctx, reloads)
	stop()

	r.notify(daemon.SdNotifyStopping)
	r.server.Drain()
	drain, cancel := context.WithTimeout(context.Background(), drainGrace)
	defer cancel()
	for _, srv := range []*http.Server{front, back} {
		wg.Go(func() {
			if srv.Shutdown(drain) != nil {
				r.Log.Warn("calls in flight are cut off", "after", drainGrace.String())
				_ = srv.Close()
			}
		})
	}
	wg.Wait()
	r.Log.Info("ended")
	return err
}

// wait reads the certificate again when it is told to, and says when it is about
// to expire, until ctx ends or something does not serve any more.
func (r *running) wait(ctx context.Context, reloads <-chan os.Signal) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-r.failed:
			return err
		case <-tick.C:
			r.look()
		case <-reloads:
			r.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
			if err := r.cert.Reload(); err != nil {
				r.Log.Error("the certificate was not read again: the one before stays", "why", err.Error())
			} else {
				r.Log.Info("certificate read again", "expires", date(r.cert.NotAfter()))
			}
			r.look()
			r.notify(daemon.SdNotifyReady)
		}
	}
}

// look warns of a certificate that is about to expire.
func (r *running) look() {
	left := time.Until(r.cert.NotAfter())
	mend := "put a new one into its place, and reload the server"
	if r.CertFile == "" {
		mend = command("init --renew", r.Dir) + ", and reload the server"
	}
	switch {
	case left <= 0:
		r.Log.Error("the certificate has expired: no client connects", "expired", date(r.cert.NotAfter()), "hint", mend)
	case left < expiryWarning:
		r.Log.Warn("the certificate expires soon", "expires", date(r.cert.NotAfter()), "days", int(left/day), "hint", mend)
	}
}

func (r *running) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		r.Log.Warn("cannot tell systemd how the server is", "why", err.Error())
	}
}

// watchdog tells systemd that the server answers, twice as often as it must
// (sd_watchdog_enabled(3)). It asks on the operator's socket. That the storage
// works is not asked: a new server would have none either.
func (r *running) watchdog(ctx context.Context) {
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
			if err := alive(ctx, r.Dir, interval/4); err != nil {
				r.Log.Error("the server does not answer", "why", err.Error())
				continue
			}
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}
