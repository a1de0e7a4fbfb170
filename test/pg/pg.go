// Package pg starts Debian's PostgreSQL for tests and the benchmark: one server,
// or a primary with a synchronous standby, to be killed and promoted. It needs
// the package postgresql, and as root the account postgres, as which it then runs.
package pg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ErrMissing is wrapped when this machine has no PostgreSQL that can be started.
var ErrMissing = errors.New("no PostgreSQL here")

// patience is how long a server may take to start, follow or stop.
const patience = 60 * time.Second

// Server is a PostgreSQL server on loopback.
type Server struct {
	Dir  string // data/, and log
	Port int

	bin      string
	account  *syscall.Credential // nil: as who runs this
	password string              // of the superuser postgres
	process  *exec.Cmd
	ended    chan struct{}
}

// Start makes a database cluster in dir and a server on it. Below a root process
// dir becomes the account's postgres, which must be able to enter its parents: a
// directory of os.MkdirTemp will do, t.TempDir's will not.
func Start(dir string) (*Server, error) {
	s, err := prepare(dir, 0)
	if err != nil {
		return nil, err
	}
	s.password = rand.Text()
	secret := filepath.Join(dir, "password")
	if err := s.write(secret, s.password); err != nil {
		return nil, err
	}
	if _, err := s.run("initdb", "--pgdata="+s.data(), "--username=postgres", "--pwfile="+secret,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"); err != nil {
		return nil, err
	}
	if err := os.Remove(secret); err != nil {
		return nil, err
	}
	return s, s.start()
}

// Standby makes a standby of the server in dir, which is as for Start, on a port
// (0: a free one). When it returns, the server commits nothing that the standby
// has not on its disk.
func (s *Server) Standby(dir string, port int) (*Server, error) {
	b, err := prepare(dir, port)
	if err != nil {
		return nil, err
	}
	b.password = s.password
	if _, err := b.run("pg_basebackup", "--host=127.0.0.1", "--port="+strconv.Itoa(s.Port), "--username=postgres",
		"--pgdata="+b.data(), "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"); err != nil {
		return nil, err
	}
	// The copy may have it from a primary of before: promoted, it would wait for
	// a standby that it has not.
	auto := filepath.Join(b.data(), "postgresql.auto.conf")
	conf, err := os.ReadFile(auto)
	if err != nil {
		return nil, err
	}
	if err := b.write(auto, string(conf)+"synchronous_standby_names = ''\n"); err != nil {
		return nil, err
	}
	if err := b.start(); err != nil {
		return nil, err
	}
	for _, sql := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if _, err := s.SQL("postgres", sql); err != nil {
			return b, errors.Join(err, b.Kill())
		}
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		state, err := s.SQL("postgres", "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
		if err == nil && state == "sync" {
			return b, nil
		}
		if time.Now().After(end) {
			return b, errors.Join(fmt.Errorf("the standby does not follow: it is %q", state), err, b.Kill())
		}
	}
}

// Kill ends the server with SIGKILL, as a machine that fails does.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop ends the server. What it had in its directory stays.
func (s *Server) Stop() error { return s.end(syscall.SIGQUIT) }

func (s *Server) end(signal syscall.Signal) error {
	if s == nil || s.process == nil {
		return nil
	}
	if err := s.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		return fmt.Errorf("PostgreSQL on port %d does not end", s.Port)
	}
	// Of a server that was killed the processes of connections end by themselves.
	for end := time.Now().Add(patience); s.listens(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("something still listens on port %d", s.Port)
		}
	}
	return nil
}

func (s *Server) listens() bool {
	c, err := net.DialTimeout("tcp", s.address(), time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// Promote makes a primary of a standby, and returns when it takes writes.
func (s *Server) Promote() error {
	done, err := s.SQL("postgres", "SELECT pg_promote(true, 60)")
	if err == nil && done != "t" {
		err = fmt.Errorf("PostgreSQL on port %d was not promoted", s.Port)
	}
	return err
}

// SQL has psql run statements in a database and returns what it prints: fields
// with | between them.
func (s *Server) SQL(database, statements string) (string, error) {
	return s.run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1",
		"--host=127.0.0.1", "--port="+strconv.Itoa(s.Port), "--username=postgres", "--dbname="+database, "--command="+statements)
}

// DSN returns the URL by which clients reach whichever of the servers takes
// writes. It holds a password.
func DSN(database string, servers ...*Server) string {
	var hosts []string
	for _, s := range servers {
		hosts = append(hosts, s.address())
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", servers[0].password), Host: strings.Join(hosts, ","),
		Path: "/" + database, RawQuery: "target_session_attrs=read-write&connect_timeout=2",
	}
	return u.String()
}

// Test starts a server for a test, or skips it, and says so, where there is none
// to be started.
func Test(t testing.TB) *Server {
	t.Helper()
	s, err := Start(Dir(t))
	if errors.Is(err, ErrMissing) {
		t.Skipf("NOT RUN: %v", err)
	}
	if s != nil {
		t.Cleanup(func() { _ = s.Stop() })
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Dir returns a directory for a server of the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ov-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *Server) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }
func (s *Server) data() string    { return filepath.Join(s.Dir, "data") }

// prepare finds what a server needs, and makes dir the account's.
func prepare(dir string, port int) (*Server, error) {
	s := &Server{Dir: dir, Port: port}
	if port == 0 {
		s.Port = freePort()
	}
	versions, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.SortFunc(versions, func(a, b string) int { return version(a) - version(b) })
	if len(versions) > 0 {
		s.bin = filepath.Dir(versions[len(versions)-1])
	} else if initdb, err := exec.LookPath("initdb"); err == nil {
		s.bin = filepath.Dir(initdb)
	} else {
		return nil, fmt.Errorf("%w: install postgresql", ErrMissing)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return s, nil
	}
	// It refuses to run as root.
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	s.account = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return s, os.Chown(dir, int(uid), int(gid))
}

// version is of the path /usr/lib/postgresql/VERSION/bin/initdb.
func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// freePort is below those that connections are given, so that none of them has
// it when a server is started on it again.
func freePort() int {
	for {
		port := 20000 + mathrand.IntN(12000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
}

func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Dir = s.Dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + s.Dir, "PGPASSWORD=" + s.password, "PGCONNECT_TIMEOUT=10"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account}
	return cmd
}

// run returns what a program prints.
func (s *Server) run(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := s.command(ctx, program, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(said.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}

func (s *Server) start() error {
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	s.process = s.command(context.Background(), "postgres", "-D", s.data(), "-p", strconv.Itoa(s.Port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "wal_retrieve_retry_interval=100ms") // else a promotion may wait for 5 s
	s.process.Stdout, s.process.Stderr = log, log
	dieWithParent(s.process.SysProcAttr)
	if err := s.process.Start(); err != nil {
		return err
	}
	s.ended = make(chan struct{})
	go func() {
		_ = s.process.Wait()
		close(s.ended)
	}()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_, err := s.run("pg_isready", "--quiet", "--host=127.0.0.1", "--port="+strconv.Itoa(s.Port))
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			err = errors.New("it has ended")
		default:
			if time.Now().Before(end) {
				continue
			}
		}
		text, _ := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("PostgreSQL does not start in %s: %w\n%s", s.Dir, err, text[max(0, len(text)-2000):]), s.Kill())
	}
}

// write makes a file that the account can read.
func (s *Server) write(name, text string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil && s.account != nil {
		err = f.Chown(int(s.account.Uid), int(s.account.Gid))
	}
	return errors.Join(err, f.Close())
}
