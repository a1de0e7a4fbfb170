package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// attacker is a client that speaks HTTP/2 by hand, and badly.
type attacker struct {
	net.Conn
	*http2.Framer
	block bytes.Buffer
	hpack *hpack.Encoder
}

func attack(socket string) (*attacker, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	a := &attacker{Conn: c, Framer: http2.NewFramer(c, c)}
	a.AllowIllegalWrites = true
	a.hpack = hpack.NewEncoder(&a.block)
	return a, nil
}

// greet sends the preface and settings.
func (a *attacker) greet(settings ...http2.Setting) error {
	if _, err := io.WriteString(a.Conn, http2.ClientPreface); err != nil {
		return err
	}
	return a.WriteSettings(settings...)
}

// headers are those of a call, and more.
func (a *attacker) headers(method string, more ...hpack.HeaderField) []byte {
	a.block.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "agent"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		_ = a.hpack.WriteField(f)
	}
	return a.block.Bytes()
}

// call opens a stream for a call.
func (a *attacker) call(stream uint32, method string) error {
	return a.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: a.headers(method), EndHeaders: true})
}

// message sends a message, or so much of it, on a stream.
func (a *attacker) message(stream uint32, m proto.Message, cut int) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	b = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	return a.WriteData(stream, false, b[:min(cut, len(b))])
}

// drain reads what the agent says, as a client must who wants to go on.
func (a *attacker) drain() { go func() { _, _ = io.Copy(io.Discard, a.Conn) }() }

// attacks go on until one of their writes fails; they are then begun again on a
// new connection.
var attacks = map[string]func(a *attacker) error{
	"garbage": func(a *attacker) error {
		junk := make([]byte, 4096)
		rand.New(rand.NewSource(1)).Read(junk)
		for {
			if _, err := a.Conn.Write(junk); err != nil {
				return err
			}
		}
	},
	"zeros": func(a *attacker) error {
		for {
			if _, err := a.Conn.Write(make([]byte, 65536)); err != nil {
				return err
			}
		}
	},
	"another protocol": func(a *attacker) error {
		_, _ = io.WriteString(a.Conn, "GET / HTTP/1.1\r\nHost: agent\r\n\r\n")
		_, err := a.Conn.Read(make([]byte, 1))
		return err
	},
	"connect and leave": func(*attacker) error { return io.EOF },
	"garbage after the greeting": func(a *attacker) error {
		junk := make([]byte, 4096)
		rand.New(rand.NewSource(2)).Read(junk)
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for {
			if _, err := a.Conn.Write(junk); err != nil {
				return err
			}
		}
	},
	"a frame of 16 MiB": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		if err := a.call(1, agentv1.Agent_Reveal_FullMethodName); err != nil {
			return err
		}
		for {
			if err := a.WriteData(1, false, make([]byte, 1<<24-1)); err != nil {
				return err
			}
		}
	},
	"a message said to be of 4 GiB": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			if err := a.call(id, agentv1.Agent_Reveal_FullMethodName); err != nil {
				return err
			}
			if err := a.WriteData(id, false, append([]byte{0, 0xff, 0xff, 0xff, 0xff}, make([]byte, 8000)...)); err != nil {
				return err
			}
		}
	},
	"a compressed message": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			block := a.headers(agentv1.Agent_Reveal_FullMethodName, hpack.HeaderField{Name: "grpc-encoding", Value: "gzip"})
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}); err != nil {
				return err
			}
			if err := a.WriteData(id, true, []byte{1, 0, 0, 0, 4, 0x1f, 0x8b, 8, 0}); err != nil {
				return err
			}
		}
	},
	"streams without end": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			if err := a.call(id, agentv1.Agent_Put_FullMethodName); err != nil {
				return err
			}
		}
	},
	"rapid reset": func(a *attacker) error { // CVE-2023-44487
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			if err := a.call(id, agentv1.Agent_Reveal_FullMethodName); err != nil {
				return err
			}
			if err := a.message(id, &agentv1.RevealRequest{Ref: protoRef(shop), All: true, PublicKey: make([]byte, 32)}, 1<<20); err != nil {
				return err
			}
			if err := a.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
				return err
			}
		}
	},
	"settings": func(a *attacker) error { // CVE-2019-9515
		if err := a.greet(); err != nil {
			return err
		}
		for {
			if err := a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}); err != nil {
				return err
			}
		}
	},
	"pings": func(a *attacker) error { // CVE-2019-9512
		if err := a.greet(); err != nil {
			return err
		}
		for {
			if err := a.WritePing(false, [8]byte{1}); err != nil {
				return err
			}
		}
	},
	"empty frames": func(a *attacker) error { // CVE-2019-9518
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		if err := a.call(1, agentv1.Agent_Put_FullMethodName); err != nil {
			return err
		}
		for {
			if err := a.WriteData(1, false, nil); err != nil {
				return err
			}
		}
	},
	"large headers": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		value := strings.Repeat("x", 60_000)
		for id := uint32(1); ; id += 2 {
			block := bytes.Clone(a.headers(agentv1.Agent_Reveal_FullMethodName, hpack.HeaderField{Name: "x", Value: value}))
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:16000]}); err != nil {
				return err
			}
			for block = block[16000:]; len(block) > 0; block = block[min(16000, len(block)):] {
				if err := a.WriteContinuation(id, len(block) <= 16000, block[:min(16000, len(block))]); err != nil {
					return err
				}
			}
		}
	},
	"headers without end": func(a *attacker) error { // CVE-2023-45288
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.headers(agentv1.Agent_Reveal_FullMethodName)}); err != nil {
			return err
		}
		for i := 0; ; i++ {
			a.block.Reset()
			for j := range 100 {
				_ = a.hpack.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d-%d", i, j), Value: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"})
			}
			if err := a.WriteContinuation(1, false, a.block.Bytes()); err != nil {
				return err
			}
		}
	},
	"a header bomb": func(a *attacker) error { // one byte for 4 KB, CVE-2016-6581
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		big := hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 4000)}
		for id := uint32(1); ; id += 2 {
			bomb := bytes.Clone(a.headers(agentv1.Agent_Reveal_FullMethodName, big))
			bomb = append(bomb, bytes.Repeat([]byte{0x80 | 62}, 8000)...) // the newest entry of the table, RFC 7541 §6.1
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: bomb, EndHeaders: true}); err != nil {
				return err
			}
		}
	},
	"windows too large": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for {
			if err := a.WriteWindowUpdate(0, 1<<31-1); err != nil {
				return err
			}
		}
	},
	"priorities": func(a *attacker) error { // CVE-2019-9513
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			if err := a.WritePriority(id, http2.PriorityParam{StreamDep: id + 2}); err != nil {
				return err
			}
		}
	},
	"answers that are not read": func(a *attacker) error { // CVE-2019-9517
		if err := a.greet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
			return err
		}
		key, err := newSealKey()
		if err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			if err := a.call(id, agentv1.Agent_Reveal_FullMethodName); err != nil {
				return err
			}
			if err := a.message(id, &agentv1.RevealRequest{Ref: protoRef(shop), All: true, PublicKey: key.public}, 1<<20); err != nil {
				return err
			}
			if err := a.WriteData(id, true, nil); err != nil {
				return err
			}
		}
	},
	"unlocking": func(a *attacker) error { // with what does not even decrypt
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		for id := uint32(1); ; id += 2 {
			if err := a.call(id, agentv1.Agent_Unlock_FullMethodName); err != nil {
				return err
			}
			if err := a.message(id, &agentv1.UnlockRequest{Sealed: make([]byte, 200_000)}, 1<<20); err != nil {
				return err
			}
		}
	},
	"nonsense in protobuf": func(a *attacker) error {
		if err := a.greet(); err != nil {
			return err
		}
		a.drain()
		r := rand.New(rand.NewSource(3))
		for id := uint32(1); ; id += 2 {
			all := calls()
			if err := a.call(id, all[r.Intn(len(all))]); err != nil {
				return err
			}
			junk := make([]byte, 1000)
			r.Read(junk)
			copy(junk, []byte{0, 0, 0, 3, 0xe3})
			if err := a.WriteData(id, true, junk); err != nil {
				return err
			}
		}
	},
}

// Whatever one process does to the agent, another is served as if nothing were.
func TestFloods(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	served(t, h.socket, 20)
	for name, flood := range attacks {
		t.Run(name, func(t *testing.T) {
			var stop atomic.Bool
			var connections atomic.Int64
			var wg sync.WaitGroup
			var open sync.Map
			for range 4 {
				wg.Go(func() {
					for !stop.Load() {
						a, err := attack(h.socket)
						if err != nil {
							time.Sleep(time.Millisecond)
							continue
						}
						open.Store(a, true)
						connections.Add(1)
						_ = flood(a)
						_ = a.Close()
						open.Delete(a)
					}
				})
			}
			time.Sleep(100 * time.Millisecond)
			served(t, h.socket, 10)
			stop.Store(true)
			open.Range(func(a, _ any) bool { _ = a.(*attacker).Close(); return true })
			wg.Wait()
			wait(t, "this process, too, is served again", func() bool {
				st, err := d.status()
				return err == nil && st.Unlocked
			})
			used := memoryOf(t, d.Process.Pid)
			if used > 256<<20 {
				t.Errorf("the agent takes %d MiB", used>>20)
			}
			t.Logf("%d connections; the agent took at most %d MiB", connections.Load(), used>>20)
		})
	}
	if size := len(d.logged.String()); size > 64<<10 {
		t.Errorf("the log has %d KiB", size>>10)
	}
	if strings.Contains(d.logged.String(), "panic") {
		t.Errorf("a handler panicked:\n%s", d.logged)
	}
	// All is given back.
	wait(t, "the agent's connections are closed", func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Process.Pid))
		return err != nil || len(fds) < 20
	})
}

// memoryOf returns the most memory that a process has had, in bytes; 0 where
// the system does not tell.
func memoryOf(t testing.TB, pid int) (n int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// A client that stops in the middle of whatever it was about to do keeps
// nobody else waiting.
func TestStalledClients(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	for name, stall := range map[string]func(a *attacker) error{
		"before a byte":         func(*attacker) error { return nil },
		"inside the greeting":   func(a *attacker) error { _, err := io.WriteString(a.Conn, http2.ClientPreface[:9]); return err },
		"after the greeting":    func(a *attacker) error { return a.greet() },
		"inside a frame's head": func(a *attacker) error { return errors.Join(a.greet(), a.raw(0, 0, 5, 1)) },
		"inside a frame": func(a *attacker) error {
			return errors.Join(a.greet(), a.call(1, agentv1.Agent_Reveal_FullMethodName), a.raw(0, 0x20, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3))
		},
		"inside the headers": func(a *attacker) error {
			return errors.Join(a.greet(), a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.headers("/x")}))
		},
		"before the message": func(a *attacker) error { return errors.Join(a.greet(), a.call(1, agentv1.Agent_Reveal_FullMethodName)) },
		"inside the message": func(a *attacker) error {
			return errors.Join(a.greet(), a.call(1, agentv1.Agent_Reveal_FullMethodName),
				a.message(1, &agentv1.RevealRequest{Ref: protoRef(shop), Names: []string{nameOf(1)}}, 10))
		},
		"inside eight Puts": func(a *attacker) error {
			err := a.greet()
			for id := uint32(1); id < 16; id += 2 {
				err = errors.Join(err, a.call(id, agentv1.Agent_Put_FullMethodName), a.message(id, &agentv1.PutRequest{Ref: protoRef(shop), PublicKey: make([]byte, 32)}, 20))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var stalled []*attacker
			defer func() {
				for _, a := range stalled {
					_ = a.Close()
				}
			}()
			for range 100 { // more than the agent lets one process have
				a, err := attack(h.socket)
				if err != nil {
					t.Fatal(err)
				}
				stalled = append(stalled, a)
				if err := stall(a); err != nil && !isClosed(err) {
					t.Fatal(err)
				}
			}
			served(t, h.socket, 10)
		})
	}
	wait(t, "this process is served again", func() bool {
		st, err := d.status()
		return err == nil && st.Unlocked
	})
}

func (a *attacker) raw(b ...byte) error { _, err := a.Conn.Write(b); return err }

// isClosed reports whether the agent has closed the connection.
func isClosed(err error) bool {
	return strings.Contains(err.Error(), "broken pipe") || strings.Contains(err.Error(), "reset by peer")
}

func TestThousandConnections(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	const many, most = 1000, 64 // peer.DefaultLimits, for one process
	var all []*attacker
	defer func() {
		for _, a := range all {
			_ = a.Close()
		}
	}()
	for len(all) < many {
		a, err := attack(h.socket)
		if err != nil { // the queue is full for a moment
			time.Sleep(time.Millisecond)
			continue
		}
		all = append(all, a)
		_ = a.greet()
	}
	served(t, h.socket, 20)
	var open atomic.Int64
	var wg sync.WaitGroup
	for _, a := range all {
		wg.Go(func() {
			_ = a.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := io.Copy(io.Discard, a.Conn); errors.Is(err, os.ErrDeadlineExceeded) {
				open.Add(1)
			}
		})
	}
	wg.Wait()
	if n := open.Load(); n == 0 || n > most {
		t.Errorf("%d of %d connections of one process are open, the bound is %d", n, many, most)
	}
	if n := strings.Count(d.logged.String(), "connection refused"); n == 0 || n > 20 {
		t.Errorf("%d lines about %d refused connections", n, many-most)
	}
	// This process has the places, and none for a client of its own but by the
	// silence of the others, whose places it then gets.
	time.Sleep(time.Second)
	if st, err := d.status(); err != nil || !st.Unlocked {
		t.Errorf("%+v, %v", st, err)
	}
}

// putInto sends secrets of n bytes into an open Put.
func putInto(t *testing.T, hello []byte, stream agentv1.Agent_PutClient, n int) error {
	t.Helper()
	for list := secretsOf(n); len(list) > 0; {
		sealed, k, err := sealPuts(hello, list)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(putMessage(sealed)); err != nil {
			return err
		}
		list = list[k:]
	}
	return nil
}

func TestPutTooLarge(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	c := d.client(t)
	list := secretsOf(maxPut + 1<<20)
	_, err := c.Put(t.Context(), other, list, vault.PutOptions{})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "more than 67108864 bytes of secrets at once") {
		t.Errorf("%v", err)
	}
	if got, err := c.List(t.Context(), other); err != nil || len(got) != 1 {
		t.Errorf("something was written: %d, %v", len(got), err)
	}
	// What it held is given back: there is room for as much, four times.
	for range 4 {
		if _, err := c.Put(t.Context(), other, list[:300], vault.PutOptions{DryRun: true}); err != nil {
			t.Fatal(err)
		}
	}
	// An answer that would be too large is known of before anything is written.
	puts := make([]vault.Put, 130_000)
	for i := range puts {
		puts[i].Name = fmt.Sprintf("%0250d", i)
	}
	if err := checkAnswer(puts); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an answer of 35 MB: %v", err)
	}
	if err := checkAnswer(puts[:100_000]); err != nil {
		t.Errorf("an answer of 27 MB: %v", err)
	}
}

// An env that does not fit into an answer is refused before a value of it is
// decrypted: the agent does not even see that they are damaged.
func TestRevealTooLarge(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	if _, err := c.Put(t.Context(), other, secretsOf(maxMessage), vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	damage := func(r store.Reader) (b store.Batch, err error) {
		err = r.Scan([]byte("v"), func(key, value []byte) error { // as docs/FORMAT.md has it
			value = bytes.Clone(value)
			value[len(value)-1] ^= 1
			b.Put(bytes.Clone(key), value)
			return nil
		})
		return b, err
	}
	if err := bolt.New(a.path).Update(t.Context(), damage); err != nil {
		t.Fatal(err)
	}
	never := func([]vault.Secret) error { t.Error("called"); return nil }
	err := c.Reveal(t.Context(), other, vault.Select{}, never)
	if !errors.Is(err, ErrTooLarge) || hint.Of(err) != "do it in parts, by name" {
		t.Errorf("all: %v", err)
	}
	err = c.Reveal(t.Context(), other, vault.Select{Names: []string{"BULK_0"}}, never)
	if !errors.Is(err, vault.ErrDamaged) {
		t.Errorf("one: %v", err)
	}
}

// Secrets without a name or value take no bytes to speak of, but memory.
func TestPutOfTooMany(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	_, err := c.Put(t.Context(), other, make([]vault.Put, vault.MaxBatch+20_000), vault.PutOptions{})
	if !errors.Is(err, vault.ErrInvalid) || !strings.Contains(err.Error(), "more than 200000 secrets at once") {
		t.Errorf("%v", err)
	}
}

// A process that fills its share of what Puts may hold, and stalls, leaves room
// to others, and has it again when it lets go.
func TestStalledPutsLeaveRoom(t *testing.T) {
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	c, stalled := d.client(t), d.client(t)
	for range 2 {
		hello, stream := openPut(t, stalled, other)
		if err := putInto(t, hello, stream, maxPut/2-2<<20); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "no room for this process", func() bool {
		_, err := c.Put(t.Context(), other, secretsOf(6<<20), vault.PutOptions{DryRun: true})
		return errors.Is(err, ErrLimit)
	})
	out, err := child("put", h.socket, fmt.Sprint(8<<20)).Output()
	var said string
	if err := errors.Join(err, json.Unmarshal(out, &said)); err != nil || said != "" {
		t.Errorf("another process: %v, %q", err, said)
	}
	served(t, h.socket, 5)
	_ = stalled.Close()
	wait(t, "there is room again", func() bool {
		_, err := c.Put(t.Context(), other, secretsOf(6<<20), vault.PutOptions{DryRun: true})
		return err == nil
	})
}

// Whoever stalls loses the place when its time is over.
func TestStalledPutEnds(t *testing.T) {
	a := newAgent(t)
	a.timeout = 500 * time.Millisecond
	a.open(t)
	_, stream := openPut(t, a.client(t), other)
	if err := stream.RecvMsg(new(agentv1.SealedResponse)); !errors.Is(fromStatus(err), context.DeadlineExceeded) {
		t.Errorf("a stalled Put ended with: %v", err)
	}
	a.timeout = requestTimeout
}

// stuckStore is a vault's file that is read only once it is let go.
type stuckStore struct {
	store.Store
	stuck chan struct{}
	n     atomic.Int32
}

func (s *stuckStore) View(ctx context.Context, fn func(store.Reader) error) error {
	s.n.Add(1)
	defer s.n.Add(-1)
	select {
	case <-s.stuck:
		return s.Store.View(ctx, fn)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Requests beyond those that are served at a time wait their turn; those of
// another process do not wait for them.
func TestRequestsInFlight(t *testing.T) {
	a := newAgent(t)
	a.open(t)
	stuck := &stuckStore{Store: vaultStore(t, a), stuck: make(chan struct{})}
	b := newAgent(t, func(c *Config) { c.Vault = vault.New(stuck) })
	b.admitWait = 300 * time.Millisecond
	close(stuck.stuck)
	b.openWith(t, sharedFixture(t).account)
	stuck.stuck = make(chan struct{})

	const most, asked = 16, 40 // peer.Halving(maxRequests), for one process
	results := make(chan error, asked)
	for i := range asked {
		c := b.client(t)
		go func() {
			results <- c.Reveal(context.Background(), shop, vault.Select{Names: []string{nameOf(i % secretCount)}}, func([]vault.Secret) error { return nil })
		}()
	}
	for range asked - most {
		if err := <-results; !errors.Is(err, ErrLimit) {
			t.Errorf("a request beyond the bound: %v", err)
		}
	}
	if n := stuck.n.Load(); n != most {
		t.Errorf("%d requests are served at a time, not %d", n, most)
	}
	// Another process is let in, and is stuck for a reason of its own.
	other := child("ask", b.socket, "1")
	done := make(chan string, 1)
	go func() {
		out, _ := other.Output()
		done <- string(out)
	}()
	wait(t, "the other process is let in", func() bool { return stuck.n.Load() == most+1 })
	close(stuck.stuck)
	for range most {
		if err := <-results; err != nil {
			t.Errorf("a request that was let in: %v", err)
		}
	}
	if out := <-done; !strings.Contains(out, `"Right":1`) {
		t.Errorf("the other process: %s", out)
	}
}

// A client for which there is no place, because others of its process have all
// and use them, waits for one.
func TestClientWaitsForAPlace(t *testing.T) {
	h := newHome(t)
	h.run(t, "--machine-key", h.key)
	time.Sleep(100 * time.Millisecond) // the connection by which run asked has to be gone
	const most = 64                    // peer.DefaultLimits, for one process
	var others []*attacker
	for range most {
		a, err := attack(h.socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Close() })
		if err := a.greet(); err != nil {
			t.Fatal(err)
		}
		a.drain()
		others = append(others, a)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for { // nobody is silent
			for _, a := range others {
				_ = a.WriteSettings()
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	done := make(chan error, 1)
	go func() { done <- askOnce(h.socket, 0) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
		done <- nil
	case <-time.After(500 * time.Millisecond):
	}
	close(stop)
	wg.Wait()
	for _, a := range others {
		_ = a.Close()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// An import of 100,000 secrets, while others read.
func TestLargeImport(t *testing.T) {
	count := 100_000
	if testing.Short() {
		count = 5_000
	}
	h := newHome(t)
	d := h.run(t, "--machine-key", h.key)
	var file bytes.Buffer
	for i := range count {
		fmt.Fprintf(&file, "IMPORTED_%d=value-%d\n", i, i)
	}
	path := h.dir + "/import.env"
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := h.command(t, "ov", "secret", "import", path, "--agent", "--app", "shop", "--env", "production")
	start := time.Now()
	var out []byte
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { out, err = cmd.CombinedOutput() })
	asks := 0
	for done := make(chan struct{}); ; asks++ {
		if asks == 0 {
			go func() { wg.Wait(); close(done) }()
		}
		if err := askOnce(h.socket, asks%secretCount); err != nil {
			t.Errorf("meanwhile: %v", err)
		}
		select {
		case <-done:
		case <-time.After(20 * time.Millisecond):
			continue
		}
		break
	}
	if err != nil {
		t.Fatalf("%v\n%.2000s", err, out)
	}
	t.Logf("%d secrets in %v, %d reveals meanwhile, the agent took at most %d MiB", count, time.Since(start), asks, memoryOf(t, d.Process.Pid)>>20)
	if want := fmt.Sprintf("Imported %d/%d secret(s) into shop/production", count, count); !bytes.Contains(out, []byte(want)) {
		t.Errorf("%.500s lacks %q", out[max(len(out)-500, 0):], want)
	}
	c := d.client(t)
	for _, i := range []int{0, 1, count / 2, count - 1} {
		mustReveal(t, c, shop, fmt.Sprintf("IMPORTED_%d", i), fmt.Sprintf("value-%d", i))
	}
	if list, err := c.List(t.Context(), shop); err != nil || len(list) != count+secretCount {
		t.Errorf("%d secrets, %v", len(list), err)
	}
	if all, err := reveal(t, c, shop); err != nil || len(all) != count+secretCount || all["IMPORTED_7"] != "value-7" {
		t.Errorf("%d secrets, %v", len(all), err)
	}
}

// Fifty processes ask while the agent is locked and unlocked: each answer is
// right, or that it is locked.
func TestManyProcessesWhileLockToggles(t *testing.T) {
	h := newHome(t)
	d := run(t, child("daemon", h.socket, h.vault, h.key), h.socket)
	c := d.client(t)
	ctx, stop := context.WithCancel(t.Context())
	var toggling sync.WaitGroup
	toggles := 0
	toggling.Go(func() {
		for ctx.Err() == nil {
			if err := c.Lock(t.Context()); err != nil {
				t.Errorf("lock: %v", err)
			}
			if err := c.UnlockKey(t.Context(), locked(t, sharedFixture(t).account)); err != nil {
				t.Errorf("unlock: %v", err)
			}
			toggles++
			time.Sleep(10 * time.Millisecond)
		}
	})
	const processes, times = 50, 20
	outputs := make([]bytes.Buffer, processes)
	var all []*exec.Cmd
	for i := range processes {
		cmd := child("ask", h.socket, fmt.Sprint(times))
		cmd.Stdout = &outputs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	var sum asked
	for i, cmd := range all {
		var got asked
		if err := errors.Join(cmd.Wait(), json.Unmarshal(outputs[i].Bytes(), &got)); err != nil {
			t.Fatal(err)
		}
		sum.Right, sum.Locked = sum.Right+got.Right, sum.Locked+got.Locked
		sum.Wrong = append(sum.Wrong, got.Wrong...)
		sum.Worst = max(sum.Worst, got.Worst)
	}
	stop()
	toggling.Wait()
	t.Logf("%d right, %d locked, the slowest in %v; %d toggles", sum.Right, sum.Locked, sum.Worst, toggles)
	if len(sum.Wrong) > 0 {
		t.Errorf("%d wrong answers, such as %q", len(sum.Wrong), sum.Wrong[0])
	}
	if sum.Right+sum.Locked != processes*times || sum.Right == 0 || sum.Locked == 0 || toggles < 3 {
		t.Errorf("%d right, %d locked, %d toggles", sum.Right, sum.Locked, toggles)
	}
	mustReveal(t, c, shop, nameOf(0), valueOf(0))
}

func vaultStore(_ testing.TB, a *testAgent) store.Store { return bolt.New(a.path) }

// A client waits for an agent that is still starting, and not for ever.
func TestConnectWaitsForTheAgent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	target, err := peer.Locate(peer.Options{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = Connect(t.Context(), target)
	if err == nil || !strings.Contains(err.Error(), "the agent at "+path+" does not answer: it is still starting, or too many connect to it") || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took < connectWait || took > connectWait+patience {
		t.Errorf("it took %v", took)
	}

	h := newHome(t)
	cmd := h.command(t, "ov-agent", "--foreground", "--password-stdin")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	d := launch(t, cmd, h.socket)
	wait(t, "the socket is there", func() bool { _, err := os.Lstat(h.socket); return err == nil })
	done := make(chan error, 1)
	go func() { done <- askOnce(h.socket, 0) }()
	time.Sleep(300 * time.Millisecond)
	if _, err := io.WriteString(stdin, masterPassword+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("a client that came before the password: %v\n%s", err, d.logged)
	}
	// And it notices at once when there is none any more.
	d.signal(t, os.Kill)
	d.end(t, 5*time.Second)
	start = time.Now()
	var none *peer.NotRunning
	if err := askOnce(h.socket, 0); !errors.As(err, &none) || time.Since(start) > patience {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}
