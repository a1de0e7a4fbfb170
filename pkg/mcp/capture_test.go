package mcp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// What is kept is the head and the tail, however the writes were cut.
func TestCapture(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, headSize, headSize + 1, headSize + tailSize, headSize + tailSize + 1, headSize + 3*tailSize + 7, 1 << 20} {
		all := make([]byte, size)
		for i := range all {
			all[i] = byte('a' + r.IntN(26))
		}
		want := string(all)
		if left := size - headSize - tailSize; left > 0 {
			want = fmt.Sprintf("%s\n… %d bytes left out …\n%s", all[:headSize], left, all[size-tailSize:])
		}
		for range 20 {
			var c capture
			for rest := all; len(rest) > 0; {
				n := min(1+r.IntN(1+r.IntN(2*tailSize)), len(rest))
				if got, err := c.Write(rest[:n]); got != n || err != nil {
					t.Fatal(got, err)
				}
				rest = rest[n:]
			}
			if got := c.text(); got != want || c.truncated() != (size > headSize+tailSize) {
				t.Fatalf("%d bytes became %d, truncated %v", size, len(got), c.truncated())
			}
		}
	}
}

// A character is not cut in two, and what is not UTF-8 is not dropped.
func TestCaptureText(t *testing.T) {
	for shift := range 4 {
		var c capture
		_, _ = c.Write([]byte(strings.Repeat("x", shift) + strings.Repeat("€", headSize)))
		got := c.text()
		if !utf8.ValidString(got) || strings.Contains(got, `\x`) || !c.truncated() {
			t.Errorf("shift %d: cut in two", shift)
		}
		var left int
		if _, err := fmt.Sscanf(strings.TrimLeft(got, "x€"), "\n… %d bytes left out …\n", &left); err != nil {
			t.Fatal(err)
		}
		if said, is := left, shift+3*headSize-(len(got)-len(fmt.Sprintf("\n… %d bytes left out …\n", left))); said != is {
			t.Errorf("says that %d bytes are missing, and %d are", said, is)
		}
	}
	var c capture
	_, _ = c.Write([]byte("a\xff\xc3(\x00€"))
	if got, want := c.text(), `a\xff\xc3(`+"\x00€"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if bytes.Contains([]byte(printable([]byte{0xe2, 0x82})), []byte("\ufffd")) {
		t.Error("a replacement character")
	}
}
