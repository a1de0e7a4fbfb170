package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/hint"
)

// mode says what happens to a message that holds a secret.
type mode string

const (
	block mode = "block"
	warn  mode = "warn"
	off   mode = "off"

	modeVariable = "OV_INTERCEPT_MODE"
)

func interceptMode(value string) (mode, error) {
	switch m := mode(value); m {
	case "":
		return block, nil
	case block, warn, off:
		return m, nil
	}
	return "", hint.Errorf("set it to block, warn or off, or leave it unset for block", "%s is not a mode that is known", modeVariable)
}

// scanTime bounds the scan of one message. A message that takes longer counts
// as one that could not be checked.
const scanTime = 30 * time.Second

// scanner is what the interceptor needs of a detect.Engine.
type scanner interface {
	Scan(ctx context.Context, text []byte) ([]detect.Finding, error)
}

// interceptor judges every message of both directions.
type interceptor struct {
	mode   mode
	known  *known
	engine scanner
	log    *slog.Logger
	count  atomic.Int64 // messages that held a secret
}

// The directions of a message.
const (
	fromClient = "from the client"
	toClient   = "to the client"
)

// stopped says why a message does not pass. Its text holds no part of it.
type stopped struct{ text string }

func (e *stopped) Error() string { return e.text }

// judge returns a *stopped, with a hint, if the message must not pass.
func (i *interceptor) judge(ctx context.Context, direction string, msg jsonrpc.Message) error {
	if i.mode == off {
		return nil
	}
	return i.judgeText(ctx, direction, kind(msg), texts(msg))
}

// judgeText is judge for a text of a kind.
func (i *interceptor) judgeText(ctx context.Context, direction, kind string, text []byte) error {
	if i.mode == off {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, scanTime)
	defer cancel()
	what, err := i.find(ctx, text)
	switch {
	case err != nil && i.mode == block:
		i.log.Error("a message could not be checked", "direction", direction, "message", kind, "error", err)
		return hint.Wrap(&stopped{"the message was blocked, because it could not be checked for secrets: " + err.Error()}, hint.Of(err))
	case err != nil:
		i.log.Error("a message passed that could not be checked", "direction", direction, "message", kind, "error", err)
		return nil
	case what == "":
		return nil
	}
	i.count.Add(1)
	i.log.Warn("a message holds a secret", "mode", string(i.mode), "direction", direction, "message", kind, "found", what)
	if i.mode != block {
		return nil
	}
	return hint.Wrap(&stopped{fmt.Sprintf("the message %s was blocked: it holds %s", direction, what)},
		"a person stores the value with: ov secret set NAME; then name the secret instead of its value")
}

// find says what secret is in the text, without any of it, or "".
func (i *interceptor) find(ctx context.Context, text []byte) (string, error) {
	values, err := i.known.now(ctx)
	if err != nil {
		return "", err
	}
	if values != nil {
		name, found := values.Find(text)
		values.release()
		if found {
			return "the value of the secret " + name + " (rule vault-value)", nil
		}
	}
	findings, err := i.engine.Scan(ctx, text)
	if err != nil || len(findings) == 0 {
		return "", err
	}
	return "what looks like a secret (rule " + findings[0].Rule + ")", nil
}

// kind names a message for the log. A method of the client's own making could
// be anything, a secret too.
func kind(msg jsonrpc.Message) string {
	r, ok := msg.(*jsonrpc.Request)
	switch {
	case !ok:
		return "response"
	case methods[r.Method]:
		return r.Method
	}
	return "other"
}

var methods = map[string]bool{
	"initialize": true, "notifications/initialized": true, "notifications/cancelled": true, "notifications/progress": true,
	"ping": true, "tools/list": true, callTool: true, "elicitation/create": true, "server/discover": true,
}

const callTool = "tools/call"

// texts returns all that a message says, as a person or a program would read
// it: its JSON, and, since an escaped newline would hide a key of several
// lines, each string with escapes in it again without them, to any depth.
func texts(msg jsonrpc.Message) []byte {
	raw, err := jsonrpc.EncodeMessage(msg)
	if err != nil {
		return nil
	}
	out := append([]byte{}, raw...)
	for depth := 0; depth < 3; depth++ {
		var more []byte
		for _, text := range decoded(raw) {
			more = append(append(more, '\n'), text...)
		}
		if len(more) == 0 {
			break
		}
		out = append(out, more...)
		raw = more
	}
	return out
}

// decoded returns, without their escapes, the JSON strings in a text that have
// any.
func decoded(text []byte) []string {
	var list []string
	for i := 0; i < len(text); i++ {
		if text[i] != '"' {
			continue
		}
		escapes, end := false, i+1
		for end < len(text) && text[end] != '"' && text[end] >= ' ' {
			if text[end] == '\\' {
				escapes = true
				end++
			}
			end++
		}
		if end >= len(text) || text[end] != '"' {
			continue // a quotation mark by itself
		}
		var s string
		if escapes && json.Unmarshal(text[i:end+1], &s) == nil {
			list = append(list, s)
		}
		i = end
	}
	return list
}

// transport puts the interceptor between the SDK and the client.
type transport struct {
	inner sdk.Transport
	by    *interceptor
	// ended is called when the client is gone. The SDK alone would wait for the
	// calls that are still being served.
	ended func()
}

func (t *transport) Connect(ctx context.Context) (sdk.Connection, error) {
	c, err := t.inner.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &connection{Connection: c, by: t.by, ended: t.ended, calls: map[jsonrpc.ID]pending{}}, nil
}

// pending is a request of the client's.
type pending struct{ tool, cancelled bool }

// connection passes on what the interceptor lets through.
type connection struct {
	sdk.Connection
	by    *interceptor
	ended func()

	mu    sync.Mutex
	calls map[jsonrpc.ID]pending // the calls that have no answer yet
}

// Read returns the client's next message that may pass. A request that may not
// is answered here.
func (c *connection) Read(ctx context.Context) (jsonrpc.Message, error) {
	for {
		msg, err := c.Connection.Read(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				// The error may quote what was read.
				c.by.log.Error("the session ends: what the client sent is no message, or too large", "bytes_at_most", maxLine)
			}
			c.ended()
			return nil, err
		}
		no := c.by.judge(ctx, fromClient, msg)
		if no == nil {
			if r, ok := msg.(*jsonrpc.Request); ok {
				c.remember(r)
			}
			return msg, nil
		}
		switch m := msg.(type) {
		case *jsonrpc.Request:
			if !m.IsCall() || c.by.judgeText(ctx, fromClient, "id", fmt.Append(nil, m.ID.Raw())) != nil {
				continue // nobody waits for an answer, or it would repeat the secret
			}
			if err := c.Connection.Write(ctx, refuse(m.ID, m.Method == callTool, no)); err != nil {
				return nil, err
			}
		case *jsonrpc.Response: // the server waits for it
			return refuse(m.ID, false, no), nil
		}
	}
}

// remember keeps what the answers to come depend on. The SDK also answers calls
// that were cancelled, which a server should not.
func (c *connection) remember(r *jsonrpc.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.IsCall() {
		c.calls[r.ID] = pending{tool: r.Method == callTool}
		return
	}
	var params sdk.CancelledParams
	if r.Method != "notifications/cancelled" || json.Unmarshal(r.Params, &params) != nil {
		return
	}
	if id, err := jsonrpc.MakeID(params.RequestID); err == nil {
		if of, ok := c.calls[id]; ok {
			of.cancelled = true
			c.calls[id] = of
		}
	}
}

// Write sends a message, or in its place the reason why it may not pass.
func (c *connection) Write(ctx context.Context, msg jsonrpc.Message) error {
	var of pending
	if r, ok := msg.(*jsonrpc.Response); ok {
		c.mu.Lock()
		of = c.calls[r.ID]
		delete(c.calls, r.ID)
		c.mu.Unlock()
	}
	if of.cancelled {
		return nil // nobody waits for it: the client has forgotten the call
	}
	if no := c.by.judge(ctx, toClient, msg); no != nil {
		switch m := msg.(type) {
		case *jsonrpc.Response:
			msg = refuse(m.ID, of.tool, no)
		case *jsonrpc.Request:
			if m.IsCall() {
				return no // ends the session: nothing of ours asks such a thing
			}
			return nil
		}
	}
	return c.Connection.Write(ctx, msg)
}

// refuse is the answer in place of a blocked message: the model reads the
// result of a tool, and may not see the error of a protocol.
func refuse(id jsonrpc.ID, isTool bool, no error) *jsonrpc.Response {
	if !isTool {
		return &jsonrpc.Response{ID: id, Error: &jsonrpc.Error{Code: jsonrpc.CodeInvalidRequest, Message: told(no)}}
	}
	result, err := json.Marshal(failed(no))
	if err != nil {
		return &jsonrpc.Response{ID: id, Error: &jsonrpc.Error{Code: jsonrpc.CodeInternalError, Message: told(no)}}
	}
	return &jsonrpc.Response{ID: id, Result: result}
}
