package scan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/safefile"
)

// files scans files, and folders with what is below them.
//
// What git ignores is scanned, too: a .env file is where the secrets are, and is
// ignored. Symbolic links below a folder are not followed: what they lead to is
// scanned where it is, or is not below.
func (s *scan) files(ctx context.Context) ([]Finding, error) {
	found, err := s.scanAll(ctx, func(yield func(job) bool) error {
		for _, p := range s.Paths {
			if err := s.walk(ctx, p, yield); err != nil {
				return err
			}
		}
		return nil
	})
	order(found)
	return found, err
}

// walk yields the files at and below a path.
func (s *scan) walk(ctx context.Context, p string, yield func(job) bool) error {
	info, err := os.Stat(p)
	abs := ""
	if err == nil {
		abs, err = filepath.Abs(p)
	}
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs) // as baselineDir
	}
	if err != nil {
		return fmt.Errorf("cannot scan %s: %w", safefile.Quote(p), cause(err))
	}
	dir, shown := abs, filepath.Clean(p)
	if !info.IsDir() {
		dir = filepath.Dir(abs)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("cannot scan %s: %w", safefile.Quote(p), cause(err))
	}
	// Not closed: jobs read from it after the walk. The process is soon gone.
	yieldFile := func(rel string) bool {
		if s.scanner.Skip(rel) {
			s.skipped.Add(1)
			return true
		}
		file := filepath.Join(shown, filepath.FromSlash(rel))
		if !info.IsDir() {
			file = shown
		}
		return yield(job{file: file, rel: rel, path: filepath.Join(dir, filepath.FromSlash(rel)),
			read: func() ([]byte, error) { return readFile(root, rel) }})
	}
	switch {
	case !info.IsDir() && !info.Mode().IsRegular():
		return fmt.Errorf("cannot scan %s: it is neither a file nor a folder", safefile.Quote(p))
	case !info.IsDir():
		yieldFile(filepath.Base(abs))
		return nil
	case s.Tracked:
		return s.tracked(ctx, dir, yieldFile)
	}
	return fs.WalkDir(root.FS(), ".", func(rel string, d fs.DirEntry, err error) error {
		if err != nil {
			s.warn("cannot scan %s: %v", safefile.Quote(filepath.Join(shown, filepath.FromSlash(rel))), cause(err))
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		switch {
		case d.IsDir() && rel == ".":
		case d.IsDir() && d.Name() == ".git": // --history
			return fs.SkipDir
		case d.IsDir() && s.scanner.Skip(rel):
			s.skipped.Add(1)
			return fs.SkipDir
		case d.Type().IsRegular():
			if !yieldFile(rel) {
				return fs.SkipAll
			}
		}
		return nil
	})
}

// tracked yields the files of a folder that git knows or would add.
func (s *scan) tracked(ctx context.Context, dir string, yieldFile func(string) bool) error {
	repo, err := openRepo(ctx, dir, false)
	if err != nil {
		return err
	}
	return repo.each(ctx, yieldFile,
		"ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
}

// readFile reads a text below root, which no link on the way leads out of.
func readFile(root *os.Root, rel string) ([]byte, error) {
	if info, err := root.Lstat(filepath.FromSlash(rel)); err == nil && !info.Mode().IsRegular() {
		return nil, errSpecial
	}
	// Without O_NONBLOCK, what became a pipe meanwhile would be waited for.
	file, err := root.OpenFile(filepath.FromSlash(rel), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errSpecial
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errSpecial
	}
	head := make([]byte, min(max(info.Size(), 512), 8000))
	n, err := io.ReadFull(file, head)
	head = head[:n]
	switch {
	case isBinary(head) && !isUTF16(head):
		return nil, errBinary
	case info.Size() > detect.MaxText:
		return nil, errLarge
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return decode(head)
	case err != nil:
		return nil, err
	}
	text := make([]byte, n, max(int(info.Size()), n)+512)
	copy(text, head)
	if text, err = readRest(file, text); err != nil {
		return nil, err
	}
	return decode(text)
}

// readRest reads to the end of r, behind text.
func readRest(r io.Reader, text []byte) ([]byte, error) {
	for {
		if len(text) > detect.MaxText {
			return nil, errLarge
		}
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := r.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// cause is an error without the path that its message begins with.
func cause(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// asString is b as a string, for functions that there are for strings only.
func asString(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // b is not changed while the string is used
}
