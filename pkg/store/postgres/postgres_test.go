package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/storetest"
	"github.com/opaquevault/ov/test/pg"
)

// An address of a store is the DSN, a space and the account's id.
func openStore(address string) (store.Store, error) {
	dsn, id, _ := strings.Cut(address, " ")
	all, err := shared(dsn)
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(id)
	return all.Store(store.AccountID(b)), err
}

var opened struct {
	sync.Mutex
	all map[string]*Accounts
}

func shared(dsn string) (*Accounts, error) {
	opened.Lock()
	defer opened.Unlock()
	if a := opened.all[dsn]; a != nil {
		return a, nil
	}
	a, err := Open(context.Background(), dsn)
	if err == nil {
		if opened.all == nil {
			opened.all = map[string]*Accounts{}
		}
		opened.all[dsn] = a
	}
	return a, err
}

func TestMain(m *testing.M) { storetest.Main(m, openStore) }

// database starts PostgreSQL with the schema.
func database(t testing.TB) (dsn string, server *pg.Server) {
	t.Helper()
	server = pg.Test(t)
	dsn = pg.DSN("postgres", server)
	if _, err := Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	return dsn, server
}

func newAccount(t testing.TB, all *Accounts) store.AccountID {
	t.Helper()
	var id store.AccountID
	rand.Read(id[:])
	if err := all.Create(t.Context(), store.Account{ID: id, Name: "test", Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return id
}

func open(t testing.TB, dsn string) *Accounts {
	t.Helper()
	all, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = all.Close() })
	return all
}

func TestStore(t *testing.T) {
	dsn, _ := database(t)
	dsn += "&synchronous_commit=off" // it is not the server that is killed here
	all := open(t, dsn)
	storetest.Run(t, func(t *testing.T) string {
		id := newAccount(t, all)
		return dsn + " " + hex.EncodeToString(id[:])
	}, openStore)
}

func TestAccounts(t *testing.T) {
	dsn, _ := database(t)
	storetest.RunAccounts(t, open(t, dsn))
}

// TestMigrate: the schema is made once, by one of many at a time, and a server
// refuses one that is not its own.
func TestMigrate(t *testing.T) {
	server := pg.Test(t)
	dsn := pg.DSN("postgres", server)
	if _, err := Open(t.Context(), dsn); err == nil || !strings.Contains(err.Error(), "no tables") {
		t.Errorf("without a schema: %v", err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 4 {
		wg.Go(func() {
			before, err := Migrate(t.Context(), dsn)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if before == 0 {
				made++
			}
		})
	}
	wg.Wait()
	if before, err := Migrate(t.Context(), dsn); err != nil || before != SchemaVersion {
		t.Errorf("again: it was %d: %v", before, err)
	}
	if made == 0 {
		t.Error("nobody made the schema")
	}
	open(t, dsn)
	if _, err := server.SQL("postgres", fmt.Sprintf("INSERT INTO %s (version_id, is_applied) VALUES (%d, true)", versions, SchemaVersion+1)); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"open":    func() error { _, err := Open(t.Context(), dsn); return err }(),
		"migrate": func() error { _, err := Migrate(t.Context(), dsn); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("of version %d", SchemaVersion+1)) {
			t.Errorf("%s of a newer schema: %v", what, err)
		}
	}
}

// TestErrorsHoldNoPassword: whatever is wrong with a DSN or a database, no error
// says the password.
func TestErrorsHoldNoPassword(t *testing.T) {
	const password = "xyzzy-Plugh"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, dsn := range []string{
		"postgres://u:" + password + "@127.0.0.1:1/d?connect_timeout=1",
		"postgres://u:" + password + "@@127.0.0.1:1/d",
		"postgres://u:" + password + "@127.0.0.1:port/d",
		"postgres://u:" + password + "#@127.0.0.1/d",
		"postgres://u:p/" + password + "@127.0.0.1/d",
		"host=127.0.0.1 port=x password=" + password,
		"host=127.0.0.1 port=1 password='" + password + "' connect_timeout=1",
		"host=127.0.0.1 port=1 password='" + password,
		"postgres://u:" + password + "@127.0.0.1:1/d?sslmode=" + password,
	} {
		_, err := Open(ctx, dsn)
		if err == nil {
			t.Fatalf("%d: it was opened", len(dsn))
		}
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), password) {
			t.Errorf("the error of a DSN of %d bytes has its password", len(dsn))
		}
	}
	if _, err := Open(ctx, "postgres://u:"+password+"@127.0.0.1:1/d?connect_timeout=1"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("nobody listens: %v, want ErrUnavailable", err)
	}
	server := pg.Test(t)
	_, err := Open(ctx, strings.Replace(pg.DSN("postgres", server), "postgres:", "postgres:"+password, 1))
	if err == nil || strings.Contains(err.Error(), password) {
		t.Errorf("with a wrong password: %v", err)
	}
}

// TestPlans: each statement goes by the key, however many records there are and
// whether PostgreSQL has counted them.
func TestPlans(t *testing.T) {
	dsn, server := database(t)
	all := open(t, dsn)
	id := newAccount(t, all)
	other := newAccount(t, all)
	literal := func(id store.AccountID) string { return fmt.Sprintf(`'\x%x'::bytea`, id) }
	for n, id := range []store.AccountID{id, other} {
		if _, err := server.SQL("postgres", fmt.Sprintf(`INSERT INTO ov_records SELECT %s, decode(md5(%d || n::text), 'hex'), 'v' FROM generate_series(1, 100000) AS n`, literal(id), n)); err != nil {
			t.Fatal(err)
		}
	}
	const array = `ARRAY['\x01', '\x02']::bytea[]`
	byKey := regexp.MustCompile(`Index Cond: .*account = .*key (=|>=)`)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			if _, err := server.SQL("postgres", "ANALYZE"); err != nil {
				t.Fatal(err)
			}
		}
		for name, statement := range map[string][]string{
			"one":    {selectOne, array},
			"last":   {selectLast, array, array},
			"first":  {selectFirst, array, array, "64"},
			"page":   {selectPage, `'\x01'::bytea`, `'\xff'::bytea`, "64"},
			"delete": {deleteKeys, array},
		} {
			sql := strings.ReplaceAll(statement[0], "$1", literal(id))
			for i, value := range statement[1:] {
				sql = strings.ReplaceAll(sql, fmt.Sprintf("$%d", i+2), value)
			}
			plan, err := server.SQL("postgres", "EXPLAIN "+sql)
			if err != nil {
				t.Fatal(err)
			}
			if !byKey.MatchString(plan) || strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s (analyzed: %v):\n%s", name, analyzed, plan)
			}
		}
	}
}

// trips counts what is sent to the database.
type trips struct{ n atomic.Int64 }

func (c *trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (c *trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// counted opens the database and counts trips.
func counted(t *testing.T, dsn string) (*Accounts, *trips) {
	t.Helper()
	config, err := configure(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c := &trips{}
	config.ConnConfig.Tracer = c
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &Accounts{pool: pool, queues: map[store.AccountID]*queue{}}, c
}

func TestTrips(t *testing.T) {
	dsn, _ := database(t)
	all, c := counted(t, dsn)
	s := all.Store(newAccount(t, all))
	var batch store.Batch
	var ranges, lists []store.Range
	for n := range 10 {
		for _, kind := range []byte("dv") {
			batch.Put(secretKey(kind, n), []byte("v"))
			ranges = append(ranges, store.Range{Key: secretKey(kind, n)[:65], Take: store.Last})
			lists = append(lists, store.Range{Key: secretKey(kind, n)[:65], Take: store.All})
		}
	}
	read := func(r store.Reader) error {
		if err := r.Fetch(append(ranges, lists...)...); err != nil {
			return err
		}
		for _, rng := range ranges {
			if k, _, err := r.Last(rng.Key); k == nil || err != nil {
				return fmt.Errorf("%q: %w", k, err)
			}
			if err := r.Scan(rng.Key, func(_, _ []byte) error { return nil }); err != nil {
				return err
			}
		}
		return nil
	}
	for _, step := range []struct {
		what string
		want int64
		do   func() error
	}{
		{"a write that reads nothing", 2, func() error {
			return s.Update(t.Context(), func(store.Reader) (store.Batch, error) { return batch, nil })
		}},
		{"a read of ten secrets and their lists", 1, func() error { return s.View(t.Context(), read) }},
		{"a write of ten secrets that were read", 2, func() error {
			return s.Update(t.Context(), func(r store.Reader) (store.Batch, error) { return batch, read(r) })
		}},
		{"a write that finds nothing to do", 2, func() error {
			return s.Update(t.Context(), func(r store.Reader) (store.Batch, error) { return nil, read(r) })
		}},
	} {
		before := c.n.Load()
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		if n := c.n.Load() - before; n != step.want {
			t.Errorf("%s took %d trips, want %d", step.what, n, step.want)
		}
	}
	// Nor is a plan kept, which may be of tables that were small.
	var kept int
	if err := all.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements WHERE name <> ''`).Scan(&kept); err != nil || kept != 0 {
		t.Errorf("%d prepared statements are kept: %v", kept, err)
	}
}

// TestMoved: a snapshot stays one while others write, whether it is read in one
// trip or in many.
func TestMoved(t *testing.T) {
	dsn, _ := database(t)
	all := open(t, dsn)
	s := all.Store(newAccount(t, all))
	const size = 500 // several pages
	write := func(n int) {
		err := s.Update(t.Context(), func(store.Reader) (b store.Batch, err error) {
			for i := range size {
				b.Put(fmt.Appendf(nil, "%04d", i), fmt.Append(nil, n))
			}
			return b, nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	write(0)
	calls := 0
	err := s.View(t.Context(), func(r store.Reader) error {
		calls++
		first, err := r.Get([]byte("0000"))
		if err != nil {
			return err
		}
		write(calls)
		n := 0
		err = r.Scan(nil, func(k, v []byte) error {
			if n++; !bytes.Equal(v, first) {
				t.Errorf("call %d: %s is %s, and 0000 was %s", calls, k, v, first)
			}
			if n == 100 {
				write(calls + 10)
			}
			return nil
		})
		if err == nil && n != size {
			t.Errorf("call %d: %d records", calls, n)
		}
		return err
	})
	if err != nil || calls != 2 {
		t.Errorf("%d calls: %v", calls, err)
	}
}

// TestPages: a scan holds little at a time, however large its records are.
func TestPages(t *testing.T) {
	dsn, _ := database(t)
	all := open(t, dsn)
	s := all.Store(newAccount(t, all))
	want := map[string]int{}
	for i := range 40 {
		key := fmt.Sprintf("%02d", i)
		want[key] = 1 + i%4*(store.MaxValue-1)/3
		err := s.Update(t.Context(), func(store.Reader) (store.Batch, error) {
			return store.Batch{{Key: []byte(key), Value: make([]byte, want[key])}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, isFetched := range []bool{false, true} {
		err := s.View(t.Context(), func(r store.Reader) error {
			if isFetched {
				if err := r.Fetch(store.Range{Key: []byte("0"), Take: store.All}, store.Range{Take: store.All}, store.Range{Key: []byte("1"), Take: store.All}); err != nil {
					return err
				}
				held := 0
				for _, p := range r.(reader).pages {
					for _, rec := range p.records {
						held += len(rec.Value)
					}
				}
				if held > pageSize+store.MaxValue {
					t.Errorf("%d bytes are held", held)
				}
			}
			for prefix, count := range map[string]int{"": 40, "0": 10, "1": 10, "3": 10, "4": 0} {
				n := 0
				err := r.Scan([]byte(prefix), func(k, v []byte) error {
					if n++; len(v) != want[string(k)] {
						t.Errorf("%s has %d bytes, not %d", k, len(v), want[string(k)])
					}
					return nil
				})
				if err != nil || n != count {
					t.Errorf("%q has %d records, not %d: %v", prefix, n, count, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestLockedElsewhere: a writer waits for another server's write until its context
// ends, and those who come later do not suffer for it.
func TestLockedElsewhere(t *testing.T) {
	dsn, _ := database(t)
	all, other := open(t, dsn), open(t, dsn)
	id := newAccount(t, all)
	put := func(ctx context.Context, all *Accounts, key string, while func()) error {
		return all.Store(id).Update(ctx, func(r store.Reader) (store.Batch, error) {
			_, err := r.Get([]byte(key)) // it has the lock now
			while()
			return store.Batch{{Key: []byte(key), Value: []byte("v")}}, err
		})
	}
	later := make(chan error)
	err := put(t.Context(), other, "1", func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if err := put(ctx, all, "2", func() {}); !errors.Is(err, store.ErrUnavailable) || time.Since(start) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		go func() { later <- put(t.Context(), all, "3", func() {}) }()
		time.Sleep(50 * time.Millisecond)
	})
	if err := errors.Join(err, <-later); err != nil {
		t.Error(err)
	}
	// One who leaves in the middle of a shared transaction takes nothing from the
	// others.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { later <- put(t.Context(), all, "5", func() {}) }()
	err = put(ctx, all, "4", func() {
		go func() { later <- put(t.Context(), all, "6", func() {}) }()
		time.Sleep(50 * time.Millisecond)
		cancel()
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("who has left: %v", err)
	}
	if err := errors.Join(<-later, <-later); err != nil {
		t.Error(err)
	}
	got := ""
	err = all.Store(id).View(t.Context(), func(r store.Reader) error {
		got = ""
		return r.Scan(nil, func(k, _ []byte) error { got += string(k); return nil })
	})
	if err != nil || got != "13456" {
		t.Errorf("there are %q: %v", got, err)
	}
}

// TestFailover: the primary is killed in the middle of writes and the standby
// takes over. What was acknowledged is there, and nothing twice.
func TestFailover(t *testing.T) {
	primary := pg.Test(t)
	standby, err := primary.Standby(pg.Dir(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	dsn := pg.DSN("postgres", primary, standby)
	if _, err := Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	all := open(t, dsn)
	id := newAccount(t, all)
	var mu sync.Mutex
	written, unknown := map[string]bool{}, map[string]bool{}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for client := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%d/%06d", client, n)
				err := all.Store(id).Update(context.Background(), func(r store.Reader) (store.Batch, error) {
					old, err := r.Get([]byte(key))
					if old != nil {
						err = fmt.Errorf("%s is there already", key)
					}
					return store.Batch{{Key: []byte(key), Value: []byte("v")}}, err
				})
				mu.Lock()
				switch {
				case err == nil:
					written[key] = true
				case errors.Is(err, store.ErrUnavailable):
					unknown[key] = true
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	time.Sleep(time.Second)
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	for before := len(snapshotOf(&mu, written)); ; time.Sleep(10 * time.Millisecond) {
		if len(snapshotOf(&mu, written)) > before+8 {
			break
		}
		if time.Since(killed) > 30*time.Second {
			t.Fatal("no writes for 30 s after the failover")
		}
	}
	gap := time.Since(killed)
	time.Sleep(500 * time.Millisecond)
	close(stop)
	wg.Wait()
	there := map[string]bool{}
	err = all.Store(id).View(t.Context(), func(r store.Reader) error {
		clear(there)
		return r.Scan(nil, func(k, _ []byte) error { there[string(k)] = true; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	for key := range written {
		if !there[key] {
			t.Errorf("%s was acknowledged and is gone", key)
		}
		delete(there, key)
	}
	for key := range there {
		if !unknown[key] {
			t.Errorf("%s is there, and nobody was told", key)
		}
	}
	t.Logf("%d writes acknowledged, %d reported as unknown or failed (%d of them are there), writes again after %v", len(written), len(unknown), len(there), gap.Round(time.Millisecond))
	if len(written) < 20 {
		t.Errorf("only %d writes", len(written))
	}
}

// TestStandbyHangs: what only the primary has is not acknowledged, however its
// wait for the standby ends.
func TestStandbyHangs(t *testing.T) {
	primary := pg.Test(t)
	standby, err := primary.Standby(pg.Dir(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	dsn := pg.DSN("postgres", primary)
	if _, err := Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	all := open(t, dsn+"&statement_timeout=500")
	id := newAccount(t, all)
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	write := func(ctx context.Context) error {
		return all.Store(id).Update(ctx, func(store.Reader) (store.Batch, error) {
			return store.Batch{{Key: []byte("k"), Value: []byte("v")}}, nil
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := write(ctx); err == nil {
		t.Error("acknowledged without the standby")
	}
	// The operator ends the wait.
	go func() {
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			_, _ = primary.SQL("postgres", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
		}
	}()
	if err := write(t.Context()); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "standby") {
		t.Errorf("a wait that was canceled: %v", err)
	}
}

func snapshotOf(mu *sync.Mutex, m map[string]bool) []string {
	mu.Lock()
	defer mu.Unlock()
	var list []string
	for k := range m {
		list = append(list, k)
	}
	return list
}
