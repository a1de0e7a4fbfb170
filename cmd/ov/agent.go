package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/machinekey"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store/cache"
	"github.com/opaquevault/ov/pkg/vault"
)

// exitNotRunning is the exit code of `ov agent status` without an agent, as
// systemctl status has it.
const exitNotRunning = 3

// stopTimeout bounds how long `ov agent stop` waits for the agent to end.
const stopTimeout = 20 * time.Second

func newAgentCmd(g *globals) *cobra.Command {
	return command.Group("agent", "Start, stop, lock and install the agent that holds the vault unlocked",
		newAgentStartCmd(g), newAgentStopCmd(g), newAgentStatusCmd(g), newAgentLockCmd(g), newAgentUnlockCmd(g),
		newAgentInstallCmd(), newAgentUninstallCmd())
}

func newAgentStartCmd(g *globals) *cobra.Command {
	var app, env, machineKey string
	var passwordStdin, locked, foreground, acceptRollback bool
	var ttl, idle, stale time.Duration
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the agent: ask once, then hold the vault unlocked",
		Long: `Start the agent. It asks for the master password once, detaches from the terminal
and holds the vault unlocked until it is told to lock or stop, or by --ttl or
--idle.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := agent.Executable()
			if err != nil {
				return err
			}
			// The agent is told where the vault is: it does not read config.toml.
			at, err := access.Locate(g.Vault, machineKey)
			if err != nil {
				return err
			}
			socket := g.Socket
			if socket != "" {
				if socket, err = filepath.Abs(socket); err != nil {
					return err
				}
			}
			argv := []string{"--vault", at.Value}
			for flag, value := range map[string]string{"--socket": socket, "--app": app, "--env": env, "--machine-key": machineKey} {
				if value != "" {
					argv = append(argv, flag, value)
				}
			}
			for flag, set := range map[string]bool{"--password-stdin": passwordStdin, "--locked": locked, "--foreground": foreground,
				"--accept-rollback": acceptRollback} {
				if set {
					argv = append(argv, flag)
				}
			}
			for flag, d := range map[string]time.Duration{"--ttl": ttl, "--idle": idle} {
				if d != 0 {
					argv = append(argv, flag, d.String())
				}
			}
			if cmd.Flags().Changed(maxStale) { // 0 too
				argv = append(argv, "--"+maxStale, stale.String())
			}
			if foreground {
				return syscall.Exec(program, append([]string{program}, argv...), os.Environ())
			}
			if err := agent.Start(program, argv); err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "the agent is ready")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&app, "app", "", "app of requests that name none")
	f.StringVar(&env, "env", "", "env of requests that name none")
	f.StringVar(&machineKey, "machine-key", "", "unlock with this machine key")
	f.BoolVar(&passwordStdin, "password-stdin", false, "read the master password from the first line of standard input")
	f.BoolVar(&locked, "locked", false, "start locked, to be unlocked by: ov agent unlock")
	f.BoolVar(&foreground, "foreground", false, "stay in the foreground")
	f.DurationVar(&stale, maxStale, cache.DefaultMaxStale, "how old what a server has said may be while it is away; 0 for never")
	f.BoolVar(&acceptRollback, "accept-rollback", false, "believe a store that shows an older state than it has before, or an incomplete one, from now on")
	f.DurationVar(&ttl, "ttl", 0, "lock so long after the unlock, such as 8h (default: never)")
	f.DurationVar(&idle, "idle", 0, "lock so long after the last request, such as 30m (default: never)")
	cmd.MarkFlagsMutuallyExclusive("machine-key", "password-stdin", "locked")
	return cmd
}

// agentCmd is a command that talks to the running agent.
func agentCmd(g *globals, cmd *cobra.Command, do func(cmd *cobra.Command, c *agent.Client) error) *cobra.Command {
	cmd.Args = command.Args(cobra.NoArgs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := g.Connect(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return do(cmd, c)
	}
	return cmd
}

func newAgentStopCmd(g *globals) *cobra.Command {
	return agentCmd(g, &cobra.Command{Use: "stop", Short: "Stop the agent, once what is in flight is done"},
		func(cmd *cobra.Command, c *agent.Client) error {
			if err := c.Stop(cmd.Context()); err != nil {
				return err
			}
			return g.waitGone(cmd.Context())
		})
}

// waitGone waits until nothing listens at the agent's socket any more.
func (g *globals) waitGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for {
		target, err := peer.Locate(peer.Options{Socket: g.Socket})
		if err == nil {
			var conn io.Closer
			if conn, err = target.Dial(ctx); err == nil {
				_ = conn.Close()
			}
		}
		var none *peer.NotRunning
		if errors.As(err, &none) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent has not ended in %v", stopTimeout)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func newAgentStatusCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say whether the agent runs and what it has open",
		Long: `Say whether the agent runs and what it has open. Exit codes: 0 if it runs, locked
or not; 3 if it does not.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := g.agentReport(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = command.PrintJSON(cmd.OutOrStdout(), report)
			} else {
				report.print(cmd.OutOrStdout())
			}
			if err == nil && !report.Running {
				err = command.Exit(errors.New(""), exitNotRunning)
			}
			return err
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// agentReport is what can be said of the agent.
type agentReport struct {
	Running bool   `json:"running"`
	Socket  string `json:"socket,omitempty"`
	Why     string `json:"why,omitempty"` // it is not running
	*agent.Status
	// In place of those of Status, whose keys would be those of a Go type.
	Scope   *refJSON `json:"scope,omitempty"`   // what the key opens, if less than all
	Context *refJSON `json:"context,omitempty"` // of requests that name none
}

type refJSON struct {
	App string `json:"app,omitempty"`
	Env string `json:"env,omitempty"`
}

func jsonRef(ref vault.Ref) *refJSON {
	if ref == (vault.Ref{}) {
		return nil
	}
	return &refJSON{ref.App, ref.Env}
}

func (g *globals) agentReport(ctx context.Context) (agentReport, error) {
	target, err := peer.Locate(peer.Options{Socket: g.Socket})
	var c *agent.Client
	if err == nil {
		c, err = agent.Connect(ctx, target)
	}
	var none *peer.NotRunning
	if errors.As(err, &none) {
		return agentReport{Socket: none.Socket, Why: err.Error()}, nil
	}
	if err != nil {
		return agentReport{}, err
	}
	defer func() { _ = c.Close() }()
	status, err := c.Status(ctx)
	return agentReport{Running: true, Socket: target.Socket, Status: &status,
		Scope: jsonRef(status.Scope), Context: jsonRef(status.Context)}, err
}

func (r agentReport) print(w io.Writer) {
	if !r.Running {
		fmt.Fprintf(w, "agent:    not running (%s)\n", hint.Text(r.Why))
		return
	}
	state := "locked: " + hint.Text(r.LockedBecause)
	if r.Unlocked {
		state = "unlocked since " + r.UnlockedAt.Local().Format(time.DateTime) + ", opens " + r.Level
		if r.Scope != nil {
			state += " " + r.Scope.App
			if r.Scope.Env != "" {
				state += "/" + r.Scope.Env
			}
		}
	}
	fmt.Fprintf(w, "agent:    %s\n  pid:    %d, version %s, since %s\n  socket: %s\n  vault:  %s\n",
		state, r.PID, hint.Text(r.Version), r.Started.Local().Format(time.DateTime), safefile.Quote(r.Socket), safefile.Quote(r.Vault))
	if r.Server != nil {
		printServer(w, *r.Server)
	}
	if r.Unlocked {
		fmt.Fprintf(w, "  memory: %s\n", r.Memory)
	}
	if r.LocksAt != nil {
		fmt.Fprintf(w, "  locks:  at %s\n", r.LocksAt.Local().Format(time.DateTime))
	}
	if r.IdleSeconds > 0 {
		fmt.Fprintf(w, "  locks:  after %v without a request\n", time.Duration(r.IdleSeconds)*time.Second)
	}
}

func printServer(w io.Writer, s agent.FarStatus) {
	if s.AwaySince == nil {
		fmt.Fprintln(w, "  server: answers")
		return
	}
	fmt.Fprintf(w, "  server: away since %s: %s\n", s.AwaySince.Local().Format(time.DateTime), hint.Text(s.AwayBecause))
	if s.AsOf != nil {
		fmt.Fprintf(w, "          served instead is what it said at %s\n", s.AsOf.Local().Format(time.DateTime))
	}
}

func newAgentLockCmd(g *globals) *cobra.Command {
	return agentCmd(g, &cobra.Command{Use: "lock", Short: "Make the agent forget its key, and go on running"},
		func(cmd *cobra.Command, c *agent.Client) error { return c.Lock(cmd.Context()) })
}

func newAgentUnlockCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	cmd := agentCmd(g, &cobra.Command{Use: "unlock", Short: "Give a locked agent the key"},
		func(cmd *cobra.Command, c *agent.Client) error {
			if u.machineKey != "" {
				key, err := machinekey.Read(u.machineKey)
				if err != nil {
					return err
				}
				defer key.Destroy()
				return c.UnlockKey(cmd.Context(), key)
			}
			password, err := u.password(cmd.InOrStdin(), "Master password: ")
			if err != nil {
				return noTerminal(err)
			}
			defer password.Destroy()
			return c.Unlock(cmd.Context(), password)
		})
	cmd.Flags().StringVar(&u.machineKey, "machine-key", "", "unlock with this machine key")
	passwordStdinFlag(cmd, u, "read the master password from the first line of standard input")
	cmd.MarkFlagsMutuallyExclusive("machine-key", "password-stdin")
	return cmd
}
