//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// handed is how many secrets each `ov run` hands over, however many there are.
const handed = 10

const password = "the password of a benchmark"

var ref = vault.Ref{App: "myapp", Env: "production"}

// home is one user with a vault, a machine key and a running agent.
type home struct {
	dir, ov, key string
	env          []string
	secrets      int
}

// newHome makes a vault with n secrets in one env and starts its agent.
func newHome(dir, bin string, n int) (*home, error) {
	h := &home{dir: dir, ov: filepath.Join(bin, "ov"), key: filepath.Join(dir, "machine.key"), secrets: n}
	runtime := filepath.Join(dir, "run")
	if err := os.MkdirAll(runtime, 0o700); err != nil {
		return nil, err
	}
	h.env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "TMPDIR=" + runtime, "XDG_RUNTIME_DIR=" + runtime,
		"XDG_DATA_HOME=" + dir + "/data", "XDG_CONFIG_HOME=" + dir + "/config", "XDG_STATE_HOME=" + dir + "/state"}
	if err := h.command(password, "auth", "init", "--password-stdin").Run(); err != nil {
		return nil, fmt.Errorf("ov auth init: %w", err)
	}
	if err := h.fill(n); err != nil {
		return nil, err
	}
	atEnd(h.stop)
	for _, args := range [][]string{
		{"auth", "derive-machine-key", "--out", h.key, "--password-stdin"},
		{"agent", "start", "--password-stdin"},
	} {
		if err := h.command(password, args...).Run(); err != nil {
			return nil, fmt.Errorf("ov %s: %w", strings.Join(args, " "), err)
		}
	}
	return h, nil
}

func (h *home) command(stdin string, args ...string) *exec.Cmd {
	cmd := exec.Command(h.ov, args...)
	cmd.Env, cmd.Dir, cmd.Stderr = h.env, h.dir, os.Stderr
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin + "\n")
	}
	return cmd
}

// vaultPath is where ov keeps the vault of this home.
func (h *home) vaultPath() string { return h.dir + "/data/ov/vault.db" }

// fill writes n secrets of 32 bytes.
func (h *home) fill(n int) error {
	ctx := context.Background()
	pw, err := kek.LockedFrom([]byte(password))
	if err != nil {
		return err
	}
	defer pw.Destroy()
	s, err := vault.New(bolt.New(h.vaultPath())).Unlock(ctx, pw)
	if err != nil {
		return err
	}
	defer s.Destroy()
	return putMany(ctx, s, n)
}

// names are the secrets that a run asks for, spread over the vault.
func (h *home) names() []string {
	var names []string
	for i := range handed {
		names = append(names, fmt.Sprintf("SECRET_%d", i*(h.secrets/handed)))
	}
	return names
}

// runs are the ways to start a program with secrets of this vault.
func (h *home) runs(label string) []program {
	common := []string{"--app", ref.App, "--env", ref.Env, "--secrets", strings.Join(h.names(), ","), "--", "/bin/true"}
	return []program{
		{name: "`ov run` over the agent" + label, argv: append([]string{h.ov, "run", "--agent"}, common...), env: h.env},
		{name: "`ov run --machine-key`" + label, argv: append([]string{h.ov, "run", "--machine-key", h.key}, common...), env: h.env},
	}
}

// verify fails unless each way really hands the secrets over: what is fast
// because it does nothing is worth nothing.
func (h *home) verify() error {
	for _, p := range h.runs("") {
		argv := slices.Clone(p.argv[1:])
		argv[len(argv)-1] = "/usr/bin/env"
		cmd := h.command("", argv...)
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if got := bytes.Count(out, []byte("=the value of secret ")); got != handed {
			return fmt.Errorf("%s: the program got %d secrets instead of %d", p.name, got, handed)
		}
	}
	return nil
}

func (h *home) target() (peer.Target, error) {
	return peer.Locate(peer.Options{Socket: filepath.Join(h.dir, "run", "ov-agent", "ov-agent.sock")})
}

func (h *home) stop() { _ = h.command("", "agent", "stop").Run() }
