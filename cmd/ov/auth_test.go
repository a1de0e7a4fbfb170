package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/access"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/vault"
)

// TestAgentTakesNewKeyThoughUsedMeanwhile: a program that asks the agent right
// after the key was replaced makes it lock; the agent gets the new key even so.
func TestAgentTakesNewKeyThoughUsedMeanwhile(t *testing.T) {
	h := newHome(t, 0)
	h.vault()
	h.must(mark, "ov", "secret", "set", "NAME", "--machine-key", "key")
	h.agent()
	u := &unlockFlags{passwordStdin: true, globals: &globals{access.Place{
		Vault: h.dir + "/.local/share/ov/vault.db", Socket: h.dir + "/run/ov-agent/ov-agent.sock",
	}}}
	cmd := newAuthRotateKeyCmd(u.globals)
	cmd.SetContext(t.Context())
	cmd.SetIn(strings.NewReader(mark + "\n"))
	var stderr bytes.Buffer
	cmd.SetErr(&stderr)
	err := u.replaceKey(cmd, "made a new key", nil, func(ctx context.Context, v *vault.Vault, old, _ *kek.Locked) error {
		if err := v.RotateKey(ctx, old); err != nil {
			return err
		}
		if r := h.run("", "ov", "secret", "get", "NAME", "--reveal", "--agent"); !strings.Contains(r.stderr, "key is no longer valid") {
			t.Errorf("the agent did not find its key dead: %+v", r)
		}
		return nil
	})
	if err != nil || !strings.Contains(stderr.String(), "the agent has the new key\n") {
		t.Errorf("%v\n%s", err, &stderr)
	}
	if got := h.must("", "ov", "secret", "get", "NAME", "--reveal", "--agent"); got != mark {
		t.Errorf("the agent has %q", got)
	}
}
