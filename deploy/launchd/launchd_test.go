package launchd

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

var good = Params{
	Agent:      "/usr/local/bin/ov-agent",
	Vault:      "/Users/ann/.local/share/ov/vault.db",
	MachineKey: "/Users/ann/.config/ov/myapp.key",
	App:        "myapp",
	Env:        "production",
	Home:       "/Users/ann",
}

// texts returns the character data of each element of the given name.
func texts(t *testing.T, data []byte, element string) []string {
	t.Helper()
	var found []string
	for d := xml.NewDecoder(strings.NewReader(string(data))); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, data)
		}
		if start, ok := tok.(xml.StartElement); ok && start.Name.Local == element {
			var s string
			if err := d.DecodeElement(&s, &start); err != nil {
				t.Fatal(err)
			}
			found = append(found, s)
		}
	}
}

// A vault on a server is named by its address, in the form that logins have.
func TestRenderServer(t *testing.T) {
	p := good
	p.Vault = "https://vault.example.com:7443"
	data, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := texts(t, data, "string"); len(got) < 5 || got[4] != p.Vault {
		t.Errorf("%q", got)
	}
	for _, address := range []string{"http://vault.example.com", "https://a/b", "https://a\n", "HTTPS://A", "https://user@a"} {
		p.Vault = address
		if _, err := Render(p); err == nil || !strings.Contains(err.Error(), "is no address of a server") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestRender(t *testing.T) {
	p := good
	p.Vault = `/Users/ann/R&D <"x">/]]>/vault.db`
	data, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{Label, p.Agent, "--foreground", "--vault", p.Vault, "--machine-key", p.MachineKey,
		"--app", "myapp", "--env", "production", "Background", "none", "/Users/ann/Library/Logs/ov-agent.log"}
	if got := texts(t, data, "string"); !reflect.DeepEqual(got, want) {
		t.Errorf("the list's strings are\n%q, not\n%q", got, want)
	}
	if got := texts(t, data, "integer"); !reflect.DeepEqual(got, []string{"63", "0"}) {
		t.Errorf("the list's integers are %q", got)
	}
}

func TestRenderRefuses(t *testing.T) {
	for name, change := range map[string]func(*Params){
		"newline":      func(p *Params) { p.Vault = "/a\nb" },
		"relative":     func(p *Params) { p.MachineKey = "a" },
		"empty":        func(p *Params) { p.Agent = "" },
		"not utf-8":    func(p *Params) { p.Home = "/\xff" },
		"app a flag":   func(p *Params) { p.App = "-x" },
		"env is empty": func(p *Params) { p.Env = "" },
	} {
		p := good
		change(&p)
		if _, err := Render(p); err == nil {
			t.Errorf("%s: rendered", name)
		}
	}
}

// FuzzRender: a path that is taken comes back from the XML as it was.
func FuzzRender(f *testing.F) {
	f.Fuzz(func(t *testing.T, vault string) {
		p := good
		p.Vault = vault
		data, err := Render(p)
		if err != nil {
			return
		}
		if got := texts(t, data, "string"); len(got) != 14 || got[4] != vault {
			t.Errorf("%q comes back as %q", vault, got)
		}
	})
}

// Install needs no launchd as long as it is not to start anything.
func TestInstall(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := good
	p.Home = dir
	p.Vault = filepath.Join(dir, "vault.db")
	p.MachineKey = filepath.Join(dir, "my.key")
	if err := os.WriteFile(p.MachineKey, make([]byte, 32), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := Install(&out, p, false); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("a key that others can read: %v", err)
	}
	if err := os.Chmod(p.MachineKey, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(&out, p, false); err == nil || !strings.Contains(hint.Of(err), "ov auth init") {
		t.Errorf("without a vault: %v, hint %q", err, hint.Of(err))
	}
	if err := os.WriteFile(p.Vault, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(&out, p, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "launchctl bootstrap gui/") {
		t.Errorf("no next step in %q", out.String())
	}
	want, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(p.path()); err != nil || string(got) != string(want) {
		t.Errorf("%v: the list holds\n%s", err, got)
	}
	if err := Uninstall(&out, p.Home); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(p.path()); !os.IsNotExist(err) {
		t.Errorf("the list is still there: %v", err)
	}
	if _, err := os.Lstat(p.MachineKey); err != nil {
		t.Errorf("the key is gone: %v", err)
	}
}
