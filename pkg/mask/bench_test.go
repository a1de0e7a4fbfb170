package mask

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// secretLike returns n values of 40 characters.
func secretLike(n int) []Value {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: a benchmark
	var values []Value
	for i := range n {
		values = append(values, Value{fmt.Sprintf("SECRET_%d", i), word(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 40)})
	}
	return values
}

// log is what a build prints.
func log(size int) []byte {
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // G404: a benchmark
	var b []byte
	for i := 0; len(b) < size; i++ {
		b = fmt.Appendf(b, "2026-01-02T15:04:05.%06dZ INFO  request id=%016x path=/api/v1/users/%d status=200 took=%dms\n",
			random.IntN(1e6), random.Uint64(), random.IntN(1e5), random.IntN(500))
	}
	return b
}

func BenchmarkWriter(b *testing.B) {
	base64 := word(rand.New(rand.NewPCG(5, 6)), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 1<<20) //nolint:gosec // G404: a benchmark
	for _, n := range []int{10, 1000} {
		s, err := Compile(secretLike(n))
		if err != nil {
			b.Fatal(err)
		}
		for name, text := range map[string][]byte{"log": log(1 << 20), "base64": base64} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					w := s.NewWriter(io.Discard)
					for rest := text; len(rest) > 0; rest = rest[min(32<<10, len(rest)):] {
						if _, err := w.Write(rest[:min(32<<10, len(rest))]); err != nil {
							b.Fatal(err)
						}
					}
					_ = w.Close()
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1000} {
		values := secretLike(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s, err := Compile(values)
				if err != nil {
					b.Fatal(err)
				}
				s.Wipe()
			}
		})
	}
	b.Run("64KiB", func(b *testing.B) {
		values := []Value{{"BIG", word(rand.New(rand.NewPCG(7, 8)), "abcdefghij\nKLMNO PQ\"", 64<<10)}} //nolint:gosec // G404: a benchmark
		b.ReportAllocs()
		for b.Loop() {
			s, err := Compile(values)
			if err != nil {
				b.Fatal(err)
			}
			s.Wipe()
		}
	})
}
