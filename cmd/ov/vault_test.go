package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/test/chance"
)

// movedSecrets is how many secrets the tests move, by default: several pieces.
func movedSecrets(t *testing.T) int {
	if text := os.Getenv("OV_MOVE"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 8000
}

// newServerHome makes a home that is logged in to a server, with a vault of many
// secrets in a file.
func newServerHome(t *testing.T) (h *home, s *server) {
	t.Helper()
	h = newHome(t, 0)
	h.vault()
	var env strings.Builder
	for i := range movedSecrets(t) {
		fmt.Fprintf(&env, "SECRET_%d=%s-value-%d\n", i, mark, i)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "many.env"), []byte(env.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must("", "ov", "secret", "import", "many.env", "--machine-key", "key")
	s, key := newServerFor(t)
	h.must(key, "ov", "auth", "login", "--server", s.url(), "--ca", filepath.Join(s.dir, "tls", "ca.pem"), "--api-key-stdin", "--no-default")
	return h, s
}

// move runs a command that moves a vault and returns what it says.
func (h *home) move(args ...string) (res moved, took time.Duration) {
	h.t.Helper()
	start := time.Now()
	out := h.must("", append(append([]string{"ov", "vault"}, args...), "--json")...)
	took = time.Since(start)
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		h.t.Fatal(err)
	}
	return res, took
}

// killed runs a command that moves a vault and kills it after a part of the time
// that it takes, at random.
func (h *home) killed(took time.Duration, args ...string) {
	h.t.Helper()
	cmd := h.command(append([]string{"ov", "vault"}, args...)...)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	time.Sleep(time.Duration(rand.Int64N(int64(took))))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// TestMoveSurvivesKills: killed at any instant, a push leaves no vault or all of
// it on the server, and the next one writes only what is missing. A pull leaves
// no file or all of it.
func TestMoveSurvivesKills(t *testing.T) {
	h, s := newServerHome(t)
	local := filepath.Join(h.dir, ".local/share/ov/vault.db")
	whole, took := h.move("push", "--from", local, "--to", s.url())
	t.Logf("push of %d records: %v", whole.Records, took)

	resumed := 0
	for range 8 {
		h.emptyServer(s)
		for range 2 {
			h.killed(took, "push", "--from", local, "--to", s.url())
			h.noneOrAll(s, whole)
		}
		res, _ := h.move("push", "--from", local, "--to", s.url())
		if res.Records != whole.Records || res.Digest != whole.Digest {
			t.Errorf("%+v is not %+v", res, whole)
		}
		if res.Written < whole.Records {
			resumed++
		}
	}
	if resumed == 0 {
		t.Error("no push found anything of the one that was killed before it")
	}

	copied := filepath.Join(h.dir, "copy.db")
	_, took = h.move("pull", "--from", s.url(), "--to", filepath.Join(h.dir, "first.db"))
	t.Logf("pull: %v", took)
	for range 8 {
		h.killed(took, "pull", "--from", s.url(), "--to", copied)
		if _, err := os.Stat(copied); err == nil {
			if res, _ := h.move("push", "--from", copied, "--to", s.url()); res.Written+res.Deleted != 0 {
				t.Errorf("the pulled file is not what is on the server: %+v", res)
			}
			_ = os.Remove(copied)
		}
	}
	h.move("pull", "--from", s.url(), "--to", copied)
	n := strings.Count(h.must("", "ov", "--vault", copied, "secret", "list", "--machine-key", "key"), "\n")
	if want := movedSecrets(t); n != want {
		t.Errorf("%d secrets in the copy, not %d", n, want)
	}
}

// emptyServer gives the home another account, which is empty.
func (h *home) emptyServer(s *server) {
	h.t.Helper()
	name := "team-" + strconv.FormatUint(rand.Uint64(), 36)
	key := ""
	_, err := s.run("account", "create", name)
	if err == nil {
		key, err = s.run("apikey", "create", "--account", name, "--name", "admin", "--scope", "admin")
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.must(strings.TrimSpace(key), "ov", "auth", "login", "--server", s.url(), "--api-key-stdin", "--no-default")
}

// noneOrAll fails unless there is no vault on the server or the one that was
// pushed.
func (h *home) noneOrAll(s *server, whole moved) {
	h.t.Helper()
	to := filepath.Join(h.dir, "looked.db")
	r := h.run("", "ov", "vault", "pull", "--from", s.url(), "--to", to, "--json")
	defer func() { _ = os.Remove(to) }()
	var res moved
	switch {
	case r.code != 0 && strings.Contains(r.stderr, "no vault at "+s.url()):
		if r := h.run("", "ov", "--vault", s.url(), "secret", "list", "--machine-key", "key"); r.code == 0 {
			h.t.Error("half a vault opens")
		}
	case r.code != 0:
		h.t.Errorf("after a kill: %s", r.stderr)
	case json.Unmarshal([]byte(r.stdout), &res) != nil || res.Digest != whole.Digest:
		h.t.Errorf("after a kill: %s", r.stdout)
	}
}

// A way to a server that counts what comes back, and can be cut.
type way struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	left     int64 // bytes that still come through; less than 0: all
	again    bool  // after that, all comes
	came     int64
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{listener: l, to: to, left: -1}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.pass(c)
		}
	}()
	return w
}

func (w *way) url() string { return "https://" + w.listener.Addr().String() }

// cut sets how many bytes come through, and returns how many have come since.
func (w *way) cut(after int64) (came int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	came, w.came, w.left = w.came, 0, after
	return came
}

func (w *way) pass(c net.Conn) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(s, c)
		close(gone)
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := s.Read(buf)
		w.mu.Lock()
		if w.left >= 0 {
			n = int(min(int64(n), w.left))
			w.left -= int64(n)
		}
		w.came += int64(n)
		ended := err != nil || w.left == 0
		if w.left == 0 && w.again {
			w.left = -1
		}
		w.mu.Unlock()
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
		if ended { // what is on its way arrives
			_ = c.(*net.TCPConn).CloseWrite()
			select {
			case <-gone:
			case <-time.After(time.Second):
			}
			return
		}
	}
}

// waitFor waits until so many bytes have come.
func (w *way) waitFor(n int64) {
	for {
		w.mu.Lock()
		came := w.came
		w.mu.Unlock()
		if came >= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestPullGoesOn: whether the connection is lost for good or the pull is killed,
// wherever it was, the same command brings what is missing and what others have
// changed, and not much more; and the file appears whole or is replaced as a whole.
func TestPullGoesOn(t *testing.T) {
	h, s := newServerHome(t)
	local := filepath.Join(h.dir, ".local/share/ov/vault.db")
	whole, _ := h.move("push", "--from", local, "--to", s.url())
	w := newWay(t, s.addr)
	key, err := os.ReadFile(filepath.Join(h.dir, ".config/ov/servers.toml"))
	if err != nil {
		t.Fatal(err)
	}
	token := regexp.MustCompile(`ov_live_[a-z2-7]+`).FindString(string(key))
	h.must(token, "ov", "auth", "login", "--server", w.url(), "--ca", filepath.Join(s.dir, "tls", "ca.pem"), "--api-key-stdin", "--no-default")

	to := filepath.Join(h.dir, "pulled.db")
	partial := filepath.Join(h.dir, ".pulled.db.pull")
	w.cut(-1)
	_, took := h.move("pull", "--from", w.url(), "--to", to)
	all := w.cut(-1)
	t.Logf("%d records, %d bytes, %v", whole.Records, all, took)

	// A part of what is there comes again, and each record is asked for by parts of
	// its key.
	slack := all/10 + 300<<10
	rnd := chance.Rand(t, 44)
	resumed := 0
	for i := range 8 {
		kill, replace := i%2 == 0, i >= 4
		if !replace {
			_ = os.Remove(to)
		}
		// Others write: the file that is there is of before.
		h.must("v", "ov", "--vault", s.url(), "secret", "set", fmt.Sprintf("NEW_%d", i), "--machine-key", "key")
		before, _ := os.ReadFile(to)
		at := all/3 + rnd.Int64N(all/2)
		args := []string{"ov", "vault", "pull", "--from", w.url(), "--to", to, "--server-timeout", "1s"}
		if kill {
			w.cut(-1)
			cmd := h.command(args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.waitFor(at)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		} else {
			w.cut(at)
			if r := h.run("", args...); r.code == 0 || !strings.Contains(r.stderr, "not available") {
				t.Fatalf("cut: %d, %s", r.code, r.stderr)
			}
		}
		if now, err := os.ReadFile(to); replace != (err == nil) || !bytes.Equal(now, before) {
			if !kill { // which may have come too late
				t.Errorf("the file is not what it was: %v", err)
			}
			continue
		}
		st, err := os.Lstat(partial)
		if kill && err != nil {
			continue // nothing was written yet
		}
		if err != nil || st.Mode() != 0o600 || !kill && st.Size() < at/2 {
			t.Fatalf("%d: cut at %d of %d: %v", i, at, all, err)
		}
		resumed++
		if r := h.run("", "ov", "--vault", partial, "secret", "list", "--machine-key", "key"); r.code == 0 {
			t.Error("half a vault opens")
		}
		h.must("v", "ov", "--vault", s.url(), "secret", "set", fmt.Sprintf("ALSO_%d", i), "--machine-key", "key")
		// What was written to disk when it was killed, and what has come.
		missing := all - min(at, st.Size())
		w.cut(-1)
		res, _ := h.move("pull", "--from", w.url(), "--to", to)
		came := w.cut(-1)
		t.Logf("%d: cut at %d: %d kept, %d came, %d of %d records had come before", i, at, st.Size(), came, res.Resumed, res.Records)
		if came > missing+slack || res.Resumed == 0 {
			t.Errorf("%d: cut at %d of %d: %d came, %+v", i, at, all, came, res)
		}
		if _, err := os.Lstat(partial); err == nil {
			t.Error("something is left")
		}
		if again, _ := h.move("push", "--from", to, "--to", s.url()); again.Written+again.Deleted != 0 || again.Digest != res.Digest {
			t.Errorf("the pulled file is not what is on the server: %+v, %+v", again, res)
		}
		h.must("", "ov", "--vault", to, "secret", "get", fmt.Sprintf("ALSO_%d", i), "--reveal", "--machine-key", "key")
	}
	if resumed < 5 {
		t.Errorf("only %d went on", resumed)
	}

	// Lost once, it goes on by itself.
	_ = os.Remove(to)
	w.cut(all / 2)
	w.mu.Lock()
	w.again = true
	w.mu.Unlock()
	h.move("pull", "--from", w.url(), "--to", to)
	if came := w.cut(-1); came < all || came > all+slack {
		t.Errorf("lost once: %d of %d came", came, all)
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir, ".*.pull")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
