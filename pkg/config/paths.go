package config

import (
	"path/filepath"

	"github.com/opaquevault/ov/pkg/xdg"
)

// Path returns where config.toml is: $XDG_CONFIG_HOME/ov/config.toml, by default
// ~/.config/ov/config.toml (XDG Base Directory Specification 0.8, which has
// relative paths ignored).
func Path() (string, error) { return xdg.Config("config.toml") }

// DefaultVault returns where the vault is unless --vault or config.toml say
// otherwise: $XDG_DATA_HOME/ov/vault.db, by default ~/.local/share/ov/vault.db.
func DefaultVault() (string, error) { return xdg.Vault() }

// Vault returns the vault file: the flag --vault if it is not "", else what
// config.toml says, which may be the URL of a server, else DefaultVault. A flag's
// path is made absolute. See package stores for vaults on servers.
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
