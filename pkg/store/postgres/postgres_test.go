package postgres

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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

// TestPlans: no statement walks through a table, however many records it has.
func TestPlans(t *testing.T) {
	dsn, server := database(t)
	all := open(t, dsn)
	for i := range 2 {
		id := newAccount(t, all)
		if _, err := server.SQL("postgres", fmt.Sprintf(`INSERT INTO ov_records SELECT '\x%x'::bytea, decode(md5(%d || n::text), 'hex'), 'v' FROM generate_series(1, 100000) AS n`, id, i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := server.SQL("postgres", "ANALYZE"); err != nil {
		t.Fatal(err)
	}
	id := newAccount(t, all)
	const arrays = `ARRAY['\x01', '\x02']::bytea[]`
	for what, statement := range map[string]string{
		"one": `SELECT key, value FROM ov_records WHERE account = $1 AND key = ANY(` + arrays + `)`,
		"last": `SELECT r.key, r.value, w.n FROM unnest(` + arrays + `, ` + arrays + `) WITH ORDINALITY AS w (low, high, n)
			CROSS JOIN LATERAL (SELECT key, value FROM ov_records WHERE account = $1 AND key >= w.low AND key < w.high ORDER BY key DESC LIMIT 1) AS r`,
		"page":   `SELECT key, value FROM ov_records WHERE account = $1 AND key >= '\x01' AND key < '\x02' ORDER BY key LIMIT 512`,
		"delete": `DELETE FROM ov_records WHERE account = $1 AND key = ANY(` + arrays + `)`,
		"lock":   lockRow,
	} {
		plan, err := server.SQL("postgres", "EXPLAIN "+strings.ReplaceAll(statement, "$1", fmt.Sprintf(`'\x%x'::bytea`, id)))
		if err != nil {
			t.Fatal(err)
		}
		if what == "lock" {
			continue // three accounts: PostgreSQL reads them all
		}
		if !strings.Contains(plan, "Index Scan") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s:\n%s", what, plan)
		}
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
