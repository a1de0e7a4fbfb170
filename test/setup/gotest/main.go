// Gotest runs `go test` with the arguments given to it and prints what it
// prints, less the output of tests that pass. It appends each test that was
// skipped, with the reason that the test gave, to the file that the
// environment variable NOT_RUN names: `make test` ends with those lines.
//
// Usage: gotest [-show] ARGUMENTS OF GO TEST…
//
// With -show as the first argument the output of passing tests is printed too.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

func main() {
	args, show := os.Args[1:], false
	if len(args) > 0 && args[0] == "-show" {
		args, show = args[1:], true
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fail(err)
	}
	skipped, err := report(out, os.Stdout, show)
	if err != nil {
		fail(err)
	}
	if err := note(os.Getenv("NOT_RUN"), skipped); err != nil {
		fail(err)
	}
	if err := cmd.Wait(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "gotest:", err)
	os.Exit(1)
}

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
}

// where strips the file and line that the testing package puts before a
// skip's reason.
var where = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)

// report copies the readable part of the stream in to out, and returns a line
// for each skipped test.
func report(in io.Reader, out io.Writer, show bool) (skipped []string, err error) {
	output := map[string][]string{} // of tests that have not ended
	lines := bufio.NewReader(in)
	for {
		line, readErr := lines.ReadString('\n')
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // go test itself failed before any test
			e = event{}
		}
		id := e.Package + "." + e.Test
		switch e.Action {
		case "output", "build-output":
			switch {
			case e.Test == "" && e.Output == "PASS\n":
			case e.Test == "" || show:
				fmt.Fprint(out, e.Output)
				fallthrough
			default:
				output[id] = append(output[id], e.Output)
			}
		case "fail":
			if e.Test != "" && !show {
				fmt.Fprint(out, strings.Join(output[id], ""))
			}
			delete(output, id)
		case "skip":
			if e.Test != "" {
				skipped = append(skipped, e.Test+": "+reason(output[id]))
			}
			delete(output, id)
		case "pass":
			delete(output, id)
		}
		if readErr == io.EOF {
			return skipped, nil
		}
		if readErr != nil {
			return skipped, readErr
		}
	}
}

// reason is what the test said when it skipped, on one line.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		if strings.HasPrefix(line, "=== ") || strings.HasPrefix(strings.TrimSpace(line), "--- ") {
			continue
		}
		if line = strings.TrimSpace(where.ReplaceAllString(line, "")); line != "" {
			said = append(said, line)
		}
	}
	if said == nil {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

// note appends the lines to the file at path, if there is one to append to.
func note(path string, lines []string) error {
	if path == "" || len(lines) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}
