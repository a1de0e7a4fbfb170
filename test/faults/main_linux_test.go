package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// roleEnv makes a child of the test binary play a role.
const roleEnv = "OV_FAULTS_ROLE"

var roles = map[string]func(args []string) error{}

var ovPath string // the real program

func TestMain(m *testing.M) {
	if role, ok := os.LookupEnv(roleEnv); ok {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ovPath = filepath.Join(dir, "ov")
	build := exec.Command("go", "build", "-o", ovPath, "../../cmd/ov")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// role returns a child of this binary that plays a role.
func role(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	return cmd
}

const (
	oldPassword = "the old password"
	newPassword = "the new password"
)

var (
	prod  = vault.Ref{App: "myapp", Env: "production"}
	other = vault.Ref{App: "other", Env: "production"}
)

// base is a vault that was prepared once: some hundred secrets, so that a
// change of keys takes its time.
type base struct {
	file               []byte
	account, app, from []byte // machine keys; from is of prod
}

var prepared = sync.OnceValues(func() (*base, error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "base")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	st := bolt.New(filepath.Join(dir, "vault.db"))
	v := vault.New(st)
	password, err := lock(oldPassword)
	if err != nil {
		return nil, err
	}
	defer password.Destroy()
	if err := v.Init(ctx, st.Create, password); err != nil {
		return nil, err
	}
	s, err := v.Unlock(ctx, password)
	if err != nil {
		return nil, err
	}
	defer s.Destroy()
	for ref, n := range map[vault.Ref]int{prod: 700, other: 50} {
		var list []vault.Put
		for i := range n {
			list = append(list, vault.Put{Name: fmt.Sprintf("N%d", i), Value: []byte(strings.Repeat(fmt.Sprintf("value %d of %s ", i, ref), 3))})
		}
		if _, err := s.Put(ctx, ref, list, vault.PutOptions{Create: true}); err != nil {
			return nil, err
		}
	}
	b := &base{}
	for ref, key := range map[vault.Ref]*[]byte{{}: &b.account, {App: "myapp"}: &b.app, prod: &b.from} {
		k, _, err := s.DeriveMachineKey(ctx, ref, "")
		if err != nil {
			return nil, err
		}
		*key = bytes.Clone(k.Bytes())
		k.Destroy()
	}
	b.file, err = os.ReadFile(st.Path())
	return b, err
})

func lock(s string) (*kek.Locked, error) { return kek.LockedFrom([]byte(s)) }

// home is a directory that an ov works in, with a copy of the base vault.
type home struct {
	t    *testing.T
	dir  string
	base *base
}

func newHome(t *testing.T) *home {
	t.Helper()
	b, err := prepared()
	if err != nil {
		t.Fatal(err)
	}
	h := &home{t, t.TempDir(), b}
	for name, content := range map[string][]byte{"account.key": b.account, "app.key": b.app, "env.key": b.from} {
		h.write(name, content)
	}
	if err := os.Mkdir(filepath.Dir(h.vault()), 0o700); err != nil {
		t.Fatal(err)
	}
	h.reset()
	return h
}

func (h *home) write(name string, content []byte) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), content, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) vault() string { return filepath.Join(h.dir, "v", "vault.db") }

// reset puts the base vault in place, and nothing beside it.
func (h *home) reset() {
	h.t.Helper()
	for _, name := range h.files() {
		if err := os.Remove(filepath.Join(h.dir, "v", name)); err != nil {
			h.t.Fatal(err)
		}
	}
	h.write("v/vault.db", h.base.file)
}

// files are the names in the vault's directory.
func (h *home) files() (names []string) {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(h.vault()))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// ov is the program, not started yet.
func (h *home) ov(stdin string, args ...string) *exec.Cmd {
	cmd := exec.Command(ovPath, append(args, "--vault", h.vault())...)
	cmd.Dir = h.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir, "LC_ALL=C.UTF-8"}
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// state is all that a vault holds, and what still opens it.
type state struct {
	epochs   int
	password string            // which of the two opens it
	keys     string            // which machine keys do
	secrets  map[string]string // "app/env NAME version": value
	envs     []string
}

func (s state) equal(o state) bool {
	return s.epochs == o.epochs && s.password == o.password && s.keys == o.keys && maps.Equal(s.secrets, o.secrets) && slices.Equal(s.envs, o.envs)
}

func (s state) String() string {
	return fmt.Sprintf("%d epochs, opened by %q and keys %s, envs %v, %d secrets", s.epochs, s.password, s.keys, s.envs, len(s.secrets))
}

// read opens the vault and reads everything in it. It prefers the machine key
// of the account, which costs less than a password.
func (h *home) read(usePassword bool) (st state, err error) {
	ctx := context.Background()
	v := vault.New(bolt.New(h.vault()))
	info, err := v.Info(ctx)
	if err != nil {
		return st, err
	}
	st.epochs = len(info.Epochs)
	list, err := v.MachineKeys(ctx)
	if err != nil {
		return st, err
	}
	for i, b := range [][]byte{h.base.account, h.base.app, h.base.from} {
		key, err := kek.LockedFrom(bytes.Clone(b))
		if err != nil {
			return st, err
		}
		s, err := v.UnlockKey(ctx, key)
		switch {
		case err == nil:
			s.Destroy()
			st.keys += "+"
		case errors.Is(err, vault.ErrDeadKey):
			st.keys += "-"
		default:
			return st, fmt.Errorf("machine key %d of %d: %w", i, len(list), err)
		}
	}
	var s *vault.Session
	if usePassword {
		for _, p := range []string{oldPassword, newPassword} {
			password, err := lock(p)
			if err != nil {
				return st, err
			}
			opened, err := v.Unlock(ctx, password)
			password.Destroy()
			switch {
			case err == nil && s == nil:
				s, st.password = opened, p
			case err == nil:
				return st, errors.New("both passwords open the vault")
			case !errors.Is(err, vault.ErrWrongPassword):
				return st, err
			}
		}
		if s == nil {
			return st, errors.New("neither password opens the vault")
		}
	} else {
		key, err := kek.LockedFrom(bytes.Clone(h.base.account))
		if err != nil {
			return st, err
		}
		if s, err = v.UnlockKey(ctx, key); err != nil {
			return st, err
		}
	}
	defer s.Destroy()
	st.secrets = map[string]string{}
	apps, err := s.Apps(ctx)
	if err != nil {
		return st, err
	}
	for _, a := range apps {
		for _, e := range a.Envs {
			ref := vault.Ref{App: a.Slug, Env: e}
			st.envs = append(st.envs, ref.String())
			err := s.Reveal(ctx, ref, vault.Select{}, func(list []vault.Secret) error {
				for _, secret := range list {
					st.secrets[fmt.Sprintf("%s %s %d", ref, secret.Name, secret.Version)] = string(secret.Value)
				}
				return nil
			})
			if err != nil {
				return st, err
			}
		}
	}
	return st, nil
}

// records returns the vault's records as they lie in the file.
func (h *home) records() (map[string]string, error) {
	out := map[string]string{}
	err := bolt.New(h.vault()).View(context.Background(), func(r store.Reader) error {
		return r.Scan(nil, func(k, v []byte) error { out[string(k)] = string(v); return nil })
	})
	return out, err
}

func (h *home) mustRead(usePassword bool) state {
	h.t.Helper()
	st, err := h.read(usePassword)
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

// kills is how often an operation is killed. One with a password takes long.
func kills(t *testing.T, password bool) int {
	n := 120
	if password {
		n = 60
	}
	if s := os.Getenv("OV_FAULTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		n = min(n, 12)
	}
	return n
}
