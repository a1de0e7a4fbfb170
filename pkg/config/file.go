package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/safefile"
)

// file is what config.toml holds.
type file struct {
	App   string `toml:"app,omitempty"`
	Env   string `toml:"env,omitempty"`
	Vault vault  `toml:"vault,omitempty"`
	MCP   mcp    `toml:"mcp,omitempty"`
}

type mcp struct {
	Approve Approve `toml:"approve,omitempty"`
	rules
}

type vault struct {
	Path string `toml:"path,omitempty"` // absolute, or the URL of a server
}

// readConfig reads config.toml. It is empty if there is none.
func readConfig() (file, string, error) {
	path, err := Path()
	if err != nil {
		return file{}, "", err
	}
	f, _, err := load(path)
	return f, path, err
}

// load reads and parses the config.toml at path. Symbolic links are followed,
// as dotfile managers make them: it is the file's own owner that counts.
func load(path string) (file, []byte, error) {
	src, err := readFile(path, 0)
	if absent(err) {
		return file{}, nil, nil
	}
	if err != nil {
		return file{}, nil, err
	}
	f, err := parseConfig(src)
	if e := (*Error)(nil); errors.As(err, &e) {
		e.File = path
	}
	return f, src, err
}

// parseConfig reads config.toml. Its errors are an *Error without a file.
func parseConfig(src []byte) (file, error) {
	var f file
	err := toml.NewDecoder(bytes.NewReader(src)).DisallowUnknownFields().Decode(&f)
	if missing := (*toml.StrictMissingError)(nil); errors.As(err, &missing) && len(missing.Errors) > 0 {
		line, _ := missing.Errors[0].Position()
		return file{}, &Error{Line: line, Msg: "unknown key: the keys are app, env, vault.path and those of mcp"}
	}
	if err != nil { // whose text may quote the file
		line := 0
		if d := (*toml.DecodeError)(nil); errors.As(err, &d) {
			line, _ = d.Position()
		}
		return file{}, &Error{Line: line, Msg: "not valid TOML, or of the wrong type"}
	}
	for _, v := range []struct{ key, value string }{{"app", f.App}, {"env", f.Env}} {
		if v.value != "" && !names.ValidSlug(v.value) {
			return file{}, hint.Wrap(&Error{Msg: fmt.Sprintf("%s is not a valid name: lower-case letters, digits and inner dashes, at most %d", v.key, names.MaxSlug)},
				"correct it by hand")
		}
	}
	if p := f.Vault.Path; p != "" && (!filepath.IsAbs(p) && !strings.HasPrefix(p, "https://") || bytes.ContainsRune([]byte(p), 0)) {
		return file{}, &Error{Msg: "vault.path is neither an absolute path nor the https:// address of a server"}
	}
	if a := f.MCP.Approve; a != "" && !a.Valid() {
		return file{}, hint.Wrap(&Error{Msg: "mcp.approve is not auto, ask or never"}, "correct it by hand")
	}
	if err := f.MCP.check(); err != nil {
		return file{}, err
	}
	for _, list := range []*[]Rule{&f.MCP.Allow, &f.MCP.Deny} {
		if len(*list) == 0 {
			*list = nil // as if it were not there, which is how it would be written
		}
	}
	return f, nil
}

// Use makes app and env the user's defaults, in config.toml, and returns its
// path. "" leaves the one there is. Whatever else the file holds stays, down to
// its comments. The file is replaced in one step and has mode 0600; directories
// made for it have 0700.
func Use(app, env string) (string, error) {
	for _, s := range []string{app, env} {
		if s != "" && !names.ValidSlug(s) {
			return "", fmt.Errorf("%q is not a valid name: lower-case letters, digits and inner dashes, at most %d", s, names.MaxSlug)
		}
	}
	path, err := Path()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	target := path // behind a symbolic link: the link stays
	if linked, err := filepath.EvalSymlinks(path); err == nil {
		target = linked
	}
	// One at a time, or one of two would lose its change. A file system that
	// has no locks does without.
	lock, err := os.Open(filepath.Dir(target))
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	for errors.Is(unix.Flock(int(lock.Fd()), unix.LOCK_EX), unix.EINTR) {
	}
	f, src, err := load(target)
	if err != nil {
		return "", err
	}
	if src, err = change(src, f, app, env); err != nil {
		return "", err
	}
	dir, err := safefile.OpenDir(filepath.Dir(target), safefile.Policy{Owner: os.Geteuid()})
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }()
	// Where the directory is, is the user's affair: no dir.Fault here.
	return path, dir.Write(filepath.Base(target), src, safefile.Attr{Perm: 0o600, UID: -1, GID: -1, Replace: true})
}

// change returns src, which is f, with another app and env unless they are "".
func change(src []byte, f file, app, env string) ([]byte, error) {
	if app != "" {
		f.App = app
		src = edit(src, "app", app)
	}
	if env != "" {
		f.Env = env
		src = edit(src, "env", env)
	}
	if got, err := parseConfig(src); err == nil && reflect.DeepEqual(got, f) {
		return src, nil
	}
	return toml.Marshal(f) // an unusual text: without its comments, but right
}

// edit sets a key before the first table of a TOML text, line by line. It does
// not know values of several lines: the caller checks what came of it.
func edit(src []byte, key, value string) []byte {
	line := fmt.Appendf(nil, "%s = %q\n", key, value)
	lines := bytes.SplitAfter(src, []byte("\n"))
	after := 0 // where to put a new key: after the last one there is
	for i, l := range lines {
		l = bytes.TrimSpace(l)
		if bytes.HasPrefix(l, []byte("[")) {
			break
		}
		name, _, isKey := bytes.Cut(l, []byte("="))
		if !isKey || bytes.HasPrefix(l, []byte("#")) {
			continue
		}
		if string(bytes.TrimSpace(name)) == key {
			lines[i] = line
			return bytes.Join(lines, nil)
		}
		after = i + 1
	}
	before := bytes.Join(lines[:after], nil)
	if len(before) > 0 && !bytes.HasSuffix(before, []byte("\n")) {
		before = append(before, '\n')
	}
	return bytes.Join([][]byte{before, line, bytes.Join(lines[after:], nil)}, nil)
}
