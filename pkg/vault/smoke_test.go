package vault

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/bolt"
)

func TestSmoke(t *testing.T) {
	ctx := context.Background()
	st := bolt.New(filepath.Join(t.TempDir(), "vault.db"))
	v := New(st)
	pw, _ := kek.LockedFrom([]byte("hunter2 hunter2"))
	pw2, _ := kek.LockedFrom([]byte("other password"))
	if err := v.Init(ctx, st.Create, pw); err != nil {
		t.Fatal(err)
	}
	s, err := v.Unlock(ctx, pw)
	if err != nil {
		t.Fatal(err)
	}
	ref := Ref{"myapp", "production"}
	var puts []Put
	for i := range 100000 {
		puts = append(puts, Put{Name: fmt.Sprintf("N%d", i), Value: []byte(fmt.Sprintf("value %d", i))})
	}
	t0 := time.Now()
	res, err := s.Put(ctx, ref, puts, PutOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("put", time.Since(t0), res[0])
	mk, info, err := s.DeriveMachineKey(ctx, ref, "l")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(info)
	ms, err := v.UnlockKey(ctx, mk)
	if err != nil {
		t.Fatal(err)
	}
	t0 = time.Now()
	err = ms.Reveal(ctx, ref, Select{Names: []string{"N5", "N77"}}, func(l []Secret) error {
		t.Log(string(l[0].Value), string(l[1].Value))
		return nil
	})
	t.Log(time.Since(t0), err)
	err = ms.Reveal(ctx, ref, Select{Names: []string{"M5", "N77"}}, nil)
	t.Log(err)
	t0 = time.Now()
	if err := v.ChangePassword(ctx, pw, pw2); err != nil {
		t.Fatal(err)
	}
	t.Log("change", time.Since(t0))
	t.Log(ms.Reveal(ctx, ref, Select{Names: []string{"N5", "N77"}}, nil))
	s2, err := v.Unlock(ctx, pw2)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(s2.Reveal(ctx, ref, Select{Names: []string{"N5"}}, func(l []Secret) error { t.Log(string(l[0].Value)); return nil }))
	_, err = v.Unlock(ctx, pw)
	t.Log(err)
	t.Log(v.MachineKeys(ctx))
}
