package remote

import (
	"bytes"
	"errors"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// sink keeps what is written, and a copy of where it lay.
type sink struct {
	net.Conn
	all  bytes.Buffer
	lent [][]byte
}

func (s *sink) Write(b []byte) (int, error) {
	s.lent = append(s.lent, b)
	return s.all.Write(b)
}

// frames is what gRPC writes: two calls on one connection, the second of which
// refers to the first one's headers, and data that looks like them.
func frames(t *testing.T, mark string) []byte {
	t.Helper()
	var b, block bytes.Buffer
	b.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&b, nil)
	enc := hpack.NewEncoder(&block)
	data := bytes.Repeat([]byte("X\x00\x00\x01\x01Z"), 3000)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(f.WriteSettings())
	for id := uint32(1); id <= 5; id += 2 {
		block.Reset()
		check(enc.WriteField(hpack.HeaderField{Name: ":path", Value: "/ov.vault.v1.Vault/Read"}))
		check(enc.WriteField(hpack.HeaderField{Name: "authorization", Value: mark}))
		check(enc.WriteField(hpack.HeaderField{Name: "long", Value: string(bytes.Repeat([]byte("X"), 300))}))
		half := block.Len() * 3 / 4
		check(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes()[:half]}))
		check(f.WriteContinuation(id, true, block.Bytes()[half:]))
		check(f.WriteData(id, true, data))
		check(f.WritePing(false, [8]byte{1}))
	}
	return b.Bytes()
}

// The API key is what reaches the server, however the frames are cut, and it is
// nowhere before and after.
func TestMarked(t *testing.T) {
	key := []byte("ov_live_the-api-key-abcdefghijklmnopqrstuvwxyz")
	for _, size := range []int{1, 7, 100, 4096, 1 << 20} {
		tok := newToken(bytes.Clone(key))
		sent := frames(t, string(tok.mark))
		if bytes.Count(sent, tok.mark) != 1 {
			t.Fatalf("the mark is there %d times: HPACK has changed it", bytes.Count(sent, tok.mark))
		}
		want := bytes.Replace(bytes.Clone(sent), tok.mark, append([]byte("Bearer "), key...), 1)
		s := &sink{}
		m := newMarked(s, tok)
		for rest := bytes.Clone(sent); len(rest) > 0; {
			n, err := m.Write(rest[:min(size, len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !bytes.Equal(s.all.Bytes(), want) {
			t.Errorf("in pieces of %d: not what was meant", size)
		}
		for _, b := range append(s.lent, m.out[:cap(m.out)], m.frame[:cap(m.frame)]) {
			if bytes.Contains(b[:cap(b)], key[:16]) {
				t.Errorf("in pieces of %d: the key is left behind", size)
			}
		}
	}
}

func TestForgotten(t *testing.T) {
	tok := newToken([]byte("ov_live_key"))
	sent := frames(t, string(tok.mark))
	tok.forget()
	if _, err := newMarked(&sink{}, tok).Write(sent); !errors.Is(err, errForgotten) {
		t.Error(err)
	}
}

// Two marks are not the same, or what one writes could be taken for the other's.
func TestMarks(t *testing.T) {
	a, b := newToken(make([]byte, 84)), newToken(make([]byte, 84))
	if bytes.Equal(a.mark, b.mark) || len(a.mark) != len("Bearer ")+84 {
		t.Errorf("%s, %s", a.mark, b.mark)
	}
	if n := hpack.HuffmanEncodeLength(string(a.mark)); n < uint64(len(a.mark)) {
		t.Errorf("HPACK makes %d bytes of %d", n, len(a.mark))
	}
}
