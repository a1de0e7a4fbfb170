package remote

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"sync"
)

// A token is the API key, kept out of gRPC. gRPC wants a header's value as a
// string, which cannot be wiped, and remembers it for as long as the connection
// lasts (HPACK's dynamic table). So it gets a mark, which is no secret, and the
// mark is replaced by the key in the frames on their way into TLS, where they
// are encrypted in place.
//
// The mark is as long as what stands for it, so that no length in a frame
// changes, and made of characters that HPACK does not compress (RFC 7541,
// appendix B: 8 bits each), so that it is there as it is. Should that ever
// change, the server gets the mark, and refuses it.
type token struct {
	mark []byte

	mu  sync.Mutex
	key []byte // the caller's; nil after Close
}

const scheme = "Bearer "

func newToken(key []byte) *token {
	t := &token{mark: make([]byte, len(scheme)+len(key)), key: key}
	rand.Read(t.mark)
	for i, b := range t.mark {
		t.mark[i] = 'X' + b&1<<1 // X or Z
	}
	return t
}

// forget ends the use of the key.
func (t *token) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = nil
}

var errForgotten = errors.New("the API key is no longer there")

// put replaces the mark in a frame, if it is there, by the key.
func (t *token) put(frame []byte) (found bool, err error) {
	at := bytes.Index(frame, t.mark)
	if at < 0 {
		return false, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.key == nil {
		return false, errForgotten
	}
	copy(frame[at:], scheme)
	copy(frame[at+len(scheme):], t.key)
	return true, nil
}

// Of a frame's header (RFC 9113, section 4.1) 3 bytes are the payload's length
// and one is the type.
const (
	preface      = 24 // bytes, section 3.4
	frameHeader  = 9
	headers      = 0x1
	continuation = 0x9
)

// marked is a secured connection into which gRPC writes HTTP/2 frames. One
// goroutine writes at a time, as gRPC does.
type marked struct {
	net.Conn
	*token
	skip  int    // bytes that are passed on as they are
	frame []byte // the beginning of a frame that is looked at when it is whole
	out   []byte
}

func newMarked(c net.Conn, t *token) *marked { return &marked{Conn: c, token: t, skip: preface} }

// Write implements net.Conn. Whoever writes the beginning of a frame writes the
// rest of it too, so what is held back is not waited for in vain.
func (m *marked) Write(b []byte) (int, error) {
	// Room for all, so that append leaves nothing behind.
	m.out = slices.Grow(m.out[:0], len(m.frame)+len(b))
	secret := false
	for rest := b; len(rest) > 0; {
		if m.skip > 0 {
			n := min(m.skip, len(rest))
			m.out, rest, m.skip = append(m.out, rest[:n]...), rest[n:], m.skip-n
			continue
		}
		want := frameHeader
		if len(m.frame) >= frameHeader {
			want += length(m.frame)
		}
		n := min(want-len(m.frame), len(rest))
		m.frame, rest = append(m.frame, rest[:n]...), rest[n:]
		if len(m.frame) < frameHeader {
			continue
		}
		if kind := m.frame[3]; kind != headers && kind != continuation {
			m.skip = length(m.frame)
		} else if len(m.frame) < frameHeader+length(m.frame) {
			continue
		} else if found, err := m.put(m.frame); err != nil {
			return 0, err
		} else if found {
			secret = true
		}
		m.out = append(m.out, m.frame...)
		clear(m.frame)
		m.frame = m.frame[:0]
	}
	if len(m.out) == 0 {
		return len(b), nil
	}
	_, err := m.Conn.Write(m.out)
	if secret {
		clear(m.out)
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func length(frame []byte) int { return int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2]) }
