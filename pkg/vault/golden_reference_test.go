package vault_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/vault"
)

// The reference implementation finds in the golden vault what the vectors say,
// and every value on the way.
func TestGoldenByReference(t *testing.T) {
	for _, file := range vault.GoldenFiles {
		t.Run(file, func(t *testing.T) { goldenByReference(t, vault.ReadGolden(t, file)) })
	}
}

func goldenByReference(t *testing.T, g *vault.Golden) {
	records := map[string][]byte{}
	for _, r := range g.Records {
		records[string(r.Key)] = r.Value
	}
	v, err := readReference(g.Password, records)
	if err != nil {
		t.Fatal(err)
	}
	got := &vault.Golden{Password: g.Password, AccountID: v.account, Epoch: v.epoch, KEK: v.kek, Records: g.Records}
	for _, k := range v.slotKeys {
		got.Slots = append(got.Slots, vault.GoldenSlot{SlotKey: k})
	}
	for _, k := range v.keys {
		got.Keys = append(got.Keys, vault.GoldenKey{Level: k.level, App: k.app, Env: k.env, Key: k.key, MACKey: k.macKey, Fingerprint: k.print, IndexKey: k.idx, SumKey: k.sums})
	}
	for _, s := range v.states {
		got.States = append(got.States, vault.GoldenState{App: s.app, Env: s.env, Counter: s.counter, Secrets: s.secrets, Sum: s.sum})
	}
	for _, n := range v.names {
		got.Names = append(got.Names, vault.GoldenName{App: n.app, Env: n.env, Name: n.name, Index: n.index})
	}
	for _, s := range v.sealed {
		got.Sealed = append(got.Sealed, vault.GoldenSealed{Record: s.record, Field: s.field, Key: s.key, AAD: s.aad, Plaintext: s.plaintext})
	}
	for _, s := range v.secrets {
		got.Secrets = append(got.Secrets, vault.GoldenSecret{App: s.app, Env: s.env, Name: s.name, Version: s.version, Created: s.created, Note: s.note, Value: s.value})
	}
	for _, k := range v.issued {
		at := slices.IndexFunc(g.MachineKeys, func(m vault.GoldenMachineKey) bool {
			return bytes.Equal(m.Fingerprint, k.print) && m.Label == k.label
		})
		if at < 0 {
			t.Fatalf("an entry for key %x that the vectors do not have", k.print)
		}
		want := g.MachineKeys[at]
		if (want.Why == "") != (k.why == "") || !strings.Contains(want.Why, k.why) {
			t.Errorf("key %x is dead because %q, want %q", k.print, k.why, want.Why)
		}
		is := vault.GoldenMachineKey{Key: want.Key, Fingerprint: k.print, Level: k.level, App: k.app, Env: k.env, Label: k.label, Created: k.created, Why: want.Why}
		if !reflect.DeepEqual(is, want) {
			t.Errorf("got %+v, want %+v", is, want)
		}
		// The key itself has the fingerprint.
		if own := withKey("", "", "", want.Key).print; !bytes.Equal(own, k.print) {
			t.Errorf("key %x has the fingerprint %x", k.print, own)
		}
	}
	if len(v.issued) != len(g.MachineKeys) {
		t.Errorf("%d machine keys of %d", len(v.issued), len(g.MachineKeys))
	}
	got.MachineKeys = g.MachineKeys
	a, b := reflect.ValueOf(*got), reflect.ValueOf(*g)
	for i := range a.NumField() {
		name := a.Type().Field(i).Name
		if equalJSON(t, a.Field(i).Interface(), b.Field(i).Interface()) {
			continue
		}
		t.Errorf("%s differ", name)
	}
	if len(g.Sealed) != 1+5+len(g.States)+3*len(g.Secrets) || len(g.Keys) != 1+3+5 {
		t.Errorf("%d sealed fields and %d keys for %d secrets", len(g.Sealed), len(g.Keys), len(g.Secrets))
	}
	if _, err := readReference(g.Password+"x", records); err == nil {
		t.Error("a wrong password opens the vault")
	}
}

// The reference implementation reads what the program writes now, not only what
// it wrote once.
func TestReference(t *testing.T) {
	password, records, values := vault.FixtureRecords(t)
	v, err := readReference(password, records)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range v.secrets {
		n++
		if versions := values[vault.Ref{App: s.app, Env: s.env}][s.name]; int(s.version) > len(versions) || versions[s.version-1] != string(s.value) || s.note != "set" {
			t.Errorf("%s/%s %s version %d is wrong", s.app, s.env, s.name, s.version)
		}
	}
	want := 0
	for _, env := range values {
		for _, versions := range env {
			want += len(versions)
		}
	}
	if n != want || len(v.issued) != 4 || len(v.states) != 4 {
		t.Errorf("%d versions of %d, %d machine keys, %d states", n, want, len(v.issued), len(v.states))
	}
}

// equalJSON compares as the vectors are written: a value of no bytes is a value.
func equalJSON(t *testing.T, a, b any) bool {
	t.Helper()
	ja, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	jb, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(ja, jb)
}
