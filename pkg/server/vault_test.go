package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
)

// planted are secrets of which nothing may come out of a server.
var planted = map[string]string{
	"STRIPE_SECRET_NAME":  "sk_live_planted-value-of-stripe",
	"DATABASE_URL_NAME":   "postgres://planted:value@db.internal/shop",
	"ONE_MORE_NAME":       "planted ünïcode value, with spaces",
	"PRIVATE_KEY_OF_NAME": "-----BEGIN PLANTED KEY-----\nplantedplantedplanted\n-----END PLANTED KEY-----",
}

const plantedPassword = "planted correct horse battery staple"

func lockedFrom(t testing.TB, text string) *kek.Locked {
	t.Helper()
	l, err := kek.LockedFrom([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Destroy)
	return l
}

// newVault makes a real vault in the account, with the planted secrets in
// default/production.
func newVault(t testing.TB, st store.Store) *vault.Session {
	t.Helper()
	v := vault.New(st)
	create := func(ctx context.Context, b store.Batch) error {
		return st.Update(ctx, func(store.Reader) (store.Batch, error) { return b, nil })
	}
	if err := v.Init(t.Context(), create, lockedFrom(t, plantedPassword)); err != nil {
		t.Fatal(err)
	}
	s, err := v.Unlock(t.Context(), lockedFrom(t, plantedPassword))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Destroy)
	var puts []vault.Put
	for name, value := range planted {
		puts = append(puts, vault.Put{Name: name, Value: []byte(value)})
	}
	if _, err := s.Put(t.Context(), production, puts, vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

var production = vault.Ref{App: "default", Env: "production"}

// formsOf are the ways in which a text could stand in an answer.
func formsOf(text string) (out []string) {
	for cut := range 3 { // base64 of a text within another depends on where it is
		if len(text) > cut+3 {
			b := base64.RawStdEncoding.EncodeToString([]byte(text[cut : cut+(len(text)-cut)/3*3]))
			out = append(out, b, strings.NewReplacer("+", "-", "/", "_").Replace(b))
		}
	}
	quoted, _ := json.Marshal(text)
	return append(out, text, hex.EncodeToString([]byte(text)), strings.Trim(string(quoted), `"`))
}

// mustNotHold fails if an answer has anything of what is secret, in it or in any
// of the byte strings that are in its JSON.
func mustNotHold(t testing.TB, what string, answer []byte) {
	t.Helper()
	texts := [][]byte{answer}
	var decoded any
	if json.Unmarshal(answer, &decoded) == nil {
		texts = append(texts, byteStrings(decoded)...)
	}
	secrets := []string{plantedPassword}
	for name, value := range planted {
		secrets = append(secrets, name, value)
	}
	for _, secret := range secrets {
		for _, form := range formsOf(secret) {
			for _, text := range texts {
				if bytes.Contains(text, []byte(form)) {
					t.Errorf("%s holds %q as %q", what, secret, form)
				}
			}
		}
	}
}

// byteStrings are the strings in a JSON value that are base64, decoded.
func byteStrings(v any) (out [][]byte) {
	switch v := v.(type) {
	case string:
		if b, err := base64.StdEncoding.DecodeString(v); err == nil {
			out = append(out, b)
		}
	case []any:
		for _, e := range v {
			out = append(out, byteStrings(e)...)
		}
	case map[string]any:
		for _, e := range v {
			out = append(out, byteStrings(e)...)
		}
	}
	return out
}

func postJSON(t testing.TB, ts *testServer, token, procedure, body string) (int, []byte) {
	t.Helper()
	h, closeIdle := newHTTPClient("")
	defer closeIdle()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, ts.url+procedure, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := h.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

// Whoever asks with curl sees that only ciphertext comes back: all that a real
// vault has put there, with no value and no name of a secret in any form.
func TestOnlyCiphertextComesBack(t *testing.T) {
	ts := start(t)
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	newVault(t, ts.accounts.Store(account))
	const everything = `{"ranges":[{"take":"TAKE_ALL"}]}`

	status, answer := postJSON(t, ts, token, "/ov.vault.v1.Vault/Read", everything)
	var read struct {
		Results []struct {
			Records []struct{ Key, Value []byte }
		}
	}
	if err := json.Unmarshal(answer, &read); err != nil || status != 200 {
		t.Fatalf("status %d, %v: %.200s", status, err, answer)
	}
	kinds := map[byte]int{}
	for _, rec := range read.Results[0].Records {
		kinds[rec.Key[0]]++
	}
	if kinds['A'] != 1 || kinds['a'] != 1 || kinds['e'] != 1 || kinds['d'] != len(planted) || kinds['v'] != len(planted) {
		t.Errorf("the answer has %v of records", kinds)
	}
	mustNotHold(t, "Read", answer)
	// The looking itself works: slugs are in the clear.
	if !bytes.Contains(bytes.Join(byteStrings(decodeJSON(t, answer)), nil), []byte("production")) {
		t.Error("the answer does not even hold what is in the clear")
	}

	// The one record that holds the account, as the guide has it.
	status, answer = postJSON(t, ts, token, "/ov.vault.v1.Vault/Read", `{"ranges":[{"key":"QQ==","take":"TAKE_ONE"}]}`)
	if status != 200 || !bytes.Contains(answer, []byte(`"key":"QQ=="`)) {
		t.Errorf("status %d: %s", status, answer)
	}
	mustNotHold(t, "Read of the account", answer)
	for _, procedure := range []string{"WhoAmI", "ListAPIKeys"} {
		status, answer := postJSON(t, ts, token, "/ov.vault.v1.Vault/"+procedure, "{}")
		if status != 200 {
			t.Errorf("%s: status %d: %s", procedure, status, answer)
		}
		mustNotHold(t, procedure, answer)
	}
	status, answer = postJSON(t, ts, "ov_live_x", "/ov.vault.v1.Vault/Read", everything)
	if status != 401 || !bytes.Contains(answer, []byte(`"unauthenticated"`)) || bytes.Contains(answer, []byte("results")) {
		t.Errorf("without a key: status %d: %s", status, answer)
	}
	mustNotHold(t, "the log", []byte(ts.log.String()))
}

func decodeJSON(t testing.TB, b []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// The same by curl itself, over HTTP/1.1 and HTTP/2, and a GET where that is
// allowed.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	ts := start(t)
	account := ts.account(t)
	_, token := ts.apiKey(t, account, grant{scope: scopeAdmin})
	newVault(t, ts.accounts.Store(account))
	for name, args := range map[string][]string{
		"HTTP/1.1": {"--http1.1", "-d", `{"ranges":[{"take":"TAKE_ALL"}]}`, ts.url + "/ov.vault.v1.Vault/Read"},
		"HTTP/2":   {"--http2", "-d", `{"ranges":[{"take":"TAKE_ALL"}]}`, ts.url + "/ov.vault.v1.Vault/Read"},
		"GET":      {"-G", "--data-urlencode", "encoding=json", "--data-urlencode", "message={}", ts.url + "/ov.vault.v1.Vault/WhoAmI"},
	} {
		args = append([]string{"-sS", "--insecure", "--max-time", "20", "-H", "Authorization: Bearer " + token, "-H", "Content-Type: application/json"}, args...)
		out, err := exec.Command(curl, args...).CombinedOutput()
		if err != nil || !json.Valid(out) || bytes.Contains(out, []byte(`"code"`)) {
			t.Errorf("%s: %v: %.300s", name, err, out)
		}
		mustNotHold(t, name, out)
	}
}

// caOf writes the server's certificate where a client takes it for its CA.
func caOf(ts *testServer, t testing.TB) []byte {
	t.Helper()
	h, closeIdle := newHTTPClient("")
	defer closeIdle()
	resp, err := h.Get(ts.url + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: resp.TLS.PeerCertificates[0].Raw})
}

// An API key that is restricted to an app or env is enough for all that the
// machine key of it does in a real vault, and for nothing else.
func TestRestrictedKeysAreEnough(t *testing.T) {
	ts := start(t)
	account := ts.account(t)
	direct := ts.accounts.Store(account)
	owner := newVault(t, direct)
	if err := owner.CreateEnv(t.Context(), vault.Ref{App: "default", Env: "staging"}); err != nil {
		t.Fatal(err)
	}
	ca := caOf(ts, t)
	for _, test := range []struct {
		ref   vault.Ref
		grant grant
	}{
		{vault.Ref{App: "default"}, grant{app: "default"}},
		{production, grant{app: "default", env: "production"}},
	} {
		key, _, err := owner.DeriveMachineKey(t.Context(), test.ref, "a machine")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(key.Destroy)
		open := func(g grant) (*vault.Session, func()) {
			t.Helper()
			_, token := ts.apiKey(t, account, g)
			st, err := remote.New(remote.Options{URL: ts.url, CA: ca, Token: []byte(token), Wait: -1})
			if err != nil {
				t.Fatal(err)
			}
			own, err := key.Clone() // the session's from here
			if err != nil {
				t.Fatal(err)
			}
			s, err := vault.New(st).UnlockKey(t.Context(), own)
			if err != nil {
				t.Fatalf("%s: %v", g, err)
			}
			return s, func() { s.Destroy(); _ = st.Close() }
		}
		test.grant.scope = scopeRead
		s, done := open(test.grant)
		got := map[string]string{}
		err = s.Reveal(t.Context(), production, vault.Select{}, func(list []vault.Secret) error {
			for _, secret := range list {
				got[secret.Name] = string(secret.Value)
			}
			return nil
		})
		if err != nil || !same(got, planted) {
			t.Errorf("%s: %d secrets, %v", test.grant, len(got), err)
		}
		if _, err := s.List(t.Context(), production); err != nil {
			t.Errorf("%s: list: %v", test.grant, err)
		}
		if _, err := s.History(t.Context(), production, "STRIPE_SECRET_NAME"); err != nil {
			t.Errorf("%s: history: %v", test.grant, err)
		}
		if _, err := s.Put(t.Context(), production, []vault.Put{{Name: "NEW", Value: []byte("x")}}, vault.PutOptions{}); !errors.Is(err, store.ErrDenied) {
			t.Errorf("%s: a write with the scope read: %v", test.grant, err)
		}
		done()

		test.grant.scope = scopeWrite
		s, done = open(test.grant)
		for i := range 12 { // more than are kept
			if _, err := s.Put(t.Context(), production, []vault.Put{{Name: "NEW", Value: fmt.Append(nil, i)}}, vault.PutOptions{}); err != nil {
				t.Errorf("%s: put: %v", test.grant, err)
			}
		}
		if _, err := s.Rollback(t.Context(), production, "NEW", 5); err != nil {
			t.Errorf("%s: rollback: %v", test.grant, err)
		}
		if err := s.Delete(t.Context(), production, []string{"NEW"}); err != nil {
			t.Errorf("%s: delete: %v", test.grant, err)
		}
		if _, err := s.Apps(t.Context()); err == nil {
			t.Errorf("%s: it lists all apps", test.grant)
		}
		done()
	}
}
