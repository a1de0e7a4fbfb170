package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

func TestFaultsKeepTheirIdentity(t *testing.T) {
	for _, f := range faults {
		err := hint.Errorf("mend it", "what failed: %w: on what", f.err)
		got := fromStatus(toStatus(err))
		if got.Error() != err.Error() || hint.Of(got) != "mend it" {
			t.Errorf("%s: %q, hint %q", f.kind, got, hint.Of(got))
		}
		if status.Code(toStatus(err)) != f.code || f.code == codes.OK {
			t.Errorf("%s: code %v", f.kind, status.Code(toStatus(err)))
		}
		for _, other := range faults {
			if errors.Is(got, other.err) != (other.kind == f.kind) {
				t.Errorf("%s is %s: %v", f.kind, other.kind, errors.Is(got, other.err))
			}
		}
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		if got := fromStatus(toStatus(fmt.Errorf("reading: %w", err))); !errors.Is(got, err) || got.Error() != "reading: "+err.Error() {
			t.Errorf("%v became %v", err, got)
		}
	}
	if toStatus(nil) != nil || fromStatus(nil) != nil {
		t.Error("no error became one")
	}
	plain := fromStatus(toStatus(errors.New("something else")))
	if plain.Error() != "something else" || hint.Of(plain) != "" {
		t.Errorf("%v", plain)
	}
}

// Every error that callers of a vault branch on is one that crosses.
func TestEveryTypedErrorIsAFault(t *testing.T) {
	for file, want := range map[string]int{"../vault/errors.go": 9, "../store/store.go": 3, "fault.go": 4} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		ast.Inspect(parsed, func(node ast.Node) bool {
			spec, ok := node.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Err") {
				return true
			}
			call := spec.Values[0].(*ast.CallExpr)
			text, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			n++
			for _, f := range faults {
				if f.err.Error() == text {
					return true
				}
			}
			t.Errorf("%s: %s does not keep its identity across the socket", file, spec.Names[0].Name)
			return true
		})
		if n < want {
			t.Errorf("%s: %d errors found, there were %d", file, n, want)
		}
	}
}

// Text that protobuf cannot carry costs neither the error nor its identity.
func TestFaultText(t *testing.T) {
	for name, text := range map[string]string{
		"not UTF-8": "/home/\xff\xfe/vault.db", "long": strings.Repeat("x", 3*maxFault),
		"long, cut inside a character": strings.Repeat("é", 3*maxFault)[1:], "with a NUL": "a\x00b",
	} {
		st := toStatus(hint.Wrap(fmt.Errorf("%s: %w", text, vault.ErrNotFound), text))
		if len(status.Convert(st).Details()) != 1 {
			t.Errorf("%s: the details are lost", name)
			continue
		}
		got := fromStatus(st)
		if name != "long" && !errors.Is(got, vault.ErrNotFound) || !utf8.ValidString(got.Error()) || len(got.Error()) > maxFault+10 || len(hint.Of(got)) > maxFault+10 {
			t.Errorf("%s: %.100q", name, got)
		}
	}
	a := newAgent(t, func(c *Config) { c.VaultPath = "/home/\xff/vault.db" })
	if st, err := a.client(t).Status(t.Context()); err != nil || st.Vault != "/home/\uFFFD/vault.db" {
		t.Errorf("%q, %v", st.Vault, err)
	}
}

// What gRPC says by itself is typed too, and says what to do.
func TestFaultsOfTheTransport(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	names := make([]string, 20_000)
	for i := range names {
		names[i] = fmt.Sprintf("A_NAME_OF_SOME_LENGTH_%d", i)
	}
	err := c.Reveal(t.Context(), shop, vault.Select{Names: names}, nil)
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("a request above the bound: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.List(ctx, shop); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled request: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := c.List(ctx, shop); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a late request: %v", err)
	}
	h := newHome(t)
	d := h.run(t, "--locked")
	c = d.client(t)
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.end(t, 5*time.Second)
	if _, err := c.Status(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "the agent did not answer: ") || hint.Of(err) == "" {
		t.Errorf("an agent that died: %v (hint %q)", err, hint.Of(err))
	}
}

// outcome is all that a caller can tell of a call.
type outcome struct {
	Values any
	Text   string
	Hint   string
	Is     []string
}

func outcomeOf(values any, err error) outcome {
	o := outcome{Values: values, Hint: hint.Of(err)}
	if err != nil {
		o.Text, o.Values = err.Error(), nil
	}
	for _, f := range faults {
		if errors.Is(err, f.err) {
			o.Is = append(o.Is, f.kind)
		}
	}
	return o
}

// Through the agent everything is as with a session in the same process: the
// answers, and the errors with their texts, hints and identities.
func TestClientIsLikeASession(t *testing.T) {
	n := func(v uint32) *uint32 { return &v }
	put := func(name, value string, replaces *uint32) []vault.Put {
		return []vault.Put{{Name: name, Value: []byte(value), Replaces: replaces}}
	}
	reveal := func(s vault.Unlocked, ref vault.Ref, names []string, version uint32) outcome {
		var got []string
		err := s.Reveal(t.Context(), ref, vault.Select{Names: names, Version: version}, func(list []vault.Secret) error {
			for _, secret := range list {
				got = append(got, fmt.Sprintf("%s=%s v%d", secret.Name, secret.Value, secret.Version))
			}
			return nil
		})
		return outcomeOf(got, err)
	}
	// Both see times of their own.
	timeless := func(list []vault.Version) []vault.Version {
		for i := range list {
			if time.Since(list[i].Created) > time.Hour || list[i].Created.Location() != time.UTC {
				t.Errorf("made at %v", list[i].Created)
			}
			list[i].Created = time.Time{}
		}
		return list
	}
	nowhere, nonsense := vault.Ref{App: "shop", Env: "prod"}, vault.Ref{App: "Shop!", Env: "x"}
	ctx := t.Context()
	steps := []struct {
		name string
		do   func(vault.Unlocked) outcome
	}{
		{"reveal one", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{nameOf(2)}, 0) }},
		{"reveal in order", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{nameOf(3), nameOf(1), nameOf(2)}, 0) }},
		{"reveal all", func(s vault.Unlocked) outcome { return reveal(s, shop, nil, 0) }},
		{"reveal none", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{}, 0) }},
		{"reveal a missing one", func(s vault.Unlocked) outcome {
			return reveal(s, shop, []string{"SHOP_SECRET_NAME_1", nameOf(0), "NOPE"}, 0)
		}},
		{"reveal a missing version", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{nameOf(2)}, 7) }},
		{"reveal a bad name", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{"no name"}, 0) }},
		{"reveal a bad name that is long", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{strings.Repeat("é", 500)}, 0) }},
		{"reveal nowhere", func(s vault.Unlocked) outcome { return reveal(s, nowhere, nil, 0) }},
		{"reveal in nonsense", func(s vault.Unlocked) outcome { return reveal(s, nonsense, nil, 0) }},
		{"put one", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "one", n(0)), vault.PutOptions{Note: "set"}))
		}},
		{"put over a version that was replaced", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "two", n(0)), vault.PutOptions{Note: "set"}))
		}},
		{"put the next", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "two", n(1)), vault.PutOptions{Note: "import"}))
		}},
		{"put the same", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "two", nil), vault.PutOptions{}))
		}},
		{"put nothing", func(s vault.Unlocked) outcome { return outcomeOf(s.Put(ctx, shop, nil, vault.PutOptions{})) }},
		{"put an empty value", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("EMPTY", "", nil), vault.PutOptions{}))
		}},
		{"put twice", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, append(put("A", "1", nil), put("A", "2", nil)...), vault.PutOptions{}))
		}},
		{"keep", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "three", nil), vault.PutOptions{Existing: vault.KeepExisting}))
		}},
		{"refuse", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "three", nil), vault.PutOptions{Existing: vault.RefuseExisting}))
		}},
		{"dry run", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("NEW", "three", nil), vault.PutOptions{DryRun: true}))
		}},
		{"put nowhere", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, nowhere, put("A", "1", nil), vault.PutOptions{}))
		}},
		{"put where there will be something", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, vault.Ref{App: "fresh", Env: "test"}, put("A", "1", nil), vault.PutOptions{Create: true}))
		}},
		{"put a bad name", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("1A", "1", nil), vault.PutOptions{}))
		}},
		{"put the largest value", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("LARGEST", strings.Repeat("x", vault.MaxValue), nil), vault.PutOptions{}))
		}},
		{"put a larger value", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("LARGER", strings.Repeat("x", vault.MaxValue+1), nil), vault.PutOptions{}))
		}},
		{"put a value of megabytes", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put("LARGER", strings.Repeat("x", 3<<20), nil), vault.PutOptions{}))
		}},
		{"put the longest name", func(s vault.Unlocked) outcome {
			return outcomeOf(s.Put(ctx, shop, put(strings.Repeat("N", 255), "x", nil), vault.PutOptions{}))
		}},
		{"reveal what was put", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{"NEW", "EMPTY", "LARGEST"}, 0) }},
		{"reveal an older version", func(s vault.Unlocked) outcome { return reveal(s, shop, []string{"NEW"}, 1) }},
		{"history", func(s vault.Unlocked) outcome {
			list, err := s.History(ctx, shop, "NEW")
			return outcomeOf(timeless(list), err)
		}},
		{"history of nothing", func(s vault.Unlocked) outcome { list, err := s.History(ctx, shop, "NOW"); return outcomeOf(list, err) }},
		{"roll back", func(s vault.Unlocked) outcome { return outcomeOf(s.Rollback(ctx, shop, "NEW", 1)) }},
		{"roll back to what is", func(s vault.Unlocked) outcome { return outcomeOf(s.Rollback(ctx, shop, "NEW", 3)) }},
		{"roll back to what never was", func(s vault.Unlocked) outcome { return outcomeOf(s.Rollback(ctx, shop, "NEW", 9)) }},
		{"roll back nothing", func(s vault.Unlocked) outcome { return outcomeOf(s.Rollback(ctx, shop, "NOTHING", 1)) }},
		{"list", func(s vault.Unlocked) outcome { list, err := s.List(ctx, shop); return outcomeOf(timeless(list), err) }},
		{"list of little", func(s vault.Unlocked) outcome { list, err := s.List(ctx, other); return outcomeOf(timeless(list), err) }},
		{"list nowhere", func(s vault.Unlocked) outcome { list, err := s.List(ctx, nowhere); return outcomeOf(list, err) }},
		{"delete", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.Delete(ctx, shop, []string{"NEW", "EMPTY"})) }},
		{"delete some that are not there", func(s vault.Unlocked) outcome {
			return outcomeOf(nil, s.Delete(ctx, shop, []string{nameOf(0), "NEW", "EMPTY"}))
		}},
		{"create an app", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.CreateApp(ctx, "second")) }},
		{"create it again", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.CreateApp(ctx, "second")) }},
		{"create a bad one", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.CreateApp(ctx, "-")) }},
		{"create an env", func(s vault.Unlocked) outcome {
			return outcomeOf(nil, s.CreateEnv(ctx, vault.Ref{App: "second", Env: "test"}))
		}},
		{"create it in no app", func(s vault.Unlocked) outcome {
			return outcomeOf(nil, s.CreateEnv(ctx, vault.Ref{App: "third", Env: "test"}))
		}},
		{"list an empty env", func(s vault.Unlocked) outcome {
			list, err := s.List(ctx, vault.Ref{App: "second", Env: "test"})
			return outcomeOf(len(list), err)
		}},
		{"delete an env", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.DeleteEnv(ctx, staging)) }},
		{"delete it again", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.DeleteEnv(ctx, staging)) }},
		{"delete an app", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.DeleteApp(ctx, "other")) }},
		{"delete it again", func(s vault.Unlocked) outcome { return outcomeOf(nil, s.DeleteApp(ctx, "other")) }},
		{"apps", func(s vault.Unlocked) outcome {
			list, err := s.Apps(ctx)
			for i := range list {
				list[i].Created = time.Time{}
			}
			return outcomeOf(list, err)
		}},
	}
	for _, key := range []struct {
		name string
		of   func(fixture) []byte
	}{
		{"account", func(f fixture) []byte { return f.account }},
		{"app", func(f fixture) []byte { return f.app }},
		{"env", func(f fixture) []byte { return f.env }},
	} {
		t.Run(key.name, func(t *testing.T) {
			a := newAgent(t)
			a.openWith(t, key.of(sharedFixture(t)))
			c := a.client(t)
			v := vault.New(bolt.New(copyVault(t, shortDir(t))))
			s, err := v.UnlockKey(t.Context(), locked(t, key.of(sharedFixture(t))))
			if err != nil {
				t.Fatal(err)
			}
			failed, worked := 0, 0
			for _, step := range steps {
				want, got := step.do(s), step.do(c)
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s:\nthrough the agent %.600v\n      in a session %.600v", step.name, got, want)
				}
				if want.Text == "" {
					worked++
				} else {
					failed++
				}
			}
			if key.name == "account" && (worked < 25 || failed < 18) {
				t.Errorf("%d steps worked, %d failed: do they do what they say?", worked, failed)
			}
		})
	}
}

// The one error that a person is sure to meet.
func TestMissingSecrets(t *testing.T) {
	a := newAgent(t).open(t)
	err := a.client(t).Reveal(t.Context(), shop, vault.Select{Names: []string{"SHOP_SECRET_NAME_7", nameOf(0), "DATABASE_URL"}}, func([]vault.Secret) error {
		t.Error("an answer came")
		return nil
	})
	if !errors.Is(err, vault.ErrNotFound) {
		t.Fatal(err)
	}
	for _, part := range []string{"2 secrets not found in shop/production", "SHOP_SECRET_NAME_7 (did you mean ", nameOf(7), "DATABASE_URL"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if got := hint.Of(err); got != "see what is there: ov secret list --app shop --env production" {
		t.Errorf("hint: %q", got)
	}
	absent(t, "the error", []byte(err.Error()), nameOf(7), valueOf(0), valueOf(7))
}

// An error of the client's own is passed on as it is.
func TestCallbackErrorIsPassedOn(t *testing.T) {
	a := newAgent(t).open(t)
	mine := errors.New("mine")
	err := a.client(t).Reveal(t.Context(), shop, vault.Select{}, func([]vault.Secret) error { return mine })
	if !errors.Is(err, mine) {
		t.Error(err)
	}
}

// Values are wiped when the callback returns.
func TestValuesAreWiped(t *testing.T) {
	a := newAgent(t).open(t)
	var kept [][]byte
	err := a.client(t).Reveal(t.Context(), shop, vault.Select{}, func(list []vault.Secret) error {
		for _, secret := range list {
			kept = append(kept, secret.Value)
		}
		return nil
	})
	if err != nil || len(kept) != secretCount {
		t.Fatal(len(kept), err)
	}
	for _, v := range kept {
		if len(bytes.Trim(v, "\x00")) != 0 {
			t.Errorf("a value is still there after the callback: %q", v)
		}
	}
}

// hostile is an agent that answers List and others with what it is told to.
type hostile struct {
	agentv1.AgentClient
	plain  []byte // of the answer
	sealed []byte // in place of what plain would give
	method string
}

func (h hostile) answer(public []byte) (*agentv1.SealedResponse, error) {
	if h.sealed != nil {
		return &agentv1.SealedResponse{Sealed: h.sealed}, nil
	}
	sealed, err := sealTo(public, h.method, h.plain)
	return &agentv1.SealedResponse{Sealed: sealed}, err
}

func (h hostile) Reveal(_ context.Context, r *agentv1.RevealRequest, _ ...grpc.CallOption) (*agentv1.SealedResponse, error) {
	return h.answer(r.PublicKey)
}
func (h hostile) List(_ context.Context, r *agentv1.ListRequest, _ ...grpc.CallOption) (*agentv1.SealedResponse, error) {
	return h.answer(r.PublicKey)
}
func (h hostile) History(_ context.Context, r *agentv1.HistoryRequest, _ ...grpc.CallOption) (*agentv1.SealedResponse, error) {
	return h.answer(r.PublicKey)
}
func (h hostile) Rollback(_ context.Context, r *agentv1.RollbackRequest, _ ...grpc.CallOption) (*agentv1.SealedResponse, error) {
	return h.answer(r.PublicKey)
}

// A Put that the agent ends early tells why, not that the stream has ended.
func TestPutTellsWhyItEnded(t *testing.T) {
	a := newAgent(t) // locked
	c := a.client(t)
	var list []vault.Put
	for i := range 5000 {
		list = append(list, vault.Put{Name: fmt.Sprintf("N%d", i), Value: make([]byte, 1000)})
	}
	told := 0
	_, err := c.Put(t.Context(), shop, list, vault.PutOptions{Progress: func(n int) { told = n }})
	if !errors.Is(err, ErrLocked) || errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if told == len(list) {
		t.Error("all 5 MB were sent to an agent that is locked")
	}
	a.open(t)
	var progress []int
	got, err := c.Put(t.Context(), shop, list, vault.PutOptions{Progress: func(n int) { progress = append(progress, n) }})
	if err != nil || len(got) != len(list) {
		t.Fatal(len(got), err)
	}
	if !slices.IsSorted(progress) || progress[len(progress)-1] != len(list) || len(progress) < 10 {
		t.Errorf("progress: %v", progress)
	}
}
