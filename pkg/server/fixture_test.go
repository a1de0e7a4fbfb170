package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/embedded"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
	"github.com/opaquevault/ov/proto/ov/vault/v1/vaultv1connect"
)

// testServer is a server over TLS, with its storage in a file.
type testServer struct {
	*Server
	accounts store.Accounts
	url      string
	operator vaultv1connect.OperatorClient
	log      *lockedBuffer
	refusals *refusals
}

type refusals struct {
	mu  sync.Mutex
	all map[Refusal]int
}

func (r *refusals) count(why Refusal) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[why]
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func openAccounts(t testing.TB) store.Accounts {
	t.Helper()
	a, err := embedded.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func start(t testing.TB, change ...func(*limits)) *testServer {
	t.Helper()
	return startOn(t, openAccounts(t), change...)
}

func startOn(t testing.TB, accounts store.Accounts, change ...func(*limits)) *testServer {
	t.Helper()
	l := defaultLimits()
	for _, c := range change {
		c(&l)
	}
	ts := &testServer{accounts: accounts, log: &lockedBuffer{}, refusals: &refusals{all: map[Refusal]int{}}}
	ts.Server = newServer(Options{
		Accounts: accounts, Version: "test", Reflection: true, Spool: t.TempDir(),
		Log: slog.New(slog.NewJSONHandler(ts.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Refused: func(_ string, why Refusal) {
			ts.refusals.mu.Lock()
			defer ts.refusals.mu.Unlock()
			ts.refusals.all[why]++
		},
	}, l)
	clients := httptest.NewUnstartedServer(nil)
	clients.Config = ts.HTTP(ts.Handler())
	clients.Listener = ts.Limit(clients.Listener)
	clients.EnableHTTP2 = true
	clients.StartTLS()
	operator := httptest.NewServer(ts.Operator())
	ts.url = clients.URL
	ts.operator = vaultv1connect.NewOperatorClient(operator.Client(), operator.URL)
	t.Cleanup(func() {
		operator.Close()
		clients.CloseClientConnections()
		clients.Close()
		if err := ts.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return ts
}

func (ts *testServer) account(t testing.TB) store.AccountID {
	t.Helper()
	resp, err := ts.operator.CreateAccount(t.Context(), connect.NewRequest(&vaultv1.CreateAccountRequest{Name: "acme"}))
	if err != nil {
		t.Fatal(err)
	}
	return store.AccountID(resp.Msg.GetAccount().GetId())
}

const (
	scopeRead  = vaultv1.Scope_SCOPE_READ
	scopeWrite = vaultv1.Scope_SCOPE_WRITE
	scopeAdmin = vaultv1.Scope_SCOPE_ADMIN
)

var keyNumber struct {
	sync.Mutex
	n int
}

// apiKey makes an API key by the operator's hand.
func (ts *testServer) apiKey(t testing.TB, account store.AccountID, g grant) (id, token string) {
	t.Helper()
	keyNumber.Lock()
	keyNumber.n++
	name := "key " + hex.EncodeToString([]byte{byte(keyNumber.n >> 8), byte(keyNumber.n)})
	keyNumber.Unlock()
	resp, err := ts.operator.CreateAPIKey(t.Context(), connect.NewRequest(&vaultv1.CreateAPIKeyRequest{
		Account: account[:], Name: name, Scope: g.scope, App: g.app, Env: g.env,
	}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.GetApiKey().GetId(), resp.Msg.GetToken()
}

// client asks with an API key, by gRPC unless opts say otherwise.
func (ts *testServer) client(t testing.TB, token string, opts ...connect.ClientOption) vaultv1connect.VaultClient {
	t.Helper()
	h, closeIdle := newHTTPClient("")
	t.Cleanup(closeIdle)
	if opts == nil {
		opts = []connect.ClientOption{connect.WithGRPC()}
	}
	return vaultv1connect.NewVaultClient(withToken{h, token}, ts.url, opts...)
}

// newHTTPClient connects from a local address, if it is not "".
func newHTTPClient(from string) (*http.Client, func()) {
	d := &net.Dialer{}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	tr := &http.Transport{
		DialContext: d.DialContext, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	return &http.Client{Transport: tr}, tr.CloseIdleConnections
}

type withToken struct {
	c     *http.Client
	token string
}

func (w withToken) Do(r *http.Request) (*http.Response, error) {
	if w.token != "" {
		r.Header.Set("Authorization", "Bearer "+w.token)
	}
	return w.c.Do(r)
}

func rangeFor(key string, take store.Take) *vaultv1.Range {
	return &vaultv1.Range{Key: []byte(key), Take: vaultv1.Take(take)}
}

func put(key, value string) *vaultv1.Op {
	return &vaultv1.Op{Key: []byte(key), Value: []byte(value)}
}

func del(key string) *vaultv1.Op { return &vaultv1.Op{Key: []byte(key), Delete: true} }

func expecting(key string, take store.Take, records ...store.Record) *vaultv1.Expect {
	return &vaultv1.Expect{Range: rangeFor(key, take), Digest: store.DigestOf(records)}
}

var commitNumber struct {
	sync.Mutex
	n uint64
}

func newCommitID() []byte {
	commitNumber.Lock()
	defer commitNumber.Unlock()
	commitNumber.n++
	id := make([]byte, commitIDSize)
	for i := range 8 {
		id[i] = byte(commitNumber.n >> (8 * i))
	}
	return id
}

// commitAs sends a commit with an id in one message.
func commitAs(ctx context.Context, c vaultv1connect.VaultClient, id []byte, expect []*vaultv1.Expect, ops ...*vaultv1.Op) error {
	return sendCommit(ctx, c, &vaultv1.CommitRequest{Id: id, Expect: expect, Ops: ops, End: true, Count: uint64(len(ops))})
}

func commitOps(ctx context.Context, c vaultv1connect.VaultClient, ops ...*vaultv1.Op) error {
	return commitAs(ctx, c, newCommitID(), nil, ops...)
}

func sendCommit(ctx context.Context, c vaultv1connect.VaultClient, messages ...*vaultv1.CommitRequest) error {
	stream := c.Commit(ctx)
	for _, m := range messages {
		if stream.Send(m) != nil {
			break // CloseAndReceive says why
		}
	}
	_, err := stream.CloseAndReceive()
	return err
}

// read returns the values of all records of the ranges, by key.
func read(ctx context.Context, c vaultv1connect.VaultClient, ranges ...*vaultv1.Range) (map[string]string, error) {
	resp, err := c.Read(ctx, connect.NewRequest(&vaultv1.ReadRequest{Ranges: ranges}))
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, r := range resp.Msg.GetResults() {
		for _, rec := range r.GetRecords() {
			all[string(rec.GetKey())] = string(rec.GetValue())
		}
	}
	return all, nil
}

// scan does the same with Scan.
func scan(ctx context.Context, c vaultv1connect.VaultClient, ranges ...*vaultv1.Range) (map[string]string, error) {
	stream, err := c.Scan(ctx, connect.NewRequest(&vaultv1.ReadRequest{Ranges: ranges}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	all, ended := map[string]string{}, false
	for stream.Receive() {
		for _, rec := range stream.Msg().GetRecords() {
			all[string(rec.GetKey())] = string(rec.GetValue())
		}
		ended = stream.Msg().GetEnd()
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if !ended {
		return nil, connect.NewError(connect.CodeDataLoss, context.Canceled)
	}
	return all, nil
}

// reasonOf is the reason in an error's details, or "".
func reasonOf(err error) string {
	var e *connect.Error
	if err == nil || !asConnect(err, &e) {
		return ""
	}
	for _, d := range e.Details() {
		if m, err := d.Value(); err == nil {
			if info, ok := m.(*errdetails.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return ""
}

func asConnect(err error, target **connect.Error) bool {
	e, ok := err.(*connect.Error) //nolint:errorlint // clients return it as it is
	*target = e
	return ok
}

// fails checks an error's code and reason.
func fails(t testing.TB, what string, err error, code connect.Code, reason string) {
	t.Helper()
	if err == nil || connect.CodeOf(err) != code || reasonOf(err) != reason {
		t.Errorf("%s: %v (%q), not %v (%q)", what, err, reasonOf(err), code, reason)
	}
}

func eventually(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("within %v it did not come about that %s", within, what)
		}
	}
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// tokenText is the API key with the same secret for another account.
func tokenText(account store.AccountID, text []byte) []byte {
	raw, err := base32Lower.DecodeString(string(text[len("ov_live_"):]))
	if err != nil {
		panic(err)
	}
	copy(raw, account[:])
	binary.BigEndian.PutUint32(raw[48:], crc32.ChecksumIEEE(raw[:48]))
	return []byte("ov_live_" + base32Lower.EncodeToString(raw))
}
