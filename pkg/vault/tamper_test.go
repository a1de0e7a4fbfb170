package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
)

// reading is everything that can be read with a key, by what an error should
// name. It returns the first error, having checked that no value is wrong.
func reading(t testing.TB, s *Session, refs ...Ref) error {
	t.Helper()
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, ref := range refs {
		values := fixtureValues[ref]
		all, err := reveal(s, ref)
		note(err)
		for name, value := range all {
			if want := values[name]; len(want) == 0 || value != want[len(want)-1] {
				t.Errorf("%s: %s is %q", ref, name, value)
			}
		}
		if err == nil && len(all) != len(values) {
			t.Errorf("%s: %d secrets of %d", ref, len(all), len(values))
		}
		for name, want := range values {
			for i := range want {
				err := s.Reveal(t.Context(), ref, Select{Names: []string{name}, Version: uint32(i + 1)}, func(list []Secret) error {
					if len(list) != 1 || list[0].Name != name || string(list[0].Value) != want[i] || list[0].Version != uint32(i+1) {
						t.Errorf("%s: version %d of %s is wrong: %v", ref, i+1, name, list)
					}
					return nil
				})
				note(err)
			}
			history, err := s.History(t.Context(), ref, name)
			note(err)
			for i, v := range history {
				if v.Name != name || v.Version != uint32(len(want)-i) || v.Note != "set" || !v.Created.Equal(fixtureTime) {
					t.Errorf("%s: history of %s is %v", ref, name, history)
				}
			}
			if err == nil && len(history) != len(want) {
				t.Errorf("%s: %d versions of %s", ref, len(history), name)
			}
		}
		list, err := s.List(t.Context(), ref)
		note(err)
		if err == nil && len(list) != len(values) {
			t.Errorf("%s: a list of %d", ref, len(list))
		}
	}
	return first
}

var everywhere = []Ref{prod, staging, other}

// recordName is how an error should name the record at a store key.
func recordName(t testing.TB, m *memory, key string) string {
	t.Helper()
	apps, envs := map[string]string{}, map[string]string{}
	for _, k := range m.keys(kindApp) {
		a, err := decodeApp([]byte(k), m.records[k])
		if err != nil {
			t.Fatal(err)
		}
		apps[string(a.id[:])] = a.slug
		for _, ek := range m.keys(kindEnv) {
			if strings.HasPrefix(ek[1:], string(a.id[:])) {
				e, err := decodeEnv(a, []byte(ek), m.records[ek])
				if err != nil {
					t.Fatal(err)
				}
				envs[string(e.id[:])] = e.ref().String()
			}
		}
	}
	switch key[0] {
	case kindAccount:
		return ": account:"
	case kindApp:
		return ": app " + key[1:] + ":"
	case kindEnv:
		return ": env " + apps[key[1:17]] + "/" + key[17:] + ":"
	case kindKey:
		return fmt.Sprintf(": machine key register entry %x:", key[1:])
	}
	return fmt.Sprintf(": secret %x version %d in %s:", key[33:37], binary.BigEndian.Uint32([]byte(key[65:])), envs[key[17:33]])
}

// A change of any byte of any record is an error that names the record, and no
// value is ever wrong.
func TestEveryByteOfEveryRecord(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	if err := reading(t, s, everywhere...); err != nil {
		t.Fatal(err)
	}
	kinds := map[byte]int{}
	for key, record := range m.clone().records {
		name := recordName(t, m, key)
		// What does not concern the record goes on working.
		ref, elsewhere := prod, []Ref{other, staging}
		switch {
		case strings.Contains(name, staging.String()):
			ref, elsewhere = staging, []Ref{other, prod}
		case strings.Contains(name, "app other"), strings.Contains(name, other.String()):
			ref, elsewhere = other, []Ref{prod, staging}
		case strings.Contains(name, "app myapp"):
			elsewhere = []Ref{other}
		case key[0] == kindAccount:
			elsewhere = nil
		}
		masks := []byte{0x01, 0x80}
		if testing.Short() {
			masks = masks[:1]
		}
		for at := range record {
			for _, mask := range masks {
				changed := bytes.Clone(record)
				changed[at] ^= mask
				m.records[key] = changed
				kinds[key[0]]++
				where := fmt.Sprintf("byte %d of%s", at, name)

				err := readKind(t, m, s, key, ref)
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
					t.Fatalf("%s: got %v", where, err)
				}
				if at%16 == 0 && key[0] != kindKey { // slow, and not about the byte
					if err := reading(t, s, ref); !errors.Is(err, ErrDamaged) && ref != (Ref{}) && name != ": app default:" && !strings.Contains(name, "default/") {
						t.Fatalf("%s: reading all: %v", where, err)
					}
					if err := reading(t, s, elsewhere...); err != nil {
						t.Fatalf("%s breaks other records: %v", where, err)
					}
				}
			}
		}
		m.records[key] = record
	}
	if err := reading(t, s, everywhere...); err != nil {
		t.Error(err)
	}
	for _, kind := range []byte{kindAccount, kindApp, kindEnv, kindKey, kindData, kindValue} {
		if kinds[kind] < 100 {
			t.Errorf("%d changes of records of kind %q", kinds[kind], kind)
		}
	}
	t.Logf("changes tried, by kind: %v", kinds)
}

// readKind reads in the way that meets a record of the key's kind first.
func readKind(t testing.TB, m *memory, s *Session, key string, ref Ref) error {
	ctx := t.Context()
	switch key[0] {
	case kindAccount:
		for _, err := range []error{
			second(s.vault.Info(ctx)), second(s.vault.Apps(ctx)), second(s.List(ctx, prod)), s.Check(ctx),
			second(s.vault.Unlock(ctx, nil)), s.CreateApp(ctx, "new"), s.RotateApp(ctx, "myapp"),
		} {
			if !errors.Is(err, ErrDamaged) {
				return err
			}
		}
		return second(s.vault.MachineKeys(ctx))
	case kindApp, kindEnv:
		if key[0] == kindEnv {
			return second(s.vault.Apps(ctx))
		}
		for _, err := range []error{s.CreateEnv(ctx, Ref{key[1:], "new"}), s.RotateApp(ctx, key[1:]), s.DeleteApp(ctx, key[1:])} {
			if !errors.Is(err, ErrDamaged) {
				return err
			}
		}
		return second(s.vault.Apps(ctx))
	case kindKey:
		if err := second(s.vault.MachineKeys(ctx)); !errors.Is(err, ErrDamaged) {
			return err
		}
		f, _ := setup(t)
		return openAny(t, m, f)
	case kindData:
		_, err := s.describeAll(ref)
		return err
	}
	// A value: lists do not need it.
	if _, err := s.List(ctx, ref); err != nil {
		return fmt.Errorf("a list needs a value: %w", err)
	}
	for name, values := range fixtureValues[ref] {
		for i := range values {
			if err := s.Reveal(ctx, ref, Select{Names: []string{name}, Version: uint32(i + 1)}, func([]Secret) error { return nil }); err != nil {
				return err
			}
		}
	}
	return nil
}

// describeAll reads the history of every secret.
func (s *Session) describeAll(ref Ref) (out []Version, err error) {
	for name := range fixtureValues[ref] {
		h, herr := s.History(context.Background(), ref, name)
		out, err = append(out, h...), errors.Join(err, herr)
	}
	return out, err
}

func second[T any](_ T, err error) error { return err }

// Somebody who also mends the checksums of records in the clear meets their
// MACs: whoever holds a key that reaches the record gets no wrong value.
func TestMendedChecksums(t *testing.T) {
	f, m := setup(t)
	full := unlock(t, m, f.account)
	for _, kind := range []byte{kindAccount, kindApp, kindEnv, kindKey} {
		for _, key := range m.keys(kind) {
			record := m.records[key]
			if strings.HasPrefix(recordName(t, m, key), ": env default") || key == "adefault" {
				continue
			}
			name := recordName(t, m, key)
			ref := prod
			if strings.Contains(name, "staging") {
				ref = staging
			} else if strings.Contains(name, "other") {
				ref = other
			}
			for at := 2; at < len(record)-8; at++ {
				changed := bytes.Clone(record)
				changed[at] ^= 1 << (at % 8)
				m.records[key] = mend(key, changed)
				where := fmt.Sprintf("byte %d of%s", at, name)
				var errs []error
				switch kind {
				case kindAccount:
					errs = []error{second(full.List(t.Context(), ref)), full.CreateApp(t.Context(), "new"), full.RotateApp(t.Context(), "myapp"),
						derive(full, Ref{}), derive(full, Ref{App: "myapp"}), full.Check(t.Context()), full.DeleteApp(t.Context(), "myapp")}
				case kindApp:
					errs = []error{second(full.List(t.Context(), ref)), full.CreateEnv(t.Context(), Ref{key[1:], "new"}), full.RotateApp(t.Context(), key[1:]), full.DeleteApp(t.Context(), key[1:]),
						derive(full, Ref{App: key[1:]})}
				case kindEnv:
					errs = []error{second(full.List(t.Context(), ref)), derive(full, ref), full.RotateApp(t.Context(), ref.App), full.DeleteEnv(t.Context(), ref)}
				case kindKey:
					errs = []error{openAny(t, m, f)}
				}
				for i, err := range errs {
					// With another app's id, its envs are not there.
					elsewhere := kind == kindApp && i == 0 && errors.Is(err, ErrNotFound)
					if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrDeadKey) && !elsewhere {
						t.Errorf("%s: use %d: %v", where, i, err)
					}
				}
				if kind != kindKey {
					_ = reading(t, full, ref)
				}
				if m.writes > 0 {
					t.Fatalf("%s: something was written", where)
				}
			}
			m.records[key] = record
		}
	}
	if err := reading(t, full, everywhere...); err != nil {
		t.Error(err)
	}
}

func derive(s *Session, ref Ref) error {
	key, _, err := s.DeriveMachineKey(context.Background(), ref, "")
	key.Destroy()
	return err
}

// openAny opens the vault with each of the fixture's machine keys.
func openAny(t testing.TB, m *memory, f *fixture) error {
	t.Helper()
	for _, b := range [][]byte{f.account, f.app, f.env, f.foreign} {
		key, err := kek.LockedFrom(bytes.Clone(b))
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(m).UnlockKey(t.Context(), key)
		if err != nil {
			return err
		}
		s.Destroy()
	}
	return nil
}

// mend gives a record in the clear a right checksum, which takes no key.
func mend(key string, record []byte) []byte {
	body := record[:len(record)-8]
	sum := sha256Of(envelope.Bind("ov/v1/checksum", []byte(key), body))
	return append(bytes.Clone(body), sum[:8]...)
}

// Records exchanged between places, put into other places or under other
// numbers: an error, or what was there before.
func TestMovedRecords(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	tried := 0
	for _, kind := range []byte{kindData, kindValue, kindEnv, kindApp, kindKey} {
		keys := m.keys(kind)
		for i, a := range keys {
			for _, b := range keys[i+1:] {
				old := m.clone()
				m.records[a], m.records[b] = m.records[b], m.records[a]
				tried++
				// With its value beside it, too.
				if kind == kindData {
					if err := reading(t, s, everywhere...); !errors.Is(err, ErrDamaged) {
						t.Errorf("%s and %s exchanged: %v", recordName(t, old, a), recordName(t, old, b), err)
					}
					va, vb := "v"+a[1:], "v"+b[1:]
					m.records[va], m.records[vb] = m.records[vb], m.records[va]
				}
				var err error
				switch kind {
				case kindKey:
					_, err = s.vault.MachineKeys(t.Context())
				case kindApp, kindEnv:
					_, err = s.Apps(t.Context())
				default:
					err = reading(t, s, everywhere...)
				}
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("%s and %s exchanged: %v", recordName(t, old, a), recordName(t, old, b), err)
				}
				m.records = old.records
			}
		}
	}
	t.Logf("%d exchanges", tried)

	// A version under another number, at another name, in another env.
	for _, key := range m.keys(kindData) {
		name := recordName(t, m, key)
		for what, to := range map[string]string{
			"the next version":  key[:65] + string(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32([]byte(key[65:]))+1)),
			"the last version":  key[:65] + "\xff\xff\xff\xff",
			"version 0":         key[:65] + "\x00\x00\x00\x00",
			"an unused name":    key[:33] + strings.Repeat("n", 32) + key[65:],
			"a longer key":      key + "x",
			"a shorter key":     key[:68],
			"another env":       key[:17] + envID(t, m, staging) + key[33:],
			"another app's env": "d" + appID(t, m, other) + envID(t, m, other) + key[33:],
		} {
			if m.records[to] != nil || (what == "another env" && strings.Contains(name, "other")) {
				continue
			}
			old := m.clone()
			m.records[to], m.records["v"+to[1:]] = m.records[key], m.records["v"+key[1:]]
			if err := reading(t, s, everywhere...); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s copied to %s: %v", name, what, err)
			}
			m.records = old.records
		}
	}
}

func appID(t testing.TB, m *memory, ref Ref) string {
	t.Helper()
	a, err := readApp(&visit{Reader: m.snapshot()}, ref.App)
	if err != nil {
		t.Fatal(err)
	}
	return string(a.id[:])
}

func envID(t testing.TB, m *memory, ref Ref) string {
	t.Helper()
	e, err := readEnv(&visit{Reader: m.snapshot()}, ref)
	if err != nil {
		t.Fatal(err)
	}
	return string(e.id[:])
}

// Records from before a change of keys, put back one kind at a time.
func TestReplayedRecords(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	old := m.clone()
	if err := s.RotateApp(t.Context(), "myapp"); err != nil {
		t.Fatal(err)
	}
	if err := reading(t, s, everywhere...); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []byte{kindApp, kindEnv, kindData} {
		now := m.clone()
		for _, k := range old.keys(kind) {
			m.records[k] = old.records[k]
		}
		if err := reading(t, s, prod, staging); !errors.Is(err, ErrDamaged) {
			t.Errorf("old records of kind %q: %v", kind, err)
		}
		if err := reading(t, s, other); err != nil { // these are the same
			t.Errorf("old records of kind %q: %v", kind, err)
		}
		m.records = now.records
	}
	// A deleted secret's value put back under a name that was set again.
	if err := s.Delete(t.Context(), prod, []string{"EMPTY"}); err != nil {
		t.Fatal(err)
	}
	set(t, s, prod, "EMPTY", "no longer")
	for _, k := range m.keys(kindValue) {
		if before, ok := old.records[k]; ok && !bytes.Equal(before, m.records[k]) {
			m.records[k] = before // the old value under the new DEK
			is(t, second(reveal(s, prod, "EMPTY")), ErrDamaged, "version 1 in myapp/production")
		}
	}
}

// Records that are gone: what should be there and is not, is said.
func TestMissingRecords(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	for _, key := range m.keys(kindValue) {
		record := m.records[key]
		delete(m.records, key)
		if err := reading(t, s, everywhere...); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "its value is missing") {
			t.Errorf("%s without its value: %v", recordName(t, m, "d"+key[1:]), err)
		}
		m.records[key] = record
	}
	delete(m.records, "A")
	is(t, reading(t, s, prod), ErrDamaged, "account", "missing")
	is(t, second(s.vault.Info(t.Context())), ErrDamaged)
}

// Whoever can write the store, but has no key, can put any well-formed record in
// the clear there. None reaches a terminal unread or crashes a reader.
func TestForgedRecords(t *testing.T) {
	f, m := setup(t)
	s := unlock(t, m, f.account)
	forge := func(kind byte, key string, fields ...[]byte) {
		m.records[key] = envelope.EncodeClear(kind, []byte(key), nil, fields...)
	}
	id := bytes.Repeat([]byte{7}, 16)
	first := encodeChanges([]change{{1, fixtureTime, ReasonCreated}})
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"an app's slug that is no slug", func() { forge(kindApp, "a\x1b]0;title\x07", id, first) }},
		{"an app without a slug", func() { forge(kindApp, "a", id, first) }},
		{"an env's slug that is no slug", func() { forge(kindEnv, "e"+appID(t, f.mem, prod)+"\x1b[31m", id, first, id) }},
		{"an env without a slug", func() { forge(kindEnv, "e"+appID(t, f.mem, prod), id, first, id) }},
		{"an app made in the year 292277026596", func() {
			forge(kindApp, "afuture", id, encodeChanges([]change{{1, fixtureTime.AddDate(290_000, 0, 0), ReasonCreated}}))
		}},
		{"an app without generations", func() { forge(kindApp, "anone", id, nil) }},
		{"an app whose generations go back", func() {
			forge(kindApp, "aback", id, encodeChanges([]change{{2, fixtureTime, ReasonCreated}, {1, fixtureTime, ReasonRotation}}))
		}},
		{"an app with a generation 0", func() { forge(kindApp, "azero", id, encodeChanges([]change{{0, fixtureTime, ReasonCreated}})) }},
		{"an app with a short id", func() { forge(kindApp, "ashort", id[:15], first) }},
		{"a change without a reason", func() { forge(kindApp, "areason", id, encodeChanges([]change{{1, fixtureTime, 'x'}})) }},
	} {
		old := m.clone()
		c.do()
		if err := second(s.Apps(t.Context())); err == nil {
			t.Errorf("%s is listed", c.what)
		} else {
			is(t, err, ErrDamaged)
		}
		if err := reading(t, s, prod, other); err != nil && !strings.Contains(c.what, "env") {
			t.Errorf("%s breaks other records: %v", c.what, err)
		}
		m.records = old.records
	}

	entry := func(level, app, env, label string, epoch, appGen, envGen uint32) []byte {
		return envelope.EncodeClear(kindKey, []byte("kfingerpr\x00\x00\x00\x00"), nil, []byte(level), id, id, []byte(app), []byte(env), []byte(label),
			encodeTime(fixtureTime), envelope.Uint32(epoch), envelope.Uint32(appGen), envelope.Uint32(envGen))
	}
	for what, record := range map[string][]byte{
		"a level that is none":           entry("x", "myapp", "production", "", 1, 1, 1),
		"no level":                       entry("", "myapp", "production", "", 1, 1, 1),
		"an app's key without an app":    entry("p", "", "", "", 1, 1, 0),
		"an env's key without an env":    entry("e", "myapp", "", "", 1, 1, 1),
		"an account's key with an app":   entry("a", "myapp", "", "", 1, 1, 1),
		"an app that is no slug":         entry("p", "my\x1b[31mapp", "", "", 1, 1, 1),
		"an env that is no slug":         entry("e", "myapp", "../..", "", 1, 1, 1),
		"a label that is too long":       entry("a", "", "", strings.Repeat("l", MaxLabel+1), 1, 0, 0),
		"a label with control sequences": entry("a", "", "", "\x1b[31m", 1, 0, 0),
		"a label that is not UTF-8":      entry("a", "", "", "\xff", 1, 0, 0),
	} {
		m.records["kfingerpr\x00\x00\x00\x00"] = record
		if err := second(s.vault.MachineKeys(t.Context())); err == nil {
			t.Errorf("%s is listed", what)
		} else {
			is(t, err, ErrDamaged, "machine key register entry")
		}
	}
	for _, key := range []string{"k", "kshort", "kfingerpr\x00\x00\x00\x00x"} {
		m.records = f.mem.clone().records
		m.records[key] = entry("a", "", "", "", 1, 0, 0)
		is(t, second(s.vault.MachineKeys(t.Context())), ErrDamaged, "machine key register entry")
	}

	// The account record: no slot, unknown slots, Argon2id below the floor.
	m.records = f.mem.clone().records
	acc, err := readAccount(m.snapshot())
	if err != nil {
		t.Fatal(err)
	}
	good := acc.slots[0]
	password := locked(t, []byte(fixturePassword))
	for _, c := range []struct {
		what, want string
		err        error
		slots      []slot
	}{
		{"no slots", "", ErrWrongPassword, nil},
		{"a slot of another kind", "", ErrWrongPassword, []slot{{'t', good.params, good.wrapped}}},
		{"1 pass", "argon2id with 1 passes", ErrDamaged, []slot{{'p', envelope.Fields(envelope.Uint32(1), envelope.Uint32(64<<10), []byte{4}, id), good.wrapped}}},
		{"8 KiB", "argon2id with 8 KiB", ErrDamaged, []slot{{'p', envelope.Fields(envelope.Uint32(3), envelope.Uint32(8), []byte{4}, id), good.wrapped}}},
		{"1 TiB", "argon2id with 1073741824 KiB", ErrDamaged, []slot{{'p', envelope.Fields(envelope.Uint32(3), envelope.Uint32(1<<30), []byte{4}, id), good.wrapped}}},
		{"2^32-1 passes", "argon2id with 4294967295 passes", ErrDamaged, []slot{{'p', envelope.Fields(envelope.Uint32(1<<32-1), envelope.Uint32(64<<10), []byte{4}, id), good.wrapped}}},
		{"1 lane", "argon2id with 1 lanes", ErrDamaged, []slot{{'p', envelope.Fields(envelope.Uint32(3), envelope.Uint32(64<<10), []byte{1}, id), good.wrapped}}},
		{"a short salt", "a salt of 15 bytes", ErrDamaged, []slot{{'p', envelope.Fields(envelope.Uint32(3), envelope.Uint32(64<<10), []byte{4}, id[:15]), good.wrapped}}},
		{"no parameters", "0 fields instead of 4", ErrDamaged, []slot{{'p', nil, good.wrapped}}},
		{"many slots", "", ErrDamaged, slices.Repeat([]slot{{'p', good.params, make([]byte, 60)}}, 1000)},
	} {
		forged := *acc
		forged.slots = c.slots
		m.records["A"] = forged.encode(nil)
		is(t, second(s.vault.Unlock(t.Context(), password)), c.err, c.want)
	}
}

func sha256Of(b []byte) [32]byte { return sha256.Sum256(b) }
