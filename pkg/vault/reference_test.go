package vault_test

// A second implementation of docs/FORMAT.md, written from the page and using
// nothing of this program: it reads a vault with the password.

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/argon2"
)

// A refVault is what comes out, and everything in between.
type refVault struct {
	slotKeys [][]byte
	kek      []byte
	account  []byte
	epoch    uint32
	keys     []refKey
	states   []refState
	names    []refName
	sealed   []refSealed
	secrets  []refSecret
	issued   []refIssued
}

type refKey struct {
	level, app, env         string
	key, macKey, print, idx []byte
	sums                    []byte
}

type refState struct {
	app, env string
	counter  uint64
	secrets  uint32
	sum      []byte
}

type refName struct {
	app, env, name string
	index          []byte
}

type refSealed struct {
	record              []byte
	field               int
	key, aad, plaintext []byte
}

type refSecret struct {
	app, env, name string
	version        uint32
	created        time.Time
	note           string
	value          []byte
}

type refIssued struct {
	print           []byte
	level, app, env string
	label           string
	created         time.Time
	why             string // dead
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func fields(list ...[]byte) (out []byte) {
	for _, f := range list {
		out = append(append(out, u32(uint32(len(f)))...), f...)
	}
	return out
}

func bind(label string, list ...[]byte) []byte { return append([]byte(label), fields(list...)...) }

var errFormat = errors.New("not the format")

// split takes n fields apart, any number of them if n is negative.
func split(b []byte, n int) (out [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, errFormat
		}
		size := binary.BigEndian.Uint32(b)
		out, b = append(out, b[4:4+size]), b[4+size:]
	}
	if n >= 0 && len(out) != n {
		return nil, errFormat
	}
	return out, nil
}

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

func hkdf256(key []byte, size int, info []byte) []byte {
	out, err := hkdf.Key(sha256.New, key, nil, string(info), size)
	if err != nil {
		panic(err)
	}
	return out
}

func unseal(key, sealed, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	if len(sealed) < 28 {
		return nil, errFormat
	}
	return gcm.Open(nil, sealed[:12], sealed[12:], aad)
}

// clear reads a record in the clear. verify checks its MAC.
type clearRecord struct {
	fields [][]byte
	signed []byte
	mac    []byte
}

func readClear(key string, value []byte, n int) (r clearRecord, err error) {
	if len(value) < 2+32+8 {
		return r, errFormat
	}
	rest, sum := value[:len(value)-8], value[len(value)-8:]
	want := sha256.Sum256(bind("ov/v1/checksum", []byte(key), rest))
	if !bytes.Equal(sum, want[:8]) {
		return r, fmt.Errorf("%x: checksum", key)
	}
	body := rest[:len(rest)-32]
	if body[0] != 1 || body[1] != key[0] {
		return r, errFormat
	}
	r.fields, err = split(body[2:], n)
	r.signed, r.mac = bind("ov/v1/record", []byte(key), body), rest[len(rest)-32:]
	return r, err
}

func (r clearRecord) verify(macKey []byte) error {
	if !hmac.Equal(r.mac, mac(macKey, r.signed)) {
		return errors.New("MAC")
	}
	return nil
}

type refChange struct {
	number uint32
	at     time.Time
	reason byte
}

func readChanges(b []byte) (out []refChange, err error) {
	items, err := split(b, -1)
	if err != nil || len(items) == 0 {
		return nil, errors.Join(err, errFormat)
	}
	for i, item := range items {
		f, err := split(item, 3)
		if err != nil || len(f[0]) != 4 || len(f[1]) != 8 || len(f[2]) != 1 || binary.BigEndian.Uint32(f[0]) != uint32(i+1) {
			return nil, errors.Join(err, errFormat)
		}
		out = append(out, refChange{uint32(i + 1), time.Unix(int64(binary.BigEndian.Uint64(f[1])), 0).UTC(), f[2][0]})
	}
	return out, nil
}

// after says which change came after a number.
func after(changes []refChange, number uint32) string {
	for _, c := range changes {
		if c.number > number {
			return map[byte]string{'p': "password change", 'r': "key rotation"}[c.reason] + " of " + c.at.Format(time.DateOnly)
		}
	}
	return ""
}

func withKey(level, app, env string, key []byte) refKey {
	return refKey{level, app, env, key, hkdf256(key, 32, []byte("ov/v1/mac")), hkdf256(key, 8, []byte("ov/v1/key-id")), nil, nil}
}

// kind returns the store keys that start with prefix, in order.
func withPrefix(records map[string][]byte, prefix string) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(records)) {
		if len(k) >= len(prefix) && k[:len(prefix)] == prefix {
			out = append(out, k)
		}
	}
	return out
}

// read opens a vault.
func readReference(password string, records map[string][]byte) (*refVault, error) {
	v := &refVault{}
	acc, err := readClear("A", records["A"], 3)
	if err != nil {
		return nil, err
	}
	v.account = acc.fields[0]
	epochs, err := readChanges(acc.fields[1])
	if err != nil {
		return nil, err
	}
	v.epoch = epochs[len(epochs)-1].number
	slots, err := split(acc.fields[2], -1)
	if err != nil {
		return nil, err
	}
	for _, slot := range slots {
		f, err := split(slot, 3)
		if err != nil {
			return nil, err
		}
		if string(f[0]) != "p" {
			continue
		}
		p, err := split(f[1], 4)
		if err != nil {
			return nil, err
		}
		passes, memory, lanes := binary.BigEndian.Uint32(p[0]), binary.BigEndian.Uint32(p[1]), p[2][0]
		if passes < 3 || passes > 64 || memory < 65536 || memory > 4194304 || lanes < 4 || lanes > 64 || len(p[3]) != 16 {
			return nil, errFormat
		}
		slotKey := argon2.IDKey([]byte(password), p[3], passes, memory, lanes, 32)
		v.slotKeys = append(v.slotKeys, slotKey)
		aad := bind("ov/v1/slot", v.account, u32(v.epoch), f[0], f[1])
		if kek, err := unseal(slotKey, f[2], aad); err == nil {
			v.kek = kek
			v.sealed = append(v.sealed, refSealed{[]byte("A"), 2, slotKey, aad, kek})
		}
	}
	if v.kek == nil {
		return nil, errors.New("wrong password")
	}
	root := withKey("account", "", "", v.kek)
	if err := acc.verify(root.macKey); err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	v.keys = append(v.keys, root)

	apps := map[string][]refChange{} // by id; so envs, by their ids
	slugs := map[string]string{}     // ids of apps and envs by slug, "app" or "app/env"
	for _, k := range withPrefix(records, "a") {
		slug := k[1:]
		rec, err := readClear(k, records[k], 2)
		if err != nil {
			return nil, err
		}
		id := rec.fields[0]
		generations, err := readChanges(rec.fields[1])
		if err != nil {
			return nil, err
		}
		apps[string(id)], slugs[slug] = generations, string(id)
		key := withKey("app", slug, "", hkdf256(v.kek, 32, bind("ov/v1/app", id, u32(generations[len(generations)-1].number))))
		if err := rec.verify(key.macKey); err != nil {
			return nil, fmt.Errorf("app %s: %w", slug, err)
		}
		v.keys = append(v.keys, key)
		for _, k := range withPrefix(records, "e"+string(id)) {
			if err := v.readEnv(records, slug, key.key, id, k, apps, slugs); err != nil {
				return nil, err
			}
		}
	}
	for _, k := range withPrefix(records, "k") {
		rec, err := readClear(k, records[k], 10)
		if err != nil || len(k) != 1+8+4 {
			return nil, errors.Join(err, errFormat)
		}
		f := rec.fields
		app, env := string(f[3]), string(f[4])
		is := refIssued{
			print: []byte(k[1:9]), level: map[string]string{"a": "account", "p": "app", "e": "env"}[string(f[0])], app: app, env: env, label: string(f[5]),
			created: time.Unix(int64(binary.BigEndian.Uint64(f[6])), 0).UTC(),
			why:     after(epochs, binary.BigEndian.Uint32(f[7])),
		}
		for i, slug := range []string{app, app + "/" + env} {
			if is.why != "" || i == 0 && is.level == "account" || i == 1 && is.level != "env" {
				continue
			}
			if id := slugs[slug]; id != string(f[1+i]) {
				is.why = "deleted"
			} else {
				is.why = after(apps[id], binary.BigEndian.Uint32(f[8+i]))
			}
		}
		v.issued = append(v.issued, is)
	}
	return v, nil
}

func (v *refVault) readEnv(records map[string][]byte, app string, appKey, appID []byte, k string, generations map[string][]refChange, slugs map[string]string) error {
	slug := k[17:]
	rec, err := readClear(k, records[k], -1)
	if err != nil || len(rec.fields) != 3 && len(rec.fields) != 4 {
		return errors.Join(err, errFormat)
	}
	id := rec.fields[0]
	changes, err := readChanges(rec.fields[1])
	if err != nil {
		return err
	}
	generation := u32(changes[len(changes)-1].number)
	generations[string(id)], slugs[app+"/"+slug] = changes, string(id)
	key := withKey("env", app, slug, hkdf256(appKey, 32, bind("ov/v1/env", id, generation)))
	if err := rec.verify(key.macKey); err != nil {
		return fmt.Errorf("env %s/%s: %w", app, slug, err)
	}
	open := func(record string, field int, key, sealed, aad []byte) (plaintext []byte, err error) {
		if plaintext, err = unseal(key, sealed, aad); err != nil {
			return nil, fmt.Errorf("record %x field %d: %w", record, field, err)
		}
		v.sealed = append(v.sealed, refSealed{[]byte(record), field, key, aad, plaintext})
		return plaintext, nil
	}
	if key.idx, err = open(k, 2, key.key, rec.fields[2], bind("ov/v1/index-key", v.account, appID, id, generation)); err != nil {
		return err
	}
	var state []byte
	if len(rec.fields) == 4 {
		if state, err = open(k, 3, key.key, rec.fields[3], bind("ov/v1/state", v.account, appID, id, generation)); err != nil {
			return err
		}
		if len(state) != 8+4+32 {
			return errFormat
		}
		key.sums = hkdf256(key.idx, 32, []byte("ov/v1/sum"))
	}
	v.keys = append(v.keys, key)
	parts := map[string]*big.Int{} // by name index: the last one is the newest version's
	for _, dk := range withPrefix(records, "d"+string(appID)+string(id)) {
		if len(dk) != 1+16+16+32+4 {
			return errFormat
		}
		index, version := []byte(dk[33:65]), []byte(dk[65:])
		place := [][]byte{v.account, appID, id, index, version}
		data, value := records[dk], records["v"+dk[1:]]
		if !bytes.HasPrefix(data, []byte("\x01d")) || !bytes.HasPrefix(value, []byte("\x01v")) {
			return errFormat
		}
		d, err1 := split(data[2:], 2)
		val, err2 := split(value[2:], 1)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		dek, err := open(dk, 0, key.key, d[0], bind("ov/v1/dek", append(place, generation)...))
		if err != nil {
			return err
		}
		meta, err := open(dk, 1, dek, d[1], bind("ov/v1/meta", place...))
		if err != nil {
			return err
		}
		plain, err := open("v"+dk[1:], 0, dek, val[0], bind("ov/v1/value", place...))
		if err != nil {
			return err
		}
		m, err := split(meta, 3)
		if err != nil || len(m[1]) != 8 {
			return errors.Join(err, errFormat)
		}
		if !bytes.Equal(mac(key.idx, m[0]), index) {
			return fmt.Errorf("%s is filed under another name", m[0])
		}
		if state != nil {
			part := mac(key.sums, slices.Concat(index, version, d[1]))
			parts[string(index)] = new(big.Int).SetBytes(part)
		}
		v.names = append(v.names, refName{app, slug, string(m[0]), index})
		v.secrets = append(v.secrets, refSecret{app, slug, string(m[0]), binary.BigEndian.Uint32(version),
			time.Unix(int64(binary.BigEndian.Uint64(m[1])), 0).UTC(), string(m[2]), plain})
	}
	if state == nil {
		return nil
	}
	sum := new(big.Int)
	for _, part := range parts {
		sum.Add(sum, part)
	}
	sum.Mod(sum, new(big.Int).Lsh(big.NewInt(1), 256))
	is := refState{app, slug, binary.BigEndian.Uint64(state), binary.BigEndian.Uint32(state[8:]), sum.FillBytes(make([]byte, 32))}
	if is.counter == 0 || int(is.secrets) != len(parts) || !bytes.Equal(is.sum, state[12:]) {
		return fmt.Errorf("env %s/%s: %d secrets with the sum %x do not make %x", app, slug, len(parts), is.sum, state)
	}
	v.states = append(v.states, is)
	return nil
}
