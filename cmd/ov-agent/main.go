// Ov-agent is the daemon that holds an unlocked vault and serves it to the
// programs of its account. Usually `ov agent start` or systemd runs it.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek/guard"
	"github.com/opaquevault/ov/pkg/store/cache"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/vault"
	"github.com/opaquevault/ov/pkg/version"
)

func main() {
	guard.Install()
	err := newCommand().Execute()
	if err == nil {
		return
	}
	if !errors.Is(err, errReported) {
		hint.Print(os.Stderr, "ov-agent", err)
	}
	os.Exit(1)
}

// errReported is a failure that the program which started this one tells of.
var errReported = errors.New("reported")

func newCommand() *cobra.Command {
	d := &agent.Daemon{Stdin: os.Stdin, Version: version.String()}
	var ref vault.Ref
	var foreground, detach, verbose bool
	cmd := &cobra.Command{
		Use:   "ov-agent",
		Short: "Hold an unlocked vault and serve it to the programs of this account",
		Long: `ov-agent unlocks a vault, holds its key in locked memory and serves gRPC on a
Unix socket to its own account and root. Without --foreground it asks for the
master password and detaches, as "ov agent start" does.`,
		Args:          cobra.NoArgs,
		Version:       d.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !foreground && !detach {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				return agent.Start(self, os.Args[1:])
			}
			if !detach {
				return run(cmd.Context(), d, ref, nil, verbose)
			}
			parent, err := agent.FindParent()
			if err != nil {
				return err
			}
			err = run(cmd.Context(), d, ref, parent, verbose)
			if err != nil && parent.Failed(err) == nil {
				return errReported
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.Socket, "socket", "", "socket to listen on (default: $XDG_RUNTIME_DIR/ov-agent/ov-agent.sock)")
	f.StringVar(&d.Vault, "vault", "", "vault file, or server's address (default: the machine key's, ov auth login's or $XDG_DATA_HOME/ov/vault.db)")
	f.StringVar(&ref.App, "app", "", "app of requests that name none")
	f.StringVar(&ref.Env, "env", "", "env of requests that name none")
	f.StringVar(&d.MachineKey, "machine-key", "", "unlock with this machine key file")
	f.BoolVar(&d.PasswordStdin, "password-stdin", false, "read the master password from standard input")
	f.BoolVar(&d.Locked, "locked", false, "start locked, to be unlocked by: ov agent unlock")
	f.DurationVar(&d.MaxStale, "max-stale", cache.DefaultMaxStale, "how old what a server has said may be while it is away; 0 for never")
	f.BoolVar(&d.AcceptRollback, "accept-rollback", false, "believe a server that shows an older state than it has before, from now on")
	f.DurationVar(&d.TTL, "ttl", 0, "lock so long after the unlock, such as 8h (default: never)")
	f.DurationVar(&d.Idle, "idle", 0, "lock so long after the last request, such as 30m (default: never)")
	f.BoolVar(&foreground, "foreground", false, "stay in the foreground and log to standard error")
	f.BoolVar(&verbose, "verbose", false, "log every request: who asked for what kind of thing, never a name or value")
	f.BoolVar(&detach, agent.ReadyFlag[2:], false, "")
	_ = f.MarkHidden(agent.ReadyFlag[2:])
	cmd.MarkFlagsMutuallyExclusive("machine-key", "password-stdin", "locked")
	return cmd
}

func run(ctx context.Context, d *agent.Daemon, ref vault.Ref, parent *agent.Parent, verbose bool) error {
	var err error
	if d.Vault == "" {
		d.Vault, err = stores.Default(d.MachineKey)
	} else if !stores.IsURL(d.Vault) {
		d.Vault, err = filepath.Abs(d.Vault)
	}
	if err != nil {
		return err
	}
	if d.MaxStale <= 0 {
		d.MaxStale = -1 // never
	}
	d.Context = ref
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	out := os.Stderr
	if parent != nil {
		file, err := agent.OpenLog()
		if err != nil {
			return err
		}
		out = file
		d.Ready = func() error { return parent.Detach(file) }
	}
	d.Log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	return d.Run(ctx)
}
