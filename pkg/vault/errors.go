package vault

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opaquevault/ov/pkg/hint"
)

var (
	// ErrWrongPassword says that no password slot opens with the password.
	ErrWrongPassword = errors.New("wrong master password")
	// ErrExists is wrapped when an app, env or secret is already there.
	ErrExists = errors.New("already exists")
	// ErrNotFound is wrapped when an app, env, secret or version is not there.
	ErrNotFound = errors.New("not found")
	// ErrConflict is wrapped when somebody else changed what was to be changed.
	ErrConflict = errors.New("changed by somebody else in the meantime")
	// ErrDeadKey is wrapped when a key was replaced since it was made.
	ErrDeadKey = errors.New("key is no longer valid")
	// ErrUnknownKey is wrapped when a machine key is in no register of the vault:
	// never made for it, or revoked, which leaves no trace.
	ErrUnknownKey = errors.New("key was not made for this vault, or was revoked")
	// ErrScope is wrapped when a key opens less than what was asked for.
	ErrScope = errors.New("key does not open this")
	// ErrDamaged is wrapped when a record is not what was written.
	ErrDamaged = errors.New("record is damaged")
	// ErrWithheld is wrapped when a store has less, or older, than an env's record
	// says.
	ErrWithheld = errors.New("records are missing or old")
	// ErrRollback is what a *RollbackError is.
	ErrRollback = errors.New("the store went back to an earlier time")
	// ErrClosed says that a session was used after Destroy.
	ErrClosed = errors.New("session is closed")
	// ErrInvalid is wrapped when a name, slug or value is out of bounds.
	ErrInvalid = errors.New("not valid")
)

func damaged(record string, err error) error {
	return hint.Wrap(fmt.Errorf("%w: %s: %w", ErrDamaged, record, err),
		"restore the vault from a backup; the other records can still be read")
}

// MissingError lists the requested secrets that an env does not have.
type MissingError struct {
	Ref   Ref
	Names []string
	Near  map[string][]string // names in the env that look like a missing one
}

func (e *MissingError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s not found in %s: ", secrets(len(e.Names)), e.Ref)
	for i, name := range e.Names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name)
		if near := e.Near[name]; len(near) > 0 {
			fmt.Fprintf(&b, " (did you mean %s?)", strings.Join(near, " or "))
		}
	}
	return b.String()
}

// Is makes errors.Is(err, ErrNotFound) true.
func (e *MissingError) Is(target error) bool { return target == ErrNotFound }

// secrets is a number of secrets in words.
func secrets(n int) string {
	if n == 1 {
		return "1 secret"
	}
	return fmt.Sprintf("%d secrets", n)
}

func missing(ref Ref, names []string, near map[string][]string) error {
	return hint.Wrap(&MissingError{ref, names, near},
		fmt.Sprintf("see what is there: ov secret list --app %s --env %s", ref.App, ref.Env))
}

const newKey = "make a new one: ov auth derive-machine-key --force --out FILE; for an agent: ov agent unlock"

// deadKey says why a key that was once right no longer is.
func deadKey(what string, why change) error {
	return hint.Errorf(newKey, "%w: %s was made before the %s of %s", ErrDeadKey, what, why.reason, day(why.at))
}

// deadKeyOf says that what a key opened is gone.
func deadKeyOf(what string, level Level, scope string) error {
	return hint.Errorf(newKey, "%w: %s opened %s %s, which was deleted", ErrDeadKey, what, level, scope)
}

func day(t time.Time) string { return t.Format(time.DateOnly) }
