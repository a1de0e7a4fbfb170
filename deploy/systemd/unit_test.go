package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

var good = Params{
	Agent:      "/usr/local/bin/ov-agent",
	Vault:      "/home/deploy/.local/share/ov/vault.db",
	MachineKey: "/etc/ov/myapp.key",
	App:        "myapp",
	Env:        "production",
	User:       "deploy",
}

// lines returns the values of a setting, each line of it.
func lines(unit []byte, setting string) []string {
	var vs []string
	for l := range strings.Lines(string(unit)) {
		if v, ok := strings.CutPrefix(l, setting+"="); ok {
			vs = append(vs, strings.TrimSuffix(v, "\n"))
		}
	}
	return vs
}

func TestRender(t *testing.T) {
	unit, err := Render(good)
	if err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		"Type": "notify",
		"User": "deploy",
		"ExecStart": `:"/usr/local/bin/ov-agent" --foreground --socket "/run/ov-agent/ov-agent.sock"` +
			` --vault "/home/deploy/.local/share/ov/vault.db" --machine-key "/etc/ov/myapp.key" --app myapp --env production`,
		"RuntimeDirectory":     "ov-agent",
		"RuntimeDirectoryMode": "0755",
		"WatchdogSec":          "30",
		"LimitCORE":            "0",
		"BindPaths":            `-"/home/deploy/.local/share/ov"`,
		"BindReadOnlyPaths":    "",
		"WantedBy":             "multi-user.target",
	} {
		if got := strings.Join(lines(unit, setting), "|"); got != want {
			t.Errorf("%s=%s, want %s", setting, got, want)
		}
	}
}

// An agent whose vault is on a server waits for the network, reaches it, and has
// directories of its own for what outlives it.
func TestRenderServer(t *testing.T) {
	p := good
	p.Vault = "https://vault.example.com:7443"
	unit, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		"ExecStart": `:"/usr/local/bin/ov-agent" --foreground --socket "/run/ov-agent/ov-agent.sock"` +
			` --vault "https://vault.example.com:7443" --machine-key "/etc/ov/myapp.key" --app myapp --env production`,
		"Wants":                   "network-online.target",
		"After":                   "network-online.target",
		"RequiresMountsFor":       `"/etc/ov/myapp.key"`,
		"CacheDirectory":          "ov-agent",
		"CacheDirectoryMode":      "0700",
		"StateDirectory":          "ov-agent",
		"StateDirectoryMode":      "0700",
		"NoExecPaths":             "/ -/var/cache/ov-agent -/var/lib/ov-agent -/run/ov-agent -/tmp -/var/tmp",
		"RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
		"BindPaths":               "",
		"BindReadOnlyPaths":       "",
		"PrivateNetwork":          "",
		"IPAddressDeny":           "",
		"Restart":                 "on-failure",
	} {
		if got := strings.Join(lines(unit, setting), "|"); got != want {
			t.Errorf("%s=%s, want %s", setting, got, want)
		}
	}
	p.MachineKey = "/home/deploy/my.key"
	if unit, err = Render(p); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(lines(unit, "BindReadOnlyPaths"), "|"); got != `-"/home/deploy/my.key"|-"/home/deploy/my.key.login"` {
		t.Errorf("BindReadOnlyPaths=%s", got)
	}
	for _, address := range []string{
		"http://vault.example.com", "https://", "https://a/b", "https://user@a", "https://a\nUser=root", "https://a b", "HTTPS://A", "https://%n",
	} {
		p.Vault = address
		if _, err := Render(p); err == nil || !strings.Contains(err.Error(), "is no address of a server") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// Without its login, a machine key is no way to a server.
func TestCheckLogin(t *testing.T) {
	dir := t.TempDir()
	p := good
	p.Vault, p.MachineKey = "https://vault.example.com", filepath.Join(dir, "my.key")
	if err := checkLogin(p, os.Getuid()); err == nil || !strings.Contains(err.Error(), "has no login for https://vault.example.com") ||
		!strings.Contains(hint.Of(err), "ov auth derive-machine-key --vault https://vault.example.com --app myapp --env production --force --out ") {
		t.Errorf("%v, %s", err, hint.Of(err))
	}
	path := p.MachineKey + ".login"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkLogin(p, os.Getuid()); err != nil {
		t.Error(err)
	}
	if err := checkLogin(p, os.Getuid()+1); err == nil {
		t.Error("somebody else's is taken")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := checkLogin(p, os.Getuid()); err == nil {
		t.Error("one that others can read is taken")
	}
}

// A key where the sandbox puts an empty directory is put back, read-only.
func TestRenderHiddenKey(t *testing.T) {
	p := good
	p.MachineKey = "/home/deploy/my.key"
	unit, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := lines(unit, "BindReadOnlyPaths"); len(got) != 1 || got[0] != `-"/home/deploy/my.key"` {
		t.Errorf("BindReadOnlyPaths=%q", got)
	}
}

func TestRenderEscapes(t *testing.T) {
	p := good
	p.Vault = `/srv/100%n of "a b" \x41/vault.db`
	unit, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := lines(unit, "BindPaths"); len(got) != 1 || got[0] != `-"/srv/100%%n of \"a b\" \\x41"` {
		t.Errorf("BindPaths=%q", got)
	}
	if got := lines(unit, "ExecStart"); len(got) != 1 || !strings.Contains(got[0], ` --vault "/srv/100%%n of \"a b\" \\x41/vault.db" `) {
		t.Errorf("ExecStart=%q", got)
	}
}

func TestRenderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Params)
		say    string
	}{
		"newline in vault":      {func(p *Params) { p.Vault = "/srv/a\nUser=root\n/v" }, "cannot be written in a unit"},
		"return in key":         {func(p *Params) { p.MachineKey = "/etc/ov/a\rb" }, "cannot be written in a unit"},
		"nul in agent":          {func(p *Params) { p.Agent = "/usr/bin/ov\x00" }, "cannot be written in a unit"},
		"not utf-8":             {func(p *Params) { p.Vault = "/srv/\xff/v" }, "cannot be written in a unit"},
		"line separator":        {func(p *Params) { p.Vault = "/srv/\u2028/v" }, "cannot be written in a unit"},
		"no vault":              {func(p *Params) { p.Vault = "" }, "path of the vault: is empty"},
		"relative key":          {func(p *Params) { p.MachineKey = "my.key" }, "not absolute and clean"},
		"dots in agent":         {func(p *Params) { p.Agent = "/usr/local/../bin/ov-agent" }, "not absolute and clean"},
		"long path":             {func(p *Params) { p.Vault = "/" + strings.Repeat("a", 5000) }, "longer than 4095 bytes"},
		"app not a slug":        {func(p *Params) { p.App = "My App" }, `app "My App" is not a slug`},
		"app a flag":            {func(p *Params) { p.App = "--socket" }, "is not a slug"},
		"env empty":             {func(p *Params) { p.Env = "" }, "is not a slug"},
		"root":                  {func(p *Params) { p.User = "root" }, "must not run as root"},
		"user with a newline":   {func(p *Params) { p.User = "deploy\nExecStart=/bin/sh" }, "cannot be written in a unit"},
		"user with a specifier": {func(p *Params) { p.User = "%u" }, "cannot be written in a unit"},
		"uid 0 for a user":      {func(p *Params) { p.User = "0" }, "cannot be written in a unit"},
		"no user":               {func(p *Params) { p.User = "" }, "cannot be written in a unit"},
	} {
		p := good
		c.change(&p)
		if unit, err := Render(p); err == nil || !strings.Contains(err.Error(), c.say) || unit != nil {
			t.Errorf("%s: %v, want %q", name, err, c.say)
		}
	}
}

// FuzzRender: a path that is taken comes back as one word and adds no line.
func FuzzRender(f *testing.F) {
	unit, err := Render(good)
	if err != nil {
		f.Fatal(err)
	}
	count := strings.Count(string(unit), "\n")
	p := good
	p.Vault = "https://vault.example.com"
	if unit, err = Render(p); err != nil {
		f.Fatal(err)
	}
	onServer := strings.Count(string(unit), "\n")
	f.Fuzz(func(t *testing.T, vault string) {
		p := good
		p.Vault = vault
		unit, err := Render(p)
		if err != nil {
			return
		}
		if p.onServer() {
			if n := strings.Count(string(unit), "\n"); n != onServer {
				t.Errorf("%q makes %d lines, not %d", vault, n, onServer)
			}
			return
		}
		if n := strings.Count(string(unit), "\n"); n != count {
			t.Errorf("%q makes %d lines, not %d", vault, n, count)
		}
		binds := lines(unit, "BindPaths")
		if len(binds) != 1 {
			t.Fatalf("%q: BindPaths=%q", vault, binds)
		}
		if word := unquote(t, strings.TrimPrefix(binds[0], "-")); word != filepath.Dir(vault) {
			t.Errorf("%q comes back as %q", filepath.Dir(vault), word)
		}
	})
}

// unquote reads one double-quoted word as systemd does, specifiers too.
func unquote(t *testing.T, s string) string {
	t.Helper()
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		t.Fatalf("not one quoted word: %q", s)
	}
	s = s[1 : len(s)-1]
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\\', '%':
			i++
			if i == len(s) || (c == '%' && s[i] != '%') || (c == '\\' && s[i] != '\\' && s[i] != '"') {
				t.Fatalf("a bare %q in %q", c, s)
			}
			out.WriteByte(s[i])
		case '"':
			t.Fatalf("a bare quote in %q", s)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// systemd's own parser has no complaint. The machines of test/systemd run the
// unit; this needs no root.
func TestVerify(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("NOT RUN: no systemd-analyze on this machine")
	}
	self, err := os.Executable() // something that exists, in the agent's place
	if err != nil {
		t.Fatal(err)
	}
	for _, vault := range []string{good.Vault, "https://vault.example.com:7443"} {
		p := good
		p.Agent, p.User, p.Vault = self, "daemon", vault // who is everywhere
		unit, err := Render(p)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), UnitName)
		if err := os.WriteFile(path, unit, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "verify", "--man=no", path).CombinedOutput()
		if err != nil || strings.Contains(string(out), UnitName) {
			t.Errorf("%s: systemd-analyze verify: %v\n%s", vault, err, out)
		}
	}
}
