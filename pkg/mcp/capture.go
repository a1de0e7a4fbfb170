package mcp

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// headSize and tailSize are how much of each stream goes to the client, in
// bytes: its beginning and its end, where programs say what they do and how it
// went.
const (
	headSize = 24 << 10
	tailSize = 40 << 10
)

// capture keeps the head and the tail of what is written to it.
type capture struct {
	head []byte
	tail []byte // a ring once it is full
	next int    // where the ring's oldest byte is
	left int64  // bytes between head and tail
}

// Write never fails.
func (c *capture) Write(p []byte) (int, error) {
	n := len(p)
	k := min(headSize-len(c.head), len(p))
	c.head = append(c.head, p[:k]...)
	p = p[k:]
	k = min(tailSize-len(c.tail), len(p))
	c.tail = append(c.tail, p[:k]...)
	p = p[k:]
	c.left += int64(len(p))
	p = p[max(0, len(p)-tailSize):]
	for len(p) > 0 {
		k := copy(c.tail[c.next:], p)
		c.next = (c.next + k) % tailSize
		p = p[k:]
	}
	return n, nil
}

// truncated reports whether bytes were left out.
func (c *capture) truncated() bool { return c.left > 0 }

// text returns what was kept as UTF-8. Bytes that are none, as in binary output,
// stand as \xNN.
func (c *capture) text() string {
	tail := append(append([]byte{}, c.tail[c.next:]...), c.tail[:c.next]...)
	if !c.truncated() {
		return printable(append(append([]byte{}, c.head...), tail...))
	}
	head, left := c.head, c.left
	// Half a character at the cut is left out too.
	for i := 1; i < utf8.UTFMax && i <= len(head); i++ {
		if b := head[len(head)-i]; utf8.RuneStart(b) {
			if !utf8.FullRune(head[len(head)-i:]) {
				head, left = head[:len(head)-i], left+int64(i)
			}
			break
		}
	}
	for i := 0; i < utf8.UTFMax-1 && len(tail) > 0 && !utf8.RuneStart(tail[0]); i++ {
		tail, left = tail[1:], left+1
	}
	return printable(head) + fmt.Sprintf("\n… %d bytes left out …\n", left) + printable(tail)
}

func printable(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var out strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&out, `\x%02x`, b[0])
		} else {
			out.Write(b[:n])
		}
		b = b[n:]
	}
	return out.String()
}
