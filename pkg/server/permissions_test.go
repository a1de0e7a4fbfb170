package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// procedures are the paths of a service's RPCs.
func procedures(service string) (list []string) {
	methods := vaultv1.File_ov_vault_v1_vault_proto.Services().ByName(protoreflect.Name(service)).Methods()
	for i := range methods.Len() {
		list = append(list, "/"+string(methods.Get(i).Parent().FullName())+"/"+string(methods.Get(i).Name()))
	}
	return list
}

func TestEveryCallHasAPermission(t *testing.T) {
	clients, operators := procedures("Vault"), procedures("Operator")
	if len(clients) < 7 || len(operators) < 5 {
		t.Fatalf("only %d and %d calls: is this the server's API?", len(clients), len(operators))
	}
	for _, p := range clients {
		if r := rules[p]; r.permission < permRead || r.permission > permAdmin {
			t.Errorf("%s has no permission for API keys", p)
		}
	}
	for _, p := range operators {
		if rules[p].permission != permOperator {
			t.Errorf("%s is not for the operator alone", p)
		}
	}
	for p, r := range rules {
		if r.timeout <= 0 || r.body <= 0 {
			t.Errorf("%s has no bounds", p)
		}
		if strings.HasPrefix(p, "/ov.") && !slices.Contains(clients, p) && !slices.Contains(operators, p) {
			t.Errorf("there is a rule for %s, which is no call", p)
		}
		if !strings.HasPrefix(p, "/ov.") && r.permission != permOpen {
			t.Errorf("%s is not of this API", p)
		}
	}
	// Those who may read are not those who may do the rest.
	for p, want := range map[string]permission{
		"WhoAmI": permRead, "Read": permRead, "Scan": permRead, "Commit": permWrite,
		"CreateAPIKey": permAdmin, "ListAPIKeys": permAdmin, "RevokeAPIKey": permAdmin,
	} {
		if got := rules["/ov.vault.v1.Vault/"+p].permission; got != want {
			t.Errorf("%s needs permission %d, not %d", p, got, want)
		}
	}
}

// What has no rule is not served, nor is a call of the operator's to clients, or
// the other way round.
func TestUnknownCalls(t *testing.T) {
	ts := start(t)
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	h, closeIdle := newHTTPClient("")
	defer closeIdle()
	paths := append(procedures("Operator"), "/", "/ov.vault.v1.Vault/", "/ov.vault.v1.Vault/Export", "/ov.vault.v1.Vault/read",
		"/ov.vault.v1.Vault/Read/", "//ov.vault.v1.Vault/Read", "/ov.vault.v1.Vault/Read/../Commit", "/ov.vault.v2.Vault/Read",
		"/debug/pprof/", "/metrics", "/"+strings.Repeat("x", 4000))
	for _, path := range paths {
		for _, contentType := range []string{"application/json", "application/grpc"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, ts.url+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("Content-Type", contentType)
			resp, err := h.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%.60s: status %d", path, resp.StatusCode)
			}
		}
	}
	if n := ts.refusals.count(RefusedPath); n != 2*len(paths) {
		t.Errorf("%d refusals were told of, not %d", n, 2*len(paths))
	}
}

// Health, and reflection where it is asked for, need no API key.
func TestOpenCalls(t *testing.T) {
	ts := start(t)
	h, closeIdle := newHTTPClient("")
	defer closeIdle()
	get := func(path string) int {
		resp, err := h.Get(ts.url + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	check := func() string {
		resp, err := h.Post(ts.url+"/grpc.health.v1.Health/Check", "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if get(livez) != 200 || get(readyz) != 200 || !strings.Contains(check(), `STATUS_SERVING"`) {
		t.Errorf("live %d, ready %d, health %s", get(livez), get(readyz), check())
	}
	ts.Drain()
	if get(livez) != 200 || get(readyz) != 503 || !strings.Contains(check(), `_NOT_SERVING"`) {
		t.Errorf("draining: live %d, ready %d, health %s", get(livez), get(readyz), check())
	}
}

// The API describes itself where that is asked for, to anybody, and only then.
func TestReflection(t *testing.T) {
	h, closeIdle := newHTTPClient("")
	defer closeIdle()
	ts := start(t)
	list := func(ts *testServer) ([]string, error) {
		stream := grpcreflect.NewClient(h, ts.url, connect.WithGRPC()).NewStream(t.Context())
		defer func() { _, _ = stream.Close() }()
		names, err := stream.ListServices()
		var all []string
		for _, n := range names {
			all = append(all, string(n))
		}
		return all, err
	}
	if names, err := list(ts); err != nil || !slices.Contains(names, "ov.vault.v1.Vault") || slices.Contains(names, "ov.vault.v1.Operator") {
		t.Errorf("%v, %v", names, err)
	}
	ts.Server.reflection = false
	if srv := httptest.NewServer(ts.Handler()); srv != nil {
		defer srv.Close()
		resp, err := http.Post(srv.URL+"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "application/grpc", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("status %d where it was not asked for", resp.StatusCode)
		}
	}
}

// A call that panics ends alone, and neither the client nor the log is told what
// the panic had in it.
func TestPanic(t *testing.T) {
	accounts := &panicking{Accounts: openAccounts(t)}
	ts := startOn(t, accounts)
	_, c := admin(t, ts)
	if err := ask(t, c); err != nil {
		t.Fatal(err)
	}
	accounts.on.Store(true)
	for what, err := range map[string]error{
		"a read":   func() error { _, err := read(t.Context(), c, rangeFor("x", store.One)); return err }(),
		"a scan":   func() error { _, err := scan(t.Context(), c, rangeFor("x", store.One)); return err }(),
		"a commit": commitOps(t.Context(), c, put("x", "1")),
	} {
		if err == nil || strings.Contains(err.Error(), "planted") {
			t.Errorf("%s: %v", what, err)
		}
	}
	accounts.on.Store(false)
	if err := commitOps(t.Context(), c, put("x", "1")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if text := ts.log.String(); strings.Contains(text, "planted") || strings.Count(text, `"msg":"panic"`) != 3 || !strings.Contains(text, "panicking") {
		t.Errorf("the log says %s", text)
	}
	eventually(t, "all is given back", patience, func() bool { return ts.inflight.taken() == 0 && ts.memory.taken() == 0 })
}

// panicking is storage that panics with something secret.
type panicking struct {
	store.Accounts
	on atomic.Bool
}

func (p *panicking) Store(id store.AccountID) store.Store {
	if p.on.Load() {
		panic("planted value")
	}
	return p.Accounts.Store(id)
}
