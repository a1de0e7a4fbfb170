package mcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
)

// node returns the Node that package-lock.json pins, or the machine's own if it
// is as new as the clients need.
func node(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("node_modules/@modelcontextprotocol/sdk/package.json"); err != nil {
		missing(t, "the MCP clients are not installed: run `npm ci` in test/mcp")
	}
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	pinned, err := filepath.Abs("node_modules/node-linux-" + arch + "/bin/node")
	if err == nil {
		if _, err = os.Stat(pinned); err == nil {
			return pinned
		}
	}
	own, err := exec.LookPath("node")
	if err != nil {
		missing(t, "node is not installed")
	}
	var major int
	out, _ := exec.Command(own, "--version").Output()
	if _, err := fmt.Sscanf(string(out), "v%d.", &major); err != nil || major < 22 {
		missing(t, fmt.Sprintf("the MCP clients need Node 22, and this is %s", bytes.TrimSpace(out)))
	}
	return own
}

// A client is an official SDK of TypeScript, driven by client.mjs.
type client struct {
	t  *testing.T
	in io.WriteCloser

	mu      sync.Mutex
	next    int
	waiting map[int]chan answer
	ended   chan struct{}
	asked   []json.RawMessage // by the server, of the person
	faults  []string          // that the SDK found with what the server sent
}

type answer struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Code    any    `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// driver starts the driver: v1 is @modelcontextprotocol/sdk, v2 is
// @modelcontextprotocol/client. elicit is what its person answers; "" says that
// it has none.
func (s server) driver(t *testing.T, version, elicit string) *client {
	t.Helper()
	options := map[string]any{"sdk": version, "command": s.argv[0], "args": s.argv[1:], "env": environ(s.env), "cwd": s.dir}
	if elicit != "" {
		options["elicit"] = elicit
	}
	c := &client{t: t, waiting: map[int]chan answer{}, ended: make(chan struct{})}
	cmd := exec.Command(node(t), "client.mjs", string(mustJSON(t, options)))
	cmd.Stderr = os.Stderr
	var err error
	if c.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go c.read(out)
	t.Cleanup(func() {
		_ = c.in.Close()
		select {
		case <-c.ended:
		case <-time.After(20 * time.Second):
			t.Error("the client does not end")
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
		for _, fault := range c.faults {
			// The Go SDK answers a call that was cancelled, which a server should
			// not, and a client is to ignore.
			if !strings.Contains(fault, "unknown message ID") || !strings.Contains(fault, "the call was cancelled") {
				t.Errorf("the SDK says: %s", fault)
			}
		}
	})
	return c
}

func environ(list []string) map[string]string {
	env := map[string]string{}
	for _, v := range list {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	return env
}

func (c *client) read(out io.Reader) {
	defer close(c.ended)
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var m struct {
			answer
			Event   string          `json:"event"`
			Params  json.RawMessage `json:"params"`
			Message string          `json:"message"`
		}
		if err := json.Unmarshal(line, &m); err != nil {
			c.t.Errorf("client.mjs: %v", err)
			continue
		}
		c.mu.Lock()
		switch m.Event {
		case "elicit":
			c.asked = append(c.asked, m.Params)
		case "error":
			c.faults = append(c.faults, m.Message)
		case "":
			if to := c.waiting[m.ID]; to != nil {
				to <- m.answer
			}
		}
		c.mu.Unlock()
	}
}

func (c *client) begin(op string, more map[string]any) (int, <-chan answer) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	to := make(chan answer, 1)
	c.waiting[c.next] = to
	request := map[string]any{"id": c.next, "op": op}
	maps.Copy(request, more)
	if _, err := c.in.Write(append(mustJSON(c.t, request), '\n')); err != nil {
		c.t.Fatal(err)
	}
	return c.next, to
}

func (c *client) wait(to <-chan answer) (json.RawMessage, error) {
	select {
	case a := <-to:
		if a.Error != nil {
			return nil, fmt.Errorf("%v: %s", a.Error.Code, a.Error.Message)
		}
		return a.Result, nil
	case <-c.ended:
		return nil, errEnded
	case <-time.After(2 * time.Minute):
		return nil, errors.New("no answer within two minutes")
	}
}

func (c *client) do(op string, more map[string]any) json.RawMessage {
	c.t.Helper()
	_, to := c.begin(op, more)
	out, err := c.wait(to)
	if err != nil {
		c.t.Fatalf("%s: %v", op, err)
	}
	return out
}

func (c *client) tool(name string, args any) result {
	c.t.Helper()
	_, to := c.begin("call", map[string]any{"name": name, "arguments": args})
	return toResult(c.wait(to))
}

// questions returns what the person was asked since the last call.
func (c *client) questions() (texts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, params := range c.asked {
		var p struct{ Message string }
		_ = json.Unmarshal(params, &p)
		texts = append(texts, p.Message)
	}
	c.asked = nil
	return texts
}

// sdks are both lines of the TypeScript SDK: they speak different protocols.
func sdks(t *testing.T, f func(t *testing.T, version string)) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f(t, version)
		})
	}
}

// fields are all names that the schemas of the tools may have, and none is for a
// value. A new one is to be judged by a person: could it hold a value?
var fields = strings.Fields(`
	command secrets work_dir timeout_seconds name generate length alphabet from_file
	exit_code stdout stderr secrets_injected timed_out masked_count truncated signal warnings
	version created app env exists deleted
	unlocked key locked_because how_to_unlock secret_count approve client_can_ask intercept_mode
	intercepted_count session_age_seconds running`)

// TestOfficialClient: a whole session of each SDK, which checks the messages and
// results against its own schemas and the tools'.
func TestOfficialClient(t *testing.T) {
	t.Parallel()
	sdks(t, func(t *testing.T, version string) {
		a := demo(t)
		c := a.serve(nil).driver(t, version, "")
		var hello struct {
			Server       struct{ Name, Version string }
			Capabilities map[string]any
			Instructions string
			Protocol     string
		}
		if err := json.Unmarshal(c.do("connect", nil), &hello); err != nil {
			t.Fatal(err)
		}
		if hello.Server.Name != "opaquevault" || hello.Capabilities["tools"] == nil || !strings.Contains(hello.Instructions, "ov secret set") {
			t.Errorf("%+v", hello)
		}
		if version == "v1" {
			c.do("ping", nil)
		}
		var list struct {
			Tools []struct {
				Name, Title, Description  string
				InputSchema, OutputSchema json.RawMessage
				Annotations               struct {
					ReadOnlyHint, DestructiveHint, OpenWorldHint *bool
				}
			}
		}
		if err := json.Unmarshal(c.do("list", nil), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Tools) != 7 {
			t.Errorf("there are %d tools", len(list.Tools))
		}
		for _, tool := range list.Tools {
			for _, schema := range []json.RawMessage{tool.InputSchema, tool.OutputSchema} {
				var s any
				if err := json.Unmarshal(schema, &s); err != nil {
					t.Fatalf("%s: %v", tool.Name, err)
				}
				walk(t, tool.Name, s)
			}
			is := func(b *bool) bool { return b != nil && *b }
			reads := slices.Contains([]string{"vault_list_secrets", "vault_secret_exists", "vault_status"}, tool.Name)
			destroys := slices.Contains([]string{"vault_run", "vault_update_secret", "vault_delete_secret"}, tool.Name)
			if tool.Title == "" || tool.Description == "" || is(tool.Annotations.ReadOnlyHint) != reads || !reads && is(tool.Annotations.DestructiveHint) != destroys {
				t.Errorf("%s: title %q, annotations %+v", tool.Name, tool.Title, tool.Annotations)
			}
		}
		var compiled struct{ Faults []string }
		if err := json.Unmarshal(c.do("compile", nil), &compiled); err != nil || len(compiled.Faults) > 0 {
			t.Errorf("as JSON Schema: %v %v", compiled.Faults, err)
		}
		for _, name := range append(inOrder, "vault_status") {
			args := everyTool[name]
			if args == nil {
				args = map[string]any{}
			}
			if r := c.tool(name, args); r.failed() || r.StructuredContent == nil {
				t.Errorf("%s: %s", name, r.text())
			}
			if r := c.tool(name, map[string]any{"no_such_argument": 1}); !r.failed() {
				t.Errorf("%s takes an argument that there is not", name)
			}
		}
		if r := c.tool("vault_get_secret", map[string]any{"name": "TOKEN"}); !r.failed() {
			t.Error("there is a vault_get_secret")
		}
		var out ran
		r := c.tool("vault_run", map[string]any{"command": []string{"env"}})
		if err := json.Unmarshal(r.StructuredContent, &out); err != nil || out.MaskedCount != 3 || !strings.Contains(out.Stdout, "TOKEN=[masked TOKEN]\n") {
			t.Errorf("%+v %v", out, err)
		}
		// An exit code is a result and not an error.
		r = c.tool("vault_run", map[string]any{"command": []string{"sh", "-c", "exit 3"}})
		if err := json.Unmarshal(r.StructuredContent, &out); err != nil || r.IsError || *out.ExitCode != 3 {
			t.Errorf("%s", r.text())
		}
		c.do("close", nil)

		// Another process, the same agent.
		again := a.serve(nil).driver(t, version, "")
		again.do("connect", nil)
		if r := again.tool("vault_run", map[string]any{"command": []string{"printenv", "TOKEN"}}); r.failed() {
			t.Errorf("after a reconnect: %s", r.text())
		}
	})
}

// walk judges each name in a schema, at any depth, and that no object of a
// schema is open for more.
func walk(t *testing.T, tool string, schema any) {
	t.Helper()
	switch s := schema.(type) {
	case []any:
		for _, e := range s {
			walk(t, tool, e)
		}
	case map[string]any:
		if properties, ok := s["properties"].(map[string]any); ok {
			for name, property := range properties {
				if !slices.Contains(fields, name) {
					t.Errorf("%s: %s is new in a schema: could it hold a value?", tool, name)
				}
				walk(t, tool, property)
			}
		}
		if s["type"] == "object" && s["additionalProperties"] != false {
			if not, ok := s["additionalProperties"].(map[string]any); !ok || not["not"] == nil {
				t.Errorf("%s: an object of a schema takes any property", tool)
			}
		}
		for _, key := range []string{"items", "anyOf", "oneOf", "allOf", "$defs", "definitions"} {
			if d, ok := s[key].(map[string]any); ok && (key == "$defs" || key == "definitions") {
				for _, e := range d {
					walk(t, tool, e)
				}
			} else {
				walk(t, tool, s[key])
			}
		}
	}
}

// TestOfficialClientCancels: by hand and by the SDK's own time limit.
func TestOfficialClientCancels(t *testing.T) {
	t.Parallel()
	sdks(t, func(t *testing.T, version string) {
		a := demo(t)
		c := a.serve(nil).driver(t, version, "")
		c.do("connect", nil)
		id, to := c.begin("call", map[string]any{"name": "vault_run", "arguments": map[string]any{"command": family("cancelled")}})
		a.pids("cancelled", 3)
		c.do("cancel", map[string]any{"of": id})
		if _, err := c.wait(to); err == nil {
			t.Error("a call that was cancelled has a result")
		}
		a.gone("cancelled")
		_, to = c.begin("call", map[string]any{"name": "vault_run", "timeout": 1500, "arguments": map[string]any{"command": family("late")}})
		if _, err := c.wait(to); err == nil {
			t.Error("a call that took too long has a result")
		}
		a.gone("late")
		r := c.tool("vault_run", map[string]any{"command": family("timeout"), "timeout_seconds": 1})
		var out ran
		if err := json.Unmarshal(r.StructuredContent, &out); err != nil || !out.TimedOut {
			t.Errorf("%s", r.text())
		}
		a.gone("timeout")
		if r := c.tool("vault_run", map[string]any{"command": []string{"true"}}); r.failed() {
			t.Errorf("afterwards: %s", r.text())
		}
	})
}

// TestOfficialClientServerDies: the client is told.
func TestOfficialClientServerDies(t *testing.T) {
	t.Parallel()
	a := demo(t)
	server := a.serve(nil)
	c := server.driver(t, "v1", "")
	c.do("connect", nil)
	_, to := c.begin("call", map[string]any{"name": "vault_run", "arguments": map[string]any{"command": family("pids")}})
	a.pids("pids", 3)
	if err := exec.Command("kill", "-9", fmt.Sprint(server.pid(t))).Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.wait(to); err == nil {
		t.Error("a call of a server that was killed has a result")
	}
	a.gone("pids")
}

// TestApproval: what the person is asked, and what follows from each answer.
func TestApproval(t *testing.T) {
	t.Parallel()
	sdks(t, func(t *testing.T, version string) {
		a := demo(t)
		a.file("project/.ov.yaml", "app: demo\nenv: production\nmcp:\n  allow:\n    - [echo, allowed]\n    - [printf, \"*\", fixed]\n  deny:\n    - [dd]\n")
		touch := map[string]any{"command": []string{"touch", "it ran"}, "secrets": []string{"TOKEN", "AWKWARD"}, "work_dir": "."}
		ran := func() bool {
			err := os.Remove(filepath.Join(a.project, "it ran"))
			return err == nil
		}
		writes := []struct {
			tool string
			args map[string]any
		}{
			{"vault_create_secret", map[string]any{"name": "NEW", "generate": map[string]any{"length": 33, "alphabet": "hex"}}},
			{"vault_update_secret", map[string]any{"name": "TOKEN", "from_file": ".ov.yaml"}},
			{"vault_delete_secret", map[string]any{"name": "TOKEN"}},
		}
		for _, c2 := range []struct {
			approve, elicit string // flag and the client's answer
			asks, acts      bool
			says            string
		}{
			{"", "decline", true, false, "did not approve"},
			{"", "cancel", true, false, "approved"},
			{"auto", "", false, true, ""},
			{"ask", "", false, false, "cannot ask"},
			{"ask", "decline", true, false, "did not approve"},
			{"never", "decline", false, true, ""},
			{"ask", "accept", true, true, ""}, // the last: it deletes TOKEN
		} {
			name := "--approve=" + c2.approve + " " + c2.elicit
			var flags []string
			if c2.approve != "" {
				flags = []string{"--approve", c2.approve}
			}
			c := a.serve(nil, flags...).driver(t, version, c2.elicit)
			c.do("connect", nil)
			r := c.tool("vault_run", touch)
			asked := c.questions()
			if ran() != c2.acts || r.failed() == c2.acts || (len(asked) == 1) != c2.asks || len(asked) > 1 {
				t.Errorf("%s: asked %q, answered %s", name, asked, r.text())
			}
			if !strings.Contains(r.text(), c2.says) {
				t.Errorf("%s: %q is not in: %s", name, c2.says, r.text())
			}
			if c2.asks && len(asked) == 1 {
				for _, part := range []string{`touch "it ran"`, a.project, "TOKEN", "AWKWARD", "demo", "production"} {
					if !strings.Contains(asked[0], part) {
						t.Errorf("%s: %q is not in the question: %s", name, part, asked[0])
					}
				}
			}
			// What only reads asks nobody.
			for _, tool := range []string{"vault_list_secrets", "vault_secret_exists"} {
				if r := c.tool(tool, everyTool[tool]); r.failed() {
					t.Errorf("%s: %s: %s", name, tool, r.text())
				}
			}
			// An allowed command, and what only looks like one.
			for _, command := range [][]string{{"echo", "allowed"}, {"printf", "%s", "fixed"}} {
				if r := c.tool("vault_run", map[string]any{"command": command}); r.failed() {
					t.Errorf("%s: %q: %s", name, command, r.text())
				}
			}
			if asked := c.questions(); asked != nil {
				t.Errorf("%s: asked needlessly: %q", name, asked)
			}
			for _, command := range [][]string{{"echo", "allowed", "more"}, {"echo"}, {"/bin/echo", "allowed"}, {"echo allowed"}, {"printf", "a", "b"}} {
				if r := c.tool("vault_run", map[string]any{"command": command}); !c2.acts && !r.failed() {
					t.Errorf("%s: %q ran", name, command)
				}
				if asked := c.questions(); (len(asked) == 1) != c2.asks {
					t.Errorf("%s: %q: asked %q", name, command, asked)
				}
			}
			// A denied one, whatever anybody says.
			for _, command := range [][]string{{"dd"}, {"dd", "if=/dev/null"}} {
				if r := c.tool("vault_run", map[string]any{"command": command}); !r.failed() || !strings.Contains(r.text(), "denied") {
					t.Errorf("%s: %q: %s", name, command, r.text())
				}
			}
			c.questions()
			if c2.acts && c2.elicit != "accept" {
				continue
			}
			before := a.ov(nil, "secret", "list", "--json", "--app", "demo", "--env", "production")
			for _, w := range writes {
				r := c.tool(w.tool, w.args)
				asked := c.questions()
				if r.failed() == c2.acts || (len(asked) == 1) != c2.asks {
					t.Errorf("%s: %s: asked %q, answered %s", name, w.tool, asked, r.text())
				}
				if len(asked) == 1 && !strings.Contains(asked[0], fmt.Sprint(w.args["name"])) {
					t.Errorf("%s: %s: the question does not name the secret: %s", name, w.tool, asked[0])
				}
			}
			after := a.ov(nil, "secret", "list", "--json", "--app", "demo", "--env", "production")
			if bytes.Equal(before, after) == c2.acts {
				t.Errorf("%s: the secrets were\n%s and are\n%s", name, before, after)
			}
			c.do("close", nil)
		}
	})
}

// TestQuestionShowsControlCharacters: what a command could hide from a person is
// visible.
func TestQuestionShowsControlCharacters(t *testing.T) {
	t.Parallel()
	a := demo(t)
	c := a.serve(nil, "--approve", "ask").driver(t, "v1", "decline")
	c.do("connect", nil)
	for _, word := range []string{"a\x1b[2Jb", "line\r\nanother: line", "\u202egnp.exe", "tab\there", "zero\u200bwidth", "\x7f", "\u0085", "a  b", "", "bell\a", "\u2066x\u2069", "e\u0301\U000e0041"} {
		r := c.tool("vault_run", map[string]any{"command": []string{"rm", word}})
		asked := c.questions()
		if len(asked) != 1 || !r.failed() {
			t.Errorf("%q: asked %q", word, asked)
			continue
		}
		line := regexp.MustCompile(`(?m)^ *command: *(.*)$`).FindStringSubmatch(asked[0])
		if line == nil || line[1] == "rm" || line[1] == "rm " || line[1] == "rm a b" {
			t.Errorf("%q does not stand out in %q", word, asked[0])
		}
		for _, r := range asked[0] {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
				t.Errorf("%q is in the question as %U", word, r)
			}
		}
	}
}

// TestInspector: the other official client, from the command line.
func TestInspector(t *testing.T) {
	t.Parallel()
	a := demo(t)
	run := func(args ...string) []byte {
		t.Helper()
		s := a.serve(nil)
		// The server is in a file, as no argument of it can be one of the inspector's.
		config := filepath.Join(a.dir, "inspector.json")
		a.file("inspector.json", string(mustJSON(t, map[string]any{"mcpServers": map[string]any{"ov": map[string]any{
			"type": "stdio", "command": s.argv[0], "args": s.argv[1:], "env": environ(s.env),
		}}})))
		cmd := exec.Command(node(t), append([]string{"node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js",
			"--cli", "--config", config, "--server", "ov", "--cwd", a.project}, args...)...)
		cmd.Env = append(slices.Clone(a.env), "HOME="+a.dir)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("inspector %q: %v\n%s%s", args, err, &stdout, &stderr)
		}
		return stdout.Bytes()
	}
	var list struct{ Tools []struct{ Name string } }
	if err := json.Unmarshal(run("--method", "tools/list", "--strict"), &list); err != nil || len(list.Tools) != 7 {
		t.Errorf("tools/list: %+v %v", list, err)
	}
	r := toResult(run("--method", "tools/call", "--tool-name", "vault_status"), nil)
	var s status
	if err := json.Unmarshal(r.StructuredContent, &s); err != nil || !s.Unlocked || s.App != "demo" {
		t.Errorf("vault_status: %s %v", r.text(), err)
	}
	r = toResult(run("--method", "tools/call", "--tool-name", "vault_run", "--tool-arg", `command=["printenv","TOKEN"]`, `secrets=["TOKEN"]`, "timeout_seconds=20"), nil)
	var out ran
	if err := json.Unmarshal(r.StructuredContent, &out); err != nil || out.Stdout != "[masked TOKEN]\n" {
		t.Errorf("vault_run: %s %v", r.text(), err)
	}
}

// scenarios are those of the public conformance suite that are about a server
// with nothing but tools, and about no tool in particular. Each of the others
// needs something that ov does not have, or is about HTTP, which here is the
// test's own bridge.
var scenarios = map[string]string{
	"server-initialize":        "",
	"ping":                     "",
	"tools-list":               "",
	"logging-set-level":        "the server sends no log messages",
	"completion-complete":      "there is nothing to complete",
	"server-sse":               "about HTTP",
	"dns-rebinding-protection": "about HTTP",
	"resources-":               "there are no resources",
	"prompts-":                 "there are no prompts",
	"tools-call-":              "wants a tool made for the suite",
	"elicitation-":             "wants a tool made for the suite",
	"json-schema-2020-12":      "wants a tool made for the suite",
}

// TestConformance runs the public conformance suite.
func TestConformance(t *testing.T) {
	t.Parallel()
	a := demo(t)
	s := a.serve(nil)
	bridge := exec.Command(node(t), "bridge.mjs", string(mustJSON(t, map[string]any{"command": s.argv[0], "args": s.argv[1:], "env": environ(s.env), "cwd": s.dir})))
	bridge.Stderr = os.Stderr
	in, err := bridge.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := bridge.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bridge.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = bridge.Wait()
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("bridge.mjs: %v", err)
	}
	suite := func(args ...string) (string, error) {
		cmd := exec.Command(node(t), append([]string{"node_modules/@modelcontextprotocol/conformance/dist/index.js"}, args...)...)
		cmd.Env = append(slices.Clone(a.env), "HOME="+a.dir)
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	list, err := suite("list", "--server")
	if err != nil {
		t.Fatalf("%v\n%s", err, list)
	}
	ran := 0
	for _, m := range regexp.MustCompile(`(?m)^ *- ([a-z0-9-]+) \[`).FindAllStringSubmatch(list, -1) {
		why, known := "", false
		for prefix, w := range scenarios {
			if strings.HasPrefix(m[1], prefix) && (!known || w == "") {
				why, known = w, true
			}
		}
		switch {
		case !known:
			t.Errorf("%s is new in the suite: decide whether it is for ov", m[1])
		case why != "":
			t.Logf("not run: %-32s %s", m[1], why)
		default:
			text, err := suite("server", "--url", strings.TrimSpace(url), "--scenario", m[1])
			if err != nil {
				t.Errorf("%s: %v\n%s", m[1], err, text)
			}
			ran++
			t.Logf("ran:     %s", m[1])
		}
	}
	if ran < 3 {
		t.Errorf("%d scenarios ran", ran)
	}
}
