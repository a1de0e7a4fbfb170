package mcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A session is the plainest client there is: lines over pipes, as the protocol
// says, and no library. Protocol 2025-11-25.
type session struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser

	mu       sync.Mutex
	next     int
	waiting  map[int]chan reply
	messages [][]byte // that the server sent, all
	ended    chan struct{}

	// answer is given when the server asks; nil says that there is nobody to ask.
	answer func(params json.RawMessage) any
}

type reply struct {
	Result json.RawMessage `json:"result"`
	Error  *rpcError       `json:"error"`
}

type rpcError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data"`
}

func (e *rpcError) Error() string { return fmt.Sprintf("%d: %s", e.Code, e.Message) }

var errEnded = errors.New("the server has ended")

// open starts the server and initializes the session.
func (s server) open(t *testing.T, answer func(json.RawMessage) any) *session {
	t.Helper()
	c := s.dial(t, answer)
	capabilities := map[string]any{}
	if answer != nil {
		capabilities["elicitation"] = map[string]any{}
	}
	if _, err := c.call("initialize", map[string]any{
		"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": map[string]any{"name": "ov-test", "version": "1"},
	}); err != nil {
		t.Fatalf("initialize: %v\n%s", err, s.stderr())
	}
	c.notify("notifications/initialized", map[string]any{})
	return c
}

// dial starts the server.
func (s server) dial(t *testing.T, answer func(json.RawMessage) any) *session {
	t.Helper()
	c := &session{t: t, waiting: map[int]chan reply{}, ended: make(chan struct{}), answer: answer}
	c.cmd = exec.Command(s.argv[0], s.argv[1:]...)
	c.cmd.Env, c.cmd.Dir = s.env, s.dir
	if s.uid != 0 {
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.uid, Gid: s.uid}}
	}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go c.read(out)
	t.Cleanup(func() {
		_ = c.in.Close()
		select {
		case <-c.ended:
		case <-time.After(20 * time.Second):
			t.Error("the server does not end when its input does")
			_ = c.cmd.Process.Kill()
		}
		_ = c.cmd.Wait()
	})
	return c
}

func (c *session) read(out io.Reader) {
	defer close(c.ended)
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			c.take(line)
		}
		if err != nil {
			return
		}
	}
}

func (c *session) take(line []byte) {
	var m struct {
		reply
		ID     *json.RawMessage `json:"id"`
		Method string           `json:"method"`
		Params json.RawMessage  `json:"params"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		c.t.Errorf("the server sent what is not JSON, of %d bytes", len(line))
		return
	}
	c.mu.Lock()
	c.messages = append(c.messages, line)
	var to chan reply
	if m.Method == "" && m.ID != nil {
		var id int
		if json.Unmarshal(*m.ID, &id) == nil {
			to = c.waiting[id]
			delete(c.waiting, id)
		}
	}
	c.mu.Unlock()
	switch {
	case to != nil:
		to <- m.reply
	case m.Method == "elicitation/create" && m.ID != nil && c.answer != nil:
		c.send(map[string]any{"jsonrpc": "2.0", "id": m.ID, "result": c.answer(m.Params)})
	case m.Method == "ping" && m.ID != nil:
		c.send(map[string]any{"jsonrpc": "2.0", "id": m.ID, "result": map[string]any{}})
	case m.Method != "" && m.ID != nil:
		c.send(map[string]any{"jsonrpc": "2.0", "id": m.ID, "error": rpcError{Code: -32601, Message: "not a method of this client"}})
	}
}

func (c *session) send(message any) {
	line := mustJSON(c.t, message)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.in.Write(append(line, '\n'))
}

func (c *session) notify(method string, params any) {
	c.send(map[string]any{"jsonrpc": "2.0", "method": method, "params": params})
}

// begin sends a request and returns its number and where its reply comes.
func (c *session) begin(method string, params any) (int, <-chan reply) {
	c.mu.Lock()
	c.next++
	id, to := c.next, make(chan reply, 1)
	c.waiting[id] = to
	c.mu.Unlock()
	c.send(map[string]any{"jsonrpc": "2.0", "id": id, "method": method, "params": params})
	return id, to
}

func (c *session) wait(to <-chan reply) (json.RawMessage, error) {
	select {
	case r := <-to:
		if r.Error != nil {
			return nil, r.Error
		}
		return r.Result, nil
	case <-c.ended:
		return nil, errEnded
	case <-time.After(2 * time.Minute):
		return nil, errors.New("no reply within two minutes")
	}
}

func (c *session) call(method string, params any) (json.RawMessage, error) {
	_, to := c.begin(method, params)
	return c.wait(to)
}

// sent returns the messages since the last call of sent.
func (c *session) sent() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.messages
	c.messages = nil
	return m
}

// A result is what a tool answers, or says that is wrong.
type result struct {
	IsError           bool            `json:"isError"`
	StructuredContent json.RawMessage `json:"structuredContent"`
	Content           []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	} `json:"content"`
	// protocol is the error, where the server answered with one in place of a result.
	protocol error
}

func (r result) text() string {
	var b strings.Builder
	for _, c := range r.Content {
		b.WriteString(c.Text + "\n")
	}
	if r.protocol != nil {
		b.WriteString(r.protocol.Error())
	}
	return b.String()
}

func (r result) failed() bool { return r.IsError || r.protocol != nil }

func toResult(raw json.RawMessage, err error) result {
	if err != nil {
		return result{protocol: err}
	}
	var r result
	if err := json.Unmarshal(raw, &r); err != nil {
		return result{protocol: err}
	}
	return r
}

func (c *session) tool(name string, args any) result {
	return toResult(c.call("tools/call", map[string]any{"name": name, "arguments": args}))
}

// ran is the output of vault_run.
type ran struct {
	ExitCode        *int     `json:"exit_code"`
	Stdout          string   `json:"stdout"`
	Stderr          string   `json:"stderr"`
	SecretsInjected []string `json:"secrets_injected"`
	TimedOut        bool     `json:"timed_out"`
	MaskedCount     int      `json:"masked_count"`
	Truncated       bool     `json:"truncated"`
	Warnings        []string `json:"warnings"`
}

// run is vault_run, of a command that must start.
func (c *session) run(argv []string, secrets ...string) ran {
	c.t.Helper()
	args := map[string]any{"command": argv}
	if secrets != nil {
		args["secrets"] = secrets
	}
	return c.ran(c.tool("vault_run", args))
}

func (c *session) ran(r result) ran {
	c.t.Helper()
	if r.failed() {
		c.t.Fatalf("vault_run: %s", r.text())
	}
	var out ran
	dec := json.NewDecoder(bytes.NewReader(r.StructuredContent))
	if err := dec.Decode(&out); err != nil {
		c.t.Fatalf("vault_run's output: %v", err)
	}
	return out
}

// must is a tool call that must succeed; its output goes into to.
func (c *session) must(to any, name string, args any) {
	c.t.Helper()
	r := c.tool(name, args)
	if r.failed() {
		c.t.Fatalf("%s: %s", name, r.text())
	}
	if to != nil {
		if err := json.Unmarshal(r.StructuredContent, to); err != nil {
			c.t.Fatalf("%s's output: %v", name, err)
		}
	}
}

// refused is a tool call that must fail, and say all of this.
func (c *session) refused(name string, args any, says ...string) string {
	c.t.Helper()
	r := c.tool(name, args)
	if !r.failed() {
		c.t.Errorf("%s was not refused: it should say %q", name, says)
		return ""
	}
	for _, text := range says {
		if !strings.Contains(r.text(), text) {
			c.t.Errorf("%s: %q is not in: %s", name, text, r.text())
		}
	}
	return r.text()
}
