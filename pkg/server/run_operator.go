package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// In the data directory: where whoever runs the server speaks to it, and the
// lock that says that one does.
const (
	operatorSocket = "admin.sock"
	lockFile       = "lock"
)

// ErrRunning says that another process serves the data directory.
var ErrRunning = errors.New("an ov-server is running already")

// operatorListener is the operator's socket. It accepts connections of this
// account and of root.
type operatorListener struct {
	*net.UnixListener
	lock *os.File
}

// listenOperator makes the socket, mode 0600, in the data directory, which
// nobody else can alter. The lock is held until Close.
func listenOperator(dir string) (*operatorListener, error) {
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, operatorSocket)
	// Whoever has the lock may replace what one has left that was killed.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = lock.Close()
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err == nil {
		err = os.Chmod(socket, 0o600) // within a directory that others cannot enter or write
	}
	if err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EINVAL) {
			err = hint.Wrap(err, "use a data directory with a shorter path: a socket's has at most 107 bytes")
		}
		return nil, fmt.Errorf("cannot listen for the operator: %w", err)
	}
	return &operatorListener{l, lock}, nil
}

// Accept implements net.Listener.
func (l *operatorListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return c, nil
		}
		_ = c.Close()
	}
}

// Close removes the socket and lets go of the lock. More than once does no harm.
func (l *operatorListener) Close() error {
	err := l.UnixListener.Close() // removes the socket
	_ = l.lock.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w on %s", ErrRunning, safefile.Quote(dir))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// operatorHTTP returns a client that speaks to the operator's socket of dir.
func operatorHTTP(dir string) *http.Client {
	var d net.Dialer
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", filepath.Join(dir, operatorSocket))
		},
		DisableKeepAlives: true,
	}}
}

// startGrace is how long a server may take from its socket to its first answer:
// it opens its storage in between.
const startGrace = 30 * time.Second

// operatorURL is what the requests say; they all go to the socket.
const operatorURL = "http://ov-server"

// alive reports whether the server on dir answers within the time.
func alive(ctx context.Context, dir string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, operatorURL+livez, nil)
	if err != nil {
		return err
	}
	res, err := operatorHTTP(dir).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxFile))
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s", res.Status)
	}
	return nil
}

// WithOperator calls fn with a client of the server that runs on the data
// directory. If none does, this process is one for as long as fn lasts, on the
// storage that open opens, and reachable by nobody else.
func WithOperator(ctx context.Context, dir string, open func(context.Context) (store.Accounts, error),
	fn func(context.Context, vaultv1connect.OperatorClient) error,
) (err error) {
	if err := OpenDir(dir); err != nil {
		return err
	}
	l, err := listenOperator(dir)
	for errors.Is(err, ErrRunning) {
		// It may have just begun, or be about to end.
		if err := alive(ctx, dir, startGrace); !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return fmt.Errorf("the server on %s does not answer: %w", safefile.Quote(dir), err)
			}
			return fn(ctx, vaultv1connect.NewOperatorClient(operatorHTTP(dir), operatorURL))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		l, err = listenOperator(dir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	storage, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, storage.Close()) }()
	s := New(Options{Accounts: storage})
	defer closing(&err, s.Close)
	srv := s.HTTP(s.Operator())
	go func() { _ = srv.Serve(l) }()
	defer closing(&err, srv.Shutdown) // others may have come
	return fn(ctx, vaultv1connect.NewOperatorClient(operatorHTTP(dir), operatorURL))
}
