package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/store/bolt"
	"github.com/opaquevault/ov/pkg/vault"
)

func init() { roles["broken disk"] = brokenDisk }

// A disk that is full leaves the vault as it was, says so, and takes up work
// again when there is room.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: a small file system takes root")
	}
	h := newHome(t)
	dir := filepath.Dir(h.vault())
	size := len(h.base.file) + 256<<10
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		t.Skipf("NOT RUN: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	h.reset()
	before := h.mustRead(true)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	for _, op := range operations {
		var stderr bytes.Buffer
		cmd := op.cmd(h)
		cmd.Stderr = &stderr
		if err := cmd.Run(); err == nil {
			// What frees more than it takes may find room in the file itself.
			if !strings.HasPrefix(op.name, "delete") && op.name != "import into a new app" {
				t.Errorf("%s succeeded on a full disk", op.name)
			}
			h.write("v/vault.db", h.base.file)
			continue
		}
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "no space left on device") || !strings.Contains(stderr.String(), h.vault()) || strings.Contains(stderr.String(), "panic") {
			t.Errorf("%s: exit code %d\n%s", op.name, cmd.ProcessState.ExitCode(), &stderr)
		}
		if got := h.mustRead(op.password); op.password && !got.equal(before) {
			t.Errorf("%s left %v, want %v", op.name, got, before)
		}
	}
	if got := h.mustRead(true); !got.equal(before) {
		t.Errorf("now %v, want %v", got, before)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if out, err := h.ov("v", "secret", "set", "AFTER", "--app", "myapp", "--env", "production", "--machine-key", "env.key").CombinedOutput(); err != nil {
		t.Errorf("with room again: %v\n%s", err, out)
	}
}

// A disk that fails to read, write or flush: an error that says so, and the old
// state. The kernel fails the calls, by seccomp(2).
func TestBrokenDisk(t *testing.T) {
	for name, want := range map[string]string{"pread64": "read", "pwrite64": "write", "fdatasync": "sync", "ftruncate": "truncate"} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			out, err := role(t, "broken disk", h.vault(), filepath.Join(h.dir, "account.key"), name).CombinedOutput()
			if strings.HasPrefix(string(out), "NOT RUN") {
				t.Skip(strings.TrimSpace(string(out)))
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if text := string(out); !strings.Contains(text, "input/output error") || !strings.Contains(text, h.vault()) {
				t.Errorf("%s: the error is %q", want, text)
			}
			if got, err := os.ReadFile(h.vault()); name == "pread64" && (err != nil || !bytes.Equal(got, h.base.file)) {
				t.Errorf("the file has changed: %v", err)
			}
			if _, err := h.read(false); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if st := h.mustRead(false); len(st.secrets) != 750 {
				t.Errorf("afterwards %v", st)
			}
			if files := h.files(); len(files) != 1 {
				t.Errorf("left beside the vault: %v", files)
			}
		})
	}
}

// brokenDisk unlocks a vault, has a system call fail from then on, and prints
// the error that its next operation gives.
func brokenDisk(args []string) error {
	ctx := context.Background()
	b, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	key, err := kek.LockedFrom(b)
	if err != nil {
		return err
	}
	s, err := vault.New(bolt.New(args[0])).UnlockKey(ctx, key)
	if err != nil {
		return err
	}
	nr := map[string]uint32{"pread64": unix.SYS_PREAD64, "pwrite64": unix.SYS_PWRITE64, "fdatasync": unix.SYS_FDATASYNC, "ftruncate": unix.SYS_FTRUNCATE}[args[2]]
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EIO)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		fmt.Println("NOT RUN: no seccomp filter can be set here:", e)
		return nil
	}
	var list []vault.Put
	for i := range 2000 { // so that the file must grow
		list = append(list, vault.Put{Name: fmt.Sprintf("NEW%d", i), Value: make([]byte, 500)})
	}
	if _, err = s.Put(ctx, prod, list, vault.PutOptions{}); err == nil {
		return errors.New("written in spite of it")
	}
	fmt.Println(err)
	return nil
}
