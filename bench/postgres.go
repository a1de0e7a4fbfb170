//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/embedded"
	"github.com/opaquevault/ov/test/pg"
)

// database is PostgreSQL with the dataset in the tables of an ov-server.
type database struct {
	*node
	pool    *pgxpool.Pool
	account store.AccountID
}

// startPostgres starts PostgreSQL, copies the dataset into it, and starts an
// ov-server on it. The records come from the embedded storage, so it is called
// before another ov-server has that open.
func startPostgres(dir string, d *dataset, ov serverPrograms) (*database, error) {
	place, err := os.MkdirTemp("", "ov-bench-pg-")
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = os.RemoveAll(place) })
	server, err := pg.Start(place)
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = server.Stop() })
	file := filepath.Join(dir, "database-url")
	if err := os.WriteFile(file, []byte(pg.DSN("postgres", server)), 0o600); err != nil {
		return nil, err
	}
	flags := []string{"--data", filepath.Join(dir, "postgres"), "--database-url-file", file}
	if err := ov.run(nil, "init", "--data", flags[1], "--host", "127.0.0.1"); err != nil {
		return nil, err
	}
	if err := ov.run(nil, append([]string{"migrate"}, flags...)...); err != nil {
		return nil, err
	}
	db := &database{}
	if db.account, err = ov.createAccount(flags...); err != nil {
		return nil, err
	}
	ctx := context.Background()
	if db.pool, err = pgxpool.New(ctx, pg.DSN("postgres", server)); err != nil {
		return nil, err
	}
	atEnd(db.pool.Close)
	if err := db.copy(ctx, d); err != nil {
		return nil, err
	}
	far := *d
	far.dir = flags[1]
	db.node, err = ov.serve("ov-server on PostgreSQL", &far, flags[2:]...)
	return db, err
}

// copy copies the account's records as they are.
func (db *database) copy(ctx context.Context, d *dataset) error {
	accounts, err := embedded.Open(ctx, d.dir)
	if err != nil {
		return err
	}
	defer func() { _ = accounts.Close() }()
	err = accounts.Store(d.account).View(ctx, func(r store.Reader) error {
		var rows [][]any
		flush := func() error {
			_, err := db.pool.CopyFrom(ctx, pgx.Identifier{"ov_records"}, []string{"account", "key", "value"}, pgx.CopyFromRows(rows))
			rows = rows[:0]
			return err
		}
		err := r.Scan(nil, func(key, value []byte) error {
			if key[0] == 0 {
				return nil // the server's own
			}
			rows = append(rows, []any{db.account[:], key, value})
			if len(rows) < 20_000 {
				return nil
			}
			return flush()
		})
		if err == nil {
			err = flush()
		}
		return err
	})
	if err == nil {
		_, err = db.pool.Exec(ctx, "ANALYZE ov_records")
	}
	return err
}

// getTen reads the records of ten secrets with one statement.
func (db *database) getTen(ctx context.Context, d *dataset) error {
	var keys [][]byte
	for _, s := range d.ten() {
		keys = append(keys, s.data.Key, s.value.Key)
	}
	rows, err := db.pool.Query(ctx, "SELECT key, value FROM ov_records WHERE account = $1 AND key = ANY($2)", db.account[:], keys)
	if err != nil {
		return err
	}
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[store.Record])
	if err == nil && len(got) != len(keys) {
		err = fmt.Errorf("%d rows of %d", len(got), len(keys))
	}
	return err
}

// putTen writes them again with one statement.
func (db *database) putTen(ctx context.Context, d *dataset) error {
	var keys, values [][]byte
	for _, s := range d.ten() {
		keys, values = append(keys, s.data.Key, s.value.Key), append(values, s.data.Value, s.value.Value)
	}
	_, err := db.pool.Exec(ctx, `INSERT INTO ov_records (account, key, value) SELECT $1, w.key, w.value
		FROM (SELECT * FROM unnest($2::bytea[], $3::bytea[]) AS w (key, value) ORDER BY key) AS w
		ON CONFLICT (account, key) DO UPDATE SET value = excluded.value`, db.account[:], keys, values)
	return err
}
