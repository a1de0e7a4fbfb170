package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

func TestSeal(t *testing.T) {
	const method = agentv1.Agent_Reveal_FullMethodName
	key, err := newSealKey()
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("something secret")
	sealed, err := sealTo(key.public, method, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := key.open(method, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%q, %v", got, err)
	}
	if len(sealed) != 32+len(plain)+16 { // RFC 9180: X25519 encapsulated key, AES-GCM tag
		t.Errorf("%d bytes for a plaintext of %d", len(sealed), len(plain))
	}
	again, _ := sealTo(key.public, method, plain)
	if bytes.Equal(again, sealed) {
		t.Error("the same plaintext is sealed to the same bytes twice")
	}
	refused := func(name string, k *sealKey, method string, sealed []byte) {
		t.Helper()
		if got, err := k.open(method, sealed); !errors.Is(err, envelope.ErrOpen) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	another, _ := newSealKey()
	refused("for another key", another, method, sealed)
	refused("for another call", key, agentv1.Agent_List_FullMethodName, sealed)
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		refused(fmt.Sprintf("byte %d changed", i), key, method, changed)
		refused(fmt.Sprintf("cut to %d bytes", i), key, method, sealed[:i])
	}
	refused("with a byte more", key, method, append(bytes.Clone(sealed), 0))
}

// The suite of proto/ov/agent/v1/agent.proto, by the numbers of RFC 9180 §7.
func TestSuite(t *testing.T) {
	if suiteKEM.ID() != 0x20 || suiteKDF.ID() != 1 || suiteAEAD.ID() != 2 {
		t.Errorf("KEM %#x, KDF %#x, AEAD %#x", suiteKEM.ID(), suiteKDF.ID(), suiteAEAD.ID())
	}
}

func TestSealToBadKeys(t *testing.T) {
	low := make([]byte, 32)
	low[0] = 1 // a point of order 4 (RFC 7748 §6.1)
	for name, public := range map[string][]byte{
		"none": nil, "short": make([]byte, 31), "long": make([]byte, 33), "zero": make([]byte, 32), "of low order": low,
	} {
		if sealed, err := sealTo(public, "/x", []byte("secret")); err == nil {
			t.Errorf("key %s: sealed to %x", name, sealed)
		}
	}
}

// Every message of the API, and why no field of it that could carry a value
// does. Fields of numbers and bools cannot.
var plainFields = map[string]string{
	"Ref.app": "a slug: routing", "Ref.env": "a slug: routing",
	"App.app": "a slug: routing", "App.envs": "slugs: routing",
	"CreateAppRequest.app": "a slug: routing", "DeleteAppRequest.app": "a slug: routing",
	"HelloResponse.public_key": "a public key", "RevealRequest.public_key": "a public key",
	"ListRequest.public_key": "a public key", "HistoryRequest.public_key": "a public key",
	"PutRequest.public_key": "a public key", "RollbackRequest.public_key": "a public key",
	"StatusResponse.vault": "a path", "StatusResponse.level": "one of three words",
	"StatusResponse.version": "of the program", "StatusResponse.memory": "one of two words",
	"StatusResponse.locked_because": "a sentence of the agent's",
	"ServerState.away_because":      "a sentence of the agent's, which may have what a server said of itself",
	"RevealRequest.names":           "names that the caller knows", "HistoryRequest.name": "a name that the caller knows",
	"DeleteRequest.names": "names that the caller knows", "RollbackRequest.name": "a name that the caller knows",
	"PutRequest.note": "one of a few words: how the version came about",
	"Fault.kind":      "one of a few words", "Fault.hint": "a command",
	"UnlockRequest.sealed": "sealed", "PutRequest.sealed": "sealed", "SealedResponse.sealed": "sealed",
}

func TestProtoHasNoPlaceForAValue(t *testing.T) {
	seen := map[string]bool{}
	var walk func(list protoreflect.MessageDescriptors)
	walk = func(list protoreflect.MessageDescriptors) {
		for i := range list.Len() {
			m := list.Get(i)
			walk(m.Messages())
			for j := range m.Fields().Len() {
				f := m.Fields().Get(j)
				switch f.Kind() {
				case protoreflect.StringKind, protoreflect.BytesKind:
				default:
					continue
				}
				name := string(m.Name()) + "." + string(f.Name())
				seen[name] = true
				why := plainFields[name]
				if why == "" {
					t.Errorf("%s can carry a secret in the clear: seal it, or say here why it holds none", name)
				}
				if sealed := f.Name() == "sealed"; sealed != (why == "sealed") || sealed && f.Kind() != protoreflect.BytesKind {
					t.Errorf("%s is %v, and %q", name, f.Kind(), why)
				}
			}
		}
	}
	walk(agentv1.File_ov_agent_v1_agent_proto.Messages())
	for name := range plainFields {
		if !seen[name] {
			t.Errorf("%s is no field any more", name)
		}
	}
}

// tap is a proxy between clients and an agent that keeps every byte.
type tap struct {
	socket string
	mu     sync.Mutex
	ways   []*bytes.Buffer // one each for what clients sent and what they got
	client []bool
}

func newTap(t *testing.T, agent string) *tap {
	t.Helper()
	p := &tap{socket: filepath.Join(shortDir(t), "tap")}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("unix", agent)
			if err != nil {
				_ = from.Close()
				return
			}
			go p.copy(to, from, true)
			go p.copy(from, to, false)
		}
	}()
	return p
}

func (p *tap) copy(to, from net.Conn, client bool) {
	defer func() { _, _ = to.Close(), from.Close() }()
	var kept bytes.Buffer
	p.mu.Lock()
	p.ways, p.client = append(p.ways, &kept), append(p.client, client)
	p.mu.Unlock()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		kept.Write(buf[:n])
		p.mu.Unlock()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// crossed is all that crossed the socket: the bytes as they were, then what
// HTTP/2 says with them, with headers unpacked and frames put together.
func (p *tap) crossed(t *testing.T) []byte {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var all bytes.Buffer
	for i, way := range p.ways {
		all.Write(way.Bytes())
		all.Write(unpack(t, bytes.Clone(way.Bytes()), p.client[i]))
	}
	return all.Bytes()
}

func unpack(t *testing.T, way []byte, client bool) []byte {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(way))
	if client {
		if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
			return nil
		}
	}
	framer := http2.NewFramer(io.Discard, r)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var all bytes.Buffer
	bodies := map[uint32]*bytes.Buffer{}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("what crossed is not HTTP/2: %v", err)
			}
			break
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				fmt.Fprintf(&all, "%s: %s\n", h.Name, h.Value)
			}
		case *http2.DataFrame:
			if bodies[f.StreamID] == nil {
				bodies[f.StreamID] = &bytes.Buffer{}
			}
			bodies[f.StreamID].Write(f.Data())
		}
	}
	for _, b := range bodies {
		all.Write(b.Bytes())
	}
	return all.Bytes()
}

func TestNothingInTheClearOnTheSocket(t *testing.T) {
	a := newAgent(t)
	p := newTap(t, a.socket)
	c := clientOf(t, p.socket)
	ctx := t.Context()
	const fresh, freshName = "a-fresh-value-that-is-put-h7Vw2", "FRESH_SECRET_NAME_IN_LIST"
	const large = "a-large-value-across-many-frames-9Lq" // 35 bytes, repeated
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wrong := locked(t, []byte("this-is-a-wrong-password-Xk29"))
	if err := c.Unlock(ctx, wrong); !errors.Is(err, vault.ErrWrongPassword) {
		t.Fatal(err)
	}
	check(c.Unlock(ctx, locked(t, []byte(masterPassword))))
	for _, key := range [][]byte{sharedFixture(t).env, sharedFixture(t).app, sharedFixture(t).account} {
		check(c.UnlockKey(ctx, locked(t, key)))
	}
	_, err := c.Put(ctx, shop, []vault.Put{
		{Name: freshName, Value: []byte(fresh)}, {Name: "LARGE_SECRET_NAME", Value: bytes.Repeat([]byte(large), 1800)},
	}, vault.PutOptions{Note: "set"})
	check(err)
	got, err := reveal(t, c, shop)
	check(err)
	if got[freshName] != fresh || got[nameOf(3)] != valueOf(3) || len(got) != secretCount+2 {
		t.Fatalf("%d secrets", len(got))
	}
	list, err := c.List(ctx, shop)
	check(err)
	if !slices.ContainsFunc(list, func(v vault.Version) bool { return v.Name == freshName }) {
		t.Fatal("the list lacks the new secret")
	}
	control := nameOf(7) // asked for by name, which is no secret from the caller
	_, err = c.History(ctx, shop, control)
	check(err)
	_, err = c.Put(ctx, shop, []vault.Put{{Name: freshName, Value: []byte("second-value-of-the-fresh-one")}}, vault.PutOptions{})
	check(err)
	_, err = c.Put(ctx, shop, []vault.Put{{Name: freshName, Value: []byte(fresh)}}, vault.PutOptions{Existing: vault.RefuseExisting, DryRun: true})
	if !errors.Is(err, vault.ErrExists) {
		t.Fatal(err)
	}
	_, err = c.Rollback(ctx, shop, nameOf(7), 1)
	check(err)
	check(c.Lock(ctx))
	_, err = c.Status(ctx)
	check(err)

	crossed := p.crossed(t)
	secrets := []string{
		masterPassword, "this-is-a-wrong-password-Xk29", string(sharedFixture(t).account), string(sharedFixture(t).app),
		string(sharedFixture(t).env), fresh, large, "second-value-of-the-fresh-one", nameOf(3), "LARGE_SECRET_NAME",
	}
	for i := range secretCount {
		secrets = append(secrets, valueOf(i))
	}
	absent(t, "on the socket", crossed, control, secrets...)
	t.Logf("%d bytes crossed the socket", len(crossed)/2)
}

// What was seen on one connection is worth nothing on another, and nothing for
// another call.
func TestReplayIsRefused(t *testing.T) {
	a := newAgent(t)
	ctx := t.Context()
	first, second := a.client(t), a.client(t)
	hello, err := first.rpc.Hello(ctx, &agentv1.HelloRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealTo(hello.PublicKey, agentv1.Agent_Unlock_FullMethodName, sharedFixture(t).account)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.InvalidArgument || !errors.Is(fromStatus(err), vault.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		if a.unlockedNow() {
			t.Fatalf("%s: unlocked", what)
		}
	}
	unlock := func(c *Client, sealed []byte) error {
		_, err := c.rpc.Unlock(ctx, &agentv1.UnlockRequest{Sealed: sealed, MachineKey: true})
		return err
	}
	refused("on a connection without a key", unlock(second, sealed))
	if _, err := second.rpc.Hello(ctx, &agentv1.HelloRequest{}); err != nil {
		t.Fatal(err)
	}
	refused("on another connection", unlock(second, sealed))
	forPut, _ := sealTo(hello.PublicKey, agentv1.Agent_Put_FullMethodName, sharedFixture(t).account)
	refused("sealed for another call", unlock(first, forPut))
	refused("empty", unlock(first, nil))
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 0x80
		refused(fmt.Sprintf("byte %d changed", i), unlock(first, changed))
	}
	if err := unlock(first, sealed); err != nil {
		t.Errorf("the message itself: %v", err)
	}
	if !a.unlockedNow() {
		t.Error("still locked")
	}

	// The same for Put, whose messages write.
	public, _ := newSealKey()
	put := func(c *Client, sealed []byte) error {
		stream, err := c.rpc.Put(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&agentv1.PutRequest{Ref: protoRef(shop), PublicKey: public.public, Sealed: sealed}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	sealed, _, err = sealPuts(hello.PublicKey, []vault.Put{{Name: "REPLAYED", Value: []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := put(second, sealed); !errors.Is(fromStatus(err), vault.ErrInvalid) {
		t.Errorf("a Put on another connection: %v", err)
	}
	plain := envelope.Fields([]byte("REPLAYED"), []byte("x"), nil)
	forUnlock, _ := sealTo(hello.PublicKey, agentv1.Agent_Unlock_FullMethodName, plain)
	if err := put(first, forUnlock); !errors.Is(fromStatus(err), vault.ErrInvalid) {
		t.Errorf("an Unlock's message in a Put: %v", err)
	}
	if _, err := reveal(t, first, shop, "REPLAYED"); !errors.Is(err, vault.ErrNotFound) {
		t.Errorf("something was written: %v", err)
	}
	if err := put(first, sealed); err != nil {
		t.Errorf("the Put itself: %v", err)
	}
	mustReveal(t, first, shop, "REPLAYED", "x")
}

func (a *testAgent) unlockedNow() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held != nil
}

// An answer can be opened only with the key that was made for the request, and
// not as the answer to another call.
func TestAnswerBelongsToItsRequest(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	key, another := &sealKey{}, &sealKey{}
	for _, k := range []**sealKey{&key, &another} {
		made, err := newSealKey()
		if err != nil {
			t.Fatal(err)
		}
		*k = made
	}
	resp, err := c.rpc.Reveal(t.Context(), &agentv1.RevealRequest{Ref: protoRef(shop), Names: []string{nameOf(1)}, PublicKey: key.public})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := another.open(agentv1.Agent_Reveal_FullMethodName, resp.Sealed); err == nil {
		t.Error("another key opens it")
	}
	if _, err := key.open(agentv1.Agent_List_FullMethodName, resp.Sealed); err == nil {
		t.Error("it opens as the answer to List")
	}
	plain, err := key.open(agentv1.Agent_Reveal_FullMethodName, resp.Sealed)
	if err != nil || !strings.Contains(string(plain), valueOf(1)) {
		t.Errorf("the key itself: %v", err)
	}
}

// Two connections never have one key, and one connection has one.
func TestConnectionKeys(t *testing.T) {
	a := newAgent(t)
	hello := func(c *Client) string {
		r, err := c.rpc.Hello(t.Context(), &agentv1.HelloRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return string(r.PublicKey)
	}
	seen := map[string]bool{}
	for range 5 {
		c := a.client(t)
		k := hello(c)
		if seen[k] || len(k) != 32 {
			t.Fatalf("a key of %d bytes, seen before: %v", len(k), seen[k])
		}
		seen[k] = true
		if hello(c) != k {
			t.Error("a second Hello gives another key: what was sealed to the first is lost")
		}
	}
}

// A message of a caller that sends nonsense in place of its key writes nothing.
func TestBadPublicKeyWritesNothing(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	ctx := t.Context()
	hello, err := c.rpc.Hello(ctx, &agentv1.HelloRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, _, _ := sealPuts(hello.PublicKey, []vault.Put{{Name: nameOf(0), Value: []byte("overwritten")}})
	for _, public := range [][]byte{nil, make([]byte, 31), make([]byte, 33)} {
		stream, err := c.rpc.Put(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&agentv1.PutRequest{Ref: protoRef(shop), PublicKey: public, Sealed: sealed})
		if _, err := stream.CloseAndRecv(); !errors.Is(fromStatus(err), vault.ErrInvalid) {
			t.Errorf("Put with a key of %d bytes: %v", len(public), err)
		}
		if _, err := c.rpc.Rollback(ctx, &agentv1.RollbackRequest{Ref: protoRef(shop), Name: nameOf(0), Version: 1, PublicKey: public}); !errors.Is(fromStatus(err), vault.ErrInvalid) {
			t.Errorf("Rollback with a key of %d bytes: %v", len(public), err)
		}
		if _, err := c.rpc.Reveal(ctx, &agentv1.RevealRequest{Ref: protoRef(shop), All: true, PublicKey: public}); !errors.Is(fromStatus(err), vault.ErrInvalid) {
			t.Errorf("Reveal with a key of %d bytes: %v", len(public), err)
		}
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
	history, err := c.History(ctx, shop, nameOf(0))
	if err != nil || len(history) != 1 {
		t.Errorf("%d versions, %v", len(history), err)
	}
}
