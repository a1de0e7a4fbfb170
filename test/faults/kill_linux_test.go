package faults

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watch counts what happens to the vault's directory and file: inotify(7).
type watch struct{ fd int }

func newWatch(dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN|unix.IN_MODIFY|unix.IN_CLOSE|unix.IN_CREATE|unix.IN_DELETE|unix.IN_ONLYDIR); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &watch{fd}, nil
}

func (w *watch) close() { _ = unix.Close(w.fd) }

// next waits for events and returns how many there were, and how many of them
// were writes to a file. Events that are alike and follow each other are one.
func (w *watch) next(timeout time.Duration) (events, writes int, err error) {
	poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int(timeout.Milliseconds())); n <= 0 || err != nil {
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return 0, 0, err
	}
	b := make([]byte, 1<<16)
	n, err := unix.Read(w.fd, b)
	if err != nil {
		return 0, 0, err
	}
	for at := 0; at+unix.SizeofInotifyEvent <= n; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[at]))
		if events++; e.Mask&unix.IN_MODIFY != 0 {
			writes++
		}
		at += unix.SizeofInotifyEvent + int(e.Len)
	}
	return events, writes, nil
}

// course is how an operation goes when nobody kills it.
type course struct {
	took           time.Duration
	events, writes int
}

// measure runs the operation to its end.
func (h *home) measure(op operation) course {
	h.t.Helper()
	h.reset()
	w, err := newWatch(filepath.Dir(h.vault()))
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.close()
	cmd := op.cmd(h)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var c course
	for ended := false; !ended; {
		select {
		case err := <-done:
			if err != nil {
				h.t.Fatalf("%v: %v\n%s", cmd.Args, err, &out)
			}
			c.took, ended = time.Since(start), true
		default:
		}
		n, writes, err := w.next(time.Millisecond)
		if err != nil {
			h.t.Fatal(err)
		}
		c.events, c.writes = c.events+n, c.writes+writes
	}
	return c
}

// kill starts the operation and kills it at a point of the given kind: at a
// random time, or a little after a random event or write in the directory. It
// reports whether the operation had ended before that.
func (h *home) kill(op operation, c course, kind int) (ended bool) {
	h.t.Helper()
	w, err := newWatch(filepath.Dir(h.vault()))
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.close()
	cmd := op.cmd(h)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	switch kind {
	case 0: // anywhere
		time.Sleep(time.Duration(rand.Int64N(int64(c.took + c.took/10))))
	case 1, 2: // after an event
		target := rand.IntN(c.events + 1)
		h.await(w, func(events, _ int) bool { return events > target }, c)
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	default: // in the middle of the writes, which is where the commit is
		target := rand.IntN(c.writes + 1)
		h.await(w, func(_, writes int) bool { return writes > target }, c)
		if kind == 3 {
			time.Sleep(time.Duration(rand.IntN(1500)) * time.Microsecond)
		}
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	if err == nil {
		return true
	}
	if ws, ok := exit.Sys().(interface{ Signaled() bool }); !ok || !ws.Signaled() {
		h.t.Errorf("%v failed by itself: %v", cmd.Args, err)
	}
	return false
}

// await reads events until enough, or the time that the operation takes is over.
func (h *home) await(w *watch, enough func(events, writes int) bool, c course) {
	h.t.Helper()
	events, writes := 0, 0
	for end := time.Now().Add(2*c.took + time.Second); time.Now().Before(end); {
		n, m, err := w.next(20 * time.Millisecond)
		if err != nil {
			h.t.Fatal(err)
		}
		if events, writes = events+n, writes+m; enough(events, writes) {
			return
		}
		if n == 0 && events >= c.events {
			return
		}
	}
}

// operation is something that ov does to a vault.
type operation struct {
	name     string
	password bool // look with the passwords afterwards: the keys have changed
	cmd      func(h *home) *exec.Cmd
}

var operations = []operation{
	{"import", false, func(h *home) *exec.Cmd {
		var file strings.Builder
		for i := range 500 { // half of them are there
			fmt.Fprintf(&file, "N%d='%s'\n", 450+i, strings.Repeat("imported ", 8))
		}
		h.write(".env", []byte(file.String()))
		return h.ov("", "secret", "import", ".env", "--app", "myapp", "--env", "production", "--machine-key", "account.key", "--overwrite")
	}},
	{"import into a new app", false, func(h *home) *exec.Cmd {
		h.write(".env", []byte("A=1\nB=2\nC='three\nlines\nlong'\n"))
		return h.ov("", "secret", "import", ".env", "--app", "fresh", "--env", "dev", "--machine-key", "account.key")
	}},
	{"change-password", true, func(h *home) *exec.Cmd {
		return h.ov(oldPassword+"\n"+newPassword+"\n", "auth", "change-password", "--password-stdin")
	}},
	{"rotate-key", true, func(h *home) *exec.Cmd {
		return h.ov(oldPassword+"\n", "auth", "rotate-key", "--password-stdin")
	}},
	{"rotate-key of an app", false, func(h *home) *exec.Cmd {
		return h.ov(oldPassword+"\n", "auth", "rotate-key", "--app", "myapp", "--password-stdin")
	}},
	{"delete", false, func(h *home) *exec.Cmd {
		args := []string{"secret", "delete", "--app", "myapp", "--env", "production", "--machine-key", "env.key"}
		for i := range 300 {
			args = append(args, fmt.Sprintf("N%d", 2*i))
		}
		return h.ov("", args...)
	}},
	{"delete of an app", false, func(h *home) *exec.Cmd {
		return h.ov("", "app", "delete", "myapp", "--confirm", "--machine-key", "account.key")
	}},
}

// Killed at any instant, an operation has happened or it has not, and the next
// one goes through.
func TestKilled(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			h := newHome(t)
			before := h.mustRead(op.password)
			records, err := h.records()
			if err != nil {
				t.Fatal(err)
			}
			var c course
			for range 3 {
				m := h.measure(op)
				c = course{max(c.took, m.took), max(c.events, m.events), max(c.writes, m.writes)}
			}
			after := h.mustRead(op.password)
			if before.equal(after) {
				t.Fatalf("the operation changes nothing: %v", before)
			}
			happened, not, ended := 0, 0, 0
			n := kills(t, op.password)
			for i := range n {
				h.reset()
				if h.kill(op, c, i%5) {
					ended++
				}
				if files := h.files(); !slices.Equal(files, []string{"vault.db"}) {
					t.Errorf("left beside the vault: %v", files)
				}
				// What is the same record for record spares the password.
				now, err := h.records()
				if err != nil {
					t.Fatalf("kill %d: %v", i, err)
				}
				untouched := maps.Equal(now, records)
				if untouched {
					not++
				} else if got, err := h.read(op.password); err != nil {
					t.Fatalf("kill %d: %v", i, err)
				} else if happened++; !got.equal(after) {
					t.Fatalf("kill %d left something in between:\nbefore %v\nafter  %v\nnow    %v", i, before, after, got)
				}
				if i%20 == 19 && untouched { // it can still be done
					if out, err := op.cmd(h).CombinedOutput(); err != nil {
						t.Fatalf("again: %v\n%s", err, out)
					}
					if got := h.mustRead(op.password); !got.equal(after) {
						t.Fatalf("done again: %v, want %v", got, after)
					}
				}
			}
			t.Logf("%d kills within %v (%d events, %d writes): %d times before it took effect, %d after, of which %d at the end",
				n, c.took.Round(time.Millisecond), c.events, c.writes, not, happened, ended)
			if not == 0 || happened == 0 {
				t.Error("not the test it should be")
			}
		})
	}
}

// An init that is killed leaves a vault or none, and at most one file that a
// later init removes.
func TestKilledInit(t *testing.T) {
	h := newHome(t)
	init := operation{"init", true, func(h *home) *exec.Cmd {
		return h.ov(oldPassword+"\n", "auth", "init", "--password-stdin")
	}}
	h.base = &base{} // no vault to begin with
	empty := func() {
		for _, name := range h.files() {
			if err := os.Remove(filepath.Join(filepath.Dir(h.vault()), name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	empty()
	w, err := newWatch(filepath.Dir(h.vault()))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if out, err := init.cmd(h).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := course{took: time.Since(start)}
	for {
		n, writes, err := w.next(0)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		c.events, c.writes = c.events+n, c.writes+writes
	}
	w.close()
	made, none, left := 0, 0, 0
	n := kills(t, false)
	for i := range n {
		empty()
		h.kill(init, c, i%5)
		files := h.files()
		vaultAt := slices.Index(files, "vault.db")
		if vaultAt >= 0 {
			made++
			files = slices.Delete(files, vaultAt, vaultAt+1)
			if out, err := h.ov(oldPassword+"\n", "secret", "set", "NAME", "--from-file", "env.key", "--password-stdin").CombinedOutput(); err != nil {
				t.Fatalf("kill %d: the vault does not work: %v\n%s", i, err, out)
			}
		} else {
			none++
		}
		if len(files) > 1 || len(files) == 1 && !strings.HasPrefix(files[0], "vault.db.new-") {
			t.Fatalf("kill %d left %v", i, files)
		}
		if len(files) == 0 {
			continue
		}
		left++
		if vaultAt >= 0 {
			continue // it was being removed
		}
		// An hour later it goes.
		name := filepath.Join(filepath.Dir(h.vault()), files[0])
		long := time.Now().Add(-2 * time.Hour)
		if err := os.Chtimes(name, long, long); err != nil {
			t.Fatal(err)
		}
		if left > 5 {
			continue
		}
		if out, err := init.cmd(h).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if files := h.files(); !slices.Equal(files, []string{"vault.db"}) {
			t.Errorf("after the next init: %v", files)
		}
	}
	t.Logf("%d kills within %v: %d times no vault, %d times a vault, %d files left", n, c.took.Round(time.Millisecond), none, made, left)
	if made == 0 || none == 0 || left == 0 {
		t.Error("not the test it should be")
	}
}
