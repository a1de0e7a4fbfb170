package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/prompt"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/stores"
	"github.com/opaquevault/ov/pkg/transfer"
)

func newVaultCmd(g *globals) *cobra.Command {
	return command.Group("vault", "Move a vault to or from a server, back it up and restore it",
		newVaultPushCmd(g), newVaultPullCmd(g), newVaultBackupCmd(g), newVaultRestoreCmd(g))
}

// These commands move ciphertext. They have no key, ask for no password, and an
// agent has no part in them.

const moveText = `The records are moved as they are: no key or password is needed, nothing is
decrypted or encrypted. Killed on the way, the same command goes on where it was;
until it is done, nothing opens at the destination. At the end all records there
are counted and compared by a digest.

A vault that is there already is replaced in one step, if it is an older state of
the same one. If it has anything that would be lost, such as a newer version of a
secret, that is said and nothing is done, but for --force. A file that is replaced
is kept beside the new one.`

func newVaultPushCmd(g *globals) *cobra.Command {
	m := &moveFlags{globals: g}
	cmd := &cobra.Command{
		Use:   "push --to ADDRESS [--from ADDRESS] [--force]",
		Short: "Move a vault's ciphertext to a server, or to a file",
		Long: "Move a vault's ciphertext to a server, or to a file.\n\n" + moveText + `

Without --from, the vault is the one in use, or, if that is the destination, the
file of this account.`,
		Example: `  ov vault push --to https://vault.example.com:8443`,
		Args:    command.Args(cobra.NoArgs),
		RunE:    m.run,
	}
	m.add(cmd)
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func newVaultPullCmd(g *globals) *cobra.Command {
	m := &moveFlags{globals: g}
	cmd := &cobra.Command{
		Use:   "pull --from ADDRESS [--to ADDRESS] [--force]",
		Short: "Move a vault's ciphertext from a server, or from a file",
		Long: "Move a vault's ciphertext from a server, or from a file.\n\n" + moveText + `

What has come from a server is kept in .NAME.pull beside the destination NAME until
all has, without the account's record: it is no vault. The next time, the server
compares it by digests and sends what is missing or different.

Without --to, the destination is the vault in use, or, if that is the source, the
file of this account.`,
		Example: `  ov vault pull --from https://vault.example.com:8443 --to copy.db`,
		Args:    command.Args(cobra.NoArgs),
		RunE:    m.run,
	}
	m.add(cmd)
	_ = cmd.MarkFlagRequired("from")
	return cmd
}

// moveFlags say which vault is moved where. One of the addresses may be "".
type moveFlags struct {
	*globals
	from, to      string
	force, asJSON bool
}

func (m *moveFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&m.from, "from", "", "source: vault file, or https:// address of an ov-server")
	f.StringVar(&m.to, "to", "", "destination: the same")
	f.BoolVar(&m.force, "force", false, "replace a vault of the same account, whatever would be lost")
	command.JSONFlag(cmd, &m.asJSON)
}

func (m *moveFlags) run(cmd *cobra.Command, _ []string) error {
	from, err := m.address(m.from, m.to)
	if err != nil {
		return err
	}
	to, err := m.address(m.to, m.from)
	if err != nil {
		return err
	}
	if from == to {
		return hint.Errorf("name both: --from and --to", "source and destination are the same vault: %s", from)
	}
	res, err := m.moveKeeping(cmd, from, to, transfer.Options{Force: m.force})
	if err != nil {
		return err
	}
	if m.force {
		sayRollback(cmd, to)
	}
	return report(cmd, m.asJSON, moved{from, to, res})
}

// address returns an address in full. Without one it is the vault in use, or the
// account's file if that is the other end.
func (g *globals) address(named, other string) (string, error) {
	if named != "" {
		at, err := access.Locate(named, "")
		return at.Value, err
	}
	at, err := access.Locate(g.Vault, "")
	if err != nil || other == "" || g.Vault != "" {
		return at.Value, err
	}
	far, err := access.Locate(other, "")
	if err == nil && far.Value == at.Value {
		return config.DefaultVault()
	}
	return at.Value, err
}

// end returns one end of a move. The caller calls the returned function when it
// is done.
func (g *globals) end(address string) (transfer.End, func(), error) {
	if !stores.IsURL(address) {
		st := bolt.New(address)
		return transfer.End{Name: address, Store: st, Create: st.Create, File: address}, func() {}, nil
	}
	l, err := stores.Login(address, "")
	if err != nil {
		return transfer.End{}, nil, err
	}
	defer l.Wipe()
	key, err := apikey.Parse(l.APIKey)
	if err != nil {
		return transfer.End{}, nil, fmt.Errorf("%s: %w", l.URL, err)
	}
	defer key.Wipe()
	account := key.Account()
	st, err := stores.Dial(l, g.Options(""))
	if err != nil {
		return transfer.End{}, nil, err
	}
	return transfer.End{Name: address, Store: st, ReadAll: st.ReadAll, Account: hex.EncodeToString(account[:])}, func() { _ = st.Close() }, nil
}

// move moves the vault at one address to another.
func (g *globals) move(cmd *cobra.Command, from, to string, o transfer.Options) (transfer.Result, error) {
	source, done, err := g.end(from)
	if err != nil {
		return transfer.Result{}, err
	}
	defer done()
	destination, done, err := g.end(to)
	if err != nil {
		return transfer.Result{}, err
	}
	defer done()
	if w := cmd.ErrOrStderr(); command.IsTerminal(w) {
		bar := &moveBar{to: w}
		defer bar.end()
		o.Progress = bar.progress
	}
	return transfer.Copy(cmd.Context(), source, destination, o)
}

// moveBar shows how far a move is.
type moveBar struct {
	to    io.Writer
	phase transfer.Phase
	bar   *progressbar.ProgressBar
}

func (b *moveBar) progress(phase transfer.Phase, done, total int) {
	if phase != b.phase {
		b.end()
		if total == 0 {
			total = -1 // a spinner
		}
		b.phase = phase
		b.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(b.to),
			progressbar.OptionSetDescription(string(phase)), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())
		_ = b.bar.RenderBlank()
	}
	_ = b.bar.Set(done)
}

func (b *moveBar) end() {
	if b.bar != nil {
		_ = b.bar.Finish()
	}
}

// moved is the outcome of a move.
type moved struct {
	From string `json:"from"`
	To   string `json:"to"`
	transfer.Result
}

func report(cmd *cobra.Command, asJSON bool, m moved) error {
	if asJSON {
		return command.PrintJSON(cmd.OutOrStdout(), m)
	}
	what := fmt.Sprintf("wrote %d", m.Written)
	if m.Deleted > 0 {
		what += fmt.Sprintf(" and removed %d", m.Deleted)
	}
	if m.Written+m.Deleted == 0 {
		what = "there was nothing to do"
	}
	if m.Resumed > 0 {
		what += fmt.Sprintf("; %d had come before", m.Resumed)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s and %s have the same %d records (digest %s); %s\n",
		m.From, m.To, m.Records, m.Digest[:16], what)
	return err
}

func newVaultBackupCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the vault's ciphertext, as it is at one moment, to a new file",
		Long: `Write the vault's ciphertext, as it is at one moment, to a new file: an ordinary
vault file, mode 0600, that "--vault FILE" opens with the master password and the
machine keys of that moment. A file that is there is not overwritten.`,
		Example: `  ov vault backup vault-monday.db`,
		Args:    command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			file, err := filepath.Abs(argv[0])
			if err != nil {
				return err
			}
			exists := hint.Errorf("name a new file", "backup %s: %w", file, fs.ErrExist)
			if _, err := os.Lstat(file); err == nil {
				return exists
			}
			from, err := g.address("", "")
			if err != nil {
				return err
			}
			res, err := g.move(cmd, from, file, transfer.Options{Fresh: true})
			if errors.Is(err, fs.ErrExist) {
				return exists
			}
			if err != nil {
				return err
			}
			return report(cmd, asJSON, moved{from, file, res})
		},
	}
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

func newVaultRestoreCmd(g *globals) *cobra.Command {
	var asJSON, yes bool
	cmd := &cobra.Command{
		Use:   "restore FILE [--yes]",
		Short: "Make the vault what it was when a backup was made",
		Long: `Make the vault what it was when a backup was made, in one step. What was written
since is gone; the master password and the machine keys are those of then.

A file that is replaced is kept beside the new one. On a server, only a vault of
the same account is replaced. Whoever has seen a newer state of it there is warned
of a rollback from then on, and has to say --accept-rollback once.`,
		Example: `  ov vault restore vault-monday.db`,
		Args:    command.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			file, err := filepath.Abs(argv[0])
			if err != nil {
				return err
			}
			to, err := g.address("", "")
			if err != nil {
				return err
			}
			if file == to {
				return fmt.Errorf("the backup and the vault are the same file: %s", file)
			}
			if !yes {
				err := confirm(fmt.Sprintf("Replace the vault %s by the backup %s? Type yes: ", to, file))
				if errors.Is(err, prompt.ErrNoTerminal) {
					return hint.Wrap(err, "if you are sure: --yes")
				}
				if err != nil {
					return err
				}
			}
			res, err := g.restore(cmd, file, to)
			if err != nil {
				return err
			}
			sayRollback(cmd, to)
			return report(cmd, asJSON, moved{file, to, res})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	command.JSONFlag(cmd, &asJSON)
	return cmd
}

// sayRollback says what follows when a server's vault may have gone back.
func sayRollback(cmd *cobra.Command, to string) {
	if stores.IsURL(to) {
		fmt.Fprintln(cmd.ErrOrStderr(), "who has seen a newer state of the vault there needs, once: ov secret list --accept-rollback")
	}
}

// restore replaces what is at an address.
func (g *globals) restore(cmd *cobra.Command, file, to string) (transfer.Result, error) {
	if stores.IsURL(to) {
		return g.move(cmd, file, to, transfer.Options{Force: true})
	}
	res, err := g.moveKeeping(cmd, file, to, transfer.Options{AnyAccount: true})
	if errors.Is(err, store.ErrDamaged) {
		if _, rerr := transfer.Read(cmd.Context(), transfer.End{Name: to, Store: bolt.New(to)}); errors.Is(rerr, store.ErrDamaged) {
			return g.restoreDamaged(cmd, file, to, keptName(to))
		}
	}
	return res, err
}

// keptName is what a file that was replaced is called.
func keptName(path string) string {
	return path + ".replaced-" + time.Now().UTC().Format("20060102T150405.000Z")
}

// moveKeeping is move, and keeps a copy of a file that it replaces: where a vault
// comes from is not trusted, and without a key nobody can tell what it is worth.
func (g *globals) moveKeeping(cmd *cobra.Command, from, to string, o transfer.Options) (transfer.Result, error) {
	if stores.IsURL(to) {
		return g.move(cmd, from, to, o)
	}
	ctx, old := cmd.Context(), transfer.End{Name: to, Store: bolt.New(to)}
	before, err := transfer.Read(ctx, old)
	if errors.Is(err, store.ErrNoVault) {
		return g.move(cmd, from, to, o)
	}
	if err != nil {
		return transfer.Result{}, err
	}
	kept := bolt.New(keptName(to))
	if err := kept.Create(ctx, before.Batch()); err != nil {
		return transfer.Result{}, fmt.Errorf("cannot keep what is replaced: %w", err)
	}
	o.Replaces = before
	res, err := g.move(cmd, from, to, o)
	if now, rerr := transfer.Read(ctx, old); rerr == nil && bytes.Equal(now.Digest(), before.Digest()) {
		return res, errors.Join(err, os.Remove(kept.Path())) // nothing was replaced
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "what was replaced is in %s\n", kept.Path())
	return res, err
}

// restoreDamaged puts another file in the place of one that cannot be read, which
// keeps its contents under another name.
func (g *globals) restoreDamaged(cmd *cobra.Command, file, to, kept string) (transfer.Result, error) {
	whole := to + ".restored"
	if err := os.Remove(whole); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		return transfer.Result{}, err
	}
	res, err := g.move(cmd, file, whole, transfer.Options{Fresh: true})
	if err == nil {
		err = os.Link(to, kept)
	}
	if err == nil {
		err = os.Rename(whole, to)
	}
	if err != nil {
		_ = os.Remove(whole)
		return transfer.Result{}, err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "the damaged file is %s\n", safefile.Quote(kept))
	return res, nil
}

// maxConfirm bounds what is read of an answer, in bytes.
const maxConfirm = 256

// confirm asks on the terminal. It returns an error unless the answer is yes.
func confirm(question string) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", prompt.ErrNoTerminal, err)
	}
	defer func() { _ = tty.Close() }()
	if _, err := fmt.Fprint(tty, question); err != nil {
		return err
	}
	answer, err := prompt.Line(tty, maxConfirm)
	if err != nil {
		return err
	}
	defer answer.Destroy()
	if string(answer.Bytes()) != "yes" {
		return errors.New("the answer was not yes: nothing was done")
	}
	return nil
}
