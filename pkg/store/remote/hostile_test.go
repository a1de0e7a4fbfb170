package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/witness"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// liar is a server that answers as the real one does, but for one reply. It does
// not hold what a client has read against what is so, which would give its lies
// away, unless verifies is set: then it is as if the lies came from elsewhere.
type liar struct {
	*relay
	verifies bool
	mu       sync.Mutex
	n        int             // replies given so far
	log      []proto.Message // those of the real server
	lie      func(n int, m proto.Message) ([]proto.Message, error)
}

// begin makes the next reply the first one, and lie what is done to them all.
func (l *liar) begin(lie func(n int, m proto.Message) ([]proto.Message, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n, l.log, l.lie = 0, nil, lie
}

// committed reports whether the real server has written something.
func (l *liar) committed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.log, func(m proto.Message) bool { _, ok := m.(*vaultv1.CommitResponse); return ok })
}

// instead answers with the lie in place of reply number at.
func instead(at int, lie ...proto.Message) func(int, proto.Message) ([]proto.Message, error) {
	return func(n int, m proto.Message) ([]proto.Message, error) {
		if n == at {
			return lie, nil
		}
		return []proto.Message{m}, nil
	}
}

func (l *liar) tell(m proto.Message) ([]proto.Message, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.n
	l.n++
	l.log = append(l.log, proto.Clone(m))
	if l.lie == nil {
		return []proto.Message{m}, nil
	}
	return l.lie(n, m)
}

// lied passes on a reply of one message.
func lied[M proto.Message](l *liar, m M, err error) (M, error) {
	if err != nil {
		return m, err
	}
	out, err := l.tell(m)
	if err != nil || len(out) == 0 {
		return m, err
	}
	if lie, ok := out[0].(M); ok { // not after another course of things
		return lie, nil
	}
	return m, nil
}

func (l *liar) unverified(m *vaultv1.ReadRequest) *vaultv1.ReadRequest {
	if !l.verifies {
		m.Expect = nil
	}
	return m
}

func (l *liar) Read(ctx context.Context, m *vaultv1.ReadRequest) (*vaultv1.ReadResponse, error) {
	r, err := l.relay.Read(ctx, l.unverified(m))
	return lied(l, r, err)
}

func (l *liar) WhoAmI(ctx context.Context, m *vaultv1.WhoAmIRequest) (*vaultv1.WhoAmIResponse, error) {
	r, err := l.relay.WhoAmI(ctx, m)
	return lied(l, r, err)
}

func (l *liar) CreateAPIKey(ctx context.Context, m *vaultv1.CreateAPIKeyRequest) (*vaultv1.CreateAPIKeyResponse, error) {
	r, err := l.relay.CreateAPIKey(ctx, m)
	return lied(l, r, err)
}

func (l *liar) ListAPIKeys(ctx context.Context, m *vaultv1.ListAPIKeysRequest) (*vaultv1.ListAPIKeysResponse, error) {
	r, err := l.relay.ListAPIKeys(ctx, m)
	return lied(l, r, err)
}

func (l *liar) RevokeAPIKey(ctx context.Context, m *vaultv1.RevokeAPIKeyRequest) (*vaultv1.RevokeAPIKeyResponse, error) {
	r, err := l.relay.RevokeAPIKey(ctx, m)
	return lied(l, r, err)
}

type lyingScan struct {
	grpc.ServerStreamingServer[vaultv1.ScanResponse]
	l *liar
}

func (s lyingScan) Send(m *vaultv1.ScanResponse) error {
	out, err := s.l.tell(m)
	for _, m := range out {
		if m, ok := m.(*vaultv1.ScanResponse); ok && err == nil {
			err = s.ServerStreamingServer.Send(m)
		}
	}
	return err
}

func (l *liar) Scan(m *vaultv1.ReadRequest, stream grpc.ServerStreamingServer[vaultv1.ScanResponse]) error {
	return l.relay.Scan(l.unverified(m), lyingScan{stream, l})
}

type lyingCommit struct {
	grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]
	l *liar
}

func (s lyingCommit) Recv() (*vaultv1.CommitRequest, error) {
	m, err := s.ClientStreamingServer.Recv()
	if err == nil && !s.l.verifies {
		m.Expect = nil
	}
	return m, err
}

func (s lyingCommit) SendAndClose(m *vaultv1.CommitResponse) error {
	m, err := lied(s.l, m, nil)
	if err != nil {
		return err
	}
	return s.ClientStreamingServer.SendAndClose(m)
}

func (l *liar) Commit(stream grpc.ClientStreamingServer[vaultv1.CommitRequest, vaultv1.CommitResponse]) error {
	return l.relay.Commit(lyingCommit{stream, l})
}

// attacked is a real vault on a real server behind a liar.
type attacked struct {
	*served
	liar              *liar
	id                store.AccountID
	key               []byte
	honest, lying     *remote.Store
	failing           *remote.Store // as lying, and is soon tired
	older, now        []store.Record
	pool              []store.Record  // that a server could put in a record's place: older ones, and those of other vaults
	truth             map[string]bool // every line that was ever true
	account, app, env []byte          // machine keys
	options           []vault.Option  // with which it is opened
}

const password = "correct horse battery staple"

var (
	prod    = vault.Ref{App: "myapp", Env: "production"}
	staging = vault.Ref{App: "myapp", Env: "staging"}
	other   = vault.Ref{App: "other", Env: "production"}
	refs    = []vault.Ref{prod, staging, other}
)

func newAttacked(t *testing.T) *attacked {
	t.Helper()
	a := &attacked{served: startOne(t), truth: map[string]bool{}}
	a.liar = &liar{relay: newRelay(t, a.served)}
	a.key = a.tenant(t)
	a.honest = client(t, a.url, a.key)
	who, err := a.honest.WhoAmI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.id = who.Account
	url := serve(t, a.liar)
	a.lying = client(t, url, a.key)
	a.lying.Bounds(5*time.Second, 500*time.Millisecond, 16<<20)
	a.failing = warm(t, client(t, url, a.key, func(o *remote.Options) { o.Wait = 30 * time.Millisecond }))
	a.failing.Bounds(5*time.Second, 100*time.Millisecond, 16<<20)

	// Somebody else's vault, with apps, envs and names that are called the same.
	foreign := client(t, a.url, a.tenant(t))
	a.fill(t, foreign, false)
	a.fill(t, a.honest, true)
	a.pool = slices.Concat(a.older, dump(t, foreign), a.now)
	return a
}

// fill makes a vault of some secrets, each in several versions.
func (a *attacked) fill(t *testing.T, s *remote.Store, own bool) {
	t.Helper()
	secret := lock(t, []byte(password))
	v := vault.New(s)
	if err := v.Init(t.Context(), s.Create, secret); err != nil {
		t.Fatal(err)
	}
	session, err := v.Unlock(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Destroy()
	set := func(ref vault.Ref, name, value string) {
		r, err := session.Put(t.Context(), ref, []vault.Put{{Name: name, Value: []byte(value)}}, vault.PutOptions{Create: true, Note: "set"})
		if err != nil {
			t.Fatal(err)
		}
		if own {
			a.truth[fmt.Sprintf("%s %s@%d=%s", ref, name, r[0].Version, value)] = true
			a.truth[fmt.Sprintf("%s %s@%d", ref, name, r[0].Version)] = true
		}
	}
	for _, ref := range refs {
		set(ref, "URL", "first of "+ref.String())
		set(ref, "TOKEN", "token of "+ref.String())
	}
	if own {
		for ref, key := range map[vault.Ref]*[]byte{{}: &a.account, {App: "myapp"}: &a.app, prod: &a.env} {
			k, _, err := session.DeriveMachineKey(t.Context(), ref, "")
			if err != nil {
				t.Fatal(err)
			}
			*key = bytes.Clone(k.Bytes())
			k.Destroy()
		}
		a.older = dump(t, s)
	}
	for _, ref := range refs {
		set(ref, "URL", "second of "+ref.String())
		set(ref, "KEY", "key of "+ref.String())
	}
	if own {
		a.now = dump(t, s)
	}
}

func lock(t testing.TB, b []byte) *kek.Locked {
	t.Helper()
	l, err := kek.LockedFrom(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Destroy)
	return l
}

// dump returns all records.
func dump(t testing.TB, s store.Store) (list []store.Record) {
	t.Helper()
	err := s.View(t.Context(), func(r store.Reader) error {
		list = nil
		return r.Scan(nil, func(k, v []byte) error {
			if k[0] != 0 {
				list = append(list, store.Record{Key: bytes.Clone(k), Value: bytes.Clone(v)})
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// restore makes the records all that there are.
func (a *attacked) restore(t testing.TB, list []store.Record) {
	t.Helper()
	s := a.accounts.Store(a.id)
	var b store.Batch
	for _, rec := range dump(t, s) {
		b.Delete(rec.Key)
	}
	for _, rec := range list {
		b.Put(rec.Key, rec.Value)
	}
	put(t, s, b)
}

// operation is something that is done with a vault. What it returns are lines
// that say what was found.
type operation struct {
	name   string
	writes bool
	short  bool // tried in short tests, too
	do     func(ctx context.Context, a *attacked, s store.Store) ([]string, error)
}

func (a *attacked) unlock(ctx context.Context, s store.Store, key []byte) (*vault.Session, error) {
	l, err := kek.LockedFrom(bytes.Clone(key))
	if err != nil {
		return nil, err
	}
	return vault.New(s, a.options...).UnlockKey(ctx, l)
}

func reveal(ctx context.Context, s *vault.Session, ref vault.Ref, sel vault.Select) (lines []string, err error) {
	err = s.Reveal(ctx, ref, sel, func(list []vault.Secret) error {
		for _, secret := range list {
			lines = append(lines, fmt.Sprintf("%s %s@%d=%s", ref, secret.Name, secret.Version, secret.Value))
		}
		return nil
	})
	return lines, err
}

func versions(ref vault.Ref, list []vault.Version, err error) (lines []string, _ error) {
	for _, v := range list {
		lines = append(lines, fmt.Sprintf("%s %s@%d", ref, v.Name, v.Version))
	}
	return lines, err
}

// with is an operation with a session that was opened by a machine key before
// any lie.
func with(name string, writes bool, key func(*attacked) []byte, do func(context.Context, *vault.Session) ([]string, error)) operation {
	return operation{name, writes, name == "Reveal all" || name == "Put over another", func(ctx context.Context, a *attacked, s store.Store) ([]string, error) {
		via := &struct{ store.Store }{a.honest}
		session, err := a.unlock(ctx, via, key(a))
		if err != nil {
			return nil, err
		}
		defer session.Destroy()
		via.Store = s
		return do(ctx, session)
	}}
}

func ofAccount(a *attacked) []byte { return a.account }
func ofApp(a *attacked) []byte     { return a.app }
func ofEnv(a *attacked) []byte     { return a.env }

func done(err error) ([]string, error) { return []string{"done"}, err }

func value(text string) []vault.Put { return []vault.Put{{Name: "URL", Value: []byte(text)}} }

var operations = []operation{
	{"Unlock", false, false, func(ctx context.Context, a *attacked, s store.Store) ([]string, error) {
		secret, err := kek.LockedFrom([]byte(password))
		if err != nil {
			return nil, err
		}
		defer secret.Destroy()
		session, err := vault.New(s, a.options...).Unlock(ctx, secret)
		if err == nil {
			defer session.Destroy()
		}
		return done(err)
	}},
	{"UnlockKey of the account", false, false, func(ctx context.Context, a *attacked, s store.Store) ([]string, error) {
		return unlockAnd(ctx, a, s, a.account)
	}},
	{"UnlockKey of an app", false, false, func(ctx context.Context, a *attacked, s store.Store) ([]string, error) {
		return unlockAnd(ctx, a, s, a.app)
	}},
	{"UnlockKey of an env", false, false, func(ctx context.Context, a *attacked, s store.Store) ([]string, error) {
		return unlockAnd(ctx, a, s, a.env)
	}},
	with("Reveal all", false, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return reveal(ctx, s, prod, vault.Select{})
	}),
	with("Reveal some, key of the app", false, ofApp, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return reveal(ctx, s, prod, vault.Select{Names: []string{"URL", "KEY"}})
	}),
	with("Reveal some, key of the env", false, ofEnv, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return reveal(ctx, s, prod, vault.Select{Names: []string{"TOKEN", "URL"}})
	}),
	with("Reveal a version", false, ofEnv, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return reveal(ctx, s, prod, vault.Select{Names: []string{"URL"}, Version: 1})
	}),
	with("List", false, ofEnv, func(ctx context.Context, s *vault.Session) ([]string, error) {
		list, err := s.List(ctx, prod)
		return versions(prod, list, err)
	}),
	with("History", false, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) {
		list, err := s.History(ctx, prod, "URL")
		return versions(prod, list, err)
	}),
	with("Check", false, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) { return done(s.Check(ctx)) }),
	with("Put over another", true, ofEnv, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return put1(s.Put(ctx, prod, value("third"), vault.PutOptions{}))
	}),
	with("Put if it is the newest", true, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) {
		two := uint32(2)
		return put1(s.Put(ctx, prod, []vault.Put{{Name: "URL", Value: []byte("third"), Replaces: &two}}, vault.PutOptions{}))
	}),
	with("Put a new one", true, ofApp, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return put1(s.Put(ctx, prod, []vault.Put{{Name: "NEW", Value: []byte("new")}}, vault.PutOptions{}))
	}),
	with("Delete", true, ofEnv, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return done(s.Delete(ctx, prod, []string{"URL"}))
	}),
	with("Rollback", true, ofEnv, func(ctx context.Context, s *vault.Session) ([]string, error) {
		r, err := s.Rollback(ctx, prod, "URL", 1)
		return []string{fmt.Sprint(r.Outcome, r.Version)}, err
	}),
	with("CreateApp", true, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return done(s.CreateApp(ctx, "new"))
	}),
	with("RotateApp", true, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) {
		return done(s.RotateApp(ctx, "myapp"))
	}),
	with("DeriveMachineKey", true, ofAccount, func(ctx context.Context, s *vault.Session) ([]string, error) {
		k, _, err := s.DeriveMachineKey(ctx, staging, "")
		k.Destroy()
		return done(err)
	}),
}

func unlockAnd(ctx context.Context, a *attacked, s store.Store, key []byte) ([]string, error) {
	session, err := a.unlock(ctx, s, key)
	if err != nil {
		return nil, err
	}
	defer session.Destroy()
	level, scope := session.Scope()
	return []string{fmt.Sprint(level, scope)}, nil
}

func put1(r []vault.PutResult, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprint(r[0].Outcome, r[0].Version)}, nil
}

// read is what somebody reads who is not lied to.
func (a *attacked) read(t testing.TB) (string, error) {
	t.Helper()
	honest := *a
	honest.options = nil
	s, err := honest.unlock(t.Context(), a.honest, a.account)
	if err != nil {
		return "", err
	}
	defer s.Destroy()
	var all []string
	for _, ref := range refs {
		lines, err := reveal(t.Context(), s, ref, vault.Select{})
		if err != nil {
			return "", err
		}
		all = append(all, lines...)
	}
	apps, err := s.Apps(t.Context())
	for _, app := range apps {
		all = append(all, fmt.Sprint(app.Slug, app.Envs))
	}
	return strings.Join(all, "\n"), err
}

// state is read where nothing was spoiled.
func (a *attacked) state(t testing.TB) string {
	t.Helper()
	all, err := a.read(t)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// refusals are the errors by which a lie may be refused, and what the table calls
// them.
var refusals = []struct {
	name string
	err  error
}{
	{"malformed", remote.ErrMalformed}, {"too large", remote.ErrTooLarge}, {"damaged", vault.ErrDamaged}, {"rolled back", vault.ErrRollback},
	{"withheld", vault.ErrWithheld}, {"unknown key", vault.ErrUnknownKey}, {"dead key", vault.ErrDeadKey}, {"wrong password", vault.ErrWrongPassword},
	{"not found", vault.ErrNotFound}, {"conflict", vault.ErrConflict}, {"exists", vault.ErrExists},
	{"unauthenticated", remote.ErrUnauthenticated}, {"denied", store.ErrDenied}, {"busy", store.ErrBusy},
	{"unavailable", store.ErrUnavailable},
}

func refusal(err error) string {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return ""
}

// checkText fails when an error is no line that may go to a terminal.
func checkText(t testing.TB, what string, err error) {
	t.Helper()
	for _, text := range []string{err.Error(), hint.Of(err)} {
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || len(text) > 900 || strings.Contains(text, "BEGIN") {
			t.Errorf("%s: the text is not fit to be shown: %q", what, text)
		}
	}
	for _, secret := range []string{"first of", "second of", "key of myapp", "ov_live_"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error holds a secret: %v", what, err)
		}
	}
}

// table counts what became of lies, by field and by what was done to it.
type table map[string]map[string]int

func (tb table) add(row, outcome string) {
	if tb[row] == nil {
		tb[row] = map[string]int{}
	}
	tb[row][outcome]++
}

func (tb table) log(t *testing.T, what string) {
	t.Helper()
	var b strings.Builder
	total := map[string]int{}
	for _, row := range slices.Sorted(maps.Keys(tb)) {
		fmt.Fprintf(&b, "\n  %-62s", row)
		for _, outcome := range slices.Sorted(maps.Keys(tb[row])) {
			fmt.Fprintf(&b, " %s: %d", outcome, tb[row][outcome])
			total[outcome] += tb[row][outcome]
		}
	}
	t.Logf("%s: %v%s", what, total, b.String())
}

// TestHostileServer lies in every field of every reply to everything that is done
// with a vault. Each lie is refused with an error that says what is wrong, or
// changes nothing, or shows what was true before (docs/FORMAT.md says when a
// store can do that): nobody is ever shown what was never so.
//
// What is written on the ground of a lie, a server that verifies nothing may
// keep. Then the vault is as damaged as if the server had written it: who reads
// is told so, or finds what was true. With a server that verifies, as when a lie
// came from something in between, all or nothing is written, and the right thing.
func TestHostileServer(t *testing.T) {
	for _, c := range []struct {
		what           string
		writes, memory bool
	}{{"reading", false, false}, {"reading with a memory", false, true}, {"writing", true, false}} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			h := &hostility{attacked: newAttacked(t), memory: c.memory, fields: table{}, ops: table{}, costly: map[string]int{}}
			if c.memory {
				h.options = []vault.Option{vault.WithWitness(h.remember(t))}
			}
			for _, op := range operations {
				if op.writes != c.writes || testing.Short() && !op.short {
					continue
				}
				h.against(t, op)
				if op.writes {
					h.liar.verifies = true
					h.against(t, op)
					h.liar.verifies = false
				}
			}
			h.fields.log(t, "by field")
			h.ops.log(t, "by operation")
			t.Logf("the slowest took %v", h.slowest.Round(time.Millisecond))
			if h.slowest > 15*time.Second {
				t.Errorf("the slowest took %v", h.slowest)
			}
		})
	}
}

// unmoved is a witness that learns nothing more.
type unmoved struct{ *witness.Witness }

func (unmoved) Remember([16]byte, func(*vault.Seen) bool) {}

// remember returns a witness that has seen all of the vault as it is now.
func (a *attacked) remember(t *testing.T) vault.Witness {
	t.Helper()
	w := witness.Open(t.TempDir(), func(err error) { t.Error(err) })
	all := *a
	all.options = []vault.Option{vault.WithWitness(w)}
	s, err := all.unlock(t.Context(), a.honest, a.account)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	for _, ref := range refs {
		if _, err := s.List(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	return unmoved{w}
}

// hostility is what was tried, and what came of it.
type hostility struct {
	*attacked
	memory      bool // it is known what was there
	fields, ops table
	costly      map[string]int
	slowest     time.Duration
}

// against tries every lie against one operation.
func (h *hostility) against(t *testing.T, op operation) {
	t.Helper()
	h.restore(t, h.now)
	before := h.state(t)
	h.liar.begin(nil)
	want, err := op.do(t.Context(), h.attacked, h.lying)
	if err != nil {
		t.Fatalf("%s, honestly: %v", op.name, err)
	}
	replies := h.liar.log
	c := &attempt{op: op, want: want, before: before, after: h.state(t)}
	h.restore(t, h.now)
	if op.writes != (c.before != c.after) && op.name != "RotateApp" && op.name != "DeriveMachineKey" {
		t.Fatalf("%s has not done its work", op.name)
	}
	var old []proto.Message
	if !op.writes {
		h.restore(t, h.older)
		h.liar.begin(nil)
		past := *h.attacked
		past.options = nil
		if _, err := op.do(t.Context(), &past, h.lying); err == nil || errors.Is(err, vault.ErrNotFound) {
			old = h.liar.log
		}
		h.restore(t, h.now)
	}
	for n, m := range replies {
		for _, v := range variants(m, h.pool, h.costly) {
			h.try(t, c, v.field, v.how, instead(n, v.lie))
		}
		name := string(m.ProtoReflect().Descriptor().Name())
		for _, earlier := range replies[:n] {
			if earlier.ProtoReflect().Descriptor() == m.ProtoReflect().Descriptor() && !proto.Equal(earlier, m) {
				h.try(t, c, name, "replayed from before in the same operation", instead(n, earlier))
			}
		}
		if n < len(old) && old[n].ProtoReflect().Descriptor() == m.ProtoReflect().Descriptor() {
			h.try(t, c, name, "from an earlier time", instead(n, old[n]))
		}
		if _, ok := m.(*vaultv1.ScanResponse); ok {
			end, bad := &vaultv1.ScanResponse{End: true}, &vaultv1.ScanResponse{}
			h.try(t, c, name, "twice", instead(n, m, m))
			h.try(t, c, name, "left out", instead(n))
			h.try(t, c, name, "after an end", instead(n, end, m))
			h.try(t, c, name, "an end before its time", instead(n, end))
			h.try(t, c, name, "followed by nothing", instead(n, m, bad))
			h.try(t, c, name, "preceded by nothing", instead(n, bad, m))
		}
		for code := codes.Canceled; code <= codes.Unauthenticated+1; code++ {
			if (n+int(code))%len(replies) != 0 { // each code at some reply
				continue
			}
			failed := status.Error(code, hostileText+strings.Repeat("x", 3000))
			h.tryCode(t, op, code, func(i int, m proto.Message) ([]proto.Message, error) {
				if i >= n {
					return nil, failed
				}
				return []proto.Message{m}, nil
			})
		}
	}
	if old != nil {
		h.try(t, c, "all replies", "from an earlier time", func(n int, m proto.Message) ([]proto.Message, error) {
			if n < len(old) && old[n].ProtoReflect().Descriptor() == m.ProtoReflect().Descriptor() {
				return old[n : n+1], nil
			}
			return []proto.Message{m}, nil
		})
	}
}

// attempt is an operation, what it finds when nobody lies, and what there is
// before and after.
type attempt struct {
	op            operation
	want          []string
	before, after string
}

// try lies once, and judges what came of it.
func (h *hostility) try(t *testing.T, c *attempt, field, how string, lie func(int, proto.Message) ([]proto.Message, error)) {
	t.Helper()
	what := fmt.Sprintf("%s: %s %s", c.op.name, field, how)
	h.liar.begin(lie)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	start := time.Now()
	got, err := c.op.do(ctx, h.attacked, h.lying)
	h.slowest = max(h.slowest, time.Since(start))
	outcome := "(from before)"
	switch {
	case err != nil:
		if outcome = refusal(err); outcome == "" {
			t.Errorf("%s: an error that says nothing: %v", what, err)
		}
		checkText(t, what, err)
	case slices.Equal(got, c.want):
		outcome = "(harmless)"
	case !c.op.writes:
		for _, line := range got {
			if !h.truth[line] {
				t.Errorf("%s: %q was never true", what, line)
			}
		}
	}
	if h.liar.committed() {
		now, serr := h.read(t)
		h.restore(t, h.now)
		switch {
		case serr != nil && (h.liar.verifies || refusal(serr) == ""):
			t.Errorf("%s: %v, and then %v", what, err, serr)
		case serr != nil:
			outcome += ", then " + refusal(serr)
		case now == c.before && err != nil, now == c.before && outcome == "(from before)", now == c.after && (err == nil || h.liar.verifies):
		case h.liar.verifies:
			t.Errorf("%s: %q, %v, and now there is\n%s", what, got, err, now)
		default:
			for line := range strings.Lines(now) {
				if line = strings.TrimSpace(line); !h.truth[line] && !strings.Contains(c.before+c.after, line) {
					t.Errorf("%s: now there is %q, which was never true", what, line)
				}
			}
			outcome += ", something else was written"
		}
	}
	h.mayBe(t, c.op, what, how, outcome)
	h.fields.add(field+" "+how, outcome)
	h.ops.add(c.op.name+map[bool]string{true: " (verified)"}[h.liar.verifies], outcome)
}

// mayBe fails when a lie has an outcome that a lie of this kind must not have.
func (h *hostility) mayBe(t *testing.T, op operation, what, how, outcome string) {
	t.Helper()
	bad := false
	switch {
	case h.memory:
		bad = outcome == "(from before)" && op.name != "History" // of which no more than the newest is remembered
	case how == "beyond a message": // after which the client asks for a stream
		bad = outcome != "malformed" && outcome != "(harmless)"
	case strings.HasSuffix(how, "flipped"), how == "one byte shorter", how == "half":
		bad = outcome == "(from before)"
	}
	if bad {
		t.Errorf("%s: %s", what, outcome)
	}
}

// tryCode is about a server that fails with a code, from some reply on.
func (h *hostility) tryCode(t *testing.T, op operation, code codes.Code, lie func(int, proto.Message) ([]proto.Message, error)) {
	t.Helper()
	h.liar.begin(lie)
	_, err := op.do(t.Context(), h.attacked, h.failing)
	if h.liar.committed() {
		h.restore(t, h.now)
	}
	if err == nil && code == codes.PermissionDenied {
		return // what was only asked for in advance
	}
	want := map[codes.Code]error{
		codes.Unavailable: store.ErrUnavailable, codes.DeadlineExceeded: store.ErrUnavailable, codes.Canceled: store.ErrUnavailable,
		codes.ResourceExhausted: store.ErrUnavailable, codes.Aborted: store.ErrBusy, codes.NotFound: remote.ErrNotFound,
		codes.Unauthenticated: remote.ErrUnauthenticated, codes.PermissionDenied: store.ErrDenied,
	}[code]
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Errorf("%s: code %v: %v", op.name, code, err)
		return
	}
	checkText(t, op.name, err)
}
