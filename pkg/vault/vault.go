// Package vault is everything that needs both a key and a store: apps, envs,
// secrets and their versions, machine keys, and the change of keys.
//
// A Vault is a store that nobody has unlocked. A Session is a Vault with a key.
// Secret values leave it only inside the callback of Reveal, which runs under
// kek.Do, and are wiped when the callback returns.
package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/near"
	"github.com/opaquevault/ov/pkg/store"
)

const (
	// MaxValue bounds a secret's value, in bytes.
	MaxValue = 64 << 10
	// MaxVersions is how many versions of a secret are kept.
	MaxVersions = 10
	// MaxBatch bounds the secrets written by one Put.
	MaxBatch = 200_000
	// MaxLabel bounds a machine key's label, in bytes.
	MaxLabel = 256
)

// Ref names an env of an app by their slugs.
type Ref struct{ App, Env string }

func (r Ref) String() string { return r.App + "/" + r.Env }

func (r Ref) check() error {
	if err := checkSlug("app", r.App); err != nil {
		return err
	}
	return checkSlug("env", r.Env)
}

func checkSlug(what, slug string) error {
	if names.ValidSlug(slug) {
		return nil
	}
	return hint.Errorf("use 1 to 63 lowercase letters, digits and inner dashes",
		"%s %.80q: %w", what, slug, ErrInvalid)
}

func checkName(name string) error {
	if names.ValidName(name) {
		return nil
	}
	return hint.Errorf("use letters, digits and underscores, not starting with a digit",
		"secret name %.80q: %w", name, ErrInvalid)
}

// Vault is a store of records that is not unlocked.
type Vault struct {
	store   store.Store
	now     func() time.Time
	witness Witness // or nil
	accept  bool    // go on with what a store has left
	opened  time.Time
}

// New returns the vault kept in st.
func New(st store.Store, options ...Option) *Vault {
	v := &Vault{store: st, now: time.Now, opened: time.Now().Truncate(time.Second)}
	for _, o := range options {
		o(v)
	}
	return v
}

// Option changes how a vault is used.
type Option func(*Vault)

// AcceptRollback makes the vault go on with what the store has, though it be old
// or incomplete: nothing fails with ErrWithheld, nor with ErrRollback for what was
// seen before New, and a write to an env counts anew what is there.
func AcceptRollback() Option { return func(v *Vault) { v.accept = true } }

// Create is what a new vault is written through: all at once, over nothing.
type Create func(context.Context, store.Batch) error

// Init makes a new vault under the password, with names.DefaultApp in it.
func (v *Vault) Init(ctx context.Context, create Create, password *kek.Locked) error {
	key, err := kek.New()
	if err != nil {
		return err
	}
	defer key.Destroy()
	first := []change{{1, v.now(), ReasonCreated}}
	acc := &account{epochs: first}
	rand.Read(acc.id[:])
	if err := acc.protect(ctx, key, password); err != nil {
		return err
	}
	s := &Session{vault: v, key: key, level: LevelAccount, epoch: acc.epoch()}
	var b store.Batch
	kek.Do(func() {
		b.Put(accountKey, acc.encode(kek.MACKey(key.Bytes())))
		a := &app{slug: names.DefaultApp, id: newID(), generations: first}
		err = s.putApp(&b, a)
		if err == nil {
			err = s.putEnv(&b, acc, &env{app: a, slug: names.DefaultEnv, id: newID(), generations: first})
		}
	})
	if err != nil {
		return err
	}
	return create(ctx, b)
}

func newID() (i id) {
	rand.Read(i[:])
	return i
}

// protect replaces the account's slots by one for the password.
func (a *account) protect(ctx context.Context, key, password *kek.Locked) error {
	p := kek.NewArgon2id()
	slotKey, err := kek.SlotKey(ctx, password, p)
	if err != nil {
		return err
	}
	defer slotKey.Destroy()
	s := slot{protector: protectorPassword, params: encodeArgon2id(p)}
	kek.Do(func() {
		s.wrapped, err = envelope.Seal(slotKey.Bytes(), key.Bytes(), s.aad(a.id, a.epoch()))
	})
	a.slots = []slot{s}
	return err
}

// Change is an epoch of the account: one life of its KEK.
type Change struct {
	Number uint32    `json:"number"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// Info is what can be told of a vault without a key.
type Info struct {
	AccountID string   `json:"account_id"`
	Epochs    []Change `json:"epochs"` // oldest first
}

// Info reads the account record. It needs no key.
func (v *Vault) Info(ctx context.Context) (Info, error) {
	var info Info
	err := v.store.View(ctx, func(r store.Reader) error {
		acc, err := readAccount(r)
		if err != nil {
			return err
		}
		info = Info{AccountID: acc.id.String()}
		for _, e := range acc.epochs {
			info.Epochs = append(info.Epochs, Change{e.number, e.at, e.reason.String()})
		}
		return nil
	})
	return info, err
}

// App describes an app. Slugs are routing and need no key.
type App struct {
	Slug    string    `json:"app"`
	Created time.Time `json:"created"`
	Envs    []string  `json:"envs"`
}

// Apps lists the apps and their envs by slug.
func (v *Vault) Apps(ctx context.Context) ([]App, error) {
	var list []App
	err := v.store.View(ctx, func(r store.Reader) (err error) {
		if err := fetchApps(r); err != nil {
			return err
		}
		if _, err := readAccount(r); err != nil {
			return err
		}
		list, err = listApps(r)
		return err
	})
	return list, err
}

func fetchApps(r store.Reader) error {
	return fetch(r, one(accountKey), allOf([]byte{kindApp}), allOf([]byte{kindEnv}))
}

func listApps(r store.Reader) ([]App, error) {
	list := []App{}
	err := scanApps(r, func(a *app) error {
		item := App{Slug: a.slug, Created: a.generations[0].at, Envs: []string{}}
		err := scanEnvs(r, a, func(e *env) error {
			item.Envs = append(item.Envs, e.slug)
			return nil
		})
		list = append(list, item)
		return err
	})
	return list, err
}

func scanApps(r store.Reader, fn func(*app) error) error {
	return r.Scan([]byte{kindApp}, func(key, b []byte) error {
		a, err := decodeApp(bytes.Clone(key), bytes.Clone(b))
		if err != nil {
			return err
		}
		return fn(a)
	})
}

func scanEnvs(r store.Reader, a *app, fn func(*env) error) error {
	return r.Scan(envKeyOf(a.id, ""), func(key, b []byte) error {
		e, err := decodeEnv(a, bytes.Clone(key), bytes.Clone(b))
		if err != nil {
			return err
		}
		return fn(e)
	})
}

// lookupApp returns nil when the app is not there.
func lookupApp(r store.Reader, slug string) (*app, error) {
	if err := checkSlug("app", slug); err != nil {
		return nil, err
	}
	key := appKeyOf(slug)
	b, err := r.Get(key)
	if b == nil || err != nil {
		return nil, err
	}
	return decodeApp(key, bytes.Clone(b))
}

// lookupEnv returns nil when the env is not there.
func lookupEnv(r store.Reader, a *app, slug string) (*env, error) {
	if err := checkSlug("env", slug); err != nil {
		return nil, err
	}
	key := envKeyOf(a.id, slug)
	b, err := r.Get(key)
	if b == nil || err != nil {
		return nil, err
	}
	return decodeEnv(a, key, bytes.Clone(b))
}

// readApp fails with ErrNotFound and near misses.
func readApp(r *visit, slug string) (*app, error) {
	a, err := r.lookupApp(slug)
	if a != nil || err != nil {
		return a, err
	}
	var have []string
	err = scanApps(r, func(a *app) error { have = append(have, a.slug); return nil })
	if err != nil && !errors.Is(err, store.ErrDenied) { // an API key for one app sees no others
		return nil, err
	}
	return nil, notFound("app", slug, have, "ov app list", "ov app create "+slug)
}

// readEnv fails with ErrNotFound and near misses.
func readEnv(r *visit, ref Ref) (*env, error) {
	if err := ref.check(); err != nil {
		return nil, err
	}
	a, err := readApp(r, ref.App)
	if err != nil {
		return nil, err
	}
	e, err := r.lookupEnv(a, ref.Env)
	if e != nil || err != nil {
		return e, err
	}
	var have []string
	err = scanEnvs(r, a, func(e *env) error { have = append(have, e.slug); return nil })
	if err != nil && !errors.Is(err, store.ErrDenied) {
		return nil, err
	}
	return nil, notFound("env", ref.String(), prefixed(ref.App+"/", have),
		"ov env list --app "+ref.App, "ov env create "+ref.Env+" --app "+ref.App)
}

func prefixed(prefix string, list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = prefix + s
	}
	return out
}

func notFound(kind, what string, have []string, list, create string) error {
	text := fmt.Sprintf("see what is there: %s; make it: %s", list, create)
	if alike := near.Find(what, have, 1); len(alike) == 1 {
		text = fmt.Sprintf("did you mean %s? %s", alike[0], text)
	}
	return hint.Wrap(fmt.Errorf("%s %s: %w", kind, what, ErrNotFound), text)
}

// Unlock opens the vault with the master password. It fails with
// ErrWrongPassword. The caller keeps password and destroys the session.
func (v *Vault) Unlock(ctx context.Context, password *kek.Locked) (*Session, error) {
	var acc *account
	r, err := v.look(ctx, func(r *visit) (err error) {
		if acc, err = readAccount(r); err != nil {
			return err
		}
		return r.holdAccount(acc)
	})
	if err != nil {
		return nil, err
	}
	key, err := acc.unlock(ctx, password)
	if err != nil {
		return nil, err
	}
	r.noteAccount(acc, v.now())
	r.remember()
	return &Session{vault: v, key: key, level: LevelAccount, epoch: acc.epoch()}, nil
}

// unlock tries the account's password slots.
func (a *account) unlock(ctx context.Context, password *kek.Locked) (*kek.Locked, error) {
	for _, s := range a.slots {
		if s.protector != protectorPassword {
			continue
		}
		p, err := decodeArgon2id(s.params)
		if err != nil {
			return nil, damaged("account", err)
		}
		slotKey, err := kek.SlotKey(ctx, password, p)
		if err != nil {
			return nil, err
		}
		key, err := kek.NewLocked(kek.KeySize)
		if err != nil {
			slotKey.Destroy()
			return nil, err
		}
		kek.Do(func() {
			var plain []byte
			if plain, err = envelope.Open(slotKey.Bytes(), s.wrapped, s.aad(a.id, a.epoch())); err != nil {
				return
			}
			if len(plain) != kek.KeySize {
				err = damaged("account", fmt.Errorf("%w: a KEK of %d bytes", envelope.ErrMalformed, len(plain)))
				return
			}
			copy(key.Bytes(), plain)
			clear(plain)
			if verr := a.rec.Verify(kek.MACKey(key.Bytes())); verr != nil {
				err = damaged("account", verr)
			}
		})
		slotKey.Destroy()
		if err == nil {
			return key, nil
		}
		key.Destroy()
		if !errors.Is(err, envelope.ErrOpen) || errors.Is(err, ErrDamaged) {
			return nil, err
		}
	}
	return nil, ErrWrongPassword
}

// UnlockKey opens the vault with a machine key, of which it takes ownership: the
// session destroys it, and UnlockKey does when it fails. It fails with
// ErrUnknownKey or ErrDeadKey.
func (v *Vault) UnlockKey(ctx context.Context, key *kek.Locked) (*Session, error) {
	s := &Session{vault: v, key: key}
	if err := v.view(ctx, s.identify); err != nil {
		key.Destroy()
		return nil, err
	}
	return s, nil
}

// identify finds out from the register what the session's key opens.
func (s *Session) identify(r *visit) error {
	if len(s.key.Bytes()) != kek.KeySize {
		return hint.Errorf("make one with: ov auth derive-machine-key --out FILE",
			"machine key of %d bytes instead of %d: %w", len(s.key.Bytes()), kek.KeySize, ErrUnknownKey)
	}
	fingerprint := make([]byte, kek.FingerprintSize)
	macKey := make([]byte, kek.KeySize)
	defer clear(macKey)
	kek.Do(func() {
		copy(fingerprint, kek.Fingerprint(s.key.Bytes()))
		copy(macKey, kek.MACKey(s.key.Bytes()))
	})
	var entry *register
	if err := fetch(r, one(accountKey), allOf(registerPrefix(fingerprint))); err != nil {
		return err
	}
	acc, err := readAccount(r)
	if err != nil {
		return err
	}
	if err := r.holdAccount(acc); err != nil {
		return err
	}
	err = r.Scan(registerPrefix(fingerprint), func(key, b []byte) (err error) {
		entry, err = decodeRegister(bytes.Clone(key), bytes.Clone(b))
		return err
	})
	if err != nil {
		return err
	}
	if entry == nil {
		return hint.Errorf("use the vault that it was made for (--vault), or make a new one: ov auth derive-machine-key --force --out FILE",
			"machine key %x: %w", fingerprint, ErrUnknownKey)
	}
	var verr error
	kek.Do(func() { verr = entry.rec.Verify(macKey) })
	if verr != nil {
		return damaged(fmt.Sprintf("machine key register entry %x", fingerprint), verr)
	}
	if acc.epoch() < entry.epoch {
		return olderThanKey(Ref{}, entry.epoch, acc.epoch())
	}
	if err := entry.hold(r); err != nil {
		return err
	}
	if err := entry.dead(r, acc); err != nil {
		return err
	}
	s.level, s.appID, s.envID, s.scope = entry.level, entry.appID, entry.envID, entry.scope
	s.epoch, s.appGen, s.envGen = entry.epoch, entry.appGen, entry.envGen
	return nil
}

// olderThanKey is the error for a record from before the key was made. It takes
// no witness: the key itself remembers.
func olderThanKey(ref Ref, key, record uint32) error {
	return rolledBack(RollbackError{Ref: ref, Was: fmt.Sprintf("key change %d when the key was made", key), Now: fmt.Sprintf("%d", record)})
}

// hold looks up what the entry's key opens, for what is remembered of it.
func (r *register) hold(v *visit) error {
	if r.level == LevelAccount {
		return nil
	}
	if err := r.fetch(v); err != nil {
		return err
	}
	a, err := v.lookupApp(r.scope.App)
	if err == nil && a != nil && r.level == LevelEnv {
		_, err = v.lookupEnv(a, r.scope.Env)
	}
	return err
}

// fetch asks for the records of what the entry's key opens.
func (r *register) fetch(rd store.Reader) error {
	ranges := []store.Range{one(appKeyOf(r.scope.App))}
	if r.level == LevelEnv {
		ranges = append(ranges, one(envKeyOf(r.appID, r.scope.Env)))
	}
	return fetch(rd, ranges...)
}

// dead returns an error that says since when a registered key opens nothing.
func (r *register) dead(rd store.Reader, acc *account) error {
	what := fmt.Sprintf("machine key %x", r.fingerprint)
	if c, ok := since(acc.epochs, r.epoch); ok {
		return deadKey(what, c)
	}
	if r.level == LevelAccount {
		return nil
	}
	if err := r.fetch(rd); err != nil {
		return err
	}
	a, err := lookupApp(rd, r.scope.App)
	if err != nil {
		return err
	}
	if a == nil || a.id != r.appID { // or made anew under the same slug
		return deadKeyOf(what, LevelApp, r.scope.App)
	}
	if c, ok := since(a.generations, r.appGen); ok {
		return deadKey(what, c)
	}
	if r.level == LevelApp {
		return nil
	}
	e, err := lookupEnv(rd, a, r.scope.Env)
	if err != nil {
		return err
	}
	if e == nil || e.id != r.envID {
		return deadKeyOf(what, LevelEnv, r.scope.String())
	}
	if c, ok := since(e.generations, r.envGen); ok {
		return deadKey(what, c)
	}
	return nil
}

// since returns the first change after the given one, if there is one.
func since(cs []change, number uint32) (change, bool) {
	for _, c := range cs {
		if c.number > number {
			return c, true
		}
	}
	return change{}, false
}
