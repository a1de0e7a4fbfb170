package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/stores"
)

// loginFlags say how one logs in to a server.
type loginFlags struct {
	*globals
	server, caFile, fingerprint string
	keyStdin, noDefault         bool
}

func newAuthLoginCmd(g *globals) *cobra.Command {
	l := &loginFlags{globals: g}
	cmd := &cobra.Command{
		Use:   "login --server URL [--ca FILE] [--api-key-stdin] [--no-default]",
		Short: "Log in to an ov-server with an API key",
		Long: `Log in to an ov-server with an API key, which is asked for on the terminal and
kept in servers.toml, mode 0600. From then on the vault on the server is the one
that ov uses where no other is named, but for --no-default. The master password
is another matter: the server never gets it.

From now on the server's certificate must come from the CA that is pinned here:
the one in --ca FILE; the one that the server shows, if --ca-fingerprint is its
SHA-256 fingerprint, as "ov-server init" printed it, or if you say so when you are
shown it; or the one among this system's CAs that vouches for the server.`,
		Example: `  ov auth login --server https://vault.example.com:8443
  ov auth login --server https://vault.example.com:8443 --ca ca.pem
  pass show ov-api-key | ov auth login --server https://vault.example.com:8443 --api-key-stdin`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&l.server, "server", "", "address of the server: https://host:port")
	_ = cmd.MarkFlagRequired("server")
	f.StringVar(&l.caFile, "ca", "", "file with the certificate of the server's CA, in PEM")
	f.StringVar(&l.fingerprint, "ca-fingerprint", "", "SHA-256 fingerprint of the certificate of the server's CA")
	f.BoolVar(&l.keyStdin, "api-key-stdin", false, "read the API key from the first line of standard input")
	f.BoolVar(&l.noDefault, "no-default", false, "leave the vault that ov uses as it is: name this one by --vault URL")
	cmd.MarkFlagsMutuallyExclusive("ca", "ca-fingerprint")
	return cmd
}

func (f *loginFlags) run(cmd *cobra.Command) error {
	ctx, out := cmd.Context(), cmd.ErrOrStderr()
	server, err := login.Canonical(f.server)
	if err != nil {
		return err
	}
	ca, err := f.trust(ctx, out, server)
	if err != nil {
		return err
	}
	l, err := f.apiKey(cmd.InOrStdin(), server, ca)
	if err != nil {
		return err
	}
	defer l.Wipe()
	st, err := stores.Dial(l, f.Options(""))
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	who, err := st.WhoAmI(ctx)
	if err != nil {
		return err
	}
	file, err := login.Save(l, !f.noDefault)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "logged in to %s (%s)\n%s", server, file, describeIdentity(who))
	return f.next(ctx, out, st, who)
}

// trust finds the certificates that the server's must come from.
func (f *loginFlags) trust(ctx context.Context, out io.Writer, server string) ([]byte, error) {
	if f.caFile != "" {
		return readCA(f.caFile)
	}
	known, err := login.Read()
	if err != nil {
		return nil, err
	}
	defer known.Wipe()
	if before, err := known.Find(server); err == nil && f.fingerprint == "" {
		return before.CA, nil // pinned is pinned
	}
	seen, err := login.Probe(ctx, server)
	if err != nil {
		return nil, err
	}
	switch {
	case seen.CA == nil:
		return nil, hint.Errorf("give it: --ca FILE, on the server it is ca.pem", "%s does not show the certificate of its CA", server)
	case f.fingerprint != "" && !login.SameFingerprint(seen.CA, f.fingerprint):
		return nil, hint.Errorf("do not go on unless you know why",
			"the CA of %s is not the one with that fingerprint: its own is %s", server, login.Fingerprint(seen.CA))
	case f.fingerprint == "" && !seen.System:
		err = askTrust(out, server, seen.CA)
	}
	return login.PEM(seen.CA), err
}

// readCA reads the certificates of a CA.
func readCA(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, login.MaxCA+1))
	if err == nil && len(b) > login.MaxCA {
		err = fmt.Errorf("more than %d bytes", login.MaxCA)
	}
	if err == nil {
		_, err = login.ParseCA(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", safefile.Quote(path), err)
	}
	return b, nil
}

// askTrust shows what ssh shows of a host that it does not know yet.
func askTrust(out io.Writer, server string, ca *x509.Certificate) error {
	question := fmt.Sprintf(`%s has a certificate of a CA that this machine does not know:
  name         %.80q
  valid until  %s
  SHA-256      %s
Is that what "ov-server init" printed on the server? Type yes to trust it: `,
		server, ca.Subject.CommonName, ca.NotAfter.UTC().Format(time.DateOnly), login.Fingerprint(ca))
	err := confirm(question)
	if errors.Is(err, prompt.ErrNoTerminal) {
		err = hint.Errorf("--ca FILE, or --ca-fingerprint "+login.Fingerprint(ca)+" if that is what ov-server init has printed",
			"%s has a certificate of a CA that this machine does not know, and %w", server, prompt.ErrNoTerminal)
	}
	if err == nil {
		fmt.Fprintln(out, "the CA is trusted from now on, for this server alone")
	}
	return err
}

// apiKey reads the API key.
func (f *loginFlags) apiKey(stdin io.Reader, server string, ca []byte) (login.Login, error) {
	read := func() (login.Login, error) {
		key, err := prompt.Secret("API key (ov_live_…): ")
		if f.keyStdin {
			key, err = prompt.Line(stdin, 4*apikey.Size)
		}
		if errors.Is(err, prompt.ErrNoTerminal) {
			return login.Login{}, hint.Wrap(err, "give the API key on standard input: --api-key-stdin")
		}
		if err != nil {
			return login.Login{}, err
		}
		defer key.Destroy()
		return login.New(server, ca, []byte(strings.TrimSpace(string(key.Bytes()))))
	}
	l, err := read()
	if errors.Is(err, apikey.ErrMistyped) || errors.Is(err, apikey.ErrMalformed) {
		err = hint.Wrap(err, "copy it as it was shown, all of it; a new one: ov-server apikey create, or ov apikey create")
	}
	return l, err
}

// describeIdentity says who one is to a server.
func describeIdentity(who remote.Identity) string {
	k := shown(who.APIKey)[0]
	text := fmt.Sprintf("  account   %s\n  API key   %s %s\n  scope     %s\n", hex.EncodeToString(who.Account[:]), k.ID, safefile.Quote(k.Name), k.Reach())
	if k.Expires != nil {
		text += fmt.Sprintf("  expires   %s\n", k.Expires.Local().Format(time.DateTime))
	}
	return text
}

// next says what to do now.
func (f *loginFlags) next(ctx context.Context, out io.Writer, st *remote.Store, who remote.Identity) error {
	at, err := access.Locate("", "")
	if err != nil {
		return err
	}
	if !f.noDefault && at.Value != st.URL() && at.Source == config.FromConfig {
		fmt.Fprintf(out, "ov: warning: vault.path in %s still names another vault: %s\n", at.File, at.Value)
	}
	if who.APIKey.App != "" {
		return nil // it may not see whether there is a vault
	}
	there := false
	err = st.View(ctx, func(r store.Reader) error {
		account, err := r.Get([]byte("A"))
		there = account != nil
		return err
	})
	if err != nil || there {
		return err
	}
	local, err := config.DefaultVault()
	if err == nil {
		fmt.Fprintln(out, "There is no vault there yet. A new one: ov auth init")
		if _, serr := os.Stat(local); serr == nil {
			fmt.Fprintf(out, "The one of this machine: ov vault push --from %s --to %s\n", safefile.Shell(local), st.URL())
		}
	}
	return err
}

func newAuthLogoutCmd(*globals) *cobra.Command {
	var server string
	cmd := &cobra.Command{
		Use:   "logout [--server URL]",
		Short: "Forget the API key for a server",
		Long: `Forget the API key for a server: the default one, or the one that is named. The
API key itself stays what it is until it is revoked: "ov apikey revoke ID".`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			known, err := login.Read()
			if err != nil {
				return err
			}
			defer known.Wipe()
			if server == "" {
				server = known.Default
			}
			if server == "" {
				return hint.Errorf("name one: --server URL", "%w to a server that is the default", login.ErrNone)
			}
			if server, err = login.Canonical(server); err != nil {
				return err
			}
			l, err := known.Find(server)
			if err != nil {
				return err
			}
			if err := login.Remove(server); err != nil {
				return err
			}
			if err := stores.Forget(l); err != nil {
				return fmt.Errorf("logged out of %s, but what is cached of it is still here: %w", server, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "logged out of %s; the API key %s holds until it is revoked\n", server, l.KeyID())
			return nil
		},
	}
	cmd.Flags().StringVar(&server, "server", "", "address of the server (default: the default one)")
	return cmd
}

// loginJSON is what `ov auth status` tells.
type loginJSON struct {
	Server  string         `json:"server"`
	Account string         `json:"account"`
	APIKey  command.APIKey `json:"api_key"`
	Version string         `json:"version"` // of the server
}

func newAuthStatusCmd(g *globals) *cobra.Command {
	var server, machineKey string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [--server URL]",
		Short: "Say whose API key is used for a server, and what it may do",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := g.connect(server, machineKey)
			if err != nil {
				return err
			}
			defer func() { _ = st.Close() }()
			who, err := st.WhoAmI(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return command.PrintJSON(cmd.OutOrStdout(), loginJSON{st.URL(), hex.EncodeToString(who.Account[:]), shown(who.APIKey)[0], who.Version})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "logged in to %s, version %s\n%s", st.URL(), hint.Text(who.Version), describeIdentity(who))
			return err
		},
	}
	cmd.Flags().StringVar(&server, "server", "", "address of the server (default: that of the vault in use)")
	cmd.Flags().StringVar(&machineKey, "machine-key", "", "the API key that goes with this machine key")
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// connect returns the server that is named, or that the vault in use is on.
func (g *globals) connect(server, machineKey string) (*remote.Store, error) {
	if server == "" {
		at, err := access.Locate(g.Vault, machineKey)
		if err != nil {
			return nil, err
		}
		if server = at.Value; !stores.IsURL(server) {
			return nil, hint.Errorf("log in: ov auth login --server URL; or name the server: --vault URL",
				"the vault in use is the file %s: API keys are of servers", server)
		}
	}
	return stores.Server(server, g.Options(machineKey))
}
