package main

import (
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/launch"
	"github.com/opaquevault/ov/pkg/mask"
	"github.com/opaquevault/ov/pkg/vault"
)

func newRunCmd(g *globals) *cobra.Command {
	u := &unlockFlags{globals: g}
	var t target
	var only []string
	var opts launch.Options
	var masked bool
	cmd := &cobra.Command{
		Use:   "run [--app APP] [--env ENV] [--secrets A,B] -- COMMAND [ARG...]",
		Short: "Become a program with secrets in its environment",
		Long: `Become a program with secrets in its environment.

ov replaces itself by the program (execve): signals, job control, Type=notify
and the exit code are the program's own. Nothing starts unless every requested
secret is there. Without --secrets, and without a list in .ov.yaml, the program
gets every secret of the env.

The vault is opened with --machine-key if given, else through the agent if one
runs, else by asking for the master password.

With --mask, for logs that others read, ov stays: the program is its child, and
every value in the program's output is replaced by [masked NAME], also in base64,
hexadecimal and the escaped and quoted forms that programs print. The program
then sees pipes instead of a terminal. Signals are passed on to it. When it has
ended and left something behind that holds its output open, ov waits two seconds
for more.

OV_ variables are not passed on. Secrets whose names change how a program is
loaded, such as LD_PRELOAD or PATH, are refused.

Exit codes: the program's own; 125 if ov failed, 126 if the program cannot be
executed, 127 if it was not found. With --mask also 128 and the number of the
signal that ended the program.`,
		Example: `  ov run -- ./server
  ov run --app myapp --env production --secrets DATABASE_URL,STRIPE_SECRET_KEY -- ./server
  ov run --app myapp --env production --machine-key /etc/ov/myapp.key -- ./server
  ov run --mask --app myapp --env ci -- make test`,
		Args:        command.Args(cobra.MinimumNArgs(1)),
		Annotations: command.UsageExit(launch.ExitOwn), // the others are its program's
		RunE: func(cmd *cobra.Command, argv []string) error {
			err := run(cmd, u, t, only, cmd.Flags().Changed("secrets"), opts, masked, argv)
			if err == nil {
				return nil
			}
			return command.Exit(err, launch.ExitCode(err))
		},
	}
	u.add(cmd)
	t.add(cmd)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringSliceVar(&only, "secrets", nil, "only these secrets, separated by commas; all of them must be there")
	f.BoolVar(&opts.Clean, "clean-env", false, "pass on nothing but a named minimum (PATH, HOME, LANG, …) besides the secrets")
	f.BoolVar(&masked, "mask", false, "stay, and replace the secrets' values in the program's output")
	f.BoolVar(&opts.AllowUnsafeNames, "allow-unsafe-names", false, "accept secrets whose names change how a program is loaded")
	return cmd
}

// run returns only if the program could not be started, or if its output is
// masked.
func run(cmd *cobra.Command, u *unlockFlags, t target, only []string, named bool, opts launch.Options, masked bool, argv []string) error {
	// One thing happens after the other here. With a second processor the runtime
	// would start threads to look for work, for a third of the whole time.
	runtime.GOMAXPROCS(1)
	ctx := cmd.Context()
	where, err := config.Resolve(config.Options{App: t.app, Env: t.env, Secrets: !named})
	if err != nil {
		return err
	}
	wanted := where.Secrets // variables and the secrets that go into them; nil: all
	if named {
		if len(only) == 0 { // from a shell variable that is not set, most likely
			return hint.Errorf("leave it out to get every secret of the env", "--secrets names no secret")
		}
		wanted = make([]config.Secret, 0, len(only))
		for _, name := range only {
			name = strings.TrimSpace(name)
			wanted = append(wanted, config.Secret{Var: name, Name: name})
		}
	}
	if !opts.AllowUnsafeNames { // then PATH is the one that the program gets
		if _, err := launch.LookPath(argv[0], os.Getenv("PATH")); err != nil {
			return err // before anybody is asked for a password
		}
	}
	if masked { // then ov stays, with the values in its memory
		if err := kek.Harden(); err != nil {
			return err
		}
	}
	s, done, err := u.open(ctx, cmd.InOrStdin())
	if err != nil {
		return err
	}
	sel := vault.Select{}
	if wanted != nil {
		sel.Names = make([]string, len(wanted))
		for i, w := range wanted {
			sel.Names[i] = w.Name
		}
	}
	opts.Inherit, opts.KeyPath = os.Environ(), u.machineKey
	var env *launch.Env
	var set *mask.Set
	ref := vault.Ref{App: where.App.Value, Env: where.Env.Value}
	err = s.Reveal(ctx, ref, sel, func(found []vault.Secret) (err error) {
		list := make([]launch.Secret, len(found))
		for i, secret := range found {
			list[i] = launch.Secret{Name: secret.Name, Value: secret.Value}
			if wanted != nil {
				list[i].Name = wanted[i].Var
			}
		}
		if env, err = launch.Environ(opts, list); err == nil && masked {
			set, err = compileMask(list)
		}
		return err
	})
	done()
	if err != nil {
		env.Wipe()
		return err
	}
	if masked {
		return runMasked(argv, env, set)
	}
	// kek.Do erases at a collection what it left on the heap. Through the agent
	// that is only the key of one answer, whose plaintext is wiped already, and a
	// collection would be a third of the whole start.
	if _, here := s.(*vault.Session); here {
		runtime.GC()
	}
	return launch.Exec(argv, env)
}
