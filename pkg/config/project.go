package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/xdg"
)

// ProjectFile is the name of the file that a project keeps beside its code.
const ProjectFile = ".ov.yaml"

// project is what .ov.yaml holds:
//
//	app: myapp
//	env: staging
//	secrets:            # names, or VARIABLE: NAME
//	  - DATABASE_URL
//	  - PGPASSWORD: DATABASE_PASSWORD
//
// The list may also be a mapping, each line VARIABLE: NAME. See rules for mcp.
type project struct {
	app, env string
	secrets  []Secret // nil if the key is absent
	mcp      rules
}

// findProject reads the nearest .ov.yaml from dir upwards, and not above the
// home directory. Outside of it the search goes up to the root directory. In
// both a file counts only if it is the caller's own or root's, so that nobody
// can put one into /tmp for others; one that is not is an error. The result is
// empty if there is none.
func findProject(dir string) (project, string, error) {
	if dir == "" {
		var err error
		// Not os.Getwd, which believes $PWD about links.
		if dir, err = unix.Getwd(); err != nil {
			return project{}, "", hint.Errorf("pass --app and --env, or cd to a directory that exists",
				"cannot look for %s: %w", ProjectFile, os.NewSyscallError("getcwd", err))
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return project{}, "", err
	}
	top, _ := xdg.Home()
	topInfo, _ := os.Stat(top) // nil if absent: then it is no bound
	for {
		file := filepath.Join(dir, ProjectFile)
		src, err := readFile(file, unix.O_NOFOLLOW)
		switch {
		case err == nil:
			p, err := parseProject(src)
			if e := (*Error)(nil); errors.As(err, &e) {
				e.File = file
			}
			return p, file, err
		case absent(err):
		case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EMLINK):
			q := safefile.Shell(file)
			return project{}, "", hint.Wrap(&safefile.Unsafe{Path: file, Fault: "is a symbolic link, not a regular file"},
				"put the file itself there: cp --remove-destination \"$(readlink -f "+q+")\" "+q)
		case errors.Is(err, fs.ErrPermission):
			info, lerr := safefile.Lstat(file)
			if lerr != nil {
				break // in a directory that is closed to the caller nothing is the caller's
			}
			if err := judge(file, info); err != nil {
				return project{}, "", err
			}
			return project{}, "", hint.Wrap(err, "chmod u+r "+safefile.Shell(file))
		default:
			return project{}, "", err
		}
		if info, err := os.Stat(dir); err == nil && topInfo != nil && os.SameFile(info, topInfo) || dir == filepath.Dir(dir) {
			return project{}, "", nil
		}
		dir = filepath.Dir(dir)
	}
}

// vaultHint goes with whatever may be a value in the wrong file.
const vaultHint = "values belong in the vault: ov secret set NAME"

// at is an error about a node. It must not hold any of the node's text.
func at(n *yaml.Node, format string, args ...any) error {
	return &Error{Line: max(n.Line, 1), Msg: fmt.Sprintf(format, args...)}
}

// parseProject reads .ov.yaml. Its errors are an *Error without a file.
func parseProject(src []byte) (project, error) {
	var p project
	if !utf8.Valid(src) {
		return p, &Error{Msg: "not UTF-8"}
	}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return p, nil // empty, or only comments
	} else if err != nil {
		return p, yamlError(err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return p, yamlError(err)
		}
		return p, at(&more, "a second document: there can be one only")
	}
	if err := plain(&doc); err != nil {
		return p, err
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return p, nil // "---" and nothing
	}
	if root.Kind != yaml.MappingNode {
		return p, hint.Wrap(at(root, "not a mapping: the keys are app, env, secrets and mcp"), vaultHint)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		var err error
		switch {
		case seen[key.Value]:
			return project{}, at(key, "the key stands here a second time")
		case key.Value == "app":
			p.app, err = slug(value, "app")
		case key.Value == "env":
			p.env, err = slug(value, "env")
		case key.Value == "secrets":
			p.secrets, err = secrets(value)
		case key.Value == "mcp":
			p.mcp, err = yamlRules(value)
		default:
			err = hint.Wrap(at(key, "unknown key: the keys are app, env, secrets and mcp"), vaultHint)
		}
		if err != nil {
			return project{}, err
		}
		seen[key.Value] = true
	}
	return p, nil
}

// plain refuses what lets a text mean more than it shows: anchors and aliases,
// by which a small file becomes a huge one, and explicit types.
func plain(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return at(n, "anchors and aliases are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		return at(n, "tags are not allowed")
	}
	for _, c := range n.Content {
		if err := plain(c); err != nil {
			return err
		}
	}
	return nil
}

func slug(n *yaml.Node, key string) (string, error) {
	if n.Kind == yaml.ScalarNode && n.Tag != "!!str" && names.ValidSlug(n.Value) {
		return "", at(n, "%s would be read as a number or the like: put quotes around it", key)
	}
	if n.Kind != yaml.ScalarNode || !names.ValidSlug(n.Value) {
		return "", at(n, "%s is not a valid name: lower-case letters, digits and inner dashes, at most %d", key, names.MaxSlug)
	}
	return n.Value, nil
}

// secrets reads a list of names and of single VARIABLE: NAME, or a mapping.
func secrets(n *yaml.Node) ([]Secret, error) {
	var list []Secret
	seen := map[string]bool{}
	add := func(variable, name *yaml.Node) error {
		for _, n := range []*yaml.Node{variable, name} {
			if err := checkName(n); err != nil {
				return err
			}
		}
		if seen[variable.Value] {
			return at(variable, "the variable stands here a second time")
		}
		seen[variable.Value] = true
		list = append(list, Secret{variable.Value, name.Value})
		return nil
	}
	pairs := func(m *yaml.Node) error {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if err := add(m.Content[i], m.Content[i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	var err error
	switch n.Kind {
	case yaml.MappingNode:
		err = pairs(n)
	case yaml.SequenceNode:
		for _, item := range n.Content {
			switch {
			case item.Kind != yaml.MappingNode:
				err = add(item, item)
			case len(item.Content) != 2:
				err = at(item, "an item is one NAME or one VARIABLE: NAME")
			default:
				err = pairs(item)
			}
			if err != nil {
				break
			}
		}
	default:
		err = hint.Wrap(at(n, "secrets is not a list of names"), vaultHint)
	}
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, hint.Wrap(at(n, "secrets lists no names"), "leave the key out to get all secrets")
	}
	return list, nil
}

func checkName(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag != "!!str" && names.ValidName(n.Value):
		return at(n, "the name would be read as true, null or the like: put quotes around it")
	case n.Kind != yaml.ScalarNode || !names.ValidName(n.Value):
		return hint.Wrap(at(n, "not a secret's name: letters, digits and underscores, at most %d", names.MaxName), vaultHint)
	case looksLikeValue(n.Value):
		return hint.Wrap(at(n, "looks like a secret's value, not like its name"), vaultHint)
	}
	return nil
}

// looksLikeValue finds tokens that could be names by their letters, such as
// sk_live_ and what follows it, or 32 hexadecimal digits: 20 or more letters
// and digits in a row with at least three digits among them. Names that people
// give have words in them, and underscores between.
func looksLikeValue(name string) bool {
	for run := range strings.SplitSeq(name, "_") {
		digits := 0
		for i := range len(run) {
			if run[i] >= '0' && run[i] <= '9' {
				digits++
			}
		}
		if len(run) >= 20 && digits >= 3 {
			return true
		}
	}
	return false
}

// yamlError keeps the line of a parser's error, whose text may quote the file.
func yamlError(err error) error {
	msg, line := err.Error(), 1 // the parser does not say "line 1"
	if _, rest, ok := strings.Cut(msg, "line "); ok {
		digits, _, _ := strings.Cut(rest, ":")
		line, _ = strconv.Atoi(digits)
	} else if strings.Contains(msg, "unknown anchor") || strings.Contains(msg, "control characters") {
		line = 0 // nor any line here
	}
	return &Error{Line: max(line, 0), Msg: "not valid YAML"}
}
