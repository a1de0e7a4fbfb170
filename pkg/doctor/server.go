package doctor

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
)

// companionURL returns the server that a machine key was made for, "" if it was
// made for a file, or if that cannot be told.
func companionURL(s *subject) string {
	if !filepath.IsAbs(s.inv.machineKey) || !login.HasCompanion(s.inv.machineKey) {
		return ""
	}
	l, err := login.ReadCompanionOf(s.inv.machineKey, s.account.uid)
	if err != nil {
		return "" // serverVault says more, once it is known to be a server
	}
	defer l.Wipe()
	return l.URL
}

// serverVault checks whether a vault on a server can be reached, by the server
// itself and not by what is cached of it.
func (d *doctor) serverVault(ctx context.Context, s *subject) *vault.Vault {
	l, err := d.loginOf(s)
	if errors.Is(err, fs.ErrPermission) && d.sys.UID != 0 {
		d.needRoot(s, "vault", "only %s and root can try whether the login for %s works", s.account.name, s.vault)
		return nil
	}
	if err != nil {
		s.failures++
		d.failErr("vault", s.name, err, d.as(s.account, "ov auth login --server "+safefile.Shell(s.vault)))
		return nil
	}
	defer l.Wipe()
	r, err := stores.Dial(l, stores.Options{Wait: -1})
	if err != nil {
		s.failures++
		d.failErr("vault", s.name, err, "ov status")
		return nil
	}
	d.ends = append(d.ends, func() { _ = r.Close() })
	v := vault.New(r)
	_, err = v.Info(ctx)
	switch {
	case errors.Is(err, store.ErrUnavailable):
		s.failures++
		d.fail("vault", s.name, "see whether ov-server runs there: systemctl status ov-server",
			"%v; until it is back, what it has said before is used, for at most --max-stale", err)
		return nil
	case err != nil:
		s.failures++
		d.failErr("vault", s.name, err, "ov auth status --server "+safefile.Shell(s.vault))
		return nil
	}
	d.ok("vault", s.name, "the vault is on %s, which answers", s.vault)
	return v
}

// loginOf returns the login with which the service talks to its server.
func (d *doctor) loginOf(s *subject) (login.Login, error) {
	if filepath.IsAbs(s.inv.machineKey) && login.HasCompanion(s.inv.machineKey) {
		l, err := login.ReadCompanionOf(s.inv.machineKey, s.account.uid)
		if err != nil || l.URL == s.vault {
			return l, err
		}
		l.Wipe()
	}
	if s.account.uid != d.sys.UID {
		return login.Login{}, fs.ErrPermission // it is in the account's own servers.toml
	}
	return stores.Login(s.vault, s.inv.machineKey)
}
