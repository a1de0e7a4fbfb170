package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// looks is storage that counts looks.
type looks struct {
	store.Accounts
	views atomic.Int64
	slow  atomic.Int64 // nanoseconds that each look takes
}

func (a *looks) Store(id store.AccountID) store.Store {
	return lookStore{a.Accounts.Store(id), a}
}

type lookStore struct {
	store.Store
	of *looks
}

func (s lookStore) View(ctx context.Context, fn func(store.Reader) error) error {
	s.of.views.Add(1)
	select {
	case <-time.After(time.Duration(s.of.slow.Load())):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Store.View(ctx, fn)
}

func fromAddress(ts *testServer, t testing.TB, from, token string) vaultv1connect.VaultClient {
	t.Helper()
	h, closeIdle := newHTTPClient(from)
	t.Cleanup(closeIdle)
	return vaultv1connect.NewVaultClient(withToken{h, token}, ts.url, connect.WithGRPC())
}

func ask(t testing.TB, c vaultv1connect.VaultClient) error {
	t.Helper()
	_, err := c.WhoAmI(t.Context(), connect.NewRequest(&vaultv1.WhoAmIRequest{}))
	return err
}

// An address that sends many wrong keys gets no more looks at the storage. Other
// addresses, and right keys from the same one, go on, new keys too.
func TestWrongKeys(t *testing.T) {
	accounts := &looks{Accounts: openAccounts(t)}
	ts := startOn(t, accounts, func(l *limits) { l.trust = time.Minute })
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeRead})
	good := ts.client(t, token)
	if err := ask(t, good); err != nil {
		t.Fatal(err)
	}
	limited, limitedAt := 0, 0
	before := accounts.views.Load()
	for i := range 200 {
		var text []byte
		switch i % 4 {
		case 0: // a key that is not there
			text = apikey.New(account).Text()
		case 1: // an account that is not there
			text = apikey.New(store.AccountID([]byte(randomID()))).Text()
		case 2:
			text = []byte(fmt.Sprint("ov_live_", i))
		case 3:
			text = []byte("x")
		}
		err := ask(t, ts.client(t, string(text)))
		switch {
		case reasonOf(err) == ReasonFailedKeys:
			if limited++; limitedAt == 0 {
				limitedAt = i
			}
			if e := (*connect.Error)(nil); !asConnect(err, &e) || e.Meta().Get("Retry-After") == "" {
				t.Errorf("it does not say when to try again: %v", err)
			}
		default:
			fails(t, "a wrong key", err, connect.CodeUnauthenticated, ReasonUnknownKey)
		}
		if i%10 == 0 {
			if err := ask(t, good); err != nil {
				t.Errorf("a right key after %d wrong ones: %v", i, err)
			}
		}
	}
	if limitedAt < defaultLimits().failed || limitedAt > defaultLimits().failed+2 || limited < 150 {
		t.Errorf("%d of 200 were too many, from number %d on", limited, limitedAt)
	}
	if looks := accounts.views.Load() - before; looks > int64(defaultLimits().failed) {
		t.Errorf("%d looks at the storage", looks)
	}
	// A key that this server has never seen, of an account that it knows.
	_, fresh := ts.apiKey(t, account, grant{scope: scopeRead})
	if err := ask(t, ts.client(t, fresh)); err != nil {
		t.Errorf("a new key from the same address: %v", err)
	}
	// An account that it does not know, from there and from elsewhere.
	_, stranger := ts.apiKey(t, ts.account(t), grant{scope: scopeRead})
	fails(t, "an unknown account from the same address", ask(t, ts.client(t, stranger)), connect.CodeResourceExhausted, ReasonFailedKeys)
	if err := ask(t, fromAddress(ts, t, "127.0.0.77", stranger)); err != nil {
		t.Errorf("from another address: %v", err)
	}
	if err := ask(t, ts.client(t, stranger)); err != nil {
		t.Errorf("from the same address, now that it is known: %v", err)
	}
}

// A flood of wrong keys costs little: a right one is served meanwhile, though
// each look at the storage takes long.
func TestFloodOfWrongKeys(t *testing.T) {
	accounts := &looks{Accounts: openAccounts(t)}
	ts := startOn(t, accounts)
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeRead})
	good := fromAddress(ts, t, "127.0.0.2", token)
	if err := ask(t, good); err != nil {
		t.Fatal(err)
	}
	accounts.slow.Store(int64(20 * time.Millisecond))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var flood atomic.Int64
	for range 16 {
		h, closeIdle := newHTTPClient("")
		t.Cleanup(closeIdle)
		c := vaultv1connect.NewVaultClient(withToken{h, string(apikey.New(store.AccountID([]byte(randomID()))).Text())}, ts.url, connect.WithGRPC())
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.WhoAmI(ctx, connect.NewRequest(&vaultv1.WhoAmIRequest{}))
				flood.Add(1)
			}
		})
	}
	var worst time.Duration
	for range 100 {
		start := time.Now()
		if err := ask(t, good); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	wg.Wait()
	t.Logf("%d wrong keys meanwhile, the slowest right one in %v, %d looks at the storage", flood.Load(), worst, accounts.views.Load())
	if worst > 2*time.Second {
		t.Errorf("a right key took %v", worst)
	}
	if flood.Load() < 200 {
		t.Errorf("only %d wrong keys: that was no flood", flood.Load())
	}
	if n := accounts.views.Load(); n > 100 {
		t.Errorf("%d looks at the storage", n)
	}
}

// Strangers who ask for accounts that are not there wait for each other, not
// others for them.
func TestStrangersWaitForEachOther(t *testing.T) {
	accounts := &looks{Accounts: openAccounts(t)}
	ts := startOn(t, accounts, func(l *limits) { l.failed, l.trust = 1<<30, 0 })
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeRead})
	good := ts.client(t, token)
	if err := ask(t, good); err != nil {
		t.Fatal(err)
	}
	accounts.slow.Store(int64(time.Second))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 * maxStrangers {
		c := ts.client(t, string(apikey.New(store.AccountID([]byte(randomID()))).Text()))
		wg.Go(func() { _, _ = c.WhoAmI(ctx, connect.NewRequest(&vaultv1.WhoAmIRequest{})) })
	}
	eventually(t, "strangers are looked up", 5*time.Second, func() bool { return accounts.views.Load() > maxStrangers/2 })
	begin := time.Now()
	if err := ask(t, good); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2500*time.Millisecond {
		t.Errorf("a right key took %v", took)
	}
	stop()
	wg.Wait()
}

func TestAddressOf(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:443":              "192.0.2.1/32",
		"[::ffff:192.0.2.1]:443":     "192.0.2.1/32",
		"[2001:db8:1:2:3:4:5:6]:443": "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:1":   "2001:db8:1:2::/64",
		"[fe80::1%eth0]:443":         "fe80::/64",
		"[2001:db8:1:3:3:4:5:6]:443": "2001:db8:1:3::/64",
		"@":                          "invalid Prefix",
		"":                           "invalid Prefix",
	} {
		if got := addressOf(remote).String(); got != want {
			t.Errorf("%s is of %s, not %s", remote, got, want)
		}
	}
}

// However many addresses fail, what is remembered of them is bounded.
func TestFailuresAreBounded(t *testing.T) {
	f := newFailures(2)
	address := func(i uint32) netip.Prefix {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], i)
		return netip.PrefixFrom(netip.AddrFrom4(ip), 32)
	}
	for i := range uint32(maxAddresses + 1000) {
		f.add(address(i))
		f.add(address(i))
	}
	if n := f.addresses.Len(); n != maxAddresses {
		t.Errorf("%d addresses", n)
	}
	if !f.over(address(maxAddresses+999)) || f.over(address(0)) || f.over(address(1<<31)) {
		t.Error("the last is not over, or the first is still, or one that never failed")
	}
}

// What the keyring remembers is bounded too, by accounts and by keys.
func TestKeyringIsBounded(t *testing.T) {
	k := newKeyring(&many{keys: 1000}, defaultLimits())
	for i := range uint32(400) {
		var id store.AccountID
		binary.BigEndian.PutUint32(id[:], i)
		if _, err := k.of(t.Context(), id, netip.Prefix{}); err != nil {
			t.Fatal(err)
		}
	}
	if k.known.Len() != maxKnownKeys/1000 || k.count > maxKnownKeys {
		t.Errorf("%d accounts, %d keys", k.known.Len(), k.count)
	}
}

// many is storage of which each account has many API keys.
type many struct {
	store.Accounts
	keys int
}

func (m *many) Store(id store.AccountID) store.Store { return manyStore{id: id, keys: m.keys} }

type manyStore struct {
	store.Store
	id   store.AccountID
	keys int
}

func (m manyStore) View(_ context.Context, fn func(store.Reader) error) error {
	return fn(manyReader{m: m})
}

type manyReader struct {
	store.Reader
	m manyStore
}

func (manyReader) Fetch(...store.Range) error { return nil }

func (r manyReader) Scan(prefix []byte, fn func(k, v []byte) error) error {
	if prefix[1] != kindAPIKey {
		return nil
	}
	for range r.m.keys {
		token := apikey.New(r.m.id)
		k := &apiKey{token.Hash(), &vaultv1.APIKey{Id: token.ID(), Scope: scopeRead}}
		value, err := k.encode()
		if err != nil {
			return err
		}
		if err := fn(keyOf(kindAPIKey, token.ID()), value); err != nil {
			return err
		}
	}
	return nil
}

// An account that asks too much at a time waits, and is then refused; another is
// served.
func TestRequestsInFlight(t *testing.T) {
	ts := start(t, func(l *limits) { l.requestsEach, l.waitingEach, l.admit = 3, 2, 300*time.Millisecond })
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeWrite})
	_, other := admin(t, ts)
	c := ts.client(t, token)
	var streams []*connect.ClientStreamForClient[vaultv1.CommitRequest, vaultv1.CommitResponse]
	for range 3 {
		s := c.Commit(t.Context())
		if err := s.Send(&vaultv1.CommitRequest{Id: newCommitID()}); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	eventually(t, "three are served", 5*time.Second, func() bool { return ts.inflight.taken() == 3 })
	begin := time.Now()
	fails(t, "a fourth", ask(t, c), connect.CodeResourceExhausted, ReasonBusy)
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("it did not wait: %v", took)
	}
	if err := ask(t, other); err != nil {
		t.Errorf("another account: %v", err)
	}
	// More wait than may.
	var wg sync.WaitGroup
	var quick atomic.Int64
	for range 10 {
		wg.Go(func() {
			begin := time.Now()
			fails(t, "one of ten", ask(t, c), connect.CodeResourceExhausted, ReasonBusy)
			if time.Since(begin) < 250*time.Millisecond {
				quick.Add(1)
			}
		})
	}
	wg.Wait()
	if quick.Load() < 5 {
		t.Errorf("%d of 10 were refused at once", quick.Load())
	}
	if err := ask(t, other); err != nil {
		t.Errorf("another account: %v", err)
	}
	// One that ends makes room for one that waits.
	go func() {
		time.Sleep(100 * time.Millisecond)
		_, _ = streams[0].CloseAndReceive()
	}()
	if err := ask(t, c); err != nil {
		t.Errorf("when there is room: %v", err)
	}
	for _, s := range streams[1:] {
		_, _ = s.CloseAndReceive()
	}
}

// What an account has sent and is not written yet is bounded, and is given back.
func TestMemoryOfCommits(t *testing.T) {
	ts := start(t, func(l *limits) { l.memoryEach = 8 << 20 })
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeWrite})
	_, other := admin(t, ts)
	c := ts.client(t, token)
	value := string(make([]byte, 1<<20))
	var ops []*vaultv1.Op
	for i := range 3 {
		ops = append(ops, put(fmt.Sprint("big", i), value))
	}
	part := &vaultv1.CommitRequest{Id: newCommitID(), Ops: ops}
	stream := c.Commit(t.Context())
	if err := stream.Send(part); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first part is there", 5*time.Second, func() bool { return ts.memory.taken() > 3<<20 })
	second := &vaultv1.CommitRequest{Ops: ops}
	fails(t, "too much", sendCommit(t.Context(), c, part, second, second, second), connect.CodeResourceExhausted, ReasonBusy)
	if err := commitOps(t.Context(), other, ops...); err != nil {
		t.Errorf("another account: %v", err)
	}
	_, _ = stream.CloseAndReceive()
	eventually(t, "all is given back", 5*time.Second, func() bool { return ts.memory.taken() == 0 })
	if err := commitOps(t.Context(), c, ops...); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	// Ops without much in them count too.
	var small []*vaultv1.Op
	for range 100_000 {
		small = append(small, del("x"))
	}
	fails(t, "many small ops", commitOps(t.Context(), c, small...), connect.CodeResourceExhausted, ReasonBusy)
	eventually(t, "all is given back", 5*time.Second, func() bool { return ts.memory.taken() == 0 })
}

// The bounds of one account leave as much to others, and commits fit in them.
func TestDefaultLimits(t *testing.T) {
	l := defaultLimits()
	for name, v := range map[string][2]int64{
		"requests": {l.requests, l.requestsEach}, "waiting": {l.waiting, l.waitingEach},
		"memory": {l.memory, l.memoryEach}, "spool": {l.spool, l.spoolEach},
	} {
		if v[1] > v[0]/2 || v[1] <= 0 {
			t.Errorf("%s: an account has %d of %d", name, v[1], v[0])
		}
	}
	for name, d := range map[string]time.Duration{
		"headers": l.headers, "idle": l.idle, "admit": l.admit, "body": l.body, "refused": l.refused, "part": l.part, "send": l.send, "trust": l.trust,
	} {
		if d <= 0 || d > 5*time.Minute {
			t.Errorf("%s: %v", name, d)
		}
	}
	if l.memoryEach < maxCommit+64*maxMessage/4 {
		t.Error("a commit of an account leaves no room for its other calls")
	}
	if total, each := connLimits(); each < 1 || each > total/2 {
		t.Errorf("%d connections, %d of an address", total, each)
	}
}
