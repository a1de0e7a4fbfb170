package server

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/opaquevault/ov/pkg/store"
)

// limits are the server's bounds. Tests have smaller ones.
type limits struct {
	requests, requestsEach int64 // in flight, in total and of one account
	waiting, waitingEach   int64 // calls that wait for a place among them
	memory, memoryEach     int64 // bytes of requests and answers
	spool, spoolEach       int64 // bytes of answers in files
	failed                 int   // wrong API keys that an address may send at once

	headers time.Duration // how long the head of a request may take, and a TLS handshake
	idle    time.Duration // how long a connection is kept on which there is no call
	admit   time.Duration // how long a call waits for its place
	body    time.Duration // how long a request of one message may take
	refused time.Duration // how long it may go on when it was refused: HTTP/1 reads on for a while
	part    time.Duration // how long the next part of a commit may take
	send    time.Duration // how long a client may take for a part of an answer
	trust   time.Duration // how long what is known of API keys counts
}

func defaultLimits() limits {
	return limits{
		requests: 1024, requestsEach: 128,
		waiting: 4096, waitingEach: 512,
		memory: 1 << 30, memoryEach: 384 << 20,
		spool: 16 << 30, spoolEach: 4 << 30,
		failed:  20,
		headers: 10 * time.Second, idle: 3 * time.Minute, admit: 5 * time.Second,
		body: time.Minute, refused: 5 * time.Second, part: 30 * time.Second, send: 30 * time.Second, trust: 3 * time.Second,
	}
}

// shares divides a thing up among accounts, so that whoever takes all that one
// account may have leaves the rest to others.
type shares struct {
	total, each int64

	mu   sync.Mutex
	used int64
	of   map[store.AccountID]int64
}

func newShares(total, each int64) *shares {
	return &shares{total: total, each: each, of: map[store.AccountID]int64{}}
}

// take reports whether the account has got n more.
func (s *shares) take(account store.AccountID, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > s.total || s.of[account]+n > s.each {
		return false
	}
	s.used += n
	s.of[account] += n
	return true
}

func (s *shares) give(account store.AccountID, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
	if s.of[account] -= n; s.of[account] == 0 {
		delete(s.of, account)
	}
}

// room is what one call has of a thing.
type room struct {
	shares  *shares
	account store.AccountID
	has     int64
}

// take reports whether the call has got n more.
func (r *room) take(n int64) bool {
	if !r.shares.take(r.account, n) {
		return false
	}
	r.has += n
	return true
}

// give gives some of it back.
func (r *room) give(n int64) {
	r.shares.give(r.account, n)
	r.has -= n
}

// leave gives back all.
func (r *room) leave() { r.give(r.has) }

// admit waits until there is a place for one more call of the account, for as
// long as its context or limits.admit lasts. Nothing of its request has been
// read yet.
func (s *Server) admit(ctx context.Context, account store.AccountID) (done func(), err error) {
	done = func() { s.inflight.give(account, 1) }
	if s.inflight.take(account, 1) {
		return done, nil
	}
	tooMany := busy("too many calls at a time")
	if !s.waiting.take(account, 1) {
		return nil, tooMany
	}
	defer s.waiting.give(account, 1)
	ctx, cancel := context.WithTimeout(ctx, s.limits.admit)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		select {
		case <-ctx.Done():
			return nil, tooMany
		case <-time.After(wait):
		}
		if s.inflight.take(account, 1) {
			return done, nil
		}
	}
}

// addressOf is whom a limit by address is about: an IPv4 address, or the /64 of
// an IPv6 address, of which one host has all.
func addressOf(remote string) netip.Prefix {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // a Unix socket
	}
	ip := a.Addr().Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // bits fit
	return p
}

const (
	// failedEvery is how often an address that has had limits.failed may send one
	// more wrong API key.
	failedEvery = 3 * time.Second
	// maxAddresses bounds the addresses that are remembered, some 250 bytes each.
	// When there are more, the one that failed longest ago is forgotten: whoever
	// has so many has that many bursts anyway.
	maxAddresses = 1 << 16
)

// failures counts wrong API keys by address.
type failures struct {
	burst     int
	addresses *lru.Cache[netip.Prefix, *rate.Limiter]
}

func newFailures(burst int) *failures {
	c, _ := lru.New[netip.Prefix, *rate.Limiter](maxAddresses) // the size is positive
	return &failures{burst, c}
}

// add counts one.
func (f *failures) add(address netip.Prefix) {
	l, ok := f.addresses.Get(address)
	if !ok {
		// Two at once may both make one: a failure is forgotten, no more.
		l = rate.NewLimiter(rate.Every(failedEvery), f.burst)
		f.addresses.Add(address, l)
	}
	l.Allow()
}

// over reports whether the address has had all that it may have for now.
func (f *failures) over(address netip.Prefix) bool {
	l, ok := f.addresses.Peek(address)
	return ok && l.Tokens() < 1
}
