package remote_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/remote"
	"github.com/opaquevault/ov/pkg/vault"
)

// BenchmarkReveal reads 10 secrets by name with the machine key of their env, as
// `ov run` does: over a new connection, and over one that is open.
func BenchmarkReveal(b *testing.B) {
	server := startOne(b)
	key := server.tenant(b)
	h := newRelay(b, server)
	s := client(b, server.url, key)
	password, err := kek.LockedFrom([]byte(password))
	if err != nil {
		b.Fatal(err)
	}
	defer password.Destroy()
	v := vault.New(s)
	if err := v.Init(b.Context(), s.Create, password); err != nil {
		b.Fatal(err)
	}
	owner, err := v.Unlock(b.Context(), password)
	if err != nil {
		b.Fatal(err)
	}
	defer owner.Destroy()
	var puts []vault.Put
	var names []string
	for i := range 100 {
		puts = append(puts, vault.Put{Name: fmt.Sprintf("NAME_%d", i), Value: bytes.Repeat([]byte("v"), 40)})
		if i%10 == 0 {
			names = append(names, puts[i].Name)
		}
	}
	if _, err := owner.Put(b.Context(), prod, puts, vault.PutOptions{Create: true}); err != nil {
		b.Fatal(err)
	}
	k, _, err := owner.DeriveMachineKey(b.Context(), prod, "")
	if err != nil {
		b.Fatal(err)
	}
	machineKey := bytes.Clone(k.Bytes())
	k.Destroy()

	reveal := func(b *testing.B, s *remote.Store) {
		l, err := kek.LockedFrom(bytes.Clone(machineKey))
		if err != nil {
			b.Fatal(err)
		}
		session, err := vault.New(s).UnlockKey(b.Context(), l)
		if err != nil {
			b.Fatal(err)
		}
		defer session.Destroy()
		err = session.Reveal(b.Context(), prod, vault.Select{Names: names}, func(list []vault.Secret) error {
			if len(list) != len(names) {
				return fmt.Errorf("%d secrets", len(list))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	reveal(b, client(b, serve(b, h), key))
	b.Logf("to unlock and reveal: %s", total(h.trips()))
	b.Run("new connection", func(b *testing.B) {
		for b.Loop() {
			s := client(b, server.url, key)
			reveal(b, s)
			_ = s.Close()
		}
	})
	b.Run("open connection", func(b *testing.B) {
		s := client(b, server.url, key)
		reveal(b, s)
		for b.Loop() {
			reveal(b, s)
		}
	})
	// What a trip costs when all is a range, by Read and by Scan.
	b.Run("WhoAmI", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.WhoAmI(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Get", func(b *testing.B) {
		for b.Loop() {
			if _, err := get(b.Context(), s, "A"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Scan", func(b *testing.B) {
		for b.Loop() {
			if n := len(scanned(b, s, "k")); n != 1 {
				b.Fatalf("%d records", n)
			}
		}
	})
}
