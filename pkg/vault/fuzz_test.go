package vault

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
)

// FuzzRecords decodes a record of any bytes under a key of any bytes, as the
// kind that the key says, or what is inside of records: 'c' changes, 's' a
// slot's parameters, 't' an env's state, 'm' metadata. With mend, the checksum of a record in the
// clear is right. What is accepted is encoded to the same bytes again.
func FuzzRecords(f *testing.F) {
	f.Fuzz(func(t *testing.T, key, record []byte, mended bool) {
		if len(key) == 0 {
			return
		}
		if mended && len(record) >= 8 {
			record = mend(string(key), record)
		}
		body := func(again []byte) bool { // all but MAC and checksum
			return len(again) == len(record) && bytes.Equal(again[:len(again)-40], record[:len(record)-40])
		}
		macKey := bytes.Repeat([]byte{1}, 32)
		err, canonical := error(nil), true
		switch key[0] {
		case kindAccount:
			if string(key) != "A" {
				return
			}
			var a *account
			if a, err = decodeAccount(record); err == nil {
				canonical = body(a.encode(macKey)) && len(a.slots) <= maxSlots
				for _, s := range a.slots {
					_, _ = decodeArgon2id(s.params)
				}
			}
		case kindApp:
			var a *app
			if a, err = decodeApp(key, record); err == nil {
				canonical = body(a.encode(macKey)) && names.ValidSlug(a.slug)
			}
		case kindEnv:
			if len(key) < 1+idSize {
				return
			}
			var e *env
			if e, err = decodeEnv(&app{slug: "app", id: id(key[1 : 1+idSize])}, key, record); err == nil {
				canonical = body(e.encode(macKey)) && names.ValidSlug(e.slug)
			}
		case kindKey:
			var r *register
			if r, err = decodeRegister(key, record); err == nil {
				canonical = body(r.encode(macKey)) && bytes.Equal(r.key(), key)
				_ = r.describe(nil)
			}
		case kindData, kindValue:
			e := &env{app: &app{slug: "app"}, slug: "env", generations: []change{{1, fixtureTime, ReasonCreated}}}
			var p place
			if p, err = e.placeOf(id{}, key); err != nil {
				break
			}
			en := entry{place: p, data: record}
			if key[0] == kindValue {
				en.data = envelope.AppendFields([]byte{1, kindData}, nil, nil)
			}
			var c *ciphertext
			if c, err = en.parse(); err != nil {
				break
			}
			if key[0] == kindValue {
				if err = c.setValue(record); err != nil {
					break
				}
			}
			canonical = bytes.Equal(record, envelope.AppendFields([]byte{1, kindData}, c.dek, c.meta)) ||
				bytes.Equal(record, envelope.AppendFields([]byte{1, kindValue}, c.sealed))
			k, kerr := envelope.NewKey(macKey)
			if kerr != nil {
				t.Fatal(kerr)
			}
			if _, err := c.open(keys{env: k, index: hmac.New(sha256.New, macKey)}); !errors.Is(err, ErrDamaged) {
				t.Errorf("decrypted: %v", err)
			}
		case 'c':
			var cs []change
			if cs, err = decodeChanges(record); err == nil {
				canonical = bytes.Equal(encodeChanges(cs), record) && cs[0].number == 1 && last(cs).number == uint32(len(cs))
			}
		case 's':
			var p kek.Argon2id
			if p, err = decodeArgon2id(record); err == nil {
				canonical = bytes.Equal(encodeArgon2id(p), record) && p.Time >= 3 && p.Memory >= 64<<10 && p.Threads >= 4
			} else if p.Check() != nil {
				err = envelope.ErrMalformed // decoded, and refused
			}
		case 't':
			var st state
			if st, err = decodeState(record); err == nil {
				canonical = bytes.Equal(st.encode(), record) && st.counter > 0
			}
		case 'm':
			name, nameErr := nameIn(record)
			var m metadata
			if m, err = decodeMetadata(record); err == nil {
				canonical = bytes.Equal(m.encode(), record) && nameErr == nil && string(name) == m.name
			}
		}
		if !canonical {
			t.Errorf("%x %x is accepted and has another encoding", key, record)
		}
		if err == nil {
			return
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, envelope.ErrMalformed) {
			t.Errorf("untyped: %v", err)
		}
		if strings.IndexFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("%q is no line of text", err)
		}
	})
}
