package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// serviceUID is the account of the service where the tests run as root.
const serviceUID = 54321

// a site is a service on a machine: all of it is real but for systemd, which
// answers from units, and the passwd file.
type site struct {
	t     *testing.T
	dir   string
	sys   *System
	opt   Options
	units map[string]*fakeUnit
	log   string // what the journal has of the service

	owner      user.User
	key, vault string // paths
	session    *vault.Session
}

// fakeUnit is what systemd would have loaded.
type fakeUnit struct {
	props map[string]string // over those of a service that runs
	exec  string            // argv of ExecStart=
	env   []string          // EnvironmentFiles
}

func (u *fakeUnit) show(name string) []byte {
	props := map[string]string{"Id": name, "LoadState": "loaded", "ActiveState": "active", "SubState": "running",
		"Result": "success", "NeedDaemonReload": "no", "ExecMainStatus": "0", "DynamicUser": "no", "UnitFileState": "enabled",
		"LimitMEMLOCKSoft": "8388608"}
	if u == nil {
		props["LoadState"], props["ActiveState"], props["SubState"] = "not-found", "inactive", "dead"
	} else {
		for k, v := range u.props {
			props[k] = v
		}
	}
	var b bytes.Buffer
	for k, v := range props {
		fmt.Fprintf(&b, "%s=%s\n", k, v)
	}
	if u != nil && u.exec != "" {
		path, _, _ := strings.Cut(u.exec, " ")
		fmt.Fprintf(&b, "ExecStart={ path=%s ; argv[]=%s ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n", path, u.exec)
	}
	if u != nil {
		for _, f := range u.env {
			fmt.Fprintf(&b, "EnvironmentFiles=%s\n", f)
		}
	}
	return b.Bytes()
}

var secretValue = []byte("the-value-nobody-may-see")

// newSite makes a vault with two secrets in myapp/production, a machine key, and
// myapp.service that uses them. Nothing is wrong with it.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), units: map[string]*fakeUnit{}}
	must(t, os.Chmod(s.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(s.dir), 0o755))
	me, err := user.Current()
	must(t, err)
	s.owner = *me
	if os.Geteuid() == 0 {
		s.owner = user.User{Username: strconv.Itoa(serviceUID), Uid: strconv.Itoa(serviceUID), Gid: "54321"}
	}
	s.owner.HomeDir = filepath.Join(s.dir, "home")
	t.Setenv("HOME", s.owner.HomeDir)
	t.Setenv("XDG_DATA_HOME", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	s.key = filepath.Join(s.dir, "etc", "myapp.key")
	s.vault = filepath.Join(s.owner.HomeDir, ".local/share/ov/vault.db")
	for _, dir := range []string{"etc", "units", "home", "opt/myapp/bin"} {
		must(t, os.MkdirAll(filepath.Join(s.dir, dir), 0o755))
	}
	s.file("opt/myapp/bin/server", "#!/bin/sh\n")
	ovPath := s.file("bin/ov", "#!/bin/sh\n")

	file, key, err := template()
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(s.vault), 0o700))
	must(t, os.WriteFile(s.vault, file, 0o600))
	clone, err := key.Clone()
	must(t, err)
	s.session, err = vault.New(bolt.New(s.vault)).UnlockKey(t.Context(), clone)
	must(t, err)
	t.Cleanup(s.session.Destroy)
	s.put(vault.Ref{App: "myapp", Env: "production"}, "DATABASE_URL", "STRIPE_SECRET_KEY")
	s.derive(vault.Ref{})
	s.own(s.owner.HomeDir)

	s.sys = &System{
		Systemctl: func(_ context.Context, args ...string) ([]byte, error) {
			if args[0] != "show" {
				return nil, errors.New("not asked for")
			}
			name := args[len(args)-1]
			return s.units[name].show(name), nil
		},
		Journalctl: func(context.Context, ...string) ([]byte, error) { return []byte(s.log), nil },
		User: func(name string) (*user.User, error) {
			switch name {
			case s.owner.Username, s.owner.Uid:
				u := s.owner
				return &u, nil
			case "root", "0":
				return &user.User{Username: "root", Uid: "0", HomeDir: "/nonexistent"}, nil
			}
			return nil, user.UnknownUserError(name)
		},
		Locate:     func() (peer.Target, error) { return peer.Target{}, &peer.NotRunning{Source: peer.FromRuntimeDir} },
		Rendezvous: filepath.Join(s.dir, "etc-ov", "agent.socket"),
		UnitDir:    filepath.Join(s.dir, "units"),
		UID:        os.Geteuid(),
	}
	s.unit(ovPath + " run --app myapp --env production --machine-key " + s.key +
		" --secrets DATABASE_URL,STRIPE_SECRET_KEY -- " + filepath.Join(s.dir, "opt/myapp/bin/server"))
	return s
}

const password = "correct horse"

// template makes the vault that each site starts from, and an account's machine
// key to it: Argon2id takes its time.
func template() ([]byte, *kek.Locked, error) {
	t := made()
	return t.file, t.key, t.err
}

var made = sync.OnceValue(func() (t struct {
	file []byte
	key  *kek.Locked
	err  error
}) {
	t.file, t.key, t.err = newVault(context.Background())
	return t
})

func newVault(ctx context.Context) ([]byte, *kek.Locked, error) {
	dir, err := os.MkdirTemp("", "ov-doctor-")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	secret, err := kek.LockedFrom([]byte(password))
	if err != nil {
		return nil, nil, err
	}
	defer secret.Destroy()
	st := bolt.New(filepath.Join(dir, "v.db"))
	v := vault.New(st)
	if err := v.Init(ctx, st.Create, secret); err != nil {
		return nil, nil, err
	}
	s, err := v.Unlock(ctx, secret)
	if err != nil {
		return nil, nil, err
	}
	defer s.Destroy()
	key, _, err := s.DeriveMachineKey(ctx, vault.Ref{}, "")
	if err != nil {
		return nil, nil, err
	}
	file, err := os.ReadFile(st.Path())
	return file, key, err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func locked(t *testing.T, text string) *kek.Locked {
	t.Helper()
	l, err := kek.LockedFrom([]byte(text))
	must(t, err)
	t.Cleanup(l.Destroy)
	return l
}

// unit makes myapp.service, on disk and loaded.
func (s *site) unit(exec string) *fakeUnit {
	s.t.Helper()
	text := "[Service]\nUser=" + s.owner.Username + "\nExecStart=" + strings.ReplaceAll(exec, " --", " \\\n  --") + "\n"
	path := s.file("units/myapp.service", text)
	u := &fakeUnit{exec: exec, props: map[string]string{"User": s.owner.Username, "FragmentPath": path}}
	s.units["myapp.service"] = u
	return u
}

func (s *site) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	must(s.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(s.t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// own gives a tree to the service's account.
func (s *site) own(root string) {
	s.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	must(s.t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, serviceUID, serviceUID))
	}))
}

func (s *site) put(ref vault.Ref, names ...string) {
	s.t.Helper()
	var list []vault.Put
	for _, name := range names {
		list = append(list, vault.Put{Name: name, Value: secretValue})
	}
	_, err := s.session.Put(s.t.Context(), ref, list, vault.PutOptions{Create: true})
	must(s.t, err)
}

// derive writes the machine key anew.
func (s *site) derive(ref vault.Ref) {
	s.t.Helper()
	key, _, err := s.session.DeriveMachineKey(s.t.Context(), ref, "web 1")
	must(s.t, err)
	defer key.Destroy()
	must(s.t, os.RemoveAll(s.key))
	must(s.t, os.WriteFile(s.key, key.Bytes(), 0o600))
	s.own(s.key)
}

func (s *site) run() []Finding {
	s.t.Helper()
	list, err := Run(s.t.Context(), s.sys, s.opt)
	must(s.t, err)
	for _, f := range list {
		if strings.Contains(fmt.Sprint(f), string(secretValue)) || strings.Contains(fmt.Sprint(f), password) {
			s.t.Errorf("a secret is shown: %+v", f)
		}
		switch f.State {
		case OK:
			if f.Detail == "" || f.Problem != "" || f.Fix != "" {
				s.t.Errorf("what is well has a problem or says nothing: %+v", f)
			}
		case Fail, Note:
			if f.Problem == "" || f.Fix == "" || f.Detail != "" {
				s.t.Errorf("no problem or no fix: %+v", f)
			}
		default:
			s.t.Errorf("state %q", f.State)
		}
		if f.Check == "" || f.Subject == "" {
			s.t.Errorf("about nothing: %+v", f)
		}
	}
	return list
}

func faults(list []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(list), func(f Finding) bool { return f.State != Fail })
}

// sound asserts that nothing is wrong.
func (s *site) sound() {
	s.t.Helper()
	if bad := faults(s.run()); len(bad) > 0 {
		s.t.Fatalf("nothing is wrong, and found was %+v", bad)
	}
}

// one asserts that there is this fault and no other, and returns it.
func (s *site) one(check, problem string) Finding {
	s.t.Helper()
	bad := faults(s.run())
	if len(bad) != 1 || bad[0].Check != check || !strings.Contains(bad[0].Problem, problem) {
		s.t.Fatalf("want one fault of %s with %q, got %+v", check, problem, bad)
	}
	return bad[0]
}

// mend runs the command of a fault. The files are the caller's own here, and sudo
// would not know what to do.
func (s *site) mend(f Finding) {
	s.t.Helper()
	fix := strings.ReplaceAll(f.Fix, "sudo ", "")
	fix = strings.Split(fix, " && systemctl ")[0] // not this machine's
	// Nor need all of its disk be searched.
	fix = strings.Replace(fix, `"$(stat -c %m `+s.key+`)"`, s.dir, 1)
	out, err := exec.Command("bash", "-c", fix).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", fix, err, out)
	}
}

func TestSound(t *testing.T) {
	s := newSite(t)
	for _, o := range []Options{
		{}, {Unit: "myapp"}, {Unit: "myapp.service", App: "myapp", Env: "production", MachineKey: s.key, User: s.owner.Username},
		{App: "myapp"}, {MachineKey: s.key, App: "myapp", Env: "production", User: s.owner.Username},
	} {
		s.opt = o
		s.sound()
		if list := s.run(); !slices.ContainsFunc(list, func(f Finding) bool { return f.Check == "context" && f.State == OK }) {
			t.Errorf("%+v: the context was not looked at: %+v", o, list)
		}
	}
	s.sys.Systemctl, s.sys.Journalctl = nil, nil // as on macOS
	s.opt = Options{MachineKey: s.key, App: "myapp", Env: "production", User: s.owner.Username}
	s.sound()
}

// TestKeyFile: each way in which a key file cannot be used has its message and a
// command, and that command mends it.
func TestKeyFile(t *testing.T) {
	for _, c := range []struct {
		name, problem string
		root          bool // only root can bring it about
		derived       bool // the command makes a new key, which needs a password
		fault         func(s *site) error
	}{
		{name: "mode", problem: "has mode 0644, it must be 0600", fault: func(s *site) error { return os.Chmod(s.key, 0o644) }},
		{name: "owner", problem: "is owned by root, not by ", root: true, fault: func(s *site) error { return os.Lchown(s.key, 0, 0) }},
		{name: "symlink", problem: "is a symbolic link", fault: func(s *site) error {
			return errors.Join(os.Rename(s.key, filepath.Join(s.dir, "etc", "real key")), os.Symlink("real key", s.key))
		}},
		{name: "hard link", problem: "has 2 hard links", fault: func(s *site) error { return os.Link(s.key, s.key+".other") }},
		{name: "missing", problem: "no such file", derived: true, fault: func(s *site) error { return os.Remove(s.key) }},
		{name: "31 bytes", problem: "has 31 bytes", derived: true, fault: func(s *site) error { return os.Truncate(s.key, 31) }},
		{name: "directory", problem: "is a directory", derived: true, fault: func(s *site) error {
			return errors.Join(os.Remove(s.key), os.Mkdir(s.key, 0o700))
		}},
		{name: "dangling link", problem: "is a symbolic link", derived: true, fault: func(s *site) error {
			return errors.Join(os.Remove(s.key), os.Symlink("gone", s.key))
		}},
		{name: "no directory", problem: "no such file", derived: true, fault: func(s *site) error { return os.RemoveAll(filepath.Dir(s.key)) }},
		{name: "directory that others write", problem: "that others can write", fault: func(s *site) error { return os.Chmod(filepath.Dir(s.key), 0o777) }},
		{name: "closed directory", problem: "may not look into", root: true, fault: func(s *site) error { return os.Chmod(filepath.Dir(s.key), 0o700) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			s := newSite(t)
			must(t, c.fault(s))
			f := s.one("key", c.problem)
			if c.derived {
				derive := "ov auth derive-machine-key --force --out " + s.key
				if !strings.HasSuffix(f.Fix, derive) {
					t.Fatalf("the command is %q, it should end in %q", f.Fix, derive)
				}
				before := strings.TrimSuffix(strings.TrimSuffix(f.Fix, derive), "sudo -u "+s.owner.Username+" -H ")
				if before = strings.TrimSuffix(before, " && "); before != "" {
					s.mend(Finding{Fix: before})
				}
				// What ov auth derive-machine-key does, as the account.
				s.derive(vault.Ref{})
			} else {
				s.mend(f)
			}
			s.sound()
		})
	}
}

func TestKeyRefused(t *testing.T) {
	t.Run("dead", func(t *testing.T) {
		s := newSite(t)
		s.derive(vault.Ref{App: "myapp", Env: "production"})
		s.sound()
		must(t, s.session.Vault().RotateKey(t.Context(), locked(t, password)))
		f := s.one("key", "was made before the key rotation of ")
		if want := "ov auth derive-machine-key --force --out " + s.key + " --app myapp --env production --label 'web 1'"; !strings.HasSuffix(f.Fix, want) {
			t.Errorf("the command is %q, not %q", f.Fix, want)
		}
		if strings.Contains(f.Fix, "install") {
			t.Errorf("a file that is in order is made anew: %s", f.Fix)
		}
	})
	t.Run("another vault's", func(t *testing.T) {
		s := newSite(t)
		must(t, os.WriteFile(s.key, bytes.Repeat([]byte{7}, machinekey.Size), 0o600))
		s.one("key", "key was not made for this vault, or was revoked: "+s.vault)
	})
	t.Run("scope", func(t *testing.T) {
		s := newSite(t)
		s.put(vault.Ref{App: "other", Env: "production"}, "A")
		s.derive(vault.Ref{App: "other"})
		f := s.one("context", "the key is for app other, not for myapp/production")
		if !strings.HasSuffix(f.Fix, " --app myapp --env production") {
			t.Errorf("the command is %q", f.Fix)
		}
	})
}

func TestVaultFile(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		s := newSite(t)
		must(t, os.Remove(s.vault))
		if f := s.one("vault", "has no vault at "+s.vault); !strings.HasSuffix(f.Fix, "ov auth init") {
			t.Errorf("the command is %q", f.Fix)
		}
	})
	t.Run("mode", func(t *testing.T) {
		s := newSite(t)
		must(t, os.Chmod(s.vault, 0o662))
		s.mend(s.one("vault", "can be written by others"))
		s.sound()
	})
	t.Run("root's", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		s := newSite(t)
		must(t, os.Chown(s.vault, 0, 0))
		f := s.one("vault", "is root's, and "+s.owner.Username+" cannot read it")
		f.Fix = strings.Replace(f.Fix, ": ", " ", 1) // the account has no login group here
		s.mend(f)
		s.sound()
	})
	t.Run("damaged", func(t *testing.T) {
		s := newSite(t)
		must(t, os.WriteFile(s.vault, []byte("not a vault at all"), 0o600))
		s.one("vault", s.vault)
	})
	t.Run("another's", func(t *testing.T) {
		s := newSite(t)
		moved := filepath.Join(s.dir, "moved.db")
		must(t, os.Rename(s.vault, moved))
		path := filepath.Join(s.owner.HomeDir, ".config/ov/config.toml")
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, fmt.Appendf(nil, "[vault]\npath = %q\n", moved), 0o600))
		s.own(s.owner.HomeDir)
		s.sound()
	})
}

func TestContext(t *testing.T) {
	const right = " --app myapp --env production "
	for _, c := range []struct {
		name, unit, problem string
		opt                 Options
		also                func(s *site)
	}{
		{name: "no such env", unit: " --app myapp --env prod ", problem: "env myapp/prod: not found; myapp/production has what is asked for"},
		{name: "no such app", unit: " --app my-app --env production ", problem: "app my-app: not found; myapp/production has"},
		{name: "another env", unit: " --app myapp --env staging ", problem: "myapp/staging has no DATABASE_URL, STRIPE_SECRET_KEY; myapp/production has all",
			also: func(s *site) { s.put(vault.Ref{App: "myapp", Env: "staging"}, "OTHER") }},
		{name: "not as the flag has it", unit: " --app myapp --env staging ", opt: Options{Unit: "myapp", Env: "production"},
			problem: "the unit says --env staging, and not production"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			if c.also != nil {
				c.also(s)
			}
			s.opt = c.opt
			was := s.units["myapp.service"].exec
			s.unit(strings.Replace(was, right, c.unit, 1))
			s.mend(s.one("context", c.problem))
			if got := readText(s.units["myapp.service"].props["FragmentPath"]); !strings.Contains(got, "--app myapp") || !strings.Contains(got, "--env production") {
				t.Errorf("the unit's file is now\n%s", got)
			}
			s.unit(was) // what daemon-reload does
			s.sound()
		})
	}
	t.Run("missing", func(t *testing.T) {
		s := newSite(t)
		s.unit(strings.Replace(s.units["myapp.service"].exec, "STRIPE_SECRET_KEY", "STRIPE_SECRET,SMTP", 1))
		f := s.one("context", "myapp/production has no STRIPE_SECRET, SMTP (did you mean STRIPE_SECRET_KEY for STRIPE_SECRET?)")
		if !strings.Contains(f.Fix, "ov secret set SMTP --app myapp --env production") {
			t.Errorf("the command is %q", f.Fix)
		}
		env := s.file("opt/myapp/.env.production.bak", "SMTP=x\nSTRIPE_SECRET=y\n")
		f = s.one("context", env+" has")
		if !strings.HasSuffix(f.Fix, "ov secret import "+env+" --skip-existing --app myapp --env production") {
			t.Errorf("the command is %q", f.Fix)
		}
	})
	t.Run("empty", func(t *testing.T) {
		s := newSite(t)
		must(t, s.session.CreateEnv(t.Context(), vault.Ref{App: "myapp", Env: "empty"}))
		exec := strings.Replace(s.units["myapp.service"].exec, "--env production", "--env empty", 1)
		s.unit(strings.Replace(exec, " --secrets DATABASE_URL,STRIPE_SECRET_KEY", "", 1))
		s.one("context", "myapp/empty holds no secrets")
	})
	t.Run("comment", func(t *testing.T) {
		// A text that is there twice is not changed by a line to paste.
		s := newSite(t)
		u := s.unit(strings.Replace(s.units["myapp.service"].exec, "production", "prod", 1))
		path := u.props["FragmentPath"]
		s.file("units/myapp.service", "# once --env prod was right\n"+readText(path))
		if f := s.one("context", "not found"); !strings.Contains(f.Fix, "systemctl edit --full myapp.service") {
			t.Errorf("the command is %q", f.Fix)
		}
	})
}

func TestReload(t *testing.T) {
	s := newSite(t)
	gone := filepath.Join(s.dir, "opt/myapp/.env.production")
	u := s.units["myapp.service"]
	u.exec = filepath.Join(s.dir, "opt/myapp/bin/server") // loaded is what was before the guide
	u.env = []string{gone + " (ignore_errors=no)"}
	u.props["NeedDaemonReload"], u.props["ActiveState"], u.props["SubState"], u.props["Result"] = "yes", "failed", "failed", "resources"
	s.opt = Options{Unit: "myapp", App: "myapp", Env: "production", MachineKey: s.key}
	bad := faults(s.run())
	if len(bad) != 3 || bad[0].Check != "reload" || bad[1].Check != "env-file" || bad[2].Check != "service" {
		t.Fatalf("got %+v", bad)
	}
	if !strings.Contains(bad[0].Problem, "still uses what it loaded before, with EnvironmentFile="+gone) || !strings.Contains(bad[0].Fix, "systemctl daemon-reload && ") {
		t.Errorf("got %+v", bad[0])
	}
	if bad[1].Fix != bad[0].Fix {
		t.Errorf("the line is gone from the file, and yet: %s", bad[1].Fix)
	}
}

func TestEnvFile(t *testing.T) {
	t.Run("needed and gone", func(t *testing.T) {
		s := newSite(t)
		gone := filepath.Join(s.dir, "opt/myapp/.env.production")
		u := s.units["myapp.service"]
		u.env = []string{gone + " (ignore_errors=no)"}
		path := u.props["FragmentPath"]
		s.file("units/myapp.service", readText(path)+"EnvironmentFile="+gone+"\n")
		s.mend(s.one("env-file", "needs EnvironmentFile="+gone+", which does not exist"))
		if got := settings(readText(path), "EnvironmentFile"); got != nil {
			t.Errorf("the unit's file still has EnvironmentFile=%q", got)
		}
		u.env = nil
		s.sound()
	})
	t.Run("retired too early", func(t *testing.T) {
		s := newSite(t)
		bak := s.file("opt/myapp/.env.production.bak", "DATABASE_URL=the-value-nobody-may-see\nLOG_LEVEL='the-value-nobody-may-see'\n")
		// While the service runs, it is only worth knowing.
		s.sound()
		u := s.units["myapp.service"]
		u.props["ActiveState"], u.props["SubState"], u.props["Result"], u.props["ExecMainStatus"] = "failed", "failed", "exit-code", "3"
		u.props["ExecMainStatus"] = "125" // ov's own, before the program could miss anything
		s.one("service", "ov itself failed")
		u.props["ExecMainStatus"] = "3"
		bad := faults(s.run())
		if len(bad) != 2 || bad[0].Check != "env-file" || bad[0].Problem != bak+" has LOG_LEVEL, which myapp/production has not" {
			t.Fatalf("got %+v", bad)
		}
		f := bad[0]
		if !strings.Contains(f.Fix, "ov secret import "+bak+" --skip-existing --app myapp --env production && ") {
			t.Errorf("the command is %q", f.Fix)
		}
		// The rest of the command puts the name into --secrets.
		_, f.Fix, _ = strings.Cut(f.Fix, " && ")
		s.mend(f)
		if got := readText(u.props["FragmentPath"]); !strings.Contains(got, "--secrets DATABASE_URL,STRIPE_SECRET_KEY,LOG_LEVEL ") {
			t.Errorf("the unit's file is now\n%s", got)
		}
	})
	t.Run("still there", func(t *testing.T) {
		s := newSite(t)
		file := s.file("opt/myapp/.env.production", "DATABASE_URL=x\n")
		s.units["myapp.service"].env = []string{file + " (ignore_errors=no)"}
		s.sound()
		if !slices.ContainsFunc(s.run(), func(f Finding) bool { return f.State == Note && strings.Contains(f.Problem, "in plaintext too") }) {
			t.Error("nothing is said of the plaintext")
		}
	})
	t.Run("not a .env file", func(t *testing.T) {
		s := newSite(t)
		s.file("opt/myapp/.env", "the-value-nobody-may-see\n")
		must(t, os.Mkdir(filepath.Join(s.dir, "opt/myapp/.env.production"), 0o755))
		s.sound() // and shows no value
	})
}

func TestServiceState(t *testing.T) {
	s := newSite(t)
	u := s.units["myapp.service"]
	u.props["InvocationID"] = strings.Repeat("0a", 16)
	u.props["ActiveState"], u.props["SubState"], u.props["Result"] = "failed", "failed", "exit-code"
	s.log = "server: password=the-value-nobody-may-see\nov: machine key /k: has mode\x1b[2J 0644\nserver: the-value-nobody-may-see\n"
	u.props["ExecMainStatus"] = "125"
	f := s.one("service", "ov itself failed (125); the journal has: ov: machine key /k: has mode\uFFFD[2J 0644")
	if !strings.Contains(f.Fix, "systemctl restart myapp.service") {
		t.Errorf("the command is %q", f.Fix)
	}
	s.log = ""
	u.props["ExecMainStatus"] = "3"
	if f := s.one("service", "its exit code was 3"); !strings.HasPrefix(f.Fix, "journalctl -u myapp.service") {
		t.Errorf("the command is %q", f.Fix)
	}
	u.props["ActiveState"], u.props["SubState"], u.props["Result"] = "inactive", "dead", "success"
	s.sound() // somebody stopped it

	u.props["ActiveState"], u.props["SubState"] = "active", "running"
	u.props["LimitMEMLOCKSoft"] = "4096"
	s.one("memory", "4096 bytes")
	u.props["LimitMEMLOCKSoft"] = "infinity"
	s.unit(strings.Replace(u.exec, "/bin/ov ", "/sbin/ov ", 1))
	s.one("service", "/sbin/ov, which does not exist")
	s.unit(filepath.Join(s.dir, "opt/myapp/bin/server"))
	s.opt.Unit = "myapp"
	s.one("service", "does not start with ov run")
	delete(s.units, "myapp.service")
	s.one("service", "systemd knows no such unit")
	s.units["myapp.service"] = &fakeUnit{props: map[string]string{"LoadState": "masked"}}
	s.one("service", "is masked")
}

// TestNoKey: at boot nobody is there to type a password.
func TestNoKey(t *testing.T) {
	s := newSite(t)
	s.unit(strings.Replace(s.units["myapp.service"].exec, " --machine-key "+s.key, "", 1))
	s.one("key", "it has no --machine-key and there is no unlocked agent")
}

func TestCredential(t *testing.T) {
	s := newSite(t)
	was := s.units["myapp.service"].exec
	for _, path := range []string{"/run/credentials/myapp.service/ov.key", "${CREDENTIALS_DIRECTORY}/ov.key"} {
		u := s.unit(strings.Replace(was, s.key, path, 1))
		s.one("key", "the unit has no LoadCredential=ov.key:FILE")
		text := readText(u.props["FragmentPath"])
		s.file("units/myapp.service", text+"LoadCredential=ov.key:"+s.key+"\n")
		s.sound()
		s.file("units/myapp.service", text+"LoadCredential=ov.key:"+s.key+".gone\n")
		s.one("key", "the credential ov.key cannot be loaded")
	}
}

func TestAgent(t *testing.T) {
	s := newSite(t)
	socket := filepath.Join(s.dir, "r", "a.sock")
	if len(socket) > peer.MaxSocketPath {
		t.Skip("the path of the temporary directory is too long for a socket")
	}
	must(t, os.Mkdir(filepath.Dir(socket), 0o700))
	l, err := peer.Listen(socket)
	must(t, err)
	srv := agent.NewServer(agent.Config{Vault: s.session.Vault(), VaultPath: s.vault, Version: "v1", Log: slog.New(slog.DiscardHandler)})
	g := srv.GRPC()
	go srv.Run(t.Context())
	go func() {
		_ = g.Serve(peer.Limit(l, peer.OwnOrRoot(), peer.DefaultLimits(), func(*peer.Info, error) {}))
	}()
	t.Cleanup(g.Stop)
	s.sys.Locate = func() (peer.Target, error) { return peer.Locate(peer.Options{Socket: socket}) }
	s.opt.Version = "v1"

	// The agent's own unit, as ov agent install makes it.
	unitFile := s.file("units/ov-agent.service", "")
	au := &fakeUnit{exec: "/usr/local/bin/ov-agent --foreground --socket " + socket + " --vault " + s.vault + " --machine-key " + s.key + " --app myapp --env production",
		props: map[string]string{"User": s.owner.Username, "FragmentPath": unitFile}}
	s.units["ov-agent.service"] = au
	install := "ov agent install --machine-key " + s.key + " --app myapp --env production --user " + s.owner.Username + " --enable"

	f := s.one("agent", "does not exist, so clients do not find")
	if !strings.HasSuffix(f.Fix, install) {
		t.Errorf("the command is %q", f.Fix)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can write a rendezvous file that is trusted")
	}
	// As in /etc, only root may write the directories above it.
	etc, err := os.MkdirTemp("/run", "ov-doctor-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(etc) })
	must(t, os.Chmod(etc, 0o755))
	s.sys.Rendezvous = filepath.Join(etc, "agent.socket")
	must(t, os.WriteFile(s.sys.Rendezvous, []byte("/run/other.sock\n"), 0o644))
	s.one("agent", "names the socket /run/other.sock, and the installed agent listens at "+socket)
	must(t, os.WriteFile(s.sys.Rendezvous, []byte(socket+"\n"), 0o644))

	if f := s.one("agent", "is locked: nobody has unlocked it"); f.Fix != "systemctl restart ov-agent" {
		t.Errorf("the command is %q", f.Fix)
	}
	must(t, srv.Unlock(t.Context(), locked(t, password)))
	s.sound()
	must(t, os.Chmod(filepath.Dir(s.sys.Rendezvous), 0o700))
	s.mend(s.one("agent", "has mode 0700, it must be 0755"))
	s.sound()
	must(t, os.Chmod(s.sys.Rendezvous, 0o646))
	s.mend(s.one("agent", "can be written by others"))
	s.sound()

	s.opt.Unit = "ov-agent"
	s.sound()
	s.opt.Unit = ""

	s.opt.Version = "v2"
	if !slices.ContainsFunc(s.run(), func(f Finding) bool { return f.State == Note && f.Problem == "is version v1, and this ov is v2" }) {
		t.Error("nothing is said of the versions")
	}
	for state, problem := range map[[2]string]string{
		{"inactive", "dead"}:           "is installed, and is inactive (dead)",
		{"failed", "failed"}:           "has failed: ",
		{"activating", "auto-restart"}: "has failed: ",
	} {
		au.props["ActiveState"], au.props["SubState"] = state[0], state[1]
		s.one("agent", problem)
	}
	au.props["ActiveState"], au.props["SubState"] = "active", "running"
	au.props["NeedDaemonReload"] = "yes"
	s.one("agent", "changed on disk")
	au.props["NeedDaemonReload"] = "no"

	// Its key is looked at also where no service has the same.
	au.exec = strings.Replace(au.exec, s.key, s.key+".agent", 1)
	s.one("key", s.key+".agent: no such file")
	au.exec = strings.Replace(au.exec, s.key+".agent", s.key, 1)

	g.Stop()
	s.one("agent", "ov-agent.service is active, but no agent is running at "+socket)
	delete(s.units, "ov-agent.service")
	s.one("agent", "is installed, and systemd has not loaded it")
}

// TestOwn: without a service it is the caller's own set-up.
func TestOwn(t *testing.T) {
	s := newSite(t)
	delete(s.units, "myapp.service")
	must(t, os.Remove(filepath.Join(s.dir, "units/myapp.service")))
	s.opt.Dir = s.dir
	s.sound() // default/production
	s.file(".ov.yaml", "app: myapp\nenv: staging\n")
	f := s.one("context", "the vault has no myapp/staging")
	if f.Fix != "ov env create staging --app myapp" {
		t.Errorf("the command is %q", f.Fix)
	}
	s.file(".ov.yaml", "app: [\n")
	s.one("context", ".ov.yaml")
	s.file(".ov.yaml", "app: myapp\nenv: production\n")
	s.sound()
	must(t, os.Remove(s.vault))
	s.one("vault", "has no vault at")
}

func TestNoSystemd(t *testing.T) {
	s := newSite(t)
	s.sys.Systemctl = nil
	if _, err := Run(t.Context(), s.sys, Options{Unit: "myapp"}); err == nil || !strings.Contains(err.Error(), "systemd is not running") {
		t.Errorf("got %v", err)
	}
}
