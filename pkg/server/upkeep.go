package server

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

const (
	flushEvery = time.Minute
	purgeEvery = time.Hour
	// maxPurge bounds what one step deletes, which others of the account wait for.
	maxPurge = 5000
	// upkeepTimeout bounds the work for one account.
	upkeepTimeout = 30 * time.Second
)

// usage has when API keys were last used and nobody has written down yet.
type usage struct {
	mu       sync.Mutex
	accounts map[store.AccountID]map[string]int64 // Unix seconds by id of the key
}

func newUsage() *usage { return &usage{accounts: map[store.AccountID]map[string]int64{}} }

func (u *usage) touch(account store.AccountID, id string, t time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	keys := u.accounts[account]
	if keys == nil {
		keys = map[string]int64{}
		u.accounts[account] = keys
	}
	keys[id] = max(keys[id], t.Unix())
}

// of returns the key's last use, or 0.
func (u *usage) of(account store.AccountID, id string) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.accounts[account][id]
}

// written forgets what was written down, unless the key was used since.
func (u *usage) written(account store.AccountID, keys map[string]int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.accounts[account]
	for id, t := range keys {
		if now[id] == t {
			delete(now, id)
		}
	}
	if len(now) == 0 {
		delete(u.accounts, account)
	}
}

func (u *usage) snapshot() map[store.AccountID]map[string]int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := maps.Clone(u.accounts)
	for account, keys := range out {
		out[account] = maps.Clone(keys)
	}
	return out
}

// flush writes down when API keys were last used.
func (s *Server) flush(ctx context.Context) error {
	var errs []error
	for account, keys := range s.usage.snapshot() {
		if err := s.flushAccount(ctx, account, keys); err != nil {
			errs = append(errs, err)
			continue
		}
		s.usage.written(account, keys)
	}
	return errors.Join(errs...)
}

func (s *Server) flushAccount(ctx context.Context, account store.AccountID, keys map[string]int64) error {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	err := s.accounts.Store(account).Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		have, err := readAPIKeys(r)
		if err != nil {
			return nil, err
		}
		for id, t := range keys {
			// Another server may have seen it later, or it may have been forgotten.
			if k := have[id]; k != nil && k.GetLastUsedUnix() < t {
				b.Put(keyOf(kindUsed, id), binary.BigEndian.AppendUint64(nil, uint64(t)))
			}
		}
		return b, nil
	})
	if errors.Is(err, store.ErrNoAccount) {
		return nil
	}
	return err
}

// accountSet is a set of accounts.
type accountSet struct {
	mu  sync.Mutex
	set map[store.AccountID]bool
}

func (a *accountSet) add(id store.AccountID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		a.set = map[store.AccountID]bool{}
	}
	a.set[id] = true
}

// drain returns what is in the set, and empties it.
func (a *accountSet) drain() map[store.AccountID]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	set := a.set
	a.set = nil
	return set
}

// purge forgets the ids of commits of the day before yesterday and earlier, of
// accounts that something was written to.
func (s *Server) purge(ctx context.Context, now time.Time) error {
	var errs []error
	for account := range s.commits.drain() {
		for more := true; more; {
			var err error
			more, err = s.purgeAccount(ctx, account, now)
			errs = append(errs, err)
		}
		s.commits.add(account) // its ids of today become old too
	}
	return errors.Join(errs...)
}

var errEnough = errors.New("enough")

func (s *Server) purgeAccount(ctx context.Context, account store.AccountID, now time.Time) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	first := dayOf(now) - commitDays
	err = s.accounts.Store(account).Update(ctx, func(r store.Reader) (b store.Batch, err error) {
		more = false
		err = r.Scan(allCommits.Key, func(key, _ []byte) error {
			if dayOfCommit(key) >= first {
				return errEnough
			}
			if more = len(b) == maxPurge; more {
				return errEnough
			}
			b.Delete(append([]byte(nil), key...))
			return nil
		})
		if errors.Is(err, errEnough) {
			err = nil
		}
		return b, err
	})
	if errors.Is(err, store.ErrNoAccount) {
		return false, nil
	}
	return more && err == nil, err
}

// upkeep works until ctx ends.
func (s *Server) upkeep(ctx context.Context) {
	flush, purge := time.NewTicker(flushEvery), time.NewTicker(purgeEvery)
	defer flush.Stop()
	defer purge.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-flush.C:
			err = s.flush(ctx)
		case now := <-purge.C:
			err = s.purge(ctx, now)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("upkeep", "err", err)
		}
	}
}
