package mcpclient

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/hint"
)

const other = `{
  "mcpServers": {
    "other": {}
  }
}
`

// cursorFile is where Cursor's own file is after setup.
func cursorFile(t *testing.T) (Options, string) {
	t.Helper()
	home, project := setup(t)
	return options(t, "cursor", User, project), filepath.Join(home, ".cursor/mcp.json")
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

// onlyFile fails unless the directory of path holds nothing else.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(list) != 1 {
		t.Errorf("beside %s: %v, %v", path, list, err)
	}
}

// TestCreates: what is made for a person is theirs alone, what is made in a
// project is as the rest of it.
func TestCreates(t *testing.T) {
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	for scope, want := range map[Scope][2]fs.FileMode{User: {0o700, 0o600}, Project: {0o755, 0o644}} {
		_, project := setup(t)
		o := options(t, "cursor", scope, project)
		r, err := Install(o, entry, false)
		if err != nil {
			t.Fatal(err)
		}
		if d, f := mode(t, filepath.Dir(r.File)), mode(t, r.File); d != want[0] || f != want[1] {
			t.Errorf("%s: directory %o, file %o", scope, d, f)
		}
		if (r.Missing != "") != (scope == User) {
			t.Errorf("%s: missing %q", scope, r.Missing)
		}
		if r, err = Install(o, entry, false); err != nil || r.Missing != "" {
			t.Errorf("%s: missing %q, %v", scope, r.Missing, err)
		}
	}
}

// TestReplaces: the file that was there is not written to, and the new one has
// its mode and owner.
func TestReplaces(t *testing.T) {
	o, path := cursorFile(t)
	write(t, path, other)
	for _, perm := range []fs.FileMode{0o600, 0o644, 0o660, 0o604} {
		if err := os.Chmod(path, perm); err != nil {
			t.Fatal(err)
		}
		uid, gid := os.Geteuid(), os.Getegid()
		if uid == 0 {
			uid, gid = 1234, 4321
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Install(o, entry, false); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(before)
		if err != nil || string(text) != other {
			t.Errorf("the old file was written to: %q, %v", text, err)
		}
		old, _ := before.Stat()
		_ = before.Close()
		info, err := os.Stat(path)
		if err != nil || os.SameFile(old, info) || info.Mode() != perm {
			t.Errorf("%v, %v", info, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || int(st.Uid) != uid || int(st.Gid) != gid {
			t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
		}
		onlyFile(t, path)
		if _, err := Uninstall(o); err != nil || read(t, path) != other {
			t.Fatalf("%s, %v", read(t, path), err)
		}
	}
}

// TestDryRun writes nothing, not even a directory.
func TestDryRun(t *testing.T) {
	o, path := cursorFile(t)
	o.DryRun = true
	r, err := Install(o, entry, false)
	if err != nil || r.Action != Added || exists(filepath.Dir(path)) {
		t.Errorf("%+v, %v", r, err)
	}
	write(t, path, other)
	if r, err = Install(o, entry, false); err != nil || r.Action != Added || read(t, path) != other {
		t.Errorf("%+v, %v", r, err)
	}
	o.DryRun = false
	if _, err = Install(o, entry, false); err != nil {
		t.Fatal(err)
	}
	text := read(t, path)
	o.DryRun = true
	if r, err = Uninstall(o); err != nil || r.Action != Removed || read(t, path) != text {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestSymlink: dotfile managers' links stay, of the file and of its directory.
func TestSymlink(t *testing.T) {
	o, path := cursorFile(t)
	dotfiles := filepath.Join(t.TempDir(), "cursor")
	behind := filepath.Join(dotfiles, "real.json")
	write(t, behind, other)
	if err := os.Symlink(dotfiles, filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.json", filepath.Join(dotfiles, "mcp.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(o, entry, false); err != nil {
		t.Fatal(err)
	}
	if link, err := os.Readlink(path); link != "real.json" || !strings.Contains(read(t, behind), DefaultName) {
		t.Errorf("%s, %v, %s", link, err, read(t, behind))
	}
	// The link must not come to lead nowhere, not even if nothing else is left.
	write(t, behind, "")
	if _, err := Install(o, entry, false); err != nil {
		t.Fatal(err)
	}
	if r, err := Uninstall(o); err != nil || r.Deleted {
		t.Errorf("%+v, %v", r, err)
	}
	if !json.Valid([]byte(read(t, behind))) {
		t.Error(read(t, behind))
	}
	if err := os.Remove(behind); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(o, entry, false); err == nil || !strings.Contains(err.Error(), "symbolic link to what does not exist") {
		t.Error(err)
	}
}

// TestRefuses what is not a file that can be replaced, without waiting.
func TestRefuses(t *testing.T) {
	for want, make := range map[string]func(path string) error{
		"is a named pipe, not a regular file": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"cannot be resolved":                  func(path string) error { return os.Symlink(path, path) },
		"is a directory, not a regular file":  func(path string) error { return os.Mkdir(path, 0o700) },
		"has more than 64 MiB": func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(path, maxFile+1)
		},
		"has 2 names (hard links)": func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Link(path, filepath.Join(filepath.Dir(filepath.Dir(path)), "second"))
		},
	} {
		o, path := cursorFile(t)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		for _, do := range []func() (Result, error){
			func() (Result, error) { return Install(o, entry, true) },
			func() (Result, error) { return Uninstall(o) },
		} {
			if _, err := do(); err == nil || !strings.Contains(err.Error(), path+" "+want) {
				t.Errorf("%v, not %s", err, want)
			}
		}
		onlyFile(t, path)
	}
}

// TestReadOnly: nobody made it so for nothing. Root may write it all the same.
func TestReadOnly(t *testing.T) {
	o, path := cursorFile(t)
	write(t, path, other)
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	_, err := Install(o, entry, false)
	if os.Geteuid() == 0 {
		if err != nil || mode(t, path) != 0o444 {
			t.Error(err)
		}
		return
	}
	if err == nil || hint.Of(err) != "chmod u+w "+path || read(t, path) != other {
		t.Error(err)
	}
}

// TestChangedMeanwhile: what another program writes between our reading and our
// writing is not lost.
func TestChangedMeanwhile(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written": func(path string) error { return os.WriteFile(path, []byte(`{"new":1}`), 0o600) },
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".x", []byte(`{"new":1}`), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".x", path)
		},
		"removed": os.Remove,
	} {
		path := filepath.Join(t.TempDir(), "mcp.json")
		write(t, path, other)
		c, _ := Find("cursor")
		tries := 0
		f := file{path: path, dirPerm: 0o700, perm: 0o600}
		f.staged = func() {
			if tries++; tries == 1 {
				if err := change(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		e, err := f.edit(false, func(src []byte) (edited, error) { return set(src, c, DefaultName, entry, false) })
		if err != nil || e.action != Added {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		text := read(t, path)
		if !strings.Contains(text, DefaultName) || strings.Contains(text, "other") || strings.Contains(text, "new") != (name != "removed") {
			t.Errorf("%s: %s", name, text)
		}
		onlyFile(t, path)
	}

	// One that never stops is told of.
	path := filepath.Join(t.TempDir(), "mcp.json")
	write(t, path, other)
	c, _ := Find("cursor")
	tries := 0
	f := file{path: path, staged: func() {
		tries++
		write(t, path, fmt.Sprintf(`{"n":%d}`, tries))
	}}
	_, err := f.edit(false, func(src []byte) (edited, error) { return set(src, c, DefaultName, entry, false) })
	if err == nil || tries != attempts || read(t, path) != fmt.Sprintf(`{"n":%d}`, tries) {
		t.Errorf("%d tries: %v", tries, err)
	}
	onlyFile(t, path)
}

// TestAtOnce: of many ovs at once none loses its entry.
func TestAtOnce(t *testing.T) {
	o, path := cursorFile(t)
	write(t, path, other)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			o := o
			o.Name = fmt.Sprintf("ov-%d", i)
			var err error
			for range 5 { // a file that changes all the time is an error to come back from
				if _, err = Install(o, entry, false); err == nil {
					return
				}
			}
			t.Errorf("%s: %v", o.Name, err)
		})
	}
	wg.Wait()
	var got struct{ MCPServers map[string]any }
	if err := json.Unmarshal([]byte(read(t, path)), &got); err != nil || len(got.MCPServers) != 17 {
		t.Errorf("%d servers, %v:\n%s", len(got.MCPServers), err, read(t, path))
	}
	onlyFile(t, path)
}

// editForever makes the test program uninstall and install until it is killed,
// with a line of output after each.
const editForever = "OV_TEST_EDIT_FOREVER"

func loop() {
	c, _ := Find("cursor")
	o := Options{Client: c, Scope: User, Name: DefaultName}
	for {
		for _, do := range []func() (Result, error){
			func() (Result, error) { return Uninstall(o) },
			func() (Result, error) { return Install(o, entry, false) },
		} {
			r, err := do()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(r.Action)
		}
	}
}

// TestKilled: at whatever moment ov is killed, the file is the old one or the
// new one, whole.
func TestKilled(t *testing.T) {
	o, path := cursorFile(t)
	large := strings.Replace(other, "{}", `{"args": ["`+strings.Repeat("x", 256<<10)+`"]}`, 1)
	write(t, path, large)
	if _, err := Install(o, entry, false); err != nil {
		t.Fatal(err)
	}
	with := read(t, path)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[bool]int{}
	for i := range 24 {
		if err := os.WriteFile(path, []byte(with), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), editForever+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		// In its second edit, its third, and so on.
		start, lines := time.Now(), bufio.NewScanner(out)
		for range 1 + i%4 {
			start = time.Now()
			if !lines.Scan() {
				t.Fatal("it ended by itself")
			}
		}
		time.Sleep(rand.N(max(2*time.Millisecond, time.Since(start))))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		text := read(t, path)
		if text != with && text != large {
			t.Fatalf("neither the old nor the new file: %d bytes", len(text))
		}
		seen[text == with]++
	}
	t.Logf("killed with the entry there %d times, and not there %d times", seen[true], seen[false])
	if len(seen) != 2 {
		t.Error("the kills were not at various moments")
	}
}
