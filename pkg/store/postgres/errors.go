package postgres

import (
	"context"
	"errors"
	"fmt"
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
)

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
	var ours *retryError
	var said *pgconn.PgError
	switch {
	case err == nil, errors.As(err, &ours), isStores(err):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: the database did not answer in time", store.ErrBusy)
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
		case said.Code == readOnlyTransaction, said.Code[:2] == "08", said.Code[:2] == "53", said.Code[:2] == "57":
			return &retryError{fmt.Errorf("%w: %s", store.ErrUnavailable, text)}
		}
		return errors.New(text)
	}
	// All else is about the connection. pgx leaves passwords out of it.
	return &retryError{fmt.Errorf("%w: the database: %w", store.ErrUnavailable, err)}
}

func isStores(err error) bool {
	for _, of := range []error{store.ErrNoAccount, store.ErrAccountExists, store.ErrUnavailable, store.ErrBusy, store.ErrDamaged} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// isAborted reports whether the database has said that it did not commit.
func isAborted(err error) bool {
	return errors.Is(err, store.ErrBusy) && !errors.Is(err, context.DeadlineExceeded)
}

func isReadOnly(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == readOnlyTransaction
}
