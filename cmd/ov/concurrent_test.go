package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// together calls fn n times at once.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}

// TestOneOfManyInitsWins: of processes that make the vault at once one succeeds,
// and it opens with that one's password.
func TestOneOfManyInitsWins(t *testing.T) {
	t.Parallel()
	h := newHome(t, 0)
	const n = 6
	results := make([]result, n)
	together(n, func(i int) {
		results[i] = h.run(fmt.Sprint(mark, "-", i), "ov", "auth", "init", "--password-stdin")
	})
	winner := -1
	for i, r := range results {
		switch {
		case r.code == 0 && winner < 0:
			winner = i
		case r.code == 0:
			t.Errorf("%d and %d both made the vault", winner, i)
		case !strings.HasPrefix(r.stderr, "ov: there is a vault at "):
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	}
	if winner < 0 {
		t.Fatal("nobody made the vault")
	}
	h.must(fmt.Sprint(mark, "-", winner), "ov", "secret", "list", "--password-stdin")
	if left := h.must("", "ls", "-A", ".local/share/ov"); left != "vault.db\n" {
		t.Errorf("more is left than the vault: %q", left)
	}
}

// TestOneOfManyWritersWins: of processes that write the first version of a
// secret at once one succeeds, the others are told, and none writes over it.
func TestOneOfManyWritersWins(t *testing.T) {
	t.Parallel()
	h := newHome(t, 0)
	h.vault()
	h.agent()
	const n = 8
	results := make([]result, n)
	together(n, func(i int) {
		argv := []string{"ov", "secret", "set", "NAME", "--replaces", "0"}
		if i%2 == 0 { // half of them not through the agent
			argv = append(argv, "--machine-key", "key")
		}
		results[i] = h.run(fmt.Sprint(mark, "-", i), argv...)
	})
	winner := -1
	for i, r := range results {
		switch {
		case r.code == 0 && winner < 0:
			winner = i
		case r.code == 0:
			t.Errorf("%d and %d both wrote version 1", winner, i)
		case !strings.Contains(r.stderr, "changed by somebody else in the meantime"):
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	}
	if winner < 0 {
		t.Fatal("nobody wrote")
	}
	if got, want := h.must("", "ov", "secret", "get", "NAME", "--reveal"), fmt.Sprint(mark, "-", winner); got != want {
		t.Errorf("the value is %q, and the winner wrote %q", got, want)
	}
}

// TestNoWriteIsLost: processes that write different secrets at once all succeed.
func TestNoWriteIsLost(t *testing.T) {
	t.Parallel()
	h := newHome(t, 0)
	h.vault()
	h.agent()
	const n = 12
	together(n, func(i int) {
		argv := []string{"ov", "secret", "set", fmt.Sprint("NAME_", i)}
		if i%2 == 0 {
			argv = append(argv, "--machine-key", "key")
		}
		if r := h.run(fmt.Sprint(mark, "-", i), argv...); r.code != 0 {
			t.Errorf("%d: %s", i, r.stderr)
		}
	})
	for i := range n {
		name := fmt.Sprint("NAME_", i)
		if got, want := h.must("", "ov", "run", "--", "printenv", name), fmt.Sprint(mark, "-", i, "\n"); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}
