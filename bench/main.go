//go:build unix

// Bench measures what docs/PERFORMANCE.md tells and prints its tables.
//
//	go run ./bench [-n RUNS] [-secrets N,N,…]
//
// It times whole processes. What is printed are ratios of medians: they hold
// from one machine to the next, milliseconds do not.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

func main() {
	runs := flag.Int("n", 200, "runs of each program")
	flag.Parse()
	if err := run(*runs); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(runs int) error {
	dir, err := os.MkdirTemp("", "ov-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The baselines are built as the programs are: see the Makefile.
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "./bench/empty", "./bench/grpchealth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the baselines: %w", err)
	}

	socket := filepath.Join(dir, "health.sock")
	server := exec.Command(filepath.Join(dir, "grpchealth"), "serve", socket)
	if err := server.Start(); err != nil {
		return err
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	if err := waitFor(socket); err != nil {
		return err
	}

	baselines := []program{
		{name: "`/bin/true`", argv: []string{"/bin/true"}},
		{name: "empty Go program, execs it", argv: []string{filepath.Join(dir, "empty"), "/bin/true"}},
		{name: "one gRPC health call, execs it", argv: []string{filepath.Join(dir, "grpchealth"), socket, "/bin/true"}},
	}
	results, err := measure(runs, baselines)
	if err != nil {
		return err
	}
	printStart(results)
	return nil
}

// printStart prints the results beside the second and the third of them: the
// empty program and the one with a health call.
func printStart(results []result) {
	empty, health := results[1], results[2]
	fmt.Printf("Medians of %d runs each, in turn. The empty program took %v.\n\n", results[0].runs, empty.wall.Round(10*time.Microsecond))
	fmt.Println("| program | time, of the empty program's | of the gRPC program's | 9 of 10 runs, of the empty program's median | CPU time, of the empty program's |")
	fmt.Println("|---|---:|---:|---:|---:|")
	for _, r := range results {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", r.name, ratio(r.wall, empty.wall), ratio(r.wall, health.wall), ratio(r.high, empty.wall), ratio(r.cpu, empty.cpu))
	}
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
