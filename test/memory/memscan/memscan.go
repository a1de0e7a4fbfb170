//go:build linux

// Package memscan counts byte patterns in all the memory of another process
// that root can read, and in core files.
//
// It reads every mapping through /proc/PID/mem (proc(5)), which ignores page
// protection, so that pages without PROT_READ are scanned too. Pages that the
// kernel refuses, as it does those of memfd_secret(2), are counted and passed
// over. It never scans its own process: the patterns would be found there.
package memscan

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// MinPattern is the shortest pattern, in bytes: shorter ones match by chance.
const MinPattern = 8

// Pattern is a run of bytes to look for.
type Pattern struct {
	Name  string // of the secret: several forms share it
	Form  string // "raw", "hex", …
	Bytes []byte
}

// Forms returns the shapes in which a secret of at least 16 bytes may lie in
// memory: raw, its first and last 16 bytes (an AES-256 decryption schedule
// holds the halves of the key apart), hex in both cases, and base64 in both
// alphabets at each of the three offsets that it can have in a longer text.
func Forms(name string, secret []byte) []Pattern {
	upper := []byte(strings.ToUpper(hex.EncodeToString(secret)))
	forms := []Pattern{
		{name, "raw", bytes.Clone(secret)},
		{name, "hex", []byte(hex.EncodeToString(secret))},
		{name, "HEX", upper},
	}
	if len(secret) > 16 {
		forms = append(forms,
			Pattern{name, "raw, first 16", bytes.Clone(secret[:16])},
			Pattern{name, "raw, last 16", bytes.Clone(secret[len(secret)-16:])})
	}
	for _, alphabet := range []struct {
		name string
		enc  *base64.Encoding
	}{{"base64", base64.RawStdEncoding}, {"base64url", base64.RawURLEncoding}} {
		for shift := range 3 {
			forms = append(forms, Pattern{name, fmt.Sprintf("%s+%d", alphabet.name, shift), aligned(alphabet.enc, secret, shift)})
		}
	}
	// A secret without + or / in its base64 has one form in both alphabets,
	// one without a-f one in both cases: each is counted once.
	var unique []Pattern
	for _, f := range forms {
		if !slices.ContainsFunc(unique, func(u Pattern) bool { return bytes.Equal(u.Bytes, f.Bytes) }) {
			unique = append(unique, f)
		}
	}
	return unique
}

// aligned is the base64 of secret as it appears when shift bytes stand before
// it: without the characters that depend on its neighbours.
func aligned(enc *base64.Encoding, secret []byte, shift int) []byte {
	text := []byte(enc.EncodeToString(append(make([]byte, shift), secret...)))
	skip := []int{0, 2, 3}[shift]
	end := (shift + len(secret)) * 8 / 6 // characters made of whole secret bits
	return text[skip:end]
}

// Hit is one place where a pattern was found.
type Hit struct {
	Pattern
	Addr    uint64
	Mapping Mapping
}

func (h Hit) String() string {
	return fmt.Sprintf("%s (%s) at %#x in %s", h.Name, h.Form, h.Addr, h.Mapping)
}

// Report is the outcome of a scan.
type Report struct {
	Hits       []Hit
	Read       int64 // bytes that were compared
	Unreadable int64 // bytes that the kernel refused
}

// Count returns the hits of one secret, in any form.
func (r *Report) Count(name string) int {
	n := 0
	for _, h := range r.Hits {
		if h.Name == name {
			n++
		}
	}
	return n
}

// matcher finds many patterns at once by a table of their first eight bytes.
type matcher struct {
	filter  [1 << 16]bool // by hash of the first eight bytes
	byHead  map[uint64][]Pattern
	longest int
}

func newMatcher(patterns []Pattern) (*matcher, error) {
	m := &matcher{byHead: map[uint64][]Pattern{}}
	for _, p := range patterns {
		if len(p.Bytes) < MinPattern {
			return nil, fmt.Errorf("pattern %s (%s) has %d bytes, the least is %d", p.Name, p.Form, len(p.Bytes), MinPattern)
		}
		head := binary.LittleEndian.Uint64(p.Bytes)
		if head == 0 {
			return nil, fmt.Errorf("pattern %s (%s) begins with eight zero bytes, as untouched memory does", p.Name, p.Form)
		}
		m.filter[hash(head)] = true
		m.byHead[head] = append(m.byHead[head], p)
		m.longest = max(m.longest, len(p.Bytes))
	}
	if m.longest == 0 {
		return nil, fmt.Errorf("no patterns")
	}
	return m, nil
}

func hash(head uint64) uint16 { return uint16(head * 0x9E3779B97F4A7C15 >> 48) }

// find calls found for each pattern in buf that ends after the first old bytes.
func (m *matcher) find(buf []byte, old int, found func(p Pattern, at int)) {
	for i := 0; i+MinPattern <= len(buf); i++ {
		head := binary.LittleEndian.Uint64(buf[i:])
		if !m.filter[hash(head)] {
			continue
		}
		for _, p := range m.byHead[head] {
			if i+len(p.Bytes) > old && bytes.HasPrefix(buf[i:], p.Bytes) {
				found(p, i)
			}
		}
	}
}

// stream feeds a matcher with runs of memory, joining neighbours so that a
// pattern across the border of two reads is found.
type stream struct {
	m    *matcher
	buf  []byte
	end  uint64 // address after the last byte in buf
	hits func(p Pattern, addr uint64)
	read int64
}

func (s *stream) feed(addr uint64, data []byte) {
	if addr != s.end {
		s.buf = s.buf[:0]
	}
	if keep := s.m.longest - 1; len(s.buf) > keep {
		s.buf = append(s.buf[:0], s.buf[len(s.buf)-keep:]...)
	}
	old := len(s.buf)
	s.buf = append(s.buf, data...)
	s.end = addr + uint64(len(data))
	s.read += int64(len(data))
	start := s.end - uint64(len(s.buf))
	s.m.find(s.buf, old, func(p Pattern, at int) { s.hits(p, start+uint64(at)) })
}
