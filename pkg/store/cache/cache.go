// Package cache keeps on this machine what a server has said of the envs that
// were used here, so that programs start while it is away.
//
// It is ciphertext, as the server has it, and is believed no more than a
// server: who reads it checks every record. It is never written through: a
// write while the server is away fails. It is for one login: an API key that
// may read less does not get what another one has read.
//
// Each env has one file, which holds what one View has read, whole: the ranges
// that were asked for and the records that were there. Answers come from one
// file each, so they are as consistent as the server's. What no file says is
// unavailable, never "not found".
package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
)

const (
	// DefaultMaxStale is how old an answer of the cache may be at most.
	DefaultMaxStale = 24 * time.Hour
	// DefaultMaxSize bounds the files of one login, in bytes.
	DefaultMaxSize = 64 << 20
	// DefaultPatience is how long a server may take to say anything at all
	// before the cache answers in its place, if it can.
	DefaultPatience = 5 * time.Second

	// confirmEvery is how often a file is told at most that it is still right.
	confirmEvery = time.Minute
	// probeEvery is how often a server that is away is looked for, more or less.
	probeEvery = time.Second
	// probeWait bounds one look.
	probeWait = 10 * time.Second
	// maxPending bounds the envs, and the machine keys, that are remembered
	// between a View and a Refresh.
	maxPending = 1024
)

// Options say how a cache is used.
type Options struct {
	Dir      string        // of this login alone; it is made, 0700
	Server   string        // as people know it
	MaxStale time.Duration // 0: no cache, and what there is of one is removed
	MaxSize  int64         // in bytes; 0: DefaultMaxSize
	Patience time.Duration // 0: DefaultPatience
	// Tell, if not nil, is told what a person should know: that the server is
	// away and how old is what is used, that it is back, that a file was damaged.
	Tell func(string)
}

// Store is a far store, and what is known of it when it cannot be reached. Its
// methods are safe for use by many goroutines, and many processes may use one
// directory.
type Store struct {
	far store.Store
	dir dir
	o   Options
	now func() time.Time

	ctx   context.Context // ends with Close
	close context.CancelFunc

	mu      sync.Mutex
	state   State
	away    bool                // nobody waits for the server: it is looked for
	probing bool                // by a goroutine
	used    bool                // the cache has answered since the server is away
	said    string              // last, which is not said twice in a row
	views   map[string]view     // by file: what Refresh has to look at
	keys    map[string]bool     // ids of ranges of the register that machine keys were found in
	known   map[string][32]byte // by key: records that the files have been compared with
}

// State tells how it stands with the server.
type State struct {
	Server string
	// Since is when the server was first found to be away; zero if it is there,
	// or was not asked.
	Since time.Time
	Why   string    // it is away
	AsOf  time.Time // of the last answer of the cache since then; zero: none
}

// view is what a View has read of an env.
type view struct {
	app, env string // slugs
	at       time.Time
	digests  []digest
	changed  bool // the env was written to
}

// digest is over what was in a range.
type digest struct {
	store.Range
	sum [32]byte
}

// New returns a Store before far. Close it.
func New(far store.Store, o Options) *Store {
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	s := &Store{
		far: far, dir: dir{o.Dir, o.MaxSize}, o: o, now: time.Now, state: State{Server: o.Server},
		views: map[string]view{}, keys: map[string]bool{}, known: map[string][32]byte{},
	}
	s.ctx, s.close = context.WithCancel(context.Background())
	if s.off() {
		if err := Remove(o.Dir); err != nil {
			s.tell("cannot remove the cache: %v", err)
		}
	}
	return s
}

// Close ends the search for a server that is away.
func (s *Store) Close() { s.close() }

// Far returns the store itself, without a cache.
func (s *Store) Far() store.Store { return s.far }

// State tells how it stands with the server.
func (s *Store) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *Store) off() bool { return s.o.MaxStale <= 0 }

// tell tells a person, unless that is what it told last.
func (s *Store) tell(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	again := text == s.said
	s.said = text
	s.mu.Unlock()
	if s.o.Tell != nil && !again {
		s.o.Tell(text)
	}
}

// View implements store.Store. When the server is away, fn gets what it said
// last, at most MaxStale ago, if that is all that fn asks for.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	if s.off() {
		return s.far.View(ctx, fn)
	}
	away, cut := s.isAway(), false
	var err error
	if !away {
		if cut, err = s.ask(ctx, s.o.Patience, fn); !unavailable(ctx, err) {
			return err
		}
	}
	ok, cerr := s.answer(fn)
	if ok {
		return cerr
	}
	if away || cut { // it was not asked, or not for as long as it takes
		if _, err = s.ask(ctx, 0, fn); !unavailable(ctx, err) {
			return err
		}
	}
	return explain(err, cerr)
}

// unavailable reports whether err says that the server is away, and not that
// the caller has had enough.
func unavailable(ctx context.Context, err error) bool {
	return errors.Is(err, store.ErrUnavailable) && !errors.Is(ctx.Err(), context.Canceled)
}

// impatient ends a View of a server that says nothing.
type impatient struct{ text string }

func (e *impatient) Error() string { return store.ErrUnavailable.Error() + ": " + e.text }
func (e *impatient) Unwrap() error { return store.ErrUnavailable }

// ask is View of the far store. With a patience it is cut short if nothing has
// come for so long and the cache may have an answer. That something comes,
// however slowly, is enough.
func (s *Store) ask(ctx context.Context, patience time.Duration, fn func(store.Reader) error) (cut bool, err error) {
	at := s.now()
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered := sync.OnceFunc(s.found)
	if patience > 0 {
		timer := time.AfterFunc(patience, func() {
			if files, _ := s.fresh(); len(files) > 0 {
				cancel(&impatient{fmt.Sprintf("%s has not answered in %v", s.o.Server, patience)})
			}
		})
		defer timer.Stop()
		answered = sync.OnceFunc(func() {
			timer.Stop()
			s.found()
		})
	}
	var digests []digest
	var seen []store.Seen
	rec, recording := ctx.Value(recordKey{}).(*record)
	err = s.far.View(within, func(r store.Reader) error {
		read := recorder(r, answered)
		err := fn(read)
		if recording && err == nil {
			err = read.Fetch(rec.ranges...)
		}
		if recording {
			seen = clone(read.Seen())
		} else {
			digests = digestsOf(read.Seen())
		}
		return err
	})
	var cause *impatient
	if errors.As(context.Cause(within), &cause) {
		cut = true
		if err != nil && !errors.Is(err, store.ErrUnavailable) {
			err = cause
		}
	}
	switch {
	case unavailable(ctx, err):
		s.lost(err)
	case err == nil && recording:
		answered()
		rec.seen, rec.at = seen, at
	case err == nil || errors.Is(err, store.ErrDenied):
		answered()
		fallthrough
	default:
		s.learn(digests, at)
	}
	return cut, err
}

func digestsOf(seen []store.Seen) []digest {
	list := make([]digest, len(seen))
	for i, one := range seen {
		list[i] = digest{
			store.Range{Key: bytes.Clone(one.Range.Key), Take: one.Range.Take},
			[32]byte(store.DigestOf(one.Records)),
		}
	}
	return list
}

// nothing is the digest of no records.
var nothing [32]byte

// learn makes of what was read what is to be done about the files: at once
// where it shows that some are of another time, else at the next Refresh.
func (s *Store) learn(digests []digest, at time.Time) {
	v := view{at: at, digests: digests}
	var name string
	envs := 0
	var drop []func(head) bool
	s.mu.Lock()
	for _, d := range digests {
		if len(d.Key) == 0 || d.Take != store.One && d.Key[0] != kindKey {
			continue
		}
		was, known := s.known[string(d.Key)]
		fresh := !known || was != d.sum
		switch {
		case d.Key[0] == kindKey:
			if d.sum != nothing && len(s.keys) < maxPending {
				s.keys[id(d.Range)] = true
			}
			continue
		case d.Key[0] == kindAccount && fresh:
			drop = append(drop, func(h head) bool { return h.account != d.sum })
		case d.Key[0] == kindApp:
			v.app = string(d.Key[1:])
			if key := sha256.Sum256(d.Key); fresh {
				drop = append(drop, func(h head) bool { return h.appKey == key && h.app != d.sum })
			}
		case d.Key[0] == kindEnv && d.sum == nothing:
			drop = append(drop, func(h head) bool { return h.name == fileOf(d.Key) })
		case d.Key[0] == kindEnv && len(d.Key) > 1+idSize:
			name, v.env = fileOf(d.Key), string(d.Key[1+idSize:])
			envs++
		}
		if kind := d.Key[0]; fresh && (kind == kindAccount || kind == kindApp) && len(s.known) < maxPending {
			s.known[string(d.Key)] = d.sum
		}
	}
	if old, ok := s.views[name]; envs == 1 && v.app != "" && (ok || len(s.views) < maxPending) {
		v.changed = old.changed
		s.views[name] = v
	}
	s.mu.Unlock()
	if len(drop) > 0 {
		s.remove(func(h head) bool {
			return slices.ContainsFunc(drop, func(f func(head) bool) bool { return f(h) })
		})
	}
}

func (s *Store) remove(which func(head) bool) {
	if err := s.dir.remove(which); err != nil {
		s.tell("cannot clear the cache: %v", err)
	}
}

// Update implements store.Store. The server must be there.
func (s *Store) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	if s.off() {
		return s.far.Update(ctx, fn)
	}
	var written store.Batch
	err := s.far.Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		b, err = fn(r)
		written = b
		return b, err
	})
	switch {
	case err == nil:
		s.found()
		s.wrote(written)
	case unavailable(ctx, err):
		s.lost(err)
	}
	return err
}

// wrote is learn for what this process has written.
func (s *Store) wrote(b store.Batch) {
	drop := map[string]bool{}
	apps := map[[32]byte]bool{}
	all := false
	s.mu.Lock()
	for _, op := range b {
		switch {
		case op.Key[0] == kindAccount:
			all = true
		case op.Key[0] == kindApp:
			apps[sha256.Sum256(op.Key)] = true
		case op.Key[0] == kindEnv && op.Value == nil:
			drop[fileOf(op.Key)] = true
		case op.Key[0] == kindEnv:
			if name := fileOf(op.Key); len(s.views) < maxPending {
				v := s.views[name]
				v.changed = true
				s.views[name] = v
			}
		}
	}
	if all || len(apps) > 0 {
		clear(s.known)
	}
	s.mu.Unlock()
	if all || len(apps) > 0 || len(drop) > 0 {
		s.remove(func(h head) bool { return all || apps[h.appKey] || drop[h.name] })
	}
}

// record is what a View within Refresh has read, besides ranges that it shall
// read in any case.
type record struct {
	ranges []store.Range
	seen   []store.Seen
	at     time.Time
}

type recordKey struct{}

// Refresh brings the files of the envs that were read since the last Refresh to
// what was read. Where the server said something new, snapshot is called to read
// all of that env, in one View of this Store with the ctx that it is given. Call
// it when what was read has proven good. It does nothing while the server is
// away.
func (s *Store) Refresh(ctx context.Context, snapshot func(ctx context.Context, app, env string) error) error {
	if s.off() {
		return nil
	}
	s.mu.Lock()
	views := s.views
	s.views = map[string]view{}
	s.mu.Unlock()
	var errs []error
	for name, v := range views {
		var err error
		if s.isAway() || ctx.Err() != nil {
			s.postpone(name, v)
		} else if err = s.refresh(ctx, name, v, snapshot); unavailable(ctx, err) || ctx.Err() != nil {
			s.postpone(name, v)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// postpone leaves to the next Refresh what this one could not do.
func (s *Store) postpone(name string, v view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	newer, ok := s.views[name]
	if ok && newer.app != "" {
		newer.changed = newer.changed || v.changed
		v = newer
	}
	s.views[name] = v
}

func (s *Store) refresh(ctx context.Context, name string, v view, snapshot func(ctx context.Context, app, env string) error) error {
	old, err := s.load(name)
	if err != nil {
		return err
	}
	rec := &record{}
	s.mu.Lock()
	for key := range s.keys {
		rec.ranges = append(rec.ranges, store.Range{Take: store.Take(key[0]), Key: []byte(key[1:])})
	}
	s.mu.Unlock()
	if old != nil {
		if !v.changed && old.says(v.digests, rec.ranges) {
			if age := v.at.Sub(old.confirmed); age >= 0 && age < confirmEvery {
				return nil
			}
			return s.dir.confirm(old, v.at)
		}
		for _, one := range old.seen {
			switch key := one.Range.Key; key[0] {
			case kindKey: // of a machine key that another process uses
				rec.ranges = append(rec.ranges, one.Range)
			case kindApp:
				v.app = string(key[1:])
			case kindEnv:
				v.env = string(key[1+idSize:])
			}
		}
	}
	if len(v.digests) == 0 && old == nil {
		return nil // was written to, and never read
	}
	if err := snapshot(context.WithValue(ctx, recordKey{}, rec), v.app, v.env); err != nil {
		return fmt.Errorf("cannot cache %s/%s: %w", v.app, v.env, err)
	}
	if rec.seen == nil {
		s.postpone(name, v) // the cache has answered: the server is away since a moment ago
		return nil
	}
	err = s.dir.write(name, rec.seen, rec.at, s.now())
	if errors.Is(err, errTooLarge) {
		s.tell("%s/%s is not cached: %v", v.app, v.env, err)
		// What tells that it has changed is kept, so that it is not read in vain
		// again until then.
		err = s.dir.write(name, slices.DeleteFunc(rec.seen, ofSecrets), rec.at, s.now())
	}
	if err != nil {
		return fmt.Errorf("cannot cache %s/%s: %w", v.app, v.env, err)
	}
	return nil
}

func ofSecrets(seen store.Seen) bool {
	return len(seen.Range.Key) == 0 || bytes.IndexByte([]byte{kindAccount, kindApp, kindEnv, kindKey}, seen.Range.Key[0]) < 0
}

// says reports whether the snapshot knows of the keys and says nothing else
// than what was read.
func (s *snapshot) says(digests []digest, keys []store.Range) bool {
	r, err := s.reader()
	if err != nil {
		return false
	}
	for _, want := range keys {
		if _, err := read(r, want); err != nil {
			return false
		}
	}
	for _, d := range digests {
		r.missed = nil
		list, err := read(r, d.Range)
		if r.missed == nil && (err != nil || [32]byte(store.DigestOf(list)) != d.sum) {
			return false
		}
	}
	return true
}

// load reads a file, and nil if there is none. One that is damaged goes.
func (s *Store) load(name string) (*snapshot, error) {
	root, err := s.dir.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	snap, err := s.dir.load(root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, errDamaged):
		s.tell("dropped a file of the cache: %s: %v", filepath.Join(s.dir.path, name), err)
		_ = root.Remove(name)
		return nil, nil
	}
	return snap, err
}

// isAway reports whether the server is known to be away.
func (s *Store) isAway() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

// lost notes that the server is away, and looks for it until it is back.
func (s *Store) lost(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	if !s.away {
		s.away, s.state.Since = true, s.now()
	}
	s.state.Why = why.Error()
	if !s.probing {
		s.probing = true
		go s.probe()
	}
}

// found notes that the server has answered.
func (s *Store) found() {
	s.mu.Lock()
	since, used := s.state.Since, s.used
	s.state = State{Server: s.o.Server}
	s.away, s.used = false, false
	s.mu.Unlock()
	if used {
		s.tell("%s answers again, after %s", s.o.Server, age(s.now().Sub(since)))
	}
}

// probe looks for the server until it answers, whatever it says.
func (s *Store) probe() {
	for {
		pause := probeEvery/2 + rand.N(probeEvery) //nolint:gosec // only so that not all try at once
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
		s.mu.Lock()
		away := s.away
		s.probing = away
		s.mu.Unlock()
		if !away {
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, probeWait)
		err := s.far.View(ctx, func(r store.Reader) error {
			_, err := r.Get(accountKey)
			return err
		})
		switch {
		case errors.Is(err, store.ErrUnavailable):
			s.lost(err)
		case ctx.Err() == nil:
			s.found()
		}
		cancel()
	}
}

// fresh lists the files that may be answered with, the latest confirmed first,
// and the time of the latest of all.
func (s *Store) fresh() (list []head, latest time.Time) {
	root, err := s.dir.open(false)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.tell("the cache cannot be used: %v", err)
		}
		return nil, latest
	}
	defer func() { _ = root.Close() }()
	heads, bad, _ := s.dir.list(root)
	for _, name := range bad {
		_, _ = s.load(name) // which tells
	}
	if len(heads) > 0 {
		latest = heads[0].confirmed
	}
next:
	for _, h := range heads {
		if !s.isFresh(h.confirmed) {
			continue
		}
		// Where two are not of the same moment, the later one is right.
		for _, later := range list {
			if later.contradicts(h) {
				continue next
			}
		}
		list = append(list, h)
	}
	return list, latest
}

// isFresh reports whether what was confirmed at t may be used. A time that is
// yet to come is that of a clock that was wrong.
func (s *Store) isFresh(t time.Time) bool {
	age := s.now().Sub(t)
	return age >= 0 && age <= s.o.MaxStale
}

// answer calls fn with one file after the other until one knows all that it
// asks for. If none does, err says why.
func (s *Store) answer(fn func(store.Reader) error) (ok bool, err error) {
	files, latest := s.fresh()
	err = errors.New("nothing of it is cached here")
	if len(files) == 0 && !latest.IsZero() {
		err = s.tooOld("it", latest)
	}
	for len(files) > 0 {
		file := files[0]
		files = files[1:]
		snap, lerr := s.load(file.name)
		if lerr != nil || snap == nil || !s.isFresh(snap.confirmed) {
			continue // changed since it was listed
		}
		r, lerr := snap.reader()
		if lerr != nil {
			continue
		}
		if err = fn(r); r.missed == nil {
			s.answered(r.asOf)
			return true, err
		}
		err = s.whyMissed(*r.missed)
		if r.missed.Key[0] == kindEnv && r.missed.Take == store.One {
			files = only(files, fileOf(r.missed.Key))
		}
	}
	return false, err
}

// only returns the one of that name, if it is among the files.
func only(files []head, name string) []head {
	for _, f := range files {
		if f.name == name {
			return []head{f}
		}
	}
	return nil
}

// answered notes that the cache was used, and tells of it once.
func (s *Store) answered(asOf time.Time) {
	s.mu.Lock()
	first := !s.used
	s.used, s.state.AsOf = true, asOf
	s.mu.Unlock()
	if first {
		s.tell("cannot reach %s: using what it said %s ago, for at most %s after it was said",
			s.o.Server, age(s.now().Sub(asOf)), age(s.o.MaxStale))
	}
}

// whyMissed says what it was that no file knows, or only one that is too old.
func (s *Store) whyMissed(r store.Range) error {
	what := "what was asked for"
	switch {
	case r.Take == store.One && r.Key[0] == kindApp:
		what = "app " + string(r.Key[1:])
	case r.Take == store.One && r.Key[0] == kindEnv && len(r.Key) > 1+idSize:
		what = "env " + string(r.Key[1+idSize:])
		if snap, err := s.load(fileOf(r.Key)); err == nil && snap != nil && !s.isFresh(snap.confirmed) {
			return s.tooOld(what, snap.confirmed)
		}
	case len(r.Key) > 0 && r.Key[0] == kindKey:
		what = "the entry of this machine key"
	}
	return errors.New(what + " is not cached here")
}

// staleError says that what is cached is too old.
type staleError struct{ text string }

func (e *staleError) Error() string { return e.text }

func (s *Store) tooOld(what string, at time.Time) error {
	old := age(s.now().Sub(at)) + " old"
	if at.After(s.now()) {
		old = "of a time that is yet to come, " + at.Format(time.DateTime)
	}
	return &staleError{fmt.Sprintf("what is cached of %s is %s, and at most %s are allowed (--max-stale)",
		what, old, age(s.o.MaxStale))}
}

// explain joins why the server did not answer and why the cache did not.
func explain(err, cached error) error {
	advice := hint.Of(err)
	var old *staleError
	if errors.As(cached, &old) {
		advice = "see why the server is away; to use older secrets all the same: --max-stale DURATION"
	}
	err = fmt.Errorf("%w; %w", err, cached)
	if advice == "" {
		return err
	}
	return hint.Wrap(err, advice)
}

// age rounds a time to what people say: 7s, 12m, 26h10m.
func age(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	d = d.Round(time.Minute)
	hours, minutes := d/time.Hour, d%time.Hour/time.Minute
	switch {
	case hours == 0:
		return fmt.Sprintf("%dm", minutes)
	case minutes == 0:
		return fmt.Sprintf("%dh", hours)
	}
	return fmt.Sprintf("%dh%dm", hours, minutes)
}
