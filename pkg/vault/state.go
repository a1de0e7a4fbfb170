package vault

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
)

// state is what an env's record says of the secrets in it, sealed: how often they
// were written, and a sum by which it shows whether the newest versions are all
// there.
type state struct {
	counter uint64 // 0: the record is from before these were counted
	secrets uint32
	sum     sum
}

// sum is a number modulo 2^256, big-endian: the sum of what keys.element makes of
// the newest version of each secret. Without the key nobody can tell the parts,
// so nobody finds other records with the same sum (a set hash by addition;
// Bellare and Micciancio 1997, with a keyed function in place of a public one).
// Unlike a hash over a list, it is brought up to date by what has changed.
type sum [sha256.Size]byte

func (s *sum) add(x sum) {
	var carry uint64
	for i := len(s) - 8; i >= 0; i -= 8 {
		var n uint64
		n, carry = bits.Add64(binary.BigEndian.Uint64(s[i:]), binary.BigEndian.Uint64(x[i:]), carry)
		binary.BigEndian.PutUint64(s[i:], n)
	}
}

func (s *sum) sub(x sum) {
	var borrow uint64
	for i := len(s) - 8; i >= 0; i -= 8 {
		var n uint64
		n, borrow = bits.Sub64(binary.BigEndian.Uint64(s[i:]), binary.BigEndian.Uint64(x[i:]), borrow)
		binary.BigEndian.PutUint64(s[i:], n)
	}
}

const stateSize = 8 + 4 + sha256.Size

func (st state) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, stateSize), st.counter)
	b = binary.BigEndian.AppendUint32(b, st.secrets)
	return append(b, st.sum[:]...)
}

func decodeState(b []byte) (st state, err error) {
	if len(b) != stateSize {
		return st, fmt.Errorf("%w: a state of %d bytes", envelope.ErrMalformed, len(b))
	}
	st.counter = binary.BigEndian.Uint64(b)
	st.secrets = binary.BigEndian.Uint32(b[8:])
	copy(st.sum[:], b[12:])
	if st.counter == 0 {
		return st, fmt.Errorf("%w: a state without a change", envelope.ErrMalformed)
	}
	return st, nil
}

// sumKey is derived from the index key, which a change of keys leaves as it is.
// Call it inside kek.Do.
func sumKey(indexKey []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, indexKey, nil, labelSum, sha256.Size)
}

// element is what a newest version adds to its env's sum. The sealed metadata is
// of this write alone, so that a version which was deleted and set again under
// the same number is another one; a change of keys leaves it as it is. Call it
// inside kek.Do.
func (k *keys) element(index *nameIndex, version uint32, sealedMeta []byte) (x sum, err error) {
	if k.sums == nil {
		key, err := sumKey(k.indexKey)
		if err != nil {
			return x, err
		}
		k.sums = hmac.New(sha256.New, key)
	}
	var number [4]byte
	binary.BigEndian.PutUint32(number[:], version)
	k.sums.Reset()
	k.sums.Write(index[:])
	k.sums.Write(number[:])
	k.sums.Write(sealedMeta)
	k.sums.Sum(x[:0])
	return x, nil
}

// tally adds the newest versions up. The counter is the env's.
func (s *Session) tally(acc *account, e *env, list []*ciphertext) (st state, err error) {
	st = state{counter: e.state.counter, secrets: uint32(len(list))} //nolint:gosec // a sum of more was never written
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for _, c := range list {
			var x sum
			if x, err = k.element(&c.index, c.version, c.meta); err != nil {
				return
			}
			st.sum.add(x)
		}
	})
	return st, err
}

// check is tally of what should be the newest version of every secret in the env.
// It fails with ErrWithheld when it is not.
func (s *Session) check(acc *account, e *env, list []*ciphertext) (state, error) {
	got, err := s.tally(acc, e, list)
	if err != nil || got == e.state || e.state.counter == 0 || s.vault.accept {
		return got, err
	}
	if _, err := s.describe(acc, e, list); err != nil {
		return got, err // it is one record that is damaged
	}
	what := fmt.Sprintf("it has %s, of which not all that came are the newest", secrets(int(e.state.secrets)))
	if got.secrets != e.state.secrets {
		what = fmt.Sprintf("it has %s, and %d came", secrets(int(e.state.secrets)), got.secrets)
	}
	return got, withheld(e, what)
}

func withheld(e *env, what string) error {
	return hint.Errorf("restore the vault from a backup; to go on with what is there: --accept-rollback",
		"env %s: %w: %s", e.ref(), ErrWithheld, what)
}

// all returns the newest version of every secret that comes of the env.
func (s *Session) all(r store.Reader, acc *account, e *env) ([]*ciphertext, error) {
	if err := fetch(r, allOf(e.prefix(kindData))); err != nil {
		return nil, err
	}
	list, err := current(r, acc, e)
	if err != nil {
		return nil, err
	}
	return parseAll(list)
}

// whole is all, checked and noted.
func (s *Session) whole(r *visit, acc *account, e *env) ([]*ciphertext, error) {
	list, err := s.all(r, acc, e)
	if err == nil {
		_, err = s.check(acc, e, list)
	}
	if err == nil {
		s.noteAll(r, e, list)
	}
	return list, err
}

// write puts new versions into the env, and the env's record with what is then
// there. gone are those that were the newest of their secrets.
func (s *Session) write(r *visit, b *store.Batch, acc *account, e *env, gone []*ciphertext, fresh []*plaintext, progress func(int)) error {
	st := e.state
	if !e.fresh && (st.counter == 0 || s.vault.accept) {
		list, err := s.all(r, acc, e)
		if err == nil {
			st, err = s.tally(acc, e, list)
		}
		if err != nil {
			return err
		}
	}
	st.counter++
	st.secrets += uint32(len(fresh)) - uint32(len(gone)) //nolint:gosec // at most MaxBatch
	var err error
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		var x sum
		for _, c := range gone {
			if x, err = k.element(&c.index, c.version, c.meta); err != nil {
				return
			}
			st.sum.sub(x)
		}
		for i, p := range fresh {
			if err = p.seal(k); err != nil {
				return
			}
			if x, err = k.element(&p.index, p.version, p.sealedMeta); err != nil {
				return
			}
			st.sum.add(x)
			if progress != nil && i%progressEvery == 0 {
				progress(i)
			}
		}
		e.setState(acc, k.env, st)
		b.Put(envKeyOf(e.app.id, e.slug), e.encode(kek.MACKey(k.envKey)))
	})
	if err != nil {
		return err
	}
	for _, p := range fresh {
		p.put(b)
	}
	s.noteWritten(r, e, st, gone, fresh)
	return nil
}

// setState seals the state for the env's record. Call it inside kek.Do.
func (e *env) setState(acc *account, key envelope.Key, st state) {
	e.state = st
	e.sealedState = key.Seal(nil, st.encode(), e.stateAAD(acc.id))
}

// openState checks the env's record and reads the state in it.
func (s *Session) openState(acc *account, e *env) (err error) {
	kek.Do(func() {
		var key []byte
		if key, err = s.envKey(e); err != nil || e.sealedState == nil {
			return
		}
		var plain []byte
		if plain, err = envelope.Open(key, e.sealedState, e.stateAAD(acc.id)); err == nil {
			e.state, err = decodeState(plain)
		}
		if err != nil {
			err = damaged("env "+e.ref().String(), err)
		}
	})
	return err
}

func (e *env) stateAAD(account id) []byte {
	return envelope.Bind(labelState, account[:], e.app.id[:], e.id[:], envelope.Uint32(e.generation()))
}
