package vault

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store/bolt"
)

// many returns n secrets of 50 bytes.
func many(n int) []Put {
	list := make([]Put, n)
	for i := range list {
		list[i] = Put{Name: fmt.Sprintf("SECRET_%d", i), Value: fmt.Appendf(nil, "%050d", i)}
	}
	return list
}

// benchVault returns a session on a vault file with n secrets in prod.
func benchVault(b *testing.B, n int) (*Session, *bolt.Store) {
	b.Helper()
	f, st := onDisk(b)
	s := unlock(b, st, f.account)
	for list := many(n); len(list) > 0; {
		batch := list[:min(len(list), MaxBatch)]
		if _, err := s.Put(b.Context(), prod, batch, PutOptions{}); err != nil {
			b.Fatal(err)
		}
		list = list[len(batch):]
	}
	return s, st
}

func BenchmarkImport(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		list := many(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s, _ := benchVault(b, 0)
				b.StartTimer()
				if _, err := s.Put(b.Context(), prod, list, PutOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "secrets/s")
		})
	}
}

// BenchmarkChangePassword holds two Argon2id each.
func BenchmarkChangePassword(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, st := benchVault(b, n)
			password := locked(b, []byte(fixturePassword))
			for b.Loop() {
				if err := New(st).RotateKey(b.Context(), password); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReveal reads two secrets by name, as a starting service does: the
// same time however many others there are. The largest vault takes minutes to
// make, and is only for OV_BENCH=full.
func BenchmarkReveal(b *testing.B) {
	sizes := []int{10, 10_000}
	if os.Getenv("OV_BENCH") == "full" {
		sizes = append(sizes, 1_000_000)
	}
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := benchVault(b, n)
			names := []string{"SECRET_3", fmt.Sprintf("SECRET_%d", n-1)}
			best := time.Hour
			for b.Loop() {
				start := time.Now()
				err := s.Reveal(context.Background(), prod, Select{Names: names}, func(list []Secret) error {
					if len(list) != 2 {
						b.Fatal(len(list))
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				best = min(best, time.Since(start))
			}
			b.ReportMetric(float64(best.Nanoseconds()), "best-ns")
		})
	}
}
