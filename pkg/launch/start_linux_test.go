package launch

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStartState: but for its parent and how it ends with it, a child has what
// a program has that was started directly.
func TestStartState(t *testing.T) {
	const setup = `umask 027; ulimit -Sn 77; ulimit -Sc 8; cd /; exec 5</dev/null
		exec env --ignore-signal=PIPE,HUP,QUIT,TERM --block-signal=CHLD,USR1,PROF,URG,RTMIN+3 "$@"`
	programs := [][]string{
		{"cat", "/proc/self/status", "/proc/self/limits", "/proc/self/oom_score_adj", "/proc/self/cgroup"},
		{"cut", "-d ", "-f5-8,18,19,40,41", "/proc/self/stat"},
		{"ls", "/proc/self/fd"},
		{"readlink", "/proc/self/cwd"},
	}
	parent := regexp.MustCompile(`(?m)^PPid:.*\n`)
	state := func(argv []string) string {
		t.Helper()
		cmd := exec.Command("sh", append([]string{"-c", setup, "sh"}, argv...)...)
		out, stderr, code := run(t, cmd)
		if code != 0 || stderr != "" {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		return parent.ReplaceAllString(volatile.ReplaceAllString(out, ""), "")
	}
	all := ""
	for _, program := range programs {
		direct := state(program)
		started := state(start(t, linked(t), order{Argv: program}).Args)
		if direct != started {
			t.Errorf("%q differs\ndirect\n%s\nstarted\n%s", program, direct, started)
		}
		all += direct
	}
	for _, want := range []string{"SigIgn:\t" + ignored("05005"), "SigBlk:\t0000001004410200", "Umask:\t0027", "Max open files            77 ", "\n5\n"} {
		if found, err := regexp.MatchString(want, all); err != nil || !found {
			t.Errorf("the setup failed: no %q in\n%s", want, all)
		}
	}
}

// A child is killed when its parent is, and not when a thread of it ends.
func TestStartDiesWithParent(t *testing.T) {
	cmd := start(t, self(t), order{Argv: []string{"sh", "-c", `trap "" TERM HUP INT; echo $$; while :; do sleep 0.1; done`}})
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(line)
	if !runs(pid) {
		t.Fatalf("no process %s", pid)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(10 * time.Second); runs(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child has outlived its parent")
		}
	}
}

func TestStartOutlivesThread(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	var child *os.Process
	var tid int
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		tid = syscall.Gettid()
		child, err = Start([]string{"cat"}, environ(t, "v4lue"), StartOptions{Files: [3]*os.File{r}})
	}()
	<-done
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	if tid != os.Getpid() { // the first thread is parked, not ended
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the thread does not end")
			}
		}
	}
	_ = w.Close()
	if code := wait(child); code != 0 {
		t.Errorf("the child ended with its thread: exit %d", code)
	}
}

// runs reports whether there is such a process, and it is no zombie.
func runs(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// start is launch with Start in the place of Exec: the launcher stays, and
// exits as its child did.
func start(t testing.TB, binary string, o order) *exec.Cmd {
	t.Helper()
	return by(t, "start", binary, o)
}
