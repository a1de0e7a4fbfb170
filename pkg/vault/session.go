package vault

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
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
	ids            sync.Map // of apps by slug, to ask for envs sooner; never believed
}

// Destroy wipes the key.
func (s *Session) Destroy() { s.key.Destroy() }

// Vault returns the vault behind the session.
func (s *Session) Vault() *Vault { return s.vault }

// Scope tells what the session's key opens: Ref has an App below LevelAccount
// and an Env at LevelEnv.
func (s *Session) Scope() (Level, Ref) { return s.level, s.scope }

// Hidden reports whether the key is in memory that not even root can read.
func (s *Session) Hidden() bool { return s.key.Hidden() }

// Key returns a copy of the session's key, which the caller destroys.
func (s *Session) Key() (*kek.Locked, error) { return s.key.Clone() }

// Check fails with ErrDeadKey when the keys were changed since the unlock.
func (s *Session) Check(ctx context.Context) error {
	return s.vault.view(ctx, func(r *visit) error {
		_, err := s.account(r)
		return err
	})
}

// account reads the account's record, and checks it when the session's key can.
func (s *Session) account(r *visit) (*account, error) {
	if len(s.key.Bytes()) != kek.KeySize {
		return nil, ErrClosed
	}
	acc, err := readAccount(r)
	if err != nil {
		return nil, err
	}
	if err := r.holdAccount(acc); err != nil {
		return nil, err
	}
	if c, ok := since(acc.epochs, s.epoch); ok {
		return nil, deadKey("the unlocked key", c)
	}
	if acc.epoch() < s.epoch {
		return nil, olderThanKey(Ref{}, s.epoch, acc.epoch())
	}
	if s.level == LevelAccount {
		kek.Do(func() { err = acc.rec.Verify(kek.MACKey(s.key.Bytes())) })
		if err != nil {
			return nil, damaged("account", err)
		}
		r.noteAccount(acc, s.now())
	}
	return acc, nil
}

// env reads and checks the env, whose key the session must be able to derive.
func (s *Session) env(r *visit, ref Ref) (*account, *env, error) {
	if err := ref.check(); err != nil {
		return nil, nil, err
	}
	if err := s.fetchEnv(r, ref); err != nil {
		return nil, nil, err
	}
	acc, err := s.account(r)
	if err != nil {
		return nil, nil, err
	}
	e, err := readEnv(r, ref)
	if err != nil {
		return nil, nil, err
	}
	if (s.level == LevelApp && s.appID != e.app.id) || (s.level == LevelEnv && s.envID != e.id) {
		if ref.App == s.scope.App && (s.level == LevelApp || ref == s.scope) {
			return nil, nil, deadKeyOf("the unlocked key", s.level, s.scopeName()) // and made anew
		}
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
	if s.level != LevelAccount && e.app.generation() < s.appGen {
		return nil, nil, olderThanKey(Ref{App: ref.App}, s.appGen, e.app.generation())
	}
	if s.level == LevelEnv && e.generation() < s.envGen {
		return nil, nil, olderThanKey(ref, s.envGen, e.generation())
	}
	if err := s.openState(acc, e); err != nil {
		return nil, nil, err
	}
	if err := r.holdState(e); err != nil {
		return nil, nil, err
	}
	s.noteEnv(r, e, e.state, false, false, nil)
	s.ids.Store(ref.App, e.app.id)
	return acc, e, nil
}

// fetchEnv asks for all that leads to the env, in one trip if the app's id is
// known from before.
func (s *Session) fetchEnv(r store.Reader, ref Ref) error {
	ranges := []store.Range{one(accountKey), one(appKeyOf(ref.App))}
	if s.level != LevelAccount && ref.App == s.scope.App {
		ranges = append(ranges, one(envKeyOf(s.appID, ref.Env)))
	} else if known, ok := s.ids.Load(ref.App); ok {
		ranges = append(ranges, one(envKeyOf(known.(id), ref.Env)))
	}
	return fetch(r, ranges...)
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

// checkedAppKey is appKey for an app that was read: it checks the record, which
// says the generation. Call it inside kek.Do.
func (s *Session) checkedAppKey(a *app) ([]byte, error) {
	key, err := s.appKey(a)
	if err != nil {
		return nil, err
	}
	if err := a.rec.Verify(kek.MACKey(key)); err != nil {
		return nil, damaged("app "+a.slug, err)
	}
	return key, nil
}

// envKey derives the env's key and checks the records that lead to it, as far
// up as the session's key reaches. Call it inside kek.Do.
func (s *Session) envKey(e *env) ([]byte, error) {
	key := s.key.Bytes()
	if s.level != LevelEnv {
		appKey, err := s.checkedAppKey(e.app)
		if err != nil {
			return nil, err
		}
		key = kek.EnvKey(appKey, e.id[:], e.generation())
	}
	if err := e.rec.Verify(kek.MACKey(key)); err != nil {
		return nil, damaged("env "+e.ref().String(), err)
	}
	return key, nil
}

// keys is what is needed to work in an env. It lives inside one kek.Do.
//
// The runtime keeps a list of what is allocated inside kek.Do, and a long list
// of small things slows it down. So loops over many secrets allocate before and
// after, and only compute inside.
type keys struct {
	envKey   []byte
	env      envelope.Key // envKey
	indexKey []byte
	index    hash.Hash // HMAC-SHA-256 under the index key
	sums     hash.Hash // HMAC-SHA-256 for element
}

func (s *Session) keys(acc *account, e *env) (k keys, err error) {
	if k.envKey, err = s.envKey(e); err != nil {
		return k, err
	}
	if k.env, err = envelope.NewKey(k.envKey); err != nil {
		return k, err
	}
	k.indexKey, err = k.env.Open(nil, e.indexKey, e.indexKeyAAD(acc.id))
	if err != nil {
		return k, damaged("env "+e.ref().String(), err)
	}
	k.index = hmac.New(sha256.New, k.indexKey)
	return k, nil
}

func (k keys) indexOf(name []byte) (i nameIndex) {
	k.index.Reset()
	k.index.Write(name)
	k.index.Sum(i[:0])
	return i
}

// places turns names into places, version unset.
func (s *Session) places(acc *account, e *env, list []string) (places []place, err error) {
	for _, name := range list {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	places = make([]place, len(list))
	bytesOf := make([][]byte, len(list))
	for i, name := range list {
		bytesOf[i] = []byte(name)
	}
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for i, name := range bytesOf {
			places[i] = place{account: acc.id, env: e, index: k.indexOf(name)}
		}
	})
	return places, err
}

// entry is one version of a secret as it lies in the store.
type entry struct {
	place
	data []byte // the wrapped DEK and the sealed metadata
}

// versions returns the stored versions of the secret at p, oldest first.
func versions(r store.Reader, p place) (list []*entry, err error) {
	err = r.Scan(p.prefix(kindData), func(key, b []byte) error {
		at, err := p.env.placeOf(p.account, key)
		list = append(list, &entry{place: at, data: b})
		return err
	})
	return list, err
}

// newestOf returns the newest version of the secret at p, or nil.
func newestOf(r store.Reader, p place) (*entry, error) {
	key, b, err := r.Last(p.prefix(kindData))
	if key == nil || err != nil {
		return nil, err
	}
	at, err := p.env.placeOf(p.account, key)
	return &entry{place: at, data: b}, err
}

// current returns the newest version of every secret in the env.
func current(r store.Reader, acc *account, e *env) (list []*entry, err error) {
	err = r.Scan(e.prefix(kindData), func(key, b []byte) error {
		p, err := e.placeOf(acc.id, key)
		if err != nil {
			return err
		}
		if n := len(list); n > 0 && list[n-1].index == p.index {
			*list[n-1] = entry{place: p, data: b}
		} else {
			list = append(list, &entry{place: p, data: b})
		}
		return nil
	})
	return list, err
}

// versionOf returns one version of the secret at p, or nil.
func versionOf(r store.Reader, p place, version uint32) (*entry, error) {
	p.version = version
	b, err := r.Get(p.key(kindData))
	if b == nil || err != nil {
		return nil, err
	}
	return &entry{place: p, data: b}, nil
}

// loadValues reads the values' records.
func loadValues(r store.Reader, list []*ciphertext) error {
	if err := fetchValues(r, list); err != nil {
		return err
	}
	for _, c := range list {
		b, err := r.Get(c.key(kindValue))
		if err != nil {
			return err
		}
		if err := c.setValue(bytes.Clone(b)); err != nil {
			return err
		}
	}
	return nil
}

// valueOverhead is how much longer a value's record is than the value: by
// envelope.DecodeSealed's frame for one field, and what seals it.
const valueOverhead = 2 + 4 + envelope.Overhead

// ciphertext is an entry taken apart, ready to be decrypted. It aliases nothing
// of the store's snapshot.
type ciphertext struct {
	entry
	value                     []byte // the value's record; nil unless it was asked for
	dek, meta, sealed         []byte
	dekAAD, metaAAD, valueAAD []byte
	plainMeta                 []byte // room for the metadata
	metadata                         // decoded by describe
}

// parse takes the entry apart.
func (en *entry) parse() (*ciphertext, error) {
	c := &ciphertext{entry: *en}
	c.data = bytes.Clone(en.data)
	f, err := envelope.DecodeSealed(kindData, c.data, 2)
	if err != nil {
		return nil, damaged(en.String(), err)
	}
	c.dek, c.meta = f[0], f[1]
	c.dekAAD, c.metaAAD = en.dekAAD(en.env.generation()), en.aad(labelMeta)
	c.plainMeta = make([]byte, 0, len(c.meta))
	return c, nil
}

// setValue takes the value's record apart.
func (c *ciphertext) setValue(b []byte) error {
	if b == nil {
		return damaged(c.String(), fmt.Errorf("%w: its value is missing", envelope.ErrMalformed))
	}
	f, err := envelope.DecodeSealed(kindValue, b, 1)
	if err != nil {
		return damaged(c.String(), err)
	}
	c.value, c.sealed, c.valueAAD = b, f[0], c.aad(labelValue)
	return nil
}

func parseAll(list []*entry) ([]*ciphertext, error) {
	out := make([]*ciphertext, len(list))
	for i, en := range list {
		c, err := en.parse()
		if err != nil {
			return nil, err
		}
		out[i] = c
	}
	return out, nil
}

// open decrypts the metadata into plainMeta and returns the value, if the entry
// has it. Call it inside kek.Do, then describe.
func (c *ciphertext) open(k keys) ([]byte, error) {
	var dek [kek.KeySize]byte
	defer clear(dek[:])
	plain, err := k.env.Open(dek[:0], c.dek, c.dekAAD)
	if err != nil {
		return nil, damaged(c.String(), err)
	}
	key, err := envelope.NewKey(plain)
	if err != nil {
		return nil, damaged(c.String(), err)
	}
	if c.plainMeta, err = key.Open(c.plainMeta, c.meta, c.metaAAD); err != nil {
		return nil, damaged(c.String(), err)
	}
	name, err := nameIn(c.plainMeta)
	if err != nil {
		return nil, damaged(c.String(), err)
	}
	if k.indexOf(name) != c.index {
		return nil, damaged(c.String(), errors.New("it is filed under another name"))
	}
	if c.sealed == nil {
		return nil, nil
	}
	value, err := key.Open(nil, c.sealed, c.valueAAD)
	if err != nil {
		return nil, damaged(c.String(), err)
	}
	return value, nil
}

// describe decodes the metadata that open decrypted.
func (c *ciphertext) describe() (err error) {
	if c.metadata, err = decodeMetadata(c.plainMeta); err != nil {
		return damaged(c.String(), err)
	}
	return nil
}

// plaintext is a new version, ready to be encrypted.
type plaintext struct {
	place
	meta, value               []byte
	dekAAD, metaAAD, valueAAD []byte
	data, sealed              []byte // the records, made by seal
	sealedMeta                []byte // in data
}

func (p place) plaintext(m metadata, value []byte) *plaintext {
	meta := m.encode()
	return &plaintext{
		place: p, meta: meta, value: value,
		dekAAD: p.dekAAD(p.env.generation()), metaAAD: p.aad(labelMeta), valueAAD: p.aad(labelValue),
		data:   make([]byte, 0, 2+4+kek.KeySize+envelope.Overhead+4+len(meta)+envelope.Overhead),
		sealed: make([]byte, 0, len(value)+valueOverhead),
	}
}

// seal encrypts the new version under a fresh DEK. Call it inside kek.Do.
func (p *plaintext) seal(k keys) error {
	var dek [kek.KeySize]byte
	rand.Read(dek[:])
	defer clear(dek[:])
	key, err := envelope.NewKey(dek[:])
	if err != nil {
		return err
	}
	p.data = envelope.BeginSealed(p.data, kindData)
	p.data = envelope.AppendSealed(p.data, k.env, dek[:], p.dekAAD)
	before := len(p.data) + 4
	p.data = envelope.AppendSealed(p.data, key, p.meta, p.metaAAD)
	p.sealedMeta = p.data[before:]
	p.sealed = envelope.BeginSealed(p.sealed, kindValue)
	p.sealed = envelope.AppendSealed(p.sealed, key, p.value, p.valueAAD)
	return nil
}

func (p *plaintext) put(b *store.Batch) {
	b.Put(p.key(kindData), p.data)
	b.Put(p.key(kindValue), p.sealed)
}

// putApp writes the app's record. Call it inside kek.Do.
func (s *Session) putApp(b *store.Batch, a *app) error {
	key, err := s.appKey(a)
	if err != nil {
		return err
	}
	record := a.encode(kek.MACKey(key))
	b.Put(appKeyOf(a.slug), record)
	// The record is used before it is read back when envs go into a new app.
	a.rec, err = envelope.DecodeClear(kindApp, appKeyOf(a.slug), record, 2)
	return err
}

// putEnv gives a new env its index key and writes it. Call it inside kek.Do.
func (s *Session) putEnv(b *store.Batch, acc *account, e *env) error {
	appKey, err := s.checkedAppKey(e.app)
	if err != nil {
		return err
	}
	raw := kek.EnvKey(appKey, e.id[:], e.generation())
	key, err := envelope.NewKey(raw)
	if err != nil {
		return err
	}
	var indexKey [kek.KeySize]byte
	rand.Read(indexKey[:])
	defer clear(indexKey[:])
	e.indexKey = key.Seal(nil, indexKey[:], e.indexKeyAAD(acc.id))
	e.setState(acc, key, state{counter: 1})
	record := e.encode(kek.MACKey(raw))
	b.Put(envKeyOf(e.app.id, e.slug), record)
	// The record is used before it is read back when secrets go into a new env.
	e.rec, err = envelope.DecodeClear(kindEnv, envKeyOf(e.app.id, e.slug), record, 4)
	return err
}

// CreateApp makes an app with an env names.DefaultEnv. It needs the account's key.
func (s *Session) CreateApp(ctx context.Context, slug string) error {
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
		if a, err := r.lookupApp(slug); a != nil || err != nil {
			return nil, orExists(err, "app "+slug)
		}
		kek.Do(func() { _, err = s.addApp(r, &b, acc, Ref{slug, names.DefaultEnv}) })
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
func (s *Session) addApp(r *visit, b *store.Batch, acc *account, ref Ref) (*env, error) {
	a := &app{slug: ref.App, id: newID(), generations: s.first()}
	if err := s.putApp(b, a); err != nil {
		return nil, err
	}
	return s.addEnv(r, b, acc, a, ref.Env)
}

// addEnv makes an env. Call it inside kek.Do.
func (s *Session) addEnv(r *visit, b *store.Batch, acc *account, a *app, slug string) (*env, error) {
	e := &env{app: a, slug: slug, id: newID(), generations: s.first(), fresh: true}
	if err := s.putEnv(b, acc, e); err != nil {
		return nil, err
	}
	s.noteEnv(r, e, e.state, false, true, nil)
	return e, nil
}

func (s *Session) first() []change { return []change{{1, s.vault.now(), ReasonCreated}} }

// CreateEnv makes an env in an app. It needs the account's key or the app's.
func (s *Session) CreateEnv(ctx context.Context, ref Ref) error {
	if err := ref.check(); err != nil {
		return err
	}
	return s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		if err := s.fetchEnv(r, ref); err != nil {
			return nil, err
		}
		acc, err := s.account(r)
		if err != nil {
			return nil, err
		}
		a, err := readApp(r, ref.App)
		if err != nil {
			return nil, err
		}
		if e, err := r.lookupEnv(a, ref.Env); e != nil || err != nil {
			return nil, orExists(err, "env "+ref.String())
		}
		kek.Do(func() { _, err = s.addEnv(r, &b, acc, a, ref.Env) })
		return b, err
	})
}

// DeleteApp deletes an app with its envs and all their secrets and versions. It
// needs the account's key.
func (s *Session) DeleteApp(ctx context.Context, slug string) error {
	if err := checkSlug("app", slug); err != nil {
		return err
	}
	return s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		if err := fetch(r, one(accountKey), one(appKeyOf(slug))); err != nil {
			return nil, err
		}
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
		kek.Do(func() { _, err = s.checkedAppKey(a) }) // its id says what goes
		if err != nil {
			return nil, err
		}
		b.Delete(appKeyOf(slug))
		r.noteGone(Ref{App: slug})
		return b, deleteAll(r, &b, append([]byte{kindEnv}, a.id[:]...),
			append([]byte{kindData}, a.id[:]...), append([]byte{kindValue}, a.id[:]...))
	})
}

// DeleteEnv deletes an env with all its secrets and versions. It needs the
// account's key or the app's.
func (s *Session) DeleteEnv(ctx context.Context, ref Ref) error {
	return s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		_, e, err := s.env(r, ref)
		if err != nil {
			return nil, err
		}
		if s.level == LevelEnv {
			return nil, fmt.Errorf("%w: the key is for env %s", ErrScope, s.scopeName())
		}
		b.Delete(envKeyOf(e.app.id, e.slug))
		r.noteGone(ref)
		return b, deleteAll(r, &b, e.prefix(kindData), e.prefix(kindValue))
	})
}

func deleteAll(r store.Reader, b *store.Batch, prefixes ...[]byte) error {
	ranges := make([]store.Range, len(prefixes))
	for i, p := range prefixes {
		ranges[i] = allOf(p)
	}
	if err := fetch(r, ranges...); err != nil {
		return err
	}
	for _, p := range prefixes {
		err := r.Scan(p, func(key, _ []byte) error {
			b.Delete(bytes.Clone(key))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Apps lists the vault's apps.
func (s *Session) Apps(ctx context.Context) ([]App, error) {
	var list []App
	err := s.vault.view(ctx, func(r *visit) error {
		if err := fetchApps(r); err != nil {
			return err
		}
		acc, err := readAccount(r)
		if err != nil {
			return err
		}
		if err := r.holdAccount(acc); err != nil {
			return err
		}
		if list, err = listApps(r); err != nil {
			return err
		}
		listed := map[string][]string{}
		for _, a := range list {
			listed[a.Slug] = a.Envs
		}
		return r.holdLists("", listed)
	})
	return list, err
}

func (s *Session) now() time.Time { return s.vault.now() }
