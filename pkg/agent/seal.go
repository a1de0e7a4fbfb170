package agent

import (
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/vault"
)

// The one HPKE suite (RFC 9180) in which secrets cross the socket.
var (
	suiteKEM  = hpke.DHKEM(ecdh.X25519())
	suiteKDF  = hpke.HKDFSHA256()
	suiteAEAD = hpke.AES256GCM()
)

// sealKey is a fresh key pair to which the other side seals. Its private half
// lives in memory that kek.Do erases once nothing refers to it any more.
type sealKey struct {
	private hpke.PrivateKey
	public  []byte
}

func newSealKey() (*sealKey, error) {
	var k sealKey
	var err error
	kek.Do(func() {
		if k.private, err = suiteKEM.GenerateKey(); err == nil {
			k.public = append([]byte(nil), k.private.PublicKey().Bytes()...)
		}
	})
	if err != nil {
		return nil, err
	}
	return &k, nil
}

// sealTo encrypts plaintext to a public key of the other side. method is the
// full name of the RPC that the message belongs to. Call it inside kek.Do.
func sealTo(public []byte, method string, plaintext []byte) ([]byte, error) {
	key, err := publicKey(public)
	if err != nil {
		return nil, err
	}
	return hpke.Seal(key, suiteKDF, suiteAEAD, []byte(method), plaintext)
}

func publicKey(public []byte) (hpke.PublicKey, error) {
	key, err := suiteKEM.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("the public key of %d bytes is not an X25519 key", len(public))
	}
	return key, nil
}

// checkPublic refuses a key to which no answer could be sealed.
func checkPublic(public []byte) error {
	if _, err := publicKey(public); err != nil {
		return fmt.Errorf("%w: %w", vault.ErrInvalid, err)
	}
	return nil
}

// open is the inverse of sealTo. Call it inside kek.Do.
func (k *sealKey) open(method string, sealed []byte) ([]byte, error) {
	plaintext, err := hpke.Open(k.private, suiteKDF, suiteAEAD, []byte(method), sealed)
	if err != nil {
		return nil, fmt.Errorf("a sealed message for %s %w", method, envelope.ErrOpen)
	}
	return plaintext, nil
}
