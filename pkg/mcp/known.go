package mcp

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/envelope"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/mask"
	"github.com/opaquevault/ov/pkg/vault"
)

// opener opens the vault. With a machine key it does so anew for each use: the
// key does not stay in memory.
type opener struct {
	place      access.Place
	machineKey string // file; "": the agent

	mu     sync.Mutex
	client *agent.Client // kept from one use to the next
}

// open opens the vault, and never asks for a password: stdin is the protocol.
// The caller calls the returned function when it is done.
func (o *opener) open(ctx context.Context) (vault.Unlocked, func(), error) {
	if o.machineKey != "" {
		session, done, err := o.place.UnlockKey(ctx, o.machineKey)
		if err != nil {
			return nil, nil, err
		}
		return session, done, nil
	}
	o.mu.Lock()
	client := o.client
	o.client = nil
	o.mu.Unlock()
	// The agent may be another one since, or closed an idle connection.
	if client != nil {
		if _, err := client.Status(ctx); err != nil {
			_ = client.Close()
			client = nil
		}
	}
	if client == nil {
		var err error
		if client, err = o.place.Connect(ctx); err != nil {
			return nil, nil, err
		}
	}
	return client, func() { o.keep(client) }, nil
}

// keep has the connection used again, if none is kept yet.
func (o *opener) keep(client *agent.Client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.client != nil {
		_ = client.Close()
		return
	}
	o.client = client
}

// close closes the connection that is kept.
func (o *opener) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.client != nil {
		_ = o.client.Close()
		o.client = nil
	}
}

// use opens the vault and calls fn. A vault that is locked, or whose agent does
// not run, is an error that says how to unlock.
func (o *opener) use(ctx context.Context, fn func(vault.Unlocked) error) error {
	v, done, err := o.open(ctx)
	if err == nil {
		err = fn(v)
		done()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, agent.ErrLocked):
		return hint.Wrap(fmt.Errorf("the vault is locked: %w", err), "a person unlocks it in a terminal: ov agent unlock")
	case access.NoAgent(err):
		return hint.Wrap(fmt.Errorf("the vault is locked: %w", err), "a person unlocks it in a terminal: ov agent start")
	}
	return err
}

// known are the values of the env, compiled: what no message may hold. They
// lie in this process, which nobody but root can read, for as long as the vault
// is open. So do those that were replaced or deleted meanwhile: the file that a
// program has written them to is still there, and they may still be good.
type known struct {
	vault *opener
	ref   vault.Ref
	key   [32]byte // of the digests
	said  [][]byte // what every client is told

	mu      sync.Mutex
	live    []mask.Value // copies of the values of the env
	retired []mask.Value // copies of those that it no longer has, the oldest first
	current *values      // made of both
	listing [32]byte     // of the list that current was made after
	checked time.Time
}

// values are the compiled values of one moment. Who holds them releases them;
// the last one wipes them.
type values struct {
	*mask.Set
	digest [32]byte
	mu     sync.Mutex
	refs   int
}

func (v *values) hold() *values {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refs++
	return v
}

func (v *values) release() {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.refs--; v.refs == 0 {
		v.Wipe()
	}
}

func newKnown(v *opener, ref vault.Ref) *known {
	k := &known{vault: v, ref: ref}
	_, _ = rand.Read(k.key[:]) // never fails
	return k
}

// forget wipes the values.
func (k *known) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.close()
}

// close wipes all values, as the vault is closed.
func (k *known) close() {
	k.set(nil)
	wipe(k.live)
	wipe(k.retired)
	k.live, k.retired = nil, nil
}

func wipe(list []mask.Value) {
	for _, v := range list {
		clear(v.Bytes)
	}
}

// The bounds of what is retired: the oldest goes.
const (
	maxRetired      = 256
	maxRetiredBytes = 256 << 10
)

// replace makes the secrets the live ones, and retires those that they replace.
func (k *known) replace(secrets []vault.Secret) {
	has := func(value []byte) bool {
		return slices.ContainsFunc(secrets, func(s vault.Secret) bool { return bytes.Equal(s.Value, value) })
	}
	old := k.retired
	for _, v := range k.live {
		if k.current != nil && slices.ContainsFunc(k.current.Skipped(), func(s mask.Skipped) bool { return s.Name == v.Name }) {
			continue // it hid nothing
		}
		old = append(old, v)
	}
	k.retired, k.live = nil, nil
	size := 0
	for i := len(old) - 1; i >= 0; i-- {
		v := old[i]
		if size += len(v.Bytes); has(v.Bytes) || len(k.retired) == maxRetired || size > maxRetiredBytes {
			size -= len(v.Bytes)
			clear(v.Bytes)
			continue
		}
		k.retired = append(k.retired, v)
	}
	slices.Reverse(k.retired)
	for _, s := range secrets {
		k.live = append(k.live, mask.Value{Name: s.Name, Bytes: bytes.Clone(s.Value)})
	}
}

func (k *known) set(v *values) {
	k.current.release()
	k.current = v
	k.listing, k.checked = [32]byte{}, time.Time{}
}

// stale makes the next look at the values a fresh one.
func (k *known) stale() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.checked = time.Time{}
}

// of returns the compiled values of all the env's secrets, as Reveal hands them
// out, and keeps them as the newest. The caller releases them.
func (k *known) of(secrets []vault.Secret) (*values, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ofLocked(secrets)
}

func (k *known) ofLocked(secrets []vault.Secret) (*values, error) {
	// A version number is not enough: a secret that was deleted and made again
	// begins anew.
	mac := hmac.New(sha256.New, k.key[:])
	for _, s := range secrets {
		fields := envelope.Fields([]byte(s.Name), s.Value)
		mac.Write(fields)
		clear(fields)
	}
	digest := [32]byte(mac.Sum(nil))
	if k.current != nil && k.current.digest == digest {
		return k.current.hold(), nil
	}
	k.replace(secrets)
	// A database's name and user are often the app's own: were they secret, no
	// answer that names the app could pass.
	public := append([][]byte{[]byte(k.ref.App), []byte(k.ref.Env)}, k.said...)
	for _, s := range secrets {
		public = append(public, []byte(s.Name))
	}
	set, err := mask.Compile(append(slices.Clone(k.live), k.retired...), public...)
	if err != nil { // for their size
		set, err = mask.Compile(k.live, public...)
	}
	if err != nil { // all of them count here, however few a run asks for
		return nil, hint.Wrap(err, "keep large values in an env of their own")
	}
	v := &values{Set: set, digest: digest, refs: 1}
	k.set(v)
	return v.hold(), nil
}

// fresh is how long the values count as those of the vault.
const fresh = time.Second

// now returns the values as the vault has them, or nil when there is no way to
// know them: it is locked, or the env is not there. The caller releases them.
func (k *known) now(ctx context.Context) (*values, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.checked) < fresh {
		if k.current == nil {
			return nil, nil
		}
		return k.current.hold(), nil
	}
	var out *values
	opened := false
	err := k.vault.use(ctx, func(v vault.Unlocked) error {
		opened = true
		list, err := v.List(ctx, k.ref)
		if err != nil {
			return err
		}
		sum := sha256.New()
		for _, item := range list {
			sum.Write(envelope.Fields([]byte(item.Name), envelope.Uint32(item.Version), envelope.Uint64(uint64(item.Created.UnixNano()))))
		}
		listing := [32]byte(sum.Sum(nil))
		if k.current != nil && listing == k.listing {
			out = k.current.hold()
		} else {
			err = v.Reveal(ctx, k.ref, vault.Select{}, func(secrets []vault.Secret) error {
				out, err = k.ofLocked(secrets)
				return err
			})
		}
		if err == nil {
			k.listing, k.checked = listing, time.Now()
		}
		return err
	})
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for _, closed := range []error{agent.ErrLocked, vault.ErrNotFound, vault.ErrDeadKey, vault.ErrScope} {
		opened = opened && !errors.Is(err, closed)
	}
	if opened { // and something else is wrong
		return nil, fmt.Errorf("cannot tell the values of %s: %w", k.ref, err)
	}
	// What cannot be opened hands out no values. Look again in a moment.
	k.close()
	k.checked = time.Now()
	return nil, nil
}
