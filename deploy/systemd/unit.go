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

	"github.com/opaquevault/ov/pkg/login"
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
	keptDirectory    = "ov-agent" // below /var/cache and /var/lib
)

//go:embed ov-agent.service.tmpl
var unitText string

// Params says what the agent of one unit opens and for whom.
type Params struct {
	Agent      string // the ov-agent executable, absolute
	Vault      string // the vault's file, absolute, whose directory is made writable to the agent; or the server's URL
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
		if f.what == "vault" && p.onServer() {
			continue
		}
		if err := checkPath(f.path); err != nil {
			return fmt.Errorf("path of the %s: %w", f.what, err)
		}
	}
	switch {
	case p.onServer() && !plainURL(p.Vault):
		return fmt.Errorf("%q is no address of a server: it has the form https://host:port", p.Vault)
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
	v := ofFile(p)
	if p.onServer() {
		v = ofServer(p)
	}
	// Not text/template: it keeps the linker from dropping what ov does not use.
	return []byte(strings.NewReplacer(
		"@MOUNTS@", v.mounts,
		"@ORDER@", v.order,
		"@KEPT@", v.kept,
		"@WRITABLE@", v.writable,
		"@BINDS@", v.binds,
		"@NO_EXEC@", v.noExec,
		"@NETWORK@", v.network,
		"@AGENT@", quote(p.Agent),
		"@SOCKET@", quote(Socket),
		"@VAULT@", quote(p.Vault),
		"@MACHINE_KEY@", quote(p.MachineKey),
		"@APP@", p.App,
		"@ENV@", p.Env,
		"@USER@", p.User,
		"@RUNTIME_DIRECTORY@", runtimeDirectory,
	).Replace(unitText)), nil
}

// onServer tells whether the vault is on a server.
func (p Params) onServer() bool { return login.IsURL(p.Vault) }

// plainURL tells whether an address is one, in the form in which logins have it.
func plainURL(address string) bool {
	canonical, err := login.Canonical(address)
	return err == nil && canonical == address
}

// variant is what differs between the units for a vault in a file and for one on
// a server: whole lines, or words in one.
type variant struct{ mounts, order, kept, writable, binds, noExec, network string }

func ofFile(p Params) variant {
	dir := quote(filepath.Dir(p.Vault))
	return variant{
		mounts:   dir + " " + quote(p.MachineKey),
		writable: `# the directory of the vault: "ov secret set" writes there through the agent.` + "\n",
		binds:    "BindPaths=-" + dir + "\n" + bindHidden(p.MachineKey),
		noExec:   "-" + dir,
		network: `# Network: none. Unix sockets stay open: they are how the agent is reached.
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
IPAddressDeny=any
`,
	}
}

func ofServer(p Params) variant {
	return variant{
		mounts: quote(p.MachineKey),
		// Nothing hangs on it: an agent that starts before its server waits for it.
		order: "Wants=network-online.target\nAfter=network-online.target\n",
		kept: `# What the server has said, for when it is away (--max-stale), and the memory
# of what it has shown before.
CacheDirectory=` + keptDirectory + `
CacheDirectoryMode=0700
StateDirectory=` + keptDirectory + `
StateDirectoryMode=0700
`,
		writable: "# the two directories above.\n",
		binds:    bindHidden(p.MachineKey) + bindHidden(login.Companion(p.MachineKey)),
		noExec:   "-/var/cache/" + keptDirectory + " -/var/lib/" + keptDirectory,
		network: `# Network: TCP to the server, and what it takes to find its address. To name
# the server's address alone: "systemctl edit ov-agent", IPAddressDeny=any and
# IPAddressAllow=. Unix sockets are how the agent is reached.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
`,
	}
}

// bindHidden puts a file back that the sandbox hides, read-only.
func bindHidden(path string) string {
	if !hidden(path) {
		return ""
	}
	return "BindReadOnlyPaths=-" + quote(path) + "\n"
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
