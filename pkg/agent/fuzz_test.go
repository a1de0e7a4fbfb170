package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// memory is a store that can be put back to where it was.
type memory struct {
	mu      sync.Mutex
	records map[string][]byte
}

type memoryReader map[string][]byte

func (m memoryReader) Get(key []byte) ([]byte, error) { return m[string(key)], nil }

func (m memoryReader) Scan(prefix []byte, fn func(key, value []byte) error) error {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if strings.HasPrefix(k, string(prefix)) {
			if err := fn([]byte(k), m[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m memoryReader) Last(prefix []byte) (key, value []byte, err error) {
	err = m.Scan(prefix, func(k, v []byte) error {
		key, value = k, v
		return nil
	})
	return key, value, err
}

func (m memoryReader) Fetch(...store.Range) error { return nil }

func (m *memory) View(_ context.Context, fn func(store.Reader) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fn(memoryReader(m.records))
}

func (m *memory) Update(_ context.Context, fn func(store.Reader) (store.Batch, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := fn(memoryReader(m.records))
	if err != nil {
		return err
	}
	for _, op := range b {
		if op.Value == nil {
			delete(m.records, string(op.Key))
		} else {
			m.records[string(op.Key)] = bytes.Clone(op.Value)
		}
	}
	return nil
}

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = rawCodec{}

// FuzzRequest sends an agent any bytes as the message of any of its calls. When
// they are a message that has something sealed, what is sealed is plain: it
// reaches the parser behind the seal.
func FuzzRequest(f *testing.F) {
	var saved map[string][]byte
	st := &memory{records: map[string][]byte{}}
	err := bolt.New(copyVault(f, f.TempDir())).View(context.Background(), func(r store.Reader) error {
		return r.Scan(nil, func(key, value []byte) error {
			st.records[string(key)] = bytes.Clone(value)
			return nil
		})
	})
	if err != nil || len(st.records) < secretCount {
		f.Fatal(len(st.records), err)
	}
	saved = maps.Clone(st.records)
	stops := make(chan struct{}, 1)
	a := newAgent(f, func(c *Config) {
		c.Vault = vault.New(st)
		c.Stop = func() {
			select {
			case stops <- struct{}{}:
			default:
			}
		}
	})
	c := a.client(f)
	hello, err := c.rpc.Hello(context.Background(), &agentv1.HelloRequest{})
	if err != nil {
		f.Fatal(err)
	}
	key, err := newSealKey()
	if err != nil {
		f.Fatal(err)
	}
	methods := agentv1.File_ov_agent_v1_agent_proto.Services().ByName("Agent").Methods()
	f.Fuzz(func(t *testing.T, which byte, message, plain []byte) {
		st.mu.Lock()
		st.records = maps.Clone(saved)
		st.mu.Unlock()
		a.logged.mu.Lock()
		a.logged.b.Reset()
		a.logged.mu.Unlock()
		if !a.unlockedNow() {
			a.open(t)
		}
		m := methods.Get(int(which) % methods.Len())
		method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		message = dress(m, method, message, plain, hello.PublicKey, key.public)

		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var got []byte
		var err error
		if m.IsStreamingClient() {
			got, err = stream(ctx, c.conn, method, message)
		} else {
			err = c.conn.Invoke(ctx, method, &message, &got, grpc.ForceCodecV2(rawCodec{}))
		}
		switch code := status.Code(err); {
		case code == codes.Unknown, code == codes.Unavailable, code == codes.DeadlineExceeded:
			t.Errorf("%s: %v", method, err)
		case code == codes.Internal && proto.Unmarshal(message, dynamicpb.NewMessage(m.Input())) == nil:
			t.Errorf("%s failed at a message that is one: %v", method, err)
		}
		if strings.Contains(a.logged.String(), "msg=panic") {
			t.Errorf("%s: a panic\n%s", method, a.logged)
		}
		if bytes.Contains(got, []byte("plain-value-of-secret")) || err != nil && strings.Contains(err.Error(), "plain-value-of-secret") {
			t.Errorf("%s: a value is in the answer: %q, %v", method, got, err)
		}
		if err == nil && m.Output().Name() == "SealedResponse" {
			var resp agentv1.SealedResponse
			if err := proto.Unmarshal(got, &resp); err != nil || len(resp.Sealed) < 48 {
				t.Errorf("%s: %d bytes sealed, %v", method, len(resp.Sealed), err)
			}
		}
	})
}

// dress puts what an honest client would make into a message that has a place
// for it: the seal around plain, the caller's key.
func dress(m protoreflect.MethodDescriptor, method string, message, plain, agent, caller []byte) []byte {
	msg := dynamicpb.NewMessage(m.Input())
	if proto.Unmarshal(message, msg) != nil {
		return message
	}
	fields := m.Input().Fields()
	if f := fields.ByName("sealed"); f != nil && len(plain) > 0 {
		sealed, err := sealTo(agent, method, plain)
		if err != nil {
			panic(err)
		}
		msg.Set(f, protoreflect.ValueOfBytes(sealed))
	}
	if f := fields.ByName("public_key"); f != nil && !msg.Has(f) {
		msg.Set(f, protoreflect.ValueOfBytes(caller))
	}
	if f := fields.ByName("machine_key"); f != nil {
		msg.Set(f, protoreflect.ValueOfBool(true)) // a password takes too long to try
	}
	dressed, err := proto.Marshal(msg)
	if err != nil {
		return message
	}
	return dressed
}

// stream sends one message and takes the answer.
func stream(ctx context.Context, conn *grpc.ClientConn, method string, message []byte) (got []byte, err error) {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, method, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(&message); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	return got, s.RecvMsg(&got)
}

// FuzzPuts takes apart what a client sealed into a Put.
func FuzzPuts(f *testing.F) {
	f.Fuzz(func(t *testing.T, plain []byte) {
		puts, err := parsePuts(bytes.Clone(plain))
		if err != nil {
			if !errors.Is(err, vault.ErrInvalid) || len(puts) != 0 {
				t.Errorf("%d secrets, %v", len(puts), err)
			}
			return
		}
		// There is one way to write down what was read.
		var fields [][]byte
		for _, p := range puts {
			var replaces []byte
			if p.Replaces != nil {
				replaces = envelope.Uint32(*p.Replaces)
			}
			fields = append(fields, []byte(p.Name), p.Value, replaces)
		}
		if again := envelope.Fields(fields...); !bytes.Equal(again, plain) {
			t.Errorf("%x was read as %x", plain, again)
		}
	})
}

// FuzzSealedResponse gives a client any bytes as an agent's answer, sealed or in
// place of the seal.
func FuzzSealedResponse(f *testing.F) {
	f.Fuzz(func(t *testing.T, which byte, answer []byte, sealed bool) {
		agent := hostile{plain: answer}
		if !sealed {
			agent.sealed = append([]byte{}, answer...)
		}
		c := &Client{rpc: &agent}
		var fields [][]byte
		var err error
		ctx := context.Background()
		switch which % 4 {
		case 0:
			agent.method = agentv1.Agent_Reveal_FullMethodName
			err = c.Reveal(ctx, shop, vault.Select{}, func(list []vault.Secret) error {
				for _, s := range list {
					fields = append(fields, []byte(s.Name), bytes.Clone(s.Value), envelope.Uint32(s.Version))
				}
				return nil
			})
		case 1:
			agent.method = agentv1.Agent_List_FullMethodName
			var list []vault.Version
			list, err = c.List(ctx, shop)
			fields = versionFields(list)
		case 2:
			agent.method = agentv1.Agent_History_FullMethodName
			var list []vault.Version
			list, err = c.History(ctx, shop, "X")
			fields = versionFields(list)
		case 3:
			agent.method = agentv1.Agent_Rollback_FullMethodName
			var r vault.PutResult
			if r, err = c.Rollback(ctx, shop, "X", 1); err == nil {
				fields = resultFields([]vault.PutResult{r})
				_ = r.Outcome.String() // one that has a name
			}
		}
		if !sealed {
			if err == nil {
				t.Errorf("%x, which no agent sealed, was taken for an answer", answer)
			}
			return
		}
		if err == nil && !bytes.Equal(envelope.Fields(fields...), answer) {
			t.Errorf("%x was read as %x", answer, envelope.Fields(fields...))
		}
	})
}

// FuzzFault gives a client any status as an agent's error.
func FuzzFault(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var st spb.Status
		if proto.Unmarshal(b, &st) != nil || st.Code == 0 {
			return
		}
		err := fromStatus(status.FromProto(&st).Err())
		if err == nil {
			t.Fatalf("%v became no error", &st)
		}
		_, _ = err.Error(), hint.Of(err)
		is := 0
		for _, f := range faults {
			if errors.Is(err, f.err) {
				is++
			}
		}
		if is > 1 {
			t.Errorf("%v is %d errors", &st, is)
		}
	})
}
