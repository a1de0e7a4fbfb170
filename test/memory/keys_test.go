//go:build linux

package memory

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/crypto/argon2"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
)

// This file reads a vault as docs/FORMAT.md describes it, with nothing of
// pkg/vault, pkg/envelope or pkg/kek: the test must know the keys that it looks
// for without asking the code that is to hide them.

// keysOf returns every key of the account by name: the password slot's key, the
// KEK, each app's and env's key, each env's index key, each version's DEK.
func keysOf(t *testing.T, path string, password []byte) map[string][]byte {
	t.Helper()
	keys := map[string][]byte{}
	err := bolt.New(path).View(context.Background(), func(r store.Reader) error {
		record, err := r.Get([]byte{'A'})
		if err != nil {
			return err
		}
		account := clearFields(t, record)
		accountID, epoch := account[0], lastChange(t, account[1])
		for _, slot := range split(t, account[2]) {
			f := split(t, slot)
			p := split(t, f[1])
			slotKey := argon2.IDKey(password, p[3], u32(p[0]), u32(p[1]), p[2][0], 32)
			keys["slot key"] = slotKey
			keys["KEK"] = open(t, slotKey, f[2], bind("ov/v1/slot", accountID, epoch, f[0], f[1]))
		}
		return r.Scan([]byte{'a'}, func(key, record []byte) error {
			app := clearFields(t, record)
			appID, slug := app[0], string(key[1:])
			appKey := derive(t, keys["KEK"], "ov/v1/app", appID, lastChange(t, app[1]))
			keys["app key "+slug] = appKey
			return r.Scan(append([]byte{'e'}, appID...), func(key, record []byte) error {
				env := clearFields(t, record)
				envID, name, generation := env[0], slug+"/"+string(key[17:]), lastChange(t, env[1])
				envKey := derive(t, appKey, "ov/v1/env", envID, generation)
				keys["env key "+name] = envKey
				keys["index key "+name] = open(t, envKey, env[2], bind("ov/v1/index-key", accountID, appID, envID, generation))
				return r.Scan(bytes.Join([][]byte{{'d'}, appID, envID}, nil), func(key, record []byte) error {
					index, version := key[33:65], key[65:]
					dek := open(t, envKey, split(t, record[2:])[0], bind("ov/v1/dek", accountID, appID, envID, index, version, generation))
					keys[fmt.Sprintf("DEK %x/%d", index[:4], u32(version))] = dek
					return nil
				})
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// clearFields returns the fields of a record in the clear: version, kind,
// fields, 32 bytes of MAC, 8 of checksum.
func clearFields(t *testing.T, record []byte) [][]byte {
	t.Helper()
	if len(record) < 42 {
		t.Fatalf("a record of %d bytes", len(record))
	}
	return split(t, bytes.Clone(record[2:len(record)-40]))
}

func split(t *testing.T, b []byte) (fields [][]byte) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 4 || int(u32(b)) > len(b)-4 {
			t.Fatal("a field is cut short")
		}
		n := 4 + int(u32(b))
		fields = append(fields, b[4:n])
		b = b[n:]
	}
	return fields
}

// lastChange returns the number of the newest epoch or generation.
func lastChange(t *testing.T, changes []byte) []byte {
	t.Helper()
	all := split(t, changes)
	return split(t, all[len(all)-1])[0]
}

func bind(label string, fields ...[]byte) []byte {
	b := []byte(label)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

func derive(t *testing.T, key []byte, label string, fields ...[]byte) []byte {
	t.Helper()
	out, err := hkdf.Key(sha256.New, key, nil, string(bind(label, fields...)), 32)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func open(t *testing.T, key, sealed, aad []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm.Open(nil, sealed[:12], sealed[12:], aad)
	if err != nil {
		t.Fatalf("not as docs/FORMAT.md has it: %v", err)
	}
	return plain
}

func u32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
