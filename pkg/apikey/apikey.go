// Package apikey makes and reads the API keys of ov-server.
//
// An API key is a text of 92 characters: `ov_live_`, and in lower-case base32
// (RFC 4648) without padding the account's id (16 bytes), a secret (32 random
// bytes) and a CRC-32 (IEEE 802.3, big-endian) over these 48. The CRC is for a
// person who pastes: it tells a letter that went missing from a key that the
// server does not know. It protects nothing, and a server does not say which of
// the two it was.
//
// The server keeps the Hash of a key, of which the first 8 bytes are its ID. 256
// random bits cannot be guessed, so the hash is neither slow nor salted.
package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// Prefix begins every API key. Scanners know keys by it.
	Prefix = "ov_live_"
	// Size is the length of an API key, in bytes.
	Size = len(Prefix) + 84

	accountSize = 16
	secretSize  = 32
	sumSize     = 4
	idSize      = 8

	label = "ov/v1/api-key"
)

var (
	// ErrMalformed is wrapped by the error of a text that is no API key.
	ErrMalformed = errors.New("not an API key")
	// ErrMistyped is wrapped by the error of an API key that has got a typo: it
	// looks like one, and its CRC is wrong.
	ErrMistyped = errors.New("the API key is mistyped")
)

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Hash is what a server keeps of an API key.
type Hash [sha256.Size]byte

// ID names the key that the hash is of: 16 hexadecimal digits, not secret.
func (h Hash) ID() string { return hex.EncodeToString(h[:idSize]) }

// Equal compares in constant time.
func (h Hash) Equal(other Hash) bool { return subtle.ConstantTimeCompare(h[:], other[:]) == 1 }

// ValidID reports whether s may be the id of a key.
func ValidID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == idSize && hex.EncodeToString(b) == s
}

// Token is an API key in its parts. Whoever has one wipes it. It does not print
// its secret, whatever the verb.
type Token struct {
	account [accountSize]byte
	secret  [secretSize]byte
}

// New makes an API key for an account.
func New(account [accountSize]byte) *Token {
	t := &Token{account: account}
	_, _ = rand.Read(t.secret[:]) // it does not fail: crypto/rand
	return t
}

// Parse reads an API key. The error wraps ErrMalformed or ErrMistyped, and has
// nothing of the text in it.
func Parse(text []byte) (*Token, error) {
	if len(text) < len(Prefix) || string(text[:len(Prefix)]) != Prefix {
		return nil, fmt.Errorf("%w: it does not begin with %s", ErrMalformed, Prefix)
	}
	if len(text) != Size {
		return nil, fmt.Errorf("%w: it has %d characters, not %d", ErrMalformed, len(text), Size)
	}
	var raw [accountSize + secretSize + sumSize]byte
	defer clear(raw[:])
	n, err := encoding.Decode(raw[:], text[len(Prefix):])
	if err != nil || n != len(raw) {
		return nil, fmt.Errorf("%w: it has characters other than a-z and 2-7", ErrMalformed)
	}
	body := raw[:accountSize+secretSize]
	// The last character has bits that say nothing: one key has one text.
	var again [Size - len(Prefix)]byte
	defer clear(again[:])
	encoding.Encode(again[:], raw[:])
	if binary.BigEndian.Uint32(raw[len(body):]) != crc32.ChecksumIEEE(body) ||
		subtle.ConstantTimeCompare(again[:], text[len(Prefix):]) != 1 {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrMistyped)
	}
	t := &Token{}
	copy(t.account[:], body)
	copy(t.secret[:], body[accountSize:])
	return t, nil
}

// Account returns the id of the account that the key is for.
func (t *Token) Account() [accountSize]byte { return t.account }

// Hash returns SHA-256("ov/v1/api-key" ‖ 0x00 ‖ account ‖ secret).
func (t *Token) Hash() Hash {
	var b [len(label) + 1 + accountSize + secretSize]byte
	defer clear(b[:])
	n := copy(b[:], label) + 1
	n += copy(b[n:], t.account[:])
	copy(b[n:], t.secret[:])
	return sha256.Sum256(b[:])
}

// ID names the key: 16 hexadecimal digits, not secret.
func (t *Token) ID() string { return t.Hash().ID() }

// Text returns the API key as it is shown, typed and sent. The caller wipes it.
func (t *Token) Text() []byte {
	var raw [accountSize + secretSize + sumSize]byte
	defer clear(raw[:])
	n := copy(raw[:], t.account[:])
	n += copy(raw[n:], t.secret[:])
	binary.BigEndian.PutUint32(raw[n:], crc32.ChecksumIEEE(raw[:n]))
	text := make([]byte, Size)
	copy(text, Prefix)
	encoding.Encode(text[len(Prefix):], raw[:])
	return text
}

// Wipe erases the secret.
func (t *Token) Wipe() { clear(t.secret[:]) }

// Format implements fmt.Formatter, so that no verb shows the secret.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Prefix + "…")) }

// MarshalText implements encoding.TextMarshaler, so that no logger shows it.
func (t Token) MarshalText() ([]byte, error) { return []byte(Prefix + "…"), nil }
