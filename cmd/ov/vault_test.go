package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
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
