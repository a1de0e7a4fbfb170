// Package sibling becomes one of ov's own further programs.
//
// What needs heavy libraries, the MCP server and the scanner, is a program of
// its own beside ov, so that `ov run` pays for none of it at start. ov parses
// the command line and says what it read there in one JSON argument: flags and
// their help have one place. Nobody else is meant to run these programs.
package sibling

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/version"
)

// Path returns the program of that name beside this one. It is looked for
// nowhere else: what lies in PATH may be another release, or anybody's.
func Path(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find %s: %w", name, err)
	}
	if target, err := filepath.EvalSymlinks(self); err == nil {
		self = target
	}
	path := filepath.Join(filepath.Dir(self), name)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", hint.Errorf("install it there: it is part of the same release as ov", "%s is not beside %s", name, self)
	case err != nil:
		return "", fmt.Errorf("cannot use %s: %w", name, err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return "", hint.Errorf("install it again", "%s is not a program", path)
	}
	return path, nil
}

// message is the one argument.
type message struct {
	Version string `json:"version"`
	Options any    `json:"options"`
}

// Args returns what to run the program with: its name, then the options, whose
// JSON must hold no secret: every account can read it.
func Args(name string, options any) ([]string, error) {
	text, err := json.Marshal(message{version.String(), options})
	if err != nil {
		return nil, err
	}
	return []string{name, string(text)}, nil
}

// Exec turns this process into the program. It returns only if that fails.
func Exec(name string, options any) error {
	path, err := Path(name)
	if err != nil {
		return err
	}
	argv, err := Args(name, options)
	if err != nil {
		return err
	}
	return fmt.Errorf("cannot run %s: %w", path, syscall.Exec(path, argv, os.Environ()))
}

// Options reads, in the program, what Args made of options of the same type.
func Options(argv []string, options any) error {
	wrong := func(format string, args ...any) error {
		return hint.Wrap(fmt.Errorf(format, args...), "it is part of ov and not for use by itself: ov help")
	}
	if len(argv) != 2 {
		return wrong("one argument is needed, not %d", max(len(argv)-1, 0))
	}
	m := message{Options: options}
	dec := json.NewDecoder(strings.NewReader(argv[1]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil || dec.More() {
		return wrong("the argument is not what ov passes")
	}
	if m.Version != version.String() {
		return hint.Wrap(fmt.Errorf("this is %s, and ov is %.40q", version.String(), m.Version),
			"install both programs from one release")
	}
	return nil
}
