package remote_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// TestHostileReplies is TestHostileServer without a vault: what a Store lets
// through is in form, whatever the server says. That records are genuine is not
// its to know.
func TestHostileReplies(t *testing.T) {
	server := startOne(t)
	l := &liar{relay: newRelay(t, server)}
	key := server.tenant(t)
	honest, lying := client(t, server.url, key), client(t, serve(t, l), key)
	lying.Bounds(5*time.Second, 500*time.Millisecond, 16<<20)
	var pool []store.Record
	b := store.Batch{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("ab"), Value: []byte("2")}, {Key: []byte("abc"), Value: []byte("3")}, {Key: []byte("b"), Value: []byte("4")}}
	put(t, honest, b)
	for _, op := range b {
		pool = append(pool, store.Record(op))
	}
	if _, _, err := honest.CreateAPIKey(t.Context(), remote.NewAPIKey{Name: "ci", Scope: remote.ScopeRead, App: "myapp", Env: "production", MachineKey: "0011223344556677", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	view := func(fn func(store.Reader) error) func() (string, error) {
		return func() (string, error) { return "", lying.View(t.Context(), fn) }
	}
	ranges := []store.Range{one("a"), one("no"), {Key: []byte("ab"), Take: store.All}, {Key: []byte("a"), Take: store.Last}, {Key: []byte("n"), Take: store.All}}
	const fingerprint = "8899aabbccddeeff"
	tb, costly := table{}, map[string]int{}
	for _, c := range []struct {
		name string
		do   func() (string, error)
	}{
		{"Get", view(func(r store.Reader) error { v, err := r.Get([]byte("a")); return sound(t, err, []byte("a"), "a", v) })},
		{"Last", view(func(r store.Reader) error { k, v, err := r.Last([]byte("a")); return sound(t, err, k, "a", v) })},
		{"Scan", view(func(r store.Reader) error {
			last := ""
			return r.Scan([]byte("a"), func(k, v []byte) error {
				if string(k) <= last {
					t.Errorf("%q after %q", k, last)
				}
				last = string(k)
				return sound(t, nil, k, "a", v)
			})
		})},
		{"Fetch", view(func(r store.Reader) error { return r.Fetch(ranges...) })},
		{"Read", view(func(r store.Reader) error { return r.Fetch(ranges[0], ranges[1], ranges[3]) })},
		{"Update", func() (string, error) { return "", add(t.Context(), lying, "n") }},
		{"WhoAmI", func() (string, error) {
			who, err := lying.WhoAmI(t.Context())
			return told(t, who, err, who.APIKey)
		}},
		{"APIKeys", func() (string, error) {
			list, err := lying.APIKeys(t.Context())
			return told(t, list, err, list...)
		}},
		{"RevokeMachineKey", func() (string, error) {
			list, err := lying.RevokeMachineKey(t.Context(), "0011223344556677")
			for _, k := range list {
				if k.Revoked == nil || k.MachineKey != "0011223344556677" {
					t.Errorf("%+v is said to be revoked", k)
				}
			}
			return told(t, list, err, list...)
		}},
		{"CreateAPIKey", func() (string, error) {
			k, token, err := lying.CreateAPIKey(t.Context(), remote.NewAPIKey{Name: "key", Scope: remote.ScopeWrite, App: "myapp", MachineKey: fingerprint})
			if err == nil && (k.Name != "key" || k.Scope != remote.ScopeWrite || k.App != "myapp" || k.Env != "" || k.MachineKey != fingerprint || len(token) == 0 || len(token) > 256 || k.Expires != nil || k.Revoked != nil) {
				t.Errorf("%+v, a token of %d bytes", k, len(token))
			}
			if _, err := honest.RevokeMachineKey(t.Context(), fingerprint); err != nil {
				t.Error(err)
			}
			return told(t, k, err, k)
		}},
	} {
		name, do := c.name, c.do
		l.begin(nil)
		if _, err := do(); err != nil {
			t.Fatalf("%s, honestly: %v", name, err)
		}
		replies := l.log
		for n, m := range replies {
			for _, v := range variants(m, pool, costly) {
				l.begin(instead(n, v.lie))
				what := name + ": " + v.field + " " + v.how
				text, err := do()
				outcome := "(in form)"
				if err != nil {
					if outcome = refusal(err); outcome == "" {
						t.Errorf("%s: an error that says nothing: %v", what, err)
					}
					checkText(t, what, err)
				}
				for _, r := range text {
					if !unicode.IsPrint(r) {
						t.Errorf("%s: %q", what, text)
						break
					}
				}
				tb.add(v.field+" "+v.how, outcome)
			}
		}
	}
	tb.log(t, "by field")
}

// sound fails unless the record can be of the range.
func sound(t *testing.T, err error, key []byte, prefix string, value []byte) error {
	t.Helper()
	if err == nil && value != nil && (!strings.HasPrefix(string(key), prefix) || len(key) > store.MaxKey || len(value) == 0 || len(value) > store.MaxValue) {
		t.Errorf("%q = %d bytes", key, len(value))
	}
	return err
}

// told fails unless what is said of API keys is in form, and returns it as it is
// printed.
func told(t *testing.T, what any, err error, list ...remote.APIKey) (string, error) {
	t.Helper()
	if err != nil {
		return "", err
	}
	for _, k := range list {
		if len(k.ID) != 16 || len([]rune(k.Name)) > 201 || k.App != "" && !names.ValidSlug(k.App) || k.Env != "" && !names.ValidSlug(k.Env) ||
			!slices.Contains([]remote.Scope{remote.ScopeRead, remote.ScopeWrite, remote.ScopeAdmin}, k.Scope) || k.Created.Year() > 9999 {
			t.Errorf("%+v", k)
		}
	}
	b, err := json.Marshal(what)
	return string(b) + fmt.Sprintf("%+v", what), err
}

// endless answers scans without end, in ways.
type endless struct {
	*relay
	how atomic.Pointer[string]
}

func (e *endless) Scan(_ *vaultv1.ReadRequest, stream grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	for i := 0; ; i++ {
		m := &vaultv1.ScanResponse{}
		switch *e.how.Load() {
		case "silence":
			<-stream.Context().Done()
			return nil
		case "nothing, for ever":
		case "small records, for ever":
			for k := range 1000 {
				m.Records = append(m.Records, &vaultv1.Record{Key: fmt.Appendf(nil, "k%012d", 1000*i+k), Value: []byte("v")})
			}
		case "large records, for ever":
			m.Records = append(m.Records, &vaultv1.Record{Key: fmt.Appendf(nil, "k%012d", i), Value: make([]byte, store.MaxValue)})
		case "a record now and then":
			m.Records = append(m.Records, &vaultv1.Record{Key: fmt.Appendf(nil, "k%012d", i), Value: []byte("v")})
			time.Sleep(20 * time.Millisecond)
		case "one record, for ever":
			m.Records = append(m.Records, &vaultv1.Record{Key: []byte("k"), Value: []byte("v")})
		case "large headers":
			return stream.SendHeader(metadata.Pairs("x", strings.Repeat("x", 1<<20)))
		case "large trailers":
			stream.SetTrailer(metadata.Pairs("x", strings.Repeat("x", 1<<20)))
			return nil
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// No reply keeps a client for ever or fills its memory.
func TestEndlessReplies(t *testing.T) {
	server := startOne(t)
	e := &endless{relay: newRelay(t, server)}
	url, key := serve(t, e), server.tenant(t)
	const bound = 16 << 20
	for how, want := range map[string]error{
		"silence": store.ErrUnavailable, "nothing, for ever": remote.ErrMalformed, "small records, for ever": remote.ErrTooLarge,
		"large records, for ever": remote.ErrTooLarge, "a record now and then": store.ErrUnavailable, "one record, for ever": nil,
		"large headers": nil, "large trailers": nil,
	} {
		e.how.Store(&how)
		s := client(t, url, key, func(o *remote.Options) { o.Wait = -1 })
		s.Bounds(200*time.Millisecond, time.Second, bound)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		err := s.View(t.Context(), func(r store.Reader) error { return r.Scan([]byte("k"), func(_, _ []byte) error { return nil }) })
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if err == nil || want != nil && !errors.Is(err, want) || took > 30*time.Second {
			t.Errorf("%s: %v in %v", how, err, took)
			continue
		}
		checkText(t, how, err)
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 8*bound {
			t.Errorf("%s: the heap has grown by %d MiB", how, grown>>20)
		}
		t.Logf("%s: %v, in %v, the heap has grown by %d MiB", how, err, took.Round(time.Millisecond), (int64(after.HeapSys)-int64(before.HeapSys))>>20)
		_ = s.Close()
	}
}

// Something that speaks TLS, and then not HTTP/2 or not gRPC.
func TestNotGRPC(t *testing.T) {
	for what, answer := range map[string]string{
		"HTTP/1.1":      "HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\n\x1b[1",
		"noise":         strings.Repeat("\x00\x01\x02\x03\xff", 2000),
		"silence":       "",
		"frames":        strings.Repeat("\x00\x00\x00\x04\x00\x00\x00\x00\x00", 100_000),                                        // SETTINGS without end
		"go away":       "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", // SETTINGS, GOAWAY
		"a large frame": "\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00\x00\x01",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			config := serverTLS()
			address := listener(t, func(c net.Conn) {
				s := tls.Server(c, config)
				_ = s.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := s.Write([]byte(answer)); err == nil {
					_, _ = s.Read(make([]byte, 1<<20))
					_, _ = s.Read(make([]byte, 1<<20))
				}
			})
			s := client(t, "https://"+address, []byte("ov_live_secret"), func(o *remote.Options) { o.Wait = 500 * time.Millisecond })
			start := time.Now()
			_, err := get(context.WithoutCancel(t.Context()), s, "k")
			if !errors.Is(err, store.ErrUnavailable) || time.Since(start) > 3*time.Second {
				t.Errorf("%v in %v", err, time.Since(start))
				return
			}
			checkText(t, what, err)
			t.Log(err)
		})
	}
}
