package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

// GoldenFiles are the golden vaults: what is written now, and what was written
// before envs had states.
var GoldenFiles = []string{"vault.json", "uncounted.json"}

const goldenDir = "testdata/golden"

// Hex is bytes that are hexadecimal in JSON.
type Hex []byte

func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *Hex) UnmarshalText(b []byte) (err error) { *h, err = hex.DecodeString(string(b)); return err }

// Golden is the golden vectors: docs/FORMAT.md, "Golden vectors".
type Golden struct {
	Password    string             `json:"password"`
	AccountID   Hex                `json:"account_id"`
	Epoch       uint32             `json:"epoch"`
	Slots       []GoldenSlot       `json:"slots"`
	KEK         Hex                `json:"kek"`
	Keys        []GoldenKey        `json:"keys"`
	States      []GoldenState      `json:"states,omitempty"`
	Names       []GoldenName       `json:"names"`
	Secrets     []GoldenSecret     `json:"secrets"`
	MachineKeys []GoldenMachineKey `json:"machine_keys"`
	Sealed      []GoldenSealed     `json:"sealed"`
	Records     []GoldenRecord     `json:"records"`
}

// The parts of Golden.
type (
	GoldenSlot struct {
		SlotKey Hex `json:"slot_key"`
	}
	GoldenKey struct {
		Level       string `json:"level"`
		App         string `json:"app,omitempty"`
		Env         string `json:"env,omitempty"`
		Key         Hex    `json:"key"`
		MACKey      Hex    `json:"mac_key"`
		Fingerprint Hex    `json:"fingerprint"`
		IndexKey    Hex    `json:"index_key,omitempty"`
		SumKey      Hex    `json:"sum_key,omitempty"`
	}
	GoldenState struct {
		App     string `json:"app"`
		Env     string `json:"env"`
		Counter uint64 `json:"counter"`
		Secrets uint32 `json:"secrets"`
		Sum     Hex    `json:"sum"`
	}
	GoldenName struct {
		App   string `json:"app"`
		Env   string `json:"env"`
		Name  string `json:"name"`
		Index Hex    `json:"index"`
	}
	GoldenSecret struct {
		App     string    `json:"app"`
		Env     string    `json:"env"`
		Name    string    `json:"name"`
		Version uint32    `json:"version"`
		Created time.Time `json:"created"`
		Note    string    `json:"note"`
		Value   Hex       `json:"value"`
	}
	GoldenMachineKey struct {
		Key         Hex       `json:"key"`
		Fingerprint Hex       `json:"fingerprint"`
		Level       string    `json:"level"`
		App         string    `json:"app,omitempty"`
		Env         string    `json:"env,omitempty"`
		Label       string    `json:"label"`
		Created     time.Time `json:"created"`
		Why         string    `json:"dead_because,omitempty"`
	}
	GoldenSealed struct {
		Record    Hex `json:"record"`
		Field     int `json:"field"`
		Key       Hex `json:"key"`
		AAD       Hex `json:"aad"`
		Plaintext Hex `json:"plaintext"`
	}
	GoldenRecord struct {
		About string `json:"about"`
		Key   Hex    `json:"key"`
		Value Hex    `json:"value"`
	}
)

// Store returns the records as a store.
func (g *Golden) store() *memory {
	m := &memory{records: map[string][]byte{}}
	for _, r := range g.Records {
		m.records[string(r.Key)] = bytes.Clone(r.Value)
	}
	return m
}

// ReadGolden reads the golden vectors.
func ReadGolden(t *testing.T, file string) *Golden {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(goldenDir, file))
	if err != nil {
		t.Fatal(err)
	}
	g := &Golden{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(g); err != nil {
		t.Fatal(err)
	}
	return g
}

// The program opens the golden vault and finds in it what the vectors say.
func TestGolden(t *testing.T) {
	if *update {
		b, err := json.MarshalIndent(makeGolden(t), "", " ")
		if err == nil {
			err = os.WriteFile(filepath.Join(goldenDir, GoldenFiles[0]), append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range GoldenFiles {
		t.Run(file, func(t *testing.T) { golden(t, ReadGolden(t, file)) })
	}
}

func golden(t *testing.T, g *Golden) {
	m := g.store()
	s, err := New(m).Unlock(t.Context(), locked(t, []byte(g.Password)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	kinds := map[byte]int{}
	for _, r := range g.Records {
		if kinds[r.Key[0]]++; r.About != strings.Trim(recordName(t, m, string(r.Key)), ": ") {
			t.Errorf("%x is about %q", r.Key, r.About)
		}
	}
	if len(kinds) != 6 {
		t.Errorf("kinds of records %v", kinds)
	}
	count := 0
	for _, want := range g.Secrets {
		ref := Ref{want.App, want.Env}
		err := s.Reveal(t.Context(), ref, Select{Names: []string{want.Name}, Version: want.Version}, func(list []Secret) error {
			if len(list) != 1 || !bytes.Equal(list[0].Value, want.Value) {
				t.Errorf("%s %s version %d is wrong", ref, want.Name, want.Version)
			}
			return nil
		})
		history, herr := s.History(t.Context(), ref, want.Name)
		if err := errors.Join(err, herr); err != nil {
			t.Error(err)
			continue
		}
		v := Version{want.Name, want.Version, want.Created, want.Note}
		if !slices.Contains(history, v) {
			t.Errorf("%v is not in %v", v, history)
		}
	}
	apps, err := s.Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range apps {
		for _, e := range a.Envs {
			list, err := s.List(t.Context(), Ref{a.Slug, e})
			if err != nil {
				t.Error(err)
			}
			for _, v := range list {
				h, _ := s.History(t.Context(), Ref{a.Slug, e}, v.Name)
				count += len(h)
			}
		}
	}
	if count != len(g.Secrets) || count < 8 {
		t.Errorf("%d versions in the vault, %d in the vectors", count, len(g.Secrets))
	}

	list, err := s.vault.MachineKeys(t.Context())
	if err != nil || len(list) != len(g.MachineKeys) {
		t.Fatalf("%d machine keys of %d: %v", len(list), len(g.MachineKeys), err)
	}
	dead := 0
	for _, k := range g.MachineKeys {
		want := MachineKey{Fingerprint: hex.EncodeToString(k.Fingerprint), Level: k.Level, App: k.App, Env: k.Env, Label: k.Label, Created: k.Created, Valid: k.Why == "", Why: k.Why}
		if !slices.ContainsFunc(list, func(k MachineKey) bool { k.Number = 0; return k == want }) {
			t.Errorf("%+v is not in %+v", want, list)
		}
		ms, err := s.vault.UnlockKey(t.Context(), locked(t, k.Key))
		if k.Why != "" {
			if dead++; !errors.Is(err, ErrDeadKey) || err.Error() != k.Why {
				t.Errorf("key %x: %v", k.Fingerprint, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("key %x: %v", k.Fingerprint, err)
			continue
		}
		for _, e := range g.Keys {
			if e.Level != "env" {
				continue
			}
			opens := k.Level == "account" || k.App == e.App && (k.Level == "app" || k.Env == e.Env)
			if err := second(reveal(ms, Ref{e.App, e.Env})); opens != (err == nil) {
				t.Errorf("key %x with %s/%s: %v", k.Fingerprint, e.App, e.Env, err)
			}
		}
		ms.Destroy()
	}
	if dead < 3 || len(list)-dead < 3 {
		t.Errorf("%d dead keys of %d", dead, len(list))
	}
}

// makeGolden makes a vault with a history, and takes it apart with the
// program's own functions. The vectors are the same each time as long as the
// program draws its random bytes in the same order, which nothing relies on.
func makeGolden(t *testing.T) *Golden {
	cryptotest.SetGlobalRandom(t, 1)
	ctx := context.Background()
	m := &memory{}
	v := New(m)
	now := time.Date(2026, 11, 1, 9, 0, 0, 0, time.UTC)
	v.now = func() time.Time { now = now.Add(time.Hour); return now }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	g := &Golden{Password: "correct horse: bätterie ☂"}
	first, password := locked(t, []byte("the first password")), locked(t, []byte(g.Password))
	must(v.Init(ctx, m.create, first))
	s, err := v.Unlock(ctx, first)
	must(err)
	put := func(ref Ref, note string, list ...Put) {
		t.Helper()
		must(second(s.Put(ctx, ref, list, PutOptions{Create: true, Note: note})))
	}
	type made struct {
		print string
		label string
		key   Hex
	}
	var keys []made
	derive := func(ref Ref, label string) {
		t.Helper()
		key, info, err := s.DeriveMachineKey(ctx, ref, label)
		must(err)
		keys = append(keys, made{info.Fingerprint, label, bytes.Clone(key.Bytes())})
		key.Destroy()
	}
	prod, dev := Ref{"myapp", "production"}, Ref{"myapp", "dev"}
	put(prod, "import", Put{Name: "DATABASE_URL", Value: []byte("postgres://app:hunter2@db/app?sslmode=verify-full")},
		Put{Name: "STRIPE_SECRET_KEY", Value: []byte("a key that opens nothing")}, Put{Name: "EMPTY"},
		Put{Name: "_b", Value: []byte{0, 1, 2, 0xfd, 0xfe, 0xff, '\n', '\r', '"', '\\'}})
	put(prod, "set", Put{Name: "DATABASE_URL", Value: []byte("postgres://app:hunter3@db/app?sslmode=verify-full")})
	put(prod, "set", Put{Name: "SET_AGAIN", Value: []byte("the first time")})
	put(prod, "set", Put{Name: "SET_AGAIN", Value: []byte("the second time")})
	must(s.Delete(ctx, prod, []string{"SET_AGAIN"}))
	put(prod, "set", Put{Name: "SET_AGAIN", Value: []byte("after a deletion")})
	put(dev, "set", Put{Name: "DATABASE_URL", Value: []byte("postgres://localhost/app")})
	must(s.CreateEnv(ctx, Ref{"myapp", "staging"}))
	derive(dev, "env that was deleted")
	must(s.DeleteEnv(ctx, dev))
	put(dev, "set", Put{Name: "DATABASE_URL", Value: []byte("postgres://localhost/again")})
	put(Ref{"other-app", "prod-eu-1"}, "set", Put{Name: "TOKEN", Value: []byte("tøken")})
	derive(Ref{App: "myapp"}, "app that was rotated")
	derive(prod, "app that was rotated")
	must(s.RotateApp(ctx, "myapp"))
	derive(prod, "before the new password")
	derive(Ref{}, "before the new password")
	must(v.ChangePassword(ctx, first, password))
	s.Destroy()
	s, err = v.Unlock(ctx, password)
	must(err)
	defer s.Destroy()
	derive(Ref{}, "laptop")
	derive(Ref{App: "myapp"}, "")
	derive(prod, "web-1")
	derive(prod, "web-2 (Zürich)")
	must(second(s.Rollback(ctx, prod, "DATABASE_URL", 1)))

	r := m.snapshot()
	acc, err := readAccount(r)
	must(err)
	g.AccountID, g.Epoch = acc.id[:], acc.epoch()
	level := func(level, app, env string, key []byte) GoldenKey {
		return GoldenKey{level, app, env, bytes.Clone(key), kek.MACKey(key), kek.Fingerprint(key), nil, nil}
	}
	sealed := func(record []byte, field int, key, box, aad []byte) []byte {
		t.Helper()
		plaintext, err := envelope.Open(key, box, aad)
		must(err)
		g.Sealed = append(g.Sealed, GoldenSealed{bytes.Clone(record), field, bytes.Clone(key), aad, plaintext})
		return plaintext
	}
	for _, slot := range acc.slots {
		p, err := decodeArgon2id(slot.params)
		must(err)
		key, err := kek.SlotKey(ctx, password, p)
		must(err)
		g.Slots = append(g.Slots, GoldenSlot{bytes.Clone(key.Bytes())})
		g.KEK = sealed(accountKey, 2, key.Bytes(), slot.wrapped, slot.aad(acc.id, acc.epoch()))
		key.Destroy()
	}
	g.Keys = append(g.Keys, level("account", "", "", g.KEK))
	must(scanApps(r, func(a *app) error {
		appKey, err := s.checkedAppKey(a)
		must(err)
		g.Keys = append(g.Keys, level("app", a.slug, "", appKey))
		return scanEnvs(r, a, func(e *env) error {
			envKey, err := s.envKey(e)
			must(err)
			k := level("env", a.slug, e.slug, envKey)
			k.IndexKey = sealed(envKeyOf(a.id, e.slug), 2, envKey, e.indexKey, e.indexKeyAAD(acc.id))
			st, err := decodeState(sealed(envKeyOf(a.id, e.slug), 3, envKey, e.sealedState, e.stateAAD(acc.id)))
			must(err)
			g.States = append(g.States, GoldenState{a.slug, e.slug, st.counter, st.secrets, st.sum[:]})
			k.SumKey, err = sumKey(k.IndexKey)
			must(err)
			g.Keys = append(g.Keys, k)
			return r.Scan(e.prefix(kindData), func(key, record []byte) error {
				p, err := e.placeOf(acc.id, key)
				must(err)
				f, err := envelope.DecodeSealed(kindData, record, 2)
				must(err)
				dek := sealed(p.key(kindData), 0, envKey, f[0], p.dekAAD(e.generation()))
				meta, err := decodeMetadata(sealed(p.key(kindData), 1, dek, f[1], p.aad(labelMeta)))
				must(err)
				if f, err = envelope.DecodeSealed(kindValue, m.records[string(p.key(kindValue))], 1); err != nil {
					return err
				}
				value := sealed(p.key(kindValue), 0, dek, f[0], p.aad(labelValue))
				g.Names = append(g.Names, GoldenName{a.slug, e.slug, meta.name, p.index[:]})
				g.Secrets = append(g.Secrets, GoldenSecret{a.slug, e.slug, meta.name, p.version, meta.created, meta.note, value})
				return nil
			})
		})
	}))
	list, err := v.MachineKeys(ctx)
	must(err)
	for _, k := range list {
		fingerprint, err := hex.DecodeString(k.Fingerprint)
		must(err)
		at := slices.IndexFunc(keys, func(m made) bool { return m.print == k.Fingerprint && m.label == k.Label })
		g.MachineKeys = append(g.MachineKeys, GoldenMachineKey{keys[at].key, fingerprint, k.Level, k.App, k.Env, k.Label, k.Created, k.Why})
	}
	for _, key := range slices.Sorted(maps.Keys(m.records)) {
		g.Records = append(g.Records, GoldenRecord{strings.Trim(recordName(t, m, key), ": "), Hex(key), m.records[key]})
	}
	return g
}
