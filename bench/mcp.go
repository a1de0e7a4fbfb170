//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// printMCP compares calls of tools over stdio, one after the other: the SDK's
// bare echo, the same that also runs /bin/true, and ov's tools.
func printMCP(h *home, echo string) error {
	const warmUp, rounds = 5, 100
	ctx := context.Background()
	serve := func(mode string) *exec.Cmd {
		cmd := h.command("", "mcp", "serve", "--app", ref.App, "--env", ref.Env, "--approve", "never")
		cmd.Env = append(slices.Clone(cmd.Env), "OV_INTERCEPT_MODE="+mode)
		return cmd
	}
	run := &mcp.CallToolParams{Name: "vault_run", Arguments: map[string]any{"command": []string{"/bin/true"}}}
	said := &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "what is said"}}
	kinds := []struct {
		name string
		cmd  *exec.Cmd
		call *mcp.CallToolParams
		took []time.Duration
	}{
		{name: "the SDK's bare echo", cmd: exec.Command(echo), call: said},
		{name: "the same that also runs `/bin/true`", cmd: exec.Command(echo, "run"), call: said},
		{name: "`vault_run [\"/bin/true\"]`", cmd: serve("block"), call: run},
		{name: "the same with the interceptor off", cmd: serve("off"), call: run},
		{name: "`vault_secret_exists`", cmd: serve("block"), call: &mcp.CallToolParams{Name: "vault_secret_exists", Arguments: map[string]any{"name": "SECRET_0"}}},
	}
	sessions := make([]*mcp.ClientSession, 0, len(kinds))
	defer func() {
		for _, session := range sessions {
			_ = session.Close()
		}
	}()
	for _, kind := range kinds {
		session, err := mcp.NewClient(&mcp.Implementation{Name: "bench", Version: "1"}, nil).Connect(ctx, &mcp.CommandTransport{Command: kind.cmd}, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		sessions = append(sessions, session)
	}
	for round := range rounds + warmUp {
		for i := range kinds {
			i = (i + round) % len(kinds)
			start := time.Now()
			res, err := sessions[i].CallTool(ctx, kinds[i].call)
			took := time.Since(start)
			if err == nil && res.IsError {
				err = errors.New("the tool failed")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", kinds[i].name, err)
			}
			if round >= warmUp {
				kinds[i].took = append(kinds[i].took, took)
			}
		}
	}
	fmt.Printf("\n## Tools over MCP\n\n")
	fmt.Printf("Medians of %d calls over stdio, interleaved, %d secrets in the env. The bare echo took %.2f ms.\n\n",
		rounds, h.secrets, median(kinds[0].took).Seconds()*1e3)
	fmt.Println("| call | time, in bare echoes | in echoes that run `/bin/true` |")
	fmt.Println("|---|---:|---:|")
	for _, kind := range kinds {
		fmt.Printf("| %s | %s | %s |\n", kind.name, ratio(median(kind.took), median(kinds[0].took)), ratio(median(kind.took), median(kinds[1].took)))
	}
	return nil
}

func median(list []time.Duration) time.Duration {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}
