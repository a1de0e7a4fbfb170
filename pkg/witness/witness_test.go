package witness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// childEnv has a directory: the process remembers in it and ends.
const childEnv = "WITNESS_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	account = [16]byte{1, 2, 3}
	at      = time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC)
)

// rounds are how often each child counts up.
const rounds = 40

// child adds 1 to the counter of an env, as processes do that write to it.
func child(dir string) {
	w := Open(dir, func(err error) { fmt.Fprintln(os.Stderr, err); os.Exit(1) })
	for range rounds {
		w.Remember(account, func(s *vault.Seen) bool { envOf(s).Counter++; return true })
	}
}

func envOf(s *vault.Seen) *vault.SeenEnv {
	if s.Apps == nil {
		s.Apps = map[string]*vault.SeenApp{"app": {At: at, Envs: map[string]*vault.SeenEnv{"env": {At: at, Secrets: map[[32]byte]vault.SeenSecret{}}}}}
	}
	return s.Apps["app"].Envs["env"]
}

// quiet fails the test when nothing can be kept.
func quiet(t *testing.T, dir string) *Witness {
	return Open(dir, func(err error) { t.Helper(); t.Error(err) })
}

func fill(s *vault.Seen, secrets int) {
	s.Epoch, s.At = 7, at
	s.Apps = map[string]*vault.SeenApp{
		"a": {ID: [16]byte{1}, Created: at, Generation: 2, At: at, Envs: map[string]*vault.SeenEnv{}},
		"b": {ID: [16]byte{2}, At: at, Envs: map[string]*vault.SeenEnv{
			"dev": {ID: [16]byte{3}, Created: at, Counter: 1<<64 - 1, Count: 1<<32 - 1, Sum: [32]byte{4}, At: at, Whole: 5, Secrets: map[[32]byte]vault.SeenSecret{}},
			"x":   {At: at, Secrets: map[[32]byte]vault.SeenSecret{}},
		}},
	}
	for i := range secrets {
		s.Apps["b"].Envs["dev"].Secrets[[32]byte{byte(i >> 8), byte(i)}] = vault.SeenSecret{Version: uint32(i + 1), Mark: [8]byte{9}, At: at}
	}
}

func TestRemember(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "seen")
	w := quiet(t, dir)
	if s, err := w.Recall(account); err != nil || !reflect.DeepEqual(s, &vault.Seen{}) {
		t.Fatalf("at first: %+v, %v", s, err)
	}
	w.Remember(account, func(s *vault.Seen) bool { fill(s, 3); return true })
	want := &vault.Seen{}
	fill(want, 3)
	for _, other := range []*Witness{w, quiet(t, dir)} {
		if s, err := other.Recall(account); err != nil || !reflect.DeepEqual(s, want) {
			t.Errorf("got %+v, %v", s, err)
		}
	}
	file := filepath.Join(dir, hex.EncodeToString(account[:]))
	st, err := os.Stat(file)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v: %v", st.Mode(), err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory %v: %v", st.Mode(), err)
	}
	// Nothing new, nothing written.
	for _, changed := range []bool{false, true} {
		w.Remember(account, func(*vault.Seen) bool { return changed })
		if again, err := os.Stat(file); err != nil || !os.SameFile(st, again) {
			t.Errorf("written without anything new: %v", err)
		}
	}
	if s, err := w.Recall([16]byte{9}); err != nil || len(s.Apps) != 0 {
		t.Errorf("another account: %+v, %v", s, err)
	}
}

// Many processes at once lose nothing of what any of them has seen.
func TestManyProcesses(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const children = 4
	for range children {
		wg.Go(func() {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), childEnv+"="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	var last uint64
	w := quiet(t, dir)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		s, err := w.Recall(account)
		if err != nil {
			t.Fatal(err)
		}
		if n := envOf(s).Counter; n < last {
			t.Fatalf("from %d back to %d", last, n)
		} else {
			last = n
		}
	}
	if last != children*rounds {
		t.Errorf("counted to %d, want %d", last, children*rounds)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left are %q: %v", left, err)
	}
}

// A file that is not what was written, or that somebody else could have
// written, is an error that says how to forget it.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	quiet(t, dir).Remember(account, func(s *vault.Seen) bool { fill(s, 3); return true })
	file := filepath.Join(dir, hex.EncodeToString(account[:]))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte, mode os.FileMode) {
		t.Helper()
		_ = os.Remove(file)
		if err := errors.Join(os.WriteFile(file, b, mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string) {
		t.Helper()
		var told []error
		w := Open(dir, func(err error) { told = append(told, err) })
		s, err := w.Recall(account)
		if !errors.Is(err, ErrDamaged) || s != nil || !strings.Contains(err.Error(), file) || !strings.HasSuffix(hint.Of(err), ": rm "+file) || len(told) > 0 {
			t.Errorf("%s: %v, %v (%s), told %v", what, s, err, hint.Of(err), told)
		}
		before, _ := os.ReadFile(file)
		w.Remember(account, func(s *vault.Seen) bool { s.Epoch++; return true })
		if after, _ := os.ReadFile(file); string(after) != string(before) || len(told) != 1 {
			t.Errorf("%s: overwritten, or told %v", what, told)
		}
	}
	for at := range good {
		b := append([]byte{}, good...)
		b[at] ^= 1 << (at % 8)
		if _, err := decode(b); !errors.Is(err, envelope.ErrMalformed) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	write(good[:len(good)-1], 0o600)
	refused("cut short")
	write(nil, 0o600)
	refused("empty")
	write(make([]byte, maxFile+1), 0o600)
	refused("too large")
	write(good, 0o640)
	refused("readable by the group")
	write(good, 0o602)
	refused("writable by others")
	write(good, 0o600)
	if err := os.Link(file, filepath.Join(dir, "second")); err != nil {
		t.Fatal(err)
	}
	refused("with two names")
	_ = os.Remove(filepath.Join(dir, "second"))
	if _, err := quiet(t, dir).Recall(account); err != nil {
		t.Error(err)
	}
	_ = os.Remove(file)
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, nil).Recall(account); !errors.Is(err, ErrDamaged) {
		t.Errorf("a directory: %v", err)
	}
}

// Where nothing can be kept, the caller is told once, and goes on.
func TestNoPlace(t *testing.T) {
	parent := t.TempDir()
	occupied := filepath.Join(parent, "file")
	if err := os.WriteFile(occupied, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(parent, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil { //nolint:gosec // that is the fault
		t.Fatal(err)
	}
	for what, dir := range map[string]string{"below a file": filepath.Join(occupied, "seen"), "open to all": open, "in /proc": "/proc/1/seen"} {
		var told []error
		w := Open(dir, func(err error) { told = append(told, err) })
		for range 3 {
			w.Remember(account, func(s *vault.Seen) bool { s.Epoch = 9; return true })
			if s, err := w.Recall(account); err != nil || s == nil || s.Epoch != 0 {
				t.Errorf("%s: %+v, %v", what, s, err)
			}
		}
		if len(told) != 1 || !strings.Contains(hint.Of(told[0]), "XDG_STATE_HOME") {
			t.Errorf("%s: told %v", what, told)
		}
	}
	Open("/proc/1/seen", nil).Remember(account, func(*vault.Seen) bool { return true })
}

func TestPlace(t *testing.T) {
	state := t.TempDir()
	t.Setenv("STATE_DIRECTORY", "")
	t.Setenv("XDG_STATE_HOME", state)
	Open("", func(err error) { t.Error(err) }).Remember(account, func(s *vault.Seen) bool { fill(s, 1); return true })
	if _, err := os.Stat(filepath.Join(state, "ov/seen", hex.EncodeToString(account[:]))); err != nil {
		t.Error(err)
	}
}

// What does not fit is forgotten, the oldest first.
func TestBounds(t *testing.T) {
	s := &vault.Seen{Apps: map[string]*vault.SeenApp{"app": {At: at, Envs: map[string]*vault.SeenEnv{}}}}
	envs := s.Apps["app"].Envs
	for i := range 8 { // of 213 kB each
		e := &vault.SeenEnv{Counter: 9, Whole: 9, At: at.Add(time.Duration(i) * time.Hour), Secrets: map[[32]byte]vault.SeenSecret{}}
		for j := range vault.MaxSeen {
			e.Secrets[[32]byte{byte(j >> 8), byte(j)}] = vault.SeenSecret{Version: 1, At: at}
		}
		envs["env-"+strconv.Itoa(i)] = e
	}
	b := encode(s)
	got, err := decode(b)
	if err != nil || len(b) > maxFile || len(got.Apps["app"].Envs) != 8 {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	for i := range 8 {
		e := got.Apps["app"].Envs["env-"+strconv.Itoa(i)]
		if kept := i >= 4; kept != (len(e.Secrets) == vault.MaxSeen) || kept != (e.Whole == 9) || e.Counter != 9 {
			t.Errorf("env %d: %d secrets, whole at %d", i, len(e.Secrets), e.Whole)
		}
	}
	for i := range 20_000 {
		envs["many-"+strconv.Itoa(i)] = &vault.SeenEnv{Counter: 1, At: at.Add(time.Duration(i) * time.Second)}
	}
	for i := range 8 {
		delete(envs, "env-"+strconv.Itoa(i))
	}
	b = encode(s)
	if got, err = decode(b); err != nil || len(b) > maxFile || len(b) < maxFile-1000 || got.Apps["app"].Envs["many-19999"] == nil || got.Apps["app"].Envs["many-0"] != nil {
		t.Errorf("%d bytes, %d envs: %v", len(b), len(got.Apps["app"].Envs), err)
	}
}

// FuzzFile: what is taken for a file is what would be written again.
func FuzzFile(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, mended bool) {
		if mended {
			b = mend(b)
		}
		s, err := decode(b)
		if err != nil {
			if !errors.Is(err, envelope.ErrMalformed) || s != nil {
				t.Errorf("%v, %v", s, err)
			}
			return
		}
		if again := encode(s); string(again) != string(b) {
			t.Errorf("%x is accepted, and written as %x", b, again)
		}
	})
}

// mend gives a file a right checksum.
func mend(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(append([]byte{}, b...), sum[:]...)
}

// With a real vault: one client, two processes' worth of witnesses, a store that
// is put back.
func TestVault(t *testing.T) {
	ctx := t.Context()
	password, err := kek.LockedFrom([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	defer password.Destroy()
	dir := t.TempDir()
	path := filepath.Join(t.TempDir(), "vault.db")
	st := bolt.New(path)
	if err := vault.New(st).Init(ctx, st.Create, password); err != nil {
		t.Fatal(err)
	}
	s, err := vault.New(st).Unlock(ctx, password)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	key, _, err := s.DeriveMachineKey(ctx, vault.Ref{}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	ref := vault.Ref{App: "default", Env: "production"}
	open := func(options ...vault.Option) *vault.Session {
		t.Helper()
		clone, err := key.Clone()
		if err != nil {
			t.Fatal(err)
		}
		s, err := vault.New(st, append(options, vault.WithWitness(quiet(t, dir)))...).UnlockKey(ctx, clone)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Destroy)
		return s
	}
	put := func(value string) {
		t.Helper()
		if _, err := open().Put(ctx, ref, []vault.Put{{Name: "TOKEN", Value: []byte(value)}}, vault.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(s *vault.Session) error {
		return s.Reveal(ctx, ref, vault.Select{Names: []string{"TOKEN"}}, func([]vault.Secret) error { return nil })
	}
	put("one")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put("two")
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := read(open()); !errors.Is(err, vault.ErrRollback) || !strings.Contains(err.Error(), "env default/production had change 3 on ") {
		t.Errorf("got %v", err)
	}
	if err := read(open(vault.AcceptRollback())); err != nil {
		t.Error(err)
	}
	if err := read(open()); err != nil {
		t.Errorf("after it was accepted: %v", err)
	}
	put("three")
}
