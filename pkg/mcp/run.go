package mcp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/launch"
	"github.com/opaquevault/ov/pkg/names"
	"github.com/opaquevault/ov/pkg/vault"
)

// The bounds of a run.
const (
	maxRuns        = 16 // at once
	maxWords       = 4096
	maxCommand     = 64 << 10 // bytes
	defaultTimeout = 300      // seconds
	maxTimeout     = 3600     // seconds

	termGrace = 3 * time.Second // from TERM to KILL
	pipeGrace = time.Second     // for output of what has left the group
)

type runInput struct {
	Command        []string `json:"command" jsonschema:"the program and its arguments, one string each; there is no shell unless you name one"`
	Secrets        []string `json:"secrets,omitempty" jsonschema:"names of the secrets that the program gets as environment variables; all of the env, or those that .ov.yaml lists, if left out"`
	WorkDir        string   `json:"work_dir,omitempty" jsonschema:"directory to run in, inside the project; the project's own if left out"`
	TimeoutSeconds int      `json:"timeout_seconds,omitempty" jsonschema:"when to end the program, from 1 to 3600; 300 if left out"`
}

type runOutput struct {
	ExitCode        int      `json:"exit_code" jsonschema:"the program's; 128 and the signal's number if a signal ended it"`
	Stdout          string   `json:"stdout" jsonschema:"with [masked NAME] in place of values; bytes that are not UTF-8 as \\xNN"`
	Stderr          string   `json:"stderr"`
	SecretsInjected []string `json:"secrets_injected" jsonschema:"names of the environment variables that held secrets"`
	TimedOut        bool     `json:"timed_out"`
	MaskedCount     int      `json:"masked_count" jsonschema:"how many times a value was masked"`
	Truncated       bool     `json:"truncated" jsonschema:"whether the middle of an output was left out"`
	Signal          string   `json:"signal,omitempty" jsonschema:"the signal that ended the program"`
	Warnings        []string `json:"warnings,omitempty"`
}

// command is a checked runInput.
type command struct {
	argv    []string
	secrets []config.Secret // nil: all
	dir     string
	timeout time.Duration
}

// checkRun judges the arguments without starting anything.
func (s *server) checkRun(in runInput) (command, error) {
	c := command{argv: in.Command, secrets: s.secrets, timeout: defaultTimeout * time.Second}
	size := 0
	for _, word := range in.Command {
		size += len(word) + 1
		if strings.ContainsRune(word, 0) {
			return c, errors.New("command holds a NUL character, which no argument can")
		}
	}
	switch {
	case len(in.Command) == 0 || in.Command[0] == "":
		return c, hint.Errorf(`an example: {"command": ["npm", "test"]}`, "command is empty")
	case len(in.Command) > maxWords || size > maxCommand:
		return c, hint.Errorf("put it into a script in the project", "command is too long: at most %d words and %d bytes", maxWords, maxCommand)
	case in.TimeoutSeconds != 0 && (in.TimeoutSeconds < 1 || in.TimeoutSeconds > maxTimeout):
		return c, fmt.Errorf("timeout_seconds is out of bounds: from 1 to %d", maxTimeout)
	}
	if in.TimeoutSeconds != 0 {
		c.timeout = time.Duration(in.TimeoutSeconds) * time.Second
	}
	if rule := s.policy.denied(in.Command); rule != nil {
		return c, fmt.Errorf("the command is denied by a rule of the configuration: %s", visibleAll(rule))
	}
	if in.Secrets != nil {
		c.secrets = []config.Secret{}
		seen := map[string]bool{}
		for _, name := range in.Secrets {
			if err := checkName(name); err != nil {
				return c, err
			}
			if !seen[name] {
				c.secrets = append(c.secrets, config.Secret{Var: name, Name: name})
			}
			seen[name] = true
		}
	}
	dir, err := s.inProject(in.WorkDir)
	c.dir = dir
	return c, err
}

// inProject returns the directory, whose every link leads into the project.
func (s *server) inProject(dir string) (string, error) {
	root, err := filepath.EvalSymlinks(s.dir)
	if err != nil {
		return "", fmt.Errorf("cannot use the project's directory: %w", err)
	}
	if dir == "" {
		return root, nil
	}
	if strings.ContainsRune(dir, 0) {
		return "", errors.New("work_dir holds a NUL character")
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(root, dir)
	}
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("cannot use work_dir: %w", withoutPath(err))
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", errors.New("work_dir is not a directory")
	}
	if dir != root && !strings.HasPrefix(dir, strings.TrimSuffix(root, "/")+"/") {
		return "", hint.Errorf("leave it out, or name a directory below "+root, "work_dir is outside of the project")
	}
	return dir, nil
}

// withoutPath is the error without the path, which is the client's own text.
func withoutPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func checkName(name string) error {
	if names.ValidName(name) {
		return nil
	}
	return fmt.Errorf("not a secret's name: letters, digits and underscores, at most %d", names.MaxName)
}

// allowed reports whether a rule allows the command. In another directory than
// the project's own a relative path is another program.
func (s *server) allowed(c command) bool {
	if strings.Contains(c.argv[0], "/") && !filepath.IsAbs(c.argv[0]) {
		if root, err := s.inProject(""); err != nil || c.dir != root {
			return false
		}
	}
	return s.policy.allowed(c.argv)
}

// all are the env's secrets, by name: a person who is asked is shown which.
func (s *server) all(ctx context.Context) ([]config.Secret, error) {
	list := []config.Secret{}
	err := s.vault.use(ctx, func(v vault.Unlocked) error {
		all, err := v.List(ctx, s.ref)
		for _, item := range all {
			list = append(list, config.Secret{Var: item.Name, Name: item.Name})
		}
		return err
	})
	slices.SortFunc(list, func(a, b config.Secret) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// longCommand is from how many bytes on a person is told that a command is
// long: a client may not show its end.
const longCommand = 1000

// runQuestion shows what is to be approved, what may be long at the end.
func (s *server) runQuestion(c command) string {
	secrets := make([]string, len(c.secrets))
	for i, secret := range c.secrets {
		secrets[i] = secret.Name
		if secret.Var != secret.Name {
			secrets[i] += " as " + secret.Var
		}
	}
	if len(secrets) == 0 {
		secrets = []string{"none"}
	}
	line := visibleAll(c.argv)
	var b strings.Builder
	fmt.Fprintf(&b, "Run this command with secrets of %s?\n\n", s.ref)
	if len(line) > longCommand {
		fmt.Fprintf(&b, "  It is long: it has %d bytes. Read all of it.\n", len(line))
	}
	fmt.Fprintf(&b, "  directory: %s\n  time:      at most %v\n  secrets:   %s\n  command:   %s\n",
		visible(c.dir), c.timeout, strings.Join(secrets, ", "), line)
	return b.String()
}

func (s *server) run(ctx context.Context, req *sdk.CallToolRequest, in runInput) (*sdk.CallToolResult, *runOutput, error) {
	c, err := s.checkRun(in)
	if err != nil {
		return nil, nil, err
	}
	if s.policy.approve != config.ApproveNever && !s.allowed(c) {
		if c.secrets == nil { // these, and no others that there may be by then
			if c.secrets, err = s.all(ctx); err != nil {
				return nil, nil, err
			}
		}
		if res, err := s.approved(ctx, req, s.runQuestion(c)); res != nil || err != nil {
			return res, nil, err
		}
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return nil, nil, hint.Errorf("wait for one to end", "%d commands are running already", maxRuns)
	}
	out, err := s.execute(ctx, c)
	return nil, out, err
}

// execute runs the command to its end.
func (s *server) execute(ctx context.Context, c command) (*runOutput, error) {
	env, values, err := s.environment(ctx, c)
	if err != nil {
		return nil, err
	}
	defer values.release()
	out := &runOutput{SecretsInjected: env.names, Warnings: env.warnings}

	var streams [2]stream
	defer streams[0].close()
	defer streams[1].close()
	if err := errors.Join(streams[0].open(), streams[1].open()); err != nil {
		env.Wipe()
		return nil, err
	}
	s.runs.Add(1)
	defer s.runs.Done()
	if s.stop.Err() != nil { // nobody would end it
		env.Wipe()
		return nil, errors.New("the server is ending")
	}
	s.alone.RLock()
	ended := sync.OnceFunc(s.alone.RUnlock)
	defer ended()
	p, err := launch.Start(c.argv, env.Env, launch.StartOptions{
		Dir: c.dir, Files: [3]*os.File{nil, streams[0].w, streams[1].w}, Group: true,
	})
	if err != nil {
		return nil, err
	}
	if err := s.reaper.add(p.Pid); err != nil { // and would not outlive a crash of ours
		signalGroup(p.Pid, unix.SIGKILL)
		_, _ = p.Wait()
		return nil, fmt.Errorf("the process that ends programs after a crash is gone: %w", err)
	}
	defer s.reaper.remove(p.Pid)
	var copies sync.WaitGroup
	for i := range streams {
		copies.Go(func() { streams[i].copy(values) })
	}
	state, why := s.wait(ctx, p, c.timeout)
	ended()
	if n := s.sweep(); n > 0 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("processes that had left their program's process group: %d; they were ended", n))
	}
	copied := make(chan struct{})
	go func() { copies.Wait(); close(copied) }()
	select {
	case <-copied:
	case <-time.After(pipeGrace): // somebody outside of the group holds the pipe
		for i := range streams {
			_ = streams[i].r.SetReadDeadline(time.Now())
		}
		<-copied
		out.Warnings = append(out.Warnings, "a process that the program started goes on outside of its process group; its further output is lost")
	}
	if errors.Is(why, context.Canceled) {
		return nil, errors.New("the call was cancelled, and the program ended")
	}
	out.TimedOut = errors.Is(why, errTimeout)
	out.Stdout, out.Stderr = streams[0].kept.text(), streams[1].kept.text()
	out.MaskedCount = streams[0].masked + streams[1].masked
	out.Truncated = streams[0].kept.truncated() || streams[1].kept.truncated()
	out.ExitCode = state.ExitCode()
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		out.ExitCode, out.Signal = 128+int(status.Signal()), unix.SignalName(status.Signal())
	}
	return out, nil
}

// sweep ends what programs have left behind, and returns how many processes.
// While another program runs, it is that one's turn: they cannot be told apart.
func (s *server) sweep() int {
	if !s.adopts || !s.alone.TryLock() {
		return 0
	}
	defer s.alone.Unlock()
	n, err := sweep(s.reaper.cmd.Process.Pid)
	if err != nil {
		s.log.Warn("what programs have left behind may go on", "error", err)
	}
	return n
}

var errTimeout = errors.New("the time is over")

// wait waits for the program's end. When its time is over, or nobody wants the
// result any more, the group gets TERM and, after a grace, KILL; the error says
// which.
func (s *server) wait(ctx context.Context, p *os.Process, timeout time.Duration) (*os.ProcessState, error) {
	ended := make(chan *os.ProcessState, 1)
	go func() {
		awaitExit(p.Pid)
		// What the program left behind still has the secrets. Its own entry in the
		// process table is still there, so the number is nobody else's.
		signalGroup(p.Pid, unix.SIGKILL)
		state, _ := p.Wait()
		ended <- state
	}()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	var why error
	select {
	case state := <-ended:
		return state, nil
	case <-deadline.C:
		why = errTimeout
	case <-ctx.Done():
		why = context.Canceled
	case <-s.stop.Done():
		why = context.Canceled
	}
	signalGroup(p.Pid, unix.SIGTERM)
	select {
	case state := <-ended:
		return state, why
	case <-time.After(termGrace):
	}
	signalGroup(p.Pid, unix.SIGKILL)
	return <-ended, why
}

// stream is the program's stdout or stderr.
type stream struct {
	r, w   *os.File
	kept   capture
	masked int
}

func (st *stream) open() (err error) {
	st.r, st.w, err = os.Pipe()
	return err
}

func (st *stream) close() {
	_ = st.r.Close()
	_ = st.w.Close()
}

// copy reads the stream to its end and keeps what it says, masked.
func (st *stream) copy(values *values) {
	_ = st.w.Close() // the program's is the only one
	m := values.NewWriter(&st.kept)
	buf := make([]byte, 64<<10)
	for {
		n, err := st.r.Read(buf)
		_, _ = m.Write(buf[:n]) // a capture takes everything
		clear(buf[:n])
		if err != nil {
			break
		}
	}
	_ = m.Close()
	st.masked = m.Count()
}

// environment is a program's, and what to tell of it.
type environment struct {
	*launch.Env
	names    []string
	warnings []string
}

// environment takes the secrets out of the vault. The values that are masked are
// those of the whole env, of the same moment.
func (s *server) environment(ctx context.Context, c command) (e environment, masked *values, err error) {
	err = s.vault.use(ctx, func(v vault.Unlocked) error {
		return v.Reveal(ctx, s.ref, vault.Select{}, func(all []vault.Secret) error {
			list, err := choose(s.ref, all, c.secrets)
			if err != nil {
				return err
			}
			if masked, err = s.known.of(all); err != nil {
				return err
			}
			e.Env, err = launch.Environ(launch.Options{Inherit: os.Environ(), KeyPath: s.vault.machineKey}, list)
			for _, secret := range list {
				e.names = append(e.names, secret.Name)
			}
			return err
		})
	})
	if unsafe := (*launch.UnsafeError)(nil); errors.As(err, &unsafe) {
		err = hint.Wrap(unsafe, `name those that the program needs: {"command": …, "secrets": […]}; or let a person rename these`)
	}
	if err != nil {
		e.Wipe()
		masked.release()
		return environment{}, nil, err
	}
	slices.Sort(e.names)
	if e.names == nil {
		e.names = []string{}
	}
	for _, skipped := range masked.Skipped() {
		e.warnings = append(e.warnings, fmt.Sprintf("the value of %s is not masked: %s", skipped.Name, skipped.Why))
	}
	return e, masked, nil
}

// choose returns the wanted secrets under the names of their variables, or a
// *vault.MissingError.
func choose(ref vault.Ref, all []vault.Secret, wanted []config.Secret) ([]launch.Secret, error) {
	var list []launch.Secret
	if wanted == nil {
		for _, secret := range all {
			list = append(list, launch.Secret{Name: secret.Name, Value: secret.Value})
		}
		return list, nil
	}
	var missing []string
	for _, w := range wanted {
		i := slices.IndexFunc(all, func(secret vault.Secret) bool { return secret.Name == w.Name })
		if i < 0 {
			missing = append(missing, w.Name)
			continue
		}
		list = append(list, launch.Secret{Name: w.Var, Value: all[i].Value})
	}
	if missing != nil {
		return nil, hint.Wrap(&vault.MissingError{Ref: ref, Names: missing}, "see which there are: vault_list_secrets")
	}
	return list, nil
}
