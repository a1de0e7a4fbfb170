package remote_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/test/chance"
)

// cutting is a relay that loses the connection after so many records, and counts
// the records that have come through.
type cutting struct {
	*relay
	mu    sync.Mutex
	after int // 0: it does not
	sent  int
	begin func() // called when a scan of something begins
}

// cut sets after how many records, and returns how many there were since.
func (h *cutting) cut(after int) (sent int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sent, h.sent, h.after = h.sent, 0, after
	return sent
}

func (h *cutting) Scan(m *vaultv1.ReadRequest, stream grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	if h.begin != nil && len(m.GetRanges()) > 0 {
		h.begin()
	}
	h.mu.Lock()
	left := h.after
	h.mu.Unlock()
	return h.relay.Scan(m, &cutStream{stream, h, left})
}

type cutStream struct {
	grpc.ServerStreamingServer[vaultv1.ScanResponse]
	h    *cutting
	left int
}

func (s *cutStream) Send(m *vaultv1.ScanResponse) error {
	n := len(m.Records)
	cut := s.left > 0 && n >= s.left
	if cut {
		n = s.left
		m = &vaultv1.ScanResponse{Range: m.Range, Records: m.Records[:n]}
	}
	if s.left > 0 {
		s.left -= n
	}
	s.h.mu.Lock()
	s.h.sent += n
	s.h.mu.Unlock()
	if err := s.ServerStreamingServer.Send(m); err != nil || !cut {
		return err
	}
	return status.Error(codes.Unavailable, "cut")
}

// records are like those of a vault with some envs.
func records(rnd *rand.Rand, secrets int) (b store.Batch) {
	random := func(n int) []byte {
		list := make([]byte, n)
		for i := range list {
			list[i] = byte(rnd.UintN(256))
		}
		return list
	}
	b.Put([]byte("A"), random(200))
	for i := range 3 {
		app, env := random(16), random(16)
		b.Put(fmt.Appendf(nil, "aapp-%d", i), random(100))
		b.Put(slices.Concat([]byte("e"), app, []byte("production")), random(200))
		for range secrets / 3 {
			place := slices.Concat(app, env, random(32), []byte{0, 0, 0, 1})
			b.Put(slices.Concat([]byte("d"), place), random(150))
			b.Put(slices.Concat([]byte("v"), place), random(150))
		}
	}
	return b
}

// all is what is really there.
func all(t testing.TB, s store.Store) (list []store.Record) {
	t.Helper()
	if err := s.View(t.Context(), func(r store.Reader) error {
		list = nil
		return r.Scan(nil, func(k, v []byte) error {
			list = append(list, store.Record{Key: bytes.Clone(k), Value: bytes.Clone(v)})
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func equal(t testing.TB, got, want []store.Record) {
	t.Helper()
	if len(got) != len(want) || !bytes.Equal(store.DigestOf(got), store.DigestOf(want)) {
		t.Errorf("%d records, and %d are there", len(got), len(want))
	}
}

// kept is what a caller keeps of what has come.
type kept map[string][]byte

func (k kept) add(list []store.Record) {
	for _, rec := range list {
		k[string(rec.Key)] = rec.Value
	}
}

func (k kept) records() (list []store.Record) {
	for _, key := range slices.Sorted(maps.Keys(k)) {
		list = append(list, store.Record{Key: []byte(key), Value: k[key]})
	}
	return list
}

// slack is how many records may come again: those of a part that is not divided
// further because it is small, of at least 283 bytes each with what a record
// costs. Of more than a few envs, those that others write to come as a whole.
const (
	slack = 128<<10/283 + 1
	inEnv = 2000 // of a kind
)

func TestReadAll(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), &cutting{relay: newRelay(t, server)}
	url := serve(t, h)
	near := client(t, server.url, key)
	s, once := warm(t, client(t, url, key)), warm(t, client(t, url, key, func(o *remote.Options) { o.Wait = -1 }))
	rnd := chance.Rand(t, 42)

	got, err := s.ReadAll(t.Context(), nil, nil)
	if err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
	batch := records(rnd, 6000)
	put(t, near, batch)
	want := all(t, near)
	h.trips()
	k := kept{}
	got, err = s.ReadAll(t.Context(), nil, k.add)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, want)
	equal(t, k.records(), want)
	if trips := total(h.trips()); trips != "0 reads, 1 scans, 0 commits" || h.cut(0) != len(want) {
		t.Error(trips)
	}

	t.Run("nothing is missing", func(t *testing.T) {
		got, err := s.ReadAll(t.Context(), want, nil)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, want)
		if n, trips := h.cut(0), total(h.trips()); n > slack || trips != "0 reads, 1 scans, 0 commits" {
			t.Errorf("%d records, %s", n, trips)
		}
	})

	// The connection is lost again and again in one reading: it goes on.
	t.Run("cut often", func(t *testing.T) {
		h.cut(3000)
		got, err := s.ReadAll(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, want)
		if n, least := h.cut(0), len(want); n < least || n > least+least/(3000-slack)*slack+slack {
			t.Errorf("%d records came for %d", n, least)
		}
	})

	// It is lost, and a later reading goes on, wherever it was.
	t.Run("cut anywhere", func(t *testing.T) {
		for range 10 {
			at := 1 + rnd.IntN(len(want)-1)
			k := kept{}
			h.cut(at)
			if _, err := once.ReadAll(t.Context(), nil, k.add); !errors.Is(err, store.ErrUnavailable) {
				t.Fatal(err)
			}
			h.cut(0)
			delete(k, "A") // as pkg/transfer does
			if len(k) < at-1 {
				t.Errorf("%d of %d were told", len(k), at)
			}
			got, err := once.ReadAll(t.Context(), k.records(), nil)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, want)
			if n := h.cut(0); n > len(want)-at+1+slack {
				t.Errorf("cut at %d of %d: %d came", at, len(want), n)
			}
		}
	})

	// Others write in between.
	t.Run("changed in between", func(t *testing.T) {
		for i := range 6 {
			before := all(t, near)
			at := len(before)/3 + rnd.IntN(len(before)/2)
			k := kept{}
			h.cut(at)
			if _, err := once.ReadAll(t.Context(), nil, k.add); !errors.Is(err, store.ErrUnavailable) {
				t.Fatal(err)
			}
			h.cut(0)
			var b store.Batch
			changes := 1 + i%3
			for range changes {
				switch rec := before[rnd.IntN(at)]; rnd.IntN(3) {
				case 0:
					b.Put(rec.Key, []byte("changed "+strconv.Itoa(i)))
				case 1:
					b.Delete(rec.Key)
				default:
					b.Put(slices.Concat(rec.Key[:1+rnd.IntN(len(rec.Key))], []byte("new")), []byte("new"))
				}
			}
			put(t, near, b)
			want := all(t, near)
			h.trips()
			got, err := once.ReadAll(t.Context(), k.records(), nil)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, want)
			if n, trips := h.cut(0), h.trips(); n > len(want)-at+changes*(inEnv+changes)+slack {
				t.Errorf("cut at %d of %d, %d changes: %d came; %s", at, len(want), changes, n, total(trips))
			}
		}
	})

	// What is there is another's, or made up: it costs time alone.
	t.Run("not what was there", func(t *testing.T) {
		want := all(t, near)
		for name, have := range map[string][]store.Record{
			"other values": func() (list []store.Record) {
				for _, rec := range want {
					list = append(list, store.Record{Key: rec.Key, Value: []byte("x")})
				}
				return list
			}(),
			"other keys": func() (list []store.Record) {
				k := kept{}
				for range 2000 {
					k[fmt.Sprintf("%c%d", 1+rnd.IntN(255), rnd.Uint64())] = []byte("x")
				}
				return k.records()
			}(),
			"too many": append(slices.Clone(want), store.Record{Key: []byte("zzz"), Value: []byte("x")}, store.Record{Key: []byte("zzzz"), Value: []byte("x")}),
			"no order": {{Key: []byte("b"), Value: []byte("x")}, {Key: []byte("a"), Value: []byte("x")}},
			"twice":    {want[0], want[0]},
			"server's": {{Key: []byte{0, 1}, Value: []byte("x")}, {Key: []byte{0, 2}, Value: bytes.Repeat([]byte("x"), 200<<10)}},
			"empty":    {{Key: nil, Value: nil}},
			"long": func() (list []store.Record) {
				for i := range 300 {
					list = append(list, store.Record{Key: fmt.Appendf(bytes.Repeat([]byte("v"), 500), "%05d", i), Value: make([]byte, 1000)})
				}
				return list
			}(),
		} {
			got, err := once.ReadAll(t.Context(), have, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			equal(t, got, want)
		}
	})

	// What is there and what has come are too much together: all is read anew.
	t.Run("too large", func(t *testing.T) {
		want := all(t, near)
		tight := warm(t, client(t, url, key))
		size := 0
		for _, rec := range want {
			size += len(rec.Key) + len(rec.Value) + 64
		}
		tight.Bounds(15*time.Second, 30*time.Second, size)
		got, err := tight.ReadAll(t.Context(), want, nil)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, want)
		tight.Bounds(15*time.Second, 30*time.Second, size-1)
		if _, err := tight.ReadAll(t.Context(), want, nil); !errors.Is(err, remote.ErrTooLarge) {
			t.Error(err)
		}
	})

	// Others write all the time, and what is read was so at one moment.
	t.Run("at one moment", func(t *testing.T) {
		before := all(t, near)
		first, last := before[10].Key, before[len(before)-10].Key
		both := func(i int) {
			put(t, near, store.Batch{{Key: first, Value: []byte(strconv.Itoa(i))}, {Key: last, Value: []byte(strconv.Itoa(i))}})
		}
		writes := 0
		for i := range 4 {
			both(writes)
			have := all(t, near)
			h.begin = func() {
				if writes%(2+i) != 0 || i%2 == 0 && writes < 10 {
					writes++
					both(writes)
				}
			}
			writes++
			both(writes)
			got, err := once.ReadAll(t.Context(), have, nil)
			h.begin = nil
			if errors.Is(err, store.ErrBusy) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			k := kept{}
			k.add(got)
			if !bytes.Equal(k[string(first)], k[string(last)]) {
				t.Errorf("%s with %s", k[string(first)], k[string(last)])
			}
		}
	})
}

// A server that says of everything that it has changed is given up, and so is one
// that always loses the connection.
func TestReadAllEnds(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), &refusing{relay: newRelay(t, server)}
	s := warm(t, client(t, serve(t, h), key, func(o *remote.Options) { o.Wait = time.Second }))
	batch := records(chance.Rand(t, 43), 3000)
	put(t, client(t, server.url, key), batch)
	have := all(t, client(t, server.url, key))
	h.code = codes.Aborted
	for _, list := range [][]store.Record{have, nil} {
		if _, err := s.ReadAll(t.Context(), list, nil); !errors.Is(err, store.ErrBusy) {
			t.Error(err)
		}
	}
	h.code = codes.Unavailable
	if _, err := s.ReadAll(t.Context(), have, nil); !errors.Is(err, store.ErrUnavailable) {
		t.Error(err)
	}
}

// refusing fails every scan.
type refusing struct {
	*relay
	code codes.Code
}

func (h *refusing) Scan(*vaultv1.ReadRequest, grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	return status.Error(h.code, "no")
}

// What the server sends that is not of what was asked for is refused before it is
// kept, also when the rest is there already.
func TestReadAllRefuses(t *testing.T) {
	server := startOne(t)
	key, h := server.tenant(t), &sending{relay: newRelay(t, server)}
	s := warm(t, client(t, serve(t, h), key))
	put(t, client(t, server.url, key), records(chance.Rand(t, 45), 3000))
	have := all(t, client(t, server.url, key))
	for name, list := range map[string][]*vaultv1.Record{
		"of another range": {{Key: []byte("zzz"), Value: []byte("1")}},
		"of another part":  {{Key: have[len(have)/2].Key, Value: []byte("1")}},
		"without a value":  {{Key: []byte{1}}},
		"without a key":    {{Value: []byte("1")}},
		"twice":            {{Key: []byte{1}, Value: []byte("1")}, {Key: []byte{1}, Value: []byte("1")}},
		"out of order":     {{Key: []byte{1, 2}, Value: []byte("1")}, {Key: []byte{1, 1}, Value: []byte("1")}},
	} {
		for _, apart := range []bool{false, true} {
			h.list, h.apart = list, apart
			n := 0
			if _, err := s.ReadAll(t.Context(), have, func(list []store.Record) { n += len(list) }); !errors.Is(err, remote.ErrMalformed) {
				t.Errorf("%s: %v", name, err)
			}
			if n > 1 || n == 1 && (!apart || len(list) == 1) {
				t.Errorf("%s: %d records were kept", name, n)
			}
		}
	}
}

// sending answers every scan with some records in its first range, in one message
// or apart.
type sending struct {
	*relay
	list  []*vaultv1.Record
	apart bool
}

func (h *sending) Scan(m *vaultv1.ReadRequest, stream grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	size := len(h.list)
	if h.apart {
		size = 1
	}
	for list := range slices.Chunk(h.list, size) {
		if err := stream.Send(&vaultv1.ScanResponse{Records: list}); err != nil {
			return err
		}
	}
	return stream.Send(&vaultv1.ScanResponse{End: true})
}

// The same with the server's records in PostgreSQL.
func TestReadAllOnPostgreSQL(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: starts PostgreSQL")
	}
	server := start(t, onPostgreSQL(t), "127.0.0.1:0")
	key := server.tenant(t)
	s := client(t, server.url, key)
	put(t, s, records(chance.Rand(t, 46), 3000))
	was := all(t, s)
	put(t, s, store.Batch{{Key: was[20].Key, Value: []byte("changed")}, {Key: was[len(was)/2].Key}})
	for _, have := range [][]store.Record{nil, was[:len(was)/3], was[len(was)/3:], was} {
		came := 0
		got, err := s.ReadAll(t.Context(), have, func(list []store.Record) { came += len(list) })
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, all(t, s))
		if most := len(was) - len(have) + 2*inEnv/2 + slack; came > most {
			t.Errorf("%d records came for %d of %d that were there", came, len(have), len(was))
		}
	}
}
