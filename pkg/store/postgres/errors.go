package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/opaquevault/ov/pkg/store"
)

// patience is for how long something is tried again while no server takes it.
// Clients try again by themselves.
const patience = 5 * time.Second

// Error codes of PostgreSQL's (Appendix A of its manual).
const (
	readOnlyTransaction  = "25006"
	serializationFailure = "40001"
	deadlock             = "40P01"
	lockNotAvailable     = "55P03"
	undefinedTable       = "42P01"
	completionUnknown    = "40003"
	resolutionUnknown    = "08007"
)

// passing are classes of errors that may be over soon: of connections, of what is
// used up, and of an operator who stops or starts a server.
var passing = []string{"08", "53", "57"}

// finalError is not tried again.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

func final(err error) error { return &finalError{err} }

// retryError is tried again: nothing was written.
type retryError struct{ error }

func (e *retryError) Unwrap() error { return e.error }

// retry calls fn, and again while its error says that this may help.
func retry(ctx context.Context, fn func() error) error {
	b := &backoff.ExponentialBackOff{InitialInterval: 5 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 500 * time.Millisecond}
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = fn()
		var again *retryError
		var no *finalError
		if last == nil || errors.As(last, &again) && !errors.As(last, &no) {
			return struct{}{}, last
		}
		return struct{}{}, backoff.Permanent(last)
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(patience))
	if err != nil && last != nil {
		return last
	}
	return err
}

// explain says what an error means to a store.
func explain(ctx context.Context, err error) error {
	var again *retryError
	var said *pgconn.PgError
	switch {
	case err == nil, errors.As(err, &again), isStores(err):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: the database did not answer in time", store.ErrUnavailable)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &said):
		// Its detail may quote what is in a row: it is left out.
		text := fmt.Sprintf("PostgreSQL: %s (%s)", said.Message, said.Code)
		switch {
		case said.Code == serializationFailure, said.Code == deadlock:
			return &retryError{fmt.Errorf("%w: %s", store.ErrBusy, text)}
		case said.Code == lockNotAvailable:
			return fmt.Errorf("%w: %s", store.ErrBusy, text)
		case said.Code == readOnlyTransaction, slices.Contains(passing, said.Code[:2]):
			return &retryError{fmt.Errorf("%w: %s", store.ErrUnavailable, text)}
		}
		return fmt.Errorf("%w: %s", store.ErrUnavailable, text)
	}
	// All else is about the connection. pgx leaves passwords out of it.
	text := strings.Join(strings.Fields(err.Error()), " ")
	return &retryError{fmt.Errorf("%w: the database: %s", store.ErrUnavailable, text)}
}

func isStores(err error) bool {
	for _, of := range []error{store.ErrNoAccount, store.ErrAccountExists, store.ErrUnavailable, store.ErrBusy, store.ErrDamaged} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// unknown is the error of a write that may have been done.
func unknown(err error) error {
	return final(fmt.Errorf("%w: it is not known whether it was written: %w", store.ErrUnavailable, err))
}

// isAborted reports whether the database has said that it did not commit. When it
// ends the connection, it has not; what is worse than an error does that.
func isAborted(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && cmp.Or(said.SeverityUnlocalized, said.Severity) == "ERROR" &&
		said.Code != completionUnknown && said.Code != resolutionUnknown
}

func isReadOnly(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == readOnlyTransaction
}

// warning is under which a connection keeps the last one that the server gave.
const warning = "warning"

// noteWarning looks for the one answer to COMMIT that is no error and must be
// taken for one: PostgreSQL stops waiting for a synchronous standby when it is
// told to cancel, by a statement_timeout among others. It then says in a warning
// that the standby may not have what was committed, and COMMIT has succeeded.
func noteWarning(c *pgconn.PgConn, n *pgconn.Notice) {
	if cmp.Or(n.SeverityUnlocalized, n.Severity) == "WARNING" {
		c.CustomData()[warning] = n.Message
	}
}
