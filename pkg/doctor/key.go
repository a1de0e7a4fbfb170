package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/xdg"
)

func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// keyFile is a machine key and who has to own it.
type keyFile struct {
	path  string
	owner account
	cred  string // name of the systemd credential that the file becomes, or ""
}

// keyFile returns the file behind the service's --machine-key. ok is false when
// there is nothing more to be said of it.
func (d *doctor) keyFile(s *subject) (k keyFile, ok bool) {
	k = keyFile{path: s.inv.machineKey, owner: s.account}
	dir, name := filepath.Split(k.path)
	dir = filepath.Clean(dir)
	isCred := dir == "$CREDENTIALS_DIRECTORY" || dir == "${CREDENTIALS_DIRECTORY}" || dir == "/run/credentials/"+s.name
	switch {
	case s.unit != nil && isCred:
		return d.credential(s, name)
	case strings.Contains(k.path, "$"):
		d.note("key", s.name, "ov doctor --unit "+s.name+" --machine-key /etc/ov/"+s.inv.app+".key",
			"its machine key is named by a variable, %s, which only systemd resolves", safefile.Quote(k.path))
		return k, false
	case !filepath.IsAbs(k.path):
		s.failures++
		d.fail("key", s.name, editUnit(s.name), "its machine key %s is not an absolute path: which file it is depends on the working directory", safefile.Quote(k.path))
		return k, false
	case s.account.uid < 0:
		d.note("key", s.name, "id "+safefile.Shell(s.account.name),
			"the account %s does not exist now: whether it can read the machine key cannot be told", safefile.Quote(s.account.name))
		return k, false
	}
	return k, true
}

// credential finds the file that systemd makes a credential of, reading it as
// root whoever owns it.
func (d *doctor) credential(s *subject, name string) (k keyFile, ok bool) {
	text := s.unit.text()
	for _, key := range []string{"LoadCredential", "LoadCredentialEncrypted"} {
		for _, line := range settings(text, key) {
			id, path, _ := strings.Cut(line, ":")
			if id != name || !filepath.IsAbs(path) {
				continue
			}
			info, err := os.Lstat(path)
			switch {
			case errors.Is(err, fs.ErrPermission):
				d.needRoot(s, "key", "the credential %s comes from %s, where only root can look", name, safefile.Quote(path))
			case err != nil:
				s.failures++
				fix := d.makeKey(s, account{name: "root"}, path, "")
				if key == "LoadCredentialEncrypted" {
					fix = "sudo systemd-creds encrypt --name=" + safefile.Shell(name) + " /etc/ov/" + s.inv.app + ".key " + safefile.Shell(path)
				}
				d.fail("key", s.name, fix, "the credential %s cannot be loaded: %v", name, err)
			case key == "LoadCredentialEncrypted":
				d.ok("key", s.name, "the credential %s is in %s, encrypted", name, safefile.Quote(path))
			default:
				owner := account{uid: ownerOf(info), name: safefile.User(ownerOf(info))}
				return keyFile{path, owner, name}, true
			}
			return k, false
		}
	}
	if len(settings(text, "SetCredential"))+len(settings(text, "SetCredentialEncrypted"))+len(settings(text, "ImportCredential")) > 0 {
		return k, false
	}
	s.failures++
	d.fail("key", s.name, editUnit(s.name), "its machine key is the credential %s, and the unit has no LoadCredential=%s:FILE", name, name)
	return k, false
}

func (d *doctor) needRoot(s *subject, check, format string, args ...any) {
	fix := "sudo ov doctor"
	if s.unit != nil {
		fix += " --unit " + s.name
	}
	d.note(check, s.name, fix, format, args...)
}

// key checks the service's machine key, and what it opens. It returns the
// unlocked vault, which the caller destroys, or nil.
func (d *doctor) key(ctx context.Context, s *subject) *vault.Session {
	k, ok := d.keyFile(s)
	if !ok {
		d.vault(ctx, s)
		return nil
	}
	usable := d.keyUsable(s, k)
	v := d.vault(ctx, s)
	if !usable || v == nil {
		return nil
	}
	key, err := d.readKey(k)
	if errors.Is(err, fs.ErrPermission) {
		d.needRoot(s, "key", "only %s and root can try whether machine key %s opens the vault", k.owner.name, safefile.Quote(k.path))
		return nil
	}
	if err != nil {
		s.failures++
		d.failErr("key", s.name, err, "ls -l "+safefile.Shell(k.path))
		return nil
	}
	id := fingerprint(key)
	session, err := v.UnlockKey(ctx, key)
	if err != nil {
		s.failures++
		d.keyRefused(ctx, s, k, v, id, err)
		return nil
	}
	level, scope := session.Scope()
	opens := "all of the vault"
	switch level {
	case vault.LevelApp:
		opens = "app " + scope.App
	case vault.LevelEnv:
		opens = scope.String()
	case vault.LevelAccount:
	}
	d.ok("key", s.name, "machine key %s opens %s", safefile.Quote(k.path), opens)
	return session
}

// unreachable returns the first directory down to dir that the account may not
// search, or "". Root's own look at a file does not tell.
func unreachable(dir string, a account) string {
	way, err := filepath.EvalSymlinks(dir)
	if err != nil || a.uid <= 0 {
		return ""
	}
	at := ""
	for _, name := range strings.Split(strings.TrimSuffix(way, "/"), "/") {
		at += name + "/"
		info, err := os.Stat(at)
		if err != nil {
			return ""
		}
		st := info.Sys().(*syscall.Stat_t)
		may := fs.FileMode(0o001)
		switch {
		case int(st.Uid) == a.uid:
			may = 0o100
		case slices.Contains(a.groups, strconv.Itoa(int(st.Gid))):
			may = 0o010
		}
		if info.Mode().Perm()&may == 0 {
			return filepath.Clean(at)
		}
	}
	return ""
}

// keyUsable judges the file as the service's account would, without reading it.
func (d *doctor) keyUsable(s *subject, k keyFile) bool {
	err := machinekey.Check(k.path, k.owner.uid)
	if dir := unreachable(filepath.Dir(k.path), k.owner); dir != "" {
		s.failures++
		d.fail("key", s.name, "sudo chmod a+rx "+safefile.Shell(dir), "machine key %s: %s may not look into %s", safefile.Quote(k.path), k.owner.name, safefile.Quote(dir))
		return false
	}
	if err == nil {
		d.ok("key", s.name, "machine key %s: mode 0600, %s's", safefile.Quote(k.path), k.owner.name)
		return true
	}
	unsafe := (*machinekey.Unsafe)(nil)
	if errors.Is(err, fs.ErrPermission) && !errors.As(err, &unsafe) && d.sys.UID != 0 && d.sys.UID != k.owner.uid {
		d.needRoot(s, "key", "%v", err)
		return false
	}
	s.failures++
	d.failErr("key", s.name, err, "namei -l "+safefile.Shell(k.path))
	d.found[len(d.found)-1].Fix = d.command(d.mendKey(s, k, d.found[len(d.found)-1].Fix))
	return false
}

// mendKey returns the command for a key file that cannot be used: the hint's,
// unless that is for a person to complete.
func (d *doctor) mendKey(s *subject, k keyFile, fix string) string {
	q := safefile.Shell(k.path)
	info, err := os.Lstat(k.path)
	switch {
	case absent(err):
		return d.makeKey(s, k.owner, k.path, "")
	case err != nil:
		return fix
	case info.Mode()&fs.ModeSymlink != 0:
		if st, err := os.Stat(k.path); err != nil || !st.Mode().IsRegular() {
			return d.makeKey(s, k.owner, k.path, "sudo mv -f "+q+" "+safefile.Shell(k.path+".old")+" && ")
		}
		return `sudo mv -f "$(readlink -f ` + q + `)" ` + q
	case !info.Mode().IsRegular():
		return d.makeKey(s, k.owner, k.path, "sudo mv -f "+q+" "+safefile.Shell(k.path+".old")+" && ")
	case ownerOf(info) == k.owner.uid && info.Mode().Perm() == 0o600 && info.Sys().(*syscall.Stat_t).Nlink == 1 && info.Size() != machinekey.Size:
		return d.makeKey(s, k.owner, k.path, "")
	case ownerOf(info) != k.owner.uid:
		return "sudo chown " + safefile.Shell(k.owner.name) + " " + q
	case info.Mode().Perm() == 0o600 && info.Sys().(*syscall.Stat_t).Nlink != 1 && !strings.ContainsAny(k.path, `*?[\`):
		// Hard links are on one file system: the one mounted at stat's %m.
		return `sudo find "$(stat -c %m ` + q + `)" -ignore_readdir_race -xdev -samefile ` + q + " ! -path " + q + " -print -delete"
	}
	return fix
}

// makeKey returns the command that writes a new machine key to the path. Where
// root alone can make files, it first makes one for the account to write over:
// 32 zero bytes, which open nothing.
func (d *doctor) makeKey(s *subject, a account, path, before string) string {
	q, dir := safefile.Shell(path), filepath.Dir(path)
	usable := before == "" && machinekey.Check(path, a.uid) == nil
	derive := "ov auth derive-machine-key --force --out " + q + s.scopeFlags()
	if a.uid == s.account.uid {
		derive = d.as(a, derive+s.vaultFlag())
	} else { // root's copy of a key to somebody else's vault
		derive = "sudo " + derive + " --vault " + safefile.Shell(s.vault)
	}
	info, err := os.Stat(dir)
	switch {
	case absent(err):
		before += "sudo install -d -o " + safefile.Shell(a.name) + " -m 700 " + safefile.Shell(dir) + " && "
	case usable, err == nil && ownerOf(info) == a.uid && info.Mode().Perm()&0o300 == 0o300:
	default:
		before += machinekey.Reserve(path, a.name) + " && "
	}
	return before + derive
}

// scopeFlags narrow a new key to what the old one opened.
func (s *subject) scopeFlags() string {
	var b strings.Builder
	if s.old.App != "" {
		b.WriteString(" --app " + s.old.App)
	}
	if s.old.Env != "" {
		b.WriteString(" --env " + s.old.Env)
	}
	if s.old.Label != "" {
		b.WriteString(" --label " + safefile.Shell(s.old.Label))
	}
	return b.String()
}

// readKey reads a key that was found usable: as its owner, or as root in the
// owner's place.
func (d *doctor) readKey(k keyFile) (*kek.Locked, error) {
	if k.owner.uid == d.sys.UID {
		return machinekey.Read(k.path)
	}
	dir, err := safefile.OpenDir(filepath.Dir(k.path), safefile.Policy{Owner: k.owner.uid, Sticky: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	if dir.Fault != nil {
		return nil, dir.Fault
	}
	fd, info, err := dir.Open(filepath.Base(k.path), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	if info.Type != unix.S_IFREG || info.UID != k.owner.uid || info.Size != machinekey.Size {
		return nil, fmt.Errorf("machine key %s: changed while it was looked at", safefile.Quote(k.path))
	}
	key, err := kek.NewLocked(machinekey.Size)
	if err != nil {
		return nil, err
	}
	if n, err := safefile.ReadAll(fd, key.Bytes()); err != nil || n != machinekey.Size {
		key.Destroy()
		return nil, fmt.Errorf("machine key %s: read %d bytes: %w", safefile.Quote(k.path), n, err)
	}
	return key, nil
}

func fingerprint(key *kek.Locked) string {
	b := make([]byte, kek.FingerprintSize)
	kek.Do(func() { copy(b, kek.Fingerprint(key.Bytes())) })
	return fmt.Sprintf("%x", b)
}

// keyRefused says why the vault does not open with the key.
func (d *doctor) keyRefused(ctx context.Context, s *subject, k keyFile, v *vault.Vault, id string, err error) {
	if list, lerr := v.MachineKeys(ctx); lerr == nil {
		for _, old := range list {
			if old.Fingerprint == id {
				s.old = old
			}
		}
	}
	fix := d.makeKey(s, k.owner, k.path, "")
	switch {
	case errors.Is(err, vault.ErrDeadKey), errors.Is(err, vault.ErrUnknownKey):
		if errors.Is(err, vault.ErrUnknownKey) {
			err = fmt.Errorf("%w: %s", err, safefile.Quote(s.vault))
		}
		d.fail("key", s.name, fix, "machine key %s does not open the vault: %v", safefile.Quote(k.path), err)
	default:
		d.failErr("key", s.name, err, fix)
	}
}

// vault checks the vault file that the service reads. It returns nil when that
// cannot be opened.
func (d *doctor) vault(ctx context.Context, s *subject) *vault.Vault {
	if s.vaultErr != nil {
		s.failures++
		d.failErr("vault", s.name, s.vaultErr, "ov status")
		return nil
	}
	if stores.IsURL(s.vault) {
		return d.serverVault(ctx, s)
	}
	q := safefile.Shell(s.vault)
	info, err := os.Lstat(s.vault)
	switch {
	case errors.Is(err, fs.ErrPermission) && d.sys.UID != 0 && d.sys.UID != s.account.uid:
		d.needRoot(s, "vault", "only %s and root can look at the vault %s", s.account.name, safefile.Quote(s.vault))
		return nil
	case absent(err):
		s.failures++
		d.fail("vault", s.name, d.as(s.account, "ov auth init"+s.vaultFlag()), "%s has no vault at %s", s.account.name, safefile.Quote(s.vault))
		return nil
	case err == nil && s.account.uid > 0 && ownerOf(info) != s.account.uid && info.Mode().IsRegular() && info.Mode()&0o044 == 0:
		s.failures++
		fix := "sudo chown " + safefile.Shell(s.account.name) + ": " + q // made with sudo, by mistake
		if owner := ownerOf(info); owner != 0 && s.unit != nil {
			fix = editUnit(s.name)
		}
		d.fail("vault", s.name, fix, "the vault %s is %s's, and %s cannot read it",
			safefile.Quote(s.vault), safefile.User(ownerOf(info)), s.account.name)
		return nil
	}
	if dir := unreachable(filepath.Dir(s.vault), s.account); dir != "" {
		s.failures++
		d.fail("vault", s.name, "sudo chmod a+x "+safefile.Shell(dir), "the vault %s: %s may not look into %s", safefile.Quote(s.vault), s.account.name, safefile.Quote(dir))
		return nil
	}
	v := vault.New(bolt.New(s.vault))
	if _, err := v.Info(ctx); err != nil {
		if errors.Is(err, fs.ErrPermission) && d.sys.UID != s.account.uid {
			d.needRoot(s, "vault", "%v", err)
			return nil
		}
		s.failures++
		fallback := "ls -l " + q
		if errors.Is(err, store.ErrBusy) {
			fallback = "fuser -v " + q
		}
		d.failErr("vault", s.name, err, fallback)
		return nil
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		d.note("vault", s.name, "sudo chmod 600 "+q, "the vault %s has mode %04o: others can read its ciphertext and the names of apps", safefile.Quote(s.vault), perm)
	} else {
		d.ok("vault", s.name, "the vault is %s", safefile.Quote(s.vault))
	}
	return v
}

// vaultFlag is what names the vault when it is not the account's usual one.
func (s *subject) vaultFlag() string {
	if s.inv.vault == "" {
		return ""
	}
	return " --vault " + safefile.Shell(s.inv.vault)
}

// vaultOf returns the vault that the account's ov uses with the given home and
// XDG_ variables: what package config does for the caller, done for another.
func (d *doctor) vaultOf(s *subject, home string, environment map[string]string) (string, error) {
	if stores.IsURL(s.inv.vault) {
		return login.Canonical(s.inv.vault)
	}
	if s.inv.vault != "" {
		if !filepath.IsAbs(s.inv.vault) {
			return "", fmt.Errorf("--vault %s is not an absolute path", safefile.Quote(s.inv.vault))
		}
		return s.inv.vault, nil
	}
	if url := companionURL(s); url != "" {
		return url, nil
	}
	if s.unit == nil && s.account.uid == d.sys.UID {
		c, err := config.Vault("")
		if err == nil && c.Source == config.FromDefault {
			return stores.Default(s.inv.machineKey)
		}
		return c.Value, err
	}
	if !filepath.IsAbs(home) {
		return "", fmt.Errorf("the account %s has no home directory to look for a vault in", safefile.Quote(s.account.name))
	}
	f, err := configOf(home, environment)
	if err != nil {
		return "", err
	}
	if f.Vault.Path != "" {
		return f.Vault.Path, nil
	}
	return xdg.VaultOf(home, environment["XDG_DATA_HOME"]), nil
}

// settingsFile is the part of config.toml that matters here.
type settingsFile struct {
	App   string `toml:"app"`
	Env   string `toml:"env"`
	Vault struct {
		Path string `toml:"path"`
	} `toml:"vault"`
}

// configOf reads the config.toml of an account by its home directory. An absent
// one is empty, and so is one that the caller may not read.
func configOf(home string, environment map[string]string) (f settingsFile, err error) {
	path := filepath.Join(home, ".config/ov/config.toml")
	if dir := environment["XDG_CONFIG_HOME"]; filepath.IsAbs(dir) {
		path = filepath.Join(dir, "ov", "config.toml")
	}
	b, err := readFile(path, config.MaxFile)
	if absent(err) || errors.Is(err, fs.ErrPermission) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	if toml.Unmarshal(b, &f) != nil { // whose text may quote the file
		return f, fmt.Errorf("%s is not valid", safefile.Quote(path))
	}
	return f, nil
}
