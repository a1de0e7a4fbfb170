package config

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/opaquevault/ov/pkg/hint"
)

// Path returns where config.toml is: $XDG_CONFIG_HOME/ov/config.toml, by default
// ~/.config/ov/config.toml (XDG Base Directory Specification 0.8, which has
// relative paths ignored).
func Path() (string, error) { return xdg("XDG_CONFIG_HOME", ".config", "config.toml") }

// DefaultVault returns where the vault is unless --vault or config.toml say
// otherwise: $XDG_DATA_HOME/ov/vault.db, by default ~/.local/share/ov/vault.db.
func DefaultVault() (string, error) { return xdg("XDG_DATA_HOME", ".local/share", "vault.db") }

// Vault returns the vault file: the flag --vault if it is not "", else what
// config.toml says, else DefaultVault. A flag's path is made absolute.
func Vault(flag string) (Choice, error) {
	if flag != "" {
		abs, err := filepath.Abs(flag)
		return Choice{Value: abs, Source: FromFlag}, err
	}
	f, file, err := readConfig()
	if err != nil {
		return Choice{}, err
	}
	if f.Vault.Path != "" {
		return Choice{Value: f.Vault.Path, Source: FromConfig, File: file}, nil
	}
	path, err := DefaultVault()
	return Choice{Value: path, Source: FromDefault}, err
}

func xdg(variable, fallback, name string) (string, error) {
	if base := os.Getenv(variable); filepath.IsAbs(base) {
		return filepath.Join(base, "ov", name), nil
	}
	h, err := home()
	if err != nil {
		return "", hint.Errorf("set HOME, or name the vault: --vault FILE", "cannot tell where %s is: %w", name, err)
	}
	return filepath.Join(h, fallback, "ov", name), nil
}

// homeOf is for services of root's, which systemd gives no $HOME.
func homeOf(uid int) (string, error) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err == nil && !filepath.IsAbs(u.HomeDir) {
		err = fmt.Errorf("user %d has no home directory", uid)
	}
	if err != nil {
		return "", fmt.Errorf("HOME is not set: %w", err)
	}
	return u.HomeDir, nil
}
