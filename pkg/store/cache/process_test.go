package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// childVariable makes this test binary another process, which uses the cache in
// a directory and the vault in a file again and again: "DIR VAULT KEY".
const childVariable = "CACHE_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childVariable); what != "" {
		fmt.Fprintln(os.Stderr, child(strings.Fields(what)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child writes the cache at every turn: the env has changed each time.
func child(args []string) error {
	key, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	f := &far{Store: bolt.New(args[1])}
	for i := 0; ; i++ {
		c := &client{Store: New(f, Options{Dir: args[0], Server: server, MaxStale: DefaultMaxStale, MaxSize: 30_000})}
		locked, err := kek.LockedFrom(bytes.Clone(key))
		if err != nil {
			return err
		}
		s, err := vault.New(c.Store).UnlockKey(context.Background(), locked)
		if err != nil {
			return err
		}
		ref := refs[i%len(refs)]
		put := []vault.Put{{Name: nameOf(0), Value: fmt.Appendf(nil, "%d", i)}}
		if _, err := s.Put(context.Background(), ref, put, vault.PutOptions{}); err != nil {
			return err
		}
		if _, err := reveal(s, ref); err != nil {
			return err
		}
		if err := c.refresh(s); err != nil {
			return err
		}
		s.Destroy()
		c.Close()
		fmt.Println(i)
	}
}

// start starts children and waits until each has written.
func start(t *testing.T, n int, dir, file string) []*exec.Cmd {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, fixture(t).account, 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var list []*exec.Cmd
	for range n {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", childVariable, dir, file, key))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		if _, err := out.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		go func() { // until it ends
			for buf := make([]byte, 4096); ; {
				if _, err := out.Read(buf); err != nil {
					return
				}
			}
		}()
		list = append(list, cmd)
	}
	return list
}

// Many processes write and read one cache. Every answer is a whole one, and the
// files stay within their bound.
func TestManyProcesses(t *testing.T) {
	f, dir := newFar(t), filepath.Join(t.TempDir(), "cache")
	children := start(t, 3, dir, f.Path())
	reader := &far{Store: bolt.New(f.Path())}
	reader.away.Store(true)
	answers := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		c := newClient(t, reader, dir)
		s, err := c.open(fixture(t).account)
		if errors.Is(err, store.ErrUnavailable) {
			continue // between a change and the file of it
		}
		if err != nil {
			t.Fatal(err)
		}
		ref := refs[rand.IntN(len(refs))]
		got, err := reveal(s, ref)
		switch {
		case errors.Is(err, store.ErrUnavailable):
		case err != nil || len(got) != 4 || got[nameOf(1)] != valueOf(ref, 1):
			t.Fatalf("%s: %v, %v", ref, got, err)
		default:
			answers++
		}
		if strings.Contains(c.told(), "damaged") {
			t.Fatal(c.told())
		}
		sum := int64(0)
		for name, size := range files(t, dir) {
			if strings.HasSuffix(name, suffix) {
				sum += size
			}
		}
		if sum > 30_000 {
			t.Errorf("%d bytes", sum)
		}
		c.Close()
	}
	if answers < 20 {
		t.Errorf("%d answers", answers)
	}
	t.Logf("%d answers from the cache while 3 processes wrote it", answers)
	for _, cmd := range children {
		if cmd.ProcessState != nil {
			t.Errorf("a writer has ended: %v", cmd.ProcessState)
		}
	}
}

// A writer that is killed at any instant leaves the cache as it was or as it
// should be, and nothing behind that stays.
func TestKilledWriters(t *testing.T) {
	f, dir := newFar(t), filepath.Join(t.TempDir(), "cache")
	c := newClient(t, f, dir)
	for _, ref := range refs {
		c.use(fixture(t).account, ref)
	}
	reader := &far{Store: bolt.New(f.Path())}
	reader.away.Store(true)
	const kills = 25
	left := 0
	for range kills {
		cmd := start(t, 1, dir, f.Path())[0]
		time.Sleep(rand.N(30 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for name := range files(t, dir) {
			if strings.HasPrefix(name, tmpPrefix) {
				left++
			}
		}
		c := newClient(t, reader, dir)
		s := c.mustOpen(fixture(t).account)
		for _, ref := range refs {
			if got, err := reveal(s, ref); err != nil || len(got) != 4 || got[nameOf(1)] != valueOf(ref, 1) {
				t.Fatalf("%s: %v, %v, told %s", ref, got, err, c.told())
			}
		}
		if strings.Contains(c.told(), "damaged") {
			t.Fatal(c.told())
		}
	}
	t.Logf("%d kills, %d left something behind", kills, left)
	c = newClient(t, f, dir)
	s := c.mustOpen(fixture(t).account)
	set(t, f, prod, nameOf(0), "at last")
	if _, err := reveal(s, prod); err != nil {
		t.Fatal(err)
	}
	c.mustRefresh(s)
	for name := range files(t, dir) {
		if strings.HasPrefix(name, tmpPrefix) {
			t.Errorf("%s is left", name)
		}
	}
}
