package doctor

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// shown is what systemd 252 answers for a unit.
const shown = `Result=exit-code
ExecMainStatus=125
ExecStart={ path=/usr/local/bin/ov ; argv[]=/usr/local/bin/ov run --app myapp --env=production --machine-key /etc/ov/myapp.key --secrets DATABASE_URL,STRIPE_SECRET_KEY -- /opt/myapp/bin/server --app decoy ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
Environment=FOO=topsecret "XDG_DATA_HOME=/a \"b" HOME=/x
EnvironmentFiles=/opt/myapp/.env.production (ignore_errors=no)
EnvironmentFiles=/opt/my app/.env (ignore_errors=yes)
LimitMEMLOCKSoft=8388608
WorkingDirectory=!/opt/myapp
User=deploy
DynamicUser=no
Id=myapp.service
LoadState=loaded
ActiveState=failed
SubState=failed
FragmentPath=/etc/systemd/system/myapp.service
DropInPaths=/etc/systemd/system/myapp.service.d/a.conf /run/systemd/system/myapp.service.d/b.conf
UnitFileState=enabled
NeedDaemonReload=yes
InvocationID=0123456789abcdef0123456789abcdef
`

func TestParseShow(t *testing.T) {
	u, err := parseShow([]byte(shown))
	if err != nil {
		t.Fatal(err)
	}
	const line = "/usr/local/bin/ov run --app myapp --env=production --machine-key /etc/ov/myapp.key --secrets DATABASE_URL,STRIPE_SECRET_KEY -- /opt/myapp/bin/server --app decoy"
	want := &unit{
		id: "myapp.service", loadState: "loaded", activeState: "failed", subState: "failed", result: "exit-code",
		mainStatus: "125", invocation: "0123456789abcdef0123456789abcdef", user: "deploy", needReload: true,
		commands: []command{{"/usr/local/bin/ov", strings.Fields(line), line}},
		envFiles: []envFile{{"/opt/myapp/.env.production", false}, {"/opt/my app/.env", true}},
		// Of Environment=, what is not a directory may be a secret and is not kept.
		environment: map[string]string{"HOME": "/x", "XDG_DATA_HOME": `/a "b`},
		files: []string{"/etc/systemd/system/myapp.service", "/etc/systemd/system/myapp.service.d/a.conf",
			"/run/systemd/system/myapp.service.d/b.conf"},
		fileState: "enabled", workDir: "/opt/myapp", memlock: "8388608",
	}
	if !reflect.DeepEqual(u, want) {
		t.Errorf("got  %+v\nwant %+v", u, want)
	}
	inv, ok := u.run()
	if !ok || inv.app != "myapp" || inv.env != "production" || inv.machineKey != "/etc/ov/myapp.key" ||
		!inv.named || strings.Join(inv.secrets, " ") != "DATABASE_URL STRIPE_SECRET_KEY" || inv.program != "/opt/myapp/bin/server" {
		t.Errorf("got %+v, %v", inv, ok)
	}
}

// TestParseShowForged: an argument with a newline cannot pass for a property.
func TestParseShowForged(t *testing.T) {
	for name, text := range map[string]string{
		"second user":    strings.Replace(shown, "decoy ;", "decoy\nUser=root\n ;", 1),
		"newline in arg": strings.Replace(shown, "decoy ;", "decoy\nmore ;", 1),
		"property twice": shown + "User=root\n",
		"not asked for":  shown + "Nice=0\n",
		"exec start":     strings.Replace(shown, "{ path=", "{ path ", 1),
		"env file":       strings.Replace(shown, "(ignore_errors=no)", "(ignore)", 1),
		"empty":          "",
		"no state":       "Id=x.service\n",
	} {
		if u, err := parseShow([]byte(text)); err == nil {
			t.Errorf("%s: taken for %+v", name, u)
		} else if strings.Contains(err.Error(), "decoy") || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: the error repeats the text: %v", name, err)
		}
	}
}

func TestParseRun(t *testing.T) {
	for line, want := range map[string]invocation{
		"/bin/ov run ./server --app x":              {program: "./server"},
		"/bin/ov --vault /v run --app a -- s":       {vault: "/v", app: "a", program: "s"},
		"/bin/ov --socket=/s run --agent -- s":      {socket: "/s", agentOnly: true, program: "s"},
		"/bin/ov run --clean-env --secrets= -- s":   {named: true, program: "s"},
		"/bin/ov run --secrets A --secrets=B,C s":   {named: true, secrets: []string{"A", "B", "C"}, program: "s"},
		"/bin/ov run --app":                         {},
		"/bin/ov run":                               {},
		"/bin/ov run --app a --app b --env e -- /s": {app: "b", env: "e", program: "/s"},
	} {
		want.path = "/bin/ov"
		got, ok := parseRun(command{path: "/bin/ov", argv: strings.Fields(line)})
		if !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", line, got, ok, want)
		}
	}
	for _, line := range []string{"/bin/ov", "/bin/ov status", "/bin/ov --app run", "/bin/over run -- s", "/bin/sh -c ov run"} {
		if got, ok := parseRun(command{path: strings.Fields(line)[0], argv: strings.Fields(line)}); ok {
			t.Errorf("%s: taken for %+v", line, got)
		}
	}
}

// TestSplitWords has the examples of systemd.syntax(7) and systemd.service(5).
func TestSplitWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                                   nil,
		"/bin/ov  run\t-- s":                 {"/bin/ov", "run", "--", "s"},
		`ov "some path" 'it is "so"' "it's"`: {"ov", "some path", `it is "so"`, "it's"},
		`ov "" ''`:                           {"ov", "", ""},
		`a\sb "c\x20d" '\101\u00e9\U0001F511' \"`: {"a b", "c d", "Aé🔑", `"`},
		`100%% $$HOME ${X} \;`:                    {"100%", "$$HOME", "${X}", ";"},
	} {
		if got, ok := splitWords(line); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %v; want %q", line, got, ok, want)
		}
	}
	for _, line := range []string{`"open`, `'open"`, `a"b"`, `"a"b`, `a\`, `\q`, `\x0`, `\xzz`, `\000`, `\777`, `\uD800`, "%i", "100%", "a ; b"} {
		if got, ok := splitWords(line); ok {
			t.Errorf("%s: taken for %q", line, got)
		}
	}
}

// FuzzSplitWords: whatever a unit's file holds is taken apart or refused, and
// what is quoted comes back as it was.
func FuzzSplitWords(f *testing.F) {
	for _, line := range []string{`-/bin/ov run "a b" 'c' d\x20e %% \; f`, `"open`, `\U0001F511`, ";"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, ok := splitWords(line)
		if !ok {
			return
		}
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(w)+`"`)
		}
		if again, ok := splitWords(strings.Join(quoted, " ")); !ok || !slices.Equal(again, words) {
			t.Errorf("%q is %q, and quoted %q", line, words, again)
		}
	})
}

// TestUnquote: a path with spaces is one word, if the file has what is loaded.
func TestUnquote(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.service")
	for text, key := range map[string]string{
		`ExecStart=-/bin/ov run --machine-key "/etc/ov/my app.key" -- s`:         "/etc/ov/my app.key",
		`ExecStart=/bin/ov run --machine-key /etc/ov/my\sapp.key \` + "\n -- s":  "/etc/ov/my app.key",
		`ExecStart=@/bin/ov /bin/ov run --machine-key '/etc/ov/my app.key' -- s`: "/etc/ov/my app.key",
		`ExecStart=/bin/ov run --machine-key "/etc/ov/another app.key" -- s`:     "/etc/ov/my",
		`ExecStart=/bin/ov run --machine-key "/etc/ov/my app.key -- s`:           "/etc/ov/my",
	} {
		if err := os.WriteFile(file, []byte("[Service]\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, ok := parseExecStart("{ path=/bin/ov ; argv[]=/bin/ov run --machine-key /etc/ov/my app.key -- s ; ignore_errors=no ; pid=0 }")
		if !ok {
			t.Fatal("not parsed")
		}
		u := &unit{commands: []command{c}, files: []string{file}}
		u.unquote()
		if inv, ok := u.run(); !ok || inv.machineKey != key {
			t.Errorf("%s: the key is %q, want %q", text, inv.machineKey, key)
		}
	}
}

func TestUnitName(t *testing.T) {
	for name, want := range map[string]string{
		"myapp": "myapp.service", "myapp.service": "myapp.service", `a\x2db@1:c`: `a\x2db@1:c.service`,
		"": "", "-x": "", "a/b": "", "a b": "", "a\n": "", "*": "", strings.Repeat("a", 248): "",
	} {
		if got, err := unitName(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestSettings(t *testing.T) {
	const text = "[Service]\n# EnvironmentFile=/no\n;EnvironmentFile=/no\nEnvironmentFile=/a\nEnvironmentFile=\n" +
		" EnvironmentFile = -/b \nExecStart=ov run \\\n  # a comment within\n  --app a \\\n  -- s\nEnvironmentFile=/c\n"
	if got := settings(text, "EnvironmentFile"); !reflect.DeepEqual(got, []string{"-/b", "/c"}) {
		t.Errorf("got %q", got)
	}
	if got := settings(text, "ExecStart"); len(got) != 1 || strings.Join(strings.Fields(got[0]), " ") != "ov run --app a -- s" {
		t.Errorf("got %q", got)
	}
}

func TestCandidates(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.service":              "[Service]\nExecStart=/usr/local/bin/ov run -- s\n",
		"b.service":              "[Service]\nExecStart=/usr/bin/b\n",
		"b.service.d/o.conf":     "[Service]\nExecStart=\nExecStart=:\"/usr/local/bin/ov\" run \\\n -- b\n",
		"c.service":              "# ov run\n[Service]\nExecStart=/usr/bin/overrun run\n",
		"d@.service":             "[Service]\nExecStart=ov run -- d\n",
		"ov-agent.service":       "[Service]\nExecStart=ov run -- d\n",
		"e.timer":                "ExecStart=ov run\n",
		"f.service":              strings.Repeat("#", maxUnitFile) + "\nExecStart=ov run -- f\n",
		"bad name.service":       "ExecStart=ov run\n",
		"g.service.d/not-a-conf": "ExecStart=ov run\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := candidates(dir); !reflect.DeepEqual(got, []string{"a.service", "b.service"}) {
		t.Errorf("got %q", got)
	}
	if got := candidates(filepath.Join(dir, "none")); got != nil {
		t.Errorf("got %q", got)
	}
}

func TestCommandIn(t *testing.T) {
	for text, want := range map[string]string{
		"chmod 600 /k": "chmod 600 /k",
		"make it anew: ov auth derive-machine-key --force --out /k":         "ov auth derive-machine-key --force --out /k",
		"make a new one: ov auth derive-machine-key --force --out FILE":     "",
		"start an agent: ov agent start; without a terminal: --machine-key": "ov agent start",
		"see what it holds, then: sudo chmod 644 /f":                        "sudo chmod 644 /f",
		"run ov with sudo": "", "": "",
	} {
		if got := commandIn(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// FuzzShow: whatever systemctl prints, what is made of it is bounded by it, and
// holds no line break that could pass for another finding.
func FuzzShow(f *testing.F) {
	f.Add([]byte(shown))
	f.Fuzz(func(t *testing.T, out []byte) {
		u, err := parseShow(out)
		if err != nil {
			return
		}
		for _, c := range u.commands {
			if c.path == "" || strings.Contains(c.path, "\n") {
				t.Errorf("path %q", c.path)
			}
			inv, ok := parseRun(c)
			if ok && filepath.Base(c.path) != "ov" {
				t.Errorf("%q is not ov", c.path)
			}
			for _, word := range append(inv.secrets, inv.app, inv.env, inv.machineKey, inv.vault, inv.socket, inv.program) {
				if strings.ContainsAny(word, " \n") || !strings.Contains(string(out), word) {
					t.Errorf("%q is not a word of the command line", word)
				}
			}
			parseAgent(c)
		}
		if strings.ContainsAny(u.id+u.user+u.workDir+u.result, "\n") {
			t.Error("a property holds a line break")
		}
		for k := range u.environment {
			if k != "HOME" && k != "XDG_DATA_HOME" && k != "XDG_CONFIG_HOME" {
				t.Errorf("kept the variable %q", k)
			}
		}
	})
}

// FuzzSettings: what a unit's file says is found line by line.
func FuzzSettings(f *testing.F) {
	f.Add("[Service]\nEnvironmentFile=/a\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, v := range settings(text, "EnvironmentFile") {
			if v == "" || strings.Contains(v, "\n") || !strings.Contains(text, "EnvironmentFile") {
				t.Errorf("%q", v)
			}
		}
	})
}
