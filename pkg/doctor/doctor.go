// Package doctor finds out why ov does not work here: the troubleshooting list
// of the migration guide as a program.
//
// It looks in the order of that list (the agent, the machine key, the routing
// context, a missed daemon-reload, the .env file) at one service or at each
// that is started by ov run, and says of each fault what is wrong and the
// command that mends it. It changes nothing, and shows names of secrets but
// never a value.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/vault"
)

// State says what a finding is.
type State string

// The states of a finding.
const (
	OK   State = "ok"
	Fail State = "fail"
	Note State = "note" // worth knowing, and not why something fails
)

// Finding is one thing that was looked at.
type Finding struct {
	Check   string `json:"check"`   // agent, key, vault, context, reload, env-file, service, memory
	State   State  `json:"state"`   //
	Subject string `json:"subject"` // a unit, or a user's own set-up
	Problem string `json:"problem"` // what is wrong; "" when nothing is
	Fix     string `json:"fix"`     // a command to paste; "" when there is nothing to mend
	Detail  string `json:"detail"`  // what was found right
}

// Options say what to look at. With all of them empty it is every service in
// System.UnitDir that is started by ov run or, where there is none, the
// caller's own set-up.
type Options struct {
	App, Env   string
	MachineKey string
	User       string // name or number of the account that the service runs as
	Unit       string // "myapp" or "myapp.service"
	Vault      string // path
	Version    string // of this program
	Dir        string // where to look for .ov.yaml and .env; "" is the current directory
}

// Run looks at everything and returns what it found, in the order of the guide.
// An error says that the options make no sense here.
func Run(ctx context.Context, sys *System, o Options) ([]Finding, error) {
	d := &doctor{sys: sys, opt: o}
	list, err := d.subjects(ctx)
	if err != nil {
		return nil, err
	}
	d.memory()
	d.agent(ctx, list)
	defer d.close()
	for _, s := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d.service(ctx, s)
	}
	if len(list) == 0 && o.Unit == "" {
		d.own(ctx)
	}
	return d.found, nil
}

type doctor struct {
	sys    *System
	opt    Options
	found  []Finding
	client *agent.Client // to a running agent, or nil
	status agent.Status
	ends   []func() // of connections to servers
}

func (d *doctor) close() {
	if d.client != nil {
		_ = d.client.Close()
	}
	for _, end := range d.ends {
		end()
	}
}

// add keeps a finding. Its text holds what systemd, file names and other
// processes say, and is going to a terminal.
func (d *doctor) add(f Finding) {
	for _, s := range []*string{&f.Subject, &f.Problem, &f.Fix, &f.Detail} {
		*s = strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return unicode.ReplacementChar
			}
			return r
		}, *s)
	}
	d.found = append(d.found, f)
}

func (d *doctor) ok(check, subject, format string, args ...any) {
	d.add(Finding{Check: check, State: OK, Subject: subject, Detail: fmt.Sprintf(format, args...)})
}

func (d *doctor) note(check, subject, fix, format string, args ...any) {
	d.add(Finding{Check: check, State: Note, Subject: subject, Fix: d.command(fix), Problem: fmt.Sprintf(format, args...)})
}

func (d *doctor) fail(check, subject, fix, format string, args ...any) {
	d.add(Finding{Check: check, State: Fail, Subject: subject, Fix: d.command(fix), Problem: fmt.Sprintf(format, args...)})
}

// failErr reports an error, whose hint names the fix.
func (d *doctor) failErr(check, subject string, err error, fallback string) {
	fix := commandIn(hint.Of(err))
	if fix == "" {
		fix = fallback
	}
	d.fail(check, subject, fix, "%v", err)
}

// command makes a fix fit for who runs the doctor: root needs no sudo, and may
// have none.
func (d *doctor) command(fix string) string {
	if d.sys.UID == 0 {
		fix = strings.ReplaceAll(fix, "sudo ", "")
		fix = strings.ReplaceAll(fix, asMark, "sudo -u ")
	}
	return strings.ReplaceAll(fix, asMark, "sudo -u ")
}

// asMark stands for the one use of sudo that root has too: to be somebody else.
const asMark = "\x00as "

// as returns the command as the account runs it.
func (d *doctor) as(a account, command string) string {
	if a.uid == d.sys.UID {
		return command
	}
	return asMark + safefile.Shell(a.name) + " -H " + command
}

// commandIn returns the command in a hint such as "make one: ov auth init", or
// "" if it has none that can be pasted.
func commandIn(text string) string {
	text, _, _ = strings.Cut(text, "; ")
	for {
		word, _, _ := strings.Cut(text, " ")
		switch word {
		case "sudo", "ov", "head", "chmod", "chown", "mv", "rm", "namei", "fuser", "readlink":
			for _, w := range strings.Fields(text) { // a word to be filled in
				if w == "FILE" || w == "APP" || w == "ENV" || w == "USER" || w == "NAME" || w == "DIR" || w == "PATH" {
					return ""
				}
			}
			return text
		}
		var ok bool
		if _, text, ok = strings.Cut(text, ": "); !ok {
			return ""
		}
	}
}

// account is who a service runs as.
type account struct {
	name   string
	uid    int
	home   string   // "" if unknown
	groups []string // numbers
}

func (d *doctor) account(name string) (account, error) {
	if name == "" {
		name = "root"
	}
	u, err := d.sys.User(name)
	if err != nil {
		return account{}, err
	}
	return accountOf(u)
}

func accountOf(u *user.User) (account, error) {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return account{}, fmt.Errorf("user %s has no numeric uid: %w", u.Username, err)
	}
	groups, _ := u.GroupIds() // those that can be had
	return account{u.Username, uid, u.HomeDir, groups}, nil
}

// self is the account of the caller.
func (d *doctor) self() account {
	id := strconv.Itoa(d.sys.UID)
	a := account{name: id, uid: d.sys.UID}
	if u, err := d.sys.User(id); err == nil {
		a.name, a.home = u.Username, u.HomeDir
		a.groups, _ = u.GroupIds()
	}
	if home := os.Getenv("HOME"); filepath.IsAbs(home) {
		a.home = home
	}
	return a
}

// subject is a service: a unit, or what flags say of one.
type subject struct {
	name     string // of the unit, or what stands in its place
	unit     *unit  // nil without one
	inv      invocation
	runs     bool // the loaded unit is started by ov run, or flags say enough
	account  account
	vault    string
	vaultErr error

	pinned bool // app or env are said by a flag or .ov.yaml

	// What the checks find out, for those that follow.
	names    []string         // of the secrets in the (app, env)
	known    bool             // names was read
	old      vault.MachineKey // the registered key that no longer opens the vault
	failures int              // faults found so far
}

func (s *subject) ref() vault.Ref { return vault.Ref{App: s.inv.app, Env: s.inv.env} }

// subjects finds out which services to look at.
func (d *doctor) subjects(ctx context.Context) ([]*subject, error) {
	o := &d.opt
	if o.MachineKey != "" && !strings.HasPrefix(o.MachineKey, "$") {
		abs, err := filepath.Abs(o.MachineKey)
		if err != nil {
			return nil, err
		}
		o.MachineKey = abs
	}
	if o.Unit != "" {
		if d.sys.Systemctl == nil {
			return nil, hint.Errorf("leave --unit out", "systemd is not running on this machine")
		}
		name, err := unitName(o.Unit)
		if err != nil {
			return nil, err
		}
		if name == agentUnit {
			return nil, nil // it is looked at in any case
		}
		u, err := d.sys.show(ctx, name)
		if err != nil {
			return nil, err
		}
		s, err := d.subjectOf(u)
		if err != nil {
			return nil, err
		}
		return []*subject{s}, nil
	}
	var list []*subject
	if d.sys.Systemctl != nil {
		for _, name := range candidates(d.sys.UnitDir) {
			u, err := d.sys.show(ctx, name)
			if err != nil {
				d.note("service", name, "systemctl status "+name, "was not looked at: %v", err)
				continue
			}
			if inv, ok := u.run(); ok && !o.match(inv, u) {
				continue
			}
			s, err := d.subjectOf(u)
			if err != nil {
				return nil, err
			}
			list = append(list, s)
		}
	}
	if len(list) > 0 || o.MachineKey == "" && o.User == "" {
		return list, nil
	}
	s, err := d.subjectOfFlags()
	if err != nil {
		return nil, err
	}
	return []*subject{s}, nil
}

// match tells whether the flags given are a service's own.
func (o *Options) match(inv invocation, u *unit) bool {
	user := u.user
	if user == "" {
		user = "root"
	}
	for _, f := range [][2]string{{o.App, inv.app}, {o.Env, inv.env}, {o.MachineKey, inv.machineKey}, {o.User, user}} {
		if f[0] != "" && f[0] != f[1] {
			return false
		}
	}
	return true
}

func (d *doctor) subjectOf(u *unit) (*subject, error) {
	o := &d.opt
	s := &subject{name: u.id, unit: u}
	s.inv, s.runs = u.run()
	name := u.user
	if o.User != "" {
		name = o.User
	}
	var err error
	if s.account, err = d.account(name); err != nil {
		if o.User != "" {
			return nil, err
		}
		// systemd would say so too; a dynamic user exists only while it runs.
		s.account = account{name: name, uid: -1}
	}
	d.override(s)
	home := s.account.home
	if h := u.environment["HOME"]; h != "" {
		home = h
	}
	s.vault, s.vaultErr = d.vaultOf(s, home, u.environment)
	return s, nil
}

func (d *doctor) subjectOfFlags() (*subject, error) {
	s := &subject{runs: true, account: d.self()}
	var err error
	if d.opt.User != "" {
		if s.account, err = d.account(d.opt.User); err != nil {
			return nil, err
		}
	} else if info, err := os.Lstat(d.opt.MachineKey); err == nil && d.sys.UID == 0 {
		// Root looks at the key of a service, which is likely its owner's.
		if a, err := d.account(strconv.Itoa(ownerOf(info))); err == nil {
			s.account = a
		}
	}
	s.name = "user " + s.account.name
	d.override(s)
	s.vault, s.vaultErr = d.vaultOf(s, s.account.home, nil)
	return s, nil
}

// override puts what flags say over what the unit says.
func (d *doctor) override(s *subject) {
	o := &d.opt
	for _, f := range []struct {
		flag string
		to   *string
	}{{o.App, &s.inv.app}, {o.Env, &s.inv.env}, {o.MachineKey, &s.inv.machineKey}, {o.Vault, &s.inv.vault}} {
		if f.flag != "" {
			*f.to = f.flag
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
