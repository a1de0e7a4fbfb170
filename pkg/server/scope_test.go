package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// The records of an account as docs/FORMAT.md has them, as far as a server can
// tell: two apps, three envs, two machine keys, secrets.
type tenant struct {
	id                  store.AccountID
	shop, blog          string // ids of apps
	prod, staging, live string // ids of envs: two of shop's, one of blog's
	print               string // fingerprint of a machine key
}

func randomID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return string(b)
}

// aboutID is the record of an app or env with an id.
func aboutID(kind byte, id string) string {
	return string([]byte{1, kind, 0, 0, 0, 16}) + id + "…changes, mac, checksum"
}

func newTenant(t *testing.T, ts *testServer) tenant {
	t.Helper()
	a := tenant{ts.account(t), randomID(), randomID(), randomID(), randomID(), randomID(), "12345678"}
	_, token := ts.apiKey(t, a.id, grant{scope: scopeAdmin})
	var ops []*vaultv1.Op
	for key, value := range a.records() {
		ops = append(ops, put(key, value))
	}
	if err := commitOps(t.Context(), ts.client(t, token), ops...); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *tenant) records() map[string]string {
	all := map[string]string{
		"A":                                   "the account",
		"ashop":                               aboutID('a', a.shop),
		"ashop2":                              aboutID('a', "another app's id"),
		"ablog":                               aboutID('a', a.blog),
		"e" + a.shop + "production":           aboutID('e', a.prod),
		"e" + a.shop + "production2":          aboutID('e', "another env, 16b"),
		"e" + a.shop + "staging":              aboutID('e', a.staging),
		"e" + a.blog + "production":           aboutID('e', a.live),
		"k" + a.print + "\x00\x00\x00\x00":    "a machine key",
		"k" + "87654321" + "\x00\x00\x00\x00": "another machine key",
		"x":                                   "of a later format",
	}
	for _, at := range []string{a.shop + a.prod, a.shop + a.staging, a.blog + a.live} {
		for i := range 3 {
			all["d"+at+strings.Repeat(fmt.Sprint(i), 32)+"\x00\x00\x00\x01"] = fmt.Sprintf("metadata %d", i)
			all["v"+at+strings.Repeat(fmt.Sprint(i), 32)+"\x00\x00\x00\x01"] = fmt.Sprintf("value %d", i)
		}
	}
	return all
}

// restrictions of API keys, as bits: in which of them something is allowed.
const (
	whole = 1 << iota // the whole account
	inApp             // app shop
	inEnv             // env production of app shop
)

var restrictions = map[int]grant{
	whole: {}, inApp: {app: "shop"}, inEnv: {app: "shop", env: "production"},
}

// What may be read, by restriction, whatever the scope.
func (a *tenant) ranges() []struct {
	name    string
	r       *vaultv1.Range
	allowed int
} {
	name := strings.Repeat("0", 32)
	return []struct {
		name    string
		r       *vaultv1.Range
		allowed int
	}{
		{"everything", rangeFor("", store.All), whole},
		{"the last of everything", rangeFor("", store.Last), whole},
		{"another kind", rangeFor("x", store.One), whole},
		{"the account", rangeFor("A", store.One), whole | inApp | inEnv},
		{"all that begins as the account", rangeFor("A", store.All), whole},
		{"more than the account", rangeFor("AA", store.One), whole},
		{"all apps", rangeFor("a", store.All), whole},
		{"the app", rangeFor("ashop", store.One), whole | inApp | inEnv},
		{"all apps that begin as it", rangeFor("ashop", store.All), whole},
		{"the last of them", rangeFor("ashop", store.Last), whole},
		{"an app that begins as it", rangeFor("ashop2", store.One), whole},
		{"an app that it begins as", rangeFor("asho", store.One), whole},
		{"another app", rangeFor("ablog", store.One), whole},
		{"all envs", rangeFor("e", store.All), whole},
		{"half an app's envs", rangeFor("e"+a.shop[:15], store.All), whole},
		{"the app's envs", rangeFor("e"+a.shop, store.All), whole | inApp},
		{"the last of the app's envs", rangeFor("e"+a.shop, store.Last), whole | inApp},
		{"the env", rangeFor("e"+a.shop+"production", store.One), whole | inApp | inEnv},
		{"envs that begin as it", rangeFor("e"+a.shop+"production", store.All), whole | inApp},
		{"an env that begins as it", rangeFor("e"+a.shop+"production2", store.One), whole | inApp},
		{"another env", rangeFor("e"+a.shop+"staging", store.One), whole | inApp},
		{"another app's env", rangeFor("e"+a.blog+"production", store.One), whole},
		{"another app's envs", rangeFor("e"+a.blog, store.All), whole},
		{"all machine keys", rangeFor("k", store.All), whole},
		{"half a fingerprint", rangeFor("k"+a.print[:7], store.All), whole},
		{"a fingerprint", rangeFor("k"+a.print, store.All), whole | inApp | inEnv},
		{"the last of a fingerprint", rangeFor("k"+a.print, store.Last), whole | inApp | inEnv},
		{"one of a fingerprint", rangeFor("k"+a.print+"\x00\x00\x00\x00", store.One), whole | inApp | inEnv},
		{"all secrets", rangeFor("d", store.All), whole},
		{"all values", rangeFor("v", store.All), whole},
		{"secrets of half an app", rangeFor("d"+a.shop[:15], store.All), whole},
		{"secrets of the app", rangeFor("d"+a.shop, store.All), whole | inApp},
		{"values of the app", rangeFor("v"+a.shop, store.All), whole | inApp},
		{"the last value of the app", rangeFor("v"+a.shop, store.Last), whole | inApp},
		{"secrets of the app and half an env", rangeFor("d"+a.shop+a.prod[:15], store.All), whole | inApp},
		{"secrets of the env", rangeFor("d"+a.shop+a.prod, store.All), whole | inApp | inEnv},
		{"values of the env", rangeFor("v"+a.shop+a.prod, store.All), whole | inApp | inEnv},
		{"the last value of the env", rangeFor("v"+a.shop+a.prod, store.Last), whole | inApp | inEnv},
		{"a secret of the env", rangeFor("d"+a.shop+a.prod+name, store.Last), whole | inApp | inEnv},
		{"a value of the env", rangeFor("v"+a.shop+a.prod+name+"\x00\x00\x00\x01", store.One), whole | inApp | inEnv},
		{"one that is not there", rangeFor("v"+a.shop+a.prod+"?", store.One), whole | inApp | inEnv},
		{"secrets of another env", rangeFor("d"+a.shop+a.staging, store.All), whole | inApp},
		{"values of another env", rangeFor("v"+a.shop+a.staging, store.All), whole | inApp},
		{"secrets of another app", rangeFor("d"+a.blog, store.All), whole},
		{"values of another app's env", rangeFor("v"+a.blog+a.live, store.All), whole},
		{"the env's id in another app", rangeFor("v"+a.blog+a.prod, store.All), whole},
		{"the app's id in another place", rangeFor("v"+a.blog+a.shop, store.All), whole},
		{"the app's id without a kind", rangeFor(a.shop, store.All), whole},
		{"another kind with the app's id", rangeFor("x"+a.shop, store.All), whole},
	}
}

// What may be written, by restriction, with the scope write and with admin.
func (a *tenant) ops() []struct {
	name         string
	op           *vaultv1.Op
	write, admin int
} {
	env, other := "e"+a.shop+"production", "e"+a.shop+"staging"
	secret := a.shop + a.prod + strings.Repeat("7", 32) + "\x00\x00\x00\x01"
	return []struct {
		name         string
		op           *vaultv1.Op
		write, admin int
	}{
		{"the account", put("A", "x"), 0, whole},
		{"deleting the account", del("A"), 0, whole},
		{"beside the account", put("AA", "x"), whole, whole},
		{"a machine key", put("k"+a.print+"\x00\x00\x00\x01", "x"), 0, whole},
		{"deleting a machine key", del("k" + a.print + "\x00\x00\x00\x00"), 0, whole},
		{"the kind of machine keys", put("k", "x"), 0, whole},
		{"the app", put("ashop", aboutID('a', a.shop)), whole, whole},
		{"the app with another's id", put("ashop", aboutID('a', a.blog)), whole, whole},
		{"deleting the app", del("ashop"), whole, whole},
		{"another app", put("ablog", aboutID('a', a.blog)), whole, whole},
		{"the env", put(env, aboutID('e', a.prod)+"more"), whole | inApp | inEnv, whole | inApp | inEnv},
		{"the env with another's id", put(env, aboutID('e', a.staging)), whole | inApp, whole | inApp},
		{"the env as another kind", put(env, aboutID('a', a.prod)), whole | inApp, whole | inApp},
		{"the env cut", put(env, aboutID('e', a.prod)[:21]), whole | inApp, whole | inApp},
		{"deleting the env", del(env), whole | inApp, whole | inApp},
		{"another env", put(other, aboutID('e', a.staging)), whole | inApp, whole | inApp},
		{"a new env", put("e"+a.shop+"new", aboutID('e', randomID())), whole | inApp, whole | inApp},
		{"an env without a slug", put("e"+a.shop, "x"), whole, whole},
		{"an env of another app", put("e"+a.blog+"production", aboutID('e', a.prod)), whole, whole},
		{"a secret of the env", put("d"+secret, "x"), whole | inApp | inEnv, whole | inApp | inEnv},
		{"a value of the env", put("v"+secret, "x"), whole | inApp | inEnv, whole | inApp | inEnv},
		{"deleting a value of the env", del("v" + secret), whole | inApp | inEnv, whole | inApp | inEnv},
		{"a value of another env", put("v"+a.shop+a.staging+"x", "x"), whole | inApp, whole | inApp},
		{"deleting a value of another env", del("v" + a.shop + a.staging + "x"), whole | inApp, whole | inApp},
		{"a value of another app", put("v"+a.blog+a.live+"x", "x"), whole, whole},
		{"deleting a value of another app", del("v" + a.blog + a.live + "x"), whole, whole},
		{"a value beside all apps", put("v", "x"), whole, whole},
		{"another kind", put("x"+a.shop+a.prod, "x"), whole, whole},
	}
}

// Every range and op against every restriction and scope. What is refused has no
// effect and shows nothing.
func TestScopesOfRecords(t *testing.T) {
	ts := start(t)
	a := newTenant(t, ts)
	records := a.records()
	_, adminToken := ts.apiKey(t, a.id, grant{scope: scopeAdmin})
	admin := ts.client(t, adminToken)
	checks := 0
	for bit, g := range restrictions {
		for _, scope := range []vaultv1.Scope{scopeRead, scopeWrite, scopeAdmin} {
			g.scope = scope
			_, token := ts.apiKey(t, a.id, g)
			c := ts.client(t, token)
			for _, test := range a.ranges() {
				what := fmt.Sprintf("%s for %s reads %s", scopeName(scope), g, test.name)
				var want map[string]string
				if test.allowed&bit != 0 {
					want = within(records, test.r)
				}
				for how, get := range map[string]func(context.Context, vaultv1connect.VaultClient, ...*vaultv1.Range) (map[string]string, error){"Read": read, "Scan": scan} {
					checks++
					got, err := get(t.Context(), c, test.r)
					if want == nil {
						fails(t, what+" by "+how, err, connect.CodePermissionDenied, ReasonScope)
						// Nor when it stands beside what is allowed, or is only expected.
						_, err = get(t.Context(), c, rangeFor("A", store.One), test.r)
						fails(t, what+" besides the account by "+how, err, connect.CodePermissionDenied, ReasonScope)
					} else if err != nil || !same(got, want) {
						t.Errorf("%s by %s: %d records, not %d, %v", what, how, len(got), len(want), err)
					}
				}
				_, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Expect: []*vaultv1.Expect{{Range: test.r, Digest: digestOf(records, test.r)}}}))
				if want == nil {
					fails(t, what+" as an expectation", err, connect.CodePermissionDenied, ReasonScope)
				} else if err != nil {
					t.Errorf("%s as an expectation: %v", what, err)
				}
				if scope != scopeRead && want == nil {
					err := commitAs(t.Context(), c, newCommitID(), []*vaultv1.Expect{{Range: test.r, Digest: make([]byte, 32)}}, put("v"+a.shop+a.prod+"y", "x"))
					fails(t, what+" as a commit's expectation", err, connect.CodePermissionDenied, ReasonScope)
				}
			}
			for _, test := range a.ops() {
				checks++
				what := fmt.Sprintf("%s for %s writes %s", scopeName(scope), g, test.name)
				allowed := map[vaultv1.Scope]int{scopeWrite: test.write, scopeAdmin: test.admin}[scope]&bit != 0
				// A harmless op before it: all or nothing.
				err := commitOps(t.Context(), c, put("v"+a.shop+a.prod+"before", "x"), test.op)
				if !allowed {
					fails(t, what, err, connect.CodePermissionDenied, ReasonScope)
				} else if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				got, err := read(t.Context(), admin, rangeFor("", store.All))
				if err != nil {
					t.Fatal(err)
				}
				if same(got, records) == allowed {
					t.Errorf("%s: allowed %v, but what is there is unchanged: %v", what, allowed, !allowed)
				}
				if allowed {
					restore(t, admin, records, got)
				}
			}
		}
	}
	t.Logf("%d reads and writes", checks)
}

// within are the records in a range, by a second implementation of ranges.
func within(records map[string]string, r *vaultv1.Range) map[string]string {
	out, last := map[string]string{}, ""
	for k, v := range records {
		if k == string(r.GetKey()) || r.GetTake() != vaultv1.Take_TAKE_ONE && strings.HasPrefix(k, string(r.GetKey())) {
			out[k] = v
			last = max(last, k)
		}
	}
	if r.GetTake() == vaultv1.Take_TAKE_LAST && len(out) > 0 {
		return map[string]string{last: out[last]}
	}
	return out
}

func digestOf(records map[string]string, r *vaultv1.Range) []byte {
	found := within(records, r)
	var d store.Digest
	for len(found) > 0 {
		first := ""
		for k := range found {
			if first == "" || k < first {
				first = k
			}
		}
		d.Add([]byte(first), []byte(found[first]))
		delete(found, first)
	}
	return bytes.Clone(d.Sum())
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func restore(t *testing.T, admin vaultv1connect.VaultClient, want, got map[string]string) {
	t.Helper()
	var ops []*vaultv1.Op
	for k := range got {
		ops = append(ops, del(k))
	}
	for k, v := range want {
		ops = append(ops, put(k, v))
	}
	if err := commitOps(t.Context(), admin, ops...); err != nil {
		t.Fatal(err)
	}
}

// Nobody names the server's own records, whatever the scope, and nobody sees
// them.
func TestServersOwnRecords(t *testing.T) {
	ts := start(t)
	a := newTenant(t, ts)
	for _, g := range restrictions {
		g.scope = scopeAdmin
		_, token := ts.apiKey(t, a.id, g)
		c := ts.client(t, token)
		for _, key := range []string{"\x00", "\x00k", "\x00k12345678", "\x00u", "\x00c", "\x00n", "\x00\x00", "\x00" + strings.Repeat("\xff", 500)} {
			for _, take := range []store.Take{store.One, store.All, store.Last} {
				_, err := read(t.Context(), c, rangeFor(key, take))
				fails(t, "reading", err, connect.CodeInvalidArgument, "")
				_, err = scan(t.Context(), c, rangeFor(key, take))
				fails(t, "scanning", err, connect.CodeInvalidArgument, "")
				_, err = c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Expect: []*vaultv1.Expect{expecting(key, take)}}))
				fails(t, "expecting", err, connect.CodeInvalidArgument, "")
				fails(t, "expecting", commitAs(t.Context(), c, newCommitID(), []*vaultv1.Expect{expecting(key, take)}), connect.CodeInvalidArgument, "")
			}
			fails(t, "writing", commitOps(t.Context(), c, put(key, "x")), connect.CodeInvalidArgument, "")
			fails(t, "deleting", commitOps(t.Context(), c, del(key)), connect.CodeInvalidArgument, "")
		}
	}
	// An account of which nothing is left but them.
	empty := ts.account(t)
	_, token := ts.apiKey(t, empty, grant{scope: scopeAdmin})
	c := ts.client(t, token)
	for _, take := range []store.Take{store.All, store.Last} {
		if got, err := read(t.Context(), c, rangeFor("", take)); err != nil || len(got) != 0 {
			t.Errorf("in an empty account: %d records, %v", len(got), err)
		}
	}
	if _, err := c.Read(t.Context(), connect.NewRequest(&vaultv1.ReadRequest{Expect: []*vaultv1.Expect{expecting("", store.All)}})); err != nil {
		t.Errorf("an empty account is not empty: %v", err)
	}
	if err := commitOps(t.Context(), c, put("x", "y")); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t.Context(), c, rangeFor("", store.All), rangeFor("", store.Last)); err != nil || !same(got, map[string]string{"x": "y"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// outcome is what an RPC answers.
type outcome struct {
	code   connect.Code // 0: it succeeds
	reason string
}

var (
	fine      = outcome{}
	forbidden = outcome{connect.CodePermissionDenied, ReasonScope}
	unknown   = outcome{connect.CodeUnauthenticated, ReasonUnknownKey}
)

// Every RPC against every scope, restriction and state of an API key, about the
// caller's own records, another app's, another env's and another account's.
func TestScopeMatrix(t *testing.T) {
	ts := start(t, func(l *limits) { l.trust, l.failed = 0, 1<<30 })
	a, b := newTenant(t, ts), newTenant(t, ts)

	type call func(ctx context.Context, c vaultv1connect.VaultClient) error
	readOf := func(key string) call {
		return func(ctx context.Context, c vaultv1connect.VaultClient) error {
			_, err := read(ctx, c, rangeFor(key, store.All))
			return err
		}
	}
	scanOf := func(key string) call {
		return func(ctx context.Context, c vaultv1connect.VaultClient) error {
			_, err := scan(ctx, c, rangeFor(key, store.All))
			return err
		}
	}
	commitOf := func(key string) call {
		return func(ctx context.Context, c vaultv1connect.VaultClient) error { return commitOps(ctx, c, put(key, "x")) }
	}
	create := func(g grant) call {
		return func(ctx context.Context, c vaultv1connect.VaultClient) error {
			resp, err := c.CreateAPIKey(ctx, connect.NewRequest(&vaultv1.CreateAPIKeyRequest{Name: randomName(), Scope: scopeRead, App: g.app, Env: g.env}))
			if err == nil && grantOf(resp.Msg.GetApiKey()) != (grant{scopeRead, g.app, g.env}) {
				t.Errorf("asked for %v, got %v", g, resp.Msg.GetApiKey())
			}
			return err
		}
	}
	revoke := func(account store.AccountID, g grant) call {
		return func(ctx context.Context, c vaultv1connect.VaultClient) error {
			id, _ := ts.apiKey(t, account, grant{scopeRead, g.app, g.env})
			_, err := c.RevokeAPIKey(ctx, connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Id: id}))
			return err
		}
	}
	missing := outcome{connect.CodeNotFound, ""}

	// For each call: what it needs, and where it is allowed, by restriction. What
	// is not there for a restricted admin is not told from what is not there.
	matrix := []struct {
		name    string
		call    call
		needs   vaultv1.Scope
		allowed int
		beyond  outcome
	}{
		{"WhoAmI", func(ctx context.Context, c vaultv1connect.VaultClient) error {
			resp, err := c.WhoAmI(ctx, connect.NewRequest(&vaultv1.WhoAmIRequest{}))
			if err == nil && store.AccountID(resp.Msg.GetAccount()) != a.id {
				t.Errorf("it is of account %x", resp.Msg.GetAccount())
			}
			return err
		}, scopeRead, whole | inApp | inEnv, fine},
		{"Read of the env", readOf("v" + a.shop + a.prod), scopeRead, whole | inApp | inEnv, fine},
		{"Read of another env", readOf("v" + a.shop + a.staging), scopeRead, whole | inApp, forbidden},
		{"Read of another app", readOf("v" + a.blog), scopeRead, whole, forbidden},
		{"Read of another account's ids", readOf("v" + b.shop + b.prod), scopeRead, whole, forbidden},
		{"Scan of the env", scanOf("v" + a.shop + a.prod), scopeRead, whole | inApp | inEnv, fine},
		{"Scan of another env", scanOf("v" + a.shop + a.staging), scopeRead, whole | inApp, forbidden},
		{"Scan of another app", scanOf("v" + a.blog), scopeRead, whole, forbidden},
		{"Scan of another account's ids", scanOf("v" + b.shop + b.prod), scopeRead, whole, forbidden},
		{"Commit to the env", commitOf("v" + a.shop + a.prod + "new"), scopeWrite, whole | inApp | inEnv, fine},
		{"Commit to another env", commitOf("v" + a.shop + a.staging + "new"), scopeWrite, whole | inApp, forbidden},
		{"Commit to another app", commitOf("v" + a.blog + a.live + "new"), scopeWrite, whole, forbidden},
		{"Commit to another account's ids", commitOf("v" + b.shop + b.prod + "new"), scopeWrite, whole, forbidden},
		{"CreateAPIKey for the account", create(grant{}), scopeAdmin, whole, forbidden},
		{"CreateAPIKey for the app", create(grant{app: "shop"}), scopeAdmin, whole | inApp, forbidden},
		{"CreateAPIKey for the env", create(grant{app: "shop", env: "production"}), scopeAdmin, whole | inApp | inEnv, fine},
		{"CreateAPIKey for another env", create(grant{app: "shop", env: "staging"}), scopeAdmin, whole | inApp, forbidden},
		{"CreateAPIKey for another app", create(grant{app: "blog"}), scopeAdmin, whole, forbidden},
		{"CreateAPIKey for another app's env", create(grant{app: "blog", env: "production"}), scopeAdmin, whole, forbidden},
		{"ListAPIKeys", func(ctx context.Context, c vaultv1connect.VaultClient) error {
			_, err := c.ListAPIKeys(ctx, connect.NewRequest(&vaultv1.ListAPIKeysRequest{}))
			return err
		}, scopeAdmin, whole | inApp | inEnv, fine},
		{"RevokeAPIKey of the account", revoke(a.id, grant{}), scopeAdmin, whole, missing},
		{"RevokeAPIKey of the app", revoke(a.id, grant{app: "shop"}), scopeAdmin, whole | inApp, missing},
		{"RevokeAPIKey of the env", revoke(a.id, grant{app: "shop", env: "production"}), scopeAdmin, whole | inApp | inEnv, fine},
		{"RevokeAPIKey of another env", revoke(a.id, grant{app: "shop", env: "staging"}), scopeAdmin, whole | inApp, missing},
		{"RevokeAPIKey of another app", revoke(a.id, grant{app: "blog"}), scopeAdmin, whole, missing},
		{"RevokeAPIKey of another account", revoke(b.id, grant{}), scopeAdmin, 0, missing},
	}
	// Every RPC is in the matrix.
	for _, p := range procedures("Vault") {
		name, found := p[strings.LastIndexByte(p, '/')+1:], false
		for _, row := range matrix {
			found = found || strings.HasPrefix(row.name, name)
		}
		if !found {
			t.Errorf("%s is not in the matrix", name)
		}
	}
	before := everything(t, ts, b)
	checks := 0
	for bit, g := range restrictions {
		for _, scope := range []vaultv1.Scope{scopeRead, scopeWrite, scopeAdmin} {
			g.scope = scope
			for state, key := range keysOf(t, ts, a, b, g) {
				c := ts.client(t, key.token)
				for _, row := range matrix {
					checks++
					want := key.want
					if want == fine {
						switch {
						case scope < row.needs:
							want = forbidden
						case row.allowed&bit == 0:
							want = row.beyond
						}
					}
					err := row.call(t.Context(), c)
					what := fmt.Sprintf("%s with a key that is %s, %s for %s", row.name, state, scopeName(scope), g)
					if want == fine {
						if err != nil {
							t.Errorf("%s: %v", what, err)
						}
						continue
					}
					fails(t, what, err, want.code, want.reason)
				}
			}
		}
	}
	if after := everything(t, ts, b); !same(before, after) {
		t.Error("the other account's records changed")
	}
	t.Logf("%d calls", checks)
}

func randomName() string { return fmt.Sprintf("%x", randomID()) }

func everything(t *testing.T, ts *testServer, a tenant) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := ts.accounts.Store(a.id).View(t.Context(), func(r store.Reader) error {
		return r.Scan(nil, func(k, v []byte) error {
			if !private(k) {
				all[string(k)] = string(v)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

type stateOfKey struct {
	token string
	want  outcome // fine: by scope
}

// keysOf are API keys of one grant in every state.
func keysOf(t *testing.T, ts *testServer, a, b tenant, g grant) map[string]stateOfKey {
	t.Helper()
	_, good := ts.apiKey(t, a.id, g)
	id, revoked := ts.apiKey(t, a.id, g)
	if _, err := ts.operator.RevokeAPIKey(t.Context(), connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: a.id[:], Id: id})); err != nil {
		t.Fatal(err)
	}
	id, expired := ts.apiKey(t, a.id, g)
	expire(t, ts, a.id, id)
	// The same secret for another account, and a right id with a wrong secret
	// cannot be made: the id is of the hash.
	moved, err := apikey.Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]stateOfKey{
		"right":                     {good, fine},
		"revoked":                   {revoked, outcome{connect.CodeUnauthenticated, ReasonRevokedKey}},
		"expired":                   {expired, outcome{connect.CodeUnauthenticated, ReasonExpiredKey}},
		"unknown":                   {string(apikey.New(a.id).Text()), unknown},
		"of an unknown account":     {string(apikey.New(store.AccountID([]byte(randomID()))).Text()), unknown},
		"with another account's id": {string(withAccount(moved, b.id)), unknown},
		"mistyped":                  {good[:50] + "aaaa" + good[54:], unknown},
		"of another prefix":         {"ov_test_" + good[8:], unknown},
		"short":                     {good[:60], unknown},
		"absent":                    {"", unknown},
		"another text":              {"Bearer", unknown},
	}
}

// withAccount is the token with the same secret for another account.
func withAccount(t *apikey.Token, account store.AccountID) []byte {
	return tokenText(account, t.Text())
}

// expire makes an API key expire in the past, which no call does.
func expire(t *testing.T, ts *testServer, account store.AccountID, id string) {
	t.Helper()
	err := ts.accounts.Store(account).Update(t.Context(), func(r store.Reader) (b store.Batch, err error) {
		value, err := r.Get(keyOf(kindAPIKey, id))
		if err != nil {
			return nil, err
		}
		k, err := decodeAPIKey(keyOf(kindAPIKey, id), value)
		if err != nil {
			return nil, err
		}
		k.ExpiresUnix = time.Now().Add(-time.Second).Unix()
		if value, err = k.encode(); err != nil {
			return nil, err
		}
		b.Put(keyOf(kindAPIKey, id), value)
		return b, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ts.Server.keys.changed(account)
}
