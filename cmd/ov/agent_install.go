package main

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/deploy/launchd"
	"github.com/opaquevault/ov/deploy/systemd"
	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/login"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/xdg"
)

// newAgentInstallCmd is "ov agent install": the agent as a system service.
func newAgentInstallCmd() *cobra.Command {
	var o struct {
		key, app, env, user, vault string
		enable                     bool
	}
	cmd := &cobra.Command{
		Use:   "install --machine-key FILE --app APP --env ENV --user USER [--enable]",
		Short: "Install the agent as a service that starts at boot",
		Long: `Install the agent as a service that starts at boot, unlocked by a machine key.

On Linux it is a systemd system service and root installs it. Written are
` + systemd.UnitPath + `, whose command line names all that the agent
opens, and /etc/ov/agent.socket, by which clients find the agent. /etc/ov becomes
root's, mode 0755; the machine key stays as it is, the service account's.

On macOS it is a LaunchAgent of the user who installs it.

The agent is for callers that ask it, such as an MCP client. A service that is
to start without anyone at the keyboard needs no agent: put
"ov run --machine-key FILE" into its own unit.`,
		Example: `  sudo ov agent install --machine-key /etc/ov/myapp.key \
    --app myapp --env production --user $USER --enable`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := filepath.Abs(o.key)
			if err != nil {
				return err
			}
			program, err := agent.Executable()
			if err != nil {
				return err
			}
			if program, err = filepath.EvalSymlinks(program); err != nil {
				return err
			}
			if runtime.GOOS == "darwin" {
				return installLaunchAgent(cmd, launchd.Params{Agent: program, Vault: o.vault,
					MachineKey: key, App: o.app, Env: o.env}, o.user, o.enable)
			}
			if err := needRoot("install"); err != nil {
				return err
			}
			if o.user == "" {
				return hint.Errorf("name the account that your service runs as: --user $USER", "--user is missing")
			}
			account, uid, err := systemd.Account(o.user)
			if err != nil {
				return err
			}
			if o.vault == "" && login.HasCompanion(key) {
				l, err := login.ReadCompanionOf(key, uid)
				if err != nil {
					return err
				}
				l.Wipe()
				o.vault = l.URL
			}
			vault, err := vaultOf(account, o.vault)
			if err != nil {
				return err
			}
			return systemd.Install(cmd.OutOrStdout(), systemd.Params{Agent: program, Vault: vault,
				MachineKey: key, App: o.app, Env: o.env, User: o.user}, o.enable)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "machine-key", "", "machine key that unlocks the agent, owned by --user")
	f.StringVar(&o.app, "app", "", "app that the agent serves")
	f.StringVar(&o.env, "env", "", "environment that the agent serves")
	f.StringVar(&o.user, "user", "", "account that the agent runs as, not root")
	f.StringVar(&o.vault, "vault", "", "vault file, or the address of its server (default: the server that the machine key was made for, or --user's ~/.local/share/ov/vault.db)")
	f.BoolVar(&o.enable, "enable", false, "start the agent, now and at each boot")
	for _, name := range []string{"machine-key", "app", "env"} {
		_ = cmd.MarkFlagRequired(name) // fails only for a flag that is not there
	}
	return cmd
}

// newAgentUninstallCmd is "ov agent uninstall".
func newAgentUninstallCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "uninstall",
		Short: "Stop the agent and remove its service",
		Long: `Stop the agent and remove its service and the file by which clients find it.
Machine keys and vaults are kept.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if runtime.GOOS == "darwin" {
				home, err := os.UserHomeDir()
				if err != nil {
					return err
				}
				return launchd.Uninstall(cmd.OutOrStdout(), home)
			}
			if err := needRoot("uninstall"); err != nil {
				return err
			}
			return systemd.Uninstall(cmd.OutOrStdout())
		},
	}
}

func needRoot(verb string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return hint.Errorf("sudo ov agent "+verb+" …", "only root can %s a system service", verb)
}

// vaultOf returns the server's address if that is named, else the real path of
// the vault file: the one named, else that of the account. Root's own environment says nothing about it. A vault that is
// not there is for Install to complain about.
func vaultOf(account *user.User, named string) (string, error) {
	if stores.IsURL(named) {
		return login.Canonical(named)
	}
	path := named
	if path == "" {
		path = xdg.VaultOf(account.HomeDir, "")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	// The unit binds the vault's directory, so links on the way must not remain.
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return path, nil
	}
	return resolved, err
}

func installLaunchAgent(cmd *cobra.Command, p launchd.Params, name string, enable bool) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	if me.Uid == "0" || (name != "" && name != me.Username) {
		return hint.Errorf("run it as that user, without sudo", "a LaunchAgent is installed by the user who logs in, who is not %s", me.Username)
	}
	p.Home = me.HomeDir
	if p.Vault == "" && login.HasCompanion(p.MachineKey) {
		if p.Vault, err = stores.Default(p.MachineKey); err != nil {
			return err
		}
	}
	if p.Vault, err = vaultOf(me, p.Vault); err != nil {
		return err
	}
	return launchd.Install(cmd.OutOrStdout(), p, enable)
}
