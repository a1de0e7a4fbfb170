// Package postgres keeps the accounts of servers in PostgreSQL, or in a database
// that speaks its protocol and SQL.
//
// There are two tables, and the key of either begins with the account's id: what
// belongs together lies together wherever a database shards by the first column
// of a key. Nothing is used that some of its relatives lack: no extension, no
// advisory lock, no foreign key, and of isolation only a lock on the account's row
// for writes and REPEATABLE READ for reads. docs/SERVER.md says what that means
// for each.
package postgres

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/internal/group"
)

// What the connections ask for, unless the URL says something else.
var parameters = map[string]string{
	"application_name":                    "ov-server",
	"lock_timeout":                        "10s", // for another server's write to the same account
	"statement_timeout":                   "60s",
	"idle_in_transaction_session_timeout": "60s", // of a server that hangs
}

const (
	// maxConns bounds the connections, unless the URL has pool_max_conns: each is
	// a process of PostgreSQL's.
	maxConns = 16
	// dialTimeout bounds a try to connect, unless the URL has connect_timeout.
	dialTimeout = 5 * time.Second
)

// Accounts are the accounts in a database. Its methods are safe for use by many
// goroutines, and by many servers on one database.
type Accounts struct {
	pool *pgxpool.Pool

	mu     sync.Mutex
	queues map[store.AccountID]*queue
}

// Open returns the accounts in the database at a URL or in a keyword/value string
// (PostgreSQL's manual, 34.1.1), with several hosts if need be. It fails if the
// schema is not this program's. No error of this package holds the URL.
func Open(ctx context.Context, dsn string) (*Accounts, error) {
	pool, err := connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	a := &Accounts{pool: pool, queues: map[store.AccountID]*queue{}}
	if err := retry(ctx, func() error { return a.checkSchema(ctx) }); err != nil {
		pool.Close()
		return nil, err
	}
	return a, nil
}

func connect(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	config, err := configure(dsn)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, explain(ctx, err)
	}
	return pool, nil
}

func configure(dsn string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		// Its error may quote what it could not read, and that may be a password.
		return nil, hint.Errorf("it has the form postgres://USER:PASSWORD@HOST1,HOST2/DATABASE?target_session_attrs=read-write",
			"the database URL is not valid")
	}
	for name, value := range parameters {
		if config.ConnConfig.RuntimeParams[name] == "" {
			config.ConnConfig.RuntimeParams[name] = value
		}
	}
	if !strings.Contains(dsn, "pool_max_conns") {
		config.MaxConns = maxConns
	}
	// A plan is made for each statement. One that PostgreSQL kept, from when the
	// tables were small, would go through all of an account. Nor can a connection
	// pooler get prepared statements wrong that there are none of.
	if !strings.Contains(dsn, "default_query_exec_mode") {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = dialTimeout
	}
	// A machine that is gone says nothing. It is noticed by what it does not
	// acknowledge.
	dialer := &net.Dialer{Control: noticeLoss, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3,
	}}
	config.ConnConfig.DialFunc = dialer.DialContext
	config.ConnConfig.OnNotice = noteWarning
	if config.ConnConfig.ValidateConnect == nil { // of several hosts the one that takes writes
		config.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	return config, nil
}

// Close ends the connections, after what is under way.
func (a *Accounts) Close() error {
	a.pool.Close()
	return nil
}

// Create implements store.Accounts.
func (a *Accounts) Create(ctx context.Context, account store.Account) error {
	// Tried again, it could find what it has made itself.
	tag, err := a.pool.Exec(ctx, `INSERT INTO ov_accounts (account, name, created) VALUES ($1, $2, $3)
		ON CONFLICT (account) DO NOTHING`, account.ID[:], account.Name, account.Created)
	if err == nil && tag.RowsAffected() == 0 {
		return fmt.Errorf("%w: %x", store.ErrAccountExists, account.ID)
	}
	return explain(ctx, err)
}

// List implements store.Accounts.
func (a *Accounts) List(ctx context.Context) (all []store.Account, err error) {
	err = retry(ctx, func() error {
		rows, err := a.pool.Query(ctx, `SELECT account, name, created FROM ov_accounts ORDER BY created, account`)
		if err == nil {
			all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (account store.Account, err error) {
				var id []byte
				err = row.Scan(&id, &account.Name, &account.Created)
				if err == nil && len(id) != len(account.ID) {
					err = fmt.Errorf("%w: an account's id of %d bytes", store.ErrDamaged, len(id))
				}
				copy(account.ID[:], id)
				return account, err
			})
		}
		return explain(ctx, err)
	})
	return all, err
}

// Ping implements store.Accounts: a standby can be read, and is not enough.
func (a *Accounts) Ping(ctx context.Context) error {
	var readOnly string
	err := a.pool.QueryRow(ctx, `SHOW transaction_read_only`).Scan(&readOnly)
	if err == nil && readOnly != "off" {
		err = fmt.Errorf("%w: the database takes no writes", store.ErrUnavailable)
	}
	return explain(ctx, err)
}

// Store implements store.Accounts.
func (a *Accounts) Store(id store.AccountID) store.Store { return &account{a, id} }

// queue is of the writers of one account, in this process: they do not take all
// connections to wait for one of them.
type queue struct {
	*group.Queue[*tx]
	users int
}

// enter returns the account's queue. The caller calls the function that it
// returns.
func (a *Accounts) enter(id store.AccountID) (*queue, func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[id]
	if q == nil {
		q = &queue{Queue: group.New[*tx]()}
		a.queues[id] = q
	}
	q.users++
	return q, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if q.users--; q.users == 0 {
			delete(a.queues, id)
		}
	}
}
