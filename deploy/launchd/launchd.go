// Package launchd renders and installs the LaunchAgent that runs ov-agent when
// a macOS user logs in. See launchd.plist(5) and launchctl(1).
package launchd

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/stores"
)

// Label names the job to launchctl(1).
const Label = "com.opaquevault.ov-agent"

//go:embed ov-agent.plist.tmpl
var plistText string

// Params says what the agent opens. Its socket is the user's own, where clients
// look for it by themselves.
type Params struct {
	Agent      string // the ov-agent executable, absolute
	Vault      string // the vault's file, absolute, or its server's URL
	MachineKey string // the machine key's file, absolute
	App, Env   string // slugs
	Home       string // the user's home directory, absolute
}

func (p Params) path() string { return filepath.Join(p.Home, "Library/LaunchAgents", Label+".plist") }

// Render returns the text of the property list. Paths must be absolute, clean
// and of printable UTF-8.
func Render(p Params) ([]byte, error) {
	onServer := login.IsURL(p.Vault)
	if url, err := login.Canonical(p.Vault); onServer && (err != nil || url != p.Vault) {
		return nil, fmt.Errorf("%q is no address of a server: it has the form https://host:port", p.Vault)
	}
	for what, path := range map[string]string{"agent": p.Agent, "vault": p.Vault, "machine key": p.MachineKey, "home": p.Home} {
		if what == "vault" && onServer {
			continue
		}
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || !utf8.ValidString(path) ||
			strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
			return nil, fmt.Errorf("path of the %s: %q is not absolute, clean and printable", what, path)
		}
	}
	for what, slug := range map[string]string{"app": p.App, "env": p.Env} {
		if !names.ValidSlug(slug) {
			return nil, fmt.Errorf("%s %q is not a slug: a-z, 0-9 and inner hyphens, at most %d", what, slug, names.MaxSlug)
		}
	}
	var args strings.Builder
	for _, arg := range []string{p.Agent, "--foreground", "--vault", p.Vault, "--machine-key", p.MachineKey,
		"--app", p.App, "--env", p.Env} {
		args.WriteString("\t\t<string>" + html.EscapeString(arg) + "</string>\n")
	}
	// Not text/template: it keeps the linker from dropping what ov does not use.
	return []byte(strings.NewReplacer(
		"@LABEL@", Label,
		"@ARGS@", args.String(),
		"@LOG@", html.EscapeString(filepath.Join(p.Home, "Library/Logs/ov-agent.log")),
	).Replace(plistText)), nil
}

// Install writes the property list as the user who logs in, not as root. With
// enable the agent is started, now and at each login. out gets a line for each
// thing done.
func Install(out io.Writer, p Params, enable bool) error {
	data, err := Render(p)
	if err != nil {
		return err
	}
	if err := machinekey.Check(p.MachineKey, os.Getuid()); err != nil {
		return err
	}
	if login.IsURL(p.Vault) {
		l, err := stores.Login(p.Vault, p.MachineKey)
		if err != nil {
			return err
		}
		l.Wipe()
	} else if _, err := os.Stat(p.Vault); errors.Is(err, fs.ErrNotExist) {
		return hint.Errorf("make it: ov auth init; or name another: --vault FILE", "there is no vault at %s", safefile.Quote(p.Vault))
	}
	if err := os.MkdirAll(filepath.Dir(p.path()), 0o700); err != nil {
		return err
	}
	dir, err := safefile.OpenDir(filepath.Dir(p.path()), safefile.Policy{Owner: os.Getuid(), Sticky: true})
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if dir.Fault != nil {
		return dir.Fault
	}
	if err := dir.Write(filepath.Base(p.path()), data, safefile.Attr{Perm: 0o644, UID: -1, GID: -1, Replace: true}); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%s: written\n", p.path())
	domain := fmt.Sprintf("gui/%d", os.Getuid())
	if !enable {
		_, _ = fmt.Fprintf(out, "next: launchctl bootstrap %s %s\n", domain, safefile.Shell(p.path()))
		return nil
	}
	_ = launchctl("bootout", domain+"/"+Label) // one that runs from an earlier list
	if err := launchctl("bootstrap", domain, p.path()); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%s: runs, and will at each login\n", Label)
	return nil
}

// Uninstall stops the agent and removes the property list. The machine key and
// the vault stay.
func Uninstall(out io.Writer, home string) error {
	path := Params{Home: home}.path()
	_ = launchctl("bootout", fmt.Sprintf("gui/%d/%s", os.Getuid(), Label)) // which fails if it does not run
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, _ = fmt.Fprintf(out, "%s: removed\nthe machine key and the vault are as they were\n", path)
	return nil
}

func launchctl(args ...string) error {
	out, err := exec.Command("launchctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("launchctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
