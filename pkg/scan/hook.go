package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/scan/options"
)

// hookLine marks a hook as ours.
const hookLine = "# Written by ov scan --install-hook, and removed by ov scan --uninstall-hook."

// hookScript is the hook. Programs that run git for people may have a short PATH,
// so it has ov's own; and ov may move.
func hookScript(ov string) []byte {
	return fmt.Appendf(nil, `#!/bin/sh
%s
ov=%s
[ -x "$ov" ] || ov=ov
exec "$ov" scan --staged
`, hookLine, shellWord(ov))
}

// shellWord quotes a word for sh(1).
func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// runHook installs or removes the hook of the repositories that the paths are in.
func runHook(ctx context.Context, o options.Scan, ov string, stdout io.Writer) error {
	for _, p := range o.Paths {
		r, err := openRepo(ctx, p, false)
		if err != nil {
			return err
		}
		// It heeds core.hooksPath, which may be relative to where hooks run, and knows
		// where a worktree has its hooks.
		r.dir = r.top
		dir, err := r.output(ctx, "rev-parse", "--git-path", "hooks")
		if err != nil {
			return err
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(r.dir, dir)
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
		path := filepath.Join(dir, "pre-commit")
		var said string
		if o.Hook == options.Uninstall {
			said, err = uninstallHook(path)
		} else {
			said, err = installHook(path, ov)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %s\n", safefile.Quote(path), said)
		if shared, err := r.output(ctx, "config", "--get", "core.hooksPath"); err == nil && filepath.IsAbs(shared) && o.Hook == options.Install {
			fmt.Fprintln(stdout, "note: core.hooksPath says so; the hook is run in every repository that has it there")
		}
	}
	return nil
}

// hook is what is at a hook's path.
type hook struct {
	text []byte
	none bool // there is nothing
	ours bool // it was written here
	runs bool // git runs it: it may be executed
}

func readHook(path string) (h hook, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return hook{none: true}, nil
	}
	if err != nil {
		return h, fmt.Errorf("cannot look at the hook %s: %w", safefile.Quote(path), cause(err))
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<20 {
		return h, nil
	}
	h.runs = unix.Access(path, unix.X_OK) == nil // as git's find_hook
	if h.text, err = os.ReadFile(path); err != nil {
		return h, fmt.Errorf("cannot read the hook %s: %w", safefile.Quote(path), cause(err))
	}
	h.ours = bytes.HasPrefix(h.text, []byte("#!/bin/sh\n"+hookLine+"\n"))
	return h, nil
}

// scans reports whether a line of the hook, and no comment, scans what is staged.
func (h hook) scans() bool {
	for line := range bytes.Lines(h.text) {
		if code, _, _ := bytes.Cut(line, []byte("#")); bytes.Contains(code, []byte("ov scan --staged")) {
			return true
		}
	}
	return false
}

func installHook(path, ov string) (string, error) {
	h, err := readHook(path)
	script := hookScript(ov)
	switch {
	case err != nil:
		return "", err
	case bytes.Equal(h.text, script) && h.runs:
		return "is there already", nil
	case h.scans() && !h.ours && !h.runs:
		return "", hint.Errorf("chmod +x "+safefile.Shell(path),
			"the hook at %s runs ov scan --staged, but git does not run it: it is not executable", safefile.Quote(path))
	case h.scans() && !h.ours:
		return "runs ov scan --staged already", nil
	case !h.none && !h.ours:
		to := "it"
		if dir := filepath.Dir(path); filepath.Base(dir) == "_" && filepath.Base(filepath.Dir(dir)) == ".husky" {
			to = ".husky/pre-commit" // which husky's own, made anew each time, runs
		}
		return "", hint.Errorf("add this line to "+to+": ov scan --staged || exit 1",
			"there is another hook at %s, which is left as it is", safefile.Quote(path))
	}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // as git makes it
		return "", fmt.Errorf("cannot make the folder for hooks %s: %w", safefile.Quote(dir), cause(err))
	}
	if err := replaceFile(path, script, 0o755); err != nil {
		return "", fmt.Errorf("cannot write the hook %s: %w", safefile.Quote(path), cause(err))
	}
	if h.none {
		return "installed", nil
	}
	return "renewed", nil
}

func uninstallHook(path string) (string, error) {
	h, err := readHook(path)
	switch {
	case err != nil:
		return "", err
	case h.none:
		return "is not there", nil
	case !h.ours:
		return "", hint.Errorf("remove ov scan --staged from it by hand", "the hook at %s was not written by ov", safefile.Quote(path))
	}
	if err := os.Remove(path); err != nil {
		return "", fmt.Errorf("cannot remove the hook %s: %w", safefile.Quote(path), cause(err))
	}
	return "removed", nil
}
