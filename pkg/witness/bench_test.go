package witness

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

// BenchmarkVault reads 10 secrets by name, and writes one, of an env that has
// 100: without a witness, and with one that has seen the env as it is.
func BenchmarkVault(b *testing.B) {
	ctx := b.Context()
	password, err := kek.LockedFrom([]byte("correct horse"))
	if err != nil {
		b.Fatal(err)
	}
	defer password.Destroy()
	ref := vault.Ref{App: "default", Env: "production"}
	var list []vault.Put
	var names []string
	for i := range 100 {
		list = append(list, vault.Put{Name: fmt.Sprintf("SECRET_%d", i), Value: fmt.Appendf(nil, "%050d", i)})
		if i%10 == 0 {
			names = append(names, list[i].Name)
		}
	}
	for what, options := range map[string][]vault.Option{"alone": nil, "witness": {vault.WithWitness(Open(b.TempDir(), func(err error) { b.Error(err) }))}} {
		st := bolt.New(filepath.Join(b.TempDir(), "vault.db"))
		v := vault.New(st, options...)
		if err := v.Init(ctx, st.Create, password); err != nil {
			b.Fatal(err)
		}
		s, err := v.Unlock(ctx, password)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(s.Destroy)
		if _, err := s.Put(ctx, ref, list, vault.PutOptions{}); err != nil {
			b.Fatal(err)
		}
		b.Run("reveal/"+what, func(b *testing.B) {
			for b.Loop() {
				if err := s.Reveal(ctx, ref, vault.Select{Names: names}, func([]vault.Secret) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
		n := 0
		b.Run("put/"+what, func(b *testing.B) {
			for b.Loop() {
				n++
				if _, err := s.Put(ctx, ref, []vault.Put{{Name: names[0], Value: fmt.Append(nil, n)}}, vault.PutOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
