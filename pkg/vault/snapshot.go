package vault

import (
	"bytes"
	"context"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
)

// Snapshot returns the records with which a store of its own lets the session's
// key, or the master password, open the vault and read the newest versions in
// one env: the account, the app, the env, the register entries of the key, and of
// every secret the newest version. All are of one moment and checked, each
// secret by decrypting it.
func (s *Session) Snapshot(ctx context.Context, ref Ref) (store.Batch, error) {
	var b store.Batch
	var acc *account
	var e *env
	var list []*ciphertext
	r, err := s.vault.look(ctx, func(r *visit) (err error) {
		b = nil
		if acc, e, err = s.env(r, ref); err != nil {
			return err
		}
		var register []byte
		kek.Do(func() { register = registerPrefix(bytes.Clone(kek.Fingerprint(s.key.Bytes()))) })
		if err := fetch(r, allOf(e.prefix(kindData)), allOf(register)); err != nil {
			return err
		}
		if list, err = s.whole(r, acc, e); err != nil {
			return err
		}
		if err := loadValues(r, list); err != nil {
			return err
		}
		for _, key := range [][]byte{accountKey, appKeyOf(ref.App), envKeyOf(e.app.id, ref.Env)} {
			record, err := r.Get(key)
			if err != nil {
				return err
			}
			b.Put(key, bytes.Clone(record))
		}
		return r.Scan(register, func(key, record []byte) error {
			b.Put(bytes.Clone(key), bytes.Clone(record))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for _, c := range list {
			var value []byte
			if value, err = c.open(k); err != nil {
				return
			}
			clear(value)
		}
	})
	if err != nil {
		return nil, err
	}
	r.remember()
	for _, c := range list {
		b.Put(c.key(kindData), c.data)
		b.Put(c.key(kindValue), c.value)
	}
	return b, nil
}

// EnvRecord returns the env's record, checked. Every change of the env's secrets
// and of its keys changes the record: while it stays the same, so does all that
// Snapshot returned, but for the register.
func (s *Session) EnvRecord(ctx context.Context, ref Ref) ([]byte, error) {
	var record []byte
	err := s.vault.view(ctx, func(r *visit) error {
		_, e, err := s.env(r, ref)
		if err != nil {
			return err
		}
		b, err := r.Get(envKeyOf(e.app.id, ref.Env))
		record = bytes.Clone(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return record, nil
}
