//go:build unix

package kek

import (
	"os"

	"github.com/awnumar/memcall"
)

// pages is a mapping with an inaccessible page on either side.
type pages struct {
	all, inner []byte
	unlock     bool
}

func (p *pages) Bytes() []byte { return p.inner }

func (p *pages) Destroy() {
	if p.all == nil {
		return
	}
	clear(p.inner)
	if p.unlock {
		_ = memcall.Unlock(p.inner)
	}
	free(p.all)
	p.all, p.inner = nil, nil
}

func roundToPage(n int) int {
	page := os.Getpagesize()
	return (n + page - 1) / page * page
}

// allocLocked is mlock(2)ed, MADV_DONTDUMP memory between two guard pages.
func allocLocked(n int) (Memory, error) {
	page := os.Getpagesize()
	inner := roundToPage(n)
	all, err := memcall.Alloc(inner + 2*page)
	if err != nil {
		return nil, err
	}
	p := &pages{all: all, inner: all[page : page+inner], unlock: true}
	if err := memcall.Lock(p.inner); err != nil {
		free(all)
		return nil, err
	}
	for _, guard := range [][]byte{all[:page], all[page+inner:]} {
		if err := memcall.Protect(guard, memcall.NoAccess()); err != nil {
			p.Destroy()
			return nil, err
		}
	}
	return p, nil
}
