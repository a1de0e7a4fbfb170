package vault

import "context"

// Unlocked is a vault whose key is at hand: a *Session, or another process that
// holds one. Errors are those of Session.
type Unlocked interface {
	Reveal(ctx context.Context, ref Ref, sel Select, fn func([]Secret) error) error
	List(ctx context.Context, ref Ref) ([]Version, error)
	History(ctx context.Context, ref Ref, name string) ([]Version, error)
	Put(ctx context.Context, ref Ref, list []Put, opt PutOptions) ([]PutResult, error)
	Delete(ctx context.Context, ref Ref, names []string) error
	Rollback(ctx context.Context, ref Ref, name string, version uint32) (PutResult, error)
	Apps(ctx context.Context) ([]App, error)
	CreateApp(ctx context.Context, slug string) error
	DeleteApp(ctx context.Context, slug string) error
	CreateEnv(ctx context.Context, ref Ref) error
	DeleteEnv(ctx context.Context, ref Ref) error
}

var _ Unlocked = (*Session)(nil)
