// Package systemd renders the system unit of ov-agent and installs it.
//
// The unit is self-contained: what the agent needs is on its command line, so
// that no file of the service user can change which vault or key it opens. The
// template beside this file gives a reason for what the sandbox leaves open.
package systemd

import (
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opaquevault/ov/pkg/names"
)

const (
	// UnitName is the unit that Install writes.
	UnitName = "ov-agent.service"
	// UnitPath is where Install writes it.
	UnitPath = "/etc/systemd/system/" + UnitName
	// Socket is where the installed agent listens: in its RuntimeDirectory=.
	Socket = "/run/" + runtimeDirectory + "/ov-agent.sock"

	runtimeDirectory = "ov-agent"
)

//go:embed ov-agent.service.tmpl
var unitText string

// Params says what the agent of one unit opens and for whom.
type Params struct {
	Agent      string // the ov-agent executable, absolute
	Vault      string // the vault's file, absolute; its directory is made writable to the agent
	MachineKey string // the machine key's file, absolute
	App, Env   string // slugs
	User       string // the service account, not root
}

// validUser accepts the names that useradd(8) makes, and the dots and @ of
// directory services.
func validUser(name string) bool {
	for i, c := range []byte(name) {
		switch {
		case c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z':
		case i > 0 && ('0' <= c && c <= '9' || strings.IndexByte(".@-", c) >= 0):
		default:
			return false
		}
	}
	return name != "" && len(name) <= 64
}

// Check tells whether p can be rendered: absolute clean paths of printable
// UTF-8, slugs, a user name that systemd takes and that is not root.
func (p Params) Check() error {
	for _, f := range []struct{ what, path string }{
		{"agent", p.Agent}, {"vault", p.Vault}, {"machine key", p.MachineKey},
	} {
		if err := checkPath(f.path); err != nil {
			return fmt.Errorf("path of the %s: %w", f.what, err)
		}
	}
	switch {
	case !names.ValidSlug(p.App):
		return fmt.Errorf("app %q is not a slug: a-z, 0-9 and inner hyphens, at most 63", p.App)
	case !names.ValidSlug(p.Env):
		return fmt.Errorf("env %q is not a slug: a-z, 0-9 and inner hyphens, at most 63", p.Env)
	case p.User == "root":
		return errors.New("the agent must not run as root")
	case !validUser(p.User):
		return fmt.Errorf("user name %q cannot be written in a unit", p.User)
	}
	return nil
}

// maxPath is PATH_MAX of Linux less its NUL. It keeps every line of the unit far
// below systemd's bound of 1 MiB.
const maxPath = 4095

func checkPath(p string) error {
	switch {
	case p == "":
		return errors.New("is empty")
	case !filepath.IsAbs(p) || filepath.Clean(p) != p:
		return fmt.Errorf("%q is not absolute and clean", p)
	case len(p) > maxPath:
		return fmt.Errorf("is longer than %d bytes", maxPath)
	case !utf8.ValidString(p) || strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%q holds characters that cannot be written in a unit", p)
	}
	return nil
}

// Render returns the text of the unit, or the fault that Check finds in p.
func Render(p Params) ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	bindKey := "" // a line of its own
	if hidden(p.MachineKey) {
		bindKey = "BindReadOnlyPaths=-" + quote(p.MachineKey) + "\n"
	}
	// Not text/template: it keeps the linker from dropping what ov does not use.
	return []byte(strings.NewReplacer(
		"@AGENT@", quote(p.Agent),
		"@SOCKET@", quote(Socket),
		"@VAULT@", quote(p.Vault),
		"@VAULT_DIR@", quote(filepath.Dir(p.Vault)),
		"@MACHINE_KEY@", quote(p.MachineKey),
		"@BIND_KEY@", bindKey,
		"@APP@", p.App,
		"@ENV@", p.Env,
		"@USER@", p.User,
		"@RUNTIME_DIRECTORY@", runtimeDirectory,
	).Replace(unitText)), nil
}

// quote writes s as one word of a unit's setting: in double quotes, with the
// escapes of systemd.syntax(7), and with "%" doubled, which would otherwise
// begin a specifier of systemd.unit(5). It does not escape "$": see ExecStart=.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(s) + `"`
}

// hidden tells whether the unit's sandbox (ProtectHome=, PrivateTmp=) puts an
// empty directory over the path.
func hidden(path string) bool {
	for _, d := range []string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"} {
		if strings.HasPrefix(path, d) {
			return true
		}
	}
	return false
}
