package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

func TestRead(t *testing.T) {
	ts := start(t)
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	all := map[string]string{"a": "1", "a/1": "2", "a/2": "3", "b": "4", "\xff\xff": "5"}
	var ops []*vaultv1.Op
	for k, v := range all {
		ops = append(ops, put(k, v))
	}
	if err := commitOps(t.Context(), ts.client(t, token), ops...); err != nil {
		t.Fatal(err)
	}
	ranges := []*vaultv1.Range{
		rangeFor("a", store.One), rangeFor("a", store.All), rangeFor("a", store.Last), rangeFor("q", store.One), rangeFor("q", store.All),
		rangeFor("q", store.Last), rangeFor("", store.Last), rangeFor("\xff", store.All), rangeFor("", store.All), rangeFor("a", store.One),
	}
	for name, opts := range protocols {
		c := ts.client(t, token, opts...)
		resp, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: ranges}))
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Msg.GetResults()) != len(ranges) {
			t.Fatalf("%s: %d results", name, len(resp.Msg.GetResults()))
		}
		scanned := make([][]*vaultv1.Record, len(ranges))
		stream, err := c.Scan(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: ranges}))
		if err != nil {
			t.Fatal(err)
		}
		ended := false
		for at := uint32(0); stream.Receive(); {
			m := stream.Msg()
			if ended || m.GetRange() < at && !m.GetEnd() {
				t.Errorf("%s: out of order: %v", name, m)
			}
			if ended = m.GetEnd(); !ended {
				at = m.GetRange()
				scanned[at] = append(scanned[at], m.GetRecords()...)
			}
		}
		if err := stream.Err(); err != nil || !ended {
			t.Errorf("%s: ended %v, %v", name, ended, err)
		}
		_ = stream.Close()
		for i, r := range ranges {
			want := within(all, r)
			for how, list := range map[string][]*vaultv1.Record{"Read": resp.Msg.GetResults()[i].GetRecords(), "Scan": scanned[i]} {
				got := map[string]string{}
				for n, rec := range list {
					got[string(rec.GetKey())] = string(rec.GetValue())
					if n > 0 && bytes.Compare(list[n-1].GetKey(), rec.GetKey()) >= 0 {
						t.Errorf("%s, %s: out of order", name, how)
					}
				}
				if !same(got, want) || len(list) != len(want) {
					t.Errorf("%s, %s of %v: %q, not %q", name, how, r, got, want)
				}
			}
		}
	}
}

func TestReadRefused(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	many := make([]*vaultv1.Range, maxRanges+1)
	expects := make([]*vaultv1.Expect, maxRanges+1)
	for i := range many {
		many[i] = rangeFor("x", store.One)
		expects[i] = expecting("x", store.One)
	}
	for name, test := range map[string]struct {
		req    *vaultv1.ReadRequest
		code   connect.Code
		reason string
	}{
		"one of no key":  {&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor("", store.One)}}, connect.CodeInvalidArgument, ""},
		"long key":       {&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor(strings.Repeat("x", 513), store.All)}}, connect.CodeInvalidArgument, ""},
		"unknown take":   {&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor("x", 9)}}, connect.CodeInvalidArgument, ""},
		"short digest":   {&vaultv1.ReadRequest{Expect: []*vaultv1.Expect{{Range: rangeFor("x", store.One), Digest: make([]byte, 31)}}}, connect.CodeInvalidArgument, ""},
		"many ranges":    {&vaultv1.ReadRequest{Ranges: many}, connect.CodeResourceExhausted, ReasonTooLarge},
		"many expects":   {&vaultv1.ReadRequest{Expect: expects}, connect.CodeResourceExhausted, ReasonTooLarge},
		"what is not so": {&vaultv1.ReadRequest{Expect: []*vaultv1.Expect{expecting("x", store.All, store.Record{Key: []byte("x"), Value: []byte("1")})}}, connect.CodeAborted, ReasonChanged},
	} {
		_, err := c.Read(t.Context(), connect.NewRequest(test.req))
		fails(t, "Read: "+name, err, test.code, test.reason)
		stream, err := c.Scan(t.Context(), connect.NewRequest(test.req))
		if err == nil {
			for stream.Receive() {
				t.Errorf("Scan: %s: %v", name, stream.Msg())
			}
			err = stream.Err()
			_ = stream.Close()
		}
		fails(t, "Scan: "+name, err, test.code, test.reason)
	}
	// As many as there may be.
	if _, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: many[1:], Expect: expects[1:]})); err != nil {
		t.Error(err)
	}
	// A message that is too large is not read.
	_, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor(strings.Repeat("x", maxMessage), store.One)}}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a message of 4 MiB: %v", err)
	}
}

// fill writes n records of a MiB under a prefix and returns them.
func fill(t testing.TB, ts *testServer, account store.AccountID, n int) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := ts.accounts.Store(account).Update(t.Context(), func(store.Reader) (b store.Batch, err error) {
		for i := range n {
			value := make([]byte, store.MaxValue)
			_, _ = rand.Read(value)
			key := fmt.Sprintf("big/%04d", i)
			all[key] = string(value)
			b.Put([]byte(key), value)
		}
		return b, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What is too large for Read comes by Scan, in parts, and leaves no file.
func TestLargeAnswers(t *testing.T) {
	ts := start(t)
	account, c := admin(t, ts)
	all := fill(t, ts, account, 9)
	for i := range 1000 {
		all[fmt.Sprintf("small/%04d", i)] = strings.Repeat("s", 1000)
	}
	var ops []*vaultv1.Op
	for k, v := range all {
		if strings.HasPrefix(k, "small") {
			ops = append(ops, put(k, v))
		}
	}
	if err := commitOps(t.Context(), c, ops...); err != nil {
		t.Fatal(err)
	}
	_, err := read(t.Context(), c, rangeFor("big/", store.All))
	fails(t, "Read", err, connect.CodeResourceExhausted, ReasonTooLarge)
	three := []*vaultv1.Range{rangeFor("big/0000", store.One), rangeFor("big/0001", store.One), rangeFor("big/0002", store.One)}
	resp, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: three}))
	if err != nil || proto.Size(resp.Msg) > 4<<20 {
		t.Errorf("three large records: %v", err)
	}
	// The same record again and again.
	var same1000 []*vaultv1.Range
	for range 1000 {
		same1000 = append(same1000, rangeFor("big/0000", store.One))
	}
	_, err = read(t.Context(), c, same1000...)
	fails(t, "the same a thousand times", err, connect.CodeResourceExhausted, ReasonTooLarge)

	stream, err := c.Scan(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor("", store.All)}}))
	if err != nil {
		t.Fatal(err)
	}
	got, messages := map[string]string{}, 0
	for stream.Receive() {
		m := stream.Msg()
		if messages++; proto.Size(m) > maxPart+1024 && len(m.GetRecords()) > 1 {
			t.Errorf("a message of %d bytes with %d records", proto.Size(m), len(m.GetRecords()))
		}
		for _, rec := range m.GetRecords() {
			got[string(rec.GetKey())] = string(rec.GetValue())
		}
	}
	if err := stream.Err(); err != nil || !same(got, all) {
		t.Errorf("%d of %d records, %v", len(got), len(all), err)
	}
	_ = stream.Close()
	if messages < 10 || messages > 30 {
		t.Errorf("%d messages", messages)
	}
	if left, err := filepath.Glob(filepath.Join(ts.spoolDir, "*")); err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	eventually(t, "all is given back", 5*time.Second, func() bool {
		return ts.inflight.taken() == 0 && ts.memory.taken() == 0 && ts.spool.taken() == 0
	})
}

// Accounts have bounds for answers in files too.
func TestSpoolIsBounded(t *testing.T) {
	ts := start(t, func(l *limits) { l.spoolEach = 4 << 20 })
	account, c := admin(t, ts)
	fill(t, ts, account, 8)
	_, err := scan(t.Context(), c, rangeFor("", store.All))
	fails(t, "8 MiB", err, connect.CodeResourceExhausted, ReasonBusy)
	if got, err := scan(t.Context(), c, rangeFor("big/0001", store.All)); err != nil || len(got) != 1 {
		t.Errorf("one record: %d, %v", len(got), err)
	}
	ts.spoolDir = filepath.Join(ts.spoolDir, "missing")
	_, err = scan(t.Context(), c, rangeFor("", store.All))
	fails(t, "without a directory", err, connect.CodeInternal, "")
	if strings.Contains(err.Error(), "missing") {
		t.Errorf("the error names a path: %v", err)
	}
	if !strings.Contains(ts.log.String(), "missing") {
		t.Error("the log does not say what is wrong")
	}
}

// A Reader may call its function again: then nothing comes twice.
func TestSnapshotStartsOver(t *testing.T) {
	accounts := openAccounts(t)
	ts := startOn(t, &twice{accounts})
	account, c := admin(t, ts)
	want := fill(t, ts, account, 6)
	for name, ranges := range map[string][]*vaultv1.Range{
		"in memory": {rangeFor("big/0001", store.One)},
		"in a file": {rangeFor("", store.All)},
	} {
		got, err := scan(t.Context(), c, ranges...)
		if err != nil || !same(got, within(want, ranges[0])) {
			t.Errorf("%s: %d records, %v", name, len(got), err)
		}
	}
	resp, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Ranges: []*vaultv1.Range{rangeFor("big/000", store.Last), rangeFor("big/0002", store.All)}}))
	if err != nil || len(resp.Msg.GetResults()) != 2 || len(resp.Msg.GetResults()[1].GetRecords()) != 1 {
		t.Errorf("%v, %v", resp, err)
	}
	list, err := c.ListAPIKeys(t.Context(), connect.NewRequest(&vaultv1.ListAPIKeysRequest{}))
	if err != nil || len(list.Msg.GetApiKeys()) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	eventually(t, "all is given back", 5*time.Second, func() bool { return ts.memory.taken() == 0 && ts.spool.taken() == 0 })
}

// twice is storage that gives each snapshot up and begins a new one, once.
type twice struct{ store.Accounts }

func (a *twice) Store(id store.AccountID) store.Store { return twiceStore{a.Accounts.Store(id)} }

type twiceStore struct{ store.Store }

func (s twiceStore) View(ctx context.Context, fn func(store.Reader) error) error {
	return s.Store.View(ctx, func(r store.Reader) error {
		if err := fn(r); err != nil {
			return err
		}
		return fn(r)
	})
}

// A spool's file has no name: nobody finds it, and a crash leaves nothing.
func TestSpoolHasNoName(t *testing.T) {
	dir := t.TempDir()
	shares := newShares(1<<30, 1<<30)
	s := &spool{dir: dir, memory: &room{shares: shares}, files: &room{shares: shares}}
	defer s.reset()
	var want []*vaultv1.ScanResponse
	for i := range 10 {
		part := &vaultv1.ScanResponse{Range: uint32(i), Records: []*vaultv1.Record{{Key: []byte{byte(i)}, Value: bytes.Repeat([]byte{byte(i)}, 1<<20)}}}
		want = append(want, part)
		if err := s.add(part, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if s.file == nil || len(s.parts) != 0 {
		t.Error("it is in memory")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	n := 0
	if err := s.each(func(m *vaultv1.ScanResponse) error {
		if !proto.Equal(m, want[n]) {
			t.Errorf("part %d is another", n)
		}
		n++
		return nil
	}); err != nil || n != len(want) {
		t.Errorf("%d parts, %v", n, err)
	}
}

// However many single records are asked for, few are fetched ahead, and what a
// snapshot keeps of them is bounded: storage that is far away has them in memory.
func TestSingleRecordsAreBounded(t *testing.T) {
	accounts := &fetches{Accounts: openAccounts(t)}
	ts := startOn(t, accounts)
	account, c := admin(t, ts)
	const n = maxKept>>20 + 5
	all := fill(t, ts, account, n)
	var ranges []*vaultv1.Range
	var expects []*vaultv1.Expect
	for i := range n {
		key := fmt.Sprintf("big/%04d", i)
		take := store.Take(2 * (i % 2)) // one or last
		ranges = append(ranges, rangeFor(key, take))
		expects = append(expects, expecting(key, take, store.Record{Key: []byte(key), Value: []byte(all[key])}))
	}
	for what, req := range map[string]*vaultv1.ReadRequest{"ranges": {Ranges: ranges}, "expects": {Expect: expects}} {
		stream, err := c.Scan(t.Context(), connect.NewRequest(req))
		if err == nil {
			for stream.Receive() {
				t.Errorf("%s: something came", what)
			}
			err = stream.Err()
			_ = stream.Close()
		}
		fails(t, what, err, connect.CodeResourceExhausted, ReasonTooLarge)
	}
	fails(t, "a commit", sendCommit(t.Context(), c, &vaultv1.CommitRequest{Id: newCommitID(), Expect: expects, Ops: []*vaultv1.Op{put("x", "1")}, End: true, Count: 1}), connect.CodeResourceExhausted, ReasonTooLarge)
	if got, err := scan(t.Context(), c, ranges[:100]...); err != nil || len(got) != 100 {
		t.Errorf("a hundred: %d, %v", len(got), err)
	}
	if err := commitAs(t.Context(), c, newCommitID(), expects[:100], put("x", "1")); err != nil {
		t.Errorf("a commit that expects a hundred: %v", err)
	}
	if most := accounts.most.Load(); most != maxFetch {
		t.Errorf("%d ranges were fetched at a time", most)
	}
	eventually(t, "all is given back", 5*time.Second, func() bool { return ts.memory.taken() == 0 && ts.spool.taken() == 0 })
}

// fetches is storage that knows how many ranges were fetched at most.
type fetches struct {
	store.Accounts
	most atomic.Int64
}

func (a *fetches) Store(id store.AccountID) store.Store {
	return fetchStore{a.Accounts.Store(id), a}
}

type fetchStore struct {
	store.Store
	of *fetches
}

func (s fetchStore) View(ctx context.Context, fn func(store.Reader) error) error {
	return s.Store.View(ctx, func(r store.Reader) error { return fn(fetchReader{r, s.of}) })
}

func (s fetchStore) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	return s.Store.Update(ctx, func(r store.Reader) (store.Batch, error) { return fn(fetchReader{r, s.of}) })
}

type fetchReader struct {
	store.Reader
	of *fetches
}

func (r fetchReader) Fetch(ranges ...store.Range) error {
	for old := r.of.most.Load(); int64(len(ranges)) > old && !r.of.most.CompareAndSwap(old, int64(len(ranges))); old = r.of.most.Load() {
	}
	return r.Reader.Fetch(ranges...)
}
