package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/vault"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// service is the RPCs of a Server. It is a type of its own because Lock and
// Unlock mean something else there.
type service struct {
	agentv1.UnimplementedAgentServer
	*Server
}

func (s service) Hello(ctx context.Context, _ *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	c, err := connectionOf(ctx)
	if err != nil {
		return nil, err
	}
	k, err := c.sealKey()
	if err != nil {
		return nil, err
	}
	return &agentv1.HelloResponse{PublicKey: k.public}, nil
}

func (s service) Status(context.Context, *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &agentv1.StatusResponse{
		Vault:         s.vaultPath,
		Context:       &agentv1.Ref{App: s.context.App, Env: s.context.Env},
		StartedUnix:   s.started.Unix(),
		IdleSeconds:   int64(s.idle / time.Second),
		Version:       s.version,
		Pid:           uint32(os.Getpid()),
		LockedBecause: s.why(),
		Requests:      s.requests.Load(),
	}
	if s.far != nil {
		st := s.far.State()
		resp.Server = &agentv1.ServerState{
			AwaySinceUnix: unixOf(st.Since), AwayBecause: printable(st.Why), AsOfUnix: unixOf(st.AsOf),
		}
	}
	if resp.LockedBecause == "" {
		level, scope := s.held.session.Scope()
		resp.Unlocked = true
		resp.Level = level.String()
		resp.Scope = &agentv1.Ref{App: scope.App, Env: scope.Env}
		resp.UnlockedUnix = s.unlocked.Unix()
		if s.ttl > 0 {
			resp.LocksAtUnix = s.unlocked.Add(s.ttl).Unix()
		}
		resp.Memory = "mlock"
		if s.held.hidden {
			resp.Memory = "memfd_secret"
		}
	}
	return resp, nil
}

func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func (s service) Unlock(ctx context.Context, req *agentv1.UnlockRequest) (*agentv1.UnlockResponse, error) {
	plain, err := s.unseal(ctx, agentv1.Agent_Unlock_FullMethodName, req.Sealed)
	if err != nil {
		return nil, err
	}
	if n := len(plain); n == 0 || n > kek.MaxPassword { // locked memory is scarce
		clear(plain)
		return nil, fmt.Errorf("%w: a password or key of %d bytes, the bounds are 1 and %d", vault.ErrInvalid, n, kek.MaxPassword)
	}
	secret, err := kek.LockedFrom(plain) // which wipes plain
	if err != nil {
		return nil, err
	}
	if req.MachineKey {
		return &agentv1.UnlockResponse{}, s.Server.UnlockKey(ctx, secret)
	}
	defer secret.Destroy()
	return &agentv1.UnlockResponse{}, s.Server.Unlock(ctx, secret)
}

func (s service) Lock(context.Context, *agentv1.LockRequest) (*agentv1.LockResponse, error) {
	s.Server.Lock("it was told to lock")
	return &agentv1.LockResponse{}, nil
}

func (s service) Stop(context.Context, *agentv1.StopRequest) (*agentv1.StopResponse, error) {
	s.stop()
	return &agentv1.StopResponse{}, nil
}

func (s service) ListApps(ctx context.Context, _ *agentv1.ListAppsRequest) (*agentv1.ListAppsResponse, error) {
	apps, err := s.vault.Apps(ctx)
	resp := &agentv1.ListAppsResponse{}
	for _, a := range apps {
		resp.Apps = append(resp.Apps, &agentv1.App{App: a.Slug, CreatedUnix: a.Created.Unix(), Envs: a.Envs})
	}
	return resp, err
}

func (s service) CreateApp(ctx context.Context, req *agentv1.CreateAppRequest) (*agentv1.CreateAppResponse, error) {
	return &agentv1.CreateAppResponse{}, s.useKept(func(v *vault.Session) error { return v.CreateApp(ctx, req.App) })
}

func (s service) DeleteApp(ctx context.Context, req *agentv1.DeleteAppRequest) (*agentv1.DeleteAppResponse, error) {
	return &agentv1.DeleteAppResponse{}, s.useKept(func(v *vault.Session) error { return v.DeleteApp(ctx, req.App) })
}

func (s service) CreateEnv(ctx context.Context, req *agentv1.CreateEnvRequest) (*agentv1.CreateEnvResponse, error) {
	return &agentv1.CreateEnvResponse{}, s.useKept(func(v *vault.Session) error { return v.CreateEnv(ctx, s.ref(req.Ref)) })
}

func (s service) DeleteEnv(ctx context.Context, req *agentv1.DeleteEnvRequest) (*agentv1.DeleteEnvResponse, error) {
	return &agentv1.DeleteEnvResponse{}, s.useKept(func(v *vault.Session) error { return v.DeleteEnv(ctx, s.ref(req.Ref)) })
}

func (s service) Reveal(ctx context.Context, req *agentv1.RevealRequest) (resp *agentv1.SealedResponse, err error) {
	// A field is its length, four bytes, and what it holds: a name of at least
	// one byte, the value, the number of the version.
	sel := vault.Select{Names: req.Names, Version: req.Version, Fits: func(secrets, bytes int) error {
		return checkSize(secrets*(4+1+4+4+4) + bytes)
	}}
	if req.All {
		sel.Names = nil
	} else if sel.Names == nil {
		sel.Names = []string{} // none, which is not all
	}
	err = s.useKept(func(v *vault.Session) error {
		return v.Reveal(ctx, s.ref(req.Ref), sel, func(secrets []vault.Secret) (err error) {
			fields := make([][]byte, 0, 3*len(secrets))
			for _, secret := range secrets {
				fields = append(fields, []byte(secret.Name), secret.Value, envelope.Uint32(secret.Version))
			}
			resp, err = sealInside(req.PublicKey, agentv1.Agent_Reveal_FullMethodName, fields...)
			return err
		})
	})
	return resp, err
}

func (s service) List(ctx context.Context, req *agentv1.ListRequest) (resp *agentv1.SealedResponse, err error) {
	err = s.use(func(v *vault.Session) error {
		list, err := v.List(ctx, s.ref(req.Ref))
		if err == nil {
			resp, err = seal(req.PublicKey, agentv1.Agent_List_FullMethodName, versionFields(list)...)
		}
		return err
	})
	return resp, err
}

func (s service) History(ctx context.Context, req *agentv1.HistoryRequest) (resp *agentv1.SealedResponse, err error) {
	err = s.use(func(v *vault.Session) error {
		list, err := v.History(ctx, s.ref(req.Ref), req.Name)
		if err == nil {
			resp, err = seal(req.PublicKey, agentv1.Agent_History_FullMethodName, versionFields(list)...)
		}
		return err
	})
	return resp, err
}

func versionFields(list []vault.Version) [][]byte {
	fields := make([][]byte, 0, 4*len(list))
	for _, v := range list {
		fields = append(fields, []byte(v.Name), envelope.Uint32(v.Version),
			envelope.Uint64(uint64(v.Created.Unix())), []byte(v.Note))
	}
	return fields
}

func resultFields(list []vault.PutResult) [][]byte {
	fields := make([][]byte, 0, 3*len(list))
	for _, r := range list {
		fields = append(fields, []byte(r.Name), []byte{byte(r.Outcome)}, envelope.Uint32(r.Version))
	}
	return fields
}

func (s service) Put(stream grpc.ClientStreamingServer[agentv1.PutRequest, agentv1.SealedResponse]) error {
	ctx := stream.Context()
	var first *agentv1.PutRequest
	var puts []vault.Put
	defer func() {
		for _, put := range puts {
			clear(put.Value)
		}
	}()
	room := s.puts.room(ctx)
	defer room.leave()
	for req, err := range receive(ctx, stream) {
		if err != nil {
			return err
		}
		if first == nil {
			first = req
			if err := s.checkPut(first); err != nil {
				return err
			}
		}
		if err := room.take(len(req.Sealed)); err != nil {
			return err
		}
		more, err := s.openPuts(ctx, req.Sealed)
		puts = append(puts, more...)
		if err != nil {
			return err
		}
		if len(puts) > vault.MaxBatch { // what is empty takes memory all the same
			return fmt.Errorf("more than %d secrets at once: %w", vault.MaxBatch, vault.ErrInvalid)
		}
	}
	if first == nil {
		return fmt.Errorf("%w: a Put without a message", vault.ErrInvalid)
	}
	if err := checkAnswer(puts); err != nil {
		return err
	}
	var resp *agentv1.SealedResponse
	err := s.useKept(func(v *vault.Session) error {
		results, err := v.Put(ctx, s.ref(first.Ref), puts, vault.PutOptions{
			Existing: vault.Existing(first.Existing), DryRun: first.DryRun, Create: first.Create, Note: first.Note,
		})
		if err == nil {
			resp, err = seal(first.PublicKey, agentv1.Agent_Put_FullMethodName, resultFields(results)...)
		}
		return err
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(resp)
}

// checkPut refuses before any secret is sent what would be refused in the end.
func (s service) checkPut(first *agentv1.PutRequest) error {
	if first.Existing > uint32(vault.RefuseExisting) {
		return fmt.Errorf("%w: %d does not say what to do with existing secrets", vault.ErrInvalid, first.Existing)
	}
	if err := checkPublic(first.PublicKey); err != nil {
		return err
	}
	return s.use(func(*vault.Session) error { return nil })
}

// checkAnswer refuses, before anything is written, what could not be answered.
func checkAnswer(puts []vault.Put) error {
	size := 0
	for _, put := range puts {
		size += 4 + len(put.Name) + 4 + 1 + 4 + 4 // as resultFields has it
	}
	return checkSize(size)
}

// openPuts decrypts one message's secrets.
func (s service) openPuts(ctx context.Context, sealed []byte) ([]vault.Put, error) {
	plain, err := s.unseal(ctx, agentv1.Agent_Put_FullMethodName, sealed)
	if err != nil {
		return nil, err
	}
	puts, err := parsePuts(plain)
	if err != nil {
		clear(plain)
		return nil, err
	}
	return puts, nil
}

// parsePuts takes fields apart, three for each secret. The values alias plain.
func parsePuts(plain []byte) ([]vault.Put, error) {
	fields, err := envelope.Split(plain, -1)
	if err != nil || len(fields)%3 != 0 {
		return nil, fmt.Errorf("%w: secrets that are not three fields each", vault.ErrInvalid)
	}
	puts := make([]vault.Put, 0, len(fields)/3)
	for ; len(fields) > 0; fields = fields[3:] {
		put := vault.Put{Name: string(fields[0]), Value: fields[1]}
		if len(fields[2]) > 0 {
			n, err := envelope.ParseUint32(fields[2])
			if err != nil {
				return nil, fmt.Errorf("%w: %w", vault.ErrInvalid, err)
			}
			put.Replaces = &n
		}
		puts = append(puts, put)
	}
	return puts, nil
}

// receive yields a stream's messages and gives up when ctx ends, as Recv does
// not: a client that stalls keeps its place no longer than requestTimeout.
func receive(ctx context.Context, stream grpc.ClientStreamingServer[agentv1.PutRequest, agentv1.SealedResponse]) func(func(*agentv1.PutRequest, error) bool) {
	type message struct {
		req *agentv1.PutRequest
		err error
	}
	return func(yield func(*agentv1.PutRequest, error) bool) {
		messages := make(chan message)
		done := make(chan struct{})
		defer close(done)
		go func() {
			for {
				req, err := stream.Recv() // returns when the handler does
				select {
				case messages <- message{req, err}:
				case <-done:
					return
				}
				if err != nil {
					return
				}
			}
		}()
		for {
			select {
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			case m := <-messages:
				if errors.Is(m.err, io.EOF) || !yield(m.req, m.err) || m.err != nil {
					return
				}
			}
		}
	}
}

func (s service) Delete(ctx context.Context, req *agentv1.DeleteRequest) (*agentv1.DeleteResponse, error) {
	return &agentv1.DeleteResponse{}, s.useKept(func(v *vault.Session) error { return v.Delete(ctx, s.ref(req.Ref), req.Names) })
}

func (s service) Rollback(ctx context.Context, req *agentv1.RollbackRequest) (resp *agentv1.SealedResponse, err error) {
	if err := checkPublic(req.PublicKey); err != nil {
		return nil, err
	}
	err = s.useKept(func(v *vault.Session) error {
		res, err := v.Rollback(ctx, s.ref(req.Ref), req.Name, req.Version)
		if err == nil {
			resp, err = seal(req.PublicKey, agentv1.Agent_Rollback_FullMethodName, resultFields([]vault.PutResult{res})...)
		}
		return err
	})
	return resp, err
}
