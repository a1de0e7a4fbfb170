package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// fuzzed is a server with two accounts: one that is asked, with a key for one
// env, and one that nobody may reach.
type fuzzed struct {
	*Server
	handler http.Handler
	account store.AccountID
	tokens  []string // of the scopes read, write and admin, for one env and for all
	before  map[string]string
	allowed []string // prefixes of what the write key for one env may write
}

func newFuzzed(f *testing.F) *fuzzed {
	f.Helper()
	accounts := openAccounts(f)
	s := New(Options{Accounts: accounts, Spool: f.TempDir()})
	f.Cleanup(func() { _ = s.Close(f.Context()) })
	z := &fuzzed{Server: s, handler: s.Handler(), account: ownAccount(f, s), before: map[string]string{}}
	for _, g := range []grant{{app: "shop", env: "production"}, {}} {
		for _, scope := range []vaultv1.Scope{scopeRead, scopeWrite, scopeAdmin} {
			resp, err := s.createAPIKey(f.Context(), z.account, grant{scope: scopeAdmin}, &vaultv1.CreateAPIKeyRequest{
				Name: randomName(), Scope: scope, App: g.app, Env: g.env,
			})
			if err != nil {
				f.Fatal(err)
			}
			z.tokens = append(z.tokens, resp.GetToken())
		}
	}
	app, env, other := strings.Repeat("S", 16), strings.Repeat("P", 16), strings.Repeat("O", 16)
	z.before = map[string]string{
		"A": "account", "ashop": aboutID('a', app), "ablog": aboutID('a', other), "e" + app + "production": aboutID('e', env),
		"e" + app + "staging": aboutID('e', other), "d" + app + env + "x": "1", "v" + app + env + "x": "2", "v" + app + other + "x": "3",
		"k12345678\x00\x00\x00\x00": "machine key",
	}
	z.allowed = []string{"e" + app + "production", "d" + app + env, "v" + app + env}
	err := accounts.Store(z.account).Update(f.Context(), func(store.Reader) (b store.Batch, err error) {
		for k, v := range z.before {
			b.Put([]byte(k), []byte(v))
		}
		return b, nil
	})
	if err != nil {
		f.Fatal(err)
	}
	return z
}

// post sends a body as a message of a protocol.
func (z *fuzzed) post(procedure, contentType, token string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, procedure, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	z.handler.ServeHTTP(w, r)
	return w
}

// records are those of clients, by key.
func (z *fuzzed) records(t *testing.T) map[string]string {
	all := map[string]string{}
	err := z.accounts.Store(z.account).View(t.Context(), func(r store.Reader) error {
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

func enveloped(messages ...[]byte) (out []byte) {
	for _, m := range messages {
		out = append(out, 0)
		out = binary.BigEndian.AppendUint32(out, uint32(len(m)))
		out = append(out, m...)
	}
	return out
}

// No message to Read or Scan makes the server fail, shows a record beyond the
// scope of its API key, or one of the server's own.
func FuzzRead(f *testing.F) {
	z := newFuzzed(f)
	f.Fuzz(func(t *testing.T, message []byte, which uint8, asJSON bool) {
		n := int(which) % len(z.tokens)
		contentType := "application/proto"
		if asJSON {
			contentType = "application/json"
		}
		w := z.post("/ov.vault.v1.Vault/Read", contentType, z.tokens[n], message)
		z.check(t, w, n)
		if w.Code == http.StatusOK && !asJSON {
			var resp vaultv1.ReadResponse
			if err := proto.Unmarshal(w.Body.Bytes(), &resp); err != nil {
				t.Fatal(err)
			}
			for _, list := range resp.GetResults() {
				for _, rec := range list.GetRecords() {
					z.mayShow(t, n, string(rec.GetKey()))
				}
			}
		}
		w = z.post("/ov.vault.v1.Vault/Scan", "application/connect+proto", z.tokens[n], enveloped(message))
		z.check(t, w, n)
	})
}

// check fails if the server did, or if an answer has what it must not have.
func (z *fuzzed) check(t *testing.T, w *httptest.ResponseRecorder, n int) {
	t.Helper()
	if w.Code == http.StatusInternalServerError || bytes.Contains(w.Body.Bytes(), []byte(`"internal"`)) {
		t.Errorf("the server failed: %s", w.Body)
	}
	if restricted := n < 3; restricted && bytes.Contains(w.Body.Bytes(), []byte(strings.Repeat("O", 16))) {
		t.Errorf("an API key for one env is shown another: %q", w.Body)
	}
	for _, token := range z.tokens {
		parsed, err := apikey.Parse([]byte(token))
		if err != nil {
			t.Fatal(err)
		}
		if h := parsed.Hash(); bytes.Contains(w.Body.Bytes(), h[:]) {
			t.Errorf("the hash of an API key is shown: %q", w.Body)
		}
	}
}

func (z *fuzzed) mayShow(t *testing.T, n int, key string) {
	t.Helper()
	if _, ok := z.before[key]; !ok {
		t.Errorf("a record %q that is no client's", key)
	}
	restricted := n < 3
	allowed := append([]string{"A", "ashop", "k12345678"}, z.allowed...)
	if restricted && !slices.ContainsFunc(allowed, func(p string) bool { return strings.HasPrefix(key, p) }) {
		t.Errorf("an API key for one env read %q", key)
	}
}

// No message to Commit makes the server fail, or writes beyond the scope of its
// API key.
func FuzzCommit(f *testing.F) {
	z := newFuzzed(f)
	f.Fuzz(func(t *testing.T, first, second []byte, which uint8) {
		n := int(which) % 3 // for one env
		body := enveloped(first)
		if len(second) > 0 {
			body = enveloped(first, second)
		}
		w := z.post("/ov.vault.v1.Vault/Commit", "application/connect+proto", z.tokens[n], body)
		z.check(t, w, n)
		after := z.records(t)
		var undo store.Batch
		for k := range after {
			if after[k] != z.before[k] {
				z.mayWrite(t, n, k, after[k])
				undo.Delete([]byte(k))
			}
		}
		for k, v := range z.before {
			if _, ok := after[k]; !ok {
				z.mayWrite(t, n, k, "")
			}
			undo.Put([]byte(k), []byte(v))
		}
		if same(after, z.before) {
			return
		}
		// The id too, or another commit with it is refused for that.
		err := z.accounts.Store(z.account).Update(t.Context(), func(r store.Reader) (store.Batch, error) {
			err := r.Scan(allCommits.Key, func(key, _ []byte) error {
				undo.Delete(bytes.Clone(key))
				return nil
			})
			return undo, err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func (z *fuzzed) mayWrite(t *testing.T, n int, key, value string) {
	t.Helper()
	if n == 0 {
		t.Errorf("an API key of scope read wrote %q", key)
	}
	if !slices.ContainsFunc(z.allowed, func(p string) bool { return strings.HasPrefix(key, p) }) {
		t.Errorf("an API key for one env wrote %q", key)
	}
	if key[0] == kindEnv && (key != z.allowed[0] || !strings.HasPrefix(value, z.before[key][:headSize])) {
		t.Errorf("an API key for one env made its env another: %q", value)
	}
}

// No header, path or protocol makes the server fail, or lets a stranger in.
func FuzzRequest(f *testing.F) {
	z := newFuzzed(f)
	f.Fuzz(func(t *testing.T, method, path, contentType, authorization, timeout string, body []byte) {
		r, err := http.NewRequestWithContext(t.Context(), method, "https://x/", bytes.NewReader(body))
		if err != nil {
			t.Skip(err)
		}
		r.URL.Path = path
		r.RequestURI = path
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", len(body)%256)
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Authorization", authorization)
		r.Header.Set("Connect-Timeout-Ms", timeout)
		r.Header.Set("Grpc-Timeout", timeout)
		w := httptest.NewRecorder()
		z.handler.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Errorf("the server failed: %s", w.Body)
		}
		if strings.HasPrefix(path, "/ov.") && w.Code == http.StatusOK && !strings.Contains(contentType, "grpc") && !strings.Contains(contentType, "connect") {
			t.Errorf("%s of %s succeeded without an API key: %s", method, path, w.Body)
		}
		if z.inflight.taken() != 0 || z.memory.taken() != 0 {
			t.Error("something is not given back")
		}
	})
}
