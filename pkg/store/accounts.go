package store

import (
	"context"
	"errors"
	"time"
)

// AccountID names an account on a server: 16 random bytes. It is not the id in
// the account's record, which only the account's own people can trust.
type AccountID [16]byte

// Account is one tenant of a server.
type Account struct {
	ID      AccountID
	Name    string // of the operator's choice
	Created time.Time
}

var (
	// ErrNoAccount is wrapped by what a store of an account that is not there
	// returns.
	ErrNoAccount = errors.New("no such account")
	// ErrAccountExists is wrapped by the error of making an account anew.
	ErrAccountExists = errors.New("account already exists")
)

// Accounts keeps the stores of many accounts, for a server. Unlike other stores,
// these take keys that begin with a zero byte: they are the server's own
// records. Its methods are safe for use by many goroutines, and where the
// storage is shared, by many servers.
type Accounts interface {
	// Create makes an account with an empty store.
	Create(ctx context.Context, a Account) error
	// List returns the accounts, oldest first.
	List(ctx context.Context) ([]Account, error)
	// Store returns an account's store. It costs nothing: an account that is not
	// there shows when the store is used.
	Store(id AccountID) Store
	// Ping reports whether the storage can be written: nil, or why not.
	Ping(ctx context.Context) error
	Close() error
}
