// Package mcp is an MCP server over which an AI coding agent uses secrets that
// it cannot read.
//
// A value takes one way only: from the vault into the environment of a program
// that the client names. On the way back every byte of the program's output
// passes a masker (package mask), and every message, in both directions, an
// interceptor that knows the values of the env and the patterns of common
// secrets (package detect). No tool has an argument or a result for a value.
//
// The boundary is between the model and the values, not between accounts: the
// programs that the model has run get their secrets, and they run as the user.
// See docs/SECURITY.md.
package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/mcp/options"
	"github.com/opaquevault/ov/pkg/sibling"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/version"
)

// maxLine bounds one message of the client, in bytes.
const maxLine = 4 << 20

// server is one session: stdio has one client.
type server struct {
	vault     *opener
	ref       vault.Ref
	secrets   []config.Secret // what .ov.yaml lists; nil: all
	dir       string          // the project
	policy    policy
	known     *known
	intercept *interceptor
	reaper    *reaper
	log       *slog.Logger
	started   time.Time

	// stop is done when the server ends; runs are the children it waits for.
	stop context.Context
	runs sync.WaitGroup
	// alone is held for reading while a program runs, and for writing to end what
	// programs have left behind, if this process has it for children.
	alone  sync.RWMutex
	adopts bool
	slots  chan struct{}
	asked  questions
}

const instructions = `Runs programs with secrets from a vault in their environment. The secrets' values
cannot be read here: programs read them from environment variables, and output is masked. Name
secrets, never ask for or pass values. A person stores a value with: ov secret set NAME`

// Serve speaks MCP on stdin and stdout until stdin ends or ctx does. Then the
// programs that it runs are ended too. Log lines, which hold no value and no
// match, go to stderr.
func Serve(ctx context.Context, o options.Serve, stdin io.ReadCloser, stdout io.WriteCloser, stderr io.Writer) error {
	if err := kek.Harden(); err != nil {
		return err
	}
	s, err := newServer(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer s.vault.close()
	defer s.known.forget()
	if s.intercept.mode != off {
		path, err := sibling.Path("ov-scan")
		if err != nil {
			return err
		}
		engine, err := detect.Start(ctx, path)
		if err != nil {
			return err
		}
		defer func() { _ = engine.Close() }()
		s.intercept.engine = engine
	}
	if s.reaper, err = startReaper(); err != nil {
		return err
	}
	defer s.reaper.close()
	if err := adopt(); err != nil {
		return err
	}
	s.adopts = true
	defer s.sweep()
	var cancel context.CancelFunc
	s.stop, cancel = context.WithCancel(ctx)
	defer s.runs.Wait()
	defer cancel()
	err = s.sdk().Run(s.stop, &transport{
		inner: &sdk.IOTransport{Reader: stdin, Writer: stdout, MaxLineLength: maxLine},
		by:    s.intercept,
		ended: cancel,
	})
	if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || errors.Is(err, sdk.ErrConnectionClosed) {
		return nil
	}
	return err
}

// newServer reads the context and the rules, once: what a checkout's files say
// later does not change what this session may do.
func newServer(ctx context.Context, o options.Serve, stderr io.Writer) (*server, error) {
	where, err := config.Resolve(config.Options{App: o.App, Env: o.Env, Secrets: true})
	if err != nil {
		return nil, err
	}
	rules, err := config.ResolveMCP("")
	if err != nil {
		return nil, err
	}
	if err := checkAllow(rules.Allow); err != nil {
		return nil, err
	}
	mode, err := interceptMode(os.Getenv(modeVariable))
	if err != nil {
		return nil, err
	}
	dir := rules.Project
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return nil, err
		}
	}
	approve := o.Approve
	if approve == "" {
		approve = rules.Approve
	}
	if approve == "" {
		approve = config.ApproveAuto
	}
	if !approve.Valid() {
		return nil, hint.Errorf("pass --approve auto, ask or never", "%.20q is not a way to approve", approve)
	}
	s := &server{
		vault:   &opener{place: o.Place, machineKey: o.MachineKey},
		ref:     vault.Ref{App: where.App.Value, Env: where.Env.Value},
		secrets: where.Secrets,
		dir:     dir,
		policy:  policy{approve: approve, allow: rules.Allow, deny: rules.Deny},
		log:     slog.New(slog.NewTextHandler(stderr, nil)),
		started: time.Now(),
		stop:    ctx,
		slots:   make(chan struct{}, maxRuns),
	}
	s.known = newKnown(s.vault, s.ref)
	s.known.said = said()
	s.intercept = &interceptor{mode: mode, known: s.known, log: s.log}
	return s, nil
}

// frame are the words of the protocol that are in messages of every client.
const frame = `"jsonrpc" "method" "params" "result" "message" "arguments" "content" "structuredContent" "isError" "clientInfo"
"serverInfo" "protocolVersion" "capabilities" "elicitation" "progressToken" "requestId" "reason" "resultType" "requestState"
"inputRequests" "inputResponses" "requestedSchema" "properties" "action" "accept" "decline" "cancel"`

// said is what the server tells every client, and hears from it, whatever is in
// the vault.
func said() [][]byte {
	list := [][]byte{[]byte(frame), []byte(instructions), []byte(implementation.Name), []byte(implementation.Title)}
	for method := range methods {
		list = append(list, []byte(method))
	}
	for _, t := range tools {
		text, err := json.Marshal(t.Tool)
		if err != nil {
			panic(err) // a schema that no test would have let pass
		}
		list = append(list, text)
	}
	return list
}

// implementation is how the server introduces itself.
var implementation = sdk.Implementation{Name: "opaquevault", Title: "OpaqueVault", Version: version.String()}

// sdk returns the server with its tools.
func (s *server) sdk() *sdk.Server {
	srv := sdk.NewServer(&implementation, &sdk.ServerOptions{
		Instructions: instructions,
		Capabilities: &sdk.ServerCapabilities{}, // nothing besides the tools
		Logger:       slog.New(slog.DiscardHandler),
	})
	for _, t := range tools {
		t.add(s, srv)
	}
	return srv
}
