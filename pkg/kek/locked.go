package kek

import (
	"crypto/subtle"
	"fmt"
	"sync"

	"github.com/opaquevault/ov/pkg/hint"
)

// MaxLocked bounds one Locked buffer, in bytes. RLIMIT_MEMLOCK is often 8 MiB
// for the whole process.
const MaxLocked = 1 << 20

// Memory is a place for secret bytes that stays out of swap and core dumps.
type Memory interface {
	Bytes() []byte // nil after Destroy
	Destroy()      // wipes and releases; safe to call twice
}

// Fallback allocates locked memory where the kernel has no memfd_secret(2).
// The agent replaces it with memguard (package guard). The ov client does not
// link memguard, whose init sets a hard RLIMIT_CORE of 0 that every child of
// `ov run` would inherit.
var Fallback = allocLocked

// Locked holds secret bytes in memory that is never swapped or dumped: a
// memfd_secret(2) mapping where the kernel has it, mlock(2) with MADV_DONTDUMP
// elsewhere. Guard pages surround it. One owner calls Destroy.
type Locked struct {
	hidden bool
	mu     sync.Mutex
	mem    Memory
	b      []byte
}

// NewLocked returns n zero bytes of locked memory, 1 <= n <= MaxLocked. It
// fails, rather than hand out ordinary memory, when the memory cannot be locked.
func NewLocked(n int) (*Locked, error) {
	if n < 1 || n > MaxLocked {
		return nil, fmt.Errorf("locked memory of %d bytes asked for, the bounds are 1 and %d", n, MaxLocked)
	}
	mem, err := allocSecret(n)
	hidden := err == nil
	if !hidden {
		if mem, err = Fallback(n); err != nil {
			return nil, hint.Wrap(fmt.Errorf("cannot lock %d bytes of memory: %w", n, err),
				"raise the limit of locked memory: ulimit -l, or LimitMEMLOCK= in the unit")
		}
	}
	return &Locked{mem: mem, b: mem.Bytes()[:n], hidden: hidden}, nil
}

// LockedFrom moves src into new locked memory and wipes src, on error too.
func LockedFrom(src []byte) (*Locked, error) {
	defer clear(src)
	l, err := NewLocked(max(len(src), 1))
	if err != nil {
		return nil, err
	}
	copy(l.b, src)
	l.b = l.b[:len(src)]
	return l, nil
}

// Bytes returns the buffer itself, valid until Destroy. It must not be kept.
func (l *Locked) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b
}

// Truncate wipes what lies after the first n bytes and shortens the buffer.
func (l *Locked) Truncate(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.b[n:])
	l.b = l.b[:n]
}

// Clone copies the buffer into locked memory of its own.
func (l *Locked) Clone() (*Locked, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := NewLocked(max(len(l.b), 1))
	if err != nil {
		return nil, err
	}
	copy(c.b, l.b)
	c.b = c.b[:len(l.b)]
	return c, nil
}

// Equal compares two buffers in a time that tells only whether their lengths
// are the same.
func (l *Locked) Equal(other *Locked) bool {
	return subtle.ConstantTimeCompare(l.Bytes(), other.Bytes()) == 1
}

// Hidden reports whether the bytes are in memfd_secret(2) memory, which not even
// root can read from outside.
func (l *Locked) Hidden() bool { return l.hidden }

// Destroy wipes and releases the memory. It may be called twice, and on nil.
func (l *Locked) Destroy() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mem == nil {
		return
	}
	l.mem.Destroy()
	l.mem, l.b = nil, nil
}
