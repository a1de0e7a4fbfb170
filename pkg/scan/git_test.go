package scan_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/scan"
	"github.com/opaquevault/ov/pkg/scan/options"
)

func TestHistory(t *testing.T) {
	repository(t)
	files(t, map[string]string{"a.txt": "one\n", "clean": "x\n"})
	commit(t, "first")
	files(t, map[string]string{"a.txt": "one\ntwo " + githubToken + "\n"})
	added := commit(t, "adds a secret")
	files(t, map[string]string{"a.txt": "zero\none\ntwo " + githubToken + "\nthree\n"})
	commit(t, "moves it")
	files(t, map[string]string{"a.txt": "one\n"})
	commit(t, "removes it")
	git(t, "mv", "a.txt", "b.txt")
	commit(t, "renames the file")
	files(t, map[string]string{"new\nline": awsKey + "\n", "gone.go": stripeKey + "\n", "package-lock.json": githubToken})
	odd := commit(t, "odd names")
	if err := os.Remove("gone.go"); err != nil {
		t.Fatal(err)
	}
	commit(t, "deletes a file")

	lines(t, options.Scan{}, `"new\nline":1:1: `+awsShown)
	want := []string{
		in("a.txt", 2, 5, added, patShown),
		in("gone.go", 1, 1, odd, stripeShown),
		in(`"new\nline"`, 1, 1, odd, awsShown),
	}
	for range 3 {
		stderr := lines(t, options.Scan{History: true}, want...)
		if !strings.Contains(stderr, "changes scanned; skipped: 1 such as lock files") {
			t.Error(stderr)
		}
	}
	// Of the repository that a path is in, and each once.
	files(t, map[string]string{"sub/dir/x": ""})
	lines(t, options.Scan{History: true, Paths: []string{"sub/dir", ".", "clean"}}, want...)

	stdout, _, _ := run(t, options.Scan{History: true, Format: options.JSON})
	for _, part := range []string{`"commit": "` + git(t, "rev-parse", added) + `"`, `"author": "Ann <ann@example.com>"`, `"date": "2026-01-02T03:04:05Z"`, `"file": "new\nline"`} {
		if !strings.Contains(stdout, part) {
			t.Errorf("no %s in %s", part, stdout)
		}
	}
}

// TestAllRefs: a secret in a branch, a tag, a stash or a merge is found.
func TestAllRefs(t *testing.T) {
	repository(t)
	files(t, map[string]string{"f": "1\n2\n3\n4\n5\n6\n7\n8\n9\n"})
	commit(t, "first")
	git(t, "checkout", "-q", "-b", "other")
	files(t, map[string]string{"branch": githubToken})
	branch := commit(t, "branch")
	git(t, "checkout", "-q", "--detach")
	files(t, map[string]string{"tag": awsKey})
	tagged := commit(t, "tagged")
	git(t, "tag", "-m", "t", "v1")
	git(t, "checkout", "-q", "main")
	files(t, map[string]string{"f": "1\n2\n3\n4\n5\n6\n7\n8\n9\nstash " + otherToken + "\n"})
	git(t, "stash", "-q")
	// A merge that brings what neither side has.
	files(t, map[string]string{"f": "main\n2\n3\n4\n5\n6\n7\n8\n9\n"})
	commit(t, "main")
	git(t, "checkout", "-q", "-b", "side", "HEAD~")
	files(t, map[string]string{"f": "1\n2\n3\n4\n5\n6\n7\n8\nside\n"})
	commit(t, "side")
	git(t, "checkout", "-q", "main")
	git(t, "merge", "-q", "--no-commit", "side")
	files(t, map[string]string{"f": "main\n2\n3\n4\n" + stripeKey + "\n6\n7\n8\nside\n"})
	merge := commit(t, "merge")

	stdout, _, err := run(t, options.Scan{History: true})
	var found *scan.FoundError
	if !errors.As(err, &found) || found.Count != 4 {
		t.Errorf("%v\n%s", err, stdout)
	}
	for _, want := range []string{
		in("branch", 1, 1, branch, patShown), in("tag", 1, 1, tagged, awsShown), in("f", 5, 1, merge, stripeShown), "f:10:7 in ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

// What an old line holds is not the doing of the commit that changes another, but
// a rule sees the lines around.
func TestOnlyAddedLines(t *testing.T) {
	repository(t)
	files(t, map[string]string{"f": "token: " + githubToken + "\na\nb\n", "k": "x\n"})
	first := commit(t, "first")
	files(t, map[string]string{"f": "token: " + githubToken + "\na\nB\nnew " + awsKey + "\n", "k": "x\n" + pemKey})
	second := commit(t, "second")
	lines(t, options.Scan{History: true},
		in("f", 1, 8, first, patShown), in("f", 4, 5, second, awsShown), in("k", 2, 1, second, "private-key: --… (118 characters)"))
	files(t, map[string]string{"f": "token: " + githubToken + "\na\nstaged " + stripeKey + "\n"})
	git(t, "add", "-A")
	lines(t, options.Scan{Staged: true}, "f:3:8: "+stripeShown)
}

// What was binary was not looked at, so all of it is new once it is text.
func TestBinaryBecomesText(t *testing.T) {
	repository(t)
	files(t, map[string]string{"f": "\x00\n" + githubToken + "\n"})
	commit(t, "binary")
	files(t, map[string]string{"f": "x\n" + githubToken + "\n"})
	git(t, "add", "f")
	lines(t, options.Scan{Staged: true}, "f:2:1: "+patShown)
	id := commit(t, "text")
	lines(t, options.Scan{History: true}, in("f", 2, 1, id, patShown))
}

// TestUTF16: what PowerShell's > has written is a text.
func TestUTF16(t *testing.T) {
	encode := func(order binary.AppendByteOrder, text string) string {
		b := order.AppendUint16(nil, 0xfeff)
		for _, unit := range utf16.Encode([]rune(text)) {
			b = order.AppendUint16(b, unit)
		}
		return string(b)
	}
	repository(t)
	text := "# größe 🔑\r\nTOKEN=" + githubToken + "\r\n"
	long := strings.Repeat("x\r\n", 8000) + "TOKEN=" + awsKey + "\r\n"
	files(t, map[string]string{
		"big": encode(binary.BigEndian, text), "little": encode(binary.LittleEndian, text), "long": encode(binary.LittleEndian, long),
		"odd": encode(binary.LittleEndian, text) + "\r", "utf32": "\xff\xfe\x00\x00T\x00\x00\x00" + githubToken,
	})
	want := []string{"big:2:7: " + patShown, "little:2:7: " + patShown, "long:8001:7: " + awsShown, "odd:2:7: " + patShown}
	if stderr := lines(t, options.Scan{}, want...); !strings.Contains(stderr, "1 binary") {
		t.Error(stderr)
	}
	git(t, "add", "-A")
	lines(t, options.Scan{Staged: true}, want...)
	commit(t, "x")
	files(t, map[string]string{"little": encode(binary.LittleEndian, text+"more\r\n")})
	git(t, "add", "-A")
	lines(t, options.Scan{Staged: true}) // nothing of that is new
}

func TestStaged(t *testing.T) {
	repository(t)
	lines(t, options.Scan{Staged: true}) // nothing at all
	files(t, map[string]string{"a": githubToken + "\n", "sub/b": awsKey + "\n", "clean": "x\n"})
	git(t, "add", "-A")
	// Before the first commit, and whatever is in the work tree by now.
	files(t, map[string]string{"a": "clean\n", "sub/b": "clean\n", "unstaged": stripeKey})
	want := []string{"a:1:1: " + patShown, "sub/b:1:1: " + awsShown}
	stderr := lines(t, options.Scan{Staged: true}, want...)
	if stderr != "3 changes scanned\n" {
		t.Error(stderr)
	}
	lines(t, options.Scan{Staged: true, Paths: []string{"sub"}}, want[1])
	lines(t, options.Scan{Staged: true, Paths: []string{"clean"}})
	git(t, "commit", "-q", "-m", "x")
	git(t, "add", "a", "sub/b") // removes them
	lines(t, options.Scan{Staged: true})
	files(t, map[string]string{"bin": "\x00" + githubToken, "weird\tname\n": otherToken, "x.p12": "\x30\x82\x00\x00"})
	git(t, "add", "bin", "weird\tname\n", "x.p12")
	stderr = lines(t, options.Scan{Staged: true}, `"weird\tname\n":1:1: `+patShown, "x.p12:1:1: pkcs12-file: the file itself")
	if !strings.Contains(stderr, "skipped: 2 binary") {
		t.Error(stderr)
	}
	// Links and submodules are not files.
	git(t, "reset", "-q")
	if err := os.Symlink(otherToken, "link"); err != nil {
		t.Fatal(err)
	}
	git(t, "add", "link")
	git(t, "update-index", "--add", "--cacheinfo", "160000,"+git(t, "rev-parse", "HEAD")+",module")
	lines(t, options.Scan{Staged: true})
}

// TestIndexOfTheHook: git commits from another index than the usual one for
// "commit -a" and "commit FILE", and names it in the environment.
func TestIndexOfTheHook(t *testing.T) {
	repository(t)
	files(t, map[string]string{"a": "x\n"})
	commit(t, "first")
	files(t, map[string]string{"a": githubToken + "\n"})
	lines(t, options.Scan{Staged: true})
	index := filepath.Join(t.TempDir(), "index")
	t.Setenv("GIT_INDEX_FILE", index)
	git(t, "read-tree", "HEAD")
	git(t, "add", "a")
	lines(t, options.Scan{Staged: true}, "a:1:1: "+patShown)
}

// TestKindsOfRepository: bare, SHA-256, a worktree, a shallow clone.
func TestKindsOfRepository(t *testing.T) {
	repository(t, "--object-format=sha256")
	files(t, map[string]string{"a": githubToken})
	id := commit(t, "x")
	lines(t, options.Scan{History: true}, in("a", 1, 1, id, patShown))
	files(t, map[string]string{"b": awsKey})
	git(t, "add", "b")
	lines(t, options.Scan{Staged: true}, "b:1:1: "+awsShown)

	repository(t)
	files(t, map[string]string{"a": githubToken + "\n"})
	first := commit(t, "x")
	files(t, map[string]string{"a": githubToken + "\n", "b": awsKey})
	second := commit(t, "y")
	origin, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	git(t, "clone", "-q", "--bare", origin, elsewhere+"/bare")
	git(t, "clone", "-q", "--depth=1", "file://"+origin, elsewhere+"/shallow")
	git(t, "worktree", "add", "-q", "--detach", elsewhere+"/tree")
	a, b := in("a", 1, 1, first, patShown), in("b", 1, 1, second, awsShown)
	lines(t, options.Scan{History: true, Paths: []string{elsewhere + "/bare"}}, a, b)
	lines(t, options.Scan{History: true, Paths: []string{elsewhere + "/tree"}}, a, b)
	lines(t, options.Scan{History: true, Paths: []string{elsewhere + "/shallow"}}, in("a", 1, 1, second, patShown), b)

	t.Chdir(t.TempDir())
	for _, o := range []options.Scan{{History: true}, {Staged: true}, {Tracked: true}, {Hook: options.Install}} {
		if _, _, err := run(t, o); err == nil || !strings.Contains(err.Error(), "not a git repository") {
			t.Errorf("no repository: %v", err)
		}
	}
	repository(t)
	lines(t, options.Scan{History: true}) // no commits
}

func TestTracked(t *testing.T) {
	repository(t)
	files(t, map[string]string{".gitignore": "ignored/\n*.log\n", "ignored/x": githubToken, "a.log": githubToken, "new": awsKey, "sub/old": stripeKey})
	git(t, "add", "sub")
	lines(t, options.Scan{Tracked: true}, "new:1:1: "+awsShown, "sub/old:1:1: "+stripeShown)
	lines(t, options.Scan{Tracked: true, Paths: []string{"sub"}}, "sub/old:1:1: "+stripeShown)
	lines(t, options.Scan{}, "a.log:1:1: "+patShown, "ignored/x:1:1: "+patShown, "new:1:1: "+awsShown, "sub/old:1:1: "+stripeShown)
	if err := os.Remove("sub/old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../a.log", "sub/old"); err != nil {
		t.Fatal(err)
	}
	lines(t, options.Scan{Tracked: true}, "new:1:1: "+awsShown)
}

// TestHostileRepository: whatever a repository's configuration and attributes
// say, none of its programs is run, and nothing is fetched.
func TestHostileRepository(t *testing.T) {
	repository(t)
	marker := filepath.Join(t.TempDir(), "ran")
	evil := filepath.Join(t.TempDir(), "evil")
	fetch := filepath.Join(t.TempDir(), "fetch")
	script := "#!/bin/sh\necho \"$0 $*\" >>" + marker + "\n"
	if os.WriteFile(evil, []byte(script+"cat\n"), 0o700) != nil || os.WriteFile(fetch, []byte(script), 0o700) != nil {
		t.Fatal("cannot write the programs")
	}
	files(t, map[string]string{"a.txt": "x\n", ".gitattributes": "* diff=evil filter=evil merge=evil\n"})
	first := commit(t, "x")
	files(t, map[string]string{"a.txt": "x\n" + githubToken + "\n"})
	id := commit(t, "y")
	for _, c := range []string{
		"core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.gitProxy", "core.askPass", "core.alternateRefsCommand",
		"diff.external", "diff.evil.command", "diff.evil.textconv", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process",
		"merge.evil.driver", "gpg.program", "pager.log", "pager.diff-tree", "pager.rev-list", "pager.ls-files", "pager.cat-file",
		"credential.helper", "uploadpack.packObjectsHook", "alias.rev-list", "alias.diff-tree", "sequence.editor", "interactive.diffFilter",
	} {
		git(t, "config", c, evil)
	}
	for _, hook := range []string{"pre-commit", "post-index-change", "fsmonitor-watchman", "post-checkout"} {
		text, err := os.ReadFile(evil)
		if err == nil {
			err = os.WriteFile(".git/hooks/"+hook, text, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range map[string]string{
		"log.showSignature": "true", "diff.noprefix": "true", "diff.renames": "copies", "diff.orderFile": "/dev/null",
		"core.quotePath": "true", "log.follow": "true", "color.ui": "always", "diff.algorithm": "histogram",
	} {
		git(t, "config", k, v)
	}
	// The attribute's programs are run by git itself, or this test shows nothing.
	// (Its configuration is written by git config, which runs none.)
	git(t, "diff", "HEAD~", "HEAD")
	if _, err := os.Stat(marker); err != nil {
		t.Fatal("the hostile programs do nothing at all")
	}
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	// A user's environment, too, can have git do things.
	for k, v := range map[string]string{
		"GIT_EXTERNAL_DIFF": evil, "GIT_PAGER": evil, "GIT_TRACE": marker, "GIT_TRACE2": marker, "GIT_CONFIG_COUNT": "1",
		"GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": evil, "GIT_DIR": "/nonexistent", "GIT_SSH_COMMAND": evil,
		"GIT_CONFIG_PARAMETERS": "'core.fsmonitor'='" + evil + "'", "GIT_EXEC_PATH": filepath.Dir(evil),
	} {
		t.Setenv(k, v)
	}
	lines(t, options.Scan{History: true}, in("a.txt", 2, 1, id, patShown))
	lines(t, options.Scan{Tracked: true}, "a.txt:2:1: "+patShown)
	_ = os.Unsetenv("GIT_DIR") // which a hook's environment has
	lines(t, options.Scan{Staged: true})
	if _, _, err := run(t, options.Scan{Hook: options.Uninstall}); err == nil {
		t.Error("another's hook was removed")
	}
	if text, err := os.ReadFile(marker); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("programs were run: %s", text)
	}

	// A partial clone's missing objects would be fetched by a program.
	blob := git2(t, "rev-parse", first+":a.txt")
	if err := os.Remove(".git/objects/" + blob[:2] + "/" + blob[2:]); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"remote.origin.url": "ext::" + fetch, "remote.origin.promisor": "true", "remote.origin.partialclonefilter": "blob:none",
		"extensions.partialClone": "origin", "remote.origin.uploadpack": fetch, "protocol.allow": "always", "protocol.ext.allow": "always",
		"core.repositoryformatversion": "1",
	} {
		git2(t, "config", k, v)
	}
	_ = os.Remove(marker)
	stdout, stderr, err := run(t, options.Scan{History: true})
	if text, err := os.ReadFile(marker); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program was run to fetch: %s", text)
	}
	if err == nil || !strings.Contains(stderr, "warning: cannot scan a.txt") {
		t.Errorf("the gap is not told: %q %q %v", stdout, stderr, err)
	}
}

// git2 is git without what the test has put into the environment.
func git2(t *testing.T, args ...string) string {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "GIT_") {
			t.Setenv(name, "") // to be restored
			_ = os.Unsetenv(name)
		}
	}
	return git(t, args...)
}

func TestHook(t *testing.T) {
	repository(t)
	path := ".git/hooks/pre-commit"
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	hook := func(h options.Hook, want string) {
		t.Helper()
		if stdout, _, err := run(t, options.Scan{Hook: h}); err != nil || !strings.HasSuffix(stdout, ": "+want+"\n") {
			t.Errorf("%q %v, not %s", stdout, err, want)
		}
	}
	hook(options.Uninstall, "is not there")
	hook(options.Install, "installed")
	first, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(first), `exec "$ov" scan --staged`) {
		t.Errorf("%s %v", first, err)
	}
	hook(options.Install, "is there already")
	// One that git does not run is none.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	hook(options.Install, "renewed")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	// An older one of ours is renewed.
	if err := os.WriteFile(path, append(first, "# old\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	hook(options.Install, "renewed")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	hook(options.Uninstall, "removed")
	hook(options.Uninstall, "is not there")

	// Another's is left alone, link or file.
	other := "#!/bin/sh\nmake lint\n"
	if err := os.WriteFile(path, []byte(other), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, h := range []options.Hook{options.Install, options.Uninstall} {
		if _, _, err := run(t, options.Scan{Hook: h}); err == nil {
			t.Errorf("%s: no error", h)
		}
	}
	if text, err := os.ReadFile(path); string(text) != other {
		t.Errorf("%q %v", text, err)
	}
	files(t, map[string]string{path: other + "# TODO: ov scan --staged\n"})
	if _, _, err := run(t, options.Scan{Hook: options.Install}); err == nil || !strings.Contains(err.Error(), "another hook") {
		t.Errorf("a comment: %v", err)
	}
	files(t, map[string]string{path: other + "ov scan --staged || exit 1\n"})
	hook(options.Install, "runs ov scan --staged already")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, options.Scan{Hook: options.Install}); err == nil || !strings.Contains(err.Error(), "not executable") {
		t.Errorf("another's that git does not run: %v", err)
	}
	if os.Remove(path) != nil || os.Symlink("/nonexistent/hook", path) != nil {
		t.Fatal("link")
	}
	if _, _, err := run(t, options.Scan{Hook: options.Install}); err == nil || !strings.Contains(err.Error(), "another hook") {
		t.Errorf("a link: %v", err)
	}

	// Husky's is not the one to write into.
	git(t, "config", "core.hooksPath", ".husky/_")
	files(t, map[string]string{".husky/_/pre-commit": "#!/usr/bin/env sh\n. \"$(dirname \"$0\")/h\"\n"})
	if _, _, err := run(t, options.Scan{Hook: options.Install}); hint.Of(err) != "add this line to .husky/pre-commit: ov scan --staged || exit 1" {
		t.Errorf("%v, %s", err, hint.Of(err))
	}

	// Where the repository says that its hooks are, from wherever.
	git(t, "config", "core.hooksPath", ".githooks")
	files(t, map[string]string{"sub/x": ""})
	t.Chdir("sub")
	hook(options.Install, "installed")
	if _, err := os.Stat(wd + "/.githooks/pre-commit"); err != nil {
		t.Error(err)
	}
	t.Chdir(wd)
	shared := t.TempDir()
	git(t, "config", "core.hooksPath", shared)
	if stdout, _, err := run(t, options.Scan{Hook: options.Install}); err != nil || !strings.Contains(stdout, "every repository") {
		t.Errorf("%q %v", stdout, err)
	}
	if _, err := os.Stat(shared + "/pre-commit"); err != nil {
		t.Error(err)
	}
}

func BenchmarkHistory(b *testing.B) {
	b.Chdir(b.TempDir())
	git(b, "init", "-q")
	for i := range 100 {
		for j := range 20 {
			if err := os.WriteFile(fmt.Sprint(j), []byte(strings.Repeat("line\n", 1000)+strings.Repeat(fmt.Sprintln(i, "nothing"), 10)), 0o600); err != nil {
				b.Fatal(err)
			}
		}
		commit(b, "x")
	}
	for b.Loop() {
		var sink discard
		if err := scan.Run(b.Context(), options.Scan{History: true}, rules, "", sink, sink); err != nil {
			b.Fatal(err)
		}
	}
}
