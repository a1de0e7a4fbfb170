package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

// A Witness keeps what a client has seen of vaults, so that a store cannot go
// back to an earlier time unnoticed. Its methods are safe for use by many
// goroutines, and what they keep is shared with other processes.
type Witness interface {
	// Recall returns what is remembered of an account, which the caller does not
	// change.
	Recall(account [16]byte) (*Seen, error)
	// Remember has note bring up to date what is remembered of an account, while
	// nobody else does. note may be called more than once, and reports whether it
	// changed anything. That it could not be kept is the witness's to tell.
	Remember(account [16]byte, note func(*Seen) bool)
}

// Seen is what a client remembers of an account. docs/FORMAT.md, "What a client
// remembers", has the rules.
type Seen struct {
	Epoch uint32
	At    time.Time // when this epoch was first seen; so everywhere here, in whole seconds
	Apps  map[string]*SeenApp
}

// SeenApp is what a client remembers of an app, by its slug.
type SeenApp struct {
	ID         [16]byte
	Created    time.Time
	Generation uint32
	At         time.Time
	Envs       map[string]*SeenEnv
}

// SeenEnv is what a client remembers of an env, by its slug.
type SeenEnv struct {
	ID      [16]byte
	Created time.Time
	Counter uint64
	Count   uint32 // of secrets
	Sum     [32]byte
	At      time.Time
	// Whole is the counter at which all the env was last checked, and all its
	// secrets entered, 0 for never.
	Whole   uint64
	Secrets map[[32]byte]SeenSecret // by name index
}

// SeenSecret is the newest version of a secret that a client has seen.
type SeenSecret struct {
	Version uint32
	Mark    [8]byte // of the sealed metadata's SHA-256
	At      time.Time
}

const (
	// MaxSeen bounds the secrets of one env that are remembered.
	MaxSeen = 4096
	// smallEnv bounds the env of which all is read when it has changed, though
	// only some was asked for, in secrets.
	smallEnv = 256
)

// WithWitness makes the vault hold what it reads against what w remembers, and
// fail with ErrRollback. With AcceptRollback w is told what is there now.
func WithWitness(w Witness) Option { return func(v *Vault) { v.witness = w } }

// RollbackError says what a store had at an earlier time and no longer has.
type RollbackError struct {
	Ref    Ref    // empty for the account; without an Env for an app
	Secret string // its name, if that is what went back
	Was    string // what was remembered
	Seen   time.Time
	Now    string // what came
}

func (e *RollbackError) Error() string {
	what := "the account"
	switch {
	case e.Secret != "":
		what = "secret " + e.Secret + " in " + e.Ref.String()
	case e.Ref.Env != "":
		what = "env " + e.Ref.String()
	case e.Ref.App != "":
		what = "app " + e.Ref.App
	}
	when := ""
	if !e.Seen.IsZero() {
		when = " on " + e.Seen.UTC().Format("2006-01-02 at 15:04 UTC")
	}
	return fmt.Sprintf("%v: %s had %s%s, and now has %s", ErrRollback, what, e.Was, when, e.Now)
}

// Is makes errors.Is(err, ErrRollback) true.
func (e *RollbackError) Is(target error) bool { return target == ErrRollback }

func rolledBack(e RollbackError) error {
	return hint.Wrap(&e, "if the vault was restored from a backup, or this was deleted, on purpose: the same with --accept-rollback; otherwise do not trust whoever stores it")
}

// recall is what a witness says of an account. It is asked once, and then stays
// as it is, through all the snapshots of an operation.
type recall struct {
	vault   *Vault
	account id
	seen    *Seen
}

// visit is a snapshot of the store, what was remembered of the vault, and what
// there is to be remembered of it.
type visit struct {
	store.Reader
	known *recall
	notes []func(*Seen) bool
}

// view is store.View for a visit, of which it remembers what fn has noted.
func (v *Vault) view(ctx context.Context, fn func(*visit) error) error {
	r, err := v.look(ctx, fn)
	if v.counts(err) {
		r.remember()
	}
	return err
}

// look is view, and leaves it to the caller to remember.
func (v *Vault) look(ctx context.Context, fn func(*visit) error) (r *visit, err error) {
	err = v.twice(func(known *recall) error {
		return v.store.View(ctx, func(sr store.Reader) error {
			r = &visit{Reader: sr, known: known}
			return fn(r)
		})
	})
	return r, err
}

// update is store.Update for a visit.
func (v *Vault) update(ctx context.Context, fn func(*visit) (store.Batch, error)) error {
	var r *visit
	err := v.twice(func(known *recall) error {
		return v.store.Update(ctx, func(sr store.Reader) (store.Batch, error) {
			r = &visit{Reader: sr, known: known}
			return fn(r)
		})
	})
	if v.counts(err) {
		r.remember()
	}
	return err
}

// counts reports whether an operation with that outcome is remembered: when it
// has gone well, or when it was accepted that something is gone.
func (v *Vault) counts(err error) bool {
	return err == nil || v.accept && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrDeadKey))
}

// twice tries again when the store seems to have gone back. The first time,
// somebody else may have written, and remembered what he wrote, between our
// snapshot and our look at what is remembered. The second snapshot is younger
// than what was remembered then.
func (v *Vault) twice(do func(*recall) error) error {
	known := &recall{vault: v}
	err := do(known)
	if errors.Is(err, ErrRollback) && known.seen != nil {
		err = do(known)
	}
	return err
}

// remember tells the witness what was noted.
func (r *visit) remember() {
	if r == nil || r.known == nil || r.known.seen == nil || len(r.notes) == 0 {
		return
	}
	r.known.vault.witness.Remember(r.known.account, func(s *Seen) (changed bool) {
		for _, note := range r.notes {
			changed = note(s) || changed
		}
		return changed
	})
}

// note is to be remembered when the visit has gone well.
func (r *visit) note(fn func(*Seen) bool) {
	if r.seen() != nil {
		r.notes = append(r.notes, fn)
	}
}

// seen is what is remembered, nil without a witness.
func (r *visit) seen() *Seen {
	if r.known == nil {
		return nil
	}
	return r.known.seen
}

// isCache reports whether this is what a server said earlier, which a client
// uses while the server is away, for a bounded time. An env in it may be older
// than another program here has seen it since: were that refused, the cache
// would be of no use just when others were at work. The server gains nothing by
// going away that it would not have by not changing for so long. Changes of keys
// are held against all the same: a key that was replaced shall open nothing.
func (r *visit) isCache() bool {
	_, dated := r.Reader.(store.Dated)
	return dated
}

// refuse is the error e, unless that is accepted: then forget is noted.
func (r *visit) refuse(e RollbackError, forget func(*Seen)) error {
	// What was accepted once is held against from then on.
	if v := r.known.vault; !v.accept || e.Seen.After(v.opened) {
		return rolledBack(e)
	}
	r.note(func(s *Seen) bool { forget(s); return true })
	return nil
}

// holdAccount recalls what is remembered of the account, and holds its record
// against that.
func (r *visit) holdAccount(acc *account) error {
	if r.known == nil || r.known.vault.witness == nil {
		return nil
	}
	if r.known.seen == nil || r.known.account != acc.id {
		seen, err := r.known.vault.witness.Recall(acc.id)
		if err != nil {
			return err
		}
		r.known.account, r.known.seen = acc.id, seen
	}
	if was := r.seen(); acc.epoch() < was.Epoch {
		return r.refuse(RollbackError{Was: fmt.Sprintf("key change %d", was.Epoch), Seen: was.At, Now: fmt.Sprintf("%d", acc.epoch())},
			func(s *Seen) { s.Epoch = 0 })
	}
	return nil
}

// noteAccount notes an account whose MAC is right.
func (r *visit) noteAccount(acc *account, now time.Time) {
	epoch, now := acc.epoch(), now.UTC().Truncate(time.Second)
	r.note(func(s *Seen) bool {
		if epoch <= s.Epoch {
			return false
		}
		s.Epoch, s.At = epoch, now
		return true
	})
}

// lookupApp is the function of that name, held against what is remembered.
func (r *visit) lookupApp(slug string) (*app, error) {
	a, err := lookupApp(r, slug)
	if err != nil {
		return nil, err
	}
	return a, r.holdApp(slug, a)
}

// lookupEnv is the function of that name, held against what is remembered.
func (r *visit) lookupEnv(a *app, slug string) (*env, error) {
	e, err := lookupEnv(r, a, slug)
	if err != nil {
		return nil, err
	}
	return e, r.holdEnv(a, slug, e)
}

// holdApp holds an app's record, nil for none, against what is remembered.
func (r *visit) holdApp(slug string, a *app) error {
	if r.seen() == nil || r.seen().Apps[slug] == nil {
		return nil
	}
	was := r.seen().Apps[slug]
	back := RollbackError{Ref: Ref{App: slug}, Seen: was.At}
	switch {
	case a == nil:
		back.Was, back.Now = "a record", "none"
	case a.id != was.ID && !a.generations[0].at.After(was.Created):
		back.Was, back.Now = madeAt(was.Created), madeAt(a.generations[0].at)
	case a.id == was.ID && a.generation() < was.Generation:
		back.Was, back.Now = fmt.Sprintf("key generation %d", was.Generation), fmt.Sprintf("%d", a.generation())
	default:
		return nil
	}
	return r.refuse(back, func(s *Seen) { delete(s.Apps, slug) })
}

// holdEnv holds an env's record, nil for none, against what is remembered.
func (r *visit) holdEnv(a *app, slug string, e *env) error {
	if r.seen() == nil {
		return nil
	}
	app := r.seen().Apps[a.slug]
	if app == nil || app.ID != a.id || app.Envs[slug] == nil {
		return nil
	}
	was := app.Envs[slug]
	back := RollbackError{Ref: Ref{a.slug, slug}, Seen: was.At}
	switch {
	case e == nil:
		back.Was, back.Now = "a record", "none"
	case e.id != was.ID && !e.generations[0].at.After(was.Created):
		back.Was, back.Now = madeAt(was.Created), madeAt(e.generations[0].at)
	default:
		return nil
	}
	return r.refuse(back, func(s *Seen) { s.forgetEnv(back.Ref) })
}

func madeAt(t time.Time) string { return "a record made " + t.UTC().Format("2006-01-02 15:04:05 UTC") }

func (s *Seen) forgetEnv(ref Ref) {
	if app := s.Apps[ref.App]; app != nil {
		delete(app.Envs, ref.Env)
	}
}

// env returns what is remembered of the env, or nil.
func (s *Seen) env(e *env) *SeenEnv {
	if s == nil {
		return nil
	}
	app := s.Apps[e.app.slug]
	if app == nil || app.ID != e.app.id || app.Envs[e.slug] == nil || app.Envs[e.slug].ID != e.id {
		return nil
	}
	return app.Envs[e.slug]
}

// holdState holds the env's opened state against what is remembered.
func (r *visit) holdState(e *env) error {
	was := r.seen().env(e)
	if was == nil || r.isCache() && e.state.counter < was.Counter {
		return nil
	}
	back := RollbackError{
		Ref: e.ref(), Seen: was.At,
		Was: fmt.Sprintf("change %d", was.Counter), Now: fmt.Sprintf("change %d", e.state.counter),
	}
	if e.state.counter == was.Counter && (e.state.secrets != was.Count || e.state.sum != was.Sum) {
		back.Now = "another change of this number"
	} else if e.state.counter >= was.Counter {
		return nil
	}
	return r.refuse(back, func(s *Seen) { s.forgetEnv(e.ref()) })
}

// noteApp notes an app whose MAC is right.
func (r *visit) noteApp(a *app, now time.Time) {
	r.note(func(s *Seen) bool { _, changed := s.app(a, true, now); return changed })
}

// app returns what is to be remembered of the app, nil when what is remembered
// is younger. A record whose MAC could not be checked tells no more than that
// there is an app.
func (s *Seen) app(a *app, checked bool, now time.Time) (was *SeenApp, changed bool) {
	var created time.Time
	var generation uint32
	if checked {
		created, generation = a.generations[0].at, a.generation()
	}
	was = s.Apps[a.slug]
	if was == nil || was.ID != a.id {
		if was != nil && !created.After(was.Created) {
			return nil, false
		}
		was = &SeenApp{ID: a.id, At: now, Envs: map[string]*SeenEnv{}}
		if s.Apps == nil {
			s.Apps = map[string]*SeenApp{}
		}
		s.Apps[a.slug], changed = was, true
	}
	if generation > was.Generation {
		was.Generation, was.Created, was.At, changed = generation, created, now, true
	}
	return was, changed
}

// sight is what there is to be remembered of an env.
type sight struct {
	env     *env
	state   state
	checked bool                     // so was the app's record
	whole   bool                     // secrets are all that the env has
	written bool                     // by ourselves: over what was remembered
	secrets map[nameIndex]SeenSecret // version 0: it is gone
}

// noteEnv notes an env whose MAC is right. It costs what secrets there are only
// when there is a witness.
func (s *Session) noteEnv(r *visit, e *env, st state, whole, written bool, secrets func(add func(nameIndex, uint32, []byte))) {
	if r.seen() == nil {
		return
	}
	if was := r.seen().env(e); whole && was != nil && was.Whole == st.counter && st.counter > 0 {
		whole, secrets = false, nil // all is known
	}
	now := s.now().UTC().Truncate(time.Second)
	g := sight{env: e, state: st, checked: s.level != LevelEnv, whole: whole, written: written, secrets: map[nameIndex]SeenSecret{}}
	if secrets != nil {
		secrets(func(index nameIndex, version uint32, meta []byte) {
			g.secrets[index] = SeenSecret{version, markOf(meta), now}
		})
	}
	r.note(func(seen *Seen) bool { return seen.add(g, now) })
}

// markOf tells apart the writes of one version number.
func markOf(meta []byte) (mark [8]byte) {
	h := sha256.Sum256(meta)
	copy(mark[:], h[:])
	return mark
}

// add remembers an env, unless what is remembered is younger.
func (s *Seen) add(g sight, now time.Time) (changed bool) {
	app, changed := s.app(g.env.app, g.checked, now)
	if app == nil {
		return false
	}
	created := g.env.generations[0].at
	was := app.Envs[g.env.slug]
	if was == nil || was.ID != g.env.id {
		if was != nil && !created.After(was.Created) {
			return changed
		}
		was = &SeenEnv{ID: g.env.id, Created: created, At: now, Secrets: map[[32]byte]SeenSecret{}}
		app.Envs[g.env.slug], changed = was, true
	}
	if g.state.counter < was.Counter {
		return changed
	}
	// Nothing but our own write lies between what was whole and what is.
	follows := g.written && was.Whole > 0 && was.Whole == was.Counter && was.Counter == g.state.counter-1
	if g.state.counter > was.Counter || was.Sum != g.state.sum || was.Count != g.state.secrets {
		was.Counter, was.Count, was.Sum, was.At = g.state.counter, g.state.secrets, g.state.sum, now
		changed = true
	}
	if g.whole || follows {
		if g.whole && len(g.secrets) <= MaxSeen {
			for index := range was.Secrets {
				if _, ok := g.secrets[index]; !ok {
					delete(was.Secrets, index)
				}
			}
		}
		changed = changed || was.Whole != g.state.counter
		was.Whole = g.state.counter
	}
	for index, secret := range g.secrets {
		old, ok := was.Secrets[index]
		switch {
		case secret.Version == 0:
			if ok {
				delete(was.Secrets, index)
				changed = true
			}
		case ok && old.Version == secret.Version && old.Mark == secret.Mark:
		case ok || len(g.secrets) <= MaxSeen: // of very many, only those that were asked for
			was.Secrets[index] = secret
			changed = true
		}
	}
	if extra := len(was.Secrets) - MaxSeen; extra > 0 {
		oldest := slices.SortedFunc(maps.Keys(was.Secrets), func(a, b [32]byte) int {
			return cmp.Or(was.Secrets[a].At.Compare(was.Secrets[b].At), bytes.Compare(a[:], b[:]))
		})
		for _, index := range oldest[:extra] {
			delete(was.Secrets, index)
		}
	}
	return changed
}

// noteGone notes that we deleted an app, or an env of it.
func (r *visit) noteGone(ref Ref) {
	r.note(func(s *Seen) bool {
		if ref.Env == "" {
			delete(s.Apps, ref.App)
		} else {
			s.forgetEnv(ref)
		}
		return true
	})
}

// holdLists fails when an app or env that is remembered is in no list: apps by
// slug, with their envs. only is the one app that was listed, "" for all.
func (r *visit) holdLists(only string, listed map[string][]string) error {
	if r.seen() == nil {
		return nil
	}
	for _, slug := range slices.Sorted(maps.Keys(r.seen().Apps)) {
		if only != "" && slug != only {
			continue
		}
		was := r.seen().Apps[slug]
		envs, ok := listed[slug]
		if !ok {
			err := r.refuse(RollbackError{Ref: Ref{App: slug}, Was: "a record", Seen: was.At, Now: "none"},
				func(s *Seen) { delete(s.Apps, slug) })
			if err != nil {
				return err
			}
			continue
		}
		for _, env := range slices.Sorted(maps.Keys(was.Envs)) {
			if slices.Contains(envs, env) {
				continue
			}
			ref := Ref{slug, env}
			err := r.refuse(RollbackError{Ref: ref, Was: "a record", Seen: was.Envs[env].At, Now: "none"},
				func(s *Seen) { s.forgetEnv(ref) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// confirm holds what was found of some secrets against what is remembered of
// them: found has the newest version of each, or nil. What looks older, and any
// small env that has changed, is settled by reading all of the env, which lets
// pass what somebody did who has the key.
func (s *Session) confirm(r *visit, acc *account, e *env, names []string, places []place, found []*ciphertext) error {
	if r.seen() == nil || e.fresh {
		return nil
	}
	was := r.seen().env(e)
	back := was.older(e, names, places, found)
	counted := e.state.counter > 0
	unsettled := counted && e.state.secrets <= smallEnv && (was == nil || was.Whole != e.state.counter)
	if back == nil && !unsettled {
		s.noteSome(r, e, places, found)
		return nil
	}
	forget := func(seen *Seen) { seen.forgetEnv(e.ref()) }
	if !counted && r.isCache() {
		return nil
	}
	if !counted { // and so cannot be settled
		err := r.refuse(*back, forget)
		s.noteSome(r, e, places, found)
		return err
	}
	list, err := s.whole(r, acc, e)
	if errors.Is(err, ErrWithheld) && back != nil {
		return r.refuse(*back, forget)
	}
	if err != nil {
		return err
	}
	// What was found has to be what is in the whole, too.
	there := map[nameIndex]*ciphertext{}
	for _, c := range list {
		there[c.index] = c
	}
	for i, c := range found {
		all := there[places[i].index]
		if (c == nil) != (all == nil) || c != nil && (c.version != all.version || !bytes.Equal(c.meta, all.meta)) {
			return withheld(e, "secret "+names[i]+" came in two versions")
		}
	}
	return nil
}

// older returns what is wrong with the first of the secrets that is not at least
// what is remembered of it, or nil.
func (was *SeenEnv) older(e *env, names []string, places []place, found []*ciphertext) *RollbackError {
	if was == nil {
		return nil
	}
	for i, c := range found {
		old, ok := was.Secrets[places[i].index]
		if !ok {
			continue
		}
		back := &RollbackError{Ref: e.ref(), Secret: names[i], Was: fmt.Sprintf("version %d", old.Version), Seen: old.At}
		switch {
		case c == nil:
			back.Now = "none"
		case c.version < old.Version:
			back.Now = fmt.Sprintf("version %d", c.version)
		case c.version == old.Version && markOf(c.meta) != old.Mark:
			back.Now = "another version of this number"
		default:
			continue
		}
		return back
	}
	return nil
}

// noteSome notes some secrets of an env.
func (s *Session) noteSome(r *visit, e *env, places []place, found []*ciphertext) {
	s.noteEnv(r, e, e.state, false, false, func(add func(nameIndex, uint32, []byte)) {
		for i, p := range places {
			if c := found[i]; c != nil {
				add(p.index, c.version, c.meta)
			}
		}
	})
}

// noteAll notes all secrets of an env.
func (s *Session) noteAll(r *visit, e *env, list []*ciphertext) {
	s.noteEnv(r, e, e.state, e.state.counter > 0, false, func(add func(nameIndex, uint32, []byte)) {
		for _, c := range list {
			add(c.index, c.version, c.meta)
		}
	})
}

// noteWritten notes what is in an env after our own write.
func (s *Session) noteWritten(r *visit, e *env, st state, gone []*ciphertext, fresh []*plaintext) {
	s.noteEnv(r, e, st, false, true, func(add func(nameIndex, uint32, []byte)) {
		for _, c := range gone {
			add(c.index, 0, nil)
		}
		for _, p := range fresh {
			add(p.index, p.version, p.sealedMeta)
		}
	})
}
