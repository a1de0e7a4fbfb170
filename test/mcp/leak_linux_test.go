package mcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opaquevault/ov/test/chance"
)

// leakRuns is how many secrets each program is tried with: OV_LEAK, or 4.
func leakRuns(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("OV_LEAK"))
	if err != nil || n < 1 {
		return 4
	}
	return n
}

// echo is a server that sends back what it was sent, and can redirect to that.
func echo(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/redirect" {
			w.Header().Set("X-Saw", r.Header.Get("Cookie"))
			http.Redirect(w, r, "/?"+r.URL.RawQuery, http.StatusFound)
			return
		}
		fmt.Fprintf(w, "%s %s\n", r.Method, r.URL)
		_ = r.Header.Write(w)
		_, _ = w.Write(body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// crash compiles a program that prints a variable byte by byte to both outputs
// and then aborts with it in a message.
func crash(t *testing.T, dir string) string {
	t.Helper()
	source := `#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int n, char **argv) {
	char *v = getenv(argv[1]);
	size_t length = strlen(v);
	for (size_t i = 0; i < length; i++) { write(1, v + i, 1); write(2, v + i, 1); }
	setvbuf(stdout, NULL, _IONBF, 0);
	fprintf(stdout, "\nlogging in with %s\n", v);
	fprintf(stderr, "\nassertion failed: token == %s, %zu bytes\n", v, length);
	abort();
}
`
	file := filepath.Join(dir, "crash.c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "crash")
	if out, err := exec.Command("gcc", "-w", "-o", bin, file).CombinedOutput(); err != nil {
		missing(t, fmt.Sprintf("no C compiler for the program that crashes: %v\n%s", err, out))
	}
	return bin
}

// tally is what became of a program's runs.
type tally struct {
	runs, masked  int
	pieces, whole int      // runs in which a long piece was left, or the output as it was
	blocked       int      // by the interceptor, of the one run that it looked at
	left          []string // the secrets of which a piece was left
}

// job is one run of the leak test.
type job struct {
	program program
	secrets []secret // the first is the one that the program is about
	block   bool     // with the interceptor
	mask    bool     // under ov run --mask, which has the same masker
}

// jobs returns the runs: each program with n secrets, others for the next one,
// and those that show the whole environment with all secrets at once. What no
// list covers is run once more with the interceptor, and each program once under
// ov run --mask.
func jobs(secrets []secret, n int) (list []job, absent []string) {
	for i, p := range programs {
		if p.argv[0] != "CRASH" {
			if _, err := exec.LookPath(p.argv[0]); err != nil {
				absent = append(absent, p.name)
				continue
			}
		}
		var fit []secret
		for _, s := range secrets {
			if p.needs == nil || p.needs(s) {
				fit = append(fit, s)
			}
		}
		for k := range min(n, len(fit)) {
			list = append(list, job{program: p, secrets: []secret{fit[(i*n+k*7+k*n)%len(fit)]}})
		}
		if !strings.Contains(strings.Join(p.argv, " "), "NAME") && p.needs == nil {
			list = append(list, job{program: p, secrets: secrets})
		}
		if p.other != "" {
			list = append(list, job{program: p, secrets: []secret{fit[(i*5)%len(fit)]}, block: true})
		}
		list = append(list, job{program: p, secrets: []secret{fit[(i*3)%len(fit)]}, mask: true})
	}
	return list, absent
}

// TestNoValueReachesTheClient runs every program with several secrets through
// vault_run, and without ov beside it: what the program shows of the secret in a
// listed form must be nowhere in any message to the client, and no long piece of
// it either.
//
// The interceptor is off, so that it is the masker alone that is tried.
func TestNoValueReachesTheClient(t *testing.T) {
	secrets := makeSecrets(chance.Rand(t, 3))
	a := newAccount(t, secrets...)
	a.start()
	places := strings.NewReplacer("ORIGIN", echo(t), "CRASH", crash(t, a.dir))
	known := compile(secrets)
	list, absent := jobs(secrets, leakRuns(t))

	var mu sync.Mutex
	tallies := map[string]*tally{}
	for _, p := range programs {
		tallies[p.name] = &tally{}
	}
	shown := map[string]int{} // listed forms that the programs showed without ov
	try := func(c, blocking *session, j job) {
		name := j.secrets[0].name
		argv := make([]string, len(j.program.argv))
		for i, word := range j.program.argv {
			argv[i] = places.Replace(strings.ReplaceAll(word, "NAME", name))
		}
		id := j.program.name + ", with " + name
		if len(j.secrets) > 1 {
			id = j.program.name + ", with all secrets"
		}
		args := map[string]any{"command": argv}
		if len(j.secrets) == 1 {
			args["secrets"] = []string{name}
		}
		count := tallies[j.program.name]
		if j.block {
			r := blocking.tool("vault_run", args)
			mu.Lock()
			defer mu.Unlock()
			if r.failed() && strings.Contains(r.text(), "blocked") {
				count.blocked++
			} else if r.failed() {
				t.Errorf("%s, with the interceptor: %s", id, r.text())
			}
			return
		}
		stdout, stderr, err := a.without(argv, j.secrets)
		if err != nil {
			t.Errorf("%s: without ov: %v", id, err)
			return
		}
		bare := slices.Concat(stdout, []byte("\x00"), stderr)
		packed := pack(bare)
		var forms []string
		for _, s := range j.secrets {
			forms = append(forms, known.formsOf(s.name, bare, packed)...)
		}
		if j.mask {
			out, err := a.masked(argv, name)
			mu.Lock()
			defer mu.Unlock()
			hits := known.whole(out)
			if j.program.other == "" {
				hits = append(hits, known.parts(out)...)
			}
			switch {
			case err != nil:
				t.Errorf("ov run --mask: %s: %v", id, err)
			case hits != nil:
				t.Errorf("ov run --mask: %s: it printed %s", id, strings.Join(hits, "; "))
			case forms != nil && !bytes.Contains(out, []byte("[masked ")):
				t.Errorf("ov run --mask: %s: it shows the value as %q, and nothing was masked", id, forms)
			}
			return
		}
		c.sent()
		r := c.tool("vault_run", args)
		if r.failed() {
			t.Errorf("%s: %s", id, r.text())
			return
		}
		out := c.ran(r)
		var hits, pieces []string
		for _, message := range c.sent() {
			hits = append(hits, known.inMessage(message)...)
			for _, s := range append(decode(message, nil), string(message)) {
				pieces = append(pieces, known.parts([]byte(s))...)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		count.runs++
		switch {
		case out.MaskedCount > 0:
			count.masked++
		case out.Stdout == string(stdout) && out.Stderr == string(stderr):
			count.whole++
		}
		if pieces != nil {
			count.pieces++
			count.left = append(count.left, name)
		}
		for _, f := range forms {
			shown[f]++
		}
		switch {
		case hits != nil:
			t.Errorf("%s: the client got %s", id, strings.Join(slices.Compact(hits), "; "))
		case forms != nil && out.MaskedCount == 0:
			t.Errorf("%s: it shows the value as %q, and nothing was masked", id, forms)
		case j.program.other == "" && pieces != nil:
			t.Errorf("%s: the client got %s", id, strings.Join(slices.Compact(pieces), "; "))
		case j.program.other == "" && forms == nil:
			t.Errorf("%s: it shows no listed form by itself, so this tries nothing", id)
		}
	}
	start := time.Now()
	queue := make(chan job)
	var workers sync.WaitGroup
	for range 2 {
		c := a.serve([]string{"OV_INTERCEPT_MODE=off"}, "--approve", "never").open(t, nil)
		blocking := a.serve(nil, "--approve", "never").open(t, nil)
		workers.Go(func() {
			for j := range queue {
				try(c, blocking, j)
			}
		})
	}
	for _, j := range list {
		queue <- j
	}
	close(queue)
	workers.Wait()

	t.Logf("%d runs of %d programs with %d secrets in %v", len(list), len(programs)-len(absent), len(secrets), time.Since(start).Round(time.Second))
	if absent != nil {
		t.Run("all programs", func(t *testing.T) {
			missing(t, "not tried, for they are not installed: "+strings.Join(absent, ", "))
		})
	}
	t.Log("forms that programs showed without ov, and never through vault_run:")
	for _, f := range slices.Sorted(maps.Keys(shown)) {
		t.Logf("  %5d  %s", shown[f], f)
	}
	t.Log("what no list of forms covers: in how many runs something was masked, a piece of the value was left, the output came as it was; and whether the interceptor blocks it")
	t.Logf("  %-28s %-32s %5s %7s %7s %7s %8s  %s", "program", "shows it, or some, as", "runs", "masked", "pieces", "as is", "blocked", "pieces of")
	for _, p := range programs {
		if n := tallies[p.name]; p.other != "" && n.runs > 0 {
			t.Logf("  %-28s %-32s %5d %7d %7d %7d %8d  %s", p.name, p.other, n.runs, n.masked, n.pieces, n.whole, n.blocked, strings.Join(n.left[:min(6, len(n.left))], " "))
		}
	}
	if len(list) < 300 {
		t.Errorf("only %d runs", len(list))
	}
}

// without runs the command with the secrets in its environment.
func (a *account) without(argv []string, secrets []secret) (stdout, stderr []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = slices.Clone(a.env), a.project
	for _, s := range secrets {
		cmd.Env = append(cmd.Env, s.name+"="+string(s.value))
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		return nil, nil, err
	}
	return out.Bytes(), errs.Bytes(), nil
}

// masked runs the command under ov run --mask, and returns both of its outputs.
func (a *account) masked(argv []string, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(a.bin, "ov"), append([]string{"run", "--mask", "--secrets", name, "--"}, argv...)...)
	cmd.Env, cmd.Dir = a.env, a.project
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState != nil && ctx.Err() == nil && cmd.ProcessState.ExitCode() != 125 {
		err = nil // the program's own exit code
	}
	return slices.Concat(stdout.Bytes(), []byte("\x00"), stderr.Bytes()), err
}

// TestOverlappingValues: where two values overlap in an output, nothing is left
// of either.
func TestOverlappingValues(t *testing.T) {
	t.Parallel()
	v := text(chance.Rand(t, 5), 40, alnum)
	a := newAccount(t, secret{name: "A", value: v[:20]}, secret{name: "B", value: v[10:30]}, secret{name: "C", value: v[14:18]}, secret{name: "D", value: v[25:40]})
	a.secrets[2].shown = true
	a.start()
	a.file("project/all", string(v))
	c := a.serve([]string{"OV_INTERCEPT_MODE=off"}).open(t, nil)
	out := c.run([]string{"sh", "-c", `cat all; echo; base64 -w0 all; echo; dd if=all bs=1 status=none >&2`})
	for _, form := range []string{string(v), base64.StdEncoding.EncodeToString(v)} {
		for i := 0; i+5 <= len(form); i++ {
			if strings.Contains(out.Stdout+out.Stderr, form[i:i+5]) {
				t.Fatalf("5 characters of the values, from %d of %d on, are left", i, len(form))
			}
		}
	}
	if out.MaskedCount < 3 {
		t.Errorf("masked %d times", out.MaskedCount)
	}
}
