//go:build linux

// Scan counts secrets in the memory of a process, as root:
//
//	scan PID < secrets
//
// Each line of its input is a name and a secret in hex. It prints where it
// found each secret, in which form, and exits 1 if it found any.
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opaquevault/ov/test/memory/memscan"
)

func main() {
	report, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "scan:", err)
		os.Exit(2)
	}
	for _, hit := range report.Hits {
		fmt.Println(hit)
	}
	fmt.Printf("%d found in %d bytes; %d bytes could not be read\n", len(report.Hits), report.Read, report.Unreadable)
	if len(report.Hits) > 0 {
		os.Exit(1)
	}
}

func run(args []string) (*memscan.Report, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("usage: scan PID < secrets")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	var patterns []memscan.Pattern
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		secret, err := hex.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("%s: not a secret in hex", name)
		}
		patterns = append(patterns, memscan.Forms(name, secret)...)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return memscan.Process(pid, patterns)
}
