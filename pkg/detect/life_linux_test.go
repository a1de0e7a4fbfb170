package detect_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/detect"
)

// children returns the processes whose parent is pid.
func children(t *testing.T, pid int) []int {
	t.Helper()
	var list []int
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, f := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
	}
	return list
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// TestHardened: what reads messages leaves no core and lets no debugger in. An
// undumpable process's files in /proc are root's, so it runs as somebody else.
func TestHardened(t *testing.T) {
	path, err := ovScan()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, detect.EngineArg)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 100)); err != nil { // it is ready
		t.Fatal(err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("it may dump core:\n%s", limits)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("the process is dumpable")
	}
	// It ends with its input.
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestNoEnvironment: what this process has in its environment is not the engine's.
func TestNoEnvironment(t *testing.T) {
	t.Setenv("OV_TEST_SECRET", "x")
	e := startReal(t)
	if _, err := e.Scan(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	list := children(t, os.Getpid())
	if len(list) != 1 {
		t.Fatalf("children: %v", list)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", list[0]))
	if os.Geteuid() == 0 && err != nil || len(environ) != 0 {
		t.Errorf("%v: %q", err, environ)
	}
}

// TestDiesWithParent: also when it never looks at its input, and its parent was
// killed.
func TestDiesWithParent(t *testing.T) {
	if path := os.Getenv("OV_TEST_ENGINE"); path != "" {
		e, err := detect.Start(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("engine", children(t, os.Getpid()))
		_, _ = e.Scan(t.Context(), []byte("x")) // without end
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestDiesWithParent$")
	cmd.Env = append(os.Environ(), "OV_TEST_ENGINE="+standIn(t, "silent"))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, aerr := strconv.Atoi(strings.Trim(strings.TrimPrefix(line, "engine "), "[]\n"))
	if err != nil || aerr != nil {
		t.Fatalf("%q: %v %v", line, err, aerr)
	}
	time.Sleep(300 * time.Millisecond) // a thread that ended early would have taken it along
	if !alive(pid) {
		t.Fatal("it did not live")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for range 100 {
		if !alive(pid) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	t.Error("it outlived its parent")
}
