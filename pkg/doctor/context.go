package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/near"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/vault"
)

// maxEnvs bounds how many envs are searched for secrets that are not where they
// were asked for.
const maxEnvs = 200

// lister is an unlocked vault: a session or an agent's client.
type lister interface {
	Apps(ctx context.Context) ([]vault.App, error)
	List(ctx context.Context, ref vault.Ref) ([]vault.Version, error)
}

// fillContext gives the service the app and env that its ov run would find
// where its command line does not say.
func (d *doctor) fillContext(s *subject) {
	if s.inv.app != "" && s.inv.env != "" {
		return
	}
	where := config.Context{App: config.Choice{Value: names.DefaultApp}, Env: config.Choice{Value: names.DefaultEnv}}
	if s.account.uid == d.sys.UID {
		o := config.Options{App: s.inv.app, Env: s.inv.env, Dir: d.opt.Dir}
		if s.unit != nil {
			o.Dir = "/"
			if s.unit.workDir != "" {
				o.Dir = s.unit.workDir
			}
		}
		if c, err := config.Resolve(o); err == nil {
			where = c
		}
	} else if s.unit != nil {
		if f, err := configOf(s.account.home, s.unit.environment); err == nil {
			if f.App != "" {
				where.App.Value = f.App
			}
			if f.Env != "" {
				where.Env.Value = f.Env
			}
		}
	}
	if s.inv.app == "" {
		s.inv.app = where.App.Value
	}
	if s.inv.env == "" {
		s.inv.env = where.Env.Value
	}
	if s.unit != nil && s.runs {
		d.note("context", s.name, editUnit(s.name),
			"it does not name both --app and --env; what it gets, %s, can change without it", s.ref())
	}
}

// agrees compares what the unit says with what flags say of it.
func (d *doctor) agrees(s *subject) {
	if s.unit == nil {
		return
	}
	o := &d.opt
	loaded, _ := s.unit.run()
	if s.runs {
		for _, f := range []struct{ flag, unit, want string }{
			{"--app", loaded.app, o.App}, {"--env", loaded.env, o.Env}, {"--machine-key", loaded.machineKey, o.MachineKey},
		} {
			if f.want == "" || f.want == f.unit {
				continue
			}
			s.failures++
			says := "says " + f.flag + " " + safefile.Quote(f.unit)
			fix := s.unit.changeFlag(f.flag, f.unit, f.want)
			if f.unit == "" {
				says, fix = "does not say "+f.flag, editUnit(s.name)
			}
			if s.unit.needReload {
				fix = reload(s.name) // the file may say it already
			}
			d.fail("context", s.name, fix, "the unit %s, and not %s as the service should have it", says, safefile.Quote(f.want))
		}
	}
	if unitUser := s.unit.user; o.User != "" && unitUser != o.User {
		a, err := d.account(unitUser)
		if err == nil && a.uid == s.account.uid {
			return
		}
		if unitUser == "" {
			unitUser = "root"
		}
		s.failures++
		d.fail("key", s.name, editUnit(s.name), "the unit runs as %s, not as %s", safefile.Quote(unitUser), o.User)
	}
}

// context checks that the secrets are where the service looks for them.
func (d *doctor) context(ctx context.Context, s *subject, v lister) {
	ref := s.ref()
	list, err := v.List(ctx, ref)
	switch {
	case errors.Is(err, vault.ErrNotFound):
		s.failures++
		d.noSuchEnv(ctx, s, v, err)
		return
	case errors.Is(err, vault.ErrScope):
		s.failures++
		d.fail("context", s.name, d.makeKey(s, s.account, s.inv.machineKey, "")+" --app "+ref.App+" --env "+ref.Env,
			"the machine key does not open %s: %v", ref, err)
		return
	case err != nil:
		s.failures++
		d.failErr("context", s.name, err, "ov secret list --app "+ref.App+" --env "+ref.Env)
		return
	}
	s.names = namesOf(list)
	missing := []string{}
	for _, name := range s.inv.secrets {
		if !slices.Contains(s.names, name) && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) > 0:
		s.failures++
		d.missing(ctx, s, v, missing)
	case len(s.names) == 0:
		fix := d.as(s.account, "ov secret list --app "+ref.App+" --env "+ref.Env)
		if file := d.plainFile(s, nil); file != "" {
			fix = d.importFrom(s, file)
		} else if other, ok := d.elsewhere(ctx, s, v, nil); ok {
			fix = s.moveTo(other)
		} else if s.unit == nil && s.inv.machineKey == "" && ref == (vault.Ref{App: names.DefaultApp, Env: names.DefaultEnv}) {
			d.note("context", s.name, "ov secret set NAME", "%s holds no secrets yet", ref) // as ov auth init leaves it
			return
		}
		s.failures++
		d.fail("context", s.name, fix, "%s holds no secrets", ref)
	case s.inv.named:
		s.known = true
		d.ok("context", s.name, "%s has all %s that it asks for", ref, plural(len(s.inv.secrets), "secret"))
	default:
		s.known = true
		d.ok("context", s.name, "%s has %s", ref, plural(len(s.names), "secret"))
	}
}

func namesOf(list []vault.Version) []string {
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.Name
	}
	return names
}

// noSuchEnv says that an app or env is not there, and which was likely meant.
func (d *doctor) noSuchEnv(ctx context.Context, s *subject, v lister, err error) {
	ref := s.ref()
	fix := d.as(s.account, "ov env list --app "+ref.App+s.vaultFlag())
	if other, ok := d.elsewhere(ctx, s, v, s.inv.secrets); ok {
		has := "has what is asked for"
		if len(s.inv.secrets) == 0 {
			has = "has secrets"
		}
		err = fmt.Errorf("%w; %s %s", err, other, has)
		fix = s.moveTo(other)
	} else if file := d.plainFile(s, nil); file != "" {
		fix = d.importFrom(s, file)
	}
	d.fail("context", s.name, fix, "%v", err)
}

// missing says which secrets are not in the env, and where they are.
func (d *doctor) missing(ctx context.Context, s *subject, v lister, names []string) {
	ref := s.ref()
	problem := fmt.Sprintf("%s has no %s", ref, strings.Join(names, ", "))
	var sets []string
	for _, name := range names {
		if alike := near.Find(name, s.names, 2); len(alike) > 0 {
			problem += fmt.Sprintf(" (did you mean %s for %s?)", strings.Join(alike, " or "), name)
		}
		sets = append(sets, d.as(s.account, "ov secret set "+safefile.Shell(name)+" --app "+ref.App+" --env "+ref.Env+s.vaultFlag()))
	}
	fix := strings.Join(sets, " && ")
	if other, ok := d.elsewhere(ctx, s, v, s.inv.secrets); ok {
		problem += fmt.Sprintf("; %s has all that is asked for", other)
		fix = s.moveTo(other)
	} else if file := d.plainFile(s, names); file != "" {
		problem += "; " + safefile.Quote(file) + " has"
		fix = d.importFrom(s, file)
	}
	d.fail("context", s.name, fix, "%s", problem)
}

// moveTo is the command that makes the service ask for another app and env.
func (s *subject) moveTo(to vault.Ref) string {
	from := s.ref()
	switch {
	case s.unit == nil && s.inv.machineKey == "" && s.pinned:
		return "ov env create " + from.Env + " --app " + from.App
	case s.unit == nil && s.inv.machineKey == "":
		return "ov app use " + to.App + " && ov env use " + to.Env
	case s.unit == nil:
		return "ov doctor --app " + to.App + " --env " + to.Env + " --machine-key " + safefile.Shell(s.inv.machineKey) + " --user " + safefile.Shell(s.account.name)
	}
	loaded, _ := s.unit.run()
	switch {
	case from.App == to.App && loaded.env == from.Env:
		return s.unit.changeFlag("--env", from.Env, to.Env)
	case from.Env == to.Env && loaded.app == from.App:
		return s.unit.changeFlag("--app", from.App, to.App)
	}
	return editUnit(s.name)
}

// elsewhere finds the one other env that has all the names or, without names,
// any secret: one of the same app before one of another app. If several have
// them, the one whose name is alike.
func (d *doctor) elsewhere(ctx context.Context, s *subject, v lister, names []string) (vault.Ref, bool) {
	apps, err := v.Apps(ctx)
	if err != nil {
		return vault.Ref{}, false
	}
	var here, others []string
	searched := 0
	for _, a := range apps {
		for _, e := range a.Envs {
			ref := vault.Ref{App: a.Slug, Env: e}
			if searched++; ref == s.ref() || searched > maxEnvs {
				continue
			}
			list, err := v.List(ctx, ref) // ErrScope for what the key does not open
			if err != nil || len(list) == 0 {
				continue
			}
			have := namesOf(list)
			if slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(have, n) }) {
				continue
			}
			if a.Slug == s.inv.app {
				here = append(here, ref.String())
			} else {
				others = append(others, ref.String())
			}
		}
	}
	for _, list := range [][]string{here, others} {
		if len(list) > 1 {
			list = near.Find(s.ref().String(), list, 1)
		}
		if len(list) == 1 {
			app, env, _ := strings.Cut(list[0], "/")
			return vault.Ref{App: app, Env: env}, true
		}
	}
	return vault.Ref{}, false
}
