package config

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/xdg"
)

// other is a uid without a login name.
const other = 54322

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newHome makes a home directory with a project in it and returns both.
func newHome(t *testing.T) (home, project string) {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	home = filepath.Join(base, "home")
	project = filepath.Join(home, "src", "project")
	must(t, os.MkdirAll(project, 0o700))
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_DATA_HOME", "")
	return home, project
}

func write(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o700))
	must(t, os.WriteFile(name, []byte(content), 0o600))
}

func TestResolve(t *testing.T) {
	const flag, project, config, deflt = FromFlag, FromProject, FromConfig, FromDefault
	for _, c := range []struct {
		name              string
		o                 Options
		yaml, toml        string
		app, env          string
		appFrom, envFrom  Source
		secrets           string // as VAR=NAME, by spaces
		yamlBad, tomlSkip bool
	}{
		{name: "nothing", app: "default", env: "production", appFrom: deflt, envFrom: deflt},
		{name: "flags over all", o: Options{App: "f", Env: "g"}, yaml: "app: a\nenv: b", toml: "app='c'\nenv='d'", app: "f", env: "g", appFrom: flag, envFrom: flag},
		{name: "project over config", yaml: "app: a\nenv: b", toml: "app='c'\nenv='d'", app: "a", env: "b", appFrom: project, envFrom: project},
		{name: "config over default", toml: "app='c'\nenv='d'", app: "c", env: "d", appFrom: config, envFrom: config},
		{name: "each by itself", o: Options{Env: "g"}, yaml: "app: a", app: "a", env: "g", appFrom: project, envFrom: flag},
		{name: "three places", yaml: "app: a", toml: "env='d'", app: "a", env: "d", appFrom: project, envFrom: config},
		{name: "config names the app only", toml: "app='c'", app: "c", env: "production", appFrom: config, envFrom: deflt},
		{name: "list", o: Options{Secrets: true}, yaml: "app: a\nsecrets: [X, {Y: Z}]", app: "a", env: "production", appFrom: project, envFrom: deflt, secrets: "X=X Y=Z"},
		{name: "list not asked for", yaml: "app: a\nsecrets: [X]", app: "a", env: "production", appFrom: project, envFrom: deflt},
		{name: "list without an app", o: Options{App: "f", Env: "g", Secrets: true}, yaml: "secrets: [X]", app: "f", env: "g", appFrom: flag, envFrom: flag, secrets: "X=X"},
		{name: "list of the app given by flag", o: Options{App: "a", Env: "g", Secrets: true}, yaml: "app: a\nenv: b\nsecrets: [X]", app: "a", env: "g", appFrom: flag, envFrom: flag, secrets: "X=X"},
		{name: "list of another app", o: Options{App: "f", Secrets: true}, yaml: "app: a\nenv: b\nsecrets: [X]", app: "f", env: "b", appFrom: flag, envFrom: project},
		{name: "flags spare a broken project file", o: Options{App: "f", Env: "g"}, yaml: "nonsense", toml: "nonsense", app: "f", env: "g", appFrom: flag, envFrom: flag},
		{name: "a full project file spares a broken config", o: Options{Secrets: true}, yaml: "app: a\nenv: b", toml: "nonsense", app: "a", env: "b", appFrom: project, envFrom: project},
	} {
		t.Run(c.name, func(t *testing.T) {
			home, dir := newHome(t)
			configFile, projectFile := filepath.Join(home, ".config/ov/config.toml"), filepath.Join(dir, ".ov.yaml")
			if c.yaml != "" {
				write(t, projectFile, c.yaml)
			}
			if c.toml != "" {
				write(t, configFile, c.toml)
			}
			file := map[Source]string{project: projectFile, config: configFile}
			c.o.Dir = dir
			got, err := Resolve(c.o)
			if err != nil {
				t.Fatal(err)
			}
			want := Context{App: Choice{c.app, c.appFrom, file[c.appFrom]}, Env: Choice{c.env, c.envFrom, file[c.envFrom]}}
			for _, s := range strings.Fields(c.secrets) {
				variable, name, _ := strings.Cut(s, "=")
				want.Secrets = append(want.Secrets, Secret{variable, name})
				want.SecretsFile = projectFile
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestResolveBadFlags(t *testing.T) {
	_, dir := newHome(t)
	for _, o := range []Options{{App: "My App"}, {Env: "-x"}, {App: strings.Repeat("a", 64)}, {Env: "\x1b[2J"}} {
		o.Dir = dir
		if _, err := Resolve(o); err == nil || hint.Of(err) == "" || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// The nearest file counts, whole, and none above the home directory.
func TestProjectSearch(t *testing.T) {
	home, dir := newHome(t)
	deep := filepath.Join(dir, "a", "b")
	must(t, os.MkdirAll(deep, 0o700))
	app := func(dir string) string {
		t.Helper()
		c, err := Resolve(Options{Dir: dir})
		must(t, err)
		return c.App.Value + " " + c.App.File
	}
	file := func(dir string) string { return filepath.Join(dir, ".ov.yaml") }

	write(t, file(filepath.Dir(home)), "app: above-home")
	for _, d := range []string{deep, dir, home} {
		if got := app(d); got != "default " {
			t.Errorf("from %s: %s", d, got)
		}
	}
	write(t, file(home), "app: home")
	if got := app(deep); got != "home "+file(home) {
		t.Error(got)
	}
	write(t, file(dir), "env: staging") // does not fall back to home's for the app
	if got := app(deep); got != "default " {
		t.Error(got)
	}
	write(t, file(deep), "app: deep")
	if got := app(deep); got != "deep "+file(deep) {
		t.Error(got)
	}
	if got := app(dir); got != "default " {
		t.Error(got)
	}

	// Outside the home directory: upwards without end.
	outside := filepath.Join(filepath.Dir(home), "outside", "x")
	must(t, os.MkdirAll(outside, 0o700))
	if got := app(outside); got != "above-home "+file(filepath.Dir(home)) {
		t.Error(got)
	}

	// A home directory that is a link is the same bound.
	link := filepath.Join(filepath.Dir(home), "link")
	must(t, os.Symlink("home", link))
	must(t, os.Remove(file(home)))
	must(t, os.Remove(file(dir)))
	t.Setenv("HOME", link)
	if got := app(dir); got != "default " {
		t.Errorf("HOME is a link: %s", got)
	}

	// The current directory, as the kernel knows it: $PWD may lie.
	t.Chdir(deep)
	t.Setenv("PWD", outside)
	if c, err := Resolve(Options{}); err != nil || c.App.Value != "deep" {
		t.Errorf("from the current directory: %+v, %v", c, err)
	}
}

func TestCurrentDirectoryGone(t *testing.T) {
	home, _ := newHome(t)
	gone := filepath.Join(home, "gone")
	must(t, os.Mkdir(gone, 0o700))
	t.Chdir(gone)
	must(t, os.Remove(gone))
	if _, err := Resolve(Options{}); err == nil || hint.Of(err) == "" {
		t.Errorf("got %v", err)
	}
	if _, err := Resolve(Options{App: "a", Env: "b"}); err != nil {
		t.Errorf("with both flags: %v", err)
	}
}

// Files that others could have written are errors, not passed over.
func TestUnsafeFiles(t *testing.T) {
	for _, c := range []struct {
		name      string
		root      bool
		make      func(file string) error
		want, fix string // F is the file
		configOK  bool   // no fault of config.toml, which dotfile managers link
	}{
		{name: "another's", root: true, make: func(f string) error { return os.Chown(f, other, other) },
			want: "F is owned by 54322, not by root", fix: "if you trust what it says: sudo chown root F"},
		{name: "another's, unreadable", root: true, make: func(f string) error { return errors.Join(os.Chmod(f, 0), os.Chown(f, other, other)) },
			want: "F is owned by 54322, not by root", fix: "if you trust what it says: sudo chown root F"},
		{name: "all can write", make: func(f string) error { return os.Chmod(f, 0o602) },
			want: "F can be written by others (mode 0602)", fix: "chmod go-w F"},
		{name: "a group can write", root: true, make: func(f string) error { return errors.Join(os.Chown(f, 0, other), os.Chmod(f, 0o660)) },
			want: "F can be written by others (mode 0660)", fix: "chmod go-w F"},
		{name: "named pipe", make: func(f string) error { return errors.Join(os.Remove(f), unix.Mkfifo(f, 0o600)) },
			want: "F is a named pipe, not a regular file", fix: "look at it: ls -ld F"},
		{name: "directory", make: func(f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o700)) },
			want: "F is a directory, not a regular file", fix: "look at it: ls -ld F"},
		{name: "device", make: func(f string) error { return errors.Join(os.Remove(f), os.Symlink("/dev/zero", f)) }, configOK: true,
			want: "F is a symbolic link, not a regular file", fix: `put the file itself there: cp --remove-destination "$(readlink -f F)" F`},
		{name: "symbolic link", configOK: true, make: func(f string) error {
			return errors.Join(os.Rename(f, f+".real"), os.Symlink(f+".real", f))
		}, want: "F is a symbolic link, not a regular file", fix: `put the file itself there: cp --remove-destination "$(readlink -f F)" F`},
		{name: "too long", make: func(f string) error { return os.Truncate(f, MaxFile+1) },
			want: "F: has 65537 bytes, the bound is 65536"},
		{name: "endless", make: func(f string) error { return os.Truncate(f, 1<<40) },
			want: "F: has 1099511627776 bytes, the bound is 65536"},
	} {
		for _, which := range []string{".ov.yaml", "config.toml"} {
			t.Run(which+"/"+c.name, func(t *testing.T) {
				if c.root && os.Geteuid() != 0 {
					t.Skip("NOT RUN: takes root")
				}
				home, dir := newHome(t)
				file, text := filepath.Join(dir, ".ov.yaml"), "app: a"
				if which == "config.toml" {
					file, text = filepath.Join(home, ".config/ov/config.toml"), "app='a'"
				}
				write(t, file, text)
				must(t, c.make(file))
				got, err := Resolve(Options{Dir: dir})
				if which == "config.toml" && c.configOK {
					if c.name == "device" {
						if err == nil || !strings.Contains(err.Error(), "is a device, not a regular file") {
							t.Errorf("got %v", err)
						}
					} else if err != nil || got.App.Value != "a" {
						t.Errorf("got %+v, %v", got, err)
					}
					return
				}
				fill := strings.NewReplacer("F", file).Replace
				if err == nil || err.Error() != fill(c.want) || hint.Of(err) != fill(c.fix) {
					t.Errorf("got  %v (%s)\nwant %s (%s)", err, hint.Of(err), fill(c.want), fill(c.fix))
				}
				if !errors.As(err, new(*safefile.Unsafe)) && !errors.As(err, new(*Error)) {
					t.Errorf("untyped: %#v", err)
				}
			})
		}
	}
}

// Root's file counts for everybody, and so does one that the user's own group
// can write, as umask 002 makes it.
func TestSafeFiles(t *testing.T) {
	_, dir := newHome(t)
	file := filepath.Join(dir, ".ov.yaml")
	write(t, file, "app: a")
	must(t, os.Chmod(file, 0o644))
	try := func(what string) {
		t.Helper()
		if c, err := Resolve(Options{Dir: dir}); err != nil || c.App.Value != "a" {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
	try("0644")
	if os.Geteuid() != 0 {
		t.Log("NOT RUN: the cases that take root")
		return
	}
	must(t, os.Chmod(file, 0o664)) // 0:0
	try("own group")
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm()&1 == 0 {
			must(t, os.Chmod(d, 0o755))
		}
		if filepath.Dir(d) == os.TempDir() {
			break
		}
	}
	must(t, syscall.Seteuid(other))
	try("root's file, for another user")
	must(t, syscall.Seteuid(0))

	// What lies in a directory that is closed to the caller is none of its.
	must(t, os.Chmod(dir, 0o700))
	must(t, syscall.Seteuid(other))
	c, err := Resolve(Options{Dir: dir})
	must(t, syscall.Seteuid(0))
	if err != nil || c.App.Value != "default" {
		t.Errorf("closed directory: %+v, %v", c, err)
	}
}

// marker stands for a secret that somebody put into the wrong file.
const marker = "Zq7hunter2"

func TestProject(t *testing.T) {
	for text, want := range map[string]project{
		"":                              {},
		"# nothing\n":                   {},
		"---\n":                         {},
		"{}":                            {},
		"\ufeffapp: a":                  {app: "a"},
		"app: a\r\nenv: b\r\n":          {app: "a", env: "b"},
		"app: '123'\nenv: \"0x1\"":      {app: "123", env: "0x1"},
		"secrets: [A]":                  {secrets: []Secret{{"A", "A"}}},
		"secrets:\n- A\n- B: C\n- _d":   {secrets: []Secret{{"A", "A"}, {"B", "C"}, {"_d", "_d"}}},
		"secrets:\n  A: B\n  C: B\n":    {secrets: []Secret{{"A", "B"}, {"C", "B"}}},
		"secrets: {A: B}\nenv: b":       {env: "b", secrets: []Secret{{"A", "B"}}},
		"secrets:\n- 'NULL'\n- \"yes\"": {secrets: []Secret{{"NULL", "NULL"}, {"yes", "yes"}}},
		"secrets: [MyServiceOAuth2ClientSecret, AWS_SECRET_ACCESS_KEY, SHA256_HMAC_512_KEY_2024_01_31]": {secrets: []Secret{
			{"MyServiceOAuth2ClientSecret", "MyServiceOAuth2ClientSecret"}, {"AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"},
			{"SHA256_HMAC_512_KEY_2024_01_31", "SHA256_HMAC_512_KEY_2024_01_31"}}},
	} {
		home, dir := newHome(t)
		_ = home
		write(t, filepath.Join(dir, ".ov.yaml"), text)
		got, _, err := findProject(dir)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestProjectBad(t *testing.T) {
	const (
		unknown  = "unknown key: the keys are app, env, secrets and mcp"
		notName  = "not a secret's name: letters, digits and underscores, at most 255"
		value    = "looks like a secret's value, not like its name"
		badSlug  = " is not a valid name: lower-case letters, digits and inner dashes, at most 63"
		anchors  = "anchors and aliases are not allowed"
		notYAML  = "not valid YAML"
		oneEach  = "an item is one NAME or one VARIABLE: NAME"
		quoteIt  = " would be read as a number or the like: put quotes around it"
		quoteIt2 = "the name would be read as true, null or the like: put quotes around it"
	)
	for _, c := range []struct {
		text string
		line int
		want string
	}{
		{marker, 1, "not a mapping: the keys are app, env, secrets and mcp"},
		{"- " + marker, 1, "not a mapping: the keys are app, env, secrets and mcp"},
		{"app: a\n\nDATABASE_URL: postgres://u:" + marker + "@h/d", 3, unknown},
		{marker + ": x", 1, unknown},
		{"app: a\nvaults: {}", 2, unknown},
		{"App: a", 1, unknown},
		{"? [a]\n: b", 1, unknown},
		{"~: b", 1, unknown},
		{"<<: {app: a}", 1, unknown},
		{"app: a\napp: b", 2, "the key stands here a second time"},
		{"app: a\n\"app\": b", 2, "the key stands here a second time"},
		{"app: " + marker + "!", 1, "app" + badSlug},
		{"env:\n  [" + marker + "]", 2, "env" + badSlug},
		{"app:", 1, "app" + badSlug},
		{"app: Upper", 1, "app" + badSlug},
		{"app: 123", 1, "app" + quoteIt},
		{"env: true", 1, "env" + quoteIt},
		{"secrets:", 1, "secrets is not a list of names"},
		{"secrets: " + marker, 1, "secrets is not a list of names"},
		{"secrets: []", 1, "secrets lists no names"},
		{"secrets: {}", 1, "secrets lists no names"},
		{"secrets:\n- A\n- A=" + marker, 3, notName},
		{"secrets:\n- A: postgres://" + marker, 2, notName},
		{"secrets:\n  A: |\n    -----BEGIN " + marker + "\n    x\n", 2, notName},
		{"secrets:\n  " + marker + "-1: A", 2, notName},
		{"secrets: [1A]", 1, notName},
		{"secrets: [123]", 1, notName},
		{"secrets: [\"\"]", 1, notName},
		{"secrets: [" + strings.Repeat("A", 256) + "]", 1, notName},
		{"secrets:\n- A:", 2, notName},
		{"secrets:\n- [" + marker + "]", 2, notName},
		{"secrets:\n- A: {B: " + marker + "}", 2, notName},
		{"secrets:\n- A\n- {B: C, D: E}", 3, oneEach},
		{"secrets:\n- {}", 2, oneEach},
		{"secrets: [null]", 1, quoteIt2},
		{"secrets: [TRUE]", 1, quoteIt2},
		{"secrets:\n- A\n- B: A\n- B", 4, "the variable stands here a second time"},
		{"secrets: {A: B, A: C}", 1, "the variable stands here a second time"},
		{"secrets:\n- STRIPE: sk_live_4eC39HqLyjWDarjtT1zdp7dc", 2, value},
		{"secrets: [ghp_16C7e42F292c6912E7710c838347Ae178B4a]", 1, value},
		{"secrets: {K: d41d8cd98f00b204e9800998ecf8427e}", 1, value},
		{"app: &" + marker + " a", 1, anchors},
		{"app: &x a\nenv: *x", 1, anchors},
		{"secrets: &a [*a]", 1, anchors},
		{"app: *" + marker, 0, notYAML},
		{"app: !!str a", 1, "tags are not allowed"},
		{"app: !" + marker + " a", 1, "tags are not allowed"},
		{"app: a\n---\nenv: b", 2, "a second document: there can be one only"},
		{"app: a\n--- *" + marker, 0, notYAML},
		{"app: [" + marker, 1, notYAML},
		{"app: a\nenv: \"" + marker + "\n\n", 2, notYAML},
		{"app: a\n\t" + marker, 2, notYAML},
		{"app: a: " + marker, 1, notYAML},
		{"%" + marker + "\n---\na", 1, notYAML},
		{"app: \xff" + marker, 0, "not UTF-8"},
		{"app: \x00" + marker, 0, notYAML},
	} {
		_, dir := newHome(t)
		file := filepath.Join(dir, ".ov.yaml")
		write(t, file, c.text)
		_, err := Resolve(Options{Dir: dir})
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: got %v", c.text, err)
			continue
		}
		if e.File != file || e.Msg != c.want || c.line != 0 && e.Line != c.line {
			t.Errorf("%q: got %v, want line %d: %s", c.text, err, c.line, c.want)
		}
		if strings.Contains(err.Error()+hint.Of(err), marker) {
			t.Errorf("%q: the error tells: %v", c.text, err)
		}
		if want := fmt.Sprintf("%s:%d: %s", file, c.line, c.want); c.line != 0 && err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}

func TestConfigBad(t *testing.T) {
	const (
		unknown = "unknown key: the keys are app, env, vault.path and those of mcp"
		invalid = "not valid TOML, or of the wrong type"
		badSlug = " is not a valid name: lower-case letters, digits and inner dashes, at most 63"
	)
	for _, c := range []struct {
		text string
		line int
		want string
	}{
		{"app = 'a'\nkey = '" + marker + "'", 2, unknown},
		{"[vault]\npasword = '" + marker + "'", 2, unknown},
		{"app = 'a'\n[" + marker + "]\nx = 1", 0, unknown},
		{"app = '" + marker + "!'", 0, "app" + badSlug},
		{"env = 'A'", 0, "env" + badSlug},
		{"app = 3", 1, invalid},
		{"\napp = ['" + marker + "']", 2, invalid},
		{"vault = '" + marker + "'", 1, invalid},
		{"app = '" + marker, 1, invalid},
		{"app = " + marker, 1, invalid},
		{"app = 'a'\napp = '" + marker + "'", 2, invalid},
		{"[vault]\npath = 'rel/" + marker + "'", 0, "vault.path is neither an absolute path nor the https:// address of a server"},
	} {
		home, dir := newHome(t)
		file := filepath.Join(home, ".config/ov/config.toml")
		write(t, file, c.text)
		_, err := Resolve(Options{Dir: dir})
		var e *Error
		if !errors.As(err, &e) || e.File != file || e.Msg != c.want || c.line != 0 && e.Line != c.line {
			t.Errorf("%q: got %v, want line %d: %s", c.text, err, c.line, c.want)
		}
		if strings.Contains(fmt.Sprint(err, hint.Of(err)), marker) {
			t.Errorf("%q: the error tells: %v", c.text, err)
		}
		if _, err := Use("b", ""); err == nil {
			t.Errorf("%q: replaced", c.text)
		}
		if b, _ := os.ReadFile(file); string(b) != c.text {
			t.Errorf("%q became %q", c.text, b)
		}
	}
}

func TestUse(t *testing.T) {
	for before, after := range map[string]string{
		"":                                  "app = \"new\"\nenv = \"dev\"\n",
		"app = 'old'\n":                     "app = \"new\"\nenv = \"dev\"\n",
		"env='x'":                           "env = \"dev\"\napp = \"new\"\n",
		"# mine\napp = 'old' # gone\n# end": "# mine\napp = \"new\"\nenv = \"dev\"\n# end",
		"# app = 'no'\n\n[vault]\n# here\npath = '/v' # stays\n": "app = \"new\"\nenv = \"dev\"\n# app = 'no'\n\n[vault]\n# here\npath = '/v' # stays\n",
		"vault.path='/v'":                    "vault.path='/v'\napp = \"new\"\nenv = \"dev\"\n",
		"\"app\" = 'old'\n":                  "app = 'new'\nenv = 'dev'\n", // an unusual text is written anew
		"app = '''\nold'''\n":                "app = 'new'\nenv = 'dev'\n",
		"App = 'old'\n":                      "App = 'old'\napp = \"new\"\nenv = \"dev\"\n", // the last one counts
		"[vault]\npath = '/v'\n[vault.x]\n#": "",
	} {
		home, dir := newHome(t)
		file := filepath.Join(home, ".config/ov/config.toml")
		if before != "" {
			write(t, file, before)
			must(t, os.Chmod(file, 0o644))
		}
		path, err := Use("new", "dev")
		if after == "" {
			if err == nil {
				t.Errorf("%q: accepted", before)
			}
			continue
		}
		must(t, err)
		if path != file {
			t.Errorf("wrote %s", path)
		}
		got, err := os.ReadFile(file)
		must(t, err)
		if string(got) != after {
			t.Errorf("%q became %q, want %q", before, got, after)
		}
		c, err := Resolve(Options{Dir: dir})
		if err != nil || c.App != (Choice{"new", FromConfig, file}) || c.Env != (Choice{"dev", FromConfig, file}) {
			t.Errorf("%q: %+v, %v", before, c, err)
		}
		if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
			t.Errorf("%q: mode %v", before, info.Mode())
		}
	}
	if _, err := Use("Not A Slug", ""); err == nil {
		t.Error("a bad app was written")
	}
}

func TestUseOne(t *testing.T) {
	home, dir := newHome(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, v := range [][2]string{{"a", ""}, {"", "e"}, {"b", ""}} {
		_, err := Use(v[0], v[1])
		must(t, err)
	}
	c, err := Resolve(Options{Dir: dir})
	if err != nil || c.App.Value != "b" || c.Env.Value != "e" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, d := range []string{".config", ".config/ov"} {
		if info, _ := os.Stat(filepath.Join(home, d)); info.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v", d, info.Mode())
		}
	}
}

// A config.toml that a dotfile manager links stays linked.
func TestUseThroughLink(t *testing.T) {
	home, _ := newHome(t)
	file, target := filepath.Join(home, ".config/ov/config.toml"), filepath.Join(home, "dotfiles/ov.toml")
	write(t, target, "[vault]\npath = '/v'\n")
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(t, os.Symlink("../../dotfiles/ov.toml", file))
	_, err := Use("a", "")
	must(t, err)
	if got, _ := os.ReadFile(target); string(got) != "app = \"a\"\n[vault]\npath = '/v'\n" {
		t.Errorf("got %q", got)
	}
	if link, err := os.Readlink(file); err != nil || link != "../../dotfiles/ov.toml" {
		t.Errorf("the link is now %q, %v", link, err)
	}
}

// Two commands at once lose neither change.
func TestUseAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip()
	}
	_, dir := newHome(t)
	for range 10 {
		_, err := Use("old", "old")
		must(t, err)
		var wg sync.WaitGroup
		for _, v := range [][2]string{{"new", ""}, {"", "new"}} {
			wg.Go(func() {
				if _, err := Use(v[0], v[1]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if c, err := Resolve(Options{Dir: dir}); err != nil || c.App.Value != "new" || c.Env.Value != "new" {
			t.Fatalf("%+v, %v", c, err)
		}
	}
}

func TestPaths(t *testing.T) {
	home, _ := newHome(t)
	check := func(what string, get func() (string, error), want string) {
		t.Helper()
		if got, err := get(); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
		}
	}
	check("config", Path, home+"/.config/ov/config.toml")
	check("vault", DefaultVault, home+"/.local/share/ov/vault.db")
	t.Setenv("XDG_CONFIG_HOME", "/x//c/")
	t.Setenv("XDG_DATA_HOME", "/x/d")
	check("config", Path, "/x/c/ov/config.toml")
	check("vault", DefaultVault, "/x/d/ov/vault.db")
	if got := xdg.VaultOf("/home/other", ""); got != "/home/other/.local/share/ov/vault.db" {
		t.Errorf("another account's vault, by its home and not our XDG_DATA_HOME: %s", got)
	}
	if got := xdg.VaultOf("/home/other", "/srv"); got != "/srv/ov/vault.db" {
		t.Errorf("another account's vault, by its XDG_DATA_HOME: %s", got)
	}
	t.Setenv("XDG_CONFIG_HOME", "relative")
	t.Setenv("XDG_DATA_HOME", "./x")
	check("config", Path, home+"/.config/ov/config.toml")
	check("vault", DefaultVault, home+"/.local/share/ov/vault.db")

	vault := func(flag string) Choice {
		t.Helper()
		c, err := Vault(flag)
		must(t, err)
		return c
	}
	if got := vault(""); got != (Choice{home + "/.local/share/ov/vault.db", FromDefault, ""}) {
		t.Errorf("%+v", got)
	}
	file := home + "/.config/ov/config.toml"
	write(t, file, "[vault]\npath = '/srv/v.db'\n")
	if got := vault(""); got != (Choice{"/srv/v.db", FromConfig, file}) {
		t.Errorf("%+v", got)
	}
	t.Chdir(home)
	if got := vault("./v.db"); got != (Choice{home + "/v.db", FromFlag, ""}) {
		t.Errorf("%+v", got)
	}

	// A service of root's has no $HOME.
	t.Setenv("HOME", "")
	want, err := xdg.Home()
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	check("vault without $HOME", DefaultVault, want+"/.local/share/ov/vault.db")
}

// What is linked in must cost `ov run` next to nothing before main.
func TestInitIsCheap(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	must(t, err)
	line := regexp.MustCompile(`init (\S*(?:yaml|toml)\S*) @\S+ ms, (\S+) ms clock, (\d+) bytes, (\d+) allocs`)
	for _, m := range line.FindAllStringSubmatch(string(out), -1) {
		t.Logf("%s: %s ms, %s bytes, %s allocations", m[1], m[2], m[3], m[4])
		if allocs, _ := strconv.Atoi(m[4]); allocs > 1000 {
			t.Errorf("%s allocates %d times at start", m[1], allocs)
		}
	}
}

// said are all messages there are. Numbers stand as N. An error with anything
// else in it might be quoting the file.
var said = map[string]bool{}

func init() {
	for _, s := range []string{
		"unknown key: the keys are app, env, secrets and mcp", "not a mapping: the keys are app, env, secrets and mcp",
		"not a secret's name: letters, digits and underscores, at most N", "looks like a secret's value, not like its name",
		"app is not a valid name: lower-case letters, digits and inner dashes, at most N",
		"env is not a valid name: lower-case letters, digits and inner dashes, at most N",
		"anchors and aliases are not allowed", "tags are not allowed", "not valid YAML", "not UTF-8", "an item is one NAME or one VARIABLE: NAME",
		"app would be read as a number or the like: put quotes around it", "env would be read as a number or the like: put quotes around it",
		"the name would be read as true, null or the like: put quotes around it", "the key stands here a second time",
		"the variable stands here a second time", "secrets is not a list of names", "secrets lists no names",
		"a second document: there can be one only",
		"unknown key: the keys are app, env, vault.path and those of mcp", "not valid TOML, or of the wrong type", "vault.path is neither an absolute path nor the https:// address of a server",
		"mcp is not a mapping: its keys are allow and deny", "approve is not for a project to say",
		"unknown key: those of mcp are allow and deny", "not a list of commands", "a command is a list: the program, then each argument",
		"not a word of a command", "a command is empty",
		"mcp.approve is not auto, ask or never", "a rule of mcp.allow or mcp.deny is empty: it is a program and its arguments",
	} {
		said[number.ReplaceAllString(s, "N")] = true
	}
}

var number = regexp.MustCompile(`[0-9]+`)

func checkError(t *testing.T, src []byte, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !said[number.ReplaceAllString(e.Msg, "N")] {
		t.Errorf("an error of another kind: %v", err)
	} else if e.Line < 0 || e.Line > len(src)+2 {
		t.Errorf("line %d of a text of %d bytes", e.Line, len(src))
	}
}

func FuzzProject(f *testing.F) {
	f.Add([]byte(`mcp: {allow: [[npm, test], ["go", "test", "./..."]], deny: [[rm]]}`))
	f.Add([]byte("mcp: {allow: [], deny: [[]]}"))
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := parseProject(src)
		if err != nil {
			checkError(t, src, err)
			if !reflect.DeepEqual(p, project{}) {
				t.Errorf("%+v and %v", p, err)
			}
			return
		}
		if p.app != "" && !names.ValidSlug(p.app) || p.env != "" && !names.ValidSlug(p.env) {
			t.Errorf("accepted app %q and env %q", p.app, p.env)
		}
		if p.secrets != nil && len(p.secrets) == 0 {
			t.Error("an empty list")
		}
		seen := map[string]bool{}
		for _, rule := range append(p.mcp.Allow, p.mcp.Deny...) {
			if len(rule) == 0 || rule[0] == "" {
				t.Errorf("accepted the rule %q", rule)
			}
		}
		for _, s := range p.secrets {
			if !names.ValidName(s.Var) || !names.ValidName(s.Name) || seen[s.Var] {
				t.Errorf("accepted %+v", s)
			}
			seen[s.Var] = true
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("[mcp]\napprove = 'ask'\nallow = [['npm', 'test']]\n"), "app")
	f.Add([]byte("mcp.allow = []\napp = '''\n'''\n"), "app")
	f.Fuzz(func(t *testing.T, src []byte, app string) {
		c, err := parseConfig(src)
		if err != nil {
			checkError(t, src, err)
			if !reflect.DeepEqual(c, file{}) {
				t.Errorf("%+v and %v", c, err)
			}
			return
		}
		if c.App != "" && !names.ValidSlug(c.App) || c.Env != "" && !names.ValidSlug(c.Env) || c.Vault.Path != "" && c.Vault.Path[0] != '/' {
			t.Errorf("accepted %+v", c)
		}
		if !names.ValidSlug(app) {
			app = "app"
		}
		changed, err := change(src, c, app, "")
		if err != nil {
			t.Fatal(err)
		}
		want := c
		want.App = app
		if got, err := parseConfig(changed); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q became %q: %+v, %v", src, changed, got, err)
		}
	})
}
