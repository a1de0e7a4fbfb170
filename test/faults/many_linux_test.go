package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

func init() {
	roles["write"] = write
	roles["look"] = look
}

const (
	processes = 8
	writes    = 50
)

// client opens the vault as whoever types a password: with the one that is
// right now.
type client struct {
	v *vault.Vault
	s *vault.Session
}

func (c *client) open(ctx context.Context) error {
	for _, p := range []string{oldPassword, newPassword, oldPassword} {
		password, err := lock(p)
		if err != nil {
			return err
		}
		s, err := c.v.Unlock(ctx, password)
		password.Destroy()
		if err == nil {
			if c.s != nil {
				c.s.Destroy()
			}
			c.s = s
			return nil
		}
		if !errors.Is(err, vault.ErrWrongPassword) {
			return err
		}
	}
	return errors.New("neither password opens the vault")
}

// do retries what failed because the keys were changed.
func (c *client) do(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if !errors.Is(err, vault.ErrDeadKey) {
			return err
		}
		if err := c.open(ctx); err != nil {
			return err
		}
	}
}

func newClient(ctx context.Context, path string) (*client, error) {
	c := &client{v: vault.New(bolt.New(path))}
	return c, c.open(ctx)
}

// write writes to names of its own and, as all the others do, to COUNTER, which
// goes up by one each time.
func write(args []string) error {
	ctx := context.Background()
	c, err := newClient(ctx, args[0])
	if err != nil {
		return err
	}
	if _, err := io.ReadAll(os.Stdin); err != nil { // all start together
		return err
	}
	for i := 1; i <= writes; i++ {
		own := []byte(fmt.Sprintf("%s.%d", args[1], i))
		err := c.do(ctx, func() error {
			res, err := c.s.Put(ctx, prod, []vault.Put{{Name: "OWN_A_" + args[1], Value: own}, {Name: "OWN_B_" + args[1], Value: own}}, vault.PutOptions{Note: "own"})
			if err == nil && res[0].Version != uint32(i) {
				err = fmt.Errorf("write %d became version %d", i, res[0].Version)
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := c.count(ctx); err != nil {
			return err
		}
	}
	return nil
}

// count adds one to COUNTER as long as somebody else is faster.
func (c *client) count(ctx context.Context) error {
	for {
		err := c.do(ctx, func() error {
			var version uint32
			var n int
			err := c.s.Reveal(ctx, prod, vault.Select{Names: []string{"COUNTER"}}, func(list []vault.Secret) (err error) {
				version = list[0].Version
				n, err = strconv.Atoi(string(list[0].Value))
				return err
			})
			if err != nil {
				return err
			}
			_, err = c.s.Put(ctx, prod, []vault.Put{{Name: "COUNTER", Value: []byte(strconv.Itoa(n + 1)), Replaces: &version}}, vault.PutOptions{Note: "count"})
			return err
		})
		if !errors.Is(err, vault.ErrConflict) {
			return err
		}
	}
}

// look reads until its input ends, and checks that what one write wrote is seen
// as a whole, and that nothing goes back.
func look(args []string) error {
	ctx := context.Background()
	c, err := newClient(ctx, args[0])
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() { _, _ = io.ReadAll(os.Stdin); close(stop) }()
	last := map[string]int{}
	for looks := 0; ; looks++ {
		select {
		case <-stop:
			fmt.Println(looks)
			return nil
		default:
		}
		err := c.do(ctx, func() error {
			return c.s.Reveal(ctx, prod, vault.Select{}, func(list []vault.Secret) error {
				now := map[string]string{}
				for _, secret := range list {
					now[strings.Clone(secret.Name)] = string(secret.Value)
				}
				for name, value := range now {
					own, ok := strings.CutPrefix(name, "OWN_A_")
					if !ok {
						continue
					}
					if now["OWN_B_"+own] != value {
						return fmt.Errorf("half a write: %s and %s", value, now["OWN_B_"+own])
					}
					n, err := strconv.Atoi(value[strings.IndexByte(value, '.')+1:])
					if err != nil || n < last[own] {
						return fmt.Errorf("%s went from %d to %s: %w", name, last[own], value, err)
					}
					last[own] = n
				}
				n, err := strconv.Atoi(now["COUNTER"])
				if err != nil || n < last[""] {
					return fmt.Errorf("the counter went from %d to %s: %w", last[""], now["COUNTER"], err)
				}
				last[""] = n
				if len(now) < 700 {
					return fmt.Errorf("%d secrets", len(now))
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
}

// Processes that write and read at once, while the password is changed under
// them twice and one app's key once, lose nothing.
func TestManyProcesses(t *testing.T) {
	h := newHome(t)
	set := h.ov("0", "secret", "set", "COUNTER", "--app", "myapp", "--env", "production", "--machine-key", "account.key")
	if out, err := set.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	type child struct {
		*exec.Cmd
		in  io.WriteCloser
		out bytes.Buffer
	}
	start := func(name string, args ...string) *child {
		c := &child{Cmd: role(t, name, append([]string{h.vault()}, args...)...)}
		var err error
		if c.in, err = c.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		c.Stdout, c.Stderr = &c.out, &c.out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	var writers, readers []*child
	for i := range processes {
		writers = append(writers, start("write", strconv.Itoa(i)))
	}
	for range 3 {
		readers = append(readers, start("look"))
	}
	for _, c := range writers {
		_ = c.in.Close()
	}
	begin := time.Now()
	for i, change := range [][]string{
		{oldPassword + "\n" + newPassword + "\n", "auth", "change-password", "--password-stdin"},
		{newPassword + "\n", "auth", "rotate-key", "--app", "myapp", "--password-stdin"},
		{newPassword + "\n" + oldPassword + "\n", "auth", "change-password", "--password-stdin"},
	} {
		if out, err := h.ov(change[0], change[1:]...).CombinedOutput(); err != nil {
			t.Errorf("change %d: %v\n%s", i, err, out)
		}
	}
	changed := time.Since(begin)
	for i, c := range writers {
		if err := c.Wait(); err != nil {
			t.Errorf("writer %d: %v\n%s", i, err, &c.out)
		}
	}
	took := time.Since(begin)
	looks := 0
	for i, c := range readers {
		_ = c.in.Close()
		if err := c.Wait(); err != nil {
			t.Errorf("reader %d: %v\n%s", i, err, &c.out)
		}
		n, _ := strconv.Atoi(strings.TrimSpace(c.out.String()))
		looks += n
	}
	t.Logf("%d processes wrote %d times each in %v, readers looked %d times, the keys were changed three times in %v", processes, writes, took.Round(time.Millisecond), looks, changed.Round(time.Millisecond))
	if looks < 10 {
		t.Error("the readers hardly read")
	}

	ctx := t.Context()
	c, err := newClient(ctx, h.vault())
	if err != nil {
		t.Fatal(err)
	}
	defer c.s.Destroy()
	err = c.s.Reveal(ctx, prod, vault.Select{}, func(list []vault.Secret) error {
		own := 0
		for _, secret := range list {
			switch {
			case secret.Name == "COUNTER":
				if string(secret.Value) != strconv.Itoa(processes*writes) || secret.Version != processes*writes+1 {
					t.Errorf("%d additions made %s, version %d", processes*writes, secret.Value, secret.Version)
				}
			case strings.HasPrefix(secret.Name, "OWN_"):
				own++
				if secret.Version != writes || !strings.HasSuffix(string(secret.Value), "."+strconv.Itoa(writes)) {
					t.Errorf("%s is %s, version %d", secret.Name, secret.Value, secret.Version)
				}
			}
		}
		if own != 2*processes || len(list) != 700+1+own {
			t.Errorf("%d secrets, %d of the writers", len(list), own)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if files := h.files(); len(files) != 1 {
		t.Errorf("left beside the vault: %v", files)
	}
}
