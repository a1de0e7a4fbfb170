package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store"
)

// RunAccounts is the conformance test of store.Accounts, which must be empty.
func RunAccounts(t *testing.T, all store.Accounts) {
	ctx := t.Context()
	if err := all.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	list := func() []store.Account {
		t.Helper()
		got, err := all.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := list(); len(got) != 0 {
		t.Fatalf("%d accounts already", len(got))
	}

	// Oldest first, whatever the order of making them, and of the ids.
	now := time.Date(2026, 11, 22, 1, 2, 3, 456789000, time.FixedZone("", 3600))
	var want []store.Account
	for i, name := range []string{"acme", "Ünïcode ltd", strings.Repeat("n", 255)} {
		want = append(want, store.Account{ID: store.AccountID{byte(9 - i), 0, 0xff}, Name: name, Created: now.Add(time.Duration(i) * time.Hour)})
	}
	for _, i := range []int{1, 2, 0} {
		if err := all.Create(ctx, want[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i, got := range list() {
		if got.ID != want[i].ID || got.Name != want[i].Name || !got.Created.Equal(want[i].Created) {
			t.Errorf("account %d is %v, want %v", i, got, want[i])
		}
	}
	if err := all.Create(ctx, store.Account{ID: want[0].ID, Name: "other", Created: now}); !errors.Is(err, store.ErrAccountExists) {
		t.Errorf("made anew: %v, want ErrAccountExists", err)
	}
	if got := list(); len(got) != 3 || got[0].Name != "acme" {
		t.Errorf("now there are %v", got)
	}

	// What is not there.
	none := all.Store(store.AccountID{1})
	if err := none.View(ctx, func(store.Reader) error { return nil }); !errors.Is(err, store.ErrNoAccount) {
		t.Errorf("reading what is not there: %v, want ErrNoAccount", err)
	}
	for _, b := range []store.Batch{nil, {{Key: []byte("k"), Value: []byte("v")}}} {
		err := none.Update(ctx, func(store.Reader) (store.Batch, error) { return b, nil })
		if !errors.Is(err, store.ErrNoAccount) {
			t.Errorf("writing to what is not there: %v, want ErrNoAccount", err)
		}
	}

	// Accounts do not see each other, whatever their keys begin with.
	for i, a := range want {
		var b store.Batch
		for _, k := range []string{"\x00", "\x00own", "k", "\xff\xff"} {
			b.Put([]byte(k), fmt.Appendf(nil, "%s of %d", k, i))
		}
		put(t, all.Store(a.ID), b)
	}
	put(t, all.Store(want[1].ID), store.Batch{{Key: []byte("k")}})
	for i, a := range want {
		model := map[string]string{}
		for _, k := range []string{"\x00", "\x00own", "k", "\xff\xff"} {
			model[k] = fmt.Sprintf("%s of %d", k, i)
		}
		if i == 1 {
			delete(model, "k")
		}
		same(t, all.Store(a.ID), model)
	}

	// One of many that make the same account wins.
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := all.Create(ctx, store.Account{ID: store.AccountID{5}, Name: fmt.Sprint(i), Created: now})
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, store.ErrAccountExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := won.Load(); n != 1 {
		t.Errorf("%d made the same account", n)
	}

	// Nothing is done for a caller that has left.
	gone, leave := context.WithCancel(ctx)
	leave()
	s := all.Store(want[0].ID)
	for what, err := range map[string]error{
		"create": all.Create(gone, store.Account{ID: store.AccountID{6}, Created: now}),
		"view":   s.View(gone, func(store.Reader) error { return nil }),
		"update": s.Update(gone, func(store.Reader) (store.Batch, error) { return nil, nil }),
		"ping":   all.Ping(gone),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s after the caller has left: %v", what, err)
		}
	}
	if slices.ContainsFunc(list(), func(a store.Account) bool { return a.ID == store.AccountID{6} }) {
		t.Error("an account was made for a caller that had left")
	}
}
