package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/opaquevault/ov/pkg/store"
	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// Refusal says why a call was not let in. It is fit for a label.
type Refusal string

// The reasons for which calls are not let in.
const (
	RefusedPath    Refusal = "path"     // there is no such call
	RefusedKey     Refusal = "key"      // no API key, or a wrong one
	RefusedDeadKey Refusal = "dead_key" // a revoked or expired one
	RefusedScope   Refusal = "scope"    // one that may not do this
	RefusedBusy    Refusal = "busy"     // too many calls at a time
	RefusedStorage Refusal = "storage"  // the key could not be looked up
)

// call is what a handler knows of the call that it serves.
type call struct {
	account store.AccountID
	key     *apiKey // nil if the call needs none
	grant   grant
	memory  *room
	spool   *room
	http    *http.ResponseController
	send    time.Duration // how long the client may take for a part of the answer
}

type callKey struct{}

// callOf returns the call that guard has let in.
func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// guard is the one way into every handler: whether there is such a call, whose
// API key it has, whether they may, and is it too much. Only then is anything of
// the request's body read, which is why this is not one of connect's
// interceptors: for calls of one message, those come after the body.
func (s *Server) guard(operator bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		procedure := r.URL.Path
		defer func() {
			if r := recover(); r != nil {
				s.panicked(procedure, r)
			}
		}()
		rule, ok := rules[procedure]
		if !ok || operator != (rule.permission == permOperator) && rule.permission != permOpen {
			s.refused("", RefusedPath)
			http.NotFound(w, r)
			return
		}
		c := &call{http: http.NewResponseController(w)}
		c.send = s.limits.send
		c.await(min(rule.timeout, s.limits.body))
		ctx, cancel := context.WithTimeout(r.Context(), rule.timeout)
		defer cancel()

		why, done, err := s.letIn(ctx, c, rule, r)
		if err != nil {
			s.refused(procedure, why)
			s.log.Debug("refused", "method", procedure, "from", r.RemoteAddr, "why", string(why))
			c.await(s.limits.refused)
			_ = s.errors.Write(w, r, err)
			return
		}
		defer done()
		r.Header.Del("Authorization") // no handler, no trace and no log has it
		r = r.WithContext(context.WithValue(ctx, callKey{}, c))
		r.Body = &countedBody{ReadCloser: r.Body, room: c.memory, left: rule.body}
		next.ServeHTTP(w, r)
		if c.key != nil {
			s.log.Debug("call", "method", procedure, "from", r.RemoteAddr, "account", idString(c.account),
				"api_key", c.key.GetId(), "took", time.Since(start))
		}
	})
}

// await gives the client some time to send what comes next. It is counted from
// now, not from the last byte: nobody holds a place by a byte now and then.
func (c *call) await(d time.Duration) {
	now := time.Now()
	_ = c.http.SetReadDeadline(now.Add(d))
	_ = c.http.SetWriteDeadline(now.Add(d + c.send))
}

// work gives the handler some time, when all of the request has come.
func (c *call) work(d time.Duration) {
	// HTTP/1 reads ahead, and a deadline that passes there cancels the call.
	_ = c.http.SetReadDeadline(time.Time{})
	_ = c.http.SetWriteDeadline(time.Now().Add(d + c.send))
}

// letIn fills in the call, and counts it until done.
func (s *Server) letIn(ctx context.Context, c *call, rule rule, r *http.Request) (why Refusal, done func(), err error) {
	c.memory = &room{shares: s.memory}
	switch rule.permission {
	case permOpen: // is quick, and waits for nobody
		return "", c.memory.leave, nil
	case permOperator:
		c.grant = grant{scope: vaultv1.Scope_SCOPE_ADMIN}
	case permRead, permWrite, permAdmin:
		from := addressOf(r.RemoteAddr)
		if c.account, c.key, why, err = s.keys.verify(ctx, bearer(r.Header), from); err != nil {
			if why == RefusedStorage {
				err = s.storageError(ctx, err)
			}
			return why, nil, err
		}
		used(r.Context())
		c.grant = grantOf(c.key.APIKey)
		if !c.grant.allows(rule.permission) {
			return RefusedScope, nil, denied("the API key has the scope %s, and this needs more", scopeName(c.grant.scope))
		}
		s.usage.touch(c.account, c.key.GetId(), time.Now())
	default:
		return RefusedPath, nil, fail(connect.CodeUnimplemented, "", "not a call of this server")
	}
	place, err := s.admit(ctx, c.account)
	if err != nil {
		return RefusedBusy, nil, err
	}
	serving := serve(r.Context())
	c.memory.account = c.account
	c.spool = &room{shares: s.spool, account: c.account}
	return "", func() {
		c.memory.leave()
		c.spool.leave()
		serving()
		place()
	}, nil
}

// bearer returns the API key of a request, or nil.
func bearer(h http.Header) []byte {
	scheme, text, ok := strings.Cut(h.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return []byte(strings.Trim(text, " "))
}

func (s *Server) refused(procedure string, why Refusal) {
	if s.onRefused != nil {
		s.onRefused(procedure, why)
	}
}

// countedBody counts what is read of a request against the account's memory:
// what is read is kept, until the call ends.
type countedBody struct {
	io.ReadCloser
	room *room
	left int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, tooLarge("the request is too large")
	}
	if !b.room.take(int64(n)) {
		return 0, busy("too much at a time")
	}
	return n, err
}

// panicked ends a call that panicked. The panic's value may hold what it should
// not: the log says where, not what.
func (s *Server) panicked(procedure string, r any) {
	if _, ok := rules[procedure]; !ok {
		procedure = "" // a stranger's text
	}
	if r != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		s.log.Error("panic", "method", procedure, "type", fmt.Sprintf("%T", r), "at", panicSite())
	}
	panic(http.ErrAbortHandler) // net/http ends the stream and says nothing
}

// panicSite names the functions that a recovered panic came through.
func panicSite() []string {
	pc := make([]uintptr, 32)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	var at []string
	for {
		f, more := frames.Next()
		at = append(at, fmt.Sprintf("%s:%d", f.Function, f.Line))
		if !more {
			return at
		}
	}
}
