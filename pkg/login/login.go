// Package login keeps what it takes to talk to a server: where it is, the CA
// that its certificate must come from, and an API key.
//
// An account's own logins are in servers.toml. A machine key that was made for a
// vault on a server has one beside it, in the file of its name and ".login", so
// that a service needs nothing of the account's. Whoever can read such a file
// can use the API key, and whoever can replace it decides which server is
// trusted: it is used only if its owner alone (and root) could have read,
// written or swapped it, as a machine key is.
package login

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/xdg"
)

// ErrNone is wrapped when there is no login for a server.
var ErrNone = errors.New("not logged in")

// Login is what it takes to talk to one server.
type Login struct {
	URL    string // as Canonical has it
	CA     []byte // certificates, in PEM, one of which the server's must come from
	APIKey []byte // ov_live_…; the caller wipes it
}

// New returns the login with an API key, in text, for the server at an address.
func New(address string, ca, token []byte) (Login, error) {
	server, err := Canonical(address)
	if err != nil {
		return Login{}, err
	}
	l := Login{server, normalCA(ca), bytes.Clone(token)}
	if err := l.check(); err != nil {
		l.Wipe()
		return Login{}, err
	}
	return l, nil
}

// KeyID names the API key: 16 hexadecimal digits, not secret.
func (l Login) KeyID() string {
	t, err := apikey.Parse(l.APIKey)
	if err != nil {
		return ""
	}
	defer t.Wipe()
	return t.ID()
}

// Wipe erases the API key.
func (l Login) Wipe() { clear(l.APIKey) }

// IsURL reports whether a vault's address is meant as a server's.
func IsURL(address string) bool {
	scheme, _, found := strings.Cut(address, "://")
	return found && scheme != "" && strings.Trim(strings.ToLower(scheme), "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// Canonical returns a server's address in the form by which logins are found:
// https://host:port in lower case, without a port if that is 443.
func Canonical(address string) (string, error) {
	fail := func(what string) error {
		return hint.Errorf("an address looks like this: https://vault.example.com:8443",
			"%s is not the address of a server: %s", safefile.Quote(address), what)
	}
	u, err := url.Parse(address)
	if err != nil { // whose text repeats the address
		return "", fail("it is not a URL")
	}
	switch {
	case u.User != nil: // not repeated: it may be a secret in the wrong place
		return "", hint.Errorf("the API key is asked for by: ov auth login --server URL", "the address of the server has a user or password in it")
	case !strings.EqualFold(u.Scheme, "https"):
		return "", fail("it does not begin with https://")
	case u.Hostname() == "" || strings.ContainsAny(u.Hostname(), " %") || !plain([]byte(u.Hostname())):
		return "", fail("it names no host")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "":
		return "", fail("it has more than a host and a port")
	}
	host := strings.ToLower(u.Hostname())
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	switch port := u.Port(); port {
	case "", "443":
	default:
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", fail("its port is not a number from 1 to 65535")
		}
		host += ":" + strconv.FormatUint(n, 10)
	}
	return "https://" + host, nil
}

// Path returns where the account's logins are: $XDG_CONFIG_HOME/ov/servers.toml,
// by default ~/.config/ov/servers.toml.
func Path() (string, error) { return xdg.Config("servers.toml") }

// Servers are the logins of an account.
type Servers struct {
	File    string  // absolute
	Default string  // URL of the server whose vault is used where no other is named; may be ""
	Logins  []Login // in the order of their URLs
}

// Read returns the account's logins: none if there is no such file.
func Read() (Servers, error) {
	path, err := Path()
	if err != nil {
		return Servers{}, err
	}
	return read(path)
}

func read(path string) (Servers, error) {
	s := Servers{File: path}
	if _, err := os.Lstat(path); absent(err) {
		return s, nil // as cheaply as that: most have no server
	}
	src, err := readPrivate(path, os.Geteuid())
	if absent(err) {
		return s, nil
	}
	if err == nil {
		s, err = parse(src)
		clear(src)
	}
	s.File = path
	return s, in(path, err)
}

// Wipe erases the API keys.
func (s Servers) Wipe() {
	for _, l := range s.Logins {
		l.Wipe()
	}
}

// Find returns the login for a server, which shares its API key with s. The error
// is ErrNone if there is none.
func (s Servers) Find(server string) (Login, error) {
	if i := s.index(server); i >= 0 {
		return s.Logins[i], nil
	}
	return Login{}, hint.Errorf("ov auth login --server "+safefile.Shell(server), "%s: %w", server, ErrNone)
}

func (s Servers) index(server string) int {
	return slices.IndexFunc(s.Logins, func(l Login) bool { return l.URL == server })
}

// Save puts a login in the place of the one for its server, and makes the server
// the default if asked to. It returns the file's path.
func Save(l Login, asDefault bool) (string, error) {
	return update(func(s *Servers) error {
		l.APIKey = bytes.Clone(l.APIKey)
		if i := s.index(l.URL); i >= 0 {
			s.Logins[i] = l
		} else {
			s.Logins = append(s.Logins, l)
		}
		if asDefault {
			s.Default = l.URL
		}
		return nil
	})
}

// Remove forgets the login for a server.
func Remove(server string) error {
	_, err := update(func(s *Servers) error {
		if _, err := s.Find(server); err != nil {
			return err
		}
		s.Logins = slices.DeleteFunc(s.Logins, func(l Login) bool { return l.URL == server })
		if s.Default == server {
			s.Default = ""
		}
		return nil
	})
	return err
}

// update replaces servers.toml in one step, mode 0600, after what others do.
func update(change func(*Servers) error) (string, error) {
	path, err := Path()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	// One at a time, or one of two would lose its change. A file system that has
	// no locks does without.
	lock, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	for errors.Is(unix.Flock(int(lock.Fd()), unix.LOCK_EX), unix.EINTR) {
	}
	s, err := read(path)
	if err != nil {
		return "", err
	}
	defer s.Wipe()
	if err := change(&s); err != nil {
		return "", err
	}
	return path, writePrivate(path, s.format())
}

// Companion returns the path of a machine key's login.
func Companion(keyFile string) string { return keyFile + ".login" }

// HasCompanion reports whether a machine key has a login of its own. It looks at
// no more than whether the file is there.
func HasCompanion(keyFile string) bool {
	_, err := os.Lstat(Companion(keyFile))
	return err == nil
}

// ReadCompanion returns a machine key's login. The error is ErrNone if it has
// none.
func ReadCompanion(keyFile string) (Login, error) {
	return ReadCompanionOf(keyFile, os.Geteuid())
}

// ReadCompanionOf is ReadCompanion for the login of another account's key, which
// only root can read.
func ReadCompanionOf(keyFile string, owner int) (Login, error) {
	path := Companion(keyFile)
	src, err := readPrivate(path, owner)
	if absent(err) {
		return Login{}, fmt.Errorf("%s: %w", safefile.Quote(path), ErrNone)
	}
	if err != nil {
		return Login{}, err
	}
	s, err := parse(src)
	clear(src)
	if err == nil && len(s.Logins) != 1 {
		err = hint.Wrap(&FormatError{Msg: fmt.Sprintf("has %d logins, the login of a machine key is one", len(s.Logins))},
			"make it anew: ov auth derive-machine-key --force --out "+safefile.Shell(keyFile))
	}
	if err != nil {
		return Login{}, in(path, err)
	}
	return s.Logins[0], nil
}

// WriteCompanion writes a machine key's login, mode 0600, in place of another
// one that may be there.
func WriteCompanion(keyFile string, l Login) error {
	return writePrivate(Companion(keyFile), Servers{Logins: []Login{l}}.format())
}

// CanWriteCompanion tells what WriteCompanion would refuse, before there is
// anything to write.
func CanWriteCompanion(keyFile string) error { return canWritePrivate(Companion(keyFile)) }

// RemoveCompanion removes a machine key's login, if it has one.
func RemoveCompanion(keyFile string) error {
	if err := os.Remove(Companion(keyFile)); !absent(err) {
		return err
	}
	return nil
}

const (
	// MaxCA bounds the certificates of a CA, in bytes of PEM.
	MaxCA  = 32 << 10
	maxURL = 300 // a host name has at most 253 characters
)

// check refuses what could not be written, or not be read again.
func (l Login) check() error {
	if c, err := Canonical(l.URL); err != nil || c != l.URL || len(l.URL) > maxURL {
		return errors.New("not the address of a server in its usual form")
	}
	t, err := apikey.Parse(l.APIKey)
	if err != nil {
		return err
	}
	t.Wipe()
	if len(l.CA) > MaxCA {
		return fmt.Errorf("a CA of %d bytes, the bound is %d", len(l.CA), MaxCA)
	}
	_, err = ParseCA(l.CA)
	return err
}

// normalCA returns certificates as they are written: nothing but PEM blocks.
func normalCA(b []byte) []byte {
	var out []byte
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			return out
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
		b = rest
	}
}
