package server

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// The server's own records lie in each account's store, so that they are written
// in one step with the account's. Their keys begin with a zero byte: no client
// names them or sees them. The second byte is the kind.
//
//	k ‖ key id (8)             → u8(1) ‖ hash (32) ‖ APIKey, in protobuf
//	u ‖ key id (8)             → u64(time of the last use, in Unix seconds)
//	c ‖ u32(day) ‖ commit (16) → SHA-256 of the commit's ops
//	n                          → u64(how many commits there were)
const (
	kindAPIKey = 'k'
	kindUsed   = 'u'
	kindCommit = 'c'
)

// commitCount changes whenever something of a client's is written.
var commitCount = []byte{0, 'n'}

// private reports whether a record's key is the server's own.
func private(key []byte) bool { return len(key) > 0 && key[0] == 0 }

var (
	allAPIKeys = store.Range{Key: []byte{0, kindAPIKey}, Take: store.All}
	allUsed    = store.Range{Key: []byte{0, kindUsed}, Take: store.All}
	allCommits = store.Range{Key: []byte{0, kindCommit}, Take: store.All}
)

// keyOf is the record's key of something about an API key.
func keyOf(kind byte, id string) []byte {
	b, _ := hex.DecodeString(id) // ids are checked where they come in
	return append([]byte{0, kind}, b...)
}

// apiKey is what the server keeps of an API key.
type apiKey struct {
	hash apikey.Hash
	*vaultv1.APIKey
}

const apiKeyVersion = 1

func (k *apiKey) encode() ([]byte, error) {
	about := proto.CloneOf(k.APIKey)
	about.LastUsedUnix = 0 // has a record of its own, which is written often
	b, err := proto.Marshal(about)
	return append(append([]byte{apiKeyVersion}, k.hash[:]...), b...), err
}

func decodeAPIKey(key, value []byte) (*apiKey, error) {
	k := &apiKey{APIKey: &vaultv1.APIKey{}}
	if len(value) < 1+len(k.hash) || value[0] != apiKeyVersion {
		return nil, errors.New("the record of an API key is of an unknown kind")
	}
	copy(k.hash[:], value[1:])
	if err := proto.Unmarshal(value[1+len(k.hash):], k.APIKey); err != nil {
		return nil, fmt.Errorf("the record of an API key: %w", err)
	}
	if k.GetId() != k.hash.ID() || string(keyOf(kindAPIKey, k.GetId())) != string(key) {
		return nil, errors.New("the record of an API key is in another's place")
	}
	return k, nil
}

// state says whether the key may be used at that time: nil, or the error for who
// has it.
func (k *apiKey) state(now time.Time) error {
	switch {
	case k.GetRevokedUnix() != 0:
		return unauthenticated(ReasonRevokedKey, "the API key was revoked")
	case k.GetExpiresUnix() != 0 && now.Unix() >= k.GetExpiresUnix():
		return unauthenticated(ReasonExpiredKey, "the API key has expired")
	}
	return nil
}

// readAPIKeys returns an account's API keys by id, with their last use.
func readAPIKeys(r store.Reader) (map[string]*apiKey, error) {
	if err := r.Fetch(allAPIKeys, allUsed); err != nil {
		return nil, err
	}
	keys := map[string]*apiKey{}
	err := r.Scan(allAPIKeys.Key, func(key, value []byte) error {
		k, err := decodeAPIKey(key, value)
		if err == nil {
			keys[k.GetId()] = k
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return keys, r.Scan(allUsed.Key, func(key, value []byte) error {
		if k := keys[hex.EncodeToString(key[2:])]; k != nil && len(value) == 8 {
			k.LastUsedUnix = int64(binary.BigEndian.Uint64(value))
		}
		return nil
	})
}

// commitDays is how many days before this one the ids of commits are kept, and
// looked for ahead of it: the clocks of servers on one storage may differ.
const commitDays = 1

func dayOf(t time.Time) uint32 { return uint32(t.Unix() / (24 * 60 * 60)) }

func commitKey(day uint32, id []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0, kindCommit}, day), id...)
}

// commitRanges are the places where a commit's id may be.
func commitRanges(now time.Time, id []byte) []store.Range {
	var list []store.Range
	for day := dayOf(now) - commitDays; day <= dayOf(now)+commitDays; day++ {
		list = append(list, store.Range{Key: commitKey(day, id), Take: store.One})
	}
	return list
}

// dayOfCommit is the day in the key of a commit's record.
func dayOfCommit(key []byte) uint32 {
	if len(key) < 6 {
		return 0
	}
	return binary.BigEndian.Uint32(key[2:])
}
