//go:build unix

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opaquevault/ov/pkg/mask"
)

// printMask compares copying a program's output, which comes through a pipe and
// goes to /dev/null, with copying it through a masker.
func printMask(dir string) error {
	const size, rounds = 64 << 20, 5
	var log, encoded bytes.Buffer
	for i := 0; log.Len() < size; i++ {
		fmt.Fprintf(&log, "2026-01-02T15:04:%02d.%06dZ INFO  request id=%016x path=/api/v1/users/%d status=200 took=%dms\n",
			i%60, i*7919%1000000, uint64(i)*0x9e3779b97f4a7c15, i%5003, i%499)
	}
	random := make([]byte, size/4*3)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	encoded.WriteString(base64.StdEncoding.EncodeToString(random))

	type way struct {
		name string
		to   func(io.Writer) io.WriteCloser
	}
	ways := []way{{"plain `io.Copy`", func(w io.Writer) io.WriteCloser { return plain{w} }}}
	for _, n := range []int{10, 1000} {
		var values []mask.Value
		for i := range n {
			values = append(values, mask.Value{Name: fmt.Sprintf("SECRET_%d", i), Bytes: []byte(rand.Text() + rand.Text())})
		}
		set, err := mask.Compile(values)
		if err != nil {
			return err
		}
		ways = append(ways, way{fmt.Sprintf("masked, %d values of 52 characters", n), func(w io.Writer) io.WriteCloser { return set.NewWriter(w) }})
	}
	texts := []string{filepath.Join(dir, "log"), filepath.Join(dir, "base64")}
	best := make([][]time.Duration, len(ways))
	for t, text := range [][]byte{log.Bytes()[:size], encoded.Bytes()} {
		if err := os.WriteFile(texts[t], text, 0o600); err != nil {
			return err
		}
		for range rounds {
			for i, way := range ways {
				took, err := copyOutput(texts[t], way.to)
				if err != nil {
					return fmt.Errorf("%s: %w", way.name, err)
				}
				if len(best[i]) == t {
					best[i] = append(best[i], took)
				}
				best[i][t] = min(best[i][t], took)
			}
		}
	}
	rate := func(took time.Duration) string { return fmt.Sprintf("%.0f", size/1e6/took.Seconds()) }
	fmt.Printf("\n## Masking a program's output\n\n")
	fmt.Printf("The output of `cat` of %d MiB, best of %d rounds.\n\n", size>>20, rounds)
	fmt.Println("| copied | a log: time, in plain copies | MB/s here | base64: time, in plain copies | MB/s here |")
	fmt.Println("|---|---:|---:|---:|---:|")
	for i, way := range ways {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", way.name,
			ratio(best[i][0], best[0][0]), rate(best[i][0]), ratio(best[i][1], best[0][1]), rate(best[i][1]))
	}
	return nil
}

// plain has only a Write, so that io.Copy does what it does for a masker.
type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// copyOutput times how long it takes until the output of cat has been copied.
func copyOutput(file string, to func(io.Writer) io.WriteCloser) (time.Duration, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	cmd := exec.Command("cat", file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	w := to(null)
	if _, err := io.Copy(w, struct{ io.Reader }{out}); err != nil {
		return 0, err
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}
