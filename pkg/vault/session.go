package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
)

// Level says how much a key opens.
type Level byte

// The levels of a key.
const (
	LevelAccount Level = 'a' // the KEK: everything
	LevelApp     Level = 'p' // one app
	LevelEnv     Level = 'e' // one env of one app
)

func (l Level) String() string {
	switch l {
	case LevelAccount:
		return "account"
	case LevelApp:
		return "app"
	case LevelEnv:
		return "env"
	}
	return "unknown"
}

// Session is a vault and a key that opens all or a part of it. It is safe for
// use by many goroutines until Destroy.
type Session struct {
	vault *Vault
	key   *kek.Locked
	level Level
	appID id
	envID id
	scope Ref // slugs of what the key opens, as far as its level goes
	epoch uint32
	// Below LevelAccount: the generations that the key was derived for.
	appGen, envGen uint32
}

// Destroy wipes the key.
func (s *Session) Destroy() { s.key.Destroy() }

// Vault returns the vault behind the session.
func (s *Session) Vault() *Vault { return s.vault }

// Scope tells what the session's key opens: Ref has an App below LevelAccount
// and an Env at LevelEnv.
func (s *Session) Scope() (Level, Ref) { return s.level, s.scope }

// Key returns a copy of the session's key, which the caller destroys.
func (s *Session) Key() (*kek.Locked, error) { return s.key.Clone() }

// Check fails with ErrDeadKey when the keys were changed since the unlock.
func (s *Session) Check(ctx context.Context) error {
	return s.vault.store.View(ctx, func(r store.Reader) error {
		_, err := s.account(r)
		return err
	})
}

func (s *Session) account(r store.Reader) (*account, error) {
	acc, err := readAccount(r)
	if err != nil {
		return nil, err
	}
	if c, ok := since(acc.epochs, s.epoch); ok {
		return nil, deadKey("the unlocked key", c)
	}
	return acc, nil
}

// env reads the env, whose key the session must be able to derive.
func (s *Session) env(r store.Reader, ref Ref) (*account, *env, error) {
	acc, err := s.account(r)
	if err != nil {
		return nil, nil, err
	}
	e, err := readEnv(r, ref)
	if err != nil {
		return nil, nil, err
	}
	if (s.level == LevelApp && s.appID != e.app.id) || (s.level == LevelEnv && s.envID != e.id) {
		return nil, nil, fmt.Errorf("%w: the key is for %s %s, not for %s", ErrScope, s.level, s.scopeName(), ref)
	}
	if s.level != LevelAccount {
		if c, ok := since(e.app.generations, s.appGen); ok {
			return nil, nil, deadKey("the unlocked key", c)
		}
	}
	if s.level == LevelEnv {
		if c, ok := since(e.generations, s.envGen); ok {
			return nil, nil, deadKey("the unlocked key", c)
		}
	}
	return acc, e, nil
}

func (s *Session) scopeName() string {
	if s.level == LevelEnv {
		return s.scope.String()
	}
	return s.scope.App
}

// appKey derives the app's key. Call it inside kek.Do.
func (s *Session) appKey(a *app) ([]byte, error) {
	switch {
	case s.level == LevelAccount:
		return kek.AppKey(s.key.Bytes(), a.id[:], a.generation()), nil
	case s.level == LevelApp && s.appID == a.id:
		return s.key.Bytes(), nil
	}
	return nil, fmt.Errorf("%w: the key is for %s %s, not for app %s", ErrScope, s.level, s.scopeName(), a.slug)
}

// envKey derives the env's key and checks the records that lead to it, as far
// up as the session's key reaches. Call it inside kek.Do.
func (s *Session) envKey(acc *account, e *env) ([]byte, error) {
	if s.level == LevelAccount {
		if err := acc.rec.Verify(kek.MACKey(s.key.Bytes())); err != nil {
			return nil, damaged("account", err)
		}
	}
	key := s.key.Bytes()
	if s.level != LevelEnv {
		appKey, err := s.appKey(e.app)
		if err != nil {
			return nil, err
		}
		if err := e.app.rec.Verify(kek.MACKey(appKey)); err != nil {
			return nil, damaged("app "+e.app.slug, err)
		}
		key = kek.EnvKey(appKey, e.id[:], e.generation())
	}
	if err := e.rec.Verify(kek.MACKey(key)); err != nil {
		return nil, damaged("env "+e.ref().String(), err)
	}
	return key, nil
}

// keys is what is needed to work in an env. It lives inside one kek.Do.
type keys struct{ env, index []byte }

func (s *Session) keys(acc *account, e *env) (keys, error) {
	envKey, err := s.envKey(acc, e)
	if err != nil {
		return keys{}, err
	}
	indexKey, err := envelope.Open(envKey, e.indexKey, e.indexKeyAAD(acc.id))
	if err != nil {
		return keys{}, damaged("env "+e.ref().String(), err)
	}
	return keys{envKey, indexKey}, nil
}

// places turns names into places, version unset.
func (s *Session) places(acc *account, e *env, list []string) (places []place, err error) {
	for _, name := range list {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	places = make([]place, len(list))
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for i, name := range list {
			places[i] = place{account: acc.id, env: e, index: indexOf(k.index, name)}
		}
	})
	return places, err
}

// entry is one version of a secret as it lies in the store.
type entry struct {
	place
	data  []byte // the wrapped DEK and the sealed metadata
	value []byte // nil unless it was asked for
}

// versions returns the stored versions of the secret at p, oldest first.
func versions(r store.Reader, p place) (list []entry, err error) {
	prefix := append(p.env.prefix(kindData), p.index[:]...)
	err = r.Scan(prefix, func(key, b []byte) error {
		at, err := p.env.placeOf(p.account, key)
		list = append(list, entry{place: at, data: b})
		return err
	})
	return list, err
}

// current returns the newest version of every secret in the env.
func current(r store.Reader, acc *account, e *env) (list []entry, err error) {
	err = r.Scan(e.prefix(kindData), func(key, b []byte) error {
		p, err := e.placeOf(acc.id, key)
		if err != nil {
			return err
		}
		if n := len(list); n > 0 && list[n-1].index == p.index {
			list[n-1] = entry{place: p, data: b}
		} else {
			list = append(list, entry{place: p, data: b})
		}
		return nil
	})
	return list, err
}

// loadValue reads the value's record.
func (en *entry) loadValue(r store.Reader) error {
	b, err := r.Get(en.key(kindValue))
	if err != nil {
		return err
	}
	if b == nil {
		return damaged(en.String(), fmt.Errorf("%w: its value is missing", envelope.ErrMalformed))
	}
	en.value = b
	return nil
}

// detach copies what aliases the store's snapshot.
func (en *entry) detach() {
	en.data, en.value = bytes.Clone(en.data), bytes.Clone(en.value)
}

// opened is a decrypted entry. It lives inside one kek.Do.
type opened struct {
	metadata
	value []byte
}

// open decrypts the entry: its metadata, and its value when that was loaded.
// Call it inside kek.Do.
func (en *entry) open(k keys) (opened, error) {
	var o opened
	f, err := envelope.DecodeSealed(kindData, en.data, 2)
	if err != nil {
		return o, damaged(en.String(), err)
	}
	dek, err := envelope.Open(k.env, f[0], en.dekAAD(en.env.generation()))
	if err != nil {
		return o, damaged(en.String(), err)
	}
	defer clear(dek)
	meta, err := envelope.Open(dek, f[1], en.aad(labelMeta))
	if err != nil {
		return o, damaged(en.String(), err)
	}
	if o.metadata, err = decodeMetadata(meta); err != nil {
		return o, damaged(en.String(), err)
	}
	if indexOf(k.index, o.name) != en.index {
		return o, damaged(en.String(), errors.New("it is filed under another name"))
	}
	if en.value == nil {
		return o, nil
	}
	f, err = envelope.DecodeSealed(kindValue, en.value, 1)
	if err != nil {
		return o, damaged(en.String(), err)
	}
	if o.value, err = envelope.Open(dek, f[0], en.aad(labelValue)); err != nil {
		return o, damaged(en.String(), err)
	}
	return o, nil
}

// seal encrypts a new version into the batch. Call it inside kek.Do.
func (p place) seal(b *store.Batch, k keys, m metadata, value []byte) error {
	var dek [kek.KeySize]byte
	rand.Read(dek[:])
	defer clear(dek[:])
	wrapped, err1 := envelope.Seal(k.env, dek[:], p.dekAAD(p.env.generation()))
	meta, err2 := envelope.Seal(dek[:], m.encode(), p.aad(labelMeta))
	sealed, err3 := envelope.Seal(dek[:], value, p.aad(labelValue))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	b.Put(p.key(kindData), envelope.EncodeSealed(kindData, wrapped, meta))
	b.Put(p.key(kindValue), envelope.EncodeSealed(kindValue, sealed))
	return nil
}

// putApp writes the app's record. Call it inside kek.Do.
func (s *Session) putApp(b *store.Batch, _ *account, a *app) error {
	key, err := s.appKey(a)
	if err != nil {
		return err
	}
	b.Put(appKeyOf(a.slug), a.encode(kek.MACKey(key)))
	return nil
}

// putEnv gives a new env its index key and writes it. Call it inside kek.Do.
func (s *Session) putEnv(b *store.Batch, acc *account, e *env) error {
	appKey, err := s.appKey(e.app)
	if err != nil {
		return err
	}
	key := kek.EnvKey(appKey, e.id[:], e.generation())
	var indexKey [kek.KeySize]byte
	rand.Read(indexKey[:])
	defer clear(indexKey[:])
	if e.indexKey, err = envelope.Seal(key, indexKey[:], e.indexKeyAAD(acc.id)); err != nil {
		return err
	}
	record := e.encode(kek.MACKey(key))
	b.Put(envKeyOf(e.app.id, e.slug), record)
	// The record is used before it is read back when secrets go into a new env.
	e.rec, err = envelope.DecodeClear(kindEnv, envKeyOf(e.app.id, e.slug), record, 3)
	return err
}

// CreateApp makes an app with an env DefaultEnv. It needs the account's key.
func (s *Session) CreateApp(ctx context.Context, slug string) error {
	if err := checkSlug("app", slug); err != nil {
		return err
	}
	return s.vault.store.Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		acc, err := s.account(r)
		if err != nil {
			return nil, err
		}
		if _, err := readApp(r, slug); !errors.Is(err, ErrNotFound) {
			return nil, orExists(err, "app "+slug)
		}
		kek.Do(func() { _, err = s.addApp(&b, acc, Ref{slug, DefaultEnv}) })
		return b, err
	})
}

// orExists keeps an error of looking something up, or says that it was found.
func orExists(err error, what string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%s %w", what, ErrExists)
}

// addApp makes an app with its first env. Call it inside kek.Do.
func (s *Session) addApp(b *store.Batch, acc *account, ref Ref) (*env, error) {
	a := &app{slug: ref.App, id: newID(), generations: s.first()}
	if err := s.putApp(b, acc, a); err != nil {
		return nil, err
	}
	key, err := s.appKey(a)
	if err != nil {
		return nil, err
	}
	a.rec, err = envelope.DecodeClear(kindApp, appKeyOf(a.slug), a.encode(kek.MACKey(key)), 2)
	if err != nil {
		return nil, err
	}
	return s.addEnv(b, acc, a, ref.Env)
}

// addEnv makes an env. Call it inside kek.Do.
func (s *Session) addEnv(b *store.Batch, acc *account, a *app, slug string) (*env, error) {
	e := &env{app: a, slug: slug, id: newID(), generations: s.first()}
	return e, s.putEnv(b, acc, e)
}

func (s *Session) first() []change { return []change{{1, s.vault.now(), ReasonCreated}} }

// CreateEnv makes an env in an app. It needs the account's key or the app's.
func (s *Session) CreateEnv(ctx context.Context, ref Ref) error {
	if err := ref.check(); err != nil {
		return err
	}
	return s.vault.store.Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		acc, err := s.account(r)
		if err != nil {
			return nil, err
		}
		a, err := readApp(r, ref.App)
		if err != nil {
			return nil, err
		}
		if _, err := readEnv(r, ref); !errors.Is(err, ErrNotFound) {
			return nil, orExists(err, "env "+ref.String())
		}
		kek.Do(func() { _, err = s.addEnv(&b, acc, a, ref.Env) })
		return b, err
	})
}

// DeleteApp deletes an app with its envs and all their secrets and versions. It
// needs the account's key.
func (s *Session) DeleteApp(ctx context.Context, slug string) error {
	return s.vault.store.Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		if _, err := s.account(r); err != nil {
			return nil, err
		}
		if s.level != LevelAccount {
			return nil, fmt.Errorf("%w: the key is for %s %s", ErrScope, s.level, s.scopeName())
		}
		a, err := readApp(r, slug)
		if err != nil {
			return nil, err
		}
		b.Delete(appKeyOf(slug))
		for _, kind := range []byte{kindEnv, kindData, kindValue} {
			if err := deleteAll(r, &b, append([]byte{kind}, a.id[:]...)); err != nil {
				return nil, err
			}
		}
		return b, nil
	})
}

// DeleteEnv deletes an env with all its secrets and versions. It needs the
// account's key or the app's.
func (s *Session) DeleteEnv(ctx context.Context, ref Ref) error {
	return s.vault.store.Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		_, e, err := s.env(r, ref)
		if err != nil {
			return nil, err
		}
		if s.level == LevelEnv {
			return nil, fmt.Errorf("%w: the key is for env %s", ErrScope, s.scopeName())
		}
		b.Delete(envKeyOf(e.app.id, e.slug))
		for _, kind := range []byte{kindData, kindValue} {
			if err := deleteAll(r, &b, e.prefix(kind)); err != nil {
				return nil, err
			}
		}
		return b, nil
	})
}

func deleteAll(r store.Reader, b *store.Batch, prefix []byte) error {
	return r.Scan(prefix, func(key, _ []byte) error {
		b.Delete(bytes.Clone(key))
		return nil
	})
}

// Apps lists the vault's apps.
func (s *Session) Apps(ctx context.Context) ([]App, error) { return s.vault.Apps(ctx) }

func (s *Session) now() time.Time { return s.vault.now() }
