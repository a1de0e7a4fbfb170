package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// Client asks a running agent. Its methods are those of vault.Session, and so
// are their errors, besides ErrLocked, ErrLimit, ErrDenied and ErrTooLarge.
type Client struct {
	conn *grpc.ClientConn
	rpc  agentv1.AgentClient
}

// connectWait bounds how long Connect waits for an agent that is still starting,
// or closes connections because there are too many.
const connectWait = 10 * time.Second

var _ vault.Unlocked = (*Client)(nil)

// Connect connects to the agent at target, which answers by then. The caller
// closes the client. The errors are those of peer.Target.Dial.
func Connect(ctx context.Context, target peer.Target) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		conn, err := target.Connect(ctx,
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
			grpc.WithDisableRetry())
		if err != nil {
			return nil, err
		}
		if greeted(ctx, conn) {
			return &Client{conn, agentv1.NewAgentClient(conn)}, nil
		}
		_ = conn.Close()
		select {
		case <-ctx.Done():
			return nil, hint.Errorf("try again, or see how it is: ov agent status",
				"the agent at %s does not answer: it is still starting, or too many connect to it: %w", target.Socket, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// greeted waits until the agent has answered the connection's first bytes. It is
// false when the agent closed it instead, or ctx ended.
func greeted(ctx context.Context, conn *grpc.ClientConn) bool {
	for tried := false; ; {
		state := conn.GetState()
		switch {
		case state == connectivity.Ready:
			return true
		case state == connectivity.Connecting:
			tried = true
		case state != connectivity.Idle || tried: // as it is at first
			return false
		}
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Status describes a running agent.
type Status struct {
	Unlocked      bool       `json:"unlocked"`
	LockedBecause string     `json:"locked_because,omitempty"`
	Vault         string     `json:"vault"`
	Level         string     `json:"level,omitempty"` // account, app or env
	Scope         vault.Ref  `json:"scope"`
	Context       vault.Ref  `json:"context"`
	Started       time.Time  `json:"started"`
	UnlockedAt    *time.Time `json:"unlocked_at,omitempty"`
	LocksAt       *time.Time `json:"locks_at,omitempty"`
	IdleSeconds   int64      `json:"idle_seconds,omitempty"`
	Memory        string     `json:"memory,omitempty"` // memfd_secret or mlock
	PID           uint32     `json:"pid"`
	Version       string     `json:"version"`
	Requests      uint64     `json:"requests"`
	Server        *FarStatus `json:"server,omitempty"` // nil: the vault is a file
}

// FarStatus is how it stands with the server that has the agent's vault.
type FarStatus struct {
	// AwaySince is when the server was first found to be away, nil while it is
	// there or was not asked yet.
	AwaySince   *time.Time `json:"away_since,omitempty"`
	AwayBecause string     `json:"away_because,omitempty"`
	AsOf        *time.Time `json:"as_of,omitempty"` // of when the last answer was since then; nil: there was none
}

// Status asks how the agent is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.rpc.Status(ctx, &agentv1.StatusRequest{})
	if err != nil {
		return Status{}, fromStatus(err)
	}
	var server *FarStatus
	if far := r.Server; far != nil {
		server = &FarStatus{unixTime(far.AwaySinceUnix), far.AwayBecause, unixTime(far.AsOfUnix)}
	}
	return Status{
		Server:   server,
		Unlocked: r.Unlocked, LockedBecause: r.LockedBecause, Vault: r.Vault, Level: r.Level,
		Scope:   vault.Ref{App: r.GetScope().GetApp(), Env: r.GetScope().GetEnv()},
		Context: vault.Ref{App: r.GetContext().GetApp(), Env: r.GetContext().GetEnv()},
		Started: time.Unix(r.StartedUnix, 0).UTC(), UnlockedAt: unixTime(r.UnlockedUnix), LocksAt: unixTime(r.LocksAtUnix),
		IdleSeconds: r.IdleSeconds, Memory: r.Memory, PID: r.Pid, Version: r.Version, Requests: r.Requests,
	}, nil
}

func unixTime(n int64) *time.Time {
	if n == 0 {
		return nil
	}
	t := time.Unix(n, 0).UTC()
	return &t
}

// Unlock sends the master password, which the caller keeps.
func (c *Client) Unlock(ctx context.Context, password *kek.Locked) error {
	return c.unlock(ctx, password, false)
}

// UnlockKey sends a machine key, which the caller keeps.
func (c *Client) UnlockKey(ctx context.Context, key *kek.Locked) error {
	return c.unlock(ctx, key, true)
}

func (c *Client) unlock(ctx context.Context, secret *kek.Locked, machineKey bool) error {
	hello, err := c.rpc.Hello(ctx, &agentv1.HelloRequest{})
	if err != nil {
		return fromStatus(err)
	}
	req := &agentv1.UnlockRequest{MachineKey: machineKey}
	kek.Do(func() {
		req.Sealed, err = sealTo(hello.PublicKey, agentv1.Agent_Unlock_FullMethodName, secret.Bytes())
	})
	if err != nil {
		return err
	}
	_, err = c.rpc.Unlock(ctx, req)
	return fromStatus(err)
}

// Lock makes the agent forget its key.
func (c *Client) Lock(ctx context.Context) error {
	_, err := c.rpc.Lock(ctx, &agentv1.LockRequest{})
	return fromStatus(err)
}

// Stop asks the agent to end. It returns before the agent has.
func (c *Client) Stop(ctx context.Context) error {
	_, err := c.rpc.Stop(ctx, &agentv1.StopRequest{})
	return fromStatus(err)
}

// Apps lists the apps of the agent's vault.
func (c *Client) Apps(ctx context.Context) ([]vault.App, error) {
	r, err := c.rpc.ListApps(ctx, &agentv1.ListAppsRequest{})
	if err != nil {
		return nil, fromStatus(err)
	}
	list := []vault.App{}
	for _, a := range r.Apps {
		envs := a.Envs
		if envs == nil {
			envs = []string{}
		}
		list = append(list, vault.App{Slug: a.App, Created: time.Unix(a.CreatedUnix, 0).UTC(), Envs: envs})
	}
	return list, nil
}

// CreateApp is vault.Session.CreateApp.
func (c *Client) CreateApp(ctx context.Context, slug string) error {
	_, err := c.rpc.CreateApp(ctx, &agentv1.CreateAppRequest{App: slug})
	return fromStatus(err)
}

// DeleteApp is vault.Session.DeleteApp.
func (c *Client) DeleteApp(ctx context.Context, slug string) error {
	_, err := c.rpc.DeleteApp(ctx, &agentv1.DeleteAppRequest{App: slug})
	return fromStatus(err)
}

// CreateEnv is vault.Session.CreateEnv.
func (c *Client) CreateEnv(ctx context.Context, ref vault.Ref) error {
	_, err := c.rpc.CreateEnv(ctx, &agentv1.CreateEnvRequest{Ref: protoRef(ref)})
	return fromStatus(err)
}

// DeleteEnv is vault.Session.DeleteEnv.
func (c *Client) DeleteEnv(ctx context.Context, ref vault.Ref) error {
	_, err := c.rpc.DeleteEnv(ctx, &agentv1.DeleteEnvRequest{Ref: protoRef(ref)})
	return fromStatus(err)
}

func protoRef(r vault.Ref) *agentv1.Ref { return &agentv1.Ref{App: r.App, Env: r.Env} }

// answer makes a key, lets ask send its public half, and calls fn inside kek.Do
// with the fields of the answer, per of them at a time. They are wiped when it
// returns.
func answer(method string, per int, ask func(public []byte) (*agentv1.SealedResponse, error), fn func(fields [][]byte) error) error {
	k, err := newSealKey()
	if err != nil {
		return err
	}
	resp, err := ask(k.public)
	if err != nil {
		return fromStatus(err)
	}
	kek.Do(func() {
		var plain []byte
		if plain, err = k.open(method, resp.Sealed); err != nil {
			return
		}
		defer clear(plain)
		var fields [][]byte
		if fields, err = envelope.Split(plain, -1); err != nil {
			return
		}
		if len(fields)%per != 0 {
			err = fmt.Errorf("the agent answered with %d fields, not a multiple of %d", len(fields), per)
			return
		}
		err = fn(fields)
	})
	return err
}

// Reveal is vault.Session.Reveal.
func (c *Client) Reveal(ctx context.Context, ref vault.Ref, sel vault.Select, fn func([]vault.Secret) error) error {
	return answer(agentv1.Agent_Reveal_FullMethodName, 3, func(public []byte) (*agentv1.SealedResponse, error) {
		return c.rpc.Reveal(ctx, &agentv1.RevealRequest{
			Ref: protoRef(ref), All: sel.Names == nil, Names: sel.Names, Version: sel.Version, PublicKey: public,
		})
	}, func(fields [][]byte) error {
		secrets := make([]vault.Secret, 0, len(fields)/3)
		for f := range slices.Chunk(fields, 3) {
			n, err := envelope.ParseUint32(f[2])
			if err != nil {
				return err
			}
			secrets = append(secrets, vault.Secret{Name: string(f[0]), Value: f[1], Version: n})
		}
		return fn(secrets)
	})
}

// List is vault.Session.List.
func (c *Client) List(ctx context.Context, ref vault.Ref) ([]vault.Version, error) {
	return versions(agentv1.Agent_List_FullMethodName, func(public []byte) (*agentv1.SealedResponse, error) {
		return c.rpc.List(ctx, &agentv1.ListRequest{Ref: protoRef(ref), PublicKey: public})
	})
}

// History is vault.Session.History.
func (c *Client) History(ctx context.Context, ref vault.Ref, name string) ([]vault.Version, error) {
	return versions(agentv1.Agent_History_FullMethodName, func(public []byte) (*agentv1.SealedResponse, error) {
		return c.rpc.History(ctx, &agentv1.HistoryRequest{Ref: protoRef(ref), Name: name, PublicKey: public})
	})
}

func versions(method string, ask func([]byte) (*agentv1.SealedResponse, error)) ([]vault.Version, error) {
	list := []vault.Version{}
	err := answer(method, 4, ask, func(fields [][]byte) error {
		for f := range slices.Chunk(fields, 4) {
			n, err := envelope.ParseUint32(f[1])
			if err != nil {
				return err
			}
			created, err := envelope.ParseUint64(f[2])
			if err != nil {
				return err
			}
			list = append(list, vault.Version{Name: string(f[0]), Version: n, Created: time.Unix(int64(created), 0).UTC(), Note: string(f[3])})
		}
		return nil
	})
	return list, err
}

func results(method string, ask func([]byte) (*agentv1.SealedResponse, error)) ([]vault.PutResult, error) {
	list := []vault.PutResult{}
	err := answer(method, 3, ask, func(fields [][]byte) error {
		for f := range slices.Chunk(fields, 3) {
			n, err := envelope.ParseUint32(f[2])
			if err != nil {
				return err
			}
			if len(f[1]) != 1 || f[1][0] > byte(vault.Kept) {
				return fmt.Errorf("the agent answered with an unknown outcome")
			}
			list = append(list, vault.PutResult{Name: string(f[0]), Outcome: vault.Outcome(f[1][0]), Version: n})
		}
		return nil
	})
	return list, err
}

// putChunk is how much one message of a Put holds at most before it is sealed,
// in bytes; a single secret may be larger.
const putChunk = 128 << 10

// Put is vault.Session.Put, bounded to maxPut bytes.
func (c *Client) Put(ctx context.Context, ref vault.Ref, list []vault.Put, opt vault.PutOptions) ([]vault.PutResult, error) {
	for _, put := range list {
		// It might not fit into a message; a bad name is for the agent to refuse.
		if n := len(put.Value); n > vault.MaxValue && names.ValidName(put.Name) {
			return nil, fmt.Errorf("secret %s has %d bytes, the bound is %d: %w", put.Name, n, vault.MaxValue, vault.ErrInvalid)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return results(agentv1.Agent_Put_FullMethodName, func(public []byte) (*agentv1.SealedResponse, error) {
		hello, err := c.rpc.Hello(ctx, &agentv1.HelloRequest{})
		if err != nil {
			return nil, err
		}
		stream, err := c.rpc.Put(ctx)
		if err != nil {
			return nil, err
		}
		req := &agentv1.PutRequest{
			Ref: protoRef(ref), Existing: uint32(opt.Existing), DryRun: opt.DryRun, Create: opt.Create,
			Note: opt.Note, PublicKey: public,
		}
		for sent := 0; ; {
			var n int
			if req.Sealed, n, err = sealPuts(hello.PublicKey, list); err != nil {
				return nil, err
			}
			if err := stream.Send(req); err != nil {
				break // CloseAndRecv has the reason
			}
			sent += n
			if opt.Progress != nil {
				opt.Progress(sent)
			}
			if list = list[n:]; len(list) == 0 {
				break
			}
			req = &agentv1.PutRequest{}
		}
		return stream.CloseAndRecv()
	})
}

// sealPuts seals the first n secrets, as many as fit into one message.
func sealPuts(public []byte, list []vault.Put) (sealed []byte, n int, err error) {
	var fields [][]byte
	for size := 0; n < len(list); n++ {
		put := list[n]
		size += 3*4 + len(put.Name) + len(put.Value) + 4
		if n > 0 && size > putChunk {
			break
		}
		var replaces []byte
		if put.Replaces != nil {
			replaces = envelope.Uint32(*put.Replaces)
		}
		fields = append(fields, []byte(put.Name), put.Value, replaces)
	}
	kek.Do(func() {
		plain := envelope.Fields(fields...)
		defer clear(plain)
		sealed, err = sealTo(public, agentv1.Agent_Put_FullMethodName, plain)
	})
	return sealed, n, err
}

// Delete is vault.Session.Delete.
func (c *Client) Delete(ctx context.Context, ref vault.Ref, names []string) error {
	_, err := c.rpc.Delete(ctx, &agentv1.DeleteRequest{Ref: protoRef(ref), Names: names})
	return fromStatus(err)
}

// Rollback is vault.Session.Rollback.
func (c *Client) Rollback(ctx context.Context, ref vault.Ref, name string, version uint32) (vault.PutResult, error) {
	list, err := results(agentv1.Agent_Rollback_FullMethodName, func(public []byte) (*agentv1.SealedResponse, error) {
		return c.rpc.Rollback(ctx, &agentv1.RollbackRequest{Ref: protoRef(ref), Name: name, Version: version, PublicKey: public})
	})
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("the agent answered with %d results instead of one", len(list))
	}
	if err != nil {
		return vault.PutResult{}, err
	}
	return list[0], nil
}
