package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/near"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/vault"
)

// own checks the set-up of the caller: no service, nothing but ov and what it
// finds from the current directory.
func (d *doctor) own(ctx context.Context) {
	s := &subject{name: "your set-up", account: d.self()}
	s.inv.vault = d.opt.Vault
	where, err := config.Resolve(config.Options{App: d.opt.App, Env: d.opt.Env, Secrets: true, Dir: d.opt.Dir})
	if err != nil {
		d.failErr("context", s.name, err, "ov status")
	}
	s.inv.app, s.inv.env = where.App.Value, where.Env.Value
	for _, c := range []config.Choice{where.App, where.Env} {
		s.pinned = s.pinned || c.Source == config.FromFlag || c.Source == config.FromProject
	}
	c, verr := config.Vault(d.opt.Vault)
	s.vault, s.vaultErr = c.Value, verr
	v := d.vault(ctx, s)
	if v == nil || err != nil {
		return
	}
	if where.Secrets != nil {
		s.inv.named = true
		for _, secret := range where.Secrets {
			s.inv.secrets = append(s.inv.secrets, secret.Name)
		}
	}
	if d.client != nil && d.status.Unlocked && d.status.Vault == s.vault {
		d.context(ctx, s, d.client)
		return
	}
	ref := s.ref()
	apps, err := v.Apps(ctx)
	if err != nil {
		d.failErr("context", s.name, err, "ov app list")
		return
	}
	var all []string
	for _, a := range apps {
		for _, e := range a.Envs {
			all = append(all, vault.Ref{App: a.Slug, Env: e}.String())
		}
	}
	if !slices.Contains(all, ref.String()) {
		problem := fmt.Sprintf("the vault has no %s, which %s", ref, said(where))
		if alike := near.Find(ref.String(), all, 1); len(alike) == 1 {
			problem += "; did you mean " + alike[0] + "?"
		}
		fix := "ov env create " + ref.Env + " --app " + ref.App
		if !slices.ContainsFunc(apps, func(a vault.App) bool { return a.Slug == ref.App }) {
			fix = "ov app create " + ref.App + " && " + fix
		}
		d.fail("context", s.name, fix, "%s", problem)
		return
	}
	d.ok("context", s.name, "the vault has %s, which %s", ref, said(where))
	d.note("context", s.name, "ov agent start", "whether the secrets are there was not looked at: the vault is locked")
}

// said tells what decided on the app and env.
func said(c config.Context) string {
	from := func(c config.Choice) string {
		switch c.Source {
		case config.FromDefault:
			return "ov's default"
		case config.FromFlag:
			return "a flag"
		}
		return safefile.Quote(c.File)
	}
	if app, env := from(c.App), from(c.Env); app != env {
		return "comes from " + app + " and " + env
	}
	return "comes from " + from(c.App)
}

// Failed tells whether any of the findings is a fault.
func Failed(list []Finding) bool {
	return slices.ContainsFunc(list, func(f Finding) bool { return f.State == Fail })
}
