package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

func createKey(t testing.TB, c vaultv1connect.VaultClient, req *vaultv1.CreateAPIKeyRequest) (*vaultv1.APIKey, string, error) {
	t.Helper()
	resp, err := c.CreateAPIKey(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, "", err
	}
	return resp.Msg.GetApiKey(), resp.Msg.GetToken(), nil
}

func listKeys(t testing.TB, c vaultv1connect.VaultClient) []*vaultv1.APIKey {
	t.Helper()
	resp, err := c.ListAPIKeys(t.Context(), connect.NewRequest(&vaultv1.ListAPIKeysRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.GetApiKeys()
}

func revokeKey(t testing.TB, c vaultv1connect.VaultClient, req *vaultv1.RevokeAPIKeyRequest) ([]*vaultv1.APIKey, error) {
	t.Helper()
	resp, err := c.RevokeAPIKey(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetRevoked(), nil
}

func whoAmI(t testing.TB, ts *testServer, token string) (*vaultv1.WhoAmIResponse, error) {
	t.Helper()
	resp, err := ts.client(t, token).WhoAmI(t.Context(), connect.NewRequest(&vaultv1.WhoAmIRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func TestAPIKeys(t *testing.T) {
	ts := start(t)
	account, c := admin(t, ts)
	begin := time.Now().Unix()
	expires := begin + 3600
	key, token, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{
		Name: "ci", Scope: scopeRead, App: "shop", Env: "production", ExpiresUnix: expires, MachineKey: "0123456789abcdef",
	})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := apikey.Parse([]byte(token))
	if err != nil || store.AccountID(parsed.Account()) != account || parsed.ID() != key.GetId() {
		t.Errorf("%v, %v", key, err)
	}
	want := &vaultv1.APIKey{
		Id: key.GetId(), Name: "ci", Scope: scopeRead, App: "shop", Env: "production",
		CreatedUnix: key.GetCreatedUnix(), ExpiresUnix: expires, MachineKey: "0123456789abcdef",
	}
	if !proto.Equal(key, want) || key.GetCreatedUnix() < begin {
		t.Errorf("%v, not %v", key, want)
	}
	me, err := whoAmI(t, ts, token)
	if err != nil || !bytes.Equal(me.GetAccount(), account[:]) || me.GetVersion() != "test" || me.GetApiKey().GetId() != key.GetId() {
		t.Errorf("%v, %v", me, err)
	}
	// The list is the account's own, oldest first, and has the last use.
	_, elsewhere := admin(t, ts)
	if list := listKeys(t, elsewhere); len(list) != 1 || list[0].GetScope() != scopeAdmin {
		t.Errorf("another account has %v", list)
	}
	list := listKeys(t, c)
	if len(list) != 2 || list[0].GetCreatedUnix() > list[1].GetCreatedUnix() {
		t.Fatalf("%v", list)
	}
	for _, k := range list {
		if used := k.GetLastUsedUnix(); used < begin || used > time.Now().Unix() {
			t.Errorf("%s was last used at %d", k.GetName(), used)
		}
	}
	// Revoked: at once, for good, and still in the list.
	revoked, err := revokeKey(t, c, &vaultv1.RevokeAPIKeyRequest{Id: key.GetId()})
	if err != nil || len(revoked) != 1 || revoked[0].GetRevokedUnix() < begin {
		t.Fatalf("%v, %v", revoked, err)
	}
	_, err = whoAmI(t, ts, token)
	fails(t, "a revoked key", err, connect.CodeUnauthenticated, ReasonRevokedKey)
	again, err := revokeKey(t, c, &vaultv1.RevokeAPIKeyRequest{Id: key.GetId()})
	if err != nil || len(again) != 1 || again[0].GetRevokedUnix() != revoked[0].GetRevokedUnix() {
		t.Errorf("again: %v, %v", again, err)
	}
	if list := listKeys(t, c); len(list) != 2 {
		t.Errorf("%v", list)
	}
	// The server keeps no key: nothing that is stored has it.
	hidden := []string{token[8:], token[34:80]}
	err = ts.accounts.Store(account).View(t.Context(), func(r store.Reader) error {
		return r.Scan(nil, func(k, v []byte) error {
			for _, h := range hidden {
				if strings.Contains(string(k)+string(v), h) {
					t.Errorf("the record %q has the API key", k)
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hidden {
		if strings.Contains(ts.log.String(), h) {
			t.Error("the log has the API key")
		}
	}
}

// Many keys in a row are all found: revoking one does not make another, nor the
// next moment, wrong.
func TestRevokeAtOnce(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	_, keep, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: "keep", Scope: scopeRead})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		key, token, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: fmt.Sprint(i), Scope: scopeRead})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := whoAmI(t, ts, token); err != nil {
			t.Fatalf("a new key: %v", err)
		}
		if _, err := revokeKey(t, c, &vaultv1.RevokeAPIKeyRequest{Id: key.GetId()}); err != nil {
			t.Fatal(err)
		}
		_, err = whoAmI(t, ts, token)
		fails(t, "a revoked key", err, connect.CodeUnauthenticated, ReasonRevokedKey)
		if _, err := whoAmI(t, ts, keep); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExpiry(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	_, token, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: "short", Scope: scopeWrite, ExpiresUnix: time.Now().Unix() + 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := commitOps(t.Context(), ts.client(t, token), put("x", "1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key expires", 5*time.Second, func() bool {
		_, err := whoAmI(t, ts, token)
		return reasonOf(err) == ReasonExpiredKey
	})
	fails(t, "a commit", commitOps(t.Context(), ts.client(t, token), put("x", "2")), connect.CodeUnauthenticated, ReasonExpiredKey)
	// Its name is free again.
	if _, _, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: "short", Scope: scopeRead}); err != nil {
		t.Error(err)
	}
}

func TestCreateAPIKeyRefused(t *testing.T) {
	ts := start(t)
	account, c := admin(t, ts)
	good := func() *vaultv1.CreateAPIKeyRequest {
		return &vaultv1.CreateAPIKeyRequest{Name: "ok", Scope: scopeRead, App: "shop", Env: "production"}
	}
	for name, change := range map[string]func(*vaultv1.CreateAPIKeyRequest){
		"no name":          func(r *vaultv1.CreateAPIKeyRequest) { r.Name = "" },
		"space around":     func(r *vaultv1.CreateAPIKeyRequest) { r.Name = " x" },
		"two lines":        func(r *vaultv1.CreateAPIKeyRequest) { r.Name = "x\ny" },
		"escape":           func(r *vaultv1.CreateAPIKeyRequest) { r.Name = "x\x1b[2J" },
		"right to left":    func(r *vaultv1.CreateAPIKeyRequest) { r.Name = "x\u202ey" },
		"long name":        func(r *vaultv1.CreateAPIKeyRequest) { r.Name = strings.Repeat("x", maxName+1) },
		"no scope":         func(r *vaultv1.CreateAPIKeyRequest) { r.Scope = 0 },
		"unknown scope":    func(r *vaultv1.CreateAPIKeyRequest) { r.Scope = 4 },
		"negative scope":   func(r *vaultv1.CreateAPIKeyRequest) { r.Scope = -1 },
		"env alone":        func(r *vaultv1.CreateAPIKeyRequest) { r.App = "" },
		"no slug":          func(r *vaultv1.CreateAPIKeyRequest) { r.App = "Shop" },
		"prefix of a slug": func(r *vaultv1.CreateAPIKeyRequest) { r.App = "shop-" },
		"env no slug":      func(r *vaultv1.CreateAPIKeyRequest) { r.Env = "a/b" },
		"expired":          func(r *vaultv1.CreateAPIKeyRequest) { r.ExpiresUnix = time.Now().Unix() },
		"long expired":     func(r *vaultv1.CreateAPIKeyRequest) { r.ExpiresUnix = -1 },
		"beyond the end":   func(r *vaultv1.CreateAPIKeyRequest) { r.ExpiresUnix = maxTime + 1 },
		"fingerprint":      func(r *vaultv1.CreateAPIKeyRequest) { r.MachineKey = "0123456789ABCDEF" },
		"long fingerprint": func(r *vaultv1.CreateAPIKeyRequest) { r.MachineKey = "0123456789abcdef00" },
		"another account":  func(r *vaultv1.CreateAPIKeyRequest) { r.Account = make([]byte, 16) },
		"its own account":  func(r *vaultv1.CreateAPIKeyRequest) { r.Account = account[:] },
	} {
		req := good()
		change(req)
		_, _, err := createKey(t, c, req)
		fails(t, name, err, connect.CodeInvalidArgument, "")
	}
	if list := listKeys(t, c); len(list) != 1 {
		t.Errorf("%v", list)
	}
	if _, _, err := createKey(t, c, good()); err != nil {
		t.Fatal(err)
	}
	_, _, err := createKey(t, c, good())
	fails(t, "the name of a living key", err, connect.CodeAlreadyExists, "")
	// Those that go with machine keys are told apart by these.
	for range 2 {
		req := good()
		req.MachineKey = "0123456789abcdef"
		if _, _, err := createKey(t, c, req); err != nil {
			t.Error(err)
		}
	}
	for name, req := range map[string]*vaultv1.RevokeAPIKeyRequest{
		"neither": {}, "both": {Id: "0123456789abcdef", MachineKey: "0123456789abcdef"}, "no id": {Id: "ok"}, "no fingerprint": {MachineKey: "x"},
		"another account": {Id: "0123456789abcdef", Account: make([]byte, 16)},
	} {
		_, err := revokeKey(t, c, req)
		fails(t, "revoking "+name, err, connect.CodeInvalidArgument, "")
	}
	for name, req := range map[string]*vaultv1.RevokeAPIKeyRequest{
		"unknown id": {Id: "0123456789abcdef"}, "unknown machine key": {MachineKey: "ffffffffffffffff"},
	} {
		_, err := revokeKey(t, c, req)
		fails(t, "revoking "+name, err, connect.CodeNotFound, "")
	}
}

// All API keys that go with a machine key are revoked with it, and no others.
func TestRevokeByMachineKey(t *testing.T) {
	ts := start(t)
	_, c := admin(t, ts)
	tokens := map[string]string{}
	for i, fingerprint := range []string{"0123456789abcdef", "0123456789abcdef", "fedcba9876543210", ""} {
		key, token, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: fmt.Sprint(i), Scope: scopeRead, MachineKey: fingerprint})
		if err != nil {
			t.Fatal(err)
		}
		tokens[key.GetName()] = token
	}
	revoked, err := revokeKey(t, c, &vaultv1.RevokeAPIKeyRequest{MachineKey: "0123456789abcdef"})
	if err != nil || len(revoked) != 2 {
		t.Fatalf("%v, %v", revoked, err)
	}
	for name, token := range tokens {
		_, err := whoAmI(t, ts, token)
		if dead := reasonOf(err) == ReasonRevokedKey; dead != (name == "0" || name == "1") || !dead && err != nil {
			t.Errorf("key %s: %v", name, err)
		}
	}
}

// A restricted admin sees API keys that are restricted as much, and no others.
func TestRestrictedAdmin(t *testing.T) {
	ts := start(t)
	account, c := admin(t, ts)
	for _, g := range []grant{{}, {app: "shop"}, {app: "shop", env: "production"}, {app: "shop", env: "staging"}, {app: "blog"}} {
		for _, machine := range []string{"", "0123456789abcdef"} {
			if _, _, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: g.String(), Scope: scopeRead, App: g.app, Env: g.env, MachineKey: machine}); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, token := ts.apiKey(t, account, grant{scopeAdmin, "shop", "production"})
	restricted := ts.client(t, token)
	list := listKeys(t, restricted)
	if len(list) != 3 { // two of these and its own
		t.Errorf("%d keys", len(list))
	}
	for _, k := range list {
		if k.GetApp() != "shop" || k.GetEnv() != "production" {
			t.Errorf("it sees %v", k)
		}
	}
	revoked, err := revokeKey(t, restricted, &vaultv1.RevokeAPIKeyRequest{MachineKey: "0123456789abcdef"})
	if err != nil || len(revoked) != 1 || revoked[0].GetEnv() != "production" {
		t.Errorf("%v, %v", revoked, err)
	}
	alive := 0
	for _, k := range listKeys(t, c) {
		if k.GetMachineKey() != "" && k.GetRevokedUnix() == 0 {
			alive++
		}
	}
	if alive != 4 {
		t.Errorf("%d keys of the machine key are alive", alive)
	}
}

// An account has a bounded number of API keys: dead ones make room, the oldest
// first, and living ones do not.
func TestNumberOfAPIKeys(t *testing.T) {
	ts := start(t)
	account, c := admin(t, ts)
	own := listKeys(t, c)[0].GetId()
	err := ts.accounts.Store(account).Update(t.Context(), func(store.Reader) (b store.Batch, err error) {
		for i := range maxAPIKeys - 1 {
			token := apikey.New(account)
			k := &apiKey{token.Hash(), &vaultv1.APIKey{Id: token.ID(), Name: fmt.Sprint(i), Scope: scopeRead, CreatedUnix: int64(i + 1)}}
			switch {
			case i < 10:
				k.RevokedUnix = int64(1000 - i) // the first is the last to be revoked
			case i < 20:
				k.ExpiresUnix = int64(2000 + i)
			}
			value, err := k.encode()
			if err != nil {
				return nil, err
			}
			b.Put(keyOf(kindAPIKey, token.ID()), value)
		}
		return b, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ts.Server.keys.changed(account)
	for i := range 20 {
		if _, _, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: fmt.Sprint("new ", i), Scope: scopeRead}); err != nil {
			t.Fatal(err)
		}
		list := listKeys(t, c)
		if len(list) != maxAPIKeys {
			t.Fatalf("%d keys", len(list))
		}
		names := map[string]bool{}
		for _, k := range list {
			names[k.GetName()] = true
		}
		if gone := fmt.Sprint(9 - i); i < 10 && names[gone] {
			t.Errorf("after %d, key %s is there", i, gone)
		}
		if i == 9 && (names["0"] || !names["10"]) {
			t.Error("expired keys went before those that were revoked before")
		}
	}
	_, _, err = createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: "one more", Scope: scopeRead})
	fails(t, "one more", err, connect.CodeResourceExhausted, ReasonTooLarge)
	if _, err := revokeKey(t, c, &vaultv1.RevokeAPIKeyRequest{Id: own}); err != nil {
		t.Fatal(err)
	}
}

// The last use is written down in the background and at the end, and another
// server's later one stays.
func TestLastUsed(t *testing.T) {
	accounts := openAccounts(t)
	ts := startOn(t, accounts)
	account, c := admin(t, ts)
	id, token := ts.apiKey(t, account, grant{scope: scopeRead})
	stored := func() (at int64) {
		err := accounts.Store(account).View(t.Context(), func(r store.Reader) error {
			keys, err := readAPIKeys(r)
			at = keys[id].GetLastUsedUnix()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	begin := time.Now().Unix()
	if _, err := whoAmI(t, ts, token); err != nil {
		t.Fatal(err)
	}
	if stored() != 0 {
		t.Error("the request wrote it down")
	}
	if err := ts.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := stored(); at < begin {
		t.Errorf("it is %d", at)
	}
	if n := len(ts.usage.snapshot()); n != 0 {
		t.Errorf("%d accounts are to be written down still", n)
	}
	// Another server's later one.
	ts.usage.touch(account, id, time.Unix(begin-100, 0))
	if err := ts.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := stored(); at < begin {
		t.Errorf("it went back to %d", at)
	}
	// At the end.
	ts.usage.touch(account, id, time.Unix(begin+1000, 0))
	if err := ts.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := stored(); at != begin+1000 {
		t.Errorf("after the end it is %d", at)
	}
	_ = c
}

func TestOperator(t *testing.T) {
	ts := start(t)
	for _, name := range []string{"", " ", "a\nb", strings.Repeat("x", 257)} {
		_, err := ts.operator.CreateAccount(t.Context(), connect.NewRequest(&vaultv1.CreateAccountRequest{Name: name}))
		fails(t, "an account named "+name, err, connect.CodeInvalidArgument, "")
	}
	a, b := ts.account(t), ts.account(t)
	list, err := ts.operator.ListAccounts(t.Context(), connect.NewRequest(&vaultv1.ListAccountsRequest{}))
	if err != nil || len(list.Msg.GetAccounts()) != 2 || list.Msg.GetAccounts()[0].GetName() != "acme" || list.Msg.GetAccounts()[0].GetCreatedUnix() == 0 {
		t.Errorf("%v, %v", list, err)
	}
	none := make([]byte, 16)
	for name, id := range map[string][]byte{"none": nil, "short": a[:15], "unknown": none} {
		_, err1 := ts.operator.CreateAPIKey(t.Context(), connect.NewRequest(&vaultv1.CreateAPIKeyRequest{Account: id, Name: "x", Scope: scopeRead}))
		_, err2 := ts.operator.ListAPIKeys(t.Context(), connect.NewRequest(&vaultv1.ListAPIKeysRequest{Account: id}))
		_, err3 := ts.operator.RevokeAPIKey(t.Context(), connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: id, Id: "0123456789abcdef"}))
		want := connect.CodeInvalidArgument
		if name == "unknown" {
			want = connect.CodeNotFound
		}
		for _, err := range []error{err1, err2, err3} {
			fails(t, name+" account", err, want, "")
		}
	}
	id, token := ts.apiKey(t, a, grant{scope: scopeAdmin})
	_, err = ts.operator.RevokeAPIKey(t.Context(), connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: b[:], Id: id}))
	fails(t, "revoking in another account", err, connect.CodeNotFound, "")
	if _, err := whoAmI(t, ts, token); err != nil {
		t.Error(err)
	}
	resp, err := ts.operator.RevokeAPIKey(t.Context(), connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: a[:], Id: id}))
	if err != nil || len(resp.Msg.GetRevoked()) != 1 {
		t.Errorf("%v, %v", resp, err)
	}
	_, err = whoAmI(t, ts, token)
	fails(t, "a revoked key", err, connect.CodeUnauthenticated, ReasonRevokedKey)
}

// What is logged has no API key, no record and no name.
func TestLogHoldsNoSecret(t *testing.T) {
	ts := start(t, func(l *limits) { l.failed = 3 })
	account, c := admin(t, ts)
	hidden := []string{"planted-key", "planted-value", "planted-app", "planted-name", "planted-env"}
	_, token, err := createKey(t, c, &vaultv1.CreateAPIKeyRequest{Name: "planted-name", Scope: scopeWrite, App: "planted-app", Env: "planted-env"})
	if err != nil {
		t.Fatal(err)
	}
	if err := commitOps(t.Context(), c, put("planted-key", "planted-value"), put("aplanted-app", "planted-value")); err != nil {
		t.Fatal(err)
	}
	restricted := ts.client(t, token)
	var errs []error
	for _, c := range []vaultv1connect.VaultClient{c, restricted, ts.client(t, string(apikey.New(account).Text())), ts.client(t, "planted-key")} {
		_, err1 := read(t.Context(), c, rangeFor("planted-key", store.One))
		_, err2 := scan(t.Context(), c, rangeFor("planted-key", store.One))
		_, err3 := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Expect: []*vaultv1.Expect{expecting("planted-key", store.All)}}))
		err4 := commitAs(t.Context(), c, newCommitID(), []*vaultv1.Expect{expecting("planted-key", store.One)}, put("planted-key", "planted-value"))
		errs = append(errs, err1, err2, err3, err4)
	}
	text := ts.log.String()
	for _, h := range append(hidden, token[8:], token[34:90]) {
		if strings.Contains(text, h) {
			t.Errorf("the log has %q", h)
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line is not structured: %s", line)
		}
	}
	for _, want := range []string{`"msg":"refused"`, `"msg":"call"`, `"msg":"made an API key"`, idString(account)} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	// Errors do not have them either, but for what the key itself is for.
	if text := errors.Join(errs...).Error(); strings.Contains(text, "planted-key") || strings.Contains(text, "planted-value") || strings.Contains(text, "planted-name") {
		t.Errorf("errors have what they are about: %s", text)
	}
}
