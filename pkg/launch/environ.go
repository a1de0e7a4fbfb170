package launch

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/names"
)

// Options says what, besides the secrets, the program's environment holds.
type Options struct {
	// Inherit is the environment to start from, NAME=value each, as os.Environ
	// returns it. Of several entries for one name the last counts. Entries that
	// getenv(3) could not find, without a name or without '=', are left out,
	// and so is every OV_ variable: they are addressed to ov.
	Inherit []string
	// Clean passes on, of Inherit, only what Kept names.
	Clean bool
	// AllowUnsafeNames accepts secrets with names that Unsafe reports.
	AllowUnsafeNames bool
	// KeyPath is the machine key's path. Variables with that value are not
	// passed on. $CREDENTIALS_DIRECTORY is, even where the key lies in it:
	// systemd made it for the service, whose other credentials are there too,
	// and it is readable to the service's uid with or without the variable.
	KeyPath string
}

// Env is a program's environment. The secrets in it lie in locked memory. It
// must not be used from several goroutines. Printing it prints no variable.
type Env struct {
	list   []string // the secrets' entries are views of blocks
	blocks []block
}

// block is memory that the entries of some secrets share.
type block struct {
	locked *kek.Locked // nil where memory could not be locked
	bytes  []byte
}

// newBlock returns n bytes of locked memory, or of ordinary memory where no
// more can be locked. Unlike the agent's keys, these values are about to be
// ordinary memory of the program anyway: a low RLIMIT_MEMLOCK is no reason to
// leave a service down.
func newBlock(n int) block {
	if n <= kek.MaxLocked {
		if l, err := kek.NewLocked(n); err == nil {
			return block{l, l.Bytes()}
		}
	}
	return block{nil, make([]byte, n)}
}

// UnsafeError is returned when secrets have names that Unsafe reports.
type UnsafeError struct{ Names []string }

func (e *UnsafeError) Error() string {
	var b strings.Builder
	b.WriteString("secrets with names that change how a program is loaded or run: ")
	for i, name := range e.Names {
		if i > 0 {
			b.WriteString(", ")
		}
		why, _ := Unsafe(name)
		fmt.Fprintf(&b, "%s (%s)", name, why)
	}
	return b.String()
}

// Environ builds the environment: what opts passes on, then the secrets, each
// name once. A secret takes the place of an inherited variable. Values are
// copied into locked memory; the caller wipes its own.
//
// It fails, naming every secret at fault, when a name is malformed, given
// twice or unsafe (*UnsafeError), or when a value holds a NUL byte or is longer
// than the kernel passes on: on Linux 128 KiB with its name (32 pages,
// MAX_ARG_STRLEN of execve(2)).
func Environ(opts Options, secrets []Secret) (*Env, error) {
	total, err := check(secrets, opts.AllowUnsafeNames)
	if err != nil {
		return nil, err
	}
	if total > maxTotal {
		return nil, tooBig(total)
	}
	given := make(map[string]bool, len(secrets))
	for _, s := range secrets {
		given[s.Name] = true
	}
	e := &Env{list: make([]string, 0, len(opts.Inherit)+len(secrets))}
	e.list = append(e.list, inherited(opts, given)...)
	kek.Do(func() { e.add(secrets) })
	return e, nil
}

// check judges the secrets and returns how many bytes their entries take.
func check(secrets []Secret, allowUnsafe bool) (total int, err error) {
	var malformed, twice, unsafeNames, nul, long []string
	seen := make(map[string]bool, len(secrets))
	for _, s := range secrets {
		switch _, bad := Unsafe(s.Name); {
		case !names.ValidName(s.Name):
			malformed = append(malformed, fmt.Sprintf("%.*q", names.MaxName, s.Name))
			continue
		case seen[s.Name]:
			twice = append(twice, s.Name)
		case bad && !allowUnsafe:
			unsafeNames = append(unsafeNames, s.Name)
		}
		seen[s.Name] = true
		if bytes.IndexByte(s.Value, 0) >= 0 {
			nul = append(nul, s.Name)
		}
		if entryLen(s) > maxEntry() {
			long = append(long, s.Name)
		}
		total += entryLen(s)
	}
	var errs []error
	if malformed != nil {
		errs = append(errs, fmt.Errorf("not the name of an environment variable: %s", strings.Join(malformed, ", ")))
	}
	if twice != nil {
		errs = append(errs, fmt.Errorf("secrets asked for twice under one name: %s", strings.Join(twice, ", ")))
	}
	if unsafeNames != nil {
		errs = append(errs, hint.Wrap(&UnsafeError{unsafeNames}, "rename them, or, if that is what they are for, pass --allow-unsafe-names"))
	}
	if nul != nil {
		errs = append(errs, hint.Errorf("store it encoded, in base64 for example",
			"an environment variable cannot hold a NUL byte, and these secrets do: %s", strings.Join(nul, ", ")))
	}
	if long != nil {
		errs = append(errs, hint.Errorf("hand the program large values in a file",
			"an environment variable takes at most %d bytes with its name, and these secrets take more: %s", maxEntry()-1, strings.Join(long, ", ")))
	}
	return total, errors.Join(errs...)
}

// entryLen is the length of NAME=value and its NUL.
func entryLen(s Secret) int { return len(s.Name) + 1 + len(s.Value) + 1 }

// inherited returns the entries of opts.Inherit that are passed on, in order.
func inherited(opts Options, given map[string]bool) []string {
	last := make(map[string]int, len(opts.Inherit))
	for i, entry := range opts.Inherit {
		if name, _, ok := strings.Cut(entry, "="); ok {
			last[name] = i
		}
	}
	key := opts.KeyPath
	if key != "" {
		if abs, err := filepath.Abs(key); err == nil {
			key = abs
		}
	}
	var kept []string
	for i, entry := range opts.Inherit {
		name, value, ok := strings.Cut(entry, "=")
		switch {
		case !ok, name == "", last[name] != i:
		case strings.IndexByte(entry, 0) >= 0: // execve(2) would cut it there
		case strings.HasPrefix(name, "OV_"), given[name]:
		case opts.Clean && !Kept(name):
		case key != "" && (value == opts.KeyPath || filepath.IsAbs(value) && filepath.Clean(value) == key):
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}

// add packs the secrets' entries into as few blocks as hold them.
func (e *Env) add(secrets []Secret) {
	for len(secrets) > 0 {
		n, size := 1, entryLen(secrets[0])
		for n < len(secrets) && size+entryLen(secrets[n]) <= kek.MaxLocked {
			size += entryLen(secrets[n])
			n++
		}
		b := newBlock(size)
		e.blocks = append(e.blocks, b)
		rest := b.bytes
		for _, s := range secrets[:n] {
			entry := rest[:entryLen(s)-1]
			rest = rest[len(entry)+1:]
			copy(entry, s.Name)
			entry[len(s.Name)] = '='
			copy(entry[len(s.Name)+1:], s.Value)
			//nolint:gosec // G103: a string over the block is what spares a copy; Wipe drops it first
			e.list = append(e.list, unsafe.String(unsafe.SliceData(entry), len(entry)))
		}
		secrets = secrets[n:]
	}
}

// Wipe erases the environment. It may be called twice, and on nil.
func (e *Env) Wipe() {
	if e == nil {
		return
	}
	clear(e.list)
	e.list = nil
	for _, b := range e.blocks {
		if b.locked == nil {
			clear(b.bytes)
		}
		b.locked.Destroy()
	}
	e.blocks = nil
}

// path returns the value of PATH, and whether there is one.
func (e *Env) path() (string, bool) {
	for _, entry := range e.list {
		if v, ok := strings.CutPrefix(entry, "PATH="); ok {
			return v, true
		}
	}
	return "", false
}

// Format keeps the variables out of every fmt verb.
func (e *Env) Format(f fmt.State, _ rune) {
	if e == nil {
		fmt.Fprint(f, "no environment")
		return
	}
	fmt.Fprintf(f, "environment of %d variables", len(e.list))
}
