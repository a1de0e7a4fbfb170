package teams

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

var serverPath string // the real ov-server

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "teams")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	serverPath = filepath.Join(dir, "ov-server")
	build := exec.Command("go", "build", "-o", serverPath, "../../cmd/ov-server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// rounds is how often everything is killed once.
func rounds(t *testing.T) int {
	t.Helper()
	n := 2
	if text := os.Getenv("OV_TEAMS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 {
			t.Fatalf("OV_TEAMS is %q", text)
		}
	}
	return n
}

// ovServer is an ov-server that can be killed and started again.
type ovServer struct {
	t       *testing.T
	dir     string
	address string
	storage []string // flags that say where its records are
	serve   []string // of serve besides
	log     string
	process *exec.Cmd
	ended   chan error
}

// newServer prepares a server whose records are in its own directory, or in
// PostgreSQL if there is a DSN.
func newServer(t *testing.T, dsn string) *ovServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovs") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &ovServer{t: t, dir: filepath.Join(dir, "d"), log: filepath.Join(dir, "log"), address: freeAddress(t)}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			text, _ := os.ReadFile(s.log)
			t.Logf("ov-server at %s said:\n%s", s.address, text[max(0, len(text)-4000):])
		}
		_ = os.RemoveAll(dir)
	})
	if dsn != "" {
		file := filepath.Join(dir, "dsn")
		if err := os.WriteFile(file, []byte(dsn+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.storage = []string{"--database-url-file", file}
	}
	return s
}

// freeAddress is below those that connections are given, so that none of them
// has it when a server is started on it again.
func freeAddress(t *testing.T) string {
	t.Helper()
	for port := 12000 + os.Getpid()%5000; port < 20000; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = l.Close()
			if _, taken := ports.LoadOrStore(port, true); !taken {
				return l.Addr().String()
			}
		}
	}
	t.Fatal("no port is free")
	return ""
}

var ports sync.Map

// command prepares a command on the server's data.
func (s *ovServer) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(args, "--data", s.dir)
	if args[0] != "init" {
		args = append(args, s.storage...)
	}
	cmd := exec.CommandContext(ctx, serverPath, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// admin runs such a command and reads the JSON that it prints.
func (s *ovServer) admin(to any, args ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := s.command(ctx, args...)
	said, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = said.Close() }()
	cmd.Stderr = said
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("ov-server %v: %v", args, err)
	}
	if to != nil {
		if err := json.Unmarshal(out, to); err != nil {
			s.t.Fatalf("ov-server %v: %v", args, err)
		}
	}
}

// start starts the server and returns when it takes connections.
func (s *ovServer) start() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.process = s.command(context.Background(), append([]string{"serve", "--listen", s.address}, s.serve...)...)
	s.process.Stdout, s.process.Stderr = log, log
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.process.Wait() }()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", s.address)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case err := <-s.ended:
			s.process = nil
			s.t.Fatalf("ov-server ended by itself: %v", err)
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("ov-server does not serve: %v", err)
		}
	}
}

// kill ends it with SIGKILL. A server that has ended by itself is a fault.
func (s *ovServer) kill() {
	s.t.Helper()
	if s.process == nil {
		return
	}
	select {
	case err := <-s.ended:
		s.t.Errorf("ov-server at %s ended by itself: %v", s.address, err)
	default:
		if err := s.process.Process.Kill(); err != nil {
			s.t.Error(err)
		}
		if err := <-s.ended; err == nil {
			s.t.Errorf("ov-server at %s ended by itself", s.address)
		}
	}
	s.process = nil
}

// front forwards the connections to its address to the first of its servers that
// takes them.
type front struct {
	address string
	servers []*ovServer

	mu    sync.Mutex
	conns map[*net.TCPConn]bool
}

func newFront(t *testing.T, servers ...*ovServer) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	f := &front{address: l.Addr().String(), servers: servers, conns: map[*net.TCPConn]bool{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.forward(c.(*net.TCPConn))
		}
	}()
	return f
}

// cut breaks one connection to a client, so that an answer under way is lost.
func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns { // in no order
		_ = c.SetLinger(0)
		_ = c.Close()
		return
	}
}

func (f *front) forward(client *net.TCPConn) {
	defer func() { _ = client.Close() }()
	var server *net.TCPConn
	for _, s := range f.servers {
		c, err := net.DialTimeout("tcp", s.address, time.Second)
		if err == nil {
			server = c.(*net.TCPConn)
			break
		}
	}
	if server == nil {
		return
	}
	defer func() { _ = server.Close() }()
	f.mu.Lock()
	f.conns[client] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.conns, client)
		f.mu.Unlock()
	}()
	done := make(chan struct{}, 2)
	for from, to := range map[*net.TCPConn]*net.TCPConn{client: server, server: client} {
		go func() {
			_, _ = io.Copy(to, from)
			done <- struct{}{}
		}()
	}
	<-done
}
