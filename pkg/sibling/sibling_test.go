package sibling_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/sibling"
)

type options struct {
	Name  string   `json:"name"`
	Paths []string `json:"paths"`
}

func TestOptionsRoundTrip(t *testing.T) {
	in := options{"a \"b\"\n\x00é", []string{"", "--x", "/p"}}
	argv, err := sibling.Args("ov-x", in)
	if err != nil {
		t.Fatal(err)
	}
	var out options
	if err := sibling.Options(argv, &out); err != nil {
		t.Fatal(err)
	}
	if out.Name != in.Name || strings.Join(out.Paths, "|") != strings.Join(in.Paths, "|") {
		t.Errorf("got %+v, want %+v", out, in)
	}
}

// What was not made by this release's ov is refused, and says so.
func TestOptionsRefuse(t *testing.T) {
	good, err := sibling.Args("ov-x", options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		argv []string
		want string
	}{
		"none":          {[]string{"ov-x"}, "one argument is needed, not 0"},
		"no argv":       {nil, "one argument is needed, not 0"},
		"two":           {append(good[:2:2], "x"), "one argument is needed, not 2"},
		"not JSON":      {[]string{"ov-x", "serve"}, "not what ov passes"},
		"more":          {[]string{"ov-x", good[1] + "{}"}, "not what ov passes"},
		"unknown key":   {[]string{"ov-x", strings.Replace(good[1], `"name"`, `"nome"`, 1)}, "not what ov passes"},
		"other release": {[]string{"ov-x", strings.Replace(good[1], `"version":"`, `"version":"x`, 1)}, "and ov is \"x"},
	} {
		t.Run(name, func(t *testing.T) {
			err := sibling.Options(c.argv, &options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "" {
				t.Errorf("got %v, hint %q", err, hint.Of(err))
			}
		})
	}
}

// TestPath: beside this program and nowhere else.
func TestPath(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := "ov-sibling-test"
	path := filepath.Join(filepath.Dir(self), name)
	elsewhere := t.TempDir()
	t.Setenv("PATH", elsewhere)
	if err := os.WriteFile(filepath.Join(elsewhere, name), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(elsewhere)
	if got, err := sibling.Path(name); err == nil || hint.Of(err) == "" {
		t.Errorf("found %s: %v", got, err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	if got, err := sibling.Path(name); err == nil {
		t.Errorf("took %s, which is not executable", got)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := sibling.Path(name); err != nil || filepath.Base(got) != name {
		t.Errorf("got %s: %v", got, err)
	}
}
