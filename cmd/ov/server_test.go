package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// server is an ov-server of a test's own.
type server struct {
	dir  string // of its data
	env  []string
	addr string
	cmd  *exec.Cmd
}

// newServer makes a server's data, with an account, and returns an API key of
// scope admin for it.
func newServer(dir string, env []string) (s *server, key string, err error) {
	s = &server{dir: dir, env: env}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		return nil, "", err
	}
	s.addr = ln.Addr().String()
	_ = ln.Close()
	if _, err = s.run("init", "--host", "localhost"); err != nil {
		return nil, "", err
	}
	if _, err = s.run("account", "create", "team"); err != nil {
		return nil, "", err
	}
	key, err = s.run("apikey", "create", "--account", "team", "--name", "admin", "--scope", "admin")
	return s, strings.TrimSpace(key), err
}

func (s *server) url() string { return "https://" + s.addr }

func (s *server) command(args ...string) (*exec.Cmd, error) {
	bin, err := programs()
	cmd := exec.Command(filepath.Join(bin, "ov-server"), append(args, "--data", s.dir)...)
	cmd.Env = s.env
	return cmd, err
}

func (s *server) run(args ...string) (string, error) {
	cmd, err := s.command(args...)
	if err != nil {
		return "", err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ov-server %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), nil
}

// start starts the server and waits until it answers.
func (s *server) start() error {
	cmd, err := s.command("serve", "--listen", s.addr)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd = cmd
	ca, err := os.ReadFile(filepath.Join(s.dir, "tls", "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: roots})
		if err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("ov-server does not answer: %w\n%s", err, text)
		}
	}
}

func (s *server) signal(sig syscall.Signal) {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// serverKey is where a script's server is kept.
const serverKey = "server"

// cmdServer is `server start|stop`.
func cmdServer(ts *testscript.TestScript, _ bool, argv []string) {
	servers := ts.Value(serverKey).(*[]*server)
	if argv[0] == "stop" {
		(*servers)[0].signal(syscall.SIGTERM)
		return
	}
	if len(*servers) == 0 {
		s, key, err := newServer(ts.MkAbs(".server"), append(os.Environ(), "HOME="+ts.MkAbs(".server")))
		ts.Check(err)
		ts.Defer(func() { s.signal(syscall.SIGKILL) })
		*servers = append(*servers, s)
		ts.Setenv("URL", s.url())
		ca, err := os.ReadFile(filepath.Join(s.dir, "tls", "ca.pem"))
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs("ca.pem"), ca, 0o600))
		ts.Check(os.WriteFile(ts.MkAbs("admin.key"), []byte(key+"\n"), 0o600))
	}
	ts.Check((*servers)[0].start())
}

// newServerFor starts a server for a test that is no script.
func newServerFor(t *testing.T) (s *server, key string) {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "s")
	if err != nil {
		t.Fatal(err)
	}
	s, key, err = newServer(filepath.Join(dir, "data"), append(os.Environ(), "HOME="+dir))
	if err == nil {
		err = s.start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.signal(syscall.SIGKILL) })
	return s, key
}
