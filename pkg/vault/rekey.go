package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
)

// MachineKey describes an issued machine key.
type MachineKey struct {
	Fingerprint string    `json:"fingerprint"`
	Number      uint32    `json:"number,omitempty"` // of the issue, from 0: one key may be issued many times
	Level       string    `json:"level"`            // account, app or env
	App         string    `json:"app,omitempty"`
	Env         string    `json:"env,omitempty"`
	Label       string    `json:"label,omitempty"`
	Created     time.Time `json:"created"`
	Valid       bool      `json:"valid"`
	Why         string    `json:"why,omitempty"` // it no longer is
}

func (r *register) describe(dead error) MachineKey {
	m := MachineKey{
		Fingerprint: hex.EncodeToString(r.fingerprint),
		Number:      r.number,
		Level:       r.level.String(),
		App:         r.scope.App,
		Env:         r.scope.Env,
		Label:       r.label,
		Created:     r.created,
		Valid:       dead == nil,
	}
	if dead != nil {
		m.Why = dead.Error()
	}
	return m
}

// MachineKeys lists the register of issued machine keys, oldest first. It needs
// no key.
func (v *Vault) MachineKeys(ctx context.Context) ([]MachineKey, error) {
	list := []MachineKey{}
	err := v.store.View(ctx, func(r store.Reader) error {
		list = list[:0]
		err := fetch(r, one(accountKey), allOf([]byte{kindKey}), allOf([]byte{kindApp}), allOf([]byte{kindEnv}))
		if err != nil {
			return err
		}
		acc, err := readAccount(r)
		if err != nil {
			return err
		}
		return r.Scan([]byte{kindKey}, func(key, b []byte) error {
			entry, err := decodeRegister(bytes.Clone(key), bytes.Clone(b))
			if err != nil {
				return err
			}
			dead := entry.dead(r, acc)
			if dead != nil && !errors.Is(dead, ErrDeadKey) {
				return dead
			}
			list = append(list, entry.describe(dead))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b MachineKey) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// DeriveMachineKey registers and returns a machine key: the account's when ref
// is empty, an app's when only ref.App is given, otherwise an env's. The caller
// destroys it. Deriving twice for one scope gives the same bytes, and two
// entries in the register.
func (s *Session) DeriveMachineKey(ctx context.Context, ref Ref, label string) (*kek.Locked, MachineKey, error) {
	if !validLabel(label) {
		return nil, MachineKey{}, fmt.Errorf("label %.80q, which may have %d bytes of text: %w", label, MaxLabel, ErrInvalid)
	}
	key, err := kek.NewLocked(kek.KeySize)
	if err != nil {
		return nil, MachineKey{}, err
	}
	var entry *register
	err = s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		entry = &register{label: label, created: s.now().Truncate(time.Second).UTC(), scope: ref}
		var acc *account
		var a *app
		var e *env
		if ref.Env != "" {
			if acc, e, err = s.env(r, ref); err != nil {
				return nil, err
			}
			a = e.app
			entry.level, entry.envID, entry.envGen = LevelEnv, e.id, e.generation()
		} else if acc, err = s.account(r); err != nil {
			return nil, err
		} else if ref.App != "" {
			if a, err = readApp(r, ref.App); err != nil {
				return nil, err
			}
			entry.level = LevelApp
		} else {
			entry.level = LevelAccount
		}
		entry.epoch = acc.epoch()
		if a != nil {
			entry.appID, entry.appGen = a.id, a.generation()
		}
		kek.Do(func() {
			var derived, macKey []byte
			if derived, err = s.derive(a, e); err != nil {
				return
			}
			copy(key.Bytes(), derived)
			entry.fingerprint = bytes.Clone(kek.Fingerprint(derived))
			macKey = kek.MACKey(derived)
			if err = entry.assignNumber(r); err == nil {
				b.Put(entry.key(), entry.encode(macKey))
			}
		})
		return b, err
	})
	if err != nil {
		key.Destroy()
		return nil, MachineKey{}, err
	}
	return key, entry.describe(nil), nil
}

// derive returns the key of the account, of an app or of an env, whichever is
// the lowest that is given. Call it inside kek.Do.
func (s *Session) derive(a *app, e *env) ([]byte, error) {
	switch {
	case e != nil:
		if s.level == LevelEnv && s.envID != e.id {
			return nil, fmt.Errorf("%w: the key is for env %s", ErrScope, s.scopeName())
		}
		return s.envKey(e)
	case a != nil:
		return s.checkedAppKey(a)
	case s.level == LevelAccount:
		return s.key.Bytes(), nil
	}
	return nil, fmt.Errorf("%w: the key is for %s %s, not for the account", ErrScope, s.level, s.scopeName())
}

func (r *register) assignNumber(rd store.Reader) error {
	return rd.Scan(registerPrefix(r.fingerprint), func(key, b []byte) error {
		other, err := decodeRegister(bytes.Clone(key), bytes.Clone(b))
		if err == nil {
			r.number = other.number + 1
		}
		return err
	})
}

// RevokeMachineKey takes a machine key out of the register: all its issues, or the
// one with that number. It returns them, oldest first. The session's key must
// reach what the machine key opens; for one whose app or env was deleted it must
// be the account's.
//
// No program of ours opens the vault with the machine key any more, and sessions
// that it has opened end with the process. The key itself stays what it was:
// whoever has its 32 bytes, and ciphertext, can decrypt that with a program of his
// own. Only new keys stop that for what is written from then on: RotateApp,
// Vault.RotateKey.
func (s *Session) RevokeMachineKey(ctx context.Context, fingerprint string, number *uint32) ([]MachineKey, error) {
	id, err := hex.DecodeString(fingerprint)
	if err != nil || len(id) != kek.FingerprintSize {
		return nil, fmt.Errorf("fingerprint %.80q, which has %d hexadecimal digits: %w", fingerprint, 2*kek.FingerprintSize, ErrInvalid)
	}
	var gone []MachineKey
	err = s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		gone = nil
		if err := fetch(r, one(accountKey), allOf(registerPrefix(id))); err != nil {
			return nil, err
		}
		acc, err := s.account(r)
		if err != nil {
			return nil, err
		}
		err = r.Scan(registerPrefix(id), func(key, record []byte) error {
			entry, err := decodeRegister(bytes.Clone(key), bytes.Clone(record))
			if err != nil {
				return err
			}
			if number != nil && entry.number != *number {
				return nil
			}
			if err := s.reaches(r, entry); err != nil {
				return err
			}
			dead := entry.dead(r, acc)
			if dead != nil && !errors.Is(dead, ErrDeadKey) {
				return dead
			}
			gone = append(gone, entry.describe(dead))
			b.Delete(entry.key())
			return nil
		})
		if err == nil && len(gone) == 0 {
			err = hint.Errorf("see what was issued: ov auth machine-keys", "machine key %x: %w", id, ErrNotFound)
		}
		return b, err
	})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// reaches fails with ErrScope unless the session's key opens what the entry's
// key does.
func (s *Session) reaches(r *visit, entry *register) error {
	if s.level == LevelAccount {
		return nil
	}
	outside := fmt.Errorf("%w: the key is for %s %s, not for machine key %x of %s", ErrScope, s.level, s.scopeName(), entry.fingerprint, entry.level)
	if entry.level == LevelAccount || entry.appID != s.appID || s.level == LevelEnv && (entry.level != LevelEnv || entry.envID != s.envID) {
		return outside
	}
	a, err := r.lookupApp(entry.scope.App)
	if err != nil {
		return err
	}
	if a == nil || a.id != entry.appID {
		return outside
	}
	var e *env
	if entry.level == LevelEnv {
		if e, err = r.lookupEnv(a, entry.scope.Env); err != nil {
			return err
		}
		if e == nil || e.id != entry.envID {
			return outside
		}
	}
	kek.Do(func() { _, err = s.derive(a, e) }) // which a dead key does not
	return err
}

// ChangePassword makes a new KEK under a new password and re-wraps every DEK, in
// one step; no value is encrypted again. Every machine key and every unlocked
// session made before is dead. The caller keeps both passwords.
func (v *Vault) ChangePassword(ctx context.Context, oldPassword, newPassword *kek.Locked) error {
	return v.replaceKEK(ctx, oldPassword, newPassword, ReasonPasswordChange)
}

// RotateKey is ChangePassword with the same password.
func (v *Vault) RotateKey(ctx context.Context, password *kek.Locked) error {
	return v.replaceKEK(ctx, password, password, ReasonRotation)
}

func (v *Vault) replaceKEK(ctx context.Context, oldPassword, newPassword *kek.Locked, why Reason) error {
	old, err := v.Unlock(ctx, oldPassword)
	if err != nil {
		return err
	}
	defer old.Destroy()
	key, err := kek.New()
	if err != nil {
		return err
	}
	defer key.Destroy()

	// Argon2id takes its time: do it before the store is locked for writing.
	acc := &account{}
	err = v.view(ctx, func(r *visit) (err error) {
		acc, err = old.account(r)
		return err
	})
	if err != nil {
		return err
	}
	next := *acc
	next.epochs = append(slices.Clone(acc.epochs), change{acc.epoch() + 1, v.now(), why})
	if err := next.protect(ctx, key, newPassword); err != nil {
		return err
	}
	s := &Session{vault: v, key: key, level: LevelAccount, epoch: next.epoch()}
	return v.update(ctx, func(r *visit) (b store.Batch, err error) {
		err = fetch(r, one(accountKey), allOf([]byte{kindApp}), allOf([]byte{kindEnv}), allOf([]byte{kindData}))
		if err != nil {
			return nil, err
		}
		if _, err := old.account(r); err != nil {
			return nil, err // somebody else's change came first
		}
		b.Put(accountKey, nil) // its place: the record is made last, under kek.Do
		listed := map[string][]string{}
		err = scanApps(r, func(a *app) error {
			if err := r.holdApp(a.slug, a); err != nil {
				return err
			}
			renewed := *a
			envs, err := rewrap(r, &b, acc, old, s, a, &renewed)
			listed[a.slug] = envs
			return err
		})
		if err != nil {
			return nil, err
		}
		r.noteAccount(&next, s.now())
		kek.Do(func() { b[0].Value = next.encode(kek.MACKey(key.Bytes())) })
		return b, r.holdLists("", listed)
	})
}

// RotateApp gives one app a new key, so that every machine key of the app and of
// its envs made before is dead. It needs the account's key.
func (s *Session) RotateApp(ctx context.Context, slug string) error {
	if err := checkSlug("app", slug); err != nil {
		return err
	}
	return s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		if err := fetch(r, one(accountKey), one(appKeyOf(slug))); err != nil {
			return nil, err
		}
		acc, err := s.account(r)
		if err != nil {
			return nil, err
		}
		if s.level != LevelAccount {
			return nil, fmt.Errorf("%w: the key is for %s %s, not for the account", ErrScope, s.level, s.scopeName())
		}
		a, err := readApp(r, slug)
		if err != nil {
			return nil, err
		}
		err = fetch(r, allOf(append([]byte{kindEnv}, a.id[:]...)), allOf(append([]byte{kindData}, a.id[:]...)))
		if err != nil {
			return nil, err
		}
		renewed := *a
		renewed.generations = s.next(a.generations)
		envs, err := rewrap(r, &b, acc, s, s, a, &renewed)
		if err != nil {
			return nil, err
		}
		return b, r.holdLists(slug, map[string][]string{slug: envs})
	})
}

func (s *Session) next(cs []change) []change {
	return append(slices.Clone(cs), change{last(cs).number + 1, s.now(), ReasonRotation})
}

// rewrap moves an app from the key tree of one session to that of another: the
// records of the app and its envs, the index keys, every DEK. An app whose
// generation moves on takes its envs' generations with it. It returns the envs.
func rewrap(r *visit, b *store.Batch, acc *account, from, to *Session, a, renewed *app) (envs []string, err error) {
	kek.Do(func() {
		if _, err = from.checkedAppKey(a); err == nil {
			err = to.putApp(b, renewed)
		}
	})
	if err != nil {
		return nil, err
	}
	r.noteApp(renewed, to.now())
	err = scanEnvs(r, a, func(e *env) error {
		envs = append(envs, e.slug)
		if err := r.holdEnv(a, e.slug, e); err != nil {
			return err
		}
		moved := *e
		moved.app = renewed
		if renewed.generation() != a.generation() {
			moved.generations = to.next(e.generations)
		}
		var list []*entry
		err := r.Scan(e.prefix(kindData), func(key, record []byte) error {
			p, err := e.placeOf(acc.id, key)
			list = append(list, &entry{place: p, data: record})
			return err
		})
		if err != nil {
			return err
		}
		parsed, err := parseAll(list)
		if err != nil {
			return err
		}
		if err := from.openState(acc, e); err != nil {
			return err
		}
		if err := r.holdState(e); err != nil {
			return err
		}
		if moved.state, err = from.check(acc, e, newestOnly(parsed)); err != nil {
			return err
		}
		moved.state.counter++
		to.noteWritten(r, &moved, moved.state, nil, nil)
		return rewrapEnv(b, acc, from, to, e, &moved, parsed)
	})
	return envs, err
}

// newestOnly picks the newest version of each secret out of all, in key order.
func newestOnly(list []*ciphertext) []*ciphertext {
	var out []*ciphertext
	for i, c := range list {
		if i+1 == len(list) || list[i+1].index != c.index {
			out = append(out, c)
		}
	}
	return out
}

// rewrapEnv is rewrap for one env.
func rewrapEnv(b *store.Batch, acc *account, from, to *Session, e, moved *env, list []*ciphertext) error {
	type job struct{ dekAAD, record []byte }
	jobs := make([]job, len(list))
	for i, c := range list {
		jobs[i] = job{c.place.dekAAD(moved.generation()), make([]byte, 0, len(c.data))}
	}
	var err error
	kek.Do(func() {
		var k keys
		if k, err = from.keys(acc, e); err != nil {
			return
		}
		var appKey []byte
		if appKey, err = to.appKey(moved.app); err != nil {
			return
		}
		envKey := kek.EnvKey(appKey, moved.id[:], moved.generation())
		var key envelope.Key
		if key, err = envelope.NewKey(envKey); err != nil {
			return
		}
		moved.indexKey = key.Seal(nil, k.indexKey, moved.indexKeyAAD(acc.id))
		moved.setState(acc, key, moved.state)
		b.Put(envKeyOf(moved.app.id, moved.slug), moved.encode(kek.MACKey(envKey)))
		var dek [kek.KeySize]byte
		defer clear(dek[:])
		for i, c := range list {
			var plain []byte
			if plain, err = k.env.Open(dek[:0], c.dek, c.dekAAD); err != nil {
				err = damaged(c.String(), err)
				return
			}
			j := &jobs[i]
			j.record = envelope.BeginSealed(j.record, kindData)
			j.record = envelope.AppendSealed(j.record, key, plain, j.dekAAD)
			j.record = envelope.AppendFields(j.record, c.meta)
		}
	})
	if err != nil {
		return err
	}
	for i, c := range list {
		b.Put(c.key(kindData), jobs[i].record)
	}
	return nil
}
