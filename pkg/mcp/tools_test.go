package mcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// list asks a server without a vault for its tools, as a client does.
func list(t *testing.T) []*sdk.Tool {
	t.Helper()
	s := &server{}
	client, srv := sdk.NewInMemoryTransports()
	session, err := s.sdk().Connect(t.Context(), srv, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	c, err := sdk.NewClient(&sdk.Implementation{Name: "test"}, nil).Connect(t.Context(), client, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	got, err := c.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.Tools
}

// fields calls fn with the path and schema of each field that can hold text or
// anything.
func fields(path string, s *jsonschema.Schema, fn func(string)) {
	types := append([]string{s.Type}, s.Types...)
	if len(s.Enum) == 0 && (slices.Contains(types, "string") || s.Type == "" && len(s.Types) == 0) {
		fn(path)
	}
	for name, p := range s.Properties {
		fields(path+"."+name, p, fn)
	}
	if s.Items != nil {
		fields(path+"[]", s.Items, fn)
	}
	for _, sub := range append(append(append([]*jsonschema.Schema{}, s.AnyOf...), s.AllOf...), s.OneOf...) {
		fields(path, sub, fn)
	}
	if a := s.AdditionalProperties; a != nil && a.Not == nil {
		fields(path+".*", a, fn)
	}
}

// TestSchemasHoldNoValue knows each field of each tool that can hold text, and
// why it holds no value. A new one must be thought about, and then put here.
func TestSchemasHoldNoValue(t *testing.T) {
	known := map[string]string{
		"vault_run.in.command[]":                   "what to run; scanned, and a person sees it",
		"vault_run.in.secrets[]":                   "names, which are checked",
		"vault_run.in.work_dir":                    "a directory that exists in the project",
		"vault_run.out.stdout":                     "masked",
		"vault_run.out.stderr":                     "masked",
		"vault_run.out.secrets_injected[]":         "names",
		"vault_run.out.signal":                     "of a fixed set",
		"vault_run.out.warnings[]":                 "our own words, and names",
		"vault_list_secrets.out.app":               "routing",
		"vault_list_secrets.out.env":               "routing",
		"vault_list_secrets.out.secrets[].name":    "a name",
		"vault_list_secrets.out.secrets[].created": "a time",
		"vault_secret_exists.in.name":              "a name, which is checked",
		"vault_secret_exists.out.name":             "the same",
		"vault_create_secret.in.name":              "a name, which is checked",
		"vault_create_secret.in.from_file":         "a path",
		"vault_create_secret.out.name":             "a name",
		"vault_create_secret.out.app":              "routing",
		"vault_create_secret.out.env":              "routing",
		"vault_update_secret.in.name":              "a name, which is checked",
		"vault_update_secret.in.from_file":         "a path",
		"vault_update_secret.out.name":             "a name",
		"vault_update_secret.out.app":              "routing",
		"vault_update_secret.out.env":              "routing",
		"vault_delete_secret.in.name":              "a name, which is checked",
		"vault_delete_secret.out.name":             "a name",
		"vault_delete_secret.out.app":              "routing",
		"vault_delete_secret.out.env":              "routing",
		"vault_status.out.app":                     "routing",
		"vault_status.out.env":                     "routing",
		"vault_status.out.key":                     "of a fixed set",
		"vault_status.out.locked_because":          "an error, which holds no value",
		"vault_status.out.how_to_unlock":           "our own words",
		"vault_status.out.approve":                 "of a fixed set",
		"vault_status.out.intercept_mode":          "of a fixed set",
		"vault_status.out.version":                 "of the program",
	}
	found := map[string]bool{}
	for _, tool := range list(t) {
		for direction, schema := range map[string]any{"in": tool.InputSchema, "out": tool.OutputSchema} {
			text, err := json.Marshal(schema)
			if err != nil {
				t.Fatal(err)
			}
			var s jsonschema.Schema
			if err := json.Unmarshal(text, &s); err != nil {
				t.Fatal(err)
			}
			if s.AdditionalProperties == nil || s.AdditionalProperties.Not == nil {
				t.Errorf("%s.%s takes fields that it does not name", tool.Name, direction)
			}
			fields(tool.Name+"."+direction, &s, func(path string) {
				found[path] = true
				if known[path] == "" {
					t.Errorf("%s can hold a value", path)
				}
			})
		}
	}
	for path := range known {
		if !found[path] {
			t.Errorf("%s is not there any more", path)
		}
	}
}

// The hints by which clients decide what to ask their person.
func TestAnnotations(t *testing.T) {
	want := map[string]string{
		"vault_run":           "destructive open",
		"vault_list_secrets":  "read-only",
		"vault_secret_exists": "read-only",
		"vault_create_secret": "additive",
		"vault_update_secret": "destructive",
		"vault_delete_secret": "destructive",
		"vault_status":        "read-only",
	}
	for _, tool := range list(t) {
		a := tool.Annotations
		got := ""
		switch {
		case a.ReadOnlyHint:
			got = "read-only"
		case a.DestructiveHint != nil && *a.DestructiveHint:
			got = "destructive"
		case a.DestructiveHint != nil:
			got = "additive"
		}
		if a.OpenWorldHint == nil || *a.OpenWorldHint {
			got += " open"
		}
		if got != want[tool.Name] {
			t.Errorf("%s is %s", tool.Name, got)
		}
		delete(want, tool.Name)
		if tool.Title == "" || tool.Description == "" {
			t.Errorf("%s says nothing of itself", tool.Name)
		}
	}
	if len(want) != 0 {
		t.Errorf("missing: %v", want)
	}
}

// What is wrong with arguments is said without repeating them.
func TestDecode(t *testing.T) {
	const marker = "hunter2hunter2"
	runSchema, _ := jsonschema.For[runInput](nil)
	writeSchema, _ := jsonschema.For[writeInput](nil)
	for args, want := range map[string]string{
		`{"command": ["true"]}`:             "",
		``:                                  "the argument command is missing",
		`{"command": null}`:                 "",
		`[]`:                                "the arguments are not a JSON object",
		`"hunter2hunter2"`:                  "the arguments are not a JSON object",
		`{"command": "hunter2hunter2"}`:     "the argument command is of the wrong type",
		`{"command": [["hunter2hunter2"]]}`: "the argument command is of the wrong type",
		`{"command": ["a"], "hunter2hunter2": 1}`:                               "an unknown argument: there are command, secrets, timeout_seconds, work_dir",
		`{"command": ["a"]} {"hunter2hunter2": 1}`:                              "the arguments are not one JSON object",
		`{"command": ["a"], "timeout_seconds": 123456789012345678901234567890}`: "the argument timeout_seconds is of the wrong type",
		`{"command": ["hunter2hunter2`:                                          "the arguments are not valid JSON",
	} {
		var in runInput
		err := decode(json.RawMessage(args), &in, runSchema)
		if got := fmt.Sprint(err); (err == nil) != (want == "") || err != nil && got != want || strings.Contains(got, marker) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
	for _, args := range []string{
		`{"name": "A", "value": "hunter2hunter2"}`,
		`{"name": "A", "secret": "hunter2hunter2", "generate": {}}`,
		`{"name": "A", "generate": {"value": "hunter2hunter2"}}`,
		`{"hunter2hunter2": ""}`,
	} {
		if err := decode(json.RawMessage(args), &writeInput{}, writeSchema); !errors.Is(err, errLiteral) {
			t.Errorf("%s: got %v", args, err)
		}
	}
	if text := failed(errLiteral).Content[0].(*sdk.TextContent).Text; !strings.Contains(text, "ov secret set NAME") {
		t.Errorf("got %s", text)
	}
}

func FuzzArguments(f *testing.F) {
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &server{dir: dir}
		var run runInput
		runSchema, _ := jsonschema.For[runInput](nil)
		if decode(raw, &run, runSchema) == nil {
			if c, err := s.checkRun(run); err == nil {
				if len(c.argv) == 0 || c.timeout < 1e9 || c.timeout > 3600e9 || !strings.HasPrefix(c.dir, dir) {
					t.Errorf("accepted %+v", c)
				}
				if strings.ContainsAny(s.runQuestion(c), "\x00\x1b\r\u202e") {
					t.Errorf("control characters in %q", s.runQuestion(c))
				}
			}
		}
		var write writeInput
		writeSchema, _ := jsonschema.For[writeInput](nil)
		if decode(raw, &write, writeSchema) == nil {
			if get, _, err := s.source(write); err == nil {
				if v, err := get(); err == nil {
					if write.Generate == nil { // the folder is empty
						t.Errorf("read %d bytes from %q", len(v.Bytes()), write.FromFile)
					}
					v.Destroy()
				}
			}
		}
		var name nameInput
		nameSchema, _ := jsonschema.For[nameInput](nil)
		_ = decode(raw, &name, nameSchema)
	})
}
