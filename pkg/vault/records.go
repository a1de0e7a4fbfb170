package vault

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store"
)

// Kinds of record: the first byte of a store key and the second of a record.
const (
	kindAccount = 'A' // A
	kindApp     = 'a' // a, slug
	kindEnv     = 'e' // e, app id, slug
	kindKey     = 'k' // k, fingerprint, number
	kindData    = 'd' // d, app id, env id, name index, version: wrapped DEK, sealed metadata
	kindValue   = 'v' // v, app id, env id, name index, version: sealed value
)

// Labels: the first bytes of everything that is authenticated or derived.
const (
	labelSlot     = "ov/v1/slot"
	labelIndexKey = "ov/v1/index-key"
	labelState    = "ov/v1/state"
	labelSum      = "ov/v1/sum"
	labelDEK      = "ov/v1/dek"
	labelMeta     = "ov/v1/meta"
	labelValue    = "ov/v1/value"
)

const idSize = 16

// id names an account, app or env for good; slugs are only routing.
type id [idSize]byte

func (i id) String() string { return hex.EncodeToString(i[:]) }

func parseID(b []byte) (id, error) {
	if len(b) != idSize {
		return id{}, fmt.Errorf("%w: an id of %d bytes", envelope.ErrMalformed, len(b))
	}
	return id(b), nil
}

// change is one new epoch of an account or generation of an app, and why.
type change struct {
	number uint32
	at     time.Time
	reason Reason
}

// Reason says why keys were changed.
type Reason byte

// The reasons for which keys change.
const (
	ReasonCreated        Reason = 'c'
	ReasonPasswordChange Reason = 'p'
	ReasonRotation       Reason = 'r'
)

func (r Reason) known() bool {
	return r == ReasonCreated || r == ReasonPasswordChange || r == ReasonRotation
}

func (r Reason) String() string {
	switch r {
	case ReasonCreated:
		return "creation"
	case ReasonPasswordChange:
		return "password change"
	case ReasonRotation:
		return "key rotation"
	}
	return "unknown change"
}

func encodeChanges(cs []change) []byte {
	var out []byte
	for _, c := range cs {
		out = envelope.AppendFields(out, envelope.Fields(
			envelope.Uint32(c.number), encodeTime(c.at), []byte{byte(c.reason)}))
	}
	return out
}

func decodeChanges(b []byte) ([]change, error) {
	list, err := envelope.Split(b, -1)
	if err != nil {
		return nil, err
	}
	var cs []change
	for i, item := range list {
		f, err := envelope.Split(item, 3)
		if err != nil {
			return nil, err
		}
		n, err1 := envelope.ParseUint32(f[0])
		at, err2 := decodeTime(f[1])
		if err := cmp.Or(err1, err2); err != nil {
			return nil, err
		}
		if n != uint32(i+1) {
			return nil, fmt.Errorf("%w: number %d at place %d", envelope.ErrMalformed, n, i+1)
		}
		if len(f[2]) != 1 || !Reason(f[2][0]).known() {
			return nil, fmt.Errorf("%w: reason %q", envelope.ErrMalformed, f[2])
		}
		cs = append(cs, change{n, at, Reason(f[2][0])})
	}
	if len(cs) == 0 {
		return nil, fmt.Errorf("%w: no epoch", envelope.ErrMalformed)
	}
	return cs, nil
}

func last(cs []change) change { return cs[len(cs)-1] }

func encodeTime(t time.Time) []byte { return envelope.Uint64(uint64(t.Unix())) }

// maxTime is the end of the year 9999, beyond which RFC 3339 has no times.
const maxTime = 253402300799

func decodeTime(b []byte) (time.Time, error) {
	n, err := envelope.ParseUint64(b)
	if err == nil && n > maxTime {
		err = fmt.Errorf("%w: time %d", envelope.ErrMalformed, n)
	}
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(int64(n), 0).UTC(), nil
}

// account is the one record that is read before anything is unlocked.
type account struct {
	id     id
	epochs []change
	slots  []slot
	rec    *envelope.Clear
}

func (a *account) epoch() uint32 { return last(a.epochs).number }

// protector says how a slot's key comes about.
type protector byte

const protectorPassword protector = 'p'

// maxSlots bounds an account's slots: each that is tried costs an Argon2id.
const maxSlots = 16

// slot is one wrapped copy of the KEK, as LUKS has key slots.
type slot struct {
	protector protector
	params    []byte // of the protector; for a password: Argon2id
	wrapped   []byte // the KEK, sealed under the slot's key
}

func (s slot) aad(account id, epoch uint32) []byte {
	return envelope.Bind(labelSlot, account[:], envelope.Uint32(epoch), []byte{byte(s.protector)}, s.params)
}

func encodeArgon2id(p kek.Argon2id) []byte {
	return envelope.Fields(envelope.Uint32(p.Time), envelope.Uint32(p.Memory), []byte{p.Threads}, p.Salt)
}

func decodeArgon2id(b []byte) (kek.Argon2id, error) {
	f, err := envelope.Split(b, 4)
	if err != nil {
		return kek.Argon2id{}, err
	}
	time, err1 := envelope.ParseUint32(f[0])
	memory, err2 := envelope.ParseUint32(f[1])
	if err := cmp.Or(err1, err2); err != nil {
		return kek.Argon2id{}, err
	}
	if len(f[2]) != 1 {
		return kek.Argon2id{}, fmt.Errorf("%w: %d bytes of lanes", envelope.ErrMalformed, len(f[2]))
	}
	p := kek.Argon2id{Time: time, Memory: memory, Threads: f[2][0], Salt: f[3]}
	return p, p.Check()
}

var accountKey = []byte{kindAccount}

func (a *account) encode(macKey []byte) []byte {
	var slots []byte
	for _, s := range a.slots {
		slots = envelope.AppendFields(slots, envelope.Fields([]byte{byte(s.protector)}, s.params, s.wrapped))
	}
	return envelope.EncodeClear(kindAccount, accountKey, macKey, a.id[:], encodeChanges(a.epochs), slots)
}

func readAccount(r store.Reader) (*account, error) {
	b, err := r.Get(accountKey)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, damaged("account", fmt.Errorf("%w: it is missing", envelope.ErrMalformed))
	}
	a, err := decodeAccount(bytes.Clone(b))
	if err != nil {
		return nil, damaged("account", err)
	}
	return a, nil
}

func decodeAccount(b []byte) (*account, error) {
	rec, err := envelope.DecodeClear(kindAccount, accountKey, b, 3)
	if err != nil {
		return nil, err
	}
	a := &account{rec: rec}
	if a.id, err = parseID(rec.Fields[0]); err != nil {
		return nil, err
	}
	if a.epochs, err = decodeChanges(rec.Fields[1]); err != nil {
		return nil, err
	}
	slots, err := envelope.Split(rec.Fields[2], -1)
	if err != nil {
		return nil, err
	}
	if len(slots) > maxSlots {
		return nil, fmt.Errorf("%w: %d key slots, the bound is %d", envelope.ErrMalformed, len(slots), maxSlots)
	}
	for _, item := range slots {
		f, err := envelope.Split(item, 3)
		if err != nil {
			return nil, err
		}
		if len(f[0]) != 1 {
			return nil, fmt.Errorf("%w: a protector of %d bytes", envelope.ErrMalformed, len(f[0]))
		}
		a.slots = append(a.slots, slot{protector(f[0][0]), f[1], f[2]})
	}
	return a, nil
}

// app is the record of an app.
type app struct {
	slug        string
	id          id
	generations []change
	rec         *envelope.Clear
}

func (a *app) generation() uint32 { return last(a.generations).number }

func appKeyOf(slug string) []byte { return append([]byte{kindApp}, slug...) }

func (a *app) encode(macKey []byte) []byte {
	return envelope.EncodeClear(kindApp, appKeyOf(a.slug), macKey, a.id[:], encodeChanges(a.generations))
}

func decodeApp(key, b []byte) (*app, error) {
	a := &app{slug: string(key[1:])}
	rec, err := envelope.DecodeClear(kindApp, key, b, 2)
	if err == nil {
		a.rec = rec
		a.id, err = parseID(rec.Fields[0])
	}
	if err == nil {
		a.generations, err = decodeChanges(rec.Fields[1])
	}
	if !names.ValidSlug(a.slug) {
		a.slug, err = strconv.Quote(a.slug), fmt.Errorf("%w: not a slug", envelope.ErrMalformed)
	}
	if err != nil {
		return nil, damaged("app "+a.slug, err)
	}
	return a, nil
}

// env is the record of an env. Its index key turns names into record keys.
type env struct {
	app         *app
	slug        string
	id          id
	generations []change
	indexKey    []byte // sealed under the env key
	sealedState []byte // so too; nil in records from before it was kept
	state       state  // once it is opened
	fresh       bool   // made in this very step: nothing is in it
	rec         *envelope.Clear
}

func (e *env) generation() uint32 { return last(e.generations).number }

func (e *env) ref() Ref { return Ref{e.app.slug, e.slug} }

func envKeyOf(app id, slug string) []byte {
	return append(append([]byte{kindEnv}, app[:]...), slug...)
}

func (e *env) encode(macKey []byte) []byte {
	fields := [][]byte{e.id[:], encodeChanges(e.generations), e.indexKey}
	if e.sealedState != nil {
		fields = append(fields, e.sealedState)
	}
	return envelope.EncodeClear(kindEnv, envKeyOf(e.app.id, e.slug), macKey, fields...)
}

func decodeEnv(a *app, key, b []byte) (*env, error) {
	e := &env{app: a, slug: string(key[1+idSize:])}
	rec, err := envelope.DecodeClear(kindEnv, key, b, -1)
	if err == nil && len(rec.Fields) != 3 && len(rec.Fields) != 4 {
		err = fmt.Errorf("%w: %d fields instead of 4", envelope.ErrMalformed, len(rec.Fields))
	}
	if err == nil {
		e.rec = rec
		e.id, err = parseID(rec.Fields[0])
	}
	if err == nil {
		e.generations, err = decodeChanges(rec.Fields[1])
	}
	if !names.ValidSlug(e.slug) {
		e.slug, err = strconv.Quote(e.slug), fmt.Errorf("%w: not a slug", envelope.ErrMalformed)
	}
	if err != nil {
		return nil, damaged("env "+e.ref().String(), err)
	}
	e.indexKey = rec.Fields[2]
	if len(rec.Fields) == 4 {
		e.sealedState = rec.Fields[3]
	}
	return e, nil
}

func (e *env) indexKeyAAD(account id) []byte {
	return envelope.Bind(labelIndexKey, account[:], e.app.id[:], e.id[:], envelope.Uint32(e.generation()))
}

// nameIndex is the name's place in the store: HMAC-SHA-256(index key, name).
type nameIndex [sha256.Size]byte

// place is where one version of one secret lies.
type place struct {
	account id
	env     *env
	index   nameIndex
	version uint32
}

func (p place) key(kind byte) []byte {
	k := p.env.prefix(kind)
	k = append(k, p.index[:]...)
	return binary.BigEndian.AppendUint32(k, p.version)
}

// prefix starts the keys of all records of a kind in the env.
func (e *env) prefix(kind byte) []byte {
	k := make([]byte, 0, 1+2*idSize+sha256.Size+4)
	k = append(k, kind)
	k = append(k, e.app.id[:]...)
	return append(k, e.id[:]...)
}

// prefix starts the keys of all versions of the secret.
func (p place) prefix(kind byte) []byte { return append(p.env.prefix(kind), p.index[:]...) }

const placeKeySize = 1 + 2*idSize + sha256.Size + 4

func (e *env) placeOf(account id, key []byte) (place, error) {
	if len(key) != placeKeySize {
		return place{}, damaged("secret in "+e.ref().String(), fmt.Errorf("%w: a key of %d bytes", envelope.ErrMalformed, len(key)))
	}
	p := place{account: account, env: e}
	copy(p.index[:], key[1+2*idSize:])
	p.version = binary.BigEndian.Uint32(key[1+2*idSize+sha256.Size:])
	return p, nil
}

// aad binds what is sealed to its place.
func (p place) aad(label string, more ...[]byte) []byte {
	return envelope.Bind(label, append([][]byte{p.account[:], p.env.app.id[:], p.env.id[:], p.index[:],
		envelope.Uint32(p.version)}, more...)...)
}

// dekAAD also binds the generation of the env key that wraps the DEK.
func (p place) dekAAD(generation uint32) []byte {
	return p.aad(labelDEK, envelope.Uint32(generation))
}

// String names a record in an error. The name itself may be what is damaged.
func (p place) String() string {
	return fmt.Sprintf("secret %x version %d in %s", p.index[:4], p.version, p.env.ref())
}

// metadata is sealed apart from the value, so that a list decrypts no value.
type metadata struct {
	name    string
	created time.Time
	note    string // how the version came about: "set", "import", "rollback to 3"
}

func (m metadata) encode() []byte {
	return envelope.Fields([]byte(m.name), encodeTime(m.created), []byte(m.note))
}

// nameIn returns the name in encoded metadata, which it aliases.
func nameIn(b []byte) ([]byte, error) {
	if len(b) >= 4 {
		if n := binary.BigEndian.Uint32(b); uint64(n) <= uint64(len(b)-4) {
			return b[4 : 4+n], nil
		}
	}
	return nil, fmt.Errorf("%w: metadata of %d bytes", envelope.ErrMalformed, len(b))
}

func decodeMetadata(b []byte) (metadata, error) {
	f, err := envelope.Split(b, 3)
	if err != nil {
		return metadata{}, err
	}
	created, err := decodeTime(f[1])
	if err != nil {
		return metadata{}, err
	}
	return metadata{string(f[0]), created, string(f[2])}, nil
}

// register is one issue of a machine key.
type register struct {
	fingerprint []byte
	number      uint32
	level       Level
	appID       id // zero for an account key
	envID       id // zero but for an env key
	scope       Ref
	label       string
	created     time.Time
	epoch       uint32
	appGen      uint32
	envGen      uint32
	rec         *envelope.Clear
}

func registerPrefix(fingerprint []byte) []byte {
	return append([]byte{kindKey}, fingerprint...)
}

func (r *register) key() []byte {
	return binary.BigEndian.AppendUint32(registerPrefix(r.fingerprint), r.number)
}

// encode authenticates the entry with the issued key itself, so that its holder
// can check it.
func (r *register) encode(macKey []byte) []byte {
	return envelope.EncodeClear(kindKey, r.key(), macKey,
		[]byte{byte(r.level)}, r.appID[:], r.envID[:], []byte(r.scope.App), []byte(r.scope.Env),
		[]byte(r.label), encodeTime(r.created),
		envelope.Uint32(r.epoch), envelope.Uint32(r.appGen), envelope.Uint32(r.envGen))
}

// opens reports whether a key of the level can have the scope: slugs as far down
// as the level goes.
func (l Level) opens(scope Ref) bool {
	switch l {
	case LevelAccount:
		return scope == Ref{}
	case LevelApp:
		return names.ValidSlug(scope.App) && scope.Env == ""
	case LevelEnv:
		return scope.check() == nil
	}
	return false
}

// validLabel reports whether a label is text that a terminal can be given.
func validLabel(s string) bool {
	return len(s) <= MaxLabel && utf8.ValidString(s) &&
		strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

func decodeRegister(key, b []byte) (*register, error) {
	name := fmt.Sprintf("machine key register entry %x", key[1:])
	if len(key) != 1+kek.FingerprintSize+4 {
		return nil, damaged(name, fmt.Errorf("%w: a key of %d bytes", envelope.ErrMalformed, len(key)))
	}
	rec, err := envelope.DecodeClear(kindKey, key, b, 10)
	if err != nil {
		return nil, damaged(name, err)
	}
	f := rec.Fields
	r := &register{
		fingerprint: bytes.Clone(key[1 : 1+kek.FingerprintSize]),
		number:      binary.BigEndian.Uint32(key[1+kek.FingerprintSize:]),
		scope:       Ref{string(f[3]), string(f[4])},
		label:       string(f[5]),
		rec:         rec,
	}
	var errs [8]error
	if len(f[0]) == 1 {
		r.level = Level(f[0][0])
	}
	if !r.level.opens(r.scope) {
		errs[0] = fmt.Errorf("%w: level %q of %q", envelope.ErrMalformed, f[0], r.scope)
	}
	if !validLabel(r.label) {
		errs[7] = fmt.Errorf("%w: a label of %d bytes", envelope.ErrMalformed, len(r.label))
	}
	r.appID, errs[1] = parseID(f[1])
	r.envID, errs[2] = parseID(f[2])
	r.created, errs[3] = decodeTime(f[6])
	r.epoch, errs[4] = envelope.ParseUint32(f[7])
	r.appGen, errs[5] = envelope.ParseUint32(f[8])
	r.envGen, errs[6] = envelope.ParseUint32(f[9])
	if err := cmp.Or(errs[:]...); err != nil {
		return nil, damaged(name, err)
	}
	return r, nil
}
