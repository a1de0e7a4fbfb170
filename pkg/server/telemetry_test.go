package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// traced is a server with all its telemetry, and what came out of it.
type traced struct {
	t        *testing.T
	log      lockedBuffer
	spans    *tracetest.InMemoryExporter
	tel      *Telemetry
	server   *Server
	clients  *httptest.Server
	operator vaultv1connect.OperatorClient
}

func newTraced(t *testing.T, accounts store.Accounts) *traced {
	t.Helper()
	tr := &traced{t: t, spans: tracetest.NewInMemoryExporter()}
	log := slog.New(slog.NewTextHandler(&tr.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if tr.tel, err = newTelemetry("v1.2.3", sdktrace.NewSimpleSpanProcessor(plain{tr.spans})); err != nil {
		t.Fatal(err)
	}
	if err := tr.tel.Watch(accounts, func() time.Time { return time.Unix(1893456000, 0) }); err != nil {
		t.Fatal(err)
	}
	interceptors, err := tr.tel.Interceptors()
	if err != nil {
		t.Fatal(err)
	}
	tr.server = New(Options{
		Accounts: tr.tel.Accounts(accounts), Log: log, Version: "v1.2.3", Reflection: true, Spool: t.TempDir(),
		Interceptors: interceptors, Refused: tr.tel.Refused,
	})
	tr.clients = httptest.NewUnstartedServer(nil)
	tr.clients.Config = tr.server.HTTP(tr.server.Handler())
	tr.clients.EnableHTTP2 = true
	tr.clients.StartTLS()
	operator := httptest.NewServer(tr.server.Operator())
	tr.operator = vaultv1connect.NewOperatorClient(operator.Client(), operator.URL)
	t.Cleanup(func() {
		operator.Close()
		tr.clients.Close()
		if err := tr.server.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// marking sends what a client may make up in its headers.
type marking struct {
	c     *http.Client
	token string
}

func (m marking) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+m.token)
	r.Header.Set("User-Agent", mark+"-agent")
	r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	r.Header.Set("Tracestate", mark+"=1")
	r.Header.Set("Baggage", "who="+mark)
	r.Header.Set("X-Request-Id", mark)
	return m.c.Do(r)
}

func (tr *traced) client(token string) vaultv1connect.VaultClient {
	return vaultv1connect.NewVaultClient(marking{tr.clients.Client(), token}, tr.clients.URL, connect.WithGRPC())
}

func (tr *traced) metrics() string {
	tr.t.Helper()
	w := httptest.NewRecorder()
	tr.tel.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		tr.t.Fatal(w.Code, w.Body)
	}
	return w.Body.String()
}

// told is all that the spans say.
func (tr *traced) told() string {
	var b bytes.Buffer
	for _, s := range tr.spans.GetSpans() {
		fmt.Fprintf(&b, "%s %v %v %v %v %v\n", s.Name, s.Attributes, s.Events, s.Links, s.Status, s.Resource.Attributes())
	}
	return b.String()
}

// mark is in every name, key and value of TestTelemetrySaysNoNames.
const mark = "hunter2mark"

// forms are the mark as it is and as a careless program might print it.
func forms() []string {
	list := []string{mark, strings.ToUpper(mark), hex.EncodeToString([]byte(mark))}
	for i := range 3 { // at each offset within a group of base64
		s := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("_", i) + mark))
		list = append(list, s[4:len(s)-4])
	}
	var numbers []string // as %v prints bytes
	for _, c := range []byte(mark) {
		numbers = append(numbers, fmt.Sprint(c))
	}
	return append(list, strings.Join(numbers, " "))
}

func saysNoMark(t *testing.T, where, text string) {
	t.Helper()
	for _, form := range forms() {
		if i := strings.Index(text, form); i >= 0 {
			t.Errorf("%s hold a name, key or value: …%s…", where, text[max(0, i-80):min(len(text), i+80)])
		}
	}
}

// All RPCs, with marked names, keys and values, that succeed and that fail:
// neither metrics nor spans nor the log at its most talkative have any of it.
func TestTelemetrySaysNoNames(t *testing.T) {
	tr := newTraced(t, openAccounts(t))
	ctx := t.Context()
	expectErr := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s succeeded", what)
		}
	}
	made, err := tr.operator.CreateAccount(ctx, connect.NewRequest(&vaultv1.CreateAccountRequest{Name: mark}))
	if err != nil {
		t.Fatal(err)
	}
	account := made.Msg.GetAccount().GetId()
	create := &vaultv1.CreateAPIKeyRequest{Account: account, Name: mark, Scope: scopeAdmin}
	key, err := tr.operator.CreateAPIKey(ctx, connect.NewRequest(create))
	if err != nil {
		t.Fatal(err)
	}
	create.Name += " 2"
	dead, err := tr.operator.CreateAPIKey(ctx, connect.NewRequest(create))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.operator.ListAccounts(ctx, connect.NewRequest(&vaultv1.ListAccountsRequest{})); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.operator.ListAPIKeys(ctx, connect.NewRequest(&vaultv1.ListAPIKeysRequest{Account: account})); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.operator.RevokeAPIKey(ctx, connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: account, Id: dead.Msg.GetApiKey().GetId()})); err != nil {
		t.Fatal(err)
	}
	_, err = tr.operator.RevokeAPIKey(ctx, connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Account: account, Id: mark}))
	expectErr("revoking what is no id", err)

	token := key.Msg.GetToken()
	c := tr.client(token)
	if _, err := c.WhoAmI(ctx, connect.NewRequest(&vaultv1.WhoAmIRequest{})); err != nil {
		t.Fatal(err)
	}
	if err := commitOps(ctx, c, put("d"+mark, mark), put("e"+mark, strings.Repeat(mark, 1000))); err != nil {
		t.Fatal(err)
	}
	if got, err := read(ctx, c, rangeFor("d"+mark, store.One)); err != nil || got["d"+mark] != mark {
		t.Fatal(got, err)
	}
	if got, err := scan(ctx, c, rangeFor("", store.All)); err != nil || len(got) != 2 {
		t.Fatal(len(got), err)
	}
	expectErr("a commit on other ground", commitAs(ctx, c, newCommitID(),
		[]*vaultv1.Expect{expecting("d"+mark, store.One)}, put("d"+mark, mark)))
	expectErr("a key that begins with zero", commitOps(ctx, c, put("\x00"+mark, mark)))
	_, err = read(ctx, c, rangeFor(strings.Repeat(mark, 100), store.One))
	expectErr("a key that is too long", err)
	less, err := c.CreateAPIKey(ctx, connect.NewRequest(&vaultv1.CreateAPIKeyRequest{Name: mark + " 3", Scope: scopeRead, App: mark, Env: mark}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListAPIKeys(ctx, connect.NewRequest(&vaultv1.ListAPIKeysRequest{})); err != nil {
		t.Fatal(err)
	}
	limited := tr.client(less.Msg.GetToken())
	_, err = read(ctx, limited, rangeFor("d"+mark, store.One))
	expectErr("reading beyond an app", err)
	expectErr("writing with a key to read", commitOps(ctx, limited, put("d"+mark, mark)))
	_, err = c.CreateAPIKey(ctx, connect.NewRequest(&vaultv1.CreateAPIKeyRequest{Name: "\x00" + mark, Scope: 77, App: mark + "/" + mark}))
	expectErr("an API key that cannot be", err)
	if _, err := c.RevokeAPIKey(ctx, connect.NewRequest(&vaultv1.RevokeAPIKeyRequest{Id: less.Msg.GetApiKey().GetId()})); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{"", mark, "ov_live_" + mark, token[:40] + "aa" + token[42:], dead.Msg.GetToken()} {
		_, err = tr.client(wrong).WhoAmI(ctx, connect.NewRequest(&vaultv1.WhoAmIRequest{}))
		expectErr("a wrong API key", err)
	}
	for _, path := range []string{"/" + mark, "/ov.vault.v1.Vault/" + mark, "/livez", "/readyz?" + mark, "/ov.vault.v1.Operator/ListAccounts"} {
		res, err := tr.clients.Client().Post(tr.clients.URL+path, "application/json", strings.NewReader(`{"`+mark+`":1}`))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}

	metrics, spans, log := tr.metrics(), tr.told(), tr.log.String()
	for where, text := range map[string]string{"metrics": metrics, "spans": spans, "log": log} {
		saysNoMark(t, where, text)
		if strings.Contains(text, token) || strings.Contains(text, "4bf92f3577b34da6a3ce929d0e0e4736") {
			t.Errorf("%s hold an API key or a client's trace", where)
		}
	}
	for _, service := range []string{"Vault", "Operator"} {
		for _, p := range procedures(service) {
			if !strings.Contains(metrics, `ov_server_requests_total{code="ok",method="`+method(p)+`"}`) {
				t.Errorf("no metric of a success of %s", p)
			}
			if !strings.Contains(spans, strings.TrimPrefix(p, "/")) {
				t.Errorf("no span of %s", p)
			}
		}
	}
	for _, want := range []string{
		`ov_server_requests_total{code="aborted",method="Vault/Commit"} 1`,
		`ov_server_refused_total{method="Vault/WhoAmI",why="key"} 4`,
		`ov_server_refused_total{method="Vault/WhoAmI",why="dead_key"} 1`,
		`ov_server_refused_total{method="Vault/Commit",why="scope"} 1`,
		`ov_server_refused_total{method="none",why="path"} 3`,
		`ov_server_accounts 1`,
		`ov_server_requests_in_flight 0`,
		`ov_server_certificate_expiry_timestamp_seconds 1.893456e+09`,
		`ov_server_build_info{version="v1.2.3"} 1`,
		`ov_server_storage_duration_seconds_count{op="update"}`,
		`go_goroutines`, `process_open_fds`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	for _, line := range regexp.MustCompile(`(?m)^ov_server_storage_errors_total.*`).FindAllString(metrics, -1) {
		t.Errorf("a refusal counts as an error of the storage: %s", line)
	}
	t.Logf("%d bytes of metrics, %d spans, %d bytes of log", len(metrics), len(tr.spans.GetSpans()), len(log))
}

// failing is a storage whose errors say more than they should.
type failing struct{ store.Accounts }

func (f failing) Store(id store.AccountID) store.Store { return failingStore{f.Accounts.Store(id)} }

type failingStore struct{ store.Store }

func (failingStore) View(context.Context, func(store.Reader) error) error {
	return fmt.Errorf("%w: cannot read %s", store.ErrUnavailable, mark)
}

func (failingStore) Update(context.Context, func(store.Reader) (store.Batch, error)) error {
	panic("cannot write " + mark)
}

// A storage that fails is counted, and what it said goes no further than to the
// log.
func TestTelemetryOfFailures(t *testing.T) {
	tr := newTraced(t, failing{openAccounts(t)})
	ctx := t.Context()
	made, err := tr.operator.CreateAccount(ctx, connect.NewRequest(&vaultv1.CreateAccountRequest{Name: "a"}))
	if err != nil {
		t.Fatal(err)
	}
	account := made.Msg.GetAccount().GetId()
	if _, err := tr.operator.ListAPIKeys(ctx, connect.NewRequest(&vaultv1.ListAPIKeysRequest{Account: account})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("reading: %v", err)
	}
	if _, err := tr.operator.CreateAPIKey(ctx, connect.NewRequest(&vaultv1.CreateAPIKeyRequest{Account: account, Name: "a", Scope: scopeRead})); err == nil {
		t.Error("a panic is a success")
	}
	metrics := tr.metrics()
	saysNoMark(t, "metrics", metrics)
	saysNoMark(t, "spans", tr.told())
	for _, want := range []string{
		`ov_server_storage_errors_total{op="view"} 1`,
		`ov_server_requests_total{code="unavailable",method="Operator/ListAPIKeys"} 1`,
		`ov_server_requests_total{code="internal",method="Operator/CreateAPIKey"} 1`,
		`ov_server_requests_in_flight 0`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

func TestStorageFailed(t *testing.T) {
	own := errors.New("the handler's own")
	for _, c := range []struct {
		name     string
		err, own error
		want     bool
	}{
		{"success", nil, nil, false},
		{"the caller's own", fmt.Errorf("so: %w", own), own, false},
		{"the storage's", errors.New("disk"), nil, true},
		{"the storage's, handed through", fmt.Errorf("%w: gone", store.ErrUnavailable), store.ErrUnavailable, true},
		{"no such account", fmt.Errorf("%w", store.ErrNoAccount), nil, false},
		{"a client that left", context.Canceled, nil, false},
	} {
		if got := storageFailed(c.err, c.own); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// Spans reach a collector that the environment names, over HTTP.
func TestTracesAreSent(t *testing.T) {
	got := make(chan string, 16)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(b)
	}))
	t.Cleanup(collector.Close)
	for _, name := range append(otlpEndpoints, otlpProtocols...) {
		t.Setenv(name, "")
	}
	none, err := NewTelemetry(t.Context(), "v1.2.3", slog.New(slog.DiscardHandler))
	if err != nil || none.traces != nil {
		t.Fatalf("without an endpoint: %v %v", none.traces, err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	if _, err := NewTelemetry(t.Context(), "v1.2.3", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a protocol that is not spoken was taken")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	tel, err := NewTelemetry(t.Context(), "v1.2.3", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := tel.Accounts(openAccounts(t)).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tel.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case text := <-got:
		for _, want := range []string{"/v1/traces application/x-protobuf ", "storage ping", "ov-server", "v1.2.3"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in what was sent: %q", want, text)
			}
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was sent")
	}
}
