package detect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/version"
)

const (
	startLimit  = 30 * time.Second         // until the engine has said Hello
	answerLimit = MaxTime + 10*time.Second // until it has answered

	// An engine that dies is started again, but not forever: maxStarts in
	// startWindow.
	maxStarts   = 5
	startWindow = time.Minute
)

// ErrClosed says that the engine was closed.
var ErrClosed = errors.New("the detection engine was closed")

// An Engine is a child process that scans texts. It is safe for concurrent use:
// it scans one text after the other.
type Engine struct {
	ctx    context.Context
	cancel context.CancelFunc
	path   string

	// turn holds a token while somebody uses what is below.
	turn    chan struct{}
	process *process
	starts  []time.Time // within startWindow
}

// Start starts the program at path, which is ov-scan, as an engine, and does not
// wait until its rules are loaded. The engine ends when ctx does, at Close, and
// when this process ends.
func Start(ctx context.Context, path string) (*Engine, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &Engine{ctx: ctx, cancel: cancel, path: path, turn: make(chan struct{}, 1)}
	if err := e.start(); err != nil {
		cancel()
		return nil, err
	}
	return e, nil
}

// Scan returns what looks like a secret in text, by its offset, at most
// MaxFindings. Every error means that the text was not scanned: it is too large,
// ctx ended, or the engine failed, which is started anew for the next call. The
// caller may wipe the text as soon as Scan returns.
func (e *Engine) Scan(ctx context.Context, text []byte) ([]Finding, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(text), MaxText)
	}
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the detection engine: %w", ctx.Err())
	case <-e.ctx.Done():
		return nil, ErrClosed
	}
	p, err := e.send(ctx, text)
	if err != nil {
		<-e.turn
		return nil, err
	}
	// Whoever gives up does not end the engine's work: the turn is over only once
	// the answer is there, read by nobody.
	type answer struct {
		findings []Finding
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		timer := time.AfterFunc(answerLimit, p.kill)
		findings, err := readAnswer(p.out, len(text))
		timer.Stop()
		if err != nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, errScan) {
			err = p.failed(err)
		}
		<-e.turn
		answered <- answer{findings, err}
	}()
	select {
	case a := <-answered:
		return a.findings, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the detection engine: %w", ctx.Err())
	}
}

// send sends the text to an engine that is ready. The turn is the caller's.
func (e *Engine) send(ctx context.Context, text []byte) (*process, error) {
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if e.process == nil || e.process.dead() {
		if err := e.start(); err != nil {
			return nil, err
		}
	}
	p := e.process
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the detection engine: %w", ctx.Err())
	}
	if p.fault != nil {
		return nil, p.fault
	}
	// An engine that is ready reads at once. A text of which only a part was sent
	// leaves it useless.
	stop := context.AfterFunc(ctx, p.kill)
	err := WriteText(p.in, text)
	if !stop() {
		return nil, p.failed(ctx.Err())
	}
	if err != nil {
		return nil, p.failed(err)
	}
	return p, nil
}

// start starts a process in the place of one that died.
func (e *Engine) start() error {
	now := time.Now()
	recent := e.starts[:0]
	for _, at := range e.starts {
		if now.Sub(at) < startWindow {
			recent = append(recent, at)
		}
	}
	e.starts = recent
	if len(e.starts) >= maxStarts {
		return hint.Errorf("try again in a minute; if it stays so, install ov again",
			"the detection engine ended %d times within a minute", maxStarts)
	}
	e.starts = append(e.starts, now)
	if e.process != nil {
		_ = e.process.out.Close()
	}
	p, err := run(e.ctx, e.path)
	if err != nil {
		return fmt.Errorf("cannot start the detection engine: %w", err)
	}
	e.process = p
	return nil
}

// Close ends the engine. What is being scanned fails.
func (e *Engine) Close() error {
	e.cancel()
	e.turn <- struct{}{} // until who has the turn has seen it
	defer func() { <-e.turn }()
	if e.process != nil {
		<-e.process.done
		_ = e.process.out.Close()
	}
	return nil
}

// A process is one life of the engine.
type process struct {
	in    io.WriteCloser
	out   io.ReadCloser
	ready chan struct{} // closed when it has said Hello, or failed to
	fault error         // why it failed to; for who has seen ready
	done  chan struct{} // closed when it has ended
	kill  func()
}

// run starts the program and returns once it runs.
func run(ctx context.Context, path string) (*process, error) {
	ctx, cancel := context.WithCancel(ctx)
	inRead, in, err := os.Pipe()
	if err != nil {
		cancel()
		return nil, err
	}
	out, outWrite, err := os.Pipe()
	if err != nil {
		cancel()
		return nil, errors.Join(err, inRead.Close(), in.Close())
	}
	cmd := exec.CommandContext(ctx, path, EngineArg)
	// Nothing of this process's environment is the engine's business. What it
	// would say on standard error goes nowhere: it has read secrets.
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdin, cmd.Stdout = inRead, outWrite
	dieWithParent(cmd)

	p := &process{in: in, out: out, ready: make(chan struct{}), done: make(chan struct{}), kill: cancel}
	started := make(chan error)
	go func() {
		// PR_SET_PDEATHSIG is about the thread that made the child, so that
		// thread is kept until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_ = inRead.Close()
		_ = outWrite.Close()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		cancel()
		_ = in.Close()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		defer close(p.ready)
		timer := time.AfterFunc(startLimit, cancel)
		defer timer.Stop()
		if err := readHello(out, version.String()); err != nil {
			p.fault = p.failed(err)
		}
	}()
	return p, nil
}

func (p *process) dead() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// failed ends a process that can no longer be trusted to answer what it is
// asked, and says why.
func (p *process) failed(err error) error {
	p.kill()
	<-p.done
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ended")
	}
	return fmt.Errorf("the detection engine failed: %w", err)
}
