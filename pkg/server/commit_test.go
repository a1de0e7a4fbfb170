package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// protocols are the ways to ask.
var protocols = map[string][]connect.ClientOption{
	"gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()}, "Connect": {connect.WithProtoJSON()},
}

func admin(t testing.TB, ts *testServer) (store.AccountID, vaultv1connect.VaultClient) {
	t.Helper()
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	return account, ts.client(t, token)
}

func TestCommit(t *testing.T) {
	ts := start(t)
	for name, opts := range protocols {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			account := ts.account(t)
			_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
			c := ts.client(t, token, opts...)
			id := newCommitID()
			err := sendCommit(ctx, c,
				&vaultv1.CommitRequest{Id: id, Expect: []*vaultv1.Expect{expecting("", store.All)}, Ops: []*vaultv1.Op{put("x", "1"), put("y", "1")}},
				&vaultv1.CommitRequest{Expect: []*vaultv1.Expect{expecting("x", store.One)}, Ops: []*vaultv1.Op{put("x", "2"), del("z")}},
				&vaultv1.CommitRequest{Ops: []*vaultv1.Op{put("y/1", "3")}},
				&vaultv1.CommitRequest{End: true, Count: 5})
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"x": "2", "y": "1", "y/1": "3"}
			if got, err := read(ctx, c, rangeFor("", store.All)); err != nil || !same(got, want) {
				t.Errorf("%q, %v", got, err)
			}
			x, y := store.Record{Key: []byte("x"), Value: []byte("2")}, store.Record{Key: []byte("y"), Value: []byte("1")}
			y1 := store.Record{Key: []byte("y/1"), Value: []byte("3")}
			for _, e := range []*vaultv1.Expect{
				expecting("x", store.One), expecting("x", store.One, y), expecting("", store.All, x, y), expecting("y", store.Last, y),
				expecting("y", store.All, y1, y), expecting("q", store.All, x),
			} {
				fails(t, fmt.Sprint(e), commitAs(ctx, c, newCommitID(), []*vaultv1.Expect{e}, put("x", "lost")), connect.CodeAborted, ReasonChanged)
			}
			if got, err := read(ctx, c, rangeFor("", store.All)); err != nil || !same(got, want) {
				t.Errorf("after what was aborted: %q, %v", got, err)
			}
			err = commitAs(ctx, c, newCommitID(), []*vaultv1.Expect{
				expecting("x", store.One, x), expecting("", store.All, x, y, y1), expecting("y", store.Last, y1), expecting("q", store.All),
			}, del("x"))
			if err != nil {
				t.Errorf("what is so: %v", err)
			}
		})
	}
}

// The same commit again changes nothing and succeeds, also at once, over another
// server, and when what it had read is no longer so.
func TestCommitTwice(t *testing.T) {
	ts := start(t)
	other := startOn(t, ts.accounts)
	ctx := t.Context()
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	c, c2 := ts.client(t, token), other.client(t, token)
	id := newCommitID()
	expect := []*vaultv1.Expect{expecting("counter", store.One)}
	if err := commitAs(ctx, c, id, expect, put("counter", "1")); err != nil {
		t.Fatal(err)
	}
	if err := commitOps(ctx, c, put("counter", "2")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := errors.Join(commitAs(ctx, c, id, expect, put("counter", "1")), commitAs(ctx, c2, id, expect, put("counter", "1"))); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	if got, err := read(ctx, c, rangeFor("", store.All)); err != nil || !same(got, map[string]string{"counter": "2"}) {
		t.Errorf("%q, %v", got, err)
	}
	fails(t, "another commit with the id", commitAs(ctx, c, id, nil, put("counter", "3")), connect.CodeInvalidArgument, "")
	fails(t, "fewer ops with the id", commitAs(ctx, c, id, nil, del("counter")), connect.CodeInvalidArgument, "")
	// Ids are an account's own.
	_, elsewhere := admin(t, ts)
	if err := commitAs(ctx, elsewhere, id, nil, put("other", "1")); err != nil {
		t.Error(err)
	}
	if got, err := read(ctx, elsewhere, rangeFor("", store.All)); err != nil || !same(got, map[string]string{"other": "1"}) {
		t.Errorf("the same id in another account: %q, %v", got, err)
	}

	// Many at once.
	id = newCommitID()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			asks := c
			if i%2 == 0 {
				asks = c2
			}
			if err := commitAs(ctx, asks, id, []*vaultv1.Expect{expecting("once", store.One)}, put("once", "1")); err != nil {
				t.Errorf("at once: %v", err)
			}
		})
	}
	wg.Wait()
}

// Of those that count at the same time none is lost, whatever server they ask.
func TestCommitsRace(t *testing.T) {
	ts := start(t)
	servers := []*testServer{ts, startOn(t, ts.accounts)}
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeWrite})
	const clients, times = 8, 10
	var aborted atomic.Int64
	var wg sync.WaitGroup
	for i := range clients {
		c := servers[i%2].client(t, token)
		wg.Go(func() {
			for range times {
				for {
					got, err := read(t.Context(), c, rangeFor("n", store.One))
					if err != nil {
						t.Error(err)
						return
					}
					var seen []store.Record
					if got["n"] != "" {
						seen = append(seen, store.Record{Key: []byte("n"), Value: []byte(got["n"])})
					}
					err = commitAs(t.Context(), c, newCommitID(), []*vaultv1.Expect{expecting("n", store.One, seen...)}, put("n", got["n"]+"|"))
					if err == nil {
						break
					}
					if connect.CodeOf(err) != connect.CodeAborted {
						t.Error(err)
						return
					}
					aborted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	got, err := read(t.Context(), servers[0].client(t, token), rangeFor("n", store.One))
	if err != nil || len(got["n"]) != clients*times {
		t.Errorf("%d of %d counted, %v", len(got["n"]), clients*times, err)
	}
	t.Logf("%d aborted", aborted.Load())
}

func TestCommitRefused(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	id := newCommitID()
	big := strings.Repeat("x", store.MaxValue)
	for name, messages := range map[string][]*vaultv1.CommitRequest{
		"nothing":               {},
		"no id":                 {{Ops: []*vaultv1.Op{put("x", "1")}, End: true, Count: 1}},
		"short id":              {{Id: id[:15], End: true}},
		"long id":               {{Id: append(id, 0), End: true}},
		"id twice":              {{Id: id}, {Id: id, End: true}},
		"no end":                {{Id: id, Ops: []*vaultv1.Op{put("x", "1")}, Count: 1}},
		"fewer than counted":    {{Id: id, Ops: []*vaultv1.Op{put("x", "1")}, End: true, Count: 2}},
		"more than counted":     {{Id: id, Ops: []*vaultv1.Op{put("x", "1"), put("y", "1")}, End: true, Count: 1}},
		"not counted":           {{Id: id, Ops: []*vaultv1.Op{put("x", "1")}, End: true}},
		"after the end":         {{Id: id, Ops: []*vaultv1.Op{put("x", "1")}, End: true, Count: 1}, {Ops: []*vaultv1.Op{put("y", "1")}}},
		"nothing after the end": {{Id: id, Ops: []*vaultv1.Op{put("x", "1")}, End: true, Count: 1}, {}},
		"end twice":             {{Id: id, End: true}, {End: true}},
		"no key":                {{Id: id, Ops: []*vaultv1.Op{put("", "1")}, End: true, Count: 1}},
		"no value":              {{Id: id, Ops: []*vaultv1.Op{put("x", "")}, End: true, Count: 1}},
		"deletion with value":   {{Id: id, Ops: []*vaultv1.Op{{Key: []byte("x"), Value: []byte("1"), Delete: true}}, End: true, Count: 1}},
		"long key":              {{Id: id, Ops: []*vaultv1.Op{put(strings.Repeat("k", store.MaxKey+1), "1")}, End: true, Count: 1}},
		"large value":           {{Id: id, Ops: []*vaultv1.Op{put("x", big+"x")}, End: true, Count: 1}},
		"no range":              {{Id: id, Expect: []*vaultv1.Expect{{Digest: make([]byte, 32)}}, End: true}},
		"no digest":             {{Id: id, Expect: []*vaultv1.Expect{{Range: rangeFor("x", store.One)}}, End: true}},
		"long digest":           {{Id: id, Expect: []*vaultv1.Expect{{Range: rangeFor("x", store.One), Digest: make([]byte, 33)}}, End: true}},
		"unknown take":          {{Id: id, Expect: []*vaultv1.Expect{{Range: rangeFor("x", 3), Digest: make([]byte, 32)}}, End: true}},
	} {
		fails(t, name, sendCommit(t.Context(), c, messages...), connect.CodeInvalidArgument, "")
	}
	if got, err := read(t.Context(), c, rangeFor("", store.All)); err != nil || len(got) != 0 {
		t.Errorf("something was written: %q, %v", got, err)
	}
	// The bounds themselves.
	if err := commitOps(t.Context(), c, put(strings.Repeat("k", store.MaxKey), "1"), put("x", big)); err != nil {
		t.Error(err)
	}
	if got, err := read(t.Context(), c, rangeFor("", store.All)); err != nil || len(got) != 2 || got["x"] != big {
		t.Errorf("%d records, %v", len(got), err)
	}
}

// A commit that ends in the middle writes nothing.
func TestCommitCut(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		stream := c.Commit(ctx)
		if err := stream.Send(&vaultv1.CommitRequest{Id: newCommitID(), Ops: []*vaultv1.Op{put("x", "1")}, Count: 1}); err != nil {
			t.Fatal(err)
		}
		cancel()
		_, _ = stream.CloseAndReceive()
	}
	eventually(t, "all calls ended", 5*time.Second, func() bool { return ts.inflight.taken() == 0 && ts.memory.taken() == 0 })
	if got, err := read(t.Context(), c, rangeFor("", store.All)); err != nil || len(got) != 0 {
		t.Errorf("something was written: %q, %v", got, err)
	}
}

func (s *shares) taken() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// What is much to compare is compared, once more if something came between.
func TestCommitExpectsMuch(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	ctx := t.Context()
	var records []store.Record
	for i := range 12 { // 12 MB
		records = append(records, store.Record{Key: fmt.Appendf(nil, "big/%02d", i), Value: bytes.Repeat([]byte{byte(i)}, 1<<20)})
		if err := commitOps(ctx, c, put(string(records[i].Key), string(records[i].Value))); err != nil {
			t.Fatal(err)
		}
	}
	expect := []*vaultv1.Expect{expecting("big/", store.All, records...)}
	if err := commitAs(ctx, c, newCommitID(), expect, put("x", "1")); err != nil {
		t.Errorf("what is so: %v", err)
	}
	for _, e := range []*vaultv1.Expect{expecting("big/", store.All, records[1:]...), expecting("", store.All, records...), expecting("x", store.One)} {
		fails(t, "what is not so", commitAs(ctx, c, newCommitID(), append(expect, e), put("x", "2")), connect.CodeAborted, ReasonChanged)
	}
	// Others write elsewhere all the time.
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if err := commitOps(ctx, c, put("elsewhere", fmt.Sprint(i))); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	for range 5 {
		if err := commitAs(ctx, c, newCommitID(), expect, put("x", "3")); err != nil {
			t.Errorf("while others write: %v", err)
		}
	}
	close(done)
	wg.Wait()
	// And a write to what is expected is never passed over.
	if err := commitOps(ctx, c, put("big/00", "changed")); err != nil {
		t.Fatal(err)
	}
	fails(t, "after a change", commitAs(ctx, c, newCommitID(), expect, put("x", "4")), connect.CodeAborted, ReasonChanged)
}

// A key that another server has revoked a moment ago reads for limits.trust, and
// writes no more.
func TestRevokedElsewhere(t *testing.T) {
	ts := start(t)
	other := startOn(t, ts.accounts, func(l *limits) { l.trust = 700 * time.Millisecond })
	account := ts.account(t)
	id, token := ts.apiKey(t, account, grant{scope: scopeWrite})
	c, there := ts.client(t, token), other.client(t, token)
	for _, c := range []vaultv1connect.VaultClient{c, there} {
		if err := commitOps(t.Context(), c, put("x", "1")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ts.operator.RevokeAPIKey(t.Context(), connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: account[:], Id: id})); err != nil {
		t.Fatal(err)
	}
	_, err := read(t.Context(), c, rangeFor("x", store.One))
	fails(t, "reading where it was revoked", err, connect.CodeUnauthenticated, ReasonRevokedKey)
	fails(t, "writing where it was not", commitOps(t.Context(), there, put("x", "2")), connect.CodeUnauthenticated, ReasonRevokedKey)
	eventually(t, "the other server knows", 3*time.Second, func() bool {
		_, err := read(t.Context(), there, rangeFor("x", store.One))
		return reasonOf(err) == ReasonRevokedKey
	})
}

// A commit that is under way when its key is revoked is not written.
func TestRevokedMeanwhile(t *testing.T) {
	ts := start(t)
	account, adminClient := admin(t, ts)
	id, token := ts.apiKey(t, account, grant{scope: scopeWrite})
	stream := ts.client(t, token).Commit(t.Context())
	if err := stream.Send(&vaultv1.CommitRequest{Id: newCommitID(), Ops: []*vaultv1.Op{put("x", "1")}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the commit is under way", 5*time.Second, func() bool { return ts.inflight.taken() == 1 })
	if _, err := adminClient.RevokeAPIKey(t.Context(), connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Id: id})); err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&vaultv1.CommitRequest{End: true, Count: 1}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	_, err := stream.CloseAndReceive()
	fails(t, "the end of the commit", err, connect.CodeUnauthenticated, ReasonRevokedKey)
	if got, err := read(t.Context(), adminClient, rangeFor("", store.All)); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}

// The ids of commits are forgotten after a day or two.
func TestCommitIDsArePurged(t *testing.T) {
	ts := start(t)
	account, c := admin(t, ts)
	const old = 25
	err := ts.accounts.Store(account).Update(t.Context(), func(store.Reader) (b store.Batch, err error) {
		for i := range old {
			b.Put(commitKey(dayOf(time.Now())-2-uint32(i), newCommitID()), []byte{1})
		}
		b.Put(commitKey(dayOf(time.Now())-1, newCommitID()), []byte{1})
		return b, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := commitOps(t.Context(), c, put("x", "1")); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		err := ts.accounts.Store(account).View(t.Context(), func(r store.Reader) error {
			n = 0
			return r.Scan(allCommits.Key, func([]byte, []byte) error { n++; return nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != old+2 {
		t.Fatalf("%d ids", n)
	}
	if err := ts.purge(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 2 {
		t.Errorf("%d ids are left, not those of yesterday and today", n)
	}
}
