package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/detect/engine"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/mcp/options"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 0 && os.Args[0] == options.Program { // as startReaper runs it
		if err := Reap(os.Stdin); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var shop = vault.Ref{App: "shop", Env: "test"}

// The values of the fixture's secrets. Each test makes sure that none of them
// reaches the client.
var secretValues = map[string]string{
	"TOKEN":    "tk-5f0c1e92b7",
	"PASSWORD": "p'a\"ss w\\ord$1",
	"FLAG":     "true",
}

// rules are the real engine's, in this process.
var rules = sync.OnceValues(engine.New)

type inProcess struct{ *engine.Engine }

func (e inProcess) Scan(_ context.Context, text []byte) ([]detect.Finding, error) {
	return e.Engine.Scan(text, "")
}

// fixture is a server with a vault of its own, in a project of its own.
type fixture struct {
	*server
	t       *testing.T
	session *vault.Session // to change the vault behind the server's back
	log     *lines
	wire    *lines // what the client got to see
	hangUp  func() // ends the client's side as the end of its process does
}

type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newFixture(t *testing.T, o options.Serve) *fixture {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	project := filepath.Join(dir, "project")
	must(os.Mkdir(project, 0o700))
	t.Chdir(project)
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	ctx := t.Context()
	st := bolt.New(filepath.Join(dir, "vault.db"))
	v := vault.New(st)
	password, err := kek.LockedFrom([]byte("hunter2hunter2"))
	must(err)
	must(v.Init(ctx, st.Create, password))
	session, err := v.Unlock(ctx, password)
	must(err)
	t.Cleanup(session.Destroy)
	var list []vault.Put
	for name, value := range secretValues {
		list = append(list, vault.Put{Name: name, Value: []byte(value)})
	}
	_, err = session.Put(ctx, shop, list, vault.PutOptions{Create: true})
	must(err)
	key, _, err := session.DeriveMachineKey(ctx, shop, "")
	must(err)
	file := filepath.Join(dir, "key")
	must(machinekey.Write(file, key, false))

	if o.Approve == "" {
		o.Approve = config.ApproveNever
	}
	o.Place = access.Place{Vault: filepath.Join(dir, "vault.db")}
	o.MachineKey, o.App, o.Env = file, shop.App, shop.Env
	f := &fixture{t: t, session: session, log: &lines{}, wire: &lines{}}
	f.server, err = newServer(ctx, o, f.log)
	must(err)
	e, err := rules()
	must(err)
	f.intercept.engine = inProcess{e}
	f.reaper, err = startReaper()
	must(err)
	t.Cleanup(func() {
		f.reaper.close()
		f.known.forget()
		for name, value := range secretValues {
			if name != "FLAG" && (strings.Contains(f.wire.String(), value) || strings.Contains(f.log.String(), value)) {
				t.Errorf("the value of %s got out", name)
			}
		}
	})
	return f
}

// connect returns a client's session with the server.
func (f *fixture) connect(o *sdk.ClientOptions, version string) *sdk.ClientSession {
	f.t.Helper()
	toServer, fromClientEnd := io.Pipe()
	toClientEnd, fromServer := io.Pipe()
	ctx, cancel := context.WithCancel(f.t.Context())
	f.stop = ctx
	done := make(chan error, 1)
	go func() {
		done <- f.sdk().Run(ctx, &transport{
			inner: &sdk.IOTransport{Reader: toServer, Writer: fromServer, MaxLineLength: maxLine},
			by:    f.intercept, ended: cancel,
		})
	}()
	f.hangUp = func() { _ = fromClientEnd.Close() }
	client := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o)
	session, err := client.Connect(ctx, &sdk.IOTransport{
		Reader: io.NopCloser(io.TeeReader(toClientEnd, f.wire)), Writer: fromClientEnd,
	}, &sdk.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		f.hangUp()
		_ = session.Close()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
			f.t.Errorf("the server ended with %v", err)
		}
		f.runs.Wait()
	})
	return session
}

// call calls a tool and returns its result, or the text of its error.
func call[Out any](f *fixture, c *sdk.ClientSession, name string, args any) (out Out, fault string) {
	f.t.Helper()
	res, err := c.CallTool(f.t.Context(), &sdk.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		return out, "protocol: " + err.Error()
	}
	if res.IsError {
		return out, res.Content[0].(*sdk.TextContent).Text
	}
	text, err := json.Marshal(res.StructuredContent)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		f.t.Fatal(err)
	}
	return out, ""
}

type object = map[string]any

func (f *fixture) file(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// sh is a vault_run of a shell command.
func sh(f *fixture, c *sdk.ClientSession, script string, more ...any) (runOutput, string) {
	f.t.Helper()
	args := object{"command": []string{"/bin/sh", "-c", script}}
	for i := 0; i < len(more); i += 2 {
		args[fmt.Sprint(more[i])] = more[i+1]
	}
	return call[runOutput](f, c, "vault_run", args)
}
