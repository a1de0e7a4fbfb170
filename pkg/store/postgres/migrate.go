package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/opaquevault/ov/pkg/hint"
)

//go:embed migrations/*.sql
var migrations embed.FS

// SchemaVersion is that of the schema which this program works with: the number
// of the last migration.
const SchemaVersion = 1

// versions is goose's table.
const versions = "ov_schema_version"

// Migrate brings the schema up to SchemaVersion and returns what it was before,
// 0 for none. Several may do it at a time: one does it. It waits for the lock by a
// table, since not all relatives of PostgreSQL have advisory locks.
func Migrate(ctx context.Context, dsn string) (before int64, err error) {
	pool, err := connect(ctx, dsn)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := retry(ctx, func() error { return explain(ctx, pool.Ping(ctx)) }); err != nil {
		return 0, err
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return 0, err
	}
	locker, err := lock.NewPostgresTableLocker(lock.WithTableName("ov_schema_lock"))
	if err != nil {
		return 0, err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versions), goose.WithDisableGlobalRegistry(true), goose.WithLocker(locker))
	if err != nil {
		return 0, err
	}
	if before, err = provider.GetDBVersion(ctx); err != nil {
		return 0, explain(ctx, err)
	}
	if before > SchemaVersion {
		return before, newer(before)
	}
	_, err = provider.Up(ctx)
	return before, explain(ctx, err)
}

func newer(version int64) error {
	return hint.Errorf("install the version of ov-server that made it, or a later one",
		"the schema in the database is of version %d, and this program knows %d", version, SchemaVersion)
}

// checkSchema fails unless the schema is this program's.
func (a *Accounts) checkSchema(ctx context.Context) error {
	var version int64
	err := a.pool.QueryRow(ctx, `SELECT max(version_id) FROM `+versions+` WHERE is_applied`).Scan(&version)
	var said *pgconn.PgError
	if errors.As(err, &said) && said.Code == undefinedTable {
		version, err = 0, nil
	}
	switch {
	case err != nil:
		return explain(ctx, err)
	case version > SchemaVersion:
		return newer(version)
	case version < SchemaVersion:
		what := fmt.Sprintf("the schema in the database is of version %d, and this program needs %d", version, SchemaVersion)
		if version == 0 {
			what = "the database has no tables of ov-server"
		}
		return hint.Errorf("ov-server migrate", "%s", what)
	}
	return nil
}
