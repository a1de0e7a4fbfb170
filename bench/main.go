//go:build unix

// Bench measures what docs/PERFORMANCE.md tells and prints its tables.
//
//	go run ./bench [-n RUNS] [-secrets N,N,…] [-bulk N]
//
// It times whole processes of the programs in bin/. What is printed are ratios
// of medians: they hold from one machine to the next, milliseconds do not.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opaquevault/ov/pkg/agent"
	"github.com/opaquevault/ov/pkg/vault"
)

func main() {
	runs := flag.Int("n", 200, "runs of each program")
	sizes := flag.String("secrets", "10,10000,1000000", "sizes of the vaults, in secrets")
	bulk := flag.Int("bulk", 100_000, "secrets to import, and to change the password of")
	only := flag.String("only", "", "\"start\" or \"server\": only those tables")
	serverSizes := flag.String("server-secrets", "1000,1000000", "sizes of the vaults on servers, in secrets")
	if said := os.Getenv(echoEnv); said != "" {
		fmt.Fprintln(os.Stderr, "bench:", beEcho(said))
		os.Exit(1)
	}
	flag.Parse()
	if err := run(*runs, *sizes, *bulk, *only, *serverSizes); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(runs int, sizes string, bulk int, only, serverSizes string) error {
	dir, err := os.MkdirTemp("", "ov-bench-")
	if err != nil {
		return err
	}
	defer cleanup()
	go func() {
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM) // SIGPIPE would also be that of a connection
		<-interrupted
		cleanup()
		os.Exit(1)
	}()
	atEnd(func() { _ = os.RemoveAll(dir) })
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	for _, program := range []string{"ov", "ov-agent", "ov-mcp", "ov-scan", "ov-server"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return fmt.Errorf("%w: run make build", err)
		}
	}
	if only != "start" {
		if err := printServer(filepath.Join(dir, "servers"), bin, serverSizes, bulk); err != nil {
			return err
		}
	}
	if only == "server" {
		return nil
	}
	// The baselines are built as the programs are: see the Makefile.
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "./bench/empty", "./bench/grpchealth", "./bench/mcpecho")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the baselines: %w", err)
	}
	empty, health := filepath.Join(dir, "empty"), filepath.Join(dir, "grpchealth")

	socket := filepath.Join(dir, "health.sock")
	server := exec.Command(health, "serve", socket)
	if err := server.Start(); err != nil {
		return err
	}
	atEnd(func() { _ = server.Process.Kill(); _ = server.Wait() })
	if err := waitFor(socket); err != nil {
		return err
	}

	var homes []*home
	for _, size := range strings.Split(sizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < handed {
			return fmt.Errorf("a vault of %q secrets: at least %d are handed over", size, handed)
		}
		h, err := newHome(filepath.Join(dir, size), bin, n)
		if err != nil {
			return err
		}
		homes = append(homes, h)
		if err := h.verify(); err != nil {
			return err
		}
	}

	programs := append([]program{
		{name: "`/bin/true`", argv: []string{"/bin/true"}},
		{name: "an empty Go program that execs it", argv: []string{empty, "/bin/true"}},
		{name: "one gRPC health call, then exec", argv: []string{health, socket, "/bin/true"}},
	}, homes[0].runs("")...)
	results, err := measure(runs, programs)
	if err != nil {
		return err
	}
	fmt.Printf("## Starting a program with %d secrets\n\n", handed)
	printStart(results)

	programs = nil
	for _, h := range homes {
		programs = append(programs, h.runs(fmt.Sprintf(", %d in the vault", h.secrets))...)
	}
	if results, err = measure(runs, programs); err != nil {
		return err
	}
	fmt.Printf("\n## The same with more secrets in the vault\n\n")
	fmt.Printf("Of the time with %d in the vault; medians of %d runs each.\n\n", homes[0].secrets, runs)
	fmt.Println("| secrets in the vault | over the agent | with a machine key |")
	fmt.Println("|---:|---:|---:|")
	for i, h := range homes {
		fmt.Printf("| %d | %s | %s |\n", h.secrets, ratio(results[2*i].wall, results[0].wall), ratio(results[2*i+1].wall, results[1].wall))
	}

	if err := printRate(homes[0], health, socket); err != nil {
		return err
	}
	if err := printMask(dir); err != nil {
		return err
	}
	if err := printMCP(homes[0], filepath.Join(dir, "mcpecho")); err != nil {
		return err
	}
	return printBulk(filepath.Join(dir, "bulk"), bin, bulk)
}

var ends struct {
	sync.Mutex
	list []func()
}

// atEnd has f called by cleanup, last in first out: agents go on by themselves,
// so an interrupted run must stop them too.
func atEnd(f func()) {
	ends.Lock()
	defer ends.Unlock()
	ends.list = append(ends.list, f)
}

func cleanup() {
	ends.Lock()
	defer ends.Unlock()
	for _, f := range slices.Backward(ends.list) {
		f()
	}
	ends.list = nil
}

// printStart prints the results beside the second and the third of them: the
// empty program and the one with a health call.
func printStart(results []result) {
	empty, health := results[1], results[2]
	fmt.Printf("Medians of %d runs each, interleaved. The empty program took %.1f ms.\n\n", results[0].runs, empty.wall.Seconds()*1e3)
	fmt.Println("| program | time, in empty programs | in gRPC programs | 9 of 10 runs within | CPU time, in empty programs |")
	fmt.Println("|---|---:|---:|---:|---:|")
	for _, r := range results {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", r.name, ratio(r.wall, empty.wall), ratio(r.wall, health.wall), ratio(r.high, empty.wall), ratio(r.cpu, empty.cpu))
	}
}

// printRate compares requests on one connection, one after the other: a health
// call of the bare server, the agent's status, one secret and ten of them.
func printRate(h *home, health, socket string) error {
	const calls, rounds = 2000, 5
	ctx := context.Background()
	target, err := h.target()
	if err != nil {
		return err
	}
	client, err := agent.Connect(ctx, target)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	reveal := func(names []string) func() error {
		return func() error {
			return client.Reveal(ctx, ref, vault.Select{Names: names}, func([]vault.Secret) error { return nil })
		}
	}
	kinds := []struct {
		name string
		call func() error
	}{
		{"the agent's status", func() error { _, err := client.Status(ctx); return err }},
		{"one secret", reveal(h.names()[:1])},
		{fmt.Sprintf("%d secrets", handed), reveal(h.names())},
	}
	// The best of some rounds: what else the machine does can only add to it.
	bare := time.Duration(1 << 62)
	best := make([]time.Duration, len(kinds))
	for range rounds {
		out, err := exec.Command(health, "calls", socket, strconv.Itoa(calls)).Output()
		if err != nil {
			return fmt.Errorf("calling the bare server: %w", err)
		}
		took, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil {
			return err
		}
		bare = min(bare, time.Duration(took))
		for i, kind := range kinds {
			start := time.Now()
			for range calls {
				if err := kind.call(); err != nil {
					return fmt.Errorf("asking the agent for %s: %w", kind.name, err)
				}
			}
			if took := time.Since(start); best[i] == 0 || took < best[i] {
				best[i] = took
			}
		}
	}
	fmt.Printf("\n## Requests to the agent\n\n")
	fmt.Printf("On one connection, one after the other, best of %d rounds of %d.\n\n", rounds, calls)
	fmt.Println("| request | per second, of the bare health call's | time, in health calls |")
	fmt.Println("|---|---:|---:|")
	fmt.Println("| health call of a bare gRPC server | 1.00 | 1.00 |")
	for i, kind := range kinds {
		fmt.Printf("| %s | %s | %s |\n", kind.name, ratio(bare, best[i]), ratio(best[i], bare))
	}
	return nil
}

// printBulk times what touches every secret of a vault, beside writing a file
// of the same size with fsync(2).
func printBulk(dir, bin string, n int) error {
	h, err := newHome(dir, bin, 0)
	if err != nil {
		return err
	}
	h.stop()
	var dotenv strings.Builder
	for i := range n {
		fmt.Fprintf(&dotenv, "SECRET_%d=\"the value of secret %012d\"\n", i, i)
	}
	file := filepath.Join(dir, "import.env")
	start := time.Now()
	if err := writeSynced(file, dotenv.String()); err != nil {
		return err
	}
	write := time.Since(start)

	timed := func(stdin string, args ...string) (time.Duration, error) {
		cmd := h.command(stdin, args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		start := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("ov %s: %w: %s", strings.Join(args, " "), err, &stderr)
		}
		return time.Since(start), nil
	}
	imported, err := timed(password, "secret", "import", file, "--app", "big", "--env", "production", "--password-stdin")
	if err != nil {
		return err
	}
	again, err := timed(password, "secret", "import", file, "--app", "big", "--env", "production", "--password-stdin")
	if err != nil {
		return err
	}
	changed, err := timed(password+"\n"+password+" 2", "auth", "change-password", "--password-stdin")
	if err != nil {
		return err
	}
	fmt.Printf("\n## %d secrets at once\n\nOne run each.\n\n", n)
	fmt.Println("| what | seconds here | per secret |")
	fmt.Println("|---|---:|---:|")
	for _, row := range []struct {
		what string
		took time.Duration
	}{
		{"writing the `.env` file with fsync", write},
		{"`ov secret import`", imported},
		{"the same again: nothing is new", again},
		{"`ov auth change-password`", changed},
	} {
		fmt.Printf("| %s | %.2f | %.1f µs |\n", row.what, row.took.Seconds(), row.took.Seconds()*1e6/float64(n))
	}
	return nil
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Sync()
}

func waitFor(path string) error {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s did not appear within 5 s", path)
}
