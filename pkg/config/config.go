// Package config says which app and environment a command is about, and where
// the files of a user's own are.
//
// App and environment are looked for one by one, each in four places, and the
// first that names it wins:
//
//  1. the flags --app and --env
//  2. .ov.yaml: the nearest one from the current directory upwards
//  3. config.toml: what `ov app use` and `ov env use` wrote
//  4. default and production
//
// So `--env staging` keeps the app of the project that one is in. A file that
// is not needed is not read: with both flags given, and no list of secrets
// wanted, Resolve looks at no file at all. A service that says what it needs is
// therefore not changed, or stopped, by a file in its working directory.
//
// .ov.yaml comes with a checkout and may be anybody's; it can hold names only.
// A file that breaks the rules is an error and never passed over. Since what
// breaks them may be a secret in the wrong place, errors give file, line and
// rule, not the text.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/safefile"
)

// MaxFile bounds .ov.yaml and config.toml, in bytes.
const MaxFile = 64 << 10

// Source is the place that decided something.
type Source string

// The places, first the one that wins.
const (
	FromFlag    Source = "flag"
	FromProject Source = ".ov.yaml"
	FromConfig  Source = "config.toml"
	FromDefault Source = "default"
)

// Choice is a value and where it comes from.
type Choice struct {
	Value  string `json:"value"`
	Source Source `json:"source"`
	File   string `json:"file,omitempty"` // absolute; "" for flags and defaults
}

// Secret is one entry of the list in .ov.yaml.
type Secret struct {
	Var  string `json:"var"`  // environment variable that the program gets
	Name string `json:"name"` // secret that goes into it
}

// Context is what a command is about.
type Context struct {
	App Choice `json:"app"`
	Env Choice `json:"env"`
	// Secrets is the list in .ov.yaml, in its order; nil if there is none or it
	// is another app's. Then all secrets of the environment are meant.
	Secrets     []Secret `json:"secrets,omitempty"`
	SecretsFile string   `json:"secrets_file,omitempty"` // absolute
}

// Options are what the command line says.
type Options struct {
	App, Env string // --app and --env; "" if not given
	// Secrets asks for the list in .ov.yaml: `ov run` without --secrets. The
	// list goes with the app that it was written for. --env does not part them:
	// the same program runs in every environment.
	Secrets bool
	Dir     string // where to look for .ov.yaml; "" is the current directory
}

// Error is about the contents of a file.
type Error struct {
	File string // absolute
	Line int    // from 1; 0 if the whole file is meant
	Msg  string // never holds text from the file
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return safefile.Quote(e.File) + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", safefile.Quote(e.File), e.Line, e.Msg)
}

// Resolve finds out what a command is about. Errors are an *Error, a
// *safefile.Unsafe or about reading a file.
func Resolve(o Options) (Context, error) {
	c := Context{}
	for _, f := range []struct {
		flag, value string
		to          *Choice
	}{{"--app", o.App, &c.App}, {"--env", o.Env, &c.Env}} {
		if f.value == "" {
			continue
		}
		if !names.ValidSlug(f.value) {
			return Context{}, hint.Errorf("an example: "+f.flag+" my-app-2",
				"%s %q is not a valid name: lower-case letters, digits and inner dashes, at most %d", f.flag, f.value, names.MaxSlug)
		}
		*f.to = Choice{Value: f.value, Source: FromFlag}
	}
	if o.App == "" || o.Env == "" || o.Secrets {
		p, file, err := findProject(o.Dir)
		if err != nil {
			return Context{}, err
		}
		c.App.fill(p.app, FromProject, file)
		c.Env.fill(p.env, FromProject, file)
		if o.Secrets && p.secrets != nil && (p.app == "" || p.app == c.App.Value) {
			c.Secrets, c.SecretsFile = p.secrets, file
		}
	}
	if c.App.Value == "" || c.Env.Value == "" {
		f, file, err := readConfig()
		if err != nil {
			return Context{}, err
		}
		c.App.fill(f.App, FromConfig, file)
		c.Env.fill(f.Env, FromConfig, file)
	}
	c.App.fill(names.DefaultApp, FromDefault, "")
	c.Env.fill(names.DefaultEnv, FromDefault, "")
	return c, nil
}

// fill sets a choice that nothing has decided yet.
func (c *Choice) fill(value string, s Source, file string) {
	if c.Value == "" && value != "" {
		*c = Choice{value, s, file}
	}
}

// readFile reads a small file that only the caller or root can have written.
// What others wrote could lead a command to another app, or another vault.
// flags are added to those of open(2).
//
// The group may write if it is the user's own: same number as the user, as
// distributions have it that make umask 002 the default.
func readFile(file string, flags int) ([]byte, error) {
	fd, err := unix.Open(file, flags|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	info, err := safefile.Fstat(fd)
	if err != nil {
		return nil, &fs.PathError{Op: "fstat", Path: file, Err: err}
	}
	if err := judge(file, info); err != nil {
		return nil, err
	}
	if info.Size > MaxFile {
		return nil, &Error{File: file, Msg: fmt.Sprintf("has %d bytes, the bound is %d", info.Size, MaxFile)}
	}
	buf := make([]byte, MaxFile+1)
	n, err := safefile.ReadAll(fd, buf)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: file, Err: err}
	}
	if n > MaxFile { // it grew
		return nil, &Error{File: file, Msg: fmt.Sprintf("has more than %d bytes", MaxFile)}
	}
	return bytes.TrimPrefix(buf[:n], []byte("\ufeff")), nil
}

func judge(file string, info safefile.Info) error {
	q := safefile.Shell(file)
	unsafe := func(fix, format string, args ...any) error {
		return hint.Wrap(&safefile.Unsafe{Path: file, Fault: fmt.Sprintf(format, args...)}, fix)
	}
	caller := os.Geteuid()
	switch {
	case info.Type != unix.S_IFREG:
		return unsafe("look at it: ls -ld "+q, "is %s, not a regular file", safefile.TypeName(info.Type))
	case info.UID != caller && info.UID != 0:
		return unsafe("if you trust what it says: sudo chown "+safefile.User(caller)+" "+q,
			"is owned by %s, not by %s", safefile.User(info.UID), safefile.User(caller))
	case info.Perm&0o002 != 0 || info.Perm&0o020 != 0 && info.GID != info.UID:
		return unsafe("chmod go-w "+q, "can be written by others (mode %04o)", info.Perm)
	}
	return nil
}

// absent reports whether there is no such file as readFile was asked for.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
