package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/mcp/options"
	"github.com/opaquevault/ov/pkg/vault"
)

// A program gets the secrets, and the client gets its output without them.
func TestRun(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	out, fault := sh(f, c, `echo "token=$TOKEN"; printf %s "$PASSWORD" | base64 >&2; printenv FLAG; pwd; exit 3`)
	if fault != "" {
		t.Fatal(fault)
	}
	if want := "token=[masked TOKEN]\ntrue\n" + f.dir + "\n"; out.Stdout != want {
		t.Errorf("stdout %q", out.Stdout)
	}
	if !strings.HasPrefix(out.Stderr, "[masked PASSWORD]") {
		t.Errorf("stderr %q", out.Stderr)
	}
	if out.ExitCode != 3 || out.MaskedCount != 2 || out.TimedOut || out.Truncated || !slices.Equal(out.SecretsInjected, []string{"FLAG", "PASSWORD", "TOKEN"}) {
		t.Errorf("%+v", out)
	}
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "FLAG is not masked") {
		t.Errorf("warnings %q", out.Warnings)
	}

	// Only what was asked for goes in; all is masked.
	f.file("copy", secretValues["TOKEN"])
	out, fault = sh(f, c, `echo "[$TOKEN][$FLAG]"; cat copy; env | grep ^OV_`, "secrets", []string{"FLAG"})
	if fault != "" || out.Stdout != "[][true]\n[masked TOKEN]" || !slices.Equal(out.SecretsInjected, []string{"FLAG"}) {
		t.Errorf("%s %+v", fault, out)
	}
	out, fault = sh(f, c, `env`, "secrets", []string{})
	if fault != "" || strings.Contains(out.Stdout, "masked") || len(out.SecretsInjected) != 0 {
		t.Errorf("%s %+v", fault, out)
	}
	if _, fault = sh(f, c, `env`, "secrets", []string{"NOPE", "TOKEN"}); !strings.Contains(fault, "1 secret not found in shop/test: NOPE") {
		t.Error(fault)
	}
	out, fault = sh(f, c, `kill -SEGV $$`)
	if fault != "" || out.ExitCode != 139 || out.Signal != "SIGSEGV" {
		t.Errorf("%s %+v", fault, out)
	}
	out, fault = sh(f, c, `head -c 1000000 /dev/zero | tr '\0' x; echo "$TOKEN"`)
	if fault != "" || !out.Truncated || !strings.Contains(out.Stdout, "bytes left out") || !strings.HasSuffix(out.Stdout, "xx[masked TOKEN]\n") {
		t.Errorf("%s %.100s", fault, out.Stdout)
	}

	// A new value is masked at once, also where it takes the version's number of
	// one that was deleted.
	ctx := t.Context()
	if err := f.session.Delete(ctx, shop, []string{"TOKEN"}); err != nil {
		t.Fatal(err)
	}
	put := vault.Put{Name: "TOKEN", Value: []byte("another-value-1")}
	if _, err := f.session.Put(ctx, shop, []vault.Put{put}, vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if out, fault = sh(f, c, `echo "$TOKEN"`); fault != "" || out.Stdout != "[masked TOKEN]\n" {
		t.Errorf("%s %+v", fault, out)
	}
}

// A session that the client's own fault ends says so, and repeats nothing of it.
func TestUnreadableMessage(t *testing.T) {
	for input, want := range map[string]bool{
		"": false, "tk-5f0c1e92b7 is no JSON\n": true, `{"jsonrpc":"2.0","id":{},"method":"tk-5f0c1e92b7"}` + "\n": true,
		`"` + strings.Repeat("x", maxLine) + `"`: true,
	} {
		var log lines
		ended := false
		tr := &transport{
			inner: &sdk.IOTransport{Reader: io.NopCloser(strings.NewReader(input)), Writer: writeCloser{&log}, MaxLineLength: maxLine},
			by:    &interceptor{mode: off, log: slog.New(slog.NewTextHandler(&log, nil))},
			ended: func() { ended = true },
		}
		c, err := tr.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if msg, err := c.Read(t.Context()); err == nil || !ended {
			t.Errorf("%.40q: %v %v", input, msg, err)
		}
		if got := log.String(); strings.Contains(got, "the session ends") != want || strings.Contains(got, "5f0c") {
			t.Errorf("%.40q: logged %q", input, got)
		}
	}
}

type writeCloser struct{ io.Writer }

func (writeCloser) Close() error { return nil }

// A rule for a program of the project's is not for one of the same name in a
// directory that the model has chosen.
func TestAllowedRelative(t *testing.T) {
	f := newFixture(t, options.Serve{Approve: config.ApproveAsk})
	f.policy.allow = []config.Rule{{"./check"}, {"echo", "x"}}
	if err := os.Mkdir(filepath.Join(f.dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", "sub"} {
		if err := os.WriteFile(filepath.Join(f.dir, dir, "check"), []byte("#!/bin/sh\npwd\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c := f.connect(nil, "")
	for _, test := range []struct {
		command, dir string
		runs         bool
	}{{"./check", "", true}, {"./check", ".", true}, {"./check", "sub", false}, {"echo x", "sub", true}} {
		args := object{"command": words(test.command), "work_dir": test.dir}
		if out, fault := call[runOutput](f, c, "vault_run", args); test.runs != (fault == "") || fault != "" && !strings.Contains(fault, "a person has to approve") {
			t.Errorf("%v: %q %+v", test, fault, out)
		}
	}
}

// A secret whose name no program gets unasked stops the runs that would hand it
// out, and they say what the client can do.
func TestUnsafeNames(t *testing.T) {
	f := newFixture(t, options.Serve{})
	if _, err := f.session.Put(t.Context(), shop, []vault.Put{{Name: "NODE_OPTIONS", Value: []byte("--require=./x")}}, vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	c := f.connect(nil, "")
	if _, fault := sh(f, c, "true"); !strings.Contains(fault, "NODE_OPTIONS") || !strings.Contains(fault, `"secrets": […]`) || strings.Contains(fault, "--allow") {
		t.Error(fault)
	}
	if out, fault := sh(f, c, "true", "secrets", []string{"TOKEN"}); fault != "" || out.ExitCode != 0 {
		t.Errorf("%s %+v", fault, out)
	}
}

// What was a value in this session is none of the client's business later either:
// programs have written it to files.
func TestRetiredValues(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	if out, fault := sh(f, c, `printf %s "$TOKEN" > token; printf %s "$PASSWORD" > password; printf %s "$FLAG" > flag`); fault != "" || out.ExitCode != 0 {
		t.Fatalf("%s %+v", fault, out)
	}
	if _, fault := call[writeOutput](f, c, "vault_update_secret", object{"name": "TOKEN", "generate": object{}}); fault != "" {
		t.Fatal(fault)
	}
	for _, name := range []string{"PASSWORD", "FLAG"} {
		if _, fault := call[deleteOutput](f, c, "vault_delete_secret", object{"name": name}); fault != "" {
			t.Fatal(fault)
		}
	}
	want := "[masked TOKEN] [masked PASSWORD] true [masked TOKEN]\n"
	if out, fault := sh(f, c, `echo "$(cat token) $(cat password) $(cat flag) $TOKEN"`); fault != "" || out.Stdout != want || len(out.Warnings) != 0 {
		t.Errorf("%s %+v", fault, out)
	}
	if _, fault := sh(f, c, "echo "+secretValues["TOKEN"]); !strings.Contains(fault, "it holds the value of the secret TOKEN") {
		t.Errorf("%s", fault)
	}
	// One that is back is not there twice, and there is a bound.
	k := f.known
	k.replace(nil)
	k.replace([]vault.Secret{{Name: "TOKEN", Value: []byte(secretValues["TOKEN"])}})
	for _, v := range k.retired {
		if string(v.Bytes) == secretValues["TOKEN"] {
			t.Error("a live value is retired")
		}
	}
	for i := range 2 * maxRetired {
		k.replace([]vault.Secret{{Name: "N", Value: fmt.Appendf(nil, "number-%d", i)}})
	}
	if n := len(k.retired); n != maxRetired || string(k.retired[n-1].Bytes) != fmt.Sprintf("number-%d", 2*maxRetired-2) {
		t.Errorf("%d are retired", n)
	}
	for i := range 10 {
		k.replace([]vault.Secret{{Name: "N", Value: bytes.Repeat([]byte{byte(i)}, 64<<10)}})
	}
	if n := len(k.retired); n != maxRetiredBytes>>16 {
		t.Errorf("%d large ones are retired", n)
	}
	k.forget()
	if k.retired != nil || k.live != nil {
		t.Error("not forgotten")
	}
}

// A value that is no secret, because it is the app's name, a part of a secret's
// or a word of the protocol, stops no message, and a warning names it.
func TestPublicValues(t *testing.T) {
	f := newFixture(t, options.Serve{})
	f.known.ref = vault.Ref{App: "orders", Env: "eu-test"}
	f.ref = f.known.ref
	public := map[string]string{"DB": "orders", "REGION": "eu-test", "PROVIDER": "STRIPE", "STRIPE_KEY": "sk-9931-x7", "A": "stdout", "B": "jsonrpc", "C": "vault_run", "D": "structuredContent"}
	var list []vault.Put
	for name, value := range public {
		list = append(list, vault.Put{Name: name, Value: []byte(value)})
	}
	if _, err := f.session.Put(t.Context(), f.ref, list, vault.PutOptions{Create: true}); err != nil {
		t.Fatal(err)
	}
	key, _, err := f.session.DeriveMachineKey(t.Context(), f.ref, "")
	if err == nil {
		f.vault.machineKey = filepath.Join(t.TempDir(), "key")
		err = machinekey.Write(f.vault.machineKey, key, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := f.connect(nil, "")
	if tools, err := c.ListTools(t.Context(), nil); err != nil || len(tools.Tools) == 0 {
		t.Errorf("%v %v", tools, err)
	}
	if out, fault := call[statusOutput](f, c, "vault_status", nil); fault != "" || out.SecretCount != len(public) || out.InterceptedCount != 0 {
		t.Errorf("%s %+v", fault, out)
	}
	if out, fault := call[listOutput](f, c, "vault_list_secrets", nil); fault != "" || len(out.Secrets) != len(public) {
		t.Errorf("%s %+v", fault, out)
	}
	out, fault := sh(f, c, `echo "$DB $STRIPE_KEY"`)
	if fault != "" || out.Stdout != "orders [masked STRIPE_KEY]\n" || len(out.Warnings) != len(public)-1 {
		t.Errorf("%s %+v", fault, out)
	}
	if !slices.Contains(out.Warnings, "the value of DB is not masked: a public name or word") {
		t.Errorf("%q", out.Warnings)
	}
	if _, fault := sh(f, c, `echo sk-9931-x7`); !strings.Contains(fault, "STRIPE_KEY") {
		t.Errorf("a secret passed: %s", fault)
	}
}

// What cannot run says why, and does not run.
func TestRunRefused(t *testing.T) {
	f := newFixture(t, options.Serve{})
	f.policy.deny = []config.Rule{{"/bin/rm"}}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(f.dir, "out")); err != nil {
		t.Fatal(err)
	}
	c := f.connect(nil, "")
	for name, test := range map[string]struct {
		args object
		want string
	}{
		"nothing":           {object{}, "the argument command is missing"},
		"empty":             {object{"command": []string{}}, "command is empty"},
		"an empty word":     {object{"command": []string{""}}, "command is empty"},
		"NUL":               {object{"command": []string{"a\x00b"}}, "NUL"},
		"denied":            {object{"command": []string{"/bin/rm", "-rf", "x"}}, "denied by a rule of the configuration: /bin/rm"},
		"not there":         {object{"command": []string{"no-such-program"}}, "not found"},
		"outside":           {object{"command": []string{"ls"}, "work_dir": "/"}, "outside of the project"},
		"outside by ..":     {object{"command": []string{"ls"}, "work_dir": "../.."}, "outside of the project"},
		"outside by a link": {object{"command": []string{"ls"}, "work_dir": "out"}, "outside of the project"},
		"no directory":      {object{"command": []string{"ls"}, "work_dir": "nope"}, "cannot use work_dir: no such file"},
		"too long":          {object{"command": []string{"ls"}, "timeout_seconds": 3601}, "timeout_seconds is out of bounds"},
		"negative":          {object{"command": []string{"ls"}, "timeout_seconds": -1}, "timeout_seconds is out of bounds"},
		"not a name":        {object{"command": []string{"ls"}, "secrets": []string{"a b"}}, "not a secret's name"},
		"huge":              {object{"command": []string{"ls", strings.Repeat("x", maxCommand)}}, "command is too long"},
	} {
		if out, fault := call[runOutput](f, c, "vault_run", test.args); !strings.Contains(fault, test.want) {
			t.Errorf("%s: got %q %+v", name, fault, out)
		}
	}
}

// gone waits until no process of the group is left.
func gone(t *testing.T, pgid int) {
	t.Helper()
	for range 1000 {
		if err := unix.Kill(-pgid, 0); err != nil {
			return
		}
		// What was orphaned is left to whoever is process 1 here: a zombie is gone.
		if !alive(pgid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the group %d is still there", pgid)
}

// A time that is over ends the whole group, with TERM first.
func TestTimeout(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	out, fault := sh(f, c, `trap 'echo got TERM; exit 7' TERM; echo $$; sleep 100 & wait`, "timeout_seconds", 1)
	if fault != "" || !out.TimedOut || out.ExitCode != 7 || !strings.HasSuffix(out.Stdout, "got TERM\n") {
		t.Fatalf("%s %+v", fault, out)
	}
	pgid, _ := strconv.Atoi(strings.Fields(out.Stdout)[0])
	gone(t, pgid)
	out, fault = sh(f, c, `trap '' TERM; echo $$; sleep 100; sleep 100`, "timeout_seconds", 1)
	if fault != "" || !out.TimedOut || out.Signal != "SIGKILL" || out.ExitCode != 137 {
		t.Fatalf("%s %+v", fault, out)
	}
	pgid, _ = strconv.Atoi(strings.Fields(out.Stdout)[0])
	gone(t, pgid)
}

// A program that ends leaves nothing behind that has its secrets, and what is
// left outside of its group does not hold up the answer.
func TestLeftBehind(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	out, fault := sh(f, c, `sleep 100 & echo $$`)
	if fault != "" || len(out.Warnings) != 1 {
		t.Fatalf("%s %+v", fault, out)
	}
	pgid, _ := strconv.Atoi(strings.TrimSpace(out.Stdout))
	gone(t, pgid)
	out, fault = sh(f, c, `setsid sleep 20 & sleep 0.3; echo done`)
	if fault != "" || out.Stdout != "done\n" || len(out.Warnings) != 2 || !strings.Contains(out.Warnings[1], "outside of its process group") {
		t.Fatalf("%s %+v", fault, out)
	}
}

// The client cancels a call, and the program and all it started end.
func TestCancel(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.CallTool(ctx, &sdk.CallToolParams{Name: "vault_run", Arguments: object{
			"command": []string{"/bin/sh", "-c", `echo $$ > pid.new; mv pid.new pid; sleep 100; sleep 100`},
		}})
		ended <- err
	}()
	pgid := readPID(t, filepath.Join(f.dir, "pid"))
	cancel()
	if err := <-ended; err == nil {
		t.Error("a cancelled call has a result")
	}
	gone(t, pgid)
}

func readPID(t *testing.T, file string) int {
	t.Helper()
	for range 1000 {
		if text, err := os.ReadFile(file); err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program did not start")
	return 0
}

// With the client goes what it has running.
func TestClientLeaves(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	go func() {
		_, _ = c.CallTool(t.Context(), &sdk.CallToolParams{Name: "vault_run", Arguments: object{
			"command": []string{"/bin/sh", "-c", `echo $$ > pid.new; mv pid.new pid; sleep 100`},
		}})
	}()
	pgid := readPID(t, filepath.Join(f.dir, "pid"))
	f.hangUp()
	gone(t, pgid)
}

// Secrets are made, changed and deleted without a value in any message.
func TestWrite(t *testing.T) {
	f := newFixture(t, options.Serve{})
	c := f.connect(nil, "")
	value := func(name string) string {
		var got string
		err := f.session.Reveal(t.Context(), shop, vault.Select{Names: []string{name}}, func(list []vault.Secret) error {
			got = string(list[0].Value)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for alphabet, want := range map[string]string{
		"": "^[A-Za-z0-9]{40}$", "alphanumeric": "^[A-Za-z0-9]{40}$", "hex": "^[0-9a-f]{40}$", "base64url": "^[-_A-Za-z0-9]{40}$",
		"digits": "^[0-9]{40}$", "printable": "^[!-~]{40}$",
	} {
		name := "NEW_" + strings.ToUpper(alphabet)
		how := object{"length": 40}
		if alphabet != "" {
			how["alphabet"] = alphabet
		}
		out, fault := call[writeOutput](f, c, "vault_create_secret", object{"name": name, "generate": how})
		if fault != "" || out != (writeOutput{name, 1, "shop", "test"}) {
			t.Fatalf("%s: %s %+v", alphabet, fault, out)
		}
		got := value(name)
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s made another form", alphabet)
		}
		if strings.Contains(f.wire.String(), got) {
			t.Error("the client saw the value")
		}
		if out, fault := sh(f, c, "echo $"+name); fault != "" || out.Stdout != "[masked "+name+"]\n" {
			t.Errorf("%s %+v", fault, out)
		}
	}
	f.file("cert.pem", "line one\nline two\n")
	f.file("token.txt", "just-a-token\r\n")
	f.file("empty", "\n")
	f.file("big", strings.Repeat("x", vault.MaxValue+1))
	for file, want := range map[string]string{"cert.pem": "line one\nline two\n", "./token.txt": "just-a-token", filepath.Join(f.dir, "token.txt"): "just-a-token"} {
		out, fault := call[writeOutput](f, c, "vault_update_secret", object{"name": "TOKEN", "from_file": file})
		if fault != "" || out.Version < 2 || value("TOKEN") != want {
			t.Errorf("%s: %s %+v", file, fault, out)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(f.dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(f.dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		tool string
		args object
		want string
	}{
		{"vault_create_secret", object{"name": "A", "value": "literal"}, "ov secret set NAME"},
		{"vault_update_secret", object{"name": "TOKEN", "generate": object{}, "literal": "x"}, "ov secret set NAME"},
		{"vault_create_secret", object{"name": "A"}, "one of generate and from_file"},
		{"vault_create_secret", object{"name": "A", "generate": object{}, "from_file": "cert.pem"}, "one of generate and from_file"},
		{"vault_create_secret", object{"name": "A", "generate": object{"length": 7}}, "generate.length is out of bounds"},
		{"vault_create_secret", object{"name": "A", "generate": object{"length": 4097}}, "generate.length is out of bounds"},
		{"vault_create_secret", object{"name": "A", "generate": object{"alphabet": "abc"}}, "generate.alphabet is not known"},
		{"vault_create_secret", object{"name": "A-B", "generate": object{}}, "not a secret's name"},
		{"vault_create_secret", object{"name": "LD_PRELOAD", "from_file": "cert.pem"}, "let a person store it: ov secret set LD_PRELOAD"},
		{"vault_update_secret", object{"name": "PATH", "generate": object{}}, "changes how programs are loaded or run"},
		{"vault_create_secret", object{"name": "TOKEN", "generate": object{}}, "vault_update_secret"},
		{"vault_update_secret", object{"name": "NOPE", "generate": object{}}, "not found in shop/test: NOPE"},
		{"vault_create_secret", object{"name": "A", "from_file": "/etc/passwd"}, "outside of the project"},
		{"vault_create_secret", object{"name": "A", "from_file": "../key"}, "outside of the project"},
		{"vault_create_secret", object{"name": "A", "from_file": "link"}, "cannot read from_file"},
		{"vault_create_secret", object{"name": "A", "from_file": "pipe"}, "not a regular file"},
		{"vault_create_secret", object{"name": "A", "from_file": "."}, "not a regular file"},
		{"vault_create_secret", object{"name": "A", "from_file": "empty"}, "is empty"},
		{"vault_create_secret", object{"name": "A", "from_file": "big"}, "too large"},
		{"vault_delete_secret", object{"name": "NOPE"}, "NOPE"},
	} {
		if _, fault := call[object](f, c, test.tool, test.args); !strings.Contains(fault, test.want) {
			t.Errorf("%s %v: got %q", test.tool, test.args, fault)
		}
	}
	if out, fault := call[deleteOutput](f, c, "vault_delete_secret", object{"name": "TOKEN"}); fault != "" || !out.Deleted {
		t.Errorf("%s %+v", fault, out)
	}
	if out, fault := call[existsOutput](f, c, "vault_secret_exists", object{"name": "TOKEN"}); fault != "" || out.Exists {
		t.Errorf("%s %+v", fault, out)
	}
	if out, fault := call[existsOutput](f, c, "vault_secret_exists", object{"name": "PASSWORD"}); fault != "" || !out.Exists || out.Version != 1 {
		t.Errorf("%s %+v", fault, out)
	}
	list, fault := call[listOutput](f, c, "vault_list_secrets", nil)
	if fault != "" || len(list.Secrets) != 8 || list.Secrets[0].Name != "FLAG" {
		t.Errorf("%s %+v", fault, list)
	}
}

// Whoever can be asked is asked, is shown everything, and what was approved is
// what runs.
func TestApproval(t *testing.T) {
	for _, version := range []string{"2025-06-18", ""} {
		t.Run("protocol "+version, func(t *testing.T) {
			f := newFixture(t, options.Serve{Approve: config.ApproveAuto})
			f.policy.allow = []config.Rule{{"/bin/echo", "allowed"}}
			action, question, asked := "accept", "", 0
			c := f.connect(&sdk.ClientOptions{ElicitationHandler: func(_ context.Context, req *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
				asked++
				question = req.Params.Message
				return &sdk.ElicitResult{Action: action}, nil
			}}, version)
			run := func(command ...string) (runOutput, string) {
				return call[runOutput](f, c, "vault_run", object{"command": command, "secrets": []string{"TOKEN"}})
			}
			out, fault := run("/bin/echo", "a\x1b[2Jb", "c d")
			if fault != "" || out.ExitCode != 0 || asked != 1 {
				t.Fatalf("%s %+v, asked %d times", fault, out, asked)
			}
			for _, want := range []string{`command:   /bin/echo "a\x1b[2Jb" "c d"` + "\n", "directory: " + f.dir + "\n", "secrets:   TOKEN\n", "shop/test"} {
				if !strings.Contains(question, want) {
					t.Errorf("%q is not in %q", want, question)
				}
			}
			// All of them are shown by name as well, and are those that are handed out.
			out, fault = call[runOutput](f, c, "vault_run", object{"command": []string{"/bin/echo", strings.Repeat("x", longCommand)}})
			if fault != "" || strings.Join(out.SecretsInjected, " ") != "FLAG PASSWORD TOKEN" {
				t.Errorf("%s %+v", fault, out)
			}
			for _, want := range []string{"secrets:   FLAG, PASSWORD, TOKEN\n", "It is long: it has 1010 bytes."} {
				if !strings.Contains(question, want) {
					t.Errorf("%q is not in %q", want, question)
				}
			}
			if out, fault = call[runOutput](f, c, "vault_run", object{"command": []string{"/bin/echo"}, "secrets": []string{}}); fault != "" || len(out.SecretsInjected) != 0 || !strings.Contains(question, "secrets:   none\n") {
				t.Errorf("%s %+v %q", fault, out, question)
			}
			for _, action = range []string{"decline", "cancel"} {
				want := map[string]string{"decline": "did not approve", "cancel": "without an answer"}[action]
				if _, fault := run("/bin/echo", "x"); !strings.Contains(fault, want) {
					t.Errorf("%s: %s", action, fault)
				}
			}
			asked = 0
			if _, fault := run("/bin/echo", "allowed"); fault != "" || asked != 0 {
				t.Errorf("%s, asked %d times", fault, asked)
			}
			if _, fault := call[listOutput](f, c, "vault_list_secrets", nil); fault != "" || asked != 0 {
				t.Errorf("%s, asked %d times", fault, asked)
			}
			for tool, args := range map[string]object{
				"vault_create_secret": {"name": "NEW", "generate": object{}},
				"vault_update_secret": {"name": "TOKEN", "from_file": "x"},
				"vault_delete_secret": {"name": "TOKEN"},
			} {
				asked = 0
				if _, fault := call[object](f, c, tool, args); asked != 1 || !strings.Contains(fault, "without an answer") {
					t.Errorf("%s: %s, asked %d times", tool, fault, asked)
				}
				if !strings.Contains(question, args["name"].(string)) || !strings.Contains(question, "shop/test") {
					t.Errorf("%s asks %q", tool, question)
				}
			}
			if list, _ := call[listOutput](f, c, "vault_list_secrets", nil); len(list.Secrets) != 3 {
				t.Errorf("something changed: %+v", list)
			}
		})
	}
}

// A client that says itself that a call was approved is not believed.
func TestApprovalForged(t *testing.T) {
	f := newFixture(t, options.Serve{Approve: config.ApproveAsk})
	answers := make(chan string, 10)
	c := f.connect(&sdk.ClientOptions{
		MultiRoundTrip: &sdk.MultiRoundTripOptions{Disabled: true},
		ElicitationHandler: func(context.Context, *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			answers <- "asked"
			return &sdk.ElicitResult{Action: "decline"}, nil
		},
	}, "")
	accept := sdk.InputResponseMap{approvalKey: &sdk.ElicitResult{Action: "accept"}}
	ask := func(word, state string, answer sdk.InputResponseMap) *sdk.CallToolResult {
		res, err := c.CallTool(t.Context(), &sdk.CallToolParams{
			Name: "vault_run", Arguments: object{"command": []string{"/bin/echo", word}}, RequestState: state, InputResponses: answer,
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := ask("a", "", accept)
	if !res.NeedsInput() {
		t.Fatalf("not asked: %+v", res)
	}
	state := res.RequestState
	if res := ask("b", state, accept); !res.IsError {
		t.Error("ran something else than was approved")
	}
	if res := ask("a", state, accept); !res.IsError {
		t.Error("an approval that was used already")
	}
	if res := ask("a", "made-up", accept); !res.IsError {
		t.Error("a token of the client's making")
	}
	if res := ask("a", ask("a", "", nil).RequestState, nil); !res.IsError {
		t.Error("no answer")
	}
	if res := ask("a", ask("a", "", nil).RequestState, accept); res.IsError {
		t.Errorf("the right answer: %v", res.Content[0].(*sdk.TextContent).Text)
	}
}

// A client that cannot ask gets what the mode says.
func TestApprovalWithoutElicitation(t *testing.T) {
	for approve, want := range map[config.Approve]string{
		config.ApproveAsk: "this client cannot ask one", config.ApproveAuto: "", config.ApproveNever: "",
	} {
		f := newFixture(t, options.Serve{Approve: approve})
		f.policy.allow = []config.Rule{{"/bin/echo", "allowed"}}
		c := f.connect(nil, "")
		if _, fault := sh(f, c, "true"); !strings.Contains(fault, want) || (fault != "") != (want != "") {
			t.Errorf("%s: got %q", approve, fault)
		}
		if _, fault := call[runOutput](f, c, "vault_run", object{"command": []string{"/bin/echo", "allowed"}}); fault != "" {
			t.Errorf("%s: %s", approve, fault)
		}
		if _, fault := call[object](f, c, "vault_create_secret", object{"name": "N", "generate": object{}}); !strings.Contains(fault, want) {
			t.Errorf("%s: got %q", approve, fault)
		}
	}
}

// made are secrets by their form, made here so that they stand in no file.
var made = map[string]string{
	"aws-access-token": "AKIA" + "QYLPMN5HHHFPZAM2",
	"github-pat":       "ghp_" + "1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZa",
}

// What holds a secret does not pass, in either direction, and the answer says
// why without it.
func TestIntercept(t *testing.T) {
	for _, mode := range []string{"block", "warn", "off", ""} {
		t.Run("mode "+mode, func(t *testing.T) {
			t.Setenv(modeVariable, mode)
			f := newFixture(t, options.Serve{})
			c := f.connect(nil, "")
			blocks := mode == "block" || mode == ""
			count := 0
			check := func(what, fault, rule, secret string) {
				t.Helper()
				count++
				if blocks != (fault != "") {
					t.Errorf("%s: got %q", what, fault)
				}
				if blocks && (!strings.Contains(fault, rule) || !strings.Contains(fault, "ov secret set NAME")) {
					t.Errorf("%s: got %q, which does not say %s", what, fault, rule)
				}
				for n := 6; n <= len(secret); n++ {
					if strings.Contains(fault, secret[:n]) || strings.Contains(f.log.String(), secret[:n]) {
						t.Errorf("%s: part of the secret in %q", what, fault)
						break
					}
				}
			}
			for rule, secret := range made {
				_, fault := sh(f, c, "true "+secret)
				check("to the server", fault, rule, secret)
				f.file("leak", secret)
				_, fault = sh(f, c, "cat leak")
				check("to the client", fault, rule, secret)
			}
			value := secretValues["TOKEN"]
			_, fault := sh(f, c, "true "+value)
			check("value to the server", fault, "vault-value", value)
			_, fault = sh(f, c, "true "+secretValues["PASSWORD"])
			check("escaped value to the server", fault, "vault-value", secretValues["PASSWORD"])
			// What the SDK says by itself about an unknown tool repeats its name.
			res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: made["github-pat"]})
			if blocks != (err == nil && res.IsError) {
				t.Errorf("an unknown tool: %v", err)
			}
			status, fault := call[statusOutput](f, c, "vault_status", nil)
			want := map[string]string{"": "block"}[mode]
			if want == "" {
				want = mode
			}
			if fault != "" || !status.Unlocked || status.InterceptMode != want || status.Key != "machine-key" || status.SecretCount != 3 {
				t.Errorf("%s %+v", fault, status)
			}
			if counted := status.InterceptedCount > 0; counted == (mode == "off") {
				t.Errorf("counted %d", status.InterceptedCount)
			}
			if blocks && (status.InterceptedCount != int64(count+1) || strings.Count(f.log.String(), "a message holds a secret") != count+1) {
				t.Errorf("counted %d, logged %d, of %d", status.InterceptedCount, strings.Count(f.log.String(), "a message holds a secret"), count+1)
			}
		})
	}
	if _, err := interceptMode("Block"); err == nil {
		t.Error("took an unknown mode")
	}
}

// A vault that cannot be opened is said by every tool, with the way out.
func TestLocked(t *testing.T) {
	f := newFixture(t, options.Serve{})
	f.vault.machineKey = ""
	f.vault.place.Socket = filepath.Join(t.TempDir(), "none.sock")
	f.known = newKnown(f.vault, f.ref)
	f.intercept.known = f.known
	c := f.connect(nil, "")
	for tool, args := range map[string]object{
		"vault_run":           {"command": []string{"true"}},
		"vault_list_secrets":  {},
		"vault_secret_exists": {"name": "A"},
		"vault_create_secret": {"name": "A", "generate": object{}},
		"vault_update_secret": {"name": "A", "generate": object{}},
		"vault_delete_secret": {"name": "A"},
	} {
		if _, fault := call[object](f, c, tool, args); !strings.Contains(fault, "the vault is locked") || !strings.Contains(fault, "ov agent start") {
			t.Errorf("%s: %q", tool, fault)
		}
	}
	status, fault := call[statusOutput](f, c, "vault_status", nil)
	if fault != "" || status.Unlocked || !strings.Contains(status.LockedBecause, "locked") || !strings.Contains(status.HowToUnlock, "ov agent start") {
		t.Errorf("%s %+v", fault, status)
	}
}

// When the server was killed, its reaper ends the groups that it was told of and
// not told off, and nothing else.
func TestReaper(t *testing.T) {
	start := func(script string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			signalGroup(cmd.Process.Pid, unix.SIGKILL)
			_ = cmd.Wait()
		})
		return cmd
	}
	polite, stubborn, ended := start("sleep 100 & wait"), start("trap '' TERM; sleep 100; sleep 100"), start("sleep 100")
	r, err := startReaper()
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*exec.Cmd{polite, stubborn, ended} {
		if err := r.add(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	r.remove(ended.Process.Pid)
	r.close() // as the kernel does for a server that is killed
	for _, cmd := range []*exec.Cmd{polite, stubborn} {
		gone(t, cmd.Process.Pid)
	}
	if !alive(ended.Process.Pid) {
		t.Error("a group that was not the server's any more was ended")
	}
	for _, text := range []string{"+1\n", "+0\n", "-x\n", "++5\n+-1\n", "\n", "+99999999999999999999\n"} {
		if err := Reap(strings.NewReader(text)); err == nil {
			t.Errorf("took %q", text)
		}
	}
}

// Values that are too large to be recognized are not handed out, and nothing
// passes unseen.
func TestTooLargeToMask(t *testing.T) {
	f := newFixture(t, options.Serve{})
	var list []vault.Put
	for i := range 33 {
		list = append(list, vault.Put{Name: "LARGE_" + strconv.Itoa(i), Value: []byte(strings.Repeat(string(rune('a'+i%26))+"bc", vault.MaxValue/3))})
	}
	if _, err := f.session.Put(t.Context(), shop, list, vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	_, _, err := f.environment(t.Context(), command{secrets: []config.Secret{{Var: "FLAG", Name: "FLAG"}}})
	if err == nil || !strings.Contains(err.Error(), "the bound is") || !strings.Contains(hint.Of(err), "an env of their own") {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
	var no *stopped
	if err := f.intercept.judgeText(t.Context(), toClient, "test", []byte("anything")); !errors.As(err, &no) {
		t.Errorf("passed unseen: %v", err)
	}
}
