package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/opaquevault/ov/pkg/agent/peer"
	agentv1 "github.com/opaquevault/ov/proto/ov/agent/v1"
)

// calls are the full names of every RPC of the API.
func calls() (list []string) {
	service := agentv1.Agent_ServiceDesc.ServiceName
	for _, m := range agentv1.Agent_ServiceDesc.Methods {
		list = append(list, "/"+service+"/"+m.MethodName)
	}
	for _, s := range agentv1.Agent_ServiceDesc.Streams {
		list = append(list, "/"+service+"/"+s.StreamName)
	}
	return list
}

func TestEveryCallHasAPermission(t *testing.T) {
	all := calls()
	if len(all) < 16 {
		t.Fatalf("only %d calls: is this the agent's API?", len(all))
	}
	for _, method := range all {
		r, ok := rules[method]
		if !ok {
			t.Errorf("%s has no rule", method)
		}
		if r.permission < permStatus || r.permission > permWrite {
			t.Errorf("%s has no permission", method)
		}
	}
	for method := range rules {
		if !slices.Contains(all, method) {
			t.Errorf("there is a rule for %s, which is no call", method)
		}
	}
}

// What a caller is told of secrets is sealed, and what is sealed goes only to a
// caller that was looked at again.
func TestSealedAnswersAreReleases(t *testing.T) {
	methods := agentv1.File_ov_agent_v1_agent_proto.Services().ByName("Agent").Methods()
	for i := range methods.Len() {
		m := methods.Get(i)
		name := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		sealed := m.Output().Name() == "SealedResponse"
		if sealed != rules[name].releases {
			t.Errorf("%s: the answer is sealed: %v, but it is released to a caller looked at again: %v", name, sealed, rules[name].releases)
		}
	}
}

// as is the context of a request by uid.
func as(ctx context.Context, uid uint32) context.Context {
	return grpcpeer.NewContext(ctx, &grpcpeer.Peer{AuthInfo: &peer.Info{UID: uid, PID: 1}})
}

func TestGuard(t *testing.T) {
	a := newAgent(t)
	own := uint32(os.Geteuid())
	ctx := t.Context()
	known := agentv1.Agent_Status_FullMethodName
	for _, test := range []struct {
		name   string
		ctx    context.Context
		method string
		want   codes.Code
	}{
		{"own account", as(ctx, own), known, codes.OK},
		{"root", as(ctx, 0), known, codes.OK},
		{"other account", as(ctx, own+1), known, codes.PermissionDenied},
		{"nobody", as(ctx, 65534), known, codes.PermissionDenied},
		{"no caller", ctx, known, codes.PermissionDenied},
		{"unknown call", as(ctx, own), "/ov.agent.v1.Agent/Export", codes.PermissionDenied},
		{"call of another service", as(ctx, own), "/ov.agent.v2.Agent/Status", codes.PermissionDenied},
		{"nameless call", as(ctx, own), "", codes.PermissionDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			called := false
			_, err := a.unary(test.ctx, nil, &grpc.UnaryServerInfo{FullMethod: test.method}, func(context.Context, any) (any, error) {
				called = true
				return "answer", nil
			})
			if got := status.Code(err); got != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err != nil && !errors.Is(fromStatus(err), ErrDenied) {
				t.Errorf("the error is not ErrDenied: %v", err)
			}
			if called != (test.want == codes.OK) {
				t.Errorf("the handler was called: %v", called)
			}
		})
	}
}

// A caller that cannot be found alive again gets no answer, though the handler
// made one.
func TestNoReleaseToACallerThatIsGone(t *testing.T) {
	a := newAgent(t)
	ctx := as(t.Context(), uint32(os.Geteuid())) // a caller without a process
	for method, r := range rules {
		resp, err := a.unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
			return "answer", nil
		})
		if r.releases != errors.Is(fromStatus(err), ErrDenied) || r.releases != (resp == nil) {
			t.Errorf("%s: %v, %v", method, resp, err)
		}
		stream := &sentStream{ctx: ctx}
		err = a.stream(nil, stream, &grpc.StreamServerInfo{FullMethod: method}, func(_ any, s grpc.ServerStream) error {
			return s.SendMsg("answer")
		})
		if r.releases != errors.Is(fromStatus(err), ErrDenied) || r.releases != (stream.sent == 0) {
			t.Errorf("%s as a stream: %d messages, %v", method, stream.sent, err)
		}
	}
}

type sentStream struct {
	grpc.ServerStream
	ctx  context.Context
	sent int
}

func (s *sentStream) Context() context.Context { return s.ctx }
func (s *sentStream) SendMsg(any) error        { s.sent++; return nil }

func TestUnknownCallIsRefused(t *testing.T) {
	a := newAgent(t).open(t)
	c := a.client(t)
	for _, method := range []string{
		"/ov.agent.v1.Agent/Export", "/ov.agent.v1.Agent/reveal", "/ov.agent.v1.Agent/Reveal/", "/ov.agent.v1.Agent/",
		"/Reveal", "/ov.agent.v2.Agent/Reveal", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
		"/grpc.health.v1.Health/Check", "/" + strings.Repeat("x", 4000) + "/y",
	} {
		err := c.conn.Invoke(t.Context(), method, &agentv1.StatusRequest{}, &agentv1.StatusResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%.60s: %v", method, err)
		}
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
