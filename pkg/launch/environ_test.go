package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/names"
)

func secrets(pairs ...string) []Secret {
	var s []Secret
	for i := 0; i < len(pairs); i += 2 {
		s = append(s, Secret{pairs[i], []byte(pairs[i+1])})
	}
	return s
}

func TestEnviron(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		opts    Options
		secrets []Secret
		want    []string
	}{
		{"nothing", Options{}, nil, nil},
		{"inherited first, then secrets",
			Options{Inherit: []string{"A=1", "B=2"}}, secrets("Z", "26", "Y", "25"),
			[]string{"A=1", "B=2", "Z=26", "Y=25"}},
		{"a secret takes the place of a variable",
			Options{Inherit: []string{"A=1", "B=2", "A=3"}}, secrets("A", "secret"),
			[]string{"B=2", "A=secret"}},
		{"of duplicates the last",
			Options{Inherit: []string{"A=1", "B=2", "A=3"}}, nil,
			[]string{"B=2", "A=3"}},
		{"empty values and values with = stay",
			Options{Inherit: []string{"A=", "B=x=y", "C=="}}, secrets("D", "", "E", "k=v\n"),
			[]string{"A=", "B=x=y", "C==", "D=", "E=k=v\n"}},
		{"what getenv cannot find goes",
			Options{Inherit: []string{"", "NOEQUALS", "=C:", "A=\x00", "A\x00=", "B=2"}}, nil,
			[]string{"B=2"}},
		{"names that are odd but can be found stay",
			Options{Inherit: []string{"BASH_FUNC_f%%=() { :; }", "a.b=1", "_=/usr/bin/x"}}, nil,
			[]string{"BASH_FUNC_f%%=() { :; }", "a.b=1", "_=/usr/bin/x"}},
		{"ov's own variables go, those like them stay",
			Options{Inherit: []string{"OV_MACHINE_KEY=/k", "OV_=1", "OVEN=hot", "MY_OV_X=1", "ov_x=1"}}, nil,
			[]string{"OVEN=hot", "MY_OV_X=1", "ov_x=1"}},
		{"variables that are unsafe in a secret are inherited",
			Options{Inherit: []string{"PATH=/bin", "LD_LIBRARY_PATH=/opt/lib"}}, nil,
			[]string{"PATH=/bin", "LD_LIBRARY_PATH=/opt/lib"}},
		{"the key's path goes",
			Options{KeyPath: "/etc/ov/a.key", Inherit: []string{
				"KEY=/etc/ov/a.key", "KEY2=/etc//ov/../ov/a.key", "OTHER=/etc/ov/b.key", "DIR=/etc/ov", "TEXT=see /etc/ov/a.key"}}, nil,
			[]string{"OTHER=/etc/ov/b.key", "DIR=/etc/ov", "TEXT=see /etc/ov/a.key"}},
		{"the key's path goes, relative too",
			Options{KeyPath: "a.key", Inherit: []string{"KEY=a.key", "ABS=" + filepath.Join(dir, "a.key"), "NO=b.key", "E="}}, nil,
			[]string{"NO=b.key", "E="}},
		{"the credentials directory stays",
			Options{KeyPath: "/run/credentials/x.service/key", Inherit: []string{"CREDENTIALS_DIRECTORY=/run/credentials/x.service"}}, nil,
			[]string{"CREDENTIALS_DIRECTORY=/run/credentials/x.service"}},
		{"clean",
			Options{Clean: true, Inherit: []string{
				"PATH=/bin", "HOME=/h", "LC_TIME=C", "LCX=1", "NOTIFY_SOCKET=@n", "LISTEN_FDS=1", "LD_PRELOAD=x", "AWS_SECRET_ACCESS_KEY=k", "OV_X=1"}},
			secrets("A", "1"),
			[]string{"PATH=/bin", "HOME=/h", "LC_TIME=C", "NOTIFY_SOCKET=@n", "LISTEN_FDS=1", "A=1"}},
		{"unsafe names when allowed",
			Options{AllowUnsafeNames: true, Inherit: []string{"PATH=/bin"}}, secrets("PATH", "/opt/bin", "LD_PRELOAD", "x.so"),
			[]string{"PATH=/opt/bin", "LD_PRELOAD=x.so"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Environ(c.opts, c.secrets)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Wipe()
			if !slices.Equal(e.list, c.want) {
				t.Errorf("got %q\nwant %q", e.list, c.want)
			}
		})
	}
}

func TestEnvironRefuses(t *testing.T) {
	const value = "v4lue-that-no-error-may-show"
	for _, c := range []struct {
		name    string
		secrets []Secret
		text    string
		hint    string
	}{
		{"malformed names", secrets("A-B", value, "1A", value, "", value, "A=B", value, "A\x00", value),
			`not the name of an environment variable: "A-B", "1A", "", "A=B", "A\x00"`, ""},
		{"twice", secrets("A", value, "B", value, "A", value),
			"secrets asked for twice under one name: A", ""},
		{"unsafe, all of them", secrets("LD_PRELOAD", value, "OK", value, "PATH", value, "OV_SOCKET", value),
			"secrets with names that change how a program is loaded or run: LD_PRELOAD (dynamic linker), " +
				"PATH (where programs and their configuration are found), OV_SOCKET (ov itself)",
			"rename them, or, if that is what they are for, pass --allow-unsafe-names"},
		{"NUL", secrets("A", value+"\x00", "B", "\x00", "C", value),
			"an environment variable cannot hold a NUL byte, and these secrets do: A, B",
			"store it encoded, in base64 for example"},
		{"too long", secrets("A", strings.Repeat(value, maxEntry()/len(value)+1)),
			fmt.Sprintf("an environment variable takes at most %d bytes with its name, and these secrets take more: A", maxEntry()-1),
			"hand the program large values in a file"},
		{"several faults", secrets("A", "\x00", "B-", value),
			"not the name of an environment variable: \"B-\"\nan environment variable cannot hold a NUL byte, and these secrets do: A",
			"store it encoded, in base64 for example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Environ(Options{}, c.secrets)
			if e != nil || err == nil {
				t.Fatalf("accepted: %v, %v", e, err)
			}
			if err.Error() != c.text {
				t.Errorf("got  %s\nwant %s", err, c.text)
			}
			if got := hint.Of(err); got != c.hint {
				t.Errorf("hint %q, want %q", got, c.hint)
			}
			if strings.Contains(err.Error(), value) {
				t.Error("the error shows a value")
			}
			if ExitCode(err) != ExitOwn {
				t.Errorf("exit code %d", ExitCode(err))
			}
		})
	}

	_, err := Environ(Options{}, secrets("PATH", "/", "IFS", "/"))
	if u, ok := errors.AsType[*UnsafeError](err); !ok || !slices.Equal(u.Names, []string{"PATH", "IFS"}) {
		t.Errorf("not an *UnsafeError with both names: %v", err)
	}

	// More than any kernel takes is refused before anything is built.
	var many []Secret
	for i := range maxTotal/60000 + 1 {
		many = append(many, Secret{fmt.Sprintf("S%d", i), make([]byte, 60000)})
		for j := range many[i].Value {
			many[i].Value[j] = 'x'
		}
	}
	if _, err := Environ(Options{}, many); ExitCode(err) != ExitCannotExec {
		t.Errorf("%d secrets of 60,000 bytes: %v", len(many), err)
	}
}

// TestEnvLocked shows that the values lie in locked memory, in more than one
// block when they need to, and that Wipe leaves nothing of them.
func TestEnvLocked(t *testing.T) {
	var s []Secret
	for i := range 40 {
		s = append(s, Secret{fmt.Sprintf("S%d", i), []byte(strings.Repeat("x", 60000))})
	}
	e, err := Environ(Options{Inherit: []string{"A=1"}}, s)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(e.blocks); n < 2 || n > 4 {
		t.Errorf("2.4 MB in %d blocks", n)
	}
	for i, b := range e.blocks {
		if b.locked == nil {
			t.Errorf("block %d of %d bytes is not locked", i, len(b.bytes))
		}
	}
	if len(e.list) != 41 || e.list[40] != "S39="+string(s[39].Value) {
		t.Error("the last secret is not as given")
	}

	// A block that could not be locked is wiped as well.
	plain := block{nil, []byte("B=secret")}
	e.blocks = append(e.blocks, plain)
	e.Wipe()
	e.Wipe()
	if string(plain.bytes) != strings.Repeat("\x00", 8) {
		t.Errorf("left in ordinary memory: %q", plain.bytes)
	}
	if err := Exec([]string{"true"}, e); ExitCode(err) != ExitOwn {
		t.Errorf("Exec with a wiped environment: %v", err)
	}
	e, err = Environ(Options{}, s[:1])
	if err != nil {
		t.Fatal(err)
	}
	if err := Exec([]string{"no-such-command"}, e); ExitCode(err) != ExitNotFound || e.list != nil || e.blocks != nil {
		t.Errorf("a failed Exec leaves %v: %v", e, err)
	}
	(*Env)(nil).Wipe()
	if err := Exec([]string{"true"}, nil); ExitCode(err) != ExitOwn {
		t.Errorf("Exec without an environment: %v", err)
	}
}

// A print, however it is made, shows names at most.
func TestPrintShowsNoValue(t *testing.T) {
	s := secrets("NAME", "hunter2")
	e, err := Environ(Options{Inherit: []string{"A=inherited7"}}, s)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Wipe()
	wrapped := struct {
		S []Secret
		E *Env
	}{s, e}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{s, s[0], &s[0], e, wrapped} {
			got := fmt.Sprintf(verb, v)
			for _, bad := range []string{"hunter2", "inherited7", "68756e74", "104 117", "0x68"} {
				if strings.Contains(got, bad) {
					t.Errorf("%s of %T shows %s", verb, v, got)
				}
			}
		}
	}
	for _, v := range []any{s, e, wrapped} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "hunter2") || strings.Contains(string(b), "aHVudGVyMg") {
			t.Errorf("JSON of %T shows %s", v, b)
		}
	}
}

func TestUnsafeNames(t *testing.T) {
	listed := map[string]bool{}
	for _, group := range unsafeNames {
		for name := range strings.FieldsSeq(group.names) {
			plain := strings.TrimSuffix(name, "*")
			if !names.ValidName(plain) {
				t.Errorf("%s can be no secret's name", name)
			}
			if listed[name] {
				t.Errorf("%s is listed twice", name)
			}
			listed[name] = true
			if why, ok := Unsafe(plain); !ok || why != group.why {
				t.Errorf("Unsafe(%s) = %q, %v", plain, why, ok)
			}
			if plain != name {
				if _, ok := Unsafe(plain + "ANYTHING"); !ok {
					t.Errorf("%sANYTHING is not found unsafe", plain)
				}
			}
		}
	}
	// What people do keep in .env files.
	for _, name := range []string{
		"DATABASE_URL", "STRIPE_SECRET_KEY", "NODE_ENV", "PYTHONUNBUFFERED", "GIT_TOKEN", "HTTP_PROXY", "USER",
		"RUST_LOG", "GOMAXPROCS", "BUNDLE_GITHUB__COM", "CARGO_REGISTRY_TOKEN", "LDAP_URL", "LD", "PATHS", "MY_PATH",
		"APP_ENV", "OVERRIDE", "path", "ld_preload", "",
	} {
		if why, ok := Unsafe(name); ok {
			t.Errorf("%s is found unsafe: %s", name, why)
		}
	}
}

// What a service needs to talk to systemd survives a clean environment, and
// what it does not name is gone.
func TestKept(t *testing.T) {
	for _, name := range []string{
		"PATH", "HOME", "LC_ALL", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID",
		"LISTEN_FDNAMES", "INVOCATION_ID", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY",
	} {
		if !Kept(name) {
			t.Errorf("%s is not kept", name)
		}
	}
	for _, name := range []string{"", "LD_PRELOAD", "OV_SOCKET", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "PATHS", "BASH_ENV"} {
		if Kept(name) {
			t.Errorf("%s is kept", name)
		}
	}
}

// FuzzEnviron holds Environ against its promises. Lines of inherit are
// entries; lines of given are NAME=value.
func FuzzEnviron(f *testing.F) {
	f.Fuzz(func(t *testing.T, inherit, given, key string, clean, allow bool) {
		opts := Options{Inherit: strings.Split(inherit, "\n"), Clean: clean, AllowUnsafeNames: allow, KeyPath: key}
		var s []Secret
		for line := range strings.SplitSeq(given, "\n") {
			name, value, _ := strings.Cut(line, "=")
			s = append(s, Secret{name, []byte(value)})
		}
		faulty := false
		want := map[string]string{}
		for _, secret := range s {
			_, bad := Unsafe(secret.Name)
			_, twice := want[secret.Name]
			faulty = faulty || !names.ValidName(secret.Name) || twice || bad && !allow ||
				strings.ContainsRune(string(secret.Value), 0) || entryLen(secret) > maxEntry()
			want[secret.Name] = string(secret.Value)
		}
		e, err := Environ(opts, s)
		if (err != nil) != faulty {
			t.Fatalf("faulty is %v, the error %v", faulty, err)
		}
		if err != nil {
			return
		}
		defer e.Wipe()
		seen := map[string]bool{}
		for _, entry := range e.list {
			name, value, ok := strings.Cut(entry, "=")
			if !ok || name == "" || seen[name] || strings.ContainsRune(entry, 0) {
				t.Fatalf("entry %q", entry)
			}
			seen[name] = true
			if v, ok := want[name]; ok {
				if v != value {
					t.Fatalf("secret %s is %q, want %q", name, value, v)
				}
				continue
			}
			if strings.HasPrefix(name, "OV_") || clean && !Kept(name) || key != "" && value == key {
				t.Fatalf("%q is passed on", entry)
			}
			if !slices.Contains(opts.Inherit, entry) {
				t.Fatalf("%q was made up", entry)
			}
		}
		for name := range want {
			if !seen[name] {
				t.Fatalf("secret %s is missing", name)
			}
		}
	})
}

func BenchmarkEnviron(b *testing.B) {
	inherit := os.Environ()
	s := secrets("DATABASE_URL", "postgres://user:password@localhost/app", "STRIPE_SECRET_KEY", strings.Repeat("k", 40))
	b.ReportAllocs()
	for b.Loop() {
		e, err := Environ(Options{Inherit: inherit}, s)
		if err != nil {
			b.Fatal(err)
		}
		e.Wipe()
	}
}
