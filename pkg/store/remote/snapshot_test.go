package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

func one(key string) store.Range { return store.Range{Key: []byte(key), Take: store.One} }

func put(t testing.TB, s store.Store, b store.Batch) {
	t.Helper()
	if err := s.Update(t.Context(), func(store.Reader) (store.Batch, error) { return b, nil }); err != nil {
		t.Fatal(err)
	}
}

// total is what all trips of a kind come to.
func total(calls map[string]int) string {
	return fmt.Sprintf("%d reads, %d scans, %d commits", calls["Read"], calls["Scan"], calls["Commit"])
}

// A snapshot takes as many trips as there are fetches, and a write one more.
func TestTrips(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), newRelay(t, server)
	url := serve(t, h)
	s := client(t, url, key)
	put(t, s, store.Batch{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("b1"), Value: []byte("2")}})
	long := strings.Repeat("k", 60)
	for _, c := range []struct {
		what, want string
		fn         func(r store.Reader) error
		write      bool
	}{
		{"nothing", "0 reads, 0 scans, 0 commits", func(store.Reader) error { return nil }, false},
		{"one fetch", "1 reads, 0 scans, 0 commits", func(r store.Reader) error {
			if err := r.Fetch(one("a"), one("b1"), store.Range{Key: []byte("b"), Take: store.Last}); err != nil {
				return err
			}
			_, err := r.Get([]byte("b1"))
			return err
		}, false},
		{"three that depend on each other", "3 reads, 0 scans, 0 commits", func(r store.Reader) error {
			return errors.Join(r.Fetch(one("a")), r.Fetch(one("b1")), r.Fetch(one("c")), r.Fetch(one("a")))
		}, false},
		{"a scan", "0 reads, 1 scans, 0 commits", func(r store.Reader) error {
			return r.Scan([]byte("b"), func(_, _ []byte) error { return nil })
		}, false},
		{"a read and a write", "1 reads, 0 scans, 1 commits", func(r store.Reader) error { return r.Fetch(one("a"), one("x")) }, true},
		{"a write", "0 reads, 0 scans, 1 commits", func(store.Reader) error { return nil }, true},
		// Beyond MaxInline the digests go once, at the end.
		{"400 reads", "401 reads, 0 scans, 0 commits", func(r store.Reader) error { return gets(r, long, 400) }, false},
		{"400 reads and a write", "400 reads, 0 scans, 1 commits", func(r store.Reader) error { return gets(r, long, 400) }, true},
		{"30,000 at once", "2 reads, 0 scans, 0 commits", func(r store.Reader) error { return fetches(r, long, 30_000) }, false},
	} {
		h.trips()
		err := s.Update(t.Context(), func(r store.Reader) (b store.Batch, err error) {
			if c.write {
				b.Put([]byte("x"), []byte("y"))
			}
			return b, c.fn(r)
		})
		if got := total(h.trips()); err != nil || got != c.want && !strings.HasPrefix(c.what, "30,000") {
			t.Errorf("%s: %s, want %s: %v", c.what, got, c.want, err)
		} else {
			t.Logf("%s: %s", c.what, got)
		}
	}
}

func gets(r store.Reader, prefix string, n int) error {
	for i := range n {
		if _, err := r.Get([]byte(prefix + strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

func fetches(r store.Reader, prefix string, n int) error {
	ranges := make([]store.Range, n)
	for i := range ranges {
		ranges[i] = one(prefix + strconv.Itoa(i))
	}
	return r.Fetch(ranges...)
}

// What one call of a function reads is all of one moment, however many trips it
// took, and also when the function fails.
func TestOneMoment(t *testing.T) {
	server := startOne(t)
	url, key := server.url, server.tenant(t)
	s, writer := client(t, url, key), client(t, url, key)
	mine := errors.New("mine")
	for _, c := range []struct {
		what string
		more int // ranges read besides
	}{{"few ranges", 0}, {"more than go with every read", 1000}, {"more than fit into a message", 20_000}} {
		for _, end := range []error{nil, mine} {
			put(t, writer, store.Batch{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("b"), Value: []byte("1")}})
			calls := 0
			var seen string
			err := s.View(t.Context(), func(r store.Reader) error {
				first, err := r.Get([]byte("a"))
				if err != nil {
					return err
				}
				if err := fetches(r, "none", c.more); err != nil {
					return err
				}
				if calls++; calls == 1 {
					put(t, writer, store.Batch{{Key: []byte("a"), Value: []byte("2")}, {Key: []byte("b"), Value: []byte("2")}})
				}
				second, err := r.Get([]byte("b"))
				if err != nil {
					return err
				}
				seen = string(first) + string(second)
				return end
			})
			if !errors.Is(err, end) || seen != "22" || calls != 2 {
				t.Errorf("%s: saw %s after %d calls: %v", c.what, seen, calls, err)
			}
		}

		// The same when it writes.
		calls := 0
		err := s.Update(t.Context(), func(r store.Reader) (b store.Batch, err error) {
			v, err := r.Get([]byte("a"))
			if err != nil {
				return nil, err
			}
			if err := fetches(r, "none", c.more); err != nil {
				return nil, err
			}
			if calls++; calls == 1 {
				put(t, writer, store.Batch{{Key: []byte("a"), Value: []byte("3")}})
			}
			b.Put([]byte("copy"), v)
			return b, nil
		})
		got, gerr := get(t.Context(), writer, "copy")
		if err != nil || gerr != nil || got != "3" || calls != 2 {
			t.Errorf("%s: wrote %q after %d calls: %v, %v", c.what, got, calls, err, gerr)
		}
	}
}

// A function that is denied a range may go on without it.
func TestDenied(t *testing.T) {
	server := startOne(t)
	url, key := serve(t, denying{newRelay(t, server)}), server.tenant(t)
	s := client(t, url, key)
	put(t, s, store.Batch{{Key: []byte("mine"), Value: []byte("1")}})
	err := s.Update(t.Context(), func(r store.Reader) (b store.Batch, err error) {
		if _, err := r.Get([]byte("yours")); !errors.Is(err, store.ErrDenied) || !strings.Contains(err.Error(), `"not for this API key"`) {
			t.Errorf("got %v", err)
		}
		if err := r.Fetch(one("mine"), one("yours")); !errors.Is(err, store.ErrDenied) {
			t.Errorf("got %v", err)
		}
		v, err := r.Get([]byte("mine"))
		b.Put([]byte("copy"), v)
		return b, err
	})
	if got, gerr := get(t.Context(), s, "copy"); got != "1" || err != nil || gerr != nil {
		t.Errorf("%q: %v, %v", got, err, gerr)
	}
	err = s.View(t.Context(), func(r store.Reader) error { _, err := r.Get([]byte("yours")); return err })
	if !errors.Is(err, store.ErrDenied) {
		t.Errorf("got %v", err)
	}
}

type denying struct{ *relay }

func (d denying) Read(ctx context.Context, r *vaultv1.ReadRequest) (*vaultv1.ReadResponse, error) {
	for _, one := range r.Ranges {
		if string(one.Key) == "yours" {
			return nil, status.Error(codes.PermissionDenied, "not for this API key")
		}
	}
	return d.relay.Read(ctx, r)
}

func TestCreate(t *testing.T) {
	server := startOne(t)
	url, key := server.url, server.tenant(t)
	s := client(t, url, key)
	if err := s.Create(t.Context(), store.Batch{{Key: []byte("a"), Value: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	err := s.Create(t.Context(), store.Batch{{Key: []byte("a"), Value: []byte("2")}})
	if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), url) {
		t.Errorf("over another: %v", err)
	}
	if got, err := get(t.Context(), s, "a"); got != "1" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	put(t, s, store.Batch{{Key: []byte("a")}})
	// Of many at the same time one makes it.
	var wg sync.WaitGroup
	var made, exists int
	var mu sync.Mutex
	for i := range 8 {
		wg.Go(func() {
			err := client(t, url, key).Create(t.Context(), store.Batch{{Key: []byte{byte('a' + i)}, Value: []byte("1")}})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errors.Is(err, fs.ErrExist):
				exists++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 || exists != 7 {
		t.Errorf("%d made it, %d found another", made, exists)
	}
}

// sizes notes how long messages are.
type sizes struct {
	*relay
	mu       sync.Mutex
	longest  int
	messages int
}

func (s *sizes) note(m proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest = max(s.longest, proto.Size(m))
	s.messages++
}

func (s *sizes) Read(ctx context.Context, r *vaultv1.ReadRequest) (*vaultv1.ReadResponse, error) {
	s.note(r)
	return s.relay.Read(ctx, r)
}

type noted struct {
	grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]
	to *sizes
}

func (n noted) Recv() (*vaultv1.CommitRequest, error) {
	m, err := n.ClientStreamingServer.Recv()
	if err == nil {
		n.to.note(m)
	}
	return m, err
}

func (s *sizes) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	return s.relay.Commit(noted{stream, s})
}

// Many and large records, read and written: in messages of bounded size.
func TestLarge(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), &sizes{relay: newRelay(t, server)}
	url := serve(t, h)
	s := client(t, url, key)
	var b store.Batch
	for i := range 40 {
		b.Put(fmt.Appendf(nil, "large%02d", i), bytes.Repeat([]byte{byte(i)}, 500_000+i))
	}
	b.Put([]byte("largest"), bytes.Repeat([]byte("x"), store.MaxValue))
	for i := range 30_000 {
		b.Put(fmt.Appendf(nil, "%s%05d", strings.Repeat("s", 60), i), []byte("small"))
	}
	put(t, s, b)
	t.Logf("a batch of %d operations went in %d messages, the longest of %d bytes", len(b), h.messages, h.longest)
	if h.longest > store.MaxValue+1000 || h.messages < 20 {
		t.Errorf("%d messages of at most %d bytes", h.messages, h.longest)
	}
	h.longest, h.messages = 0, 0
	h.trips()
	err := s.Update(t.Context(), func(r store.Reader) (again store.Batch, err error) {
		var ranges []store.Range
		for _, op := range b {
			ranges = append(ranges, one(string(op.Key)))
		}
		if err := r.Fetch(ranges...); err != nil {
			return nil, err
		}
		for _, op := range b {
			if v, err := r.Get(op.Key); err != nil || !bytes.Equal(v, op.Value) {
				return nil, fmt.Errorf("%s: %d bytes, want %d: %w", op.Key, len(v), len(op.Value), err)
			}
		}
		again.Put([]byte("more"), []byte("1"))
		return again, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("30,041 reads one by one: %s in messages of at most %d bytes", total(h.trips()), h.longest)
	if h.longest > remote.MaxRequest+1000 {
		t.Errorf("a message of %d bytes", h.longest)
	}
	n := 0
	err = s.View(t.Context(), func(r store.Reader) error {
		n = 0
		return r.Scan(nil, func(k, _ []byte) error { n++; return nil })
	})
	if n != len(b)+1 || err != nil {
		t.Errorf("%d records of %d: %v", n, len(b)+1, err)
	}
	s.Bounds(time.Second, time.Second, 10<<20)
	err = s.View(t.Context(), func(r store.Reader) error { return r.Scan(nil, func(_, _ []byte) error { return nil }) })
	if !errors.Is(err, remote.ErrTooLarge) || !strings.Contains(err.Error(), "more than 10 MiB") {
		t.Errorf("beyond the bound: %v", err)
	}
}

// Eight writers who never pause all get their turn.
func TestNobodyStarves(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), newRelay(t, server)
	url := serve(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const writers, each = 8, 40
	var wg sync.WaitGroup
	var slowest [writers]time.Duration
	start := time.Now()
	for i := range writers {
		wg.Go(func() {
			s := client(t, url, key)
			for range each {
				begin := time.Now()
				if err := add(ctx, s, "n"); err != nil {
					t.Error(err)
				}
				slowest[i] = max(slowest[i], time.Since(begin))
			}
		})
	}
	wg.Wait()
	got, err := get(ctx, client(t, url, key), "n")
	if number(got) != writers*each || err != nil {
		t.Errorf("%d additions made %s: %v", writers*each, got, err)
	}
	longest := time.Duration(0)
	for _, d := range slowest {
		longest = max(longest, d)
	}
	took := time.Since(start)
	t.Logf("%d writers made %d additions in %v with %d commits; the one that waited longest took %v", writers, writers*each,
		took.Round(time.Millisecond), h.trips()["Commit"], longest.Round(time.Millisecond))
	if longest > 10*time.Second {
		t.Errorf("one addition took %v", longest)
	}
}

func TestAPIKeys(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), newRelay(t, server)
	url := serve(t, h)
	s := client(t, url, key)
	who, err := s.WhoAmI(t.Context())
	if err != nil || who.Account == (store.AccountID{}) || who.APIKey.Scope != remote.ScopeAdmin || who.Version != "test" || who.APIKey.Expires != nil {
		t.Errorf("%+v, %v", who, err)
	}
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	made, secret, err := s.CreateAPIKey(t.Context(), remote.NewAPIKey{
		Name: "ci", Scope: remote.ScopeRead, App: "myapp", Env: "production", Expires: until, MachineKey: "00112233aabbccdd",
	})
	if err != nil || !strings.HasPrefix(string(secret), "ov_live_") || made.Name != "ci" || !made.Expires.Equal(until) || made.Env != "production" {
		t.Errorf("%+v, %q, %v", made, secret, err)
	}
	all, _, err := s.CreateAPIKey(t.Context(), remote.NewAPIKey{Name: "all", Scope: remote.ScopeAdmin})
	if err != nil {
		t.Error(err)
	}
	list, err := s.APIKeys(t.Context())
	if err != nil || len(list) != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, k := range list {
		if k.Revoked != nil || (k.ID == made.ID) != (k.Expires != nil) || (k.ID == all.ID) != (k.Name == "all") {
			t.Errorf("%+v", k)
		}
	}
	gone, err := s.RevokeAPIKey(t.Context(), all.ID)
	if err != nil || len(gone) != 1 || gone[0].Revoked == nil || gone[0].ID != all.ID {
		t.Errorf("%+v, %v", gone, err)
	}
	gone, err = s.RevokeMachineKey(t.Context(), "00112233aabbccdd")
	if err != nil || len(gone) != 1 || gone[0].ID != made.ID {
		t.Errorf("%+v, %v", gone, err)
	}
	if _, err := s.RevokeAPIKey(t.Context(), "ffffffffffffffff"); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := remote.ParseScope("root"); err == nil {
		t.Error("scope root")
	}
	if scope, err := remote.ParseScope("write"); scope != remote.ScopeWrite || err != nil {
		t.Error(scope, err)
	}
}

// scanned returns the keys that begin with prefix.
func scanned(t testing.TB, s store.Store, prefix string) (keys []string) {
	t.Helper()
	err := s.View(t.Context(), func(r store.Reader) error {
		keys = nil
		return r.Scan([]byte(prefix), func(k, _ []byte) error {
			keys = append(keys, string(k))
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
