package kek

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// KeySize is the size of the KEK and of every key derived from it, in bytes.
const KeySize = 32

// FingerprintSize is the size of a key's fingerprint, in bytes.
const FingerprintSize = 8

// New returns a fresh random KEK.
func New() (*Locked, error) {
	l, err := NewLocked(KeySize)
	if err != nil {
		return nil, err
	}
	rand.Read(l.Bytes()) // never fails: crypto/rand aborts the program instead
	return l, nil
}

// derive is HKDF-SHA-256 (RFC 5869) with no salt. info is the label followed by
// each field behind its length, a big-endian uint32. Call it inside Do.
func derive(key []byte, size int, label string, fields ...[]byte) []byte {
	info := []byte(label)
	for _, f := range fields {
		info = binary.BigEndian.AppendUint32(info, uint32(len(f)))
		info = append(info, f...)
	}
	out, err := hkdf.Key(sha256.New, key, nil, string(info), size)
	if err != nil {
		panic(err) // only a size above 255 hashes fails
	}
	return out
}

// AppKey derives the key of an app from the KEK. Call it inside Do.
func AppKey(kek, appID []byte, generation uint32) []byte {
	return derive(kek, KeySize, "ov/v1/app", appID, binary.BigEndian.AppendUint32(nil, generation))
}

// EnvKey derives the key of an env from its app's key. Call it inside Do.
func EnvKey(appKey, envID []byte, generation uint32) []byte {
	return derive(appKey, KeySize, "ov/v1/env", envID, binary.BigEndian.AppendUint32(nil, generation))
}

// MACKey derives the key that authenticates the records in the clear of the
// account, app or env that key belongs to. Call it inside Do.
func MACKey(key []byte) []byte { return derive(key, KeySize, "ov/v1/mac") }

// Fingerprint names a key without telling anything of it. Call it inside Do.
func Fingerprint(key []byte) []byte { return derive(key, FingerprintSize, "ov/v1/key-id") }
