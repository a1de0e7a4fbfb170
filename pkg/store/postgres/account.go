package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opaquevault/ov/pkg/store"
)

const (
	beginRead  = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`
	beginWrite = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`
	// version goes up with each commit to the account.
	version = `SELECT version FROM ov_accounts WHERE account = $1`
	// Writers of one account follow each other. So what they read is what was
	// last committed, on any isolation level.
	lockVersion = version + ` FOR UPDATE`
	countUp     = `UPDATE ov_accounts SET version = version + 1 WHERE account = $1`

	selectOne  = `SELECT key, value FROM ov_records WHERE account = $1 AND key = ANY($2::bytea[])`
	selectLast = `SELECT r.key, r.value, w.n FROM unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY AS w (low, high, n)
		CROSS JOIN LATERAL (SELECT key, value FROM ov_records
			WHERE account = $1 AND key >= w.low AND key < w.high ORDER BY key DESC LIMIT 1) AS r`
	selectFirst = `SELECT r.key, r.value, w.n FROM unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY AS w (low, high, n)
		CROSS JOIN LATERAL (SELECT key, value FROM ov_records
			WHERE account = $1 AND key >= w.low AND key < w.high ORDER BY key LIMIT $4) AS r
		ORDER BY w.n, r.key`
	selectPage = `SELECT key, value FROM ov_records WHERE account = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT $4`
	deleteKeys = `DELETE FROM ov_records WHERE account = $1 AND key = ANY($2::bytea[])`
	upsert     = `INSERT INTO ov_records (account, key, value) SELECT $1, w.key, w.value
		FROM unnest($2::bytea[], $3::bytea[]) AS w (key, value)
		ON CONFLICT (account, key) DO UPDATE SET value = excluded.value`

	// firstPage and lastPage bound how many records of a scan are asked for in one
	// trip, and pageSize how many bytes of them are in memory at a time.
	firstPage = 64
	lastPage  = 4096
	pageSize  = 4 << 20
	// tripTimeout bounds a trip of a transaction that others take part in. The
	// database's own timeouts are shorter.
	tripTimeout = 70 * time.Second
	// maxStatement bounds what one statement writes, in bytes and in records.
	maxStatement        = 4 << 20
	maxStatementRecords = 4096
)

type account struct {
	all *Accounts
	id  store.AccountID
}

// View implements store.Store. Each trip is a transaction of its own, as long as
// nothing is committed to the account in between. If something is, fn starts over
// in one transaction, which keeps a connection to itself.
func (s *account) View(ctx context.Context, fn func(store.Reader) error) error {
	isShort := true
	return retry(ctx, func() error {
		t := &tx{ctx: ctx, all: s.all, id: s.id, begin: beginRead, find: version, isShort: isShort}
		isShort = false
		defer t.Rollback()
		err := fn(t.reader())
		if err == nil && !t.begun {
			err = t.send() // whether there is such an account
		}
		if t.failed != nil {
			return t.failed
		}
		return err
	})
}

// Update implements store.Store. Writes of this process that wait for each other
// are committed together. When the connection is lost while that is done, the
// error says that it is not known whether it was.
func (s *account) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	q, leave := s.all.enter(s.id)
	defer leave()
	begin := func() (*tx, error) {
		t := &tx{all: s.all, id: s.id, begin: beginWrite, find: lockVersion}
		return t, explain(ctx, t.connect(ctx))
	}
	return retry(ctx, func() error {
		return q.Do(ctx, begin, func(t *tx) (broken, err error) {
			t.ctx = ctx
			b, err := fn(t.reader())
			if err == nil {
				err = b.Check()
			}
			if err == nil && !t.begun { // the row is locked before anything is written
				err = t.send()
			}
			if err == nil && len(b) > 0 {
				err = t.write(b)
			}
			return t.failed, err
		})
	})
}

// tx is a transaction on an account. It begins with the first statement.
type tx struct {
	ctx         context.Context // whose turn it is
	all         *Accounts
	id          store.AccountID
	begin, find string
	isShort     bool // one for each trip
	conn        *pgxpool.Conn
	begun       bool
	version     int64     // of the account, if it has begun
	next        pgx.Batch // goes with the next trip
	nextSize    int       // of it, in bytes
	isDirty     bool
	failed      error // a statement; fn's errors that come of it are this one
}

// errMoved is what a short transaction finds that is not of the same snapshot as
// the one before.
var errMoved = &retryError{fmt.Errorf("%w: something is written all the time", store.ErrBusy)}

// send makes a trip with what is queued, the first one with what begins the
// transaction before it.
func (t *tx) send() error {
	if t.failed == nil {
		ctx := t.ctx
		if t.isShared() {
			ctx = context.WithoutCancel(ctx)
		}
		t.failed = explain(ctx, t.exchange())
	}
	return t.failed
}

// connect takes a connection, unless there is one.
func (t *tx) connect(ctx context.Context) (err error) {
	if t.conn == nil {
		t.conn, err = t.all.pool.Acquire(ctx)
	}
	return err
}

// isShared reports whether others may take part. The first writer is alone until
// it has the lock, for which it may have to wait.
func (t *tx) isShared() bool { return t.begin == beginWrite && t.begun }

// exchange is send with what pgx has to say about it.
func (t *tx) exchange() error {
	queued := t.next.QueuedQueries
	t.next, t.nextSize = pgx.Batch{}, 0
	ctx, cancel := t.ctx, func() {}
	if t.isShared() { // a writer who leaves takes nothing from the others
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), tripTimeout)
	}
	defer cancel()
	if err := t.connect(ctx); err != nil {
		return err
	}
	b := &pgx.Batch{}
	var now int64
	isFirst := !t.begun || t.isShort
	if isFirst {
		b.Queue(t.begin)
		b.Queue(t.find, t.id[:]).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&now)
			if errors.Is(err, pgx.ErrNoRows) {
				err = fmt.Errorf("%w: %x", store.ErrNoAccount, t.id)
			}
			return err
		})
	}
	b.QueuedQueries = append(b.QueuedQueries, queued...)
	if t.isShort {
		b.Queue("COMMIT")
	}
	err := t.conn.SendBatch(ctx, b).Close()
	if isReadOnly(err) { // the server was a primary: look for the new one
		_ = t.conn.Conn().Close(ctx)
	}
	if err == nil && isFirst {
		if t.begun && now != t.version {
			err = errMoved
		}
		t.begun, t.version = true, now
	}
	if t.isShort {
		t.Rollback()
	}
	return err
}

// Rollback implements group.Tx. It leaves a connection without a transaction. One
// that is in doubt is closed: PostgreSQL then undoes what was begun.
func (t *tx) Rollback() {
	if t.conn == nil {
		return
	}
	c := t.conn.Conn()
	if !c.IsClosed() && c.PgConn().TxStatus() != 'I' {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), time.Second)
		defer cancel()
		if _, err := c.Exec(ctx, "ROLLBACK"); err != nil {
			_ = c.Close(ctx)
		}
	}
	t.conn.Release()
	t.conn = nil
}

// write queues the batch.
func (t *tx) write(b store.Batch) error {
	t.isDirty = true
	last := make(map[string]int, len(b)) // of two writes to one key, the later one wins
	for i, op := range b {
		last[string(op.Key)] = i
	}
	var deletes [][]byte
	var puts store.Batch
	for i, op := range b {
		switch {
		case last[string(op.Key)] != i:
		case op.Value == nil:
			deletes = append(deletes, op.Key)
		default:
			puts = append(puts, op)
		}
	}
	// An index is filled in order.
	slices.SortFunc(deletes, bytes.Compare)
	slices.SortFunc(puts, func(x, y store.Op) int { return bytes.Compare(x.Key, y.Key) })
	for part := range slices.Chunk(deletes, maxStatementRecords) {
		if err := t.queue(deleteKeys, len(part)*store.MaxKey, t.id[:], part); err != nil {
			return err
		}
	}
	var keys, values [][]byte
	size := 0
	for i, op := range puts {
		size += len(op.Key) + len(op.Value)
		keys, values = append(keys, op.Key), append(values, op.Value)
		if i == len(puts)-1 || size >= maxStatement || len(keys) == maxStatementRecords {
			if err := t.queue(upsert, size, t.id[:], keys, values); err != nil {
				return err
			}
			keys, values, size = nil, nil, 0
		}
	}
	return nil
}

// queue has a statement of so many bytes go with the next trip, which may be now.
func (t *tx) queue(statement string, size int, args ...any) error {
	t.next.Queue(statement, args...)
	if t.nextSize += size; t.nextSize < maxStatement {
		return nil
	}
	return t.send()
}

// Commit implements group.Tx. A loss from here on leaves it unknown whether the
// batches were written, so they are not tried again.
func (t *tx) Commit() error {
	defer t.Rollback()
	if !t.isDirty {
		return t.failed
	}
	notices := t.conn.Conn().PgConn().CustomData()
	delete(notices, warning)
	t.next.Queue(countUp, t.id[:])
	t.next.Queue("COMMIT").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return fmt.Errorf("%w: COMMIT was answered with %s", store.ErrUnavailable, tag)
		}
		return nil
	})
	err := t.exchange()
	switch {
	case err != nil && isAborted(err):
		return explain(context.Background(), err)
	case err != nil:
		return unknown(explain(context.Background(), err))
	case notices[warning] != nil:
		return unknown(fmt.Errorf("a standby may not have it: PostgreSQL: %v", notices[warning]))
	}
	return nil
}

// reader reads in the transaction.
type reader struct {
	*tx
	*store.Memo
	pages map[string]page // fetched ahead, by prefix
}

// page is the beginning of what a scan brings.
type page struct {
	records []store.Record
	isAll   bool
}

func (t *tx) reader() reader { return reader{t, store.NewMemo(t.fetch), map[string]page{}} }

// Get implements store.Reader.
func (r reader) Get(key []byte) ([]byte, error) {
	if len(key) > store.MaxKey {
		return nil, nil
	}
	return r.Memo.Get(key)
}

// Fetch implements store.Reader. Of a scan it brings the beginning.
func (r reader) Fetch(ranges ...store.Range) error {
	var few []store.Range
	var prefixes, from, to [][]byte
	for _, rng := range ranges {
		if rng.Take != store.All {
			few = append(few, rng)
		} else if _, ok := r.pages[string(rng.Key)]; !ok {
			prefixes, from, to = append(prefixes, orEmpty(rng.Key)), append(from, orEmpty(rng.Key)), append(to, after(rng.Key))
		}
	}
	got, size, cut := make([]page, len(prefixes)), 0, len(prefixes)
	if len(prefixes) > 0 {
		r.next.Queue(selectFirst, r.id[:], from, to, firstPage).Query(func(rows pgx.Rows) error {
			return each(rows, func(rec store.Record, n int64) bool {
				p := &got[n-1]
				p.records = append(p.records, rec)
				if size += len(rec.Key) + len(rec.Value); size > pageSize {
					cut = int(n) - 1
				}
				return size <= pageSize
			})
		})
	}
	err := r.Memo.Fetch(few...)
	if err == nil && len(prefixes) > 0 && r.next.Len() > 0 { // few are known already
		err = r.send()
	}
	if err != nil {
		return err
	}
	for i, p := range got[:min(cut+1, len(got))] {
		p.isAll = i != cut && len(p.records) < firstPage
		r.pages[string(prefixes[i])] = p
	}
	return nil
}

// fetch reads ranges that take at most one record each.
func (t *tx) fetch(ranges []store.Range) ([][]store.Record, error) {
	got := make([][]store.Record, len(ranges))
	one := map[string]int{}
	var keys, from, to [][]byte
	var at []int // of from and to
	for i, r := range ranges {
		if r.Take == store.Last {
			from, to, at = append(from, orEmpty(r.Key)), append(to, after(r.Key)), append(at, i)
			continue
		}
		keys = append(keys, r.Key)
		one[string(r.Key)] = i
	}
	if len(keys) > 0 {
		t.next.Queue(selectOne, t.id[:], keys).Query(func(rows pgx.Rows) error {
			return each(rows, func(rec store.Record, _ int64) bool {
				got[one[string(rec.Key)]] = []store.Record{rec}
				return true
			})
		})
	}
	if len(at) > 0 {
		t.next.Queue(selectLast, t.id[:], from, to).Query(func(rows pgx.Rows) error {
			return each(rows, func(rec store.Record, n int64) bool {
				got[at[n-1]] = []store.Record{rec}
				return true
			})
		})
	}
	return got, t.send()
}

// each calls fn for each row, a key, a value, and maybe a number, until fn returns
// false.
func each(rows pgx.Rows, fn func(rec store.Record, n int64) bool) error {
	defer rows.Close()
	for rows.Next() {
		var rec store.Record
		var n int64
		to := []any{&rec.Key, &rec.Value, &n}
		if err := rows.Scan(to[:len(rows.FieldDescriptions())]...); err != nil {
			return err
		}
		if !fn(rec, n) {
			break
		}
	}
	rows.Close()
	return rows.Err()
}

// Scan implements store.Reader, a page at a time.
func (r reader) Scan(prefix []byte, fn func(key, value []byte) error) error {
	p, isFetched := r.pages[string(prefix)]
	from, to, most := orEmpty(prefix), after(prefix), firstPage
	for {
		if !isFetched {
			var err error
			if p, err = r.page(from, to, most); err != nil {
				return err
			}
		}
		isFetched = false
		size := 0
		for _, rec := range p.records {
			if err := fn(rec.Key, rec.Value); err != nil {
				return err
			}
			size += len(rec.Key) + len(rec.Value)
		}
		if p.isAll {
			return nil
		}
		n := len(p.records)
		from = append(bytes.Clone(p.records[n-1].Key), 0) // the next key there can be
		most = max(1, min(pageSize*n/size, lastPage))
	}
}

// page reads at most so many records.
func (t *tx) page(from, to []byte, most int) (p page, err error) {
	size := 0
	t.next.Queue(selectPage, t.id[:], from, to, most).Query(func(rows pgx.Rows) error {
		return each(rows, func(rec store.Record, _ int64) bool {
			p.records = append(p.records, rec)
			size += len(rec.Key) + len(rec.Value)
			return size <= pageSize
		})
	})
	err = t.send()
	p.isAll = len(p.records) < most && size <= pageSize
	return p, err
}

// orEmpty is the prefix, never NULL.
func orEmpty(prefix []byte) []byte { return append([]byte{}, prefix...) }

// after is above all keys that start with prefix, never NULL.
func after(prefix []byte) []byte {
	if up := store.After(prefix); up != nil {
		return up
	}
	return bytes.Repeat([]byte{0xff}, store.MaxKey+1)
}
