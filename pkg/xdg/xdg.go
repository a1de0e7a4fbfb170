// Package xdg says where a user's own files are (XDG Base Directory
// Specification 0.8, which has relative paths in its variables ignored).
package xdg

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opaquevault/ov/pkg/hint"
)

// Config returns $XDG_CONFIG_HOME/ov/name, by default ~/.config/ov/name.
func Config(name string) (string, error) { return file("XDG_CONFIG_HOME", ".config", name) }

// State returns $XDG_STATE_HOME/ov/name, by default ~/.local/state/ov/name. For a
// service with StateDirectory= it is $STATE_DIRECTORY/ov/name (systemd.exec(5)).
func State(name string) (string, error) {
	return ofService("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state", name)
}

// Cache returns $XDG_CACHE_HOME/ov/name, by default ~/.cache/ov/name. For a
// service with CacheDirectory= it is $CACHE_DIRECTORY/ov/name.
func Cache(name string) (string, error) {
	return ofService("CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache", name)
}

// ofService is file for what systemd gives a service a place for: a home may be
// missing, empty or read-only there.
func ofService(given, variable, fallback, name string) (string, error) {
	if first, _, _ := strings.Cut(os.Getenv(given), ":"); filepath.IsAbs(first) {
		return below(first, "", "", name), nil
	}
	return file(variable, fallback, name)
}

// Vault returns the vault file of users who name no other:
// $XDG_DATA_HOME/ov/vault.db, by default ~/.local/share/ov/vault.db.
func Vault() (string, error) { return file("XDG_DATA_HOME", dataHome, vaultFile) }

// VaultOf is Vault for an account with that home directory and $XDG_DATA_HOME,
// which may be "".
func VaultOf(home, xdgDataHome string) string { return below(xdgDataHome, home, dataHome, vaultFile) }

const (
	dataHome  = ".local/share"
	vaultFile = "vault.db"
)

func file(variable, fallback, name string) (string, error) {
	base, home := os.Getenv(variable), ""
	if !filepath.IsAbs(base) {
		var err error
		if home, err = Home(); err != nil {
			return "", hint.Errorf("set HOME", "cannot tell where %s is: %w", name, err)
		}
	}
	return below(base, home, fallback, name), nil
}

func below(base, home, fallback, name string) string {
	if !filepath.IsAbs(base) {
		base = filepath.Join(home, fallback)
	}
	return filepath.Join(base, "ov", name)
}

// Home returns $HOME or, for services to which systemd gives none, what the
// account's entry in the user database says.
func Home() (string, error) {
	if home := os.Getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Clean(home), nil
	}
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err == nil && !filepath.IsAbs(u.HomeDir) {
		err = fmt.Errorf("user %s has no home directory", u.Username)
	}
	if err != nil {
		return "", fmt.Errorf("HOME is not set: %w", err)
	}
	return u.HomeDir, nil
}
