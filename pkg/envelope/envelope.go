// Package envelope is the cryptography of one record: AES-256-GCM with bound
// additional data, HMAC and the frame of records that are in the clear.
//
// docs/FORMAT.md gives the exact bytes. Functions that take a key run inside
// kek.Do at their callers.
package envelope

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// KeySize is the size of every symmetric key here, in bytes.
	KeySize = 32
	// Overhead is what Seal adds to a plaintext: a 12-byte nonce, a 16-byte tag.
	Overhead = 12 + 16
)

// ErrOpen says that a ciphertext does not belong to this key and additional
// data: it was changed, moved, or sealed under another key.
var ErrOpen = errors.New("does not decrypt")

// Key seals and opens under one AES-256-GCM key. It holds the key's schedule, so
// it lives and dies inside one kek.Do.
type Key struct{ aead cipher.AEAD }

// NewKey prepares the 32-byte key.
func NewKey(key []byte) (Key, error) {
	if len(key) != KeySize {
		return Key{}, fmt.Errorf("a key of %d bytes instead of %d", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return Key{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return Key{aead}, err
}

// Seal encrypts plaintext (AES-256-GCM, NIST SP 800-38D, random 96-bit nonce)
// and appends nonce, ciphertext and tag to dst.
func (k Key) Seal(dst, plaintext, aad []byte) []byte {
	return k.aead.Seal(dst, nil, plaintext, aad) //nolint:gosec // the AEAD makes the nonce itself
}

// Open appends the plaintext of sealed to dst. It fails with ErrOpen.
func (k Key) Open(dst, sealed, aad []byte) ([]byte, error) {
	plaintext, err := k.aead.Open(dst, nil, sealed, aad)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// Seal is Key.Seal for a key that is used once.
func Seal(key, plaintext, aad []byte) ([]byte, error) {
	k, err := NewKey(key)
	if err != nil {
		return nil, err
	}
	return k.Seal(nil, plaintext, aad), nil
}

// Open is Key.Open for a key that is used once.
func Open(key, sealed, aad []byte) ([]byte, error) {
	k, err := NewKey(key)
	if err != nil {
		return nil, err
	}
	return k.Open(nil, sealed, aad)
}

// MAC is HMAC-SHA-256 (RFC 2104), 32 bytes.
func MAC(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

const (
	macSize = sha256.Size
	sumSize = 8
	version = 1
)

// Clear is a record whose body is in the clear: routing, key slots, the
// register of machine keys. A checksum finds damage without any key; a MAC finds
// a change that somebody made on purpose, for whoever holds the key.
type Clear struct {
	Kind   byte
	Fields [][]byte
	signed []byte // what the MAC covers
	mac    []byte
}

// EncodeClear frames fields as the record stored at storeKey:
//
//	version 1 | kind | fields | HMAC-SHA-256 | first 8 bytes of SHA-256
//
// The MAC and the checksum also cover storeKey, so a record cannot be moved.
func EncodeClear(kind byte, storeKey, macKey []byte, fields ...[]byte) []byte {
	body := AppendFields([]byte{version, kind}, fields...)
	body = append(body, MAC(macKey, Bind("ov/v1/record", storeKey, body))...)
	return append(body, checksum(storeKey, body)...)
}

// DecodeClear checks the frame and the checksum of a record stored at storeKey.
// The fields alias b. Verify checks the MAC.
func DecodeClear(kind byte, storeKey, b []byte, n int) (*Clear, error) {
	if len(b) < 2+macSize+sumSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	body, sum := b[:len(b)-sumSize], b[len(b)-sumSize:]
	if !bytes.Equal(sum, checksum(storeKey, body)) {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrMalformed)
	}
	body, mac := body[:len(body)-macSize], body[len(body)-macSize:]
	if body[0] != version {
		return nil, fmt.Errorf("%w: format version %d, this program knows %d", ErrMalformed, body[0], version)
	}
	if body[1] != kind {
		return nil, fmt.Errorf("%w: kind %q instead of %q", ErrMalformed, body[1], kind)
	}
	fields, err := Split(body[2:], n)
	if err != nil {
		return nil, err
	}
	return &Clear{Kind: kind, Fields: fields, signed: Bind("ov/v1/record", storeKey, body), mac: mac}, nil
}

// Verify fails with ErrOpen unless the record was framed with macKey.
func (c *Clear) Verify(macKey []byte) error {
	if !hmac.Equal(c.mac, MAC(macKey, c.signed)) {
		return ErrOpen
	}
	return nil
}

func checksum(storeKey, body []byte) []byte {
	sum := sha256.Sum256(Bind("ov/v1/checksum", storeKey, body))
	return sum[:sumSize]
}

// BeginSealed starts a record of fields that are all ciphertext: version 1, kind.
func BeginSealed(dst []byte, kind byte) []byte { return append(dst, version, kind) }

// AppendSealed seals plaintext as the record's next field.
func AppendSealed(dst []byte, key Key, plaintext, aad []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(plaintext)+Overhead))
	return key.Seal(dst, plaintext, aad)
}

// DecodeSealed takes apart what BeginSealed and AppendSealed made. The fields
// alias b.
func DecodeSealed(kind byte, b []byte, n int) ([][]byte, error) {
	if len(b) < 2 || b[0] != version || b[1] != kind {
		return nil, fmt.Errorf("%w: not a record of kind %q", ErrMalformed, kind)
	}
	return Split(b[2:], n)
}
