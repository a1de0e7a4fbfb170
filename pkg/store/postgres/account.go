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
	exists     = `SELECT 1 FROM ov_accounts WHERE account = $1`
	// Writers of one account follow each other. So what they read is what was
	// last committed, on any isolation level.
	lockRow = exists + ` FOR UPDATE`

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
	// maxStatement bounds what one statement writes, in bytes and in records.
	maxStatement        = 4 << 20
	maxStatementRecords = 4096
)

type account struct {
	all *Accounts
	id  store.AccountID
}

// View implements store.Store. It has a connection to itself while fn runs.
func (s *account) View(ctx context.Context, fn func(store.Reader) error) error {
	return retry(ctx, func() error {
		return s.with(ctx, beginRead, exists, func(t *tx) error {
			err := fn(t.reader())
			if err == nil && !t.begun {
				err = t.send(nil) // whether there is such an account
			}
			return err
		})
	})
}

// Update implements store.Store. When the connection is lost while the batch is
// committed, the error says that it is not known whether it was.
func (s *account) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	done, err := s.all.take(ctx, s.id)
	if err != nil {
		return err
	}
	defer done()
	return retry(ctx, func() error {
		return s.with(ctx, beginWrite, lockRow, func(t *tx) error {
			b, err := fn(t.reader())
			if err == nil {
				err = b.Check()
			}
			if err == nil && !t.begun { // the row is locked before anything is written
				err = t.send(nil)
			}
			if err != nil || len(b) == 0 {
				return err
			}
			return t.commit(b)
		})
	})
}

// tx is a transaction on an account, which begins with the first statement.
type tx struct {
	ctx         context.Context
	conn        *pgxpool.Conn
	id          store.AccountID
	begin, find string
	begun       bool
	ahead       func(*pgx.Batch) // goes with the next trip
	failed      error            // a statement; fn's errors that come of it are this one
}

// with calls fn with a transaction, and undoes what fn has not committed.
func (s *account) with(ctx context.Context, begin, find string, fn func(*tx) error) error {
	conn, err := s.all.pool.Acquire(ctx)
	if err != nil {
		return explain(ctx, err)
	}
	defer conn.Release()
	t := &tx{ctx: ctx, conn: conn, id: s.id, begin: begin, find: find}
	defer t.end()
	err = fn(t)
	if t.failed != nil {
		return t.failed
	}
	return err
}

// end leaves a connection without a transaction. One that is in doubt is closed:
// PostgreSQL then undoes what was begun.
func (t *tx) end() {
	c := t.conn.Conn()
	if c.IsClosed() || c.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), time.Second)
	defer cancel()
	if _, err := c.Exec(ctx, "ROLLBACK"); err != nil {
		_ = c.Close(ctx)
	}
}

// send sends statements in one trip, the first ones with what begins the
// transaction before them.
func (t *tx) send(queue func(*pgx.Batch)) error {
	if t.failed == nil {
		t.failed = explain(t.ctx, t.exchange(queue))
	}
	return t.failed
}

// exchange is send with what pgx has to say about it.
func (t *tx) exchange(queue func(*pgx.Batch)) error {
	b := &pgx.Batch{}
	if !t.begun {
		b.Queue(t.begin)
		b.Queue(t.find, t.id[:]).QueryRow(func(row pgx.Row) error {
			var one int
			err := row.Scan(&one)
			if errors.Is(err, pgx.ErrNoRows) {
				err = fmt.Errorf("%w: %x", store.ErrNoAccount, t.id)
			}
			return err
		})
	}
	if t.ahead != nil {
		t.ahead(b)
		t.ahead = nil
	}
	if queue != nil {
		queue(b)
	}
	t.begun = true
	err := t.conn.SendBatch(t.ctx, b).Close()
	if isReadOnly(err) { // the server was a primary: look for the new one
		_ = t.conn.Conn().Close(t.ctx)
	}
	return err
}

// commit writes the batch. A loss from here on leaves it unknown whether the
// batch was written, so it is not tried again.
func (t *tx) commit(b store.Batch) error {
	last := make(map[string]int, len(b)) // of two writes to one key, the later one wins
	for i, op := range b {
		last[string(op.Key)] = i
	}
	var deletes, keys, values [][]byte
	for i, op := range b {
		switch {
		case last[string(op.Key)] != i:
		case op.Value == nil:
			deletes = append(deletes, op.Key)
		default:
			keys, values = append(keys, op.Key), append(values, op.Value)
		}
	}
	// Rows are locked in the order of their keys, and an index is filled in order.
	slices.SortFunc(deletes, bytes.Compare)
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return bytes.Compare(keys[i], keys[j]) })
	notices := t.conn.Conn().PgConn().CustomData()
	delete(notices, warning)
	err := t.exchange(func(q *pgx.Batch) {
		for part := range slices.Chunk(deletes, maxStatementRecords) {
			q.Queue(deleteKeys, t.id[:], part)
		}
		var k, v [][]byte
		size := 0
		flush := func() {
			if len(k) > 0 {
				q.Queue(upsert, t.id[:], k, v)
			}
			k, v, size = nil, nil, 0
		}
		for _, i := range order {
			if size+len(keys[i])+len(values[i]) > maxStatement || len(k) == maxStatementRecords {
				flush()
			}
			size += len(keys[i]) + len(values[i])
			k, v = append(k, keys[i]), append(v, values[i])
		}
		flush()
		q.Queue("COMMIT").Exec(func(tag pgconn.CommandTag) error {
			if tag.String() != "COMMIT" {
				return fmt.Errorf("%w: COMMIT was answered with %s", store.ErrUnavailable, tag)
			}
			return nil
		})
	})
	switch {
	case err != nil && isAborted(err):
		t.failed = explain(t.ctx, err)
	case err != nil:
		t.failed = unknown(explain(t.ctx, err))
	case notices[warning] != nil:
		t.failed = unknown(fmt.Errorf("a standby may not have it: PostgreSQL: %v", notices[warning]))
	}
	return t.failed
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
		r.ahead = func(q *pgx.Batch) {
			q.Queue(selectFirst, r.id[:], from, to, firstPage).Query(func(rows pgx.Rows) error {
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
	}
	err := r.Memo.Fetch(few...)
	if err == nil && r.ahead != nil { // few are known already
		err = r.send(nil)
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
	err := t.send(func(q *pgx.Batch) {
		if len(keys) > 0 {
			q.Queue(selectOne, t.id[:], keys).Query(func(rows pgx.Rows) error {
				return each(rows, func(rec store.Record, _ int64) bool {
					got[one[string(rec.Key)]] = []store.Record{rec}
					return true
				})
			})
		}
		if len(at) > 0 {
			q.Queue(selectLast, t.id[:], from, to).Query(func(rows pgx.Rows) error {
				return each(rows, func(rec store.Record, n int64) bool {
					got[at[n-1]] = []store.Record{rec}
					return true
				})
			})
		}
	})
	return got, err
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
	err = t.send(func(q *pgx.Batch) {
		q.Queue(selectPage, t.id[:], from, to, most).Query(func(rows pgx.Rows) error {
			return each(rows, func(rec store.Record, _ int64) bool {
				p.records = append(p.records, rec)
				size += len(rec.Key) + len(rec.Value)
				return size <= pageSize
			})
		})
	})
	p.isAll = len(p.records) < most && size <= pageSize
	return p, err
}

// orEmpty is the prefix, never NULL.
func orEmpty(prefix []byte) []byte { return append([]byte{}, prefix...) }

// after is above all keys that start with prefix.
func after(prefix []byte) []byte {
	for n := len(prefix); n > 0; n-- {
		if prefix[n-1] < 0xff {
			up := bytes.Clone(prefix[:n])
			up[n-1]++
			return up
		}
	}
	return bytes.Repeat([]byte{0xff}, store.MaxKey+1)
}
