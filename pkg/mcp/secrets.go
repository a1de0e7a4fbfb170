package mcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/launch"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/vault"
)

// alphabets are what a generated value is made of.
var alphabets = map[string]string{
	"alphanumeric": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
	"hex":          "0123456789abcdef",
	"base64url":    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
	"digits":       "0123456789",
	"printable":    "!#$%&()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~",
}

// The bounds of a generated value's length, in characters.
const (
	minLength     = 8
	maxLength     = 4096
	defaultLength = 32
)

type generateInput struct {
	Length   int    `json:"length,omitempty" jsonschema:"characters, from 8 to 4096; 32 if left out"`
	Alphabet string `json:"alphabet,omitempty" jsonschema:"alphanumeric (if left out), hex, base64url, digits or printable"`
}

type writeInput struct {
	Name     string         `json:"name" jsonschema:"the secret's name: letters, digits and underscores"`
	Generate *generateInput `json:"generate,omitempty" jsonschema:"make a random value, which nobody gets to see here"`
	FromFile string         `json:"from_file,omitempty" jsonschema:"take the value from this file in the project, without the newline at the end of a single line"`
}

type writeOutput struct {
	Name    string `json:"name"`
	Version uint32 `json:"version" jsonschema:"the version that is now the newest"`
	App     string `json:"app"`
	Env     string `json:"env"`
}

// errLiteral is the answer to a call that holds a value.
var errLiteral = hint.Errorf(`let a person store it: ov secret set NAME; or make a new one: {"name": …, "generate": {}}; or name a file: {"name": …, "from_file": …}`,
	"a value is not taken from a call, because then it is in the conversation already")

// source reads or makes the value.
func (s *server) source(in writeInput) (value func() (*kek.Locked, error), shown string, err error) {
	if err := checkName(in.Name); err != nil {
		return nil, "", err
	}
	// Programs that are allowed such a name would run what the model has written.
	if why, unsafe := launch.Unsafe(in.Name); unsafe {
		return nil, "", hint.Errorf("take another name, or let a person store it: ov secret set "+in.Name,
			"a secret named %s changes how programs are loaded or run (%s)", in.Name, why)
	}
	switch {
	case (in.Generate != nil) == (in.FromFile != ""):
		return nil, "", hint.Errorf(`an example: {"name": "SESSION_KEY", "generate": {"length": 32}}`, "one of generate and from_file is needed")
	case in.FromFile != "":
		path, err := s.inTree(in.FromFile)
		if err != nil {
			return nil, "", err
		}
		return func() (*kek.Locked, error) { return s.fromFile(path) }, "the contents of " + visible(path), nil
	}
	g := *in.Generate
	if g.Length == 0 {
		g.Length = defaultLength
	}
	if g.Alphabet == "" {
		g.Alphabet = "alphanumeric"
	}
	letters, ok := alphabets[g.Alphabet]
	switch {
	case g.Length < minLength || g.Length > maxLength:
		return nil, "", fmt.Errorf("generate.length is out of bounds: from %d to %d", minLength, maxLength)
	case !ok:
		return nil, "", errors.New("generate.alphabet is not known: alphanumeric, hex, base64url, digits or printable")
	}
	return func() (*kek.Locked, error) { return generate(g.Length, letters) }, fmt.Sprintf("%d random characters (%s)", g.Length, g.Alphabet), nil
}

// generate returns random letters, each as likely as any other.
func generate(n int, letters string) (*kek.Locked, error) {
	value, err := kek.NewLocked(n)
	if err != nil {
		return nil, err
	}
	kek.Do(func() {
		limit := 256 / len(letters) * len(letters) // above it some letters would come more often
		buf := make([]byte, 256)
		for out := value.Bytes(); len(out) > 0; {
			_, _ = rand.Read(buf) // never fails
			for _, b := range buf {
				if int(b) < limit && len(out) > 0 {
					out[0] = letters[int(b)%len(letters)]
					out = out[1:]
				}
			}
		}
	})
	return value, nil
}

// inTree returns a path below the project's directory, relative to it.
func (s *server) inTree(path string) (string, error) {
	outside := hint.Errorf("name a file below it, or let a person store the value: ov secret set NAME --from-file FILE",
		"from_file is outside of the project")
	if filepath.IsAbs(path) {
		rel, err := filepath.Rel(s.dir, path)
		if err != nil {
			return "", outside
		}
		path = rel
	}
	if !filepath.IsLocal(path) || s.dir == "/" {
		return "", outside
	}
	return filepath.Clean(path), nil
}

// fromFile reads a file of the project. os.Root lets no symbolic link lead out.
func (s *server) fromFile(path string) (*kek.Locked, error) {
	fail := func(err error) (*kek.Locked, error) {
		return nil, fmt.Errorf("cannot read from_file: %w", withoutPath(err))
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = root.Close() }()
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("from_file is not a regular file")
	}
	if info.Size() > vault.MaxValue {
		return nil, fmt.Errorf("from_file is too large: a value has at most %d bytes", vault.MaxValue)
	}
	value, err := prompt.All(f, vault.MaxValue)
	if err != nil {
		return fail(err)
	}
	prompt.DropNewline(value)
	if len(value.Bytes()) == 0 {
		value.Destroy()
		return nil, errors.New("from_file is empty")
	}
	return value, nil
}

// write is vault_create_secret, and vault_update_secret with update.
func (s *server) write(ctx context.Context, req *sdk.CallToolRequest, in writeInput, update bool) (*sdk.CallToolResult, *writeOutput, error) {
	read, shown, err := s.source(in)
	if err != nil {
		return nil, nil, err
	}
	what, note := "Create the secret", "mcp create"
	if update {
		what, note = "Replace the value of the secret", "mcp update"
	}
	question := fmt.Sprintf("%s %s in %s?\n\n  value: %s\n", what, in.Name, s.ref, shown)
	if res, err := s.approved(ctx, req, question); res != nil || err != nil {
		return res, nil, err
	}
	var out writeOutput
	err = s.vault.use(ctx, func(v vault.Unlocked) error {
		current, err := s.version(ctx, v, in.Name)
		if err != nil {
			return err
		}
		switch {
		case update && current == 0:
			return hint.Wrap(&vault.MissingError{Ref: s.ref, Names: []string{in.Name}}, "see which there are: vault_list_secrets; make a new one: vault_create_secret")
		case !update && current != 0:
			return hint.Wrap(fmt.Errorf("secret %s %w in %s", in.Name, vault.ErrExists, s.ref), "give it a new value: vault_update_secret")
		}
		value, err := read()
		if err != nil {
			return err
		}
		defer value.Destroy()
		res, err := v.Put(ctx, s.ref, []vault.Put{{Name: in.Name, Value: value.Bytes(), Replaces: &current}},
			vault.PutOptions{Note: note, Create: !update})
		if err == nil {
			out = writeOutput{in.Name, res[0].Version, s.ref.App, s.ref.Env}
		}
		return err
	})
	s.known.stale()
	if err != nil {
		return nil, nil, err
	}
	return nil, &out, nil
}

// version returns the secret's newest version, 0 if there is none.
func (s *server) version(ctx context.Context, v vault.Unlocked, name string) (uint32, error) {
	list, err := v.List(ctx, s.ref)
	if err != nil && !errors.Is(err, vault.ErrNotFound) {
		return 0, err
	}
	i := slices.IndexFunc(list, func(item vault.Version) bool { return item.Name == name })
	if i < 0 {
		return 0, nil
	}
	return list[i].Version, nil
}

type nameInput struct {
	Name string `json:"name" jsonschema:"the secret's name"`
}

type deleteOutput struct {
	Name    string `json:"name"`
	Deleted bool   `json:"deleted"`
	App     string `json:"app"`
	Env     string `json:"env"`
}

func (s *server) remove(ctx context.Context, req *sdk.CallToolRequest, in nameInput) (*sdk.CallToolResult, *deleteOutput, error) {
	if err := checkName(in.Name); err != nil {
		return nil, nil, err
	}
	question := fmt.Sprintf("Delete the secret %s of %s with all its versions? There is no way back.\n", in.Name, s.ref)
	if res, err := s.approved(ctx, req, question); res != nil || err != nil {
		return res, nil, err
	}
	err := s.vault.use(ctx, func(v vault.Unlocked) error {
		return v.Delete(ctx, s.ref, []string{in.Name})
	})
	s.known.stale()
	if err != nil {
		return nil, nil, err
	}
	return nil, &deleteOutput{in.Name, true, s.ref.App, s.ref.Env}, nil
}

type listedSecret struct {
	Name    string `json:"name"`
	Version uint32 `json:"version"`
	Created string `json:"created" jsonschema:"when this version was made (RFC 3339)"`
}

type listOutput struct {
	App     string         `json:"app"`
	Env     string         `json:"env"`
	Secrets []listedSecret `json:"secrets"`
}

func (s *server) list(ctx context.Context) (*listOutput, error) {
	out := &listOutput{App: s.ref.App, Env: s.ref.Env, Secrets: []listedSecret{}}
	err := s.vault.use(ctx, func(v vault.Unlocked) error {
		list, err := v.List(ctx, s.ref)
		for _, item := range list {
			out.Secrets = append(out.Secrets, listedSecret{item.Name, item.Version, item.Created.UTC().Format("2006-01-02T15:04:05Z")})
		}
		return err
	})
	slices.SortFunc(out.Secrets, func(a, b listedSecret) int { return strings.Compare(a.Name, b.Name) })
	return out, err
}

type existsOutput struct {
	Name    string `json:"name"`
	Exists  bool   `json:"exists"`
	Version uint32 `json:"version,omitempty" jsonschema:"the newest one"`
}

func (s *server) exists(ctx context.Context, in nameInput) (*existsOutput, error) {
	if err := checkName(in.Name); err != nil {
		return nil, err
	}
	out := &existsOutput{Name: in.Name}
	err := s.vault.use(ctx, func(v vault.Unlocked) (err error) {
		out.Version, err = s.version(ctx, v, in.Name)
		return err
	})
	out.Exists = out.Version != 0
	return out, err
}
