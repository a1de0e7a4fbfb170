// Package storetest is the conformance test of store.Store: every
// implementation passes it, in one process and across many. RunAccounts is that
// of store.Accounts.
//
// A package that implements a store calls Main from its TestMain and Run from a
// test. RunOne is for storage that one process alone has.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

// Open returns the store at an address, in this process or another. It may be
// called many times for one address.
type Open func(address string) (store.Store, error)

// childEnv holds a child's role, the store's address and a number.
const childEnv = "STORETEST_CHILD"

// Main runs the tests, or the part of a child process that Run has started.
func Main(m *testing.M, open Open) {
	role, ok := os.LookupEnv(childEnv)
	if !ok {
		os.Exit(m.Run())
	}
	f := strings.SplitN(role, " ", 3)
	n, err := strconv.Atoi(f[1])
	var s store.Store
	if err == nil {
		s, err = open(f[2])
	}
	if err == nil {
		err = roles[f[0]](context.Background(), s, n)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child starts another process with a role on the store.
func child(t *testing.T, role string, n int, address string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", childEnv, role, n, address))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// roles are what children do, and goroutines too.
var roles = map[string]func(context.Context, store.Store, int) error{
	"count": count,
	"check": check,
	"flood": flood,
}

const (
	setSize = 20 // records that are always written together
	counter = "counter"
)

func setKey(i int) []byte { return fmt.Appendf(nil, "set/%02d", i) }

// count adds 1 to the counter n times, and writes it into the whole set.
func count(ctx context.Context, s store.Store, n int) error {
	for range n {
		err := s.Update(ctx, func(r store.Reader) (store.Batch, error) {
			old, err := r.Get([]byte(counter))
			if err != nil {
				return nil, err
			}
			value, _ := strconv.Atoi(string(old))
			return set(value + 1), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func set(value int) (b store.Batch) {
	text := strconv.Itoa(value)
	b.Put([]byte(counter), []byte(text))
	for i := range setSize {
		b.Put(setKey(i), []byte(strings.Repeat(text+" ", 40)))
	}
	return b
}

// check looks n times whether all of the set is from one batch, and that it
// never goes back.
func check(ctx context.Context, s store.Store, n int) error {
	last := 0
	for range n {
		value, err := whole(ctx, s)
		if err != nil {
			return err
		}
		if value < last {
			return fmt.Errorf("the counter went from %d back to %d", last, value)
		}
		last = value
	}
	return nil
}

// whole returns the counter, if all of the set agrees with it.
func whole(ctx context.Context, s store.Store) (value int, err error) {
	err = s.View(ctx, func(r store.Reader) error {
		text, err := r.Get([]byte(counter))
		if err != nil || text == nil {
			return err
		}
		if value, err = strconv.Atoi(string(text)); err != nil {
			return err
		}
		want, n := strings.Repeat(string(text)+" ", 40), 0
		err = r.Scan([]byte("set/"), func(key, got []byte) error {
			if n++; string(got) != want {
				return fmt.Errorf("the counter is %s and %s is %.20s…", text, key, got)
			}
			return nil
		})
		if err == nil && n != setSize {
			err = fmt.Errorf("%d records of %d", n, setSize)
		}
		return err
	})
	return value, err
}

// flood counts until it is killed.
func flood(ctx context.Context, s store.Store, _ int) error { return count(ctx, s, 1<<30) }

func setup(t *testing.T, fresh func(*testing.T) string, open Open) (store.Store, string) {
	t.Helper()
	address := fresh(t)
	s, err := open(address)
	if err != nil {
		t.Fatal(err)
	}
	return s, address
}

// Run is the conformance test. fresh makes an empty store and returns its
// address.
func Run(t *testing.T, fresh func(*testing.T) string, open Open) {
	RunOne(t, fresh, open)
	ctx := t.Context()

	t.Run("processes", func(t *testing.T) {
		s, address := setup(t, fresh, open)
		put(t, s, set(0))
		var all []*exec.Cmd
		for _, role := range []string{"count", "count", "count", "count", "check", "check"} {
			all = append(all, child(t, role, 25, address))
		}
		for _, cmd := range all {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
		if value, err := whole(ctx, s); value != 100 || err != nil {
			t.Errorf("100 additions made %d: %v", value, err)
		}
	})

	t.Run("killed", func(t *testing.T) {
		s, address := setup(t, fresh, open)
		put(t, s, set(0))
		last := 0
		for range 20 {
			cmd := child(t, "flood", 0, address)
			deadline := time.Now().Add(10 * time.Second)
			for started := false; !started; { // it must be at work
				value, err := whole(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				if started = value > last; !started && time.Now().After(deadline) {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
					t.Fatal("a child wrote nothing for 10 s")
				}
			}
			time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond) //nolint:gosec // no secret
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			value, err := whole(ctx, s)
			if err != nil || value < last {
				t.Fatalf("after a kill the counter is %d, was %d: %v", value, last, err)
			}
			last = value
			if err := count(ctx, s, 1); err != nil {
				t.Fatal(err)
			}
			last++
		}
	})
}

// RunOne is Run without other processes.
func RunOne(t *testing.T, fresh func(*testing.T) string, open Open) {
	ctx := t.Context()
	setup := func(t *testing.T) (store.Store, string) { t.Helper(); return setup(t, fresh, open) }
	simple := func(name string, fn func(*testing.T, store.Store)) {
		t.Run(name, func(t *testing.T) {
			s, _ := setup(t)
			fn(t, s)
		})
	}

	simple("empty", func(t *testing.T, s store.Store) {
		same(t, s, nil)
		if err := s.Update(ctx, func(store.Reader) (store.Batch, error) { return nil, nil }); err != nil {
			t.Errorf("an empty batch: %v", err)
		}
		put(t, s, store.Batch{{Key: []byte("absent")}}) // a deletion of nothing
		same(t, s, nil)
	})

	simple("bounds", func(t *testing.T, s store.Store) {
		good := store.Op{Key: []byte("good"), Value: []byte("v")}
		for _, c := range []struct {
			what string
			op   store.Op
		}{
			{"an empty key", store.Op{Value: []byte("v")}},
			{"an empty key deleted", store.Op{}},
			{"a long key", store.Op{Key: make([]byte, store.MaxKey+1), Value: []byte("v")}},
			{"an empty value", store.Op{Key: []byte("k"), Value: []byte{}}},
			{"a long value", store.Op{Key: []byte("k"), Value: make([]byte, store.MaxValue+1)}},
		} {
			err := s.Update(ctx, func(store.Reader) (store.Batch, error) { return store.Batch{good, c.op, good}, nil })
			if err == nil {
				t.Errorf("%s was written", c.what)
			}
		}
		same(t, s, nil)
		model := map[string]string{
			strings.Repeat("k", store.MaxKey):   strings.Repeat("v", store.MaxValue),
			strings.Repeat("k", store.MaxKey-1): strings.Repeat("w", store.MaxValue),
			"\x01":                              "\x00",
			"\x01\x00":                          "\x01",
			"\xff":                              "\xff",
			"\xff\xff":                          "\xfe",
		}
		put(t, s, batchOf(model))
		same(t, s, model)
	})

	simple("batch", func(t *testing.T, s store.Store) {
		value := []byte("3")
		put(t, s, store.Batch{
			{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("b"), Value: []byte("1")},
			{Key: []byte("a"), Value: []byte("2")}, {Key: []byte("b")},
			{Key: []byte("c")}, {Key: []byte("c"), Value: value},
		})
		value[0] = 'x' // what was written is the store's own
		same(t, s, map[string]string{"a": "2", "c": "3"})
	})

	simple("failed update", func(t *testing.T, s store.Store) {
		put(t, s, set(1))
		mine := errors.New("mine")
		err := s.Update(ctx, func(store.Reader) (store.Batch, error) { return set(2), mine })
		if !errors.Is(err, mine) {
			t.Errorf("got %v, want the function's error", err)
		}
		if err := s.View(ctx, func(store.Reader) error { return mine }); !errors.Is(err, mine) {
			t.Errorf("got %v, want the function's error", err)
		}
		if value, err := whole(ctx, s); value != 1 || err != nil {
			t.Errorf("the counter is %d: %v", value, err)
		}
	})

	simple("scan", func(t *testing.T, s store.Store) {
		model := map[string]string{"a": "1", "ab": "2", "ab\x00": "3", "abc": "4", "ac": "5", "b": "6", "ab\xff": "7"}
		put(t, s, batchOf(model))
		mine := errors.New("mine")
		err := s.View(ctx, func(r store.Reader) error {
			var got []string
			err := r.Scan([]byte("ab"), func(k, _ []byte) error { got = append(got, string(k)); return nil })
			if want := []string{"ab", "ab\x00", "abc", "ab\xff"}; err != nil || !slices.Equal(got, want) {
				t.Errorf("got %q, want %q: %v", got, want, err)
			}
			n := 0
			if err := r.Scan(nil, func(_, _ []byte) error { n++; return mine }); !errors.Is(err, mine) || n != 1 {
				t.Errorf("after an error %d calls and %v", n, err)
			}
			for prefix, want := range map[string]string{"": "b", "a": "ac", "ab": "ab\xff", "ab\x00": "ab\x00", "b": "b", "aa": "", "c": ""} {
				k, v, err := r.Last([]byte(prefix))
				if err != nil || string(k) != want || (k == nil) != (want == "") || string(v) != model[want] {
					t.Errorf("last of %q: got %q = %q, want %q: %v", prefix, k, v, want, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})

	// What was fetched reads as what was not.
	simple("fetch", func(t *testing.T, s store.Store) {
		model := map[string]string{"a": "1", "ab": "2", "ab\x00": "3", "abc": "4", "ac": "5", "b": "6"}
		put(t, s, batchOf(model))
		err := s.View(ctx, func(r store.Reader) error {
			err := r.Fetch(store.Range{Key: []byte("ab"), Take: store.All}, store.Range{Key: []byte("a"), Take: store.One},
				store.Range{Key: []byte("no"), Take: store.One}, store.Range{Key: []byte("a"), Take: store.Last},
				store.Range{Key: []byte("no"), Take: store.Last}, store.Range{Key: []byte("no"), Take: store.All})
			if err != nil {
				return err
			}
			for _, key := range []string{"a", "ab", "ab\x00", "abc", "ac", "b", "no", "ab\x01", "aba"} {
				if v, err := r.Get([]byte(key)); err != nil || string(v) != model[key] {
					t.Errorf("get %q: %q, %v", key, v, err)
				}
			}
			for prefix, want := range map[string]string{"ab": "2 3 4 ", "abc": "4 ", "a": "1 2 3 4 5 ", "no": "", "": "1 2 3 4 5 6 "} {
				got := ""
				err := r.Scan([]byte(prefix), func(_, v []byte) error { got += string(v) + " "; return nil })
				if err != nil || got != want {
					t.Errorf("scan %q: %q, want %q: %v", prefix, got, want, err)
				}
			}
			for prefix, want := range map[string]string{"a": "ac", "ab": "abc", "no": "", "": "b"} {
				if k, v, err := r.Last([]byte(prefix)); err != nil || string(k) != want || string(v) != model[want] {
					t.Errorf("last of %q: got %q = %q, want %q: %v", prefix, k, v, want, err)
				}
			}
			// Reading on inside of a scan.
			return r.Scan([]byte("a"), func(k, v []byte) error {
				inner, err := r.Get(k)
				if err == nil && string(inner) != string(v) {
					t.Errorf("inside of a scan %q is %q", k, inner)
				}
				return err
			})
		})
		if err != nil {
			t.Error(err)
		}
	})

	simple("values last as long as their snapshot", func(t *testing.T, s store.Store) {
		model := map[string]string{}
		for i := range 2000 {
			model[fmt.Sprintf("%04d", i)] = strings.Repeat(strconv.Itoa(i), 60)
		}
		put(t, s, batchOf(model))
		read := func(r store.Reader) error {
			got := map[string][]byte{}
			for k := range model {
				v, err := r.Get([]byte(k))
				if err != nil {
					return err
				}
				got[k] = v
			}
			for k, v := range got {
				if string(v) != model[k] {
					return fmt.Errorf("%s turned into %.20q", k, v)
				}
			}
			return nil
		}
		if err := s.View(ctx, read); err != nil {
			t.Error(err)
		}
		if err := s.Update(ctx, func(r store.Reader) (store.Batch, error) { return nil, read(r) }); err != nil {
			t.Error(err)
		}
	})

	t.Run("model", func(t *testing.T) {
		s, address := setup(t)
		model := map[string]string{}
		rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same choices in each run
		key := func() []byte {
			// Few keys, of which some are prefixes of others.
			return []byte(strings.Repeat(string(rune('a'+rnd.IntN(6))), 1+rnd.IntN(70)) + strconv.Itoa(rnd.IntN(40)))
		}
		for round := range 150 {
			var b store.Batch
			for range rnd.IntN(60) {
				k := key()
				if rnd.IntN(5) < 2 {
					b.Delete(k)
					delete(model, string(k))
					continue
				}
				size := 1 + rnd.IntN(200)
				if rnd.IntN(40) == 0 {
					size = 1 + rnd.IntN(70_000)
				}
				v := bytes.Repeat([]byte{byte(rnd.IntN(256))}, size)
				b.Put(k, v)
				model[string(k)] = string(v)
			}
			if round%20 == 19 { // all that starts with a letter
				prefix := string(rune('a' + rnd.IntN(6)))
				for k := range model {
					if strings.HasPrefix(k, prefix) {
						b.Delete([]byte(k))
						delete(model, k)
					}
				}
			}
			put(t, s, b)
			if round%10 == 0 {
				same(t, s, model)
			}
		}
		again, err := open(address)
		if err != nil {
			t.Fatal(err)
		}
		same(t, again, model)
		var all store.Batch
		for k := range model {
			all.Delete([]byte(k))
		}
		put(t, s, all)
		same(t, again, nil)
	})

	simple("large batch", func(t *testing.T, s store.Store) {
		model := map[string]string{}
		for i := range 20_000 {
			model[fmt.Sprintf("%08x", i*2654435761%(1<<32))] = strconv.Itoa(i)
		}
		put(t, s, batchOf(model))
		same(t, s, model)
	})

	t.Run("goroutines", func(t *testing.T) {
		s, _ := setup(t)
		put(t, s, set(0))
		var wg sync.WaitGroup
		for _, role := range []string{"count", "count", "count", "count", "check", "check"} {
			wg.Go(func() {
				if err := roles[role](ctx, s, 25); err != nil {
					t.Errorf("%s: %v", role, err)
				}
			})
		}
		wg.Wait()
		if value, err := whole(ctx, s); value != 100 || err != nil {
			t.Errorf("100 additions made %d: %v", value, err)
		}
	})

	simple("context", func(t *testing.T, s store.Store) {
		put(t, s, set(0))
		inside, leave, done := make(chan bool), make(chan bool), make(chan error)
		go func() {
			var once sync.Once
			done <- s.Update(ctx, func(r store.Reader) (store.Batch, error) {
				_, err := r.Get([]byte(counter))
				once.Do(func() { close(inside) })
				<-leave
				return set(1), err
			})
		}()
		<-inside
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		waited := make(chan error, 1)
		go func() { waited <- count(soon, s, 1) }()
		select {
		case err := <-waited:
			// A store that makes nobody wait calls the first one's function again.
			if err != nil && !errors.Is(err, store.ErrBusy) {
				t.Errorf("got %v, want ErrBusy", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("a write waits on after its context has ended")
		}
		close(leave)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if value, err := whole(ctx, s); value != 1 || err != nil {
			t.Errorf("the counter is %d: %v", value, err)
		}
	})
}

func batchOf(model map[string]string) (b store.Batch) {
	for k, v := range model { // in no order
		b.Put([]byte(k), []byte(v))
	}
	return b
}

func put(t *testing.T, s store.Store, b store.Batch) {
	t.Helper()
	if err := s.Update(t.Context(), func(store.Reader) (store.Batch, error) { return b, nil }); err != nil {
		t.Fatal(err)
	}
}

// same fails unless the store holds exactly the model.
func same(t *testing.T, s store.Store, model map[string]string) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(model))
	err := s.View(t.Context(), func(r store.Reader) error {
		var got []string
		err := r.Scan(nil, func(k, v []byte) error {
			got = append(got, string(k))
			if string(v) != model[string(k)] {
				t.Errorf("%.40q is %.40q, want %.40q", k, v, model[string(k)])
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !slices.Equal(got, keys) {
			t.Errorf("%d keys or in another order, want %d", len(got), len(keys))
		}
		for _, k := range keys[:min(len(keys), 500)] {
			v, err := r.Get([]byte(k))
			if err != nil || string(v) != model[k] {
				t.Errorf("get %.40q: %.40q, %v", k, v, err)
			}
			if v, err := r.Get([]byte(k + "\x00no")); v != nil || err != nil {
				t.Errorf("get of an absent key: %.40q, %v", v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
