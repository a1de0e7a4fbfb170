package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

const (
	benchSecrets = 10_000
	benchValue   = 300 // bytes
)

// secretKey is like that of a secret version: 69 bytes.
func secretKey(kind byte, n int) []byte {
	return fmt.Appendf([]byte{kind}, "%064x\x00\x00\x00\x01", uint64(n)*0x9e3779b97f4a7c15)
}

// Benchmark reads and writes ten secrets at a time, one account's, for so long
// each: through the store, and by as few plain statements as can be.
func Benchmark(b *testing.B) {
	dsn, server := database(b)
	all := open(b, dsn)
	id := newAccount(b, all)
	s := all.Store(id)
	for from := 0; from < benchSecrets; from += 5000 {
		err := s.Update(b.Context(), func(store.Reader) (batch store.Batch, err error) {
			for n := from; n < from+5000; n++ {
				batch.Put(secretKey('d', n), make([]byte, benchValue))
				batch.Put(secretKey('v', n), make([]byte, benchValue))
			}
			return batch, nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if _, err := server.SQL("postgres", "VACUUM ANALYZE"); err != nil {
		b.Fatal(err)
	}
	random := func() int { return rand.IntN(benchSecrets) } //nolint:gosec // no secret
	for _, c := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"read/store", func(ctx context.Context) error {
			var ranges []store.Range
			for range 10 {
				n := random()
				for _, kind := range []byte("dv") {
					ranges = append(ranges, store.Range{Key: secretKey(kind, n)[:65], Take: store.Last})
				}
			}
			return s.View(ctx, func(r store.Reader) error {
				if err := r.Fetch(ranges...); err != nil {
					return err
				}
				for _, rng := range ranges {
					if k, _, err := r.Last(rng.Key); k == nil || err != nil {
						return fmt.Errorf("%q: %w", k, err)
					}
				}
				return nil
			})
		}},
		{"read/bare", func(ctx context.Context) error {
			var keys [][]byte
			for range 10 {
				n := random()
				keys = append(keys, secretKey('d', n), secretKey('v', n))
			}
			rows, err := all.pool.Query(ctx, selectOne, id[:], keys)
			if err != nil {
				return err
			}
			return each(rows, func(store.Record, int64) bool { return true })
		}},
		{"write/store", func(ctx context.Context) error {
			return s.Update(ctx, func(r store.Reader) (batch store.Batch, err error) {
				var ranges []store.Range
				for range 10 {
					n := random()
					ranges = append(ranges, store.Range{Key: secretKey('d', n)[:65], Take: store.Last})
					batch.Put(secretKey('d', n), make([]byte, benchValue))
					batch.Put(secretKey('v', n), make([]byte, benchValue))
				}
				return batch, r.Fetch(ranges...)
			})
		}},
		{"write/bare", func(ctx context.Context) error {
			var keys, values [][]byte
			seen := map[int]bool{}
			for len(seen) < 10 {
				n := random()
				if seen[n] {
					continue
				}
				seen[n] = true
				keys = append(keys, secretKey('d', n), secretKey('v', n))
				values = append(values, make([]byte, benchValue), make([]byte, benchValue))
			}
			_, err := all.pool.Exec(ctx, upsert, id[:], keys, values)
			return explain(ctx, err)
		}},
	} {
		for _, clients := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/clients=%d", c.name, clients), func(b *testing.B) {
				todo := make(chan bool)
				var wg sync.WaitGroup
				for range clients {
					wg.Go(func() {
						for range todo {
							if err := retry(b.Context(), func() error { return c.do(b.Context()) }); err != nil {
								b.Error(err)
							}
						}
					})
				}
				start, n := time.Now(), 0
				for ; b.Loop(); n++ {
					todo <- true
				}
				close(todo)
				wg.Wait()
				b.ReportMetric(float64(n)/time.Since(start).Seconds(), "op/s")
			})
		}
	}
}
