package vault

import (
	"bytes"
	"context"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/near"
	"github.com/opaquevault/ov/pkg/store"
)

// Secret is a decrypted version of a secret. Value is valid only inside the
// callback that it is handed to.
type Secret struct {
	Name    string
	Value   []byte
	Version uint32
}

// Select says which secrets of an env are meant.
type Select struct {
	Names   []string // nil: all of them
	Version uint32   // 0: the newest; otherwise of the one named secret
	// Fits, if not nil, is asked before anything is decrypted whether that is
	// not too much: so many secrets, with values of so many bytes together. Its
	// error is Reveal's. Only a Session asks it.
	Fits func(secrets, bytes int) error
}

// Version describes one version of a secret, without its value.
type Version struct {
	Name    string    `json:"name"`
	Version uint32    `json:"version"`
	Created time.Time `json:"created"`
	Note    string    `json:"note"` // how it came about: "set", "import", "rollback to 3"
}

// Reveal decrypts the selected secrets and calls fn with them inside kek.Do: in
// the order of the names, or sorted by name when all were meant. The values are
// wiped when fn returns. When any is missing, fn is not called and the error is
// a *MissingError.
func (s *Session) Reveal(ctx context.Context, ref Ref, sel Select, fn func([]Secret) error) error {
	var acc *account
	var e *env
	var list []*ciphertext
	r, err := s.vault.look(ctx, func(r *visit) (err error) {
		if acc, e, err = s.env(r, ref); err != nil {
			return err
		}
		if list, err = s.find(r, acc, e, sel); err != nil {
			return err
		}
		if err := loadValues(r, list); err != nil {
			return err
		}
		if sel.Fits == nil {
			return nil
		}
		size := 0
		for _, c := range list {
			size += max(0, len(c.value)-valueOverhead)
		}
		return sel.Fits(len(list), size)
	})
	if err != nil {
		return err
	}
	kek.Do(func() {
		secrets := make([]Secret, 0, len(list))
		defer func() {
			for _, secret := range secrets {
				clear(secret.Value)
			}
		}()
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for _, c := range list {
			var value []byte
			if value, err = c.open(k); err != nil {
				return
			}
			secrets = append(secrets, Secret{Value: value, Version: c.version})
			if err = c.describe(); err != nil {
				return
			}
			secrets[len(secrets)-1].Name = c.name
		}
		if sel.Names == nil {
			slices.SortFunc(secrets, func(a, b Secret) int { return strings.Compare(a.Name, b.Name) })
		}
		r.remember() // now: fn need not return
		err = fn(secrets)
	})
	return err
}

// find returns the selected secrets without their values, or a *MissingError.
func (s *Session) find(r *visit, acc *account, e *env, sel Select) ([]*ciphertext, error) {
	if sel.Names == nil {
		return s.whole(r, acc, e)
	}
	places, err := s.places(acc, e, sel.Names)
	if err != nil {
		return nil, err
	}
	if sel.Version == 0 {
		err = fetchPlaces(r, places, store.Last)
	} else {
		err = fetchVersion(r, places, sel.Version)
	}
	if err != nil {
		return nil, err
	}
	list := make([]*ciphertext, len(places))
	var absent []string
	for i, p := range places {
		en, err := newestOf(r, p)
		if err != nil {
			return nil, err
		}
		if en == nil {
			absent = append(absent, sel.Names[i])
		} else if list[i], err = en.parse(); err != nil {
			return nil, err
		}
	}
	if err := s.confirm(r, acc, e, sel.Names, places, list); err != nil {
		return nil, err
	}
	if len(absent) > 0 {
		return nil, s.missing(r, acc, e, absent)
	}
	for i, p := range places {
		if sel.Version != 0 && sel.Version != list[i].version {
			en, err := versionOf(r, p, sel.Version)
			if err != nil {
				return nil, err
			}
			if en == nil {
				return nil, hint.Errorf(fmt.Sprintf("see what is kept: ov secret history %s --app %s --env %s", sel.Names[i], e.app.slug, e.slug),
					"version %d of secret %s in %s: %w", sel.Version, sel.Names[i], e.ref(), ErrNotFound)
			}
			if list[i], err = en.parse(); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// missing makes the error for names that are not there, with near misses.
func (s *Session) missing(r *visit, acc *account, e *env, absent []string) error {
	list, err := s.whole(r, acc, e)
	if err != nil {
		return err
	}
	have, err := s.describe(acc, e, list)
	if err != nil {
		return err
	}
	known := make([]string, len(have))
	for i, v := range have {
		known[i] = v.Name
	}
	alike := map[string][]string{}
	for _, name := range absent {
		if n := near.Find(name, known, 3); len(n) > 0 {
			alike[name] = n
		}
	}
	return missing(e.ref(), absent, alike)
}

// describe decrypts the metadata of the secrets, in their order.
func (s *Session) describe(acc *account, e *env, list []*ciphertext) (out []Version, err error) {
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for _, c := range list {
			if _, err = c.open(k); err != nil {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	out = make([]Version, len(list))
	for i, c := range list {
		if err := c.describe(); err != nil {
			return nil, err
		}
		out[i] = Version{c.name, c.version, c.created, c.note}
	}
	return out, nil
}

// List describes the newest version of every secret in an env, sorted by name.
// It decrypts no value.
func (s *Session) List(ctx context.Context, ref Ref) ([]Version, error) {
	var out []Version
	err := s.vault.view(ctx, func(r *visit) error {
		acc, e, err := s.env(r, ref)
		if err != nil {
			return err
		}
		list, err := s.whole(r, acc, e)
		if err != nil {
			return err
		}
		out, err = s.describe(acc, e, list)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Version) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// History describes the kept versions of one secret, newest first.
func (s *Session) History(ctx context.Context, ref Ref, name string) ([]Version, error) {
	var out []Version
	err := s.vault.view(ctx, func(r *visit) error {
		acc, e, err := s.env(r, ref)
		if err != nil {
			return err
		}
		places, err := s.places(acc, e, []string{name})
		if err != nil {
			return err
		}
		list, err := versions(r, places[0])
		if err != nil {
			return err
		}
		parsed, err := parseAll(list)
		if err != nil {
			return err
		}
		found := []*ciphertext{nil}
		if len(parsed) > 0 {
			found[0] = parsed[len(parsed)-1]
		}
		if err := s.confirm(r, acc, e, []string{name}, places, found); err != nil {
			return err
		}
		if len(list) == 0 {
			return s.missing(r, acc, e, []string{name})
		}
		out, err = s.describe(acc, e, parsed)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(out)
	return out, nil
}

// Put is a secret to be written. The caller keeps Value and wipes it.
type Put struct {
	Name  string
	Value []byte
	// Replaces, when not nil, is the version that must be the newest, 0 for none;
	// otherwise the write fails with ErrConflict.
	Replaces *uint32
}

// Existing says what to do with a secret that is there with another value.
type Existing byte

// What to do with a secret that is there with another value.
const (
	ReplaceExisting Existing = iota // make a new version
	KeepExisting                    // leave it
	RefuseExisting                  // fail with ErrExists, write nothing
)

// PutOptions say how to write.
type PutOptions struct {
	Existing Existing
	DryRun   bool           // find out, write nothing
	Create   bool           // make the app and the env when they are missing
	Note     string         // kept with each new version
	Progress func(done int) // if not nil, told now and then how many are encrypted
}

// Outcome says what became of one Put.
type Outcome byte

// What became of one Put.
const (
	Created   Outcome = iota // first version
	Updated                  // new version
	Unchanged                // the same value was there: no new version
	Kept                     // another value was there and stays
)

func (o Outcome) String() string {
	return [...]string{"created", "updated", "unchanged", "kept"}[o]
}

// PutResult says what became of one Put and which version is now the newest.
type PutResult struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"-"`
	Version uint32  `json:"version"`
}

// Put writes secrets, all of them or none. A value that is the same as the
// newest version's makes no new version. Versions beyond MaxVersions go.
func (s *Session) Put(ctx context.Context, ref Ref, list []Put, opt PutOptions) ([]PutResult, error) {
	err := checkPut(ref, list)
	if err != nil {
		return nil, err
	}
	var results []PutResult
	plan := func(r *visit) (b store.Batch, err error) {
		var acc *account
		var e *env
		absent := false
		if opt.Create {
			if absent, err = s.absent(r, ref); err != nil {
				return nil, err
			}
		}
		if absent {
			acc, e, err = s.addMissing(r, &b, ref)
		} else {
			acc, e, err = s.env(r, ref)
		}
		if err != nil {
			return nil, err
		}
		nameList := make([]string, len(list))
		for i := range list {
			nameList[i] = list[i].Name
		}
		places, err := s.places(acc, e, nameList)
		if err != nil {
			return nil, err
		}
		results, err = s.put(r, &b, acc, e, places, list, opt)
		return b, err
	}
	if opt.DryRun {
		// What is planned is not remembered.
		_, err = s.vault.look(ctx, func(r *visit) error { _, err := plan(r); return err })
	} else {
		err = s.vault.update(ctx, plan)
	}
	if err != nil {
		return nil, err
	}
	return results, nil
}

func checkPut(ref Ref, list []Put) error {
	if err := ref.check(); err != nil {
		return err
	}
	if len(list) > MaxBatch {
		return fmt.Errorf("%d secrets at once, the bound is %d: %w", len(list), MaxBatch, ErrInvalid)
	}
	seen := make(map[string]bool, len(list))
	for _, put := range list {
		if err := checkName(put.Name); err != nil {
			return err
		}
		if len(put.Value) > MaxValue {
			return fmt.Errorf("secret %s has %d bytes, the bound is %d: %w", put.Name, len(put.Value), MaxValue, ErrInvalid)
		}
		if seen[put.Name] {
			return fmt.Errorf("secret %s is given twice: %w", put.Name, ErrInvalid)
		}
		seen[put.Name] = true
	}
	return nil
}

func abbreviated(list []string) string {
	const most = 20
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// absent reports whether there is no such env.
func (s *Session) absent(r *visit, ref Ref) (bool, error) {
	if err := s.fetchEnv(r, ref); err != nil {
		return false, err
	}
	if _, err := s.account(r); err != nil {
		return false, err
	}
	a, err := r.lookupApp(ref.App)
	if a == nil || err != nil {
		return true, err
	}
	e, err := r.lookupEnv(a, ref.Env)
	return e == nil, err
}

// addMissing makes the env, and the app too if that is missing.
func (s *Session) addMissing(r *visit, b *store.Batch, ref Ref) (acc *account, e *env, err error) {
	if acc, err = s.account(r); err != nil {
		return nil, nil, err
	}
	a, err := r.lookupApp(ref.App)
	if err != nil {
		return nil, nil, err
	}
	kek.Do(func() {
		if a == nil {
			e, err = s.addApp(r, b, acc, ref)
		} else {
			e, err = s.addEnv(r, b, acc, a, ref.Env)
		}
	})
	return acc, e, err
}

// progressEvery is after how many secrets progress is told.
const progressEvery = 500

// candidate is a secret to be written beside what is there.
type candidate struct {
	old    []*entry    // the versions that are there
	newest *ciphertext // of old, or nil
	same   bool        // as the value that is to be written
}

// candidates reads what is there of the secrets to be written.
func candidates(r store.Reader, e *env, places []place, list []Put) ([]candidate, error) {
	out := make([]candidate, len(list))
	if !e.fresh {
		if err := fetchPlaces(r, places, store.All); err != nil {
			return nil, err
		}
	}
	var there []*ciphertext
	for _, i := range inKeyOrder(places) {
		c, put := &out[i], list[i]
		var err error
		if !e.fresh {
			if c.old, err = versions(r, places[i]); err != nil {
				return nil, err
			}
		}
		if put.Replaces != nil && *put.Replaces != c.version() {
			return nil, hint.Errorf("look again: ov secret history "+put.Name,
				"secret %s is at version %d, not %d: %w", put.Name, c.version(), *put.Replaces, ErrConflict)
		}
		if n := len(c.old); n > 0 {
			if c.newest, err = c.old[n-1].parse(); err != nil {
				return nil, err
			}
			there = append(there, c.newest)
		}
	}
	return out, loadValues(r, there)
}

// inKeyOrder returns the order in which a store finds the places fastest.
func inKeyOrder(places []place) []int {
	order := make([]int, len(places))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return bytes.Compare(places[i].index[:], places[j].index[:]) })
	return order
}

// version returns the newest version's number, 0 when there is none.
func (c *candidate) version() uint32 {
	if len(c.old) == 0 {
		return 0
	}
	return c.old[len(c.old)-1].version
}

// compare decrypts what is there. Call it inside kek.Do.
func (c *candidate) compare(k keys, value []byte) error {
	if c.newest == nil {
		return nil
	}
	old, err := c.newest.open(k)
	if err == nil {
		c.same = subtle.ConstantTimeCompare(old, value) == 1
		clear(old)
	}
	return err
}

func (c *candidate) outcome(existing Existing) Outcome {
	switch {
	case c.newest == nil:
		return Created
	case c.same:
		return Unchanged
	case existing != ReplaceExisting:
		return Kept
	}
	return Updated
}

// put plans the writes into the batch.
func (s *Session) put(r *visit, b *store.Batch, acc *account, e *env, places []place, list []Put, opt PutOptions) ([]PutResult, error) {
	candidates, err := candidates(r, e, places, list)
	if err != nil {
		return nil, err
	}
	nameList := make([]string, len(list))
	found := make([]*ciphertext, len(list))
	for i := range list {
		nameList[i], found[i] = list[i].Name, candidates[i].newest
	}
	if err := s.confirm(r, acc, e, nameList, places, found); err != nil {
		return nil, err
	}
	kek.Do(func() {
		var k keys
		if k, err = s.keys(acc, e); err != nil {
			return
		}
		for i := range candidates {
			if err = candidates[i].compare(k, list[i].Value); err != nil {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	results := make([]PutResult, len(list))
	var fresh []*plaintext
	var gone []*ciphertext
	var clash []string
	for i, put := range list {
		c := &candidates[i]
		res := PutResult{put.Name, c.outcome(opt.Existing), c.version()}
		switch res.Outcome {
		case Kept:
			clash = append(clash, put.Name)
		case Created, Updated:
			res.Version++
			p, err := s.nextVersion(b, places[i], c.old, metadata{put.Name, s.now(), opt.Note}, put.Value)
			if err != nil {
				return nil, err
			}
			fresh = append(fresh, p)
			if c.newest != nil {
				gone = append(gone, c.newest)
			}
		}
		results[i] = res
	}
	if opt.Existing == RefuseExisting && len(clash) > 0 {
		return nil, hint.Errorf("choose with --overwrite or --skip-existing",
			"%s in %s with another value: %w: %s", secrets(len(clash)), e.ref(), ErrExists, abbreviated(clash))
	}
	if opt.DryRun || len(fresh) == 0 {
		return results, nil
	}
	return results, s.write(r, b, acc, e, gone, fresh, opt.Progress)
}

// nextVersion prepares a new version and drops the ones too old to keep.
func (s *Session) nextVersion(b *store.Batch, p place, old []*entry, m metadata, value []byte) (*plaintext, error) {
	p.version = 1
	if n := len(old); n > 0 {
		p.version = old[n-1].version + 1
	}
	if p.version == 0 {
		return nil, fmt.Errorf("secret %s has no version numbers left: %w", m.name, ErrInvalid)
	}
	for len(old) >= MaxVersions {
		b.Delete(old[0].key(kindData))
		b.Delete(old[0].key(kindValue))
		old = old[1:]
	}
	return p.plaintext(m, value), nil
}

// Delete deletes secrets with all their versions, all of them or none.
func (s *Session) Delete(ctx context.Context, ref Ref, list []string) error {
	return s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		acc, e, err := s.env(r, ref)
		if err != nil {
			return nil, err
		}
		places, err := s.places(acc, e, list)
		if err != nil {
			return nil, err
		}
		ranges := make([]store.Range, len(places))
		for i, p := range places {
			ranges[i] = allOf(p.prefix(kindData))
		}
		if err := fetch(r, ranges...); err != nil {
			return nil, err
		}
		var absent []string
		var gone []*ciphertext
		found := make([]*ciphertext, len(places))
		seen := map[nameIndex]int{}
		for i, p := range places {
			if first, again := seen[p.index]; again {
				found[i] = found[first]
				continue
			}
			seen[p.index] = i
			all, err := versions(r, p)
			if err != nil {
				return nil, err
			}
			if len(all) == 0 {
				absent = append(absent, list[i])
				continue
			}
			if found[i], err = all[len(all)-1].parse(); err != nil {
				return nil, err
			}
			gone = append(gone, found[i])
			for _, en := range all {
				b.Delete(en.key(kindData))
				b.Delete(en.key(kindValue))
			}
		}
		if err := s.confirm(r, acc, e, list, places, found); err != nil {
			return nil, err
		}
		if len(absent) > 0 {
			return nil, s.missing(r, acc, e, absent)
		}
		if len(gone) == 0 {
			return nil, nil
		}
		return b, s.write(r, &b, acc, e, gone, nil, nil)
	})
}

// Rollback makes the value of an older version the newest, as a new version.
func (s *Session) Rollback(ctx context.Context, ref Ref, name string, version uint32) (res PutResult, err error) {
	err = s.vault.update(ctx, func(r *visit) (b store.Batch, err error) {
		acc, e, err := s.env(r, ref)
		if err != nil {
			return nil, err
		}
		list, err := s.find(r, acc, e, Select{Names: []string{name}, Version: version})
		if err != nil {
			return nil, err
		}
		source := list[0]
		all, err := versions(r, source.place)
		if err != nil {
			return nil, err
		}
		newest, err := all[len(all)-1].parse()
		if err != nil {
			return nil, err
		}
		res = PutResult{Name: name, Outcome: Unchanged, Version: newest.version}
		if source.version == newest.version {
			return nil, nil
		}
		if err := loadValues(r, list); err != nil {
			return nil, err
		}
		var value []byte
		kek.Do(func() {
			var k keys
			if k, err = s.keys(acc, e); err == nil {
				value, err = source.open(k)
			}
		})
		if err != nil {
			return nil, err
		}
		defer clear(value)
		p, err := s.nextVersion(&b, source.place, all, metadata{name, s.now(), fmt.Sprintf("rollback to %d", version)}, value)
		if err != nil {
			return nil, err
		}
		res.Outcome, res.Version = Updated, p.version
		return b, s.write(r, &b, acc, e, []*ciphertext{newest}, []*plaintext{p}, nil)
	})
	if err != nil {
		return PutResult{}, err
	}
	return res, nil
}
