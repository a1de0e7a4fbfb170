package remote

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/test/chance"
)

// Whatever is there, the parts name every key once, in order, have all records
// that are there, and are few and small enough for a message.
func TestDivide(t *testing.T) {
	rnd := chance.Rand(t, 41)
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.UintN(256))
		}
		return b
	}
	for name, make := range map[string]func() [][]byte{
		"none": func() [][]byte { return nil },
		"one":  func() [][]byte { return [][]byte{[]byte("A")} },
		"an env": func() (keys [][]byte) {
			app := slices.Concat([]byte("d"), random(32))
			for range 3000 {
				k := slices.Concat(app, random(32), []byte{0, 0, 0, 1})
				v := bytes.Clone(k)
				v[0] = 'v'
				keys = append(keys, k, v)
			}
			return append(keys, []byte("A"), []byte("aweb"))
		},
		"many envs": func() (keys [][]byte) {
			for range 60 {
				env := slices.Concat([]byte("v"), random(32))
				for range 100 {
					keys = append(keys, slices.Concat(env, random(36)))
				}
			}
			return keys
		},
		"keys that begin other keys": func() (keys [][]byte) {
			for n := 1; n <= store.MaxKey; n++ {
				keys = append(keys, bytes.Repeat([]byte{0xff}, n), append(bytes.Repeat([]byte{1}, n-1), 2))
			}
			return keys
		},
		"long ones": func() (keys [][]byte) {
			for i := range 5000 {
				keys = append(keys, fmt.Appendf(bytes.Repeat([]byte("x"), 500), "%08d", i))
			}
			return keys
		},
		"short ones": func() (keys [][]byte) {
			for range 5000 {
				keys = append(keys, append([]byte{byte(1 + rnd.UintN(255))}, random(rnd.IntN(3))...))
			}
			return keys
		},
	} {
		t.Run(name, func(t *testing.T) {
			keys := make()
			slices.SortFunc(keys, bytes.Compare)
			keys = slices.CompactFunc(keys, bytes.Equal)
			var have []store.Record
			for _, k := range keys {
				have = append(have, store.Record{Key: k, Value: bytes.Repeat([]byte{7}, 300)})
			}
			parts := divide(have)
			var again []store.Record
			size, most := 0, 0
			for i, p := range parts {
				if err := p.Check(p.have); err != nil {
					t.Fatal(err)
				}
				if i > 0 && bytes.Compare(parts[i-1].Key, p.Key) >= 0 {
					t.Fatalf("%x after %x", p.Key, parts[i-1].Key)
				}
				if len(p.have) == 0 && !p.read {
					t.Fatalf("%x has nothing and is not read", p.Key)
				}
				again = append(again, p.have...)
				size += len(p.Key)
				most = max(most, len(p.have))
			}
			if !slices.EqualFunc(again, have, func(a, b store.Record) bool { return bytes.Equal(a.Key, b.Key) }) {
				t.Errorf("%d of %d records", len(again), len(have))
			}
			if len(parts) > maxParts || size > maxPartKeys {
				t.Errorf("%d parts with keys of %d bytes", len(parts), size)
			}
			t.Logf("%d records, %d parts, at most %d in one; keys of %d bytes", len(have), len(parts), most, size)

			// Each key is in one part, those too that are near to one that is there.
			check := func(key []byte) {
				if len(key) == 0 || key[0] == 0 || len(key) > store.MaxKey {
					return
				}
				in := 0
				for _, p := range parts {
					if p.Take == store.One && bytes.Equal(p.Key, key) || p.Take == store.All && bytes.HasPrefix(key, p.Key) {
						in++
					}
				}
				if in != 1 {
					t.Errorf("%x is in %d parts", key, in)
				}
			}
			for range 300 {
				check(random(1 + rnd.IntN(80)))
				if len(keys) > 0 {
					k := bytes.Clone(keys[rnd.IntN(len(keys))])
					check(k)
					check(k[:1+rnd.IntN(len(k))])
					k[rnd.IntN(len(k))]++
					check(k)
					check(append(k, 0))
				}
			}
		})
	}
}
