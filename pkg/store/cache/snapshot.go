package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

// Kinds of record: the first byte of a key (docs/FORMAT.md, "Record keys").
const (
	kindAccount = 'A' // A
	kindApp     = 'a' // a, slug
	kindEnv     = 'e' // e, app id, slug
	kindKey     = 'k' // k, fingerprint, number

	idSize = 16
)

var accountKey = []byte{kindAccount}

// snapshot is what a server said of one env at one moment: the ranges that it
// was asked for and all that was there. What it was not asked for is not known,
// which is not the same as not there.
type snapshot struct {
	head
	seen []store.Seen
}

// head is what is told of a snapshot by the beginning of its file.
type head struct {
	name      string    // of the file
	size      int64     // of the file, in bytes
	confirmed time.Time // when the server was last asked and said the same
	digest    [32]byte  // over what follows it in the file
	account   [32]byte  // digest of the account's record
	appKey    [32]byte  // hash of the key of the app's record
	app       [32]byte  // digest of the app's record
}

// A file is
//
//	magic      16 bytes
//	confirmed  u64, nanoseconds since 1970
//	check      first 8 bytes of SHA-256(magic ‖ confirmed ‖ digest)
//	digest     SHA-256 of all that follows
//	account, appKey, app: 32 bytes each
//	and for each range: u8 take, bytes key, u32 number of records, and for each
//	of them: bytes key, bytes value
//
// with numbers big-endian and bytes as u32 length and content. confirmed and
// check alone are ever written in place. The digests find damage; they are no
// proof of anything: whoever can write here can make them.
const (
	magic       = "ov/cache/1\n\x00\x00\x00\x00\x00"
	confirmedAt = len(magic)
	digestAt    = confirmedAt + 16
	headsAt     = digestAt + 32
	seenAt      = headsAt + 3*32
)

var errDamaged = errors.New("damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

// stamp encodes the time of confirmation and its check.
func stamp(confirmed time.Time, digest [32]byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(confirmed.UnixNano())) //nolint:gosec // decoded by the inverse
	sum := sha256.Sum256(append(append([]byte(magic), b...), digest[:]...))
	return append(b, sum[:8]...)
}

func appendBytes(b, content []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(content))) //nolint:gosec // at most store.MaxValue
	return append(b, content...)
}

// encode returns the file of what was seen.
func encode(seen []store.Seen, confirmed time.Time) []byte {
	h := headOf(seen)
	size := seenAt
	for _, s := range seen {
		size += 1 + 4 + len(s.Range.Key) + 4
		for _, rec := range s.Records {
			size += 4 + len(rec.Key) + 4 + len(rec.Value)
		}
	}
	b := make([]byte, digestAt+32, size)
	copy(b, magic)
	b = append(b, h.account[:]...)
	b = append(b, h.appKey[:]...)
	b = append(b, h.app[:]...)
	for _, s := range seen {
		b = append(b, byte(s.Range.Take))
		b = appendBytes(b, s.Range.Key)
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.Records))) //nolint:gosec // fewer than the bytes of a file
		for _, rec := range s.Records {
			b = appendBytes(appendBytes(b, rec.Key), rec.Value)
		}
	}
	h.digest = sha256.Sum256(b[headsAt:])
	copy(b[confirmedAt:], stamp(confirmed, h.digest))
	copy(b[digestAt:], h.digest[:])
	return b
}

// headOf computes the digests of the records that all of an account, and all of
// an app, have in common.
func headOf(seen []store.Seen) (h head) {
	for _, s := range seen {
		if s.Range.Take != store.One {
			continue
		}
		switch s.Range.Key[0] {
		case kindAccount:
			h.account = [32]byte(store.DigestOf(s.Records))
		case kindApp:
			h.appKey = sha256.Sum256(s.Range.Key)
			h.app = [32]byte(store.DigestOf(s.Records))
		}
	}
	return h
}

// decodeHead reads the beginning of a file.
func decodeHead(b []byte) (h head, err error) {
	if len(b) < seenAt || string(b[:len(magic)]) != magic {
		return h, damaged("not a file of the cache")
	}
	copy(h.digest[:], b[digestAt:])
	h.confirmed = time.Unix(0, int64(binary.BigEndian.Uint64(b[confirmedAt:]))) //nolint:gosec // any value is a time
	if !bytes.Equal(stamp(h.confirmed, h.digest), b[confirmedAt:digestAt]) {
		return h, damaged("the time of its confirmation")
	}
	copy(h.account[:], b[headsAt:])
	copy(h.appKey[:], b[headsAt+32:])
	copy(h.app[:], b[headsAt+64:])
	return h, nil
}

// decode reads a file, whose bytes the snapshot goes on using.
func decode(b []byte) (*snapshot, error) {
	h, err := decodeHead(b)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(b[headsAt:]) != h.digest {
		return nil, damaged("its digest")
	}
	s := &snapshot{head: h}
	d := decoder{rest: b[seenAt:]}
	for len(d.rest) > 0 && d.err == nil {
		var one store.Seen
		one.Range.Take = store.Take(d.take(1)[0])
		one.Range.Key = d.bytes()
		for range d.count() {
			if d.err != nil {
				break
			}
			one.Records = append(one.Records, store.Record{Key: d.bytes(), Value: d.bytes()})
		}
		if d.err == nil {
			d.err = one.Range.Check(one.Records)
		}
		s.seen = append(s.seen, one)
	}
	if d.err != nil {
		return nil, damaged("%v", d.err)
	}
	if got := headOf(s.seen); got.account != h.account || got.appKey != h.appKey || got.app != h.app {
		return nil, damaged("its head is not that of its records")
	}
	return s, nil
}

// decoder takes a file apart. After an error it returns zeros.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) take(n uint32) []byte {
	if d.err != nil || uint64(n) > uint64(len(d.rest)) {
		if d.err == nil {
			d.err = errors.New("it ends too soon")
		}
		return make([]byte, 1)
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) count() uint32 {
	if b := d.take(4); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) bytes() []byte { return d.take(d.count()) }

// reader is a snapshot as those see it who read a vault.
type reader struct {
	*store.Memo
	asOf   time.Time
	missed *store.Range // the first range that was asked for and is not known
}

// missing says that the cache does not know.
type missing struct{ store.Range }

func (missing) Error() string   { return "not in the cache" }
func (m missing) Unwrap() error { return store.ErrUnavailable }

func (s *snapshot) reader() (*reader, error) {
	r := &reader{asOf: s.confirmed}
	have := make(map[string][]store.Record, len(s.seen))
	ranges := make([]store.Range, len(s.seen))
	for i, one := range s.seen {
		have[id(one.Range)] = one.Records
		ranges[i] = one.Range
	}
	r.Memo = store.NewMemo(func(ask []store.Range) ([][]store.Record, error) {
		out := make([][]store.Record, len(ask))
		for i, want := range ask {
			list, ok := have[id(want)]
			if !ok {
				if r.missed == nil {
					r.missed = &want
				}
				return nil, missing{want}
			}
			out[i] = list
		}
		return out, nil
	})
	return r, r.Memo.Fetch(ranges...)
}

// Fetch implements store.Reader: all is here that will be.
func (r *reader) Fetch(...store.Range) error { return nil }

func id(r store.Range) string { return string(append([]byte{byte(r.Take)}, r.Key...)) }

// AsOf implements store.Dated: when the server has last confirmed what is here.
func (r *reader) AsOf() time.Time { return r.asOf }

// read returns the records of a range.
func read(r store.Reader, want store.Range) (list []store.Record, err error) {
	var key, value []byte
	switch want.Take {
	case store.One:
		key = want.Key
		value, err = r.Get(want.Key)
	case store.Last:
		key, value, err = r.Last(want.Key)
	default:
		err = r.Scan(want.Key, func(key, value []byte) error {
			list = append(list, store.Record{Key: key, Value: value})
			return nil
		})
	}
	if value != nil {
		list = []store.Record{{Key: key, Value: value}}
	}
	return list, err
}

// recorder returns a Reader over r that remembers what was read. answered is
// called each time that r has answered.
func recorder(r store.Reader, answered func()) *store.Memo {
	return store.NewMemo(func(ask []store.Range) ([][]store.Record, error) {
		if err := r.Fetch(ask...); err != nil {
			return nil, err
		}
		out := make([][]store.Record, len(ask))
		for i, want := range ask {
			var err error
			if out[i], err = read(r, want); err != nil {
				return nil, err
			}
		}
		answered()
		return out, nil
	})
}

// clone copies what was seen out of a store's snapshot.
func clone(seen []store.Seen) []store.Seen {
	out := make([]store.Seen, len(seen))
	for i, s := range seen {
		out[i] = store.Seen{Range: store.Range{Key: bytes.Clone(s.Range.Key), Take: s.Range.Take}}
		for _, rec := range s.Records {
			out[i].Records = append(out[i].Records, store.Record{Key: bytes.Clone(rec.Key), Value: bytes.Clone(rec.Value)})
		}
	}
	return out
}
