package scan

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// A repo is a git repository. It may be hostile: its configuration and attributes
// can name programs for git to run. Only git's plumbing is used, to list and read
// objects as they are stored: without external diffs, textconv, filters, hooks,
// signatures, pagers. What would still be run is switched off: see safeConfig and
// gitEnv.
type repo struct {
	dir string   // to run git in
	top string   // of the work tree, or the git directory of a bare repository
	env []string // for git
}

// safeConfig takes precedence over what the repository's configuration says.
var safeConfig = []string{
	"core.fsmonitor=false", // a program, run when the index is read
	"protocol.allow=never", // objects that a partial clone lacks are fetched by programs
}

// openRepo finds the repository that dir is in. A hook has in its environment
// where the repository and the index are that it is run for, which may be
// temporary ones: inHook heeds that.
func openRepo(ctx context.Context, dir string, inHook bool) (*repo, error) {
	r := &repo{dir: dir, env: gitEnv(os.Environ(), inHook)}
	out, err := r.output(ctx, "rev-parse", "--is-bare-repository")
	if err != nil {
		return nil, err
	}
	what := "--show-toplevel"
	if out == "true" {
		what = "--absolute-git-dir"
	}
	if r.top, err = r.output(ctx, "rev-parse", what); err != nil {
		return nil, err
	}
	return r, nil
}

// gitEnv is the environment for git: without its own variables, which redirect it
// and have it run programs and write files.
func gitEnv(environ []string, inHook bool) []string {
	env := slices.DeleteFunc(slices.Clone(environ), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "GIT_") {
			return false
		}
		// githooks(5), and git(1) on quarantined objects.
		return !inHook || !slices.Contains([]string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR",
			"GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH"}, name)
	})
	return append(env,
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "GIT_PAGER=cat",
		"GIT_OPTIONAL_LOCKS=0",     // write no index
		"GIT_NO_REPLACE_OBJECTS=1", // what is there, not what stands for it
		"GIT_LITERAL_PATHSPECS=1",  // a path is a path
		"GIT_NO_LAZY_FETCH=1",      // since git 2.45; before, this does it:
		"GIT_ALLOW_PROTOCOL=none",  // protocol.allow of one protocol would win
		"LC_ALL=C",
	)
}

func (r *repo) command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"--no-pager", "--no-optional-locks"}
	for _, c := range safeConfig {
		all = append(all, "-c", c)
	}
	cmd := exec.CommandContext(ctx, "git", append(all, args...)...)
	cmd.Dir, cmd.Env = r.dir, r.env
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// output runs git and returns what it says, without the newline at the end.
func (r *repo) output(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := r.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", gitError(args[0], err, stderr.Bytes())
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// gitError is what git said, on one line.
func gitError(command string, err error, stderr []byte) error {
	if errors.Is(err, exec.ErrNotFound) {
		return hint.Errorf("install git", "cannot run git: it is not in PATH")
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(stderr)), "\n")
	first = strings.TrimPrefix(strings.TrimPrefix(first, "fatal: "), "error: ")
	if len(first) > 300 {
		first = first[:300]
	}
	if first == "" {
		return fmt.Errorf("git %s failed: %w", command, err)
	}
	return fmt.Errorf("git %s failed: %s", command, printable(first))
}

// each runs git and calls fn with each of the texts that it says, which a NUL
// ends each, until fn returns false.
func (r *repo) each(ctx context.Context, fn func(string) bool, args ...string) error {
	return r.pipe(ctx, nil, func(out *bufio.Reader) error {
		for {
			text, err := readNUL(out)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if !fn(text) {
				return errStop
			}
		}
	}, args...)
}

var errStop = errors.New("enough")

// pipe runs git with that input, and has fn read its output.
func (r *repo) pipe(ctx context.Context, in io.Reader, fn func(*bufio.Reader) error, args ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := r.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = in, &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return gitError(args[0], err, nil)
	}
	ferr := fn(bufio.NewReaderSize(out, 64<<10))
	if ferr != nil {
		cancel()
	}
	err = cmd.Wait()
	switch {
	case errors.Is(ferr, errStop):
		return nil
	case ferr != nil:
		return fmt.Errorf("git %s: %w", args[0], ferr)
	case err != nil:
		return gitError(args[0], err, stderr.Bytes())
	}
	return nil
}

// maxName bounds a path in a repository. PATH_MAX is 4096.
const maxName = 64 << 10

// readNUL reads a text up to a NUL. io.EOF says that there is none.
func readNUL(r *bufio.Reader) (string, error) {
	var text []byte
	for {
		b, err := r.ReadSlice(0)
		text = append(text, b...)
		switch {
		case err == nil:
			return string(text[:len(text)-1]), nil
		case errors.Is(err, bufio.ErrBufferFull) && len(text) < maxName:
		case errors.Is(err, io.EOF) && len(text) == 0:
			return "", io.EOF
		case errors.Is(err, io.EOF):
			return "", io.ErrUnexpectedEOF
		case errors.Is(err, bufio.ErrBufferFull):
			return "", errors.New("a path is too long")
		default:
			return "", err
		}
	}
}

// A change is what a commit, or the index, makes of one file.
type change struct {
	commit string
	old    []string // blobs that it replaces, one for each parent
	blob   string
	file   string
}

// readChanges reads what `git diff-tree --stdin -r -c --root --raw -z` and `git
// diff-index --raw -z` say: see "Raw output format" in git-diff(1). Deletions,
// links and submodules are left out.
func readChanges(r *bufio.Reader, yield func(change) bool) error {
	commit := ""
	for {
		head, err := readNUL(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !strings.HasPrefix(head, ":") { // diff-tree: of the commit that follows
			if !isID(head) {
				return errFormat
			}
			commit = head
			continue
		}
		file, err := readNUL(r)
		if err != nil {
			return errFormat
		}
		c, ok, err := parseChange(head)
		if err != nil {
			return err
		}
		c.commit, c.file = commit, file
		if ok && !yield(c) {
			return errStop
		}
	}
}

var errFormat = errors.New("its output is not understood")

// parseChange parses ":100644 100644 ID ID M", or with n parents n colons, n+1
// modes and IDs.
func parseChange(head string) (c change, ok bool, err error) {
	fields := strings.Fields(strings.TrimLeft(head, ":"))
	parents := len(head) - len(strings.TrimLeft(head, ":"))
	if len(fields) != 2*(parents+1)+1 {
		return c, false, errFormat
	}
	modes, ids := fields[:parents+1], fields[parents+1:2*(parents+1)]
	for _, id := range ids {
		if !isID(id) {
			return c, false, errFormat
		}
	}
	c.blob = ids[parents]
	for i, id := range ids[:parents] {
		if isFile(modes[i]) && !isNull(id) {
			c.old = append(c.old, id)
		}
	}
	return c, isFile(modes[parents]) && !isNull(c.blob), nil
}

func isFile(mode string) bool { return mode == "100644" || mode == "100755" }

func isNull(id string) bool { return strings.Trim(id, "0") == "" }

// isID reports whether it is an object's name: SHA-1 or SHA-256, in hex.
func isID(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// staged scans what the index adds to HEAD.
func (s *scan) staged(ctx context.Context) ([]Finding, error) {
	r, err := openRepo(ctx, ".", true)
	if err != nil {
		return nil, err
	}
	base, err := r.output(ctx, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if err != nil { // the first commit
		if base, err = r.output(ctx, "hash-object", "-t", "tree", "--stdin"); err != nil {
			return nil, err
		}
	}
	args := []string{"diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-ext-diff", "--ignore-submodules", base, "--"}
	if !slices.Equal(s.Paths, []string{"."}) {
		args = append(args, s.Paths...)
	}
	found, err := s.changes(ctx, r, func(yield func(change) bool) error {
		return r.pipe(ctx, nil, func(out *bufio.Reader) error { return readChanges(out, yield) }, args...)
	})
	order(found)
	return found, err
}

// history scans what every commit of the repositories added.
func (s *scan) history(ctx context.Context) ([]Finding, error) {
	var all []Finding
	tops := map[string]bool{}
	for _, p := range s.Paths {
		if info, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("cannot scan %s: %w", safefile.Quote(p), cause(err))
		} else if !info.IsDir() {
			p = filepath.Dir(p)
		}
		r, err := openRepo(ctx, p, false)
		if err != nil {
			return nil, err
		}
		if tops[r.top] {
			continue
		}
		tops[r.top] = true
		found, err := s.commits(ctx, r)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// commits scans all that can be reached from a ref, from the oldest commit on, and
// returns each secret of a file once, with the commit that brought it.
func (s *scan) commits(ctx context.Context, r *repo) ([]Finding, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	list := r.command(ctx, "rev-list", "--all", "--reverse", "--topo-order")
	var stderr bytes.Buffer
	list.Stderr = &stderr
	ids, err := list.StdoutPipe()
	if err == nil {
		err = list.Start()
	}
	if err != nil {
		return nil, gitError("rev-list", err, nil)
	}
	seen := map[string]bool{}
	found, err := s.changes(ctx, r, func(yield func(change) bool) error {
		return r.pipe(ctx, ids, func(out *bufio.Reader) error {
			return readChanges(out, func(c change) bool {
				key := c.blob + c.file // a merge or a cherry-pick of what was there before
				if seen[key] {
					return true
				}
				seen[key] = true
				return yield(c)
			})
		}, "diff-tree", "--stdin", "-r", "-c", "--root", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-ext-diff",
			"--ignore-submodules", "--")
	})
	if err != nil {
		cancel()
		_ = list.Wait()
		return nil, err
	}
	if err := list.Wait(); err != nil {
		return nil, gitError("rev-list", err, stderr.Bytes())
	}
	values := map[string]bool{}
	found = slices.DeleteFunc(found, func(f Finding) bool {
		seen := values[f.value]
		values[f.value] = true
		return seen
	})
	return found, s.tell(ctx, r, found)
}

// tell fills in who made the commits of the findings, and when.
func (s *scan) tell(ctx context.Context, r *repo, found []Finding) error {
	b, err := r.blobs(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	known := map[string]commit{}
	for i := range found {
		f := &found[i]
		c, ok := known[f.Commit]
		if !ok {
			text, err := b.read(f.Commit)
			if err != nil {
				return err
			}
			c = parseCommit(text)
			known[f.Commit] = c
		}
		f.Author, f.Date = c.author, c.date
	}
	return nil
}

// A commit is what is told of one.
type commit struct{ author, date string }

// parseCommit reads the author line of a commit object, which anybody may have
// written: "author NAME <MAIL> SECONDS ZONE".
func parseCommit(text []byte) (c commit) {
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("author "))
		if len(line) == 1 { // the message follows
			return c
		}
		if !ok {
			continue
		}
		end := bytes.LastIndexByte(rest, '>')
		c.author = strings.ToValidUTF8(string(rest[:min(end+1, 200)]), "\uFFFD")
		fields := strings.Fields(string(rest[end+1:]))
		if len(fields) > 0 {
			if seconds, err := strconv.ParseInt(fields[0], 10, 64); err == nil && seconds >= 0 && seconds < 1<<38 {
				c.date = time.Unix(seconds, 0).UTC().Format(time.RFC3339)
			}
		}
		return c
	}
	return c
}

// changes scans what the source yields.
func (s *scan) changes(ctx context.Context, r *repo, source func(func(change) bool) error) ([]Finding, error) {
	// Each reader of blobs serves one job at a time.
	var mu sync.Mutex
	var free, all []*blobs
	defer func() {
		for _, b := range all {
			b.close()
		}
	}()
	take := func() (*blobs, error) {
		mu.Lock()
		defer mu.Unlock()
		if n := len(free); n > 0 {
			b := free[n-1]
			free = free[:n-1]
			return b, nil
		}
		b, err := r.blobs(ctx)
		if err == nil {
			all = append(all, b)
		}
		return b, err
	}
	return s.scanAll(ctx, func(yield func(job) bool) error {
		return source(func(c change) bool {
			if s.scanner.Skip(c.file) {
				s.skipped.Add(1)
				return true
			}
			var old [][]byte
			return yield(job{
				file: c.file, rel: c.file, path: filepath.Join(r.top, c.file), commit: c.commit,
				read: func() ([]byte, error) {
					b, err := take()
					if err != nil {
						return nil, err
					}
					text, err := b.read(c.blob)
					if err == nil {
						text, err = decode(text)
					}
					for _, id := range c.old {
						if err != nil {
							break
						}
						var o []byte
						if o, err = b.read(id); errors.Is(err, errLarge) {
							err = nil
						}
						o, _ = decode(o)
						old = append(old, o) // without what was not looked at: all of that is new
					}
					if err == nil || errors.Is(err, errBinary) || errors.Is(err, errLarge) || errors.Is(err, errMissing) {
						mu.Lock()
						free = append(free, b)
						mu.Unlock()
					}
					return text, err
				},
				only: func(text []byte) *added { return newAdded(text, old...) },
			})
		})
	})
}

// blobs reads objects through one `git cat-file --batch`.
type blobs struct {
	in   io.WriteCloser
	out  *bufio.Reader
	stop func()
}

func (r *repo) blobs(ctx context.Context) (*blobs, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := r.command(ctx, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, gitError("cat-file", err, nil)
	}
	return &blobs{in, bufio.NewReaderSize(out, 64<<10), func() { _ = in.Close(); cancel(); _ = cmd.Wait() }}, nil
}

func (b *blobs) close() { b.stop() }

var errMissing = errors.New("the repository lacks it, as a partial clone does")

// read returns an object, errLarge or errMissing. After another error b is of no
// use.
func (b *blobs) read(id string) ([]byte, error) {
	if _, err := io.WriteString(b.in, id+"\n"); err != nil {
		return nil, fmt.Errorf("git cat-file: %w", err)
	}
	// "ID TYPE SIZE\n", the object, "\n"; or "ID missing\n".
	head, err := b.out.ReadSlice('\n')
	if err != nil {
		return nil, errors.New("git cat-file ended")
	}
	fields := strings.Fields(string(head))
	if len(fields) == 2 && fields[1] == "missing" {
		return nil, errMissing
	}
	if len(fields) != 3 || fields[0] != id {
		return nil, errFormat
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || size < 0 {
		return nil, errFormat
	}
	if size > detect.MaxText {
		if _, err := io.CopyN(io.Discard, b.out, size+1); err != nil {
			return nil, fmt.Errorf("git cat-file: %w", err)
		}
		return nil, errLarge
	}
	object := make([]byte, size+1)
	if _, err := io.ReadFull(b.out, object); err != nil {
		return nil, fmt.Errorf("git cat-file: %w", err)
	}
	return object[:size], nil
}
