package envelope

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, KeySize) }

func TestSeal(t *testing.T) {
	for _, size := range []int{0, 1, 31, 32, 1000, 64 << 10} {
		plaintext := bytes.Repeat([]byte{7}, size)
		sealed, err := Seal(key(1), plaintext, []byte("aad"))
		if err != nil || len(sealed) != size+Overhead {
			t.Fatalf("%d bytes sealed to %d: %v", size, len(sealed), err)
		}
		got, err := Open(key(1), sealed, []byte("aad"))
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%d bytes: %v", size, err)
		}
		again, _ := Seal(key(1), plaintext, []byte("aad"))
		if bytes.Equal(sealed[:12], again[:12]) {
			t.Error("a nonce was used twice")
		}
		for what, c := range map[string][3][]byte{
			"another key":   {key(2), sealed, []byte("aad")},
			"other data":    {key(1), sealed, []byte("aae")},
			"no data":       {key(1), sealed, nil},
			"cut short":     {key(1), sealed[:len(sealed)-1], []byte("aad")},
			"longer":        {key(1), append(slices.Clone(sealed), 0), []byte("aad")},
			"less than tag": {key(1), sealed[:Overhead-1], []byte("aad")},
			"nothing":       {key(1), nil, []byte("aad")},
		} {
			if got, err := Open(c[0], c[1], c[2]); !errors.Is(err, ErrOpen) || got != nil {
				t.Errorf("%s of %d bytes: %v", what, size, err)
			}
		}
		for at := 0; at < len(sealed); at += 1 + size/200 {
			sealed[at] ^= 0x10
			if _, err := Open(key(1), sealed, []byte("aad")); !errors.Is(err, ErrOpen) {
				t.Errorf("byte %d of %d changed: %v", at, len(sealed), err)
			}
			sealed[at] ^= 0x10
		}
	}
	for _, n := range []int{0, 16, 24, 31, 33} {
		if _, err := Seal(make([]byte, n), nil, nil); err == nil {
			t.Errorf("a key of %d bytes seals", n)
		}
		if _, err := Open(make([]byte, n), make([]byte, 100), nil); err == nil || errors.Is(err, ErrOpen) {
			t.Errorf("a key of %d bytes: %v", n, err)
		}
	}
}

// The layout is nonce, ciphertext, tag: test case 16 of the GCM submission's
// appendix B, with its nonce in front.
func TestSealLayout(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := unhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
	sealed := unhex("cafebabefacedbaddecaf888" +
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
		"76fc6ece0f4e1768cddf8853bb2d551b")
	plaintext := unhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
	aad := unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
	got, err := Open(k, sealed, aad)
	if err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("got %x: %v", got, err)
	}
	// And what Seal makes is opened by a plain GCM that is given the nonce apart.
	sealed, err = Seal(k, plaintext, aad)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := aes.NewCipher(k)
	gcm, _ := cipher.NewGCM(block)
	if got, err := gcm.Open(nil, sealed[:12], sealed[12:], aad); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("got %x: %v", got, err)
	}
}

// RFC 4231 test case 2.
func TestMAC(t *testing.T) {
	const want = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
	if got := hex.EncodeToString(MAC([]byte("Jefe"), []byte("what do ya want for nothing?"))); got != want {
		t.Errorf("got %s", got)
	}
}

func TestFields(t *testing.T) {
	list := [][]byte{[]byte("a"), nil, []byte("bcd")}
	b := Fields(list...)
	if got := hex.EncodeToString(b); got != "00000001"+"61"+"00000000"+"00000003"+"626364" {
		t.Errorf("got %s", got)
	}
	if got := string(Bind("label", list...)); got != "label"+string(b) {
		t.Errorf("got %q", got)
	}
	for n, ok := range map[int]bool{-1: true, 0: false, 1: false, 2: false, 3: true, 4: false} {
		got, err := Split(b, n)
		if ok != (err == nil) || !ok && !errors.Is(err, ErrMalformed) {
			t.Errorf("split into %d: %v", n, err)
		} else if ok && (len(got) != 3 || string(got[0]) != "a" || len(got[1]) != 0 || string(got[2]) != "bcd") {
			t.Errorf("split into %d: %q", n, got)
		}
	}
	for cut := 1; cut < len(b); cut++ {
		if got, err := Split(b[:cut], 3); err == nil {
			t.Errorf("the first %d bytes are %q", cut, got)
		}
	}
	for _, bad := range []string{"\x00", "\x00\x00\x00", "\xff\xff\xff\xff", "\x80\x00\x00\x00x", "\x00\x00\x00\x02x", "\x00\x00\x00\x00\x00"} {
		if _, err := Split([]byte(bad), -1); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if got, err := Split(nil, -1); err != nil || len(got) != 0 {
		t.Errorf("nothing: %q, %v", got, err)
	}
	// A field that is appended to does not run into the next one.
	got, _ := Split(b, 3)
	if _ = append(got[0], 'X'); !bytes.Equal(b, Fields(list...)) {
		t.Error("appending to a field changed its neighbour")
	}
	for _, n := range []uint32{0, 1, 1<<32 - 1} {
		if got, err := ParseUint32(Uint32(n)); got != n || err != nil {
			t.Errorf("%d is %d: %v", n, got, err)
		}
	}
	for _, n := range []uint64{0, 1, 1<<64 - 1} {
		if got, err := ParseUint64(Uint64(n)); got != n || err != nil {
			t.Errorf("%d is %d: %v", n, got, err)
		}
	}
	for n := range 10 {
		if _, err := ParseUint32(make([]byte, n)); (n == 4) != (err == nil) {
			t.Errorf("a number in %d bytes: %v", n, err)
		}
		if _, err := ParseUint64(make([]byte, n)); (n == 8) != (err == nil) {
			t.Errorf("a number in %d bytes: %v", n, err)
		}
	}
}

func TestClear(t *testing.T) {
	place := []byte("k1")
	b := EncodeClear('x', place, key(1), []byte("one"), nil)
	rec, err := DecodeClear('x', place, b, 2)
	if err != nil || string(rec.Fields[0]) != "one" || len(rec.Fields[1]) != 0 {
		t.Fatalf("got %v: %v", rec, err)
	}
	if err := rec.Verify(key(1)); err != nil {
		t.Error(err)
	}
	if err := rec.Verify(key(2)); !errors.Is(err, ErrOpen) {
		t.Errorf("another key: %v", err)
	}
	for what, c := range map[string]struct {
		kind  byte
		place string
		b     []byte
		n     int
		want  string
	}{
		"another kind":   {'y', "k1", b, 2, "kind 'x' instead of 'y'"},
		"another place":  {'x', "k2", b, 2, "the checksum does not match"},
		"a longer place": {'x', "k1\x00", b, 2, "the checksum does not match"},
		"fewer fields":   {'x', "k1", b, 1, "more than 1 fields"},
		"more fields":    {'x', "k1", b, 3, "2 fields instead of 3"},
		"nothing":        {'x', "k1", nil, 2, "0 bytes"},
		"too short":      {'x', "k1", b[:41], 2, "41 bytes"},
		"cut short":      {'x', "k1", b[:len(b)-1], 2, "the checksum does not match"},
	} {
		_, err := DecodeClear(c.kind, []byte(c.place), c.b, c.n)
		if !errors.Is(err, ErrMalformed) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for at := range b {
		for bit := range 8 {
			b[at] ^= 1 << bit
			if _, err := DecodeClear('x', place, b, 2); !errors.Is(err, ErrMalformed) {
				t.Errorf("bit %d of byte %d: %v", bit, at, err)
			}
			b[at] ^= 1 << bit
		}
	}
	// Another version says so, when the rest is whole.
	next := slices.Clone(b[:len(b)-8])
	next[0] = 2
	next = append(next, checksum(place, next)...)
	if _, err := DecodeClear('x', place, next, 2); err == nil || !strings.Contains(err.Error(), "format version 2, this program knows 1") {
		t.Errorf("version 2: %v", err)
	}
}

func TestSealedRecord(t *testing.T) {
	k, err := NewKey(key(1))
	if err != nil {
		t.Fatal(err)
	}
	b := BeginSealed(nil, 'd')
	b = AppendSealed(b, k, []byte("one"), []byte("aad 1"))
	b = AppendSealed(b, k, nil, []byte("aad 2"))
	f, err := DecodeSealed('d', b, 2)
	if err != nil || len(b) != 2+4+3+Overhead+4+Overhead {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	one, err1 := k.Open(nil, f[0], []byte("aad 1"))
	two, err2 := k.Open(nil, f[1], []byte("aad 2"))
	if err := errors.Join(err1, err2); err != nil || string(one) != "one" || len(two) != 0 {
		t.Errorf("got %q and %q: %v", one, two, err)
	}
	for what, c := range map[string]struct {
		kind byte
		b    []byte
		n    int
	}{
		"another kind": {'v', b, 2}, "more fields": {'d', b, 3}, "fewer fields": {'d', b, 1}, "cut short": {'d', b[:len(b)-1], 2},
		"one byte": {'d', b[:1], 2}, "nothing": {'d', nil, 2}, "another version": {'d', append([]byte{2}, b[1:]...), 2},
	} {
		if _, err := DecodeSealed(c.kind, c.b, c.n); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzFields: what Split accepts is what AppendFields makes of it, byte for
// byte, so no two encodings mean the same.
func FuzzFields(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, n int8) {
		list, err := Split(b, int(n))
		if err != nil {
			if !errors.Is(err, ErrMalformed) || list != nil {
				t.Errorf("%q, %v", list, err)
			}
			return
		}
		if n >= 0 && len(list) != int(n) {
			t.Errorf("%d fields instead of %d", len(list), n)
		}
		if again := Fields(list...); !bytes.Equal(again, b) {
			t.Errorf("%x is %x again", b, again)
		}
	})
}

// FuzzClear: what DecodeClear accepts is what EncodeClear makes of it.
func FuzzClear(f *testing.F) {
	f.Fuzz(func(t *testing.T, place, b []byte, n int8, mend bool) {
		if mend && len(b) >= sumSize {
			b = append(b[:len(b)-sumSize:len(b)-sumSize], checksum(place, b[:len(b)-sumSize])...)
		}
		rec, err := DecodeClear('A', place, b, int(n))
		if err != nil {
			if !errors.Is(err, ErrMalformed) || rec != nil {
				t.Errorf("%v, %v", rec, err)
			}
			return
		}
		again := EncodeClear('A', place, key(1), rec.Fields...)
		if mac := len(b) - sumSize - macSize; !bytes.Equal(again[:mac], b[:mac]) {
			t.Errorf("%x is %x again", b, again)
		}
		if (rec.Verify(key(1)) == nil) != bytes.Equal(again, b) {
			t.Error("the MAC is right for another record")
		}
	})
}
