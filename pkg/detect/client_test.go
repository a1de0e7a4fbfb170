package detect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/version"
)

// TestMain lets this program stand in for engines that misbehave: the real one
// does not.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == detect.EngineArg {
		misbehave(filepath.Base(os.Args[0]))
		return
	}
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

var built string // folder of the real program

func misbehave(how string) {
	hello := func() { _ = detect.WriteJSON(os.Stdout, detect.Hello{Version: version.String()}) }
	frame := func(b []byte) {
		_ = detect.WriteText(os.Stdout, b) // a frame like any other
	}
	switch how {
	case "silent":
		time.Sleep(time.Hour)
	case "dead":
		os.Exit(3)
	case "old":
		_ = detect.WriteJSON(os.Stdout, detect.Hello{Version: "v0.0.0-old"})
	case "no-answer":
		hello()
		_, _ = detect.ReadText(os.Stdin)
		time.Sleep(time.Hour)
	case "no-reader":
		hello()
		time.Sleep(time.Hour)
	case "dies":
		hello()
		_, _ = detect.ReadText(os.Stdin)
		os.Exit(3)
	case "garbage":
		hello()
		_, _ = detect.ReadText(os.Stdin)
		_, _ = os.Stdout.WriteString("\x00\x00\x00\x05hello")
	case "huge":
		hello()
		_, _ = detect.ReadText(os.Stdin)
		_, _ = os.Stdout.WriteString("\xff\xff\xff\xffhello")
	case "outside":
		hello()
		_, _ = detect.ReadText(os.Stdin)
		frame([]byte(`{"findings":[{"rule":"x","start":3,"end":1000000,"line":1}]}`))
	case "fault":
		hello()
		for {
			if _, err := detect.ReadText(os.Stdin); err != nil {
				return
			}
			frame([]byte(`{"fault":"other"}`))
		}
	case "slow":
		hello()
		for i := 0; ; i++ {
			if _, err := detect.ReadText(os.Stdin); err != nil {
				return
			}
			time.Sleep(500 * time.Millisecond)
			frame(fmt.Appendf(nil, `{"findings":[{"rule":"pid","start":0,"end":0,"line":%d},{"rule":"n","start":0,"end":0,"line":%d}]}`, os.Getpid(), i+1))
		}
	}
}

func standIn(t *testing.T, how string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), how)
	if err := os.Link(self, path); err != nil {
		b, err := os.ReadFile(self)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// ovScan is the real program.
var ovScan = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ov-detect")
	if err != nil {
		return "", err
	}
	built = dir
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // for the test that changes account
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "../../cmd/ov-scan")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return filepath.Join(dir, "ov-scan"), nil
})

func start(t *testing.T, path string) *detect.Engine {
	t.Helper()
	e, err := detect.Start(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func startReal(t *testing.T) *detect.Engine {
	t.Helper()
	path, err := ovScan()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, path)
}

// token has the form of a GitHub token. It is put together here, so that no
// scanner takes this file for a leak.
const token = "gh" + "p_" + "R7mK2xVq9ZtB4nWc8YfLs3HdJ6pGaE1uTiO5"

func TestScan(t *testing.T) {
	e := startReal(t)
	for text, want := range map[string]int{
		"":                          0,
		"nothing":                   0,
		"\x00\xff\n" + token + "\n": 3,
		"é " + token:                3,
	} {
		found, err := e.Scan(t.Context(), []byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if want == 0 {
			if len(found) != 0 {
				t.Errorf("%q: %v", text, found)
			}
			continue
		}
		if len(found) != 1 || found[0].Rule != "github-pat" || found[0].Start != want || text[found[0].Start:found[0].End] != token {
			t.Errorf("%q: %+v", text, found)
		}
	}
	if _, err := e.Scan(t.Context(), make([]byte, detect.MaxText+1)); !errors.Is(err, detect.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if found, err := e.Scan(t.Context(), append(bytes.Repeat([]byte("x\n"), (detect.MaxText-len(token))/2-1), token...)); err != nil || len(found) != 1 {
		t.Errorf("the largest: %v %v", found, err)
	}
}

// A message may not let itself through.
func TestAllowCommentIsNotHeeded(t *testing.T) {
	found, err := startReal(t).Scan(t.Context(), []byte(token+" # gitleaks:allow"))
	if err != nil || len(found) != 1 {
		t.Errorf("%v %v", found, err)
	}
}

func TestConcurrent(t *testing.T) {
	e := startReal(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			text := strings.Repeat("x", i) + " " + token
			found, err := e.Scan(t.Context(), []byte(text))
			if err != nil || len(found) != 1 || found[0].Start != i+1 {
				t.Errorf("%d: %v %v", i, found, err)
			}
		})
	}
	wg.Wait()
}

// Every engine that does not answer as it should is an error, soon, and none
// names what was to be scanned.
func TestMisbehaving(t *testing.T) {
	for how, want := range map[string]string{
		"silent":    "context deadline exceeded",
		"dead":      "it ended",
		"old":       "v0.0.0-old",
		"no-answer": "context deadline exceeded",
		"no-reader": "context deadline exceeded",
		"dies":      "it ended",
		"garbage":   "not what an engine says",
		"huge":      "at most",
		"outside":   "outside of the text",
		"fault":     "could not be scanned",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			e := start(t, standIn(t, how))
			text := []byte(strings.Repeat("S3CRET", 100_000)) // more than a pipe holds
			for range 2 {                                     // a second one is as bad
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				began := time.Now()
				found, err := e.Scan(ctx, text)
				cancel()
				if err == nil {
					t.Fatalf("no error: %v", found)
				}
				if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "S3C") {
					t.Errorf("%v: does not say %q", err, want)
				}
				if time.Since(began) > 4*time.Second {
					t.Errorf("took %v", time.Since(began))
				}
			}
		})
	}
}

func TestNoProgram(t *testing.T) {
	if _, err := detect.Start(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
}

// Who gives up leaves the engine to the others.
func TestGiveUp(t *testing.T) {
	e := start(t, standIn(t, "slow"))
	first, err := e.Scan(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := e.Scan(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	last, err := e.Scan(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if first[0].Line != last[0].Line || last[1].Line != 3 {
		t.Errorf("another process or another's answer: %v %v", first, last)
	}
}

// An engine that was killed is there again at the next call, but one that always
// ends is not started forever.
func TestRestart(t *testing.T) {
	e := start(t, standIn(t, "dies"))
	var last error
	for range 8 {
		if _, last = e.Scan(t.Context(), []byte("x")); last == nil {
			t.Fatal("no error")
		}
	}
	if !strings.Contains(last.Error(), "within a minute") {
		t.Errorf("still started: %v", last)
	}

	e = start(t, standIn(t, "slow"))
	found, err := e.Scan(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	kill(t, found[0].Line)
	again, err := e.Scan(t.Context(), []byte("x"))
	if err != nil { // it was not yet seen to be dead
		again, err = e.Scan(t.Context(), []byte("x"))
	}
	if err != nil || again[0].Line == found[0].Line {
		t.Errorf("%v %v", again, err)
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	e := start(t, standIn(t, "slow"))
	done := make(chan error)
	go func() {
		_, err := e.Scan(context.Background(), []byte("x"))
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a scan went on")
	}
	if _, err := e.Scan(t.Context(), []byte("x")); !errors.Is(err, detect.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
