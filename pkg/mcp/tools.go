package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/version"
)

type none struct{}

// described is a tool, and what adds it to a server.
type described struct {
	*sdk.Tool
	add func(*server, *sdk.Server)
}

// tools are all there are. No argument and no result has a place for a value:
// TestSchemasHoldNoValue knows every field.
var tools = []described{
	tool("vault_run", "Run a program with secrets",
		"Runs a program with secrets in its environment and returns its output, in which values are masked. It gets no standard input, and what it leaves running is ended with it.",
		sdk.ToolAnnotations{DestructiveHint: yes, OpenWorldHint: yes}, (*server).run),
	tool("vault_list_secrets", "List secrets", "Lists the names and versions of the env's secrets.",
		readOnly, simple(func(s *server, ctx context.Context, _ none) (*listOutput, error) { return s.list(ctx) })),
	tool("vault_secret_exists", "Ask for a secret", "Says whether a secret is there.",
		readOnly, simple(func(s *server, ctx context.Context, in nameInput) (*existsOutput, error) { return s.exists(ctx, in) })),
	tool("vault_create_secret", "Create a secret", "Stores a new secret: random, or from a file in the project. Its value cannot be given here.",
		sdk.ToolAnnotations{DestructiveHint: no, OpenWorldHint: no},
		func(s *server, ctx context.Context, req *sdk.CallToolRequest, in writeInput) (*sdk.CallToolResult, *writeOutput, error) {
			return s.write(ctx, req, in, false)
		}),
	tool("vault_update_secret", "Update a secret", "Gives a secret a new value, as a new version: random, or from a file in the project. The value cannot be given here.",
		sdk.ToolAnnotations{DestructiveHint: yes, OpenWorldHint: no},
		func(s *server, ctx context.Context, req *sdk.CallToolRequest, in writeInput) (*sdk.CallToolResult, *writeOutput, error) {
			return s.write(ctx, req, in, true)
		}),
	tool("vault_delete_secret", "Delete a secret", "Deletes a secret with all its versions.",
		sdk.ToolAnnotations{DestructiveHint: yes, OpenWorldHint: no}, (*server).remove),
	tool("vault_status", "Vault status", "Says whether the vault is unlocked, which app and env this session is about, and what was intercepted.",
		readOnly, func(s *server, ctx context.Context, req *sdk.CallToolRequest, _ none) (*sdk.CallToolResult, *statusOutput, error) {
			return nil, s.status(ctx, req.Session), nil
		}),
}

var (
	yes, no  = ptr(true), ptr(false)
	readOnly = sdk.ToolAnnotations{ReadOnlyHint: true, IdempotentHint: true, OpenWorldHint: no}
)

func ptr(b bool) *bool { return &b }

// simple is a tool that asks nobody.
func simple[In, Out any](do func(*server, context.Context, In) (*Out, error)) func(*server, context.Context, *sdk.CallToolRequest, In) (*sdk.CallToolResult, *Out, error) {
	return func(s *server, ctx context.Context, _ *sdk.CallToolRequest, in In) (*sdk.CallToolResult, *Out, error) {
		out, err := do(s, ctx, in)
		return nil, out, err
	}
}

// tool describes a tool, whose schemas are those of In and Out. The SDK's own
// way to add one is not used: what it says about a wrong argument repeats it.
func tool[In, Out any](name, title, description string, a sdk.ToolAnnotations, do func(*server, context.Context, *sdk.CallToolRequest, In) (*sdk.CallToolResult, *Out, error)) described {
	in, err := jsonschema.For[In](nil)
	if err != nil {
		panic(err) // a type that no test would have let pass
	}
	out, err := jsonschema.For[Out](nil)
	if err != nil {
		panic(err)
	}
	limit(in)
	t := &sdk.Tool{Name: name, Title: title, Description: description, InputSchema: in, OutputSchema: out, Annotations: &a}
	return described{t, func(s *server, srv *sdk.Server) {
		srv.AddTool(t, func(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			var args In
			if err := decode(req.Params.Arguments, &args, in); err != nil {
				return failed(err), nil
			}
			res, result, err := do(s, ctx, req, args)
			switch {
			case err != nil:
				return failed(err), nil
			case res != nil:
				return res, nil
			}
			text, err := json.Marshal(result)
			if err != nil {
				return nil, err
			}
			return &sdk.CallToolResult{StructuredContent: json.RawMessage(text), Content: []sdk.Content{&sdk.TextContent{Text: string(text)}}}, nil
		})
	}}
}

// limit writes the bounds of arguments into their schema, for the client; they
// are checked where they are used.
func limit(in *jsonschema.Schema) {
	number := func(n float64) *float64 { return &n }
	count := func(n int) *int { return &n }
	if p := in.Properties["timeout_seconds"]; p != nil {
		p.Minimum, p.Maximum = number(1), number(maxTimeout)
		p.Default = json.RawMessage(fmt.Sprint(defaultTimeout))
	}
	if p := in.Properties["command"]; p != nil {
		p.MinItems, p.MaxItems = count(1), count(maxWords)
	}
	if g := in.Properties["generate"]; g != nil {
		p := g.Properties["length"]
		p.Minimum, p.Maximum = number(minLength), number(maxLength)
		for name := range alphabets {
			g.Properties["alphabet"].Enum = append(g.Properties["alphabet"].Enum, name)
		}
		slices.SortFunc(g.Properties["alphabet"].Enum, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	for _, p := range in.Properties { // a pointer or a slice may be left out, but is never null
		if len(p.Types) == 2 && p.Types[0] == "null" {
			p.Type, p.Types = p.Types[1], nil
		}
	}
}

// decode reads arguments strictly. Its errors name fields that there are, and
// hold nothing of the arguments.
func decode(raw json.RawMessage, to any, schema *jsonschema.Schema) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		raw = json.RawMessage("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err := dec.Decode(to)
	if err == nil {
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return errors.New("the arguments are not one JSON object")
		}
		var fields map[string]json.RawMessage
		if json.Unmarshal(raw, &fields) != nil {
			return errors.New("the arguments are not a JSON object")
		}
		for _, name := range schema.Required {
			if fields[name] == nil {
				return fmt.Errorf("the argument %s is missing", name)
			}
		}
		return nil
	}
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		if wrong.Field == "" {
			return errors.New("the arguments are not a JSON object")
		}
		return fmt.Errorf("the argument %s is of the wrong type", wrong.Field)
	}
	if strings.Contains(err.Error(), "unknown field") {
		if _, writes := to.(*writeInput); writes {
			return errLiteral
		}
		known := make([]string, 0, len(schema.Properties))
		for name := range schema.Properties {
			known = append(known, name)
		}
		slices.Sort(known)
		if len(known) == 0 {
			return errors.New("an unknown argument: there are none")
		}
		return fmt.Errorf("an unknown argument: there are %s", strings.Join(known, ", "))
	}
	return errors.New("the arguments are not valid JSON")
}

// failed is an error as the model reads it.
func failed(err error) *sdk.CallToolResult {
	return &sdk.CallToolResult{IsError: true, Content: []sdk.Content{&sdk.TextContent{Text: told(err)}}}
}

// told is an error with its hint.
func told(err error) string {
	if advice := hint.Of(err); advice != "" {
		return err.Error() + "\nhint: " + advice
	}
	return err.Error()
}

type statusOutput struct {
	Unlocked          bool   `json:"unlocked"`
	App               string `json:"app"`
	Env               string `json:"env"`
	Key               string `json:"key" jsonschema:"what opens the vault: agent or machine-key"`
	LockedBecause     string `json:"locked_because,omitempty"`
	HowToUnlock       string `json:"how_to_unlock,omitempty"`
	SecretCount       int    `json:"secret_count"`
	Approve           string `json:"approve" jsonschema:"when a person is asked: auto (where the client can ask), ask or never"`
	ClientCanAsk      bool   `json:"client_can_ask"`
	InterceptMode     string `json:"intercept_mode" jsonschema:"what happens to messages that hold a secret: block, warn or off"`
	InterceptedCount  int64  `json:"intercepted_count" jsonschema:"messages of this session that held a secret"`
	SessionAgeSeconds int64  `json:"session_age_seconds"`
	Running           int    `json:"running" jsonschema:"commands that are running now"`
	Version           string `json:"version"`
}

func (s *server) status(ctx context.Context, session *sdk.ServerSession) *statusOutput {
	out := &statusOutput{
		App: s.ref.App, Env: s.ref.Env, Key: "agent",
		Approve: string(s.policy.approve), ClientCanAsk: canAsk(session),
		InterceptMode: string(s.intercept.mode), InterceptedCount: s.intercept.count.Load(),
		SessionAgeSeconds: int64(time.Since(s.started).Seconds()), Running: len(s.slots), Version: version.String(),
	}
	if s.vault.machineKey != "" {
		out.Key = "machine-key"
	}
	err := s.vault.use(ctx, func(v vault.Unlocked) error {
		list, err := v.List(ctx, s.ref)
		out.SecretCount = len(list)
		return err
	})
	out.Unlocked = err == nil || errors.Is(err, vault.ErrNotFound)
	if !out.Unlocked {
		out.LockedBecause, out.HowToUnlock = err.Error(), hint.Of(err)
	}
	return out
}
