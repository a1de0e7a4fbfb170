// Package scan finds secrets in files, in the history of a git repository and in
// what is staged there, for `ov scan`. What a secret looks like is for the rules
// of package detect/engine to say.
//
// Nothing that it prints or writes holds a secret: of a value it shows the first
// two characters and the length.
package scan

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
	encoding "golang.org/x/text/encoding/unicode"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/scan/options"
)

// A Scanner says what looks like a secret: detect/engine.Engine.
type Scanner interface {
	// Scan returns at most detect.MaxFindings of the file's text.
	Scan(text []byte, path string) ([]detect.Finding, error)
	// Skip reports whether a file or folder is of no interest, whatever is in it.
	Skip(path string) bool
}

// FoundError says that there are secrets.
type FoundError struct{ Count int }

func (e *FoundError) Error() string {
	return number(e.Count, "secret was found", "secrets were found")
}

// A Finding is a secret and where it is. It does not hold it.
type Finding struct {
	Rule        string `json:"rule"`
	Description string `json:"description"`
	File        string `json:"file"`             // as reached from Paths, or from the repository's top
	Line        int    `json:"line"`             // from 1
	Column      int    `json:"column"`           // from 1, in characters
	EndLine     int    `json:"end_line"`         // that the last character is in
	EndColumn   int    `json:"end_column"`       // behind the last character
	Preview     string `json:"preview"`          // first two characters
	Length      int    `json:"length"`           // in characters
	Commit      string `json:"commit,omitempty"` // that added it
	Author      string `json:"author,omitempty"` // of the commit
	Date        string `json:"date,omitempty"`   // of the commit, RFC 3339, UTC

	known bool   // in the baseline
	entry entry  // in the baseline to be written
	value string // stands for file and value, in this run
}

// Run does what the options say. Findings go to stdout, everything else to
// stderr. The error is a *FoundError if there are secrets, whatever else there
// is to say.
func Run(ctx context.Context, o options.Scan, scanner func() (Scanner, error), ov string, stdout, stderr io.Writer) error {
	if len(o.Paths) == 0 {
		o.Paths = []string{"."}
	}
	if o.Hook != "" {
		return runHook(ctx, o, ov, stdout)
	}
	s := &scan{Scan: o, stderr: stderr}
	var err error
	if s.known, err = readBaseline(o.Baseline); err != nil {
		return err
	}
	if s.written, err = newBaseline(o.WriteBaseline); err != nil {
		return err
	}
	if s.scanner, err = scanner(); err != nil {
		return err
	}
	if _, err := rand.Read(s.run[:]); err != nil {
		return err
	}
	defer s.showProgress()()
	var found []Finding
	switch {
	case o.History:
		found, err = s.history(ctx)
	case o.Staged:
		found, err = s.staged(ctx)
	default:
		found, err = s.files(ctx)
	}
	if err != nil {
		return err
	}
	s.endProgress()
	if o.WriteBaseline != "" {
		if err := s.written.write(o.WriteBaseline, found); err != nil {
			return err
		}
		s.summary(fmt.Sprintf("%s written to %s", number(len(found), "finding", "findings"), safefile.Quote(o.WriteBaseline)))
		return s.incomplete()
	}
	found = slices.DeleteFunc(found, func(f Finding) bool {
		if f.known {
			s.inBaseline++
		}
		return f.known
	})
	if err := write(stdout, o.Format, found); err != nil {
		return err
	}
	if len(found) == 0 {
		s.summary("no secrets found")
	} else {
		s.summary("")
		return hint.Wrap(&FoundError{len(found)},
			"put each into the vault: ov secret set NAME; replace what was shared; mark what is no secret with gitleaks:allow")
	}
	return s.incomplete()
}

// A scan is one run.
type scan struct {
	options.Scan
	scanner        Scanner
	known, written *baseline
	run            [32]byte // key of Finding.value
	stderr         io.Writer

	looked, binary, large, skipped, failed atomic.Int64
	inBaseline                             int

	mu          sync.Mutex // of stderr
	line        string     // clears the line of progress; "" where there is none
	endProgress func()
}

// A job is a text to be scanned.
type job struct {
	file   string // to be shown
	rel    string // for the rules: from the folder that is scanned, or the repository's top
	path   string // for the baseline: absolute
	read   func() ([]byte, error)
	only   func(text []byte) *added // nil: all of it
	commit string                   // in history
}

// What a job's text may be instead of a text.
var (
	errBinary  = errors.New("a binary file")
	errLarge   = errors.New("a large file")
	errSpecial = errors.New("not a regular file") // or gone
)

// scanAll scans what the source yields on all cores. The findings are in the
// order of the jobs.
func (s *scan) scanAll(ctx context.Context, source func(yield func(job) bool) error) ([]Finding, error) {
	type numbered struct {
		n int
		job
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := make(chan numbered)
	var mu sync.Mutex
	found := map[int][]Finding{}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for j := range jobs {
				if list := s.scanOne(j.job); len(list) > 0 {
					mu.Lock()
					found[j.n] = list
					mu.Unlock()
				}
			}
		})
	}
	n := 0
	err := source(func(j job) bool {
		select {
		case jobs <- numbered{n, j}:
			n++
			return true
		case <-ctx.Done():
			return false
		}
	})
	close(jobs)
	wg.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	var all []Finding
	for i := range n {
		all = append(all, found[i]...)
	}
	return all, nil
}

// scanOne scans one text. What cannot be scanned is told, and remembered.
func (s *scan) scanOne(j job) []Finding {
	text, err := j.read()
	switch {
	case errors.Is(err, errSpecial):
		return nil
	case errors.Is(err, errLarge):
		s.large.Add(1)
		return nil
	case errors.Is(err, errBinary):
		s.binary.Add(1)
		text = nil // its name may still say what it is
	case err != nil:
		s.warn("cannot scan %s: %v", safefile.Quote(j.file), cause(err))
		return nil
	default:
		s.looked.Add(1)
	}
	looked := text
	var part *added
	if j.only != nil && text != nil {
		part = j.only(text)
		looked = part.text
	}
	places, err := s.scanner.Scan(looked, j.rel)
	if err != nil {
		s.warn("cannot scan %s: %v", safefile.Quote(j.file), err)
		return nil
	}
	if len(places) == detect.MaxFindings {
		s.warn("more than %d secrets in %s: the others are not shown", detect.MaxFindings, safefile.Quote(j.file))
	}
	var found []Finding
	for _, p := range places {
		if part != nil {
			if p.Start, p.End = part.place(p.Start, p.End); p.Start < 0 {
				continue
			}
		}
		found = append(found, s.finding(j, text, p))
	}
	return found
}

// finding describes a place in the text.
func (s *scan) finding(j job, text []byte, p detect.Finding) Finding {
	value := text[p.Start:p.End]
	f := Finding{
		Rule: p.Rule, Description: p.Description, File: j.file,
		Commit: j.commit,
		value:  tag(s.run[:], p.Rule, j.file, value),
		known:  s.known.has(p.Rule, j.path, value),
		entry:  s.written.tag(p.Rule, j.path, value),
	}
	f.Line, f.Column = position(text, p.Start)
	f.EndLine, f.EndColumn = position(text, p.End)
	f.Preview, f.Length = preview(value)
	return f
}

// preview returns the first two characters of a value and how many it has. Of a
// short value two are too much.
func preview(value []byte) (string, int) {
	n := utf8.RuneCount(value)
	if n < 8 {
		return "", n
	}
	var b strings.Builder
	for range 2 {
		r, size := utf8.DecodeRune(value)
		if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		b.WriteRune(r)
		value = value[size:]
	}
	return b.String(), n
}

// position returns the line and column of an offset, from 1, in characters.
func position(text []byte, offset int) (line, column int) {
	before := text[:offset]
	start := strings.LastIndexByte(asString(before), '\n') + 1
	return 1 + strings.Count(asString(before), "\n"), 1 + utf8.RuneCount(before[start:])
}

// order sorts findings by place.
func order(found []Finding) {
	slices.SortStableFunc(found, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			strings.Compare(a.Rule, b.Rule))
	})
}

// isBinary is git's own way to tell (buffer_is_binary in its xdiff-interface.c).
func isBinary(text []byte) bool {
	return slices.Contains(text[:min(len(text), 8000)], 0)
}

// isUTF16 reports whether the text begins with UTF-16's byte order mark, as
// PowerShell's > and some editors write it.
func isUTF16(text []byte) bool {
	return bytes.HasPrefix(text, []byte{0xff, 0xfe}) || bytes.HasPrefix(text, []byte{0xfe, 0xff})
}

// decode returns a file's text in UTF-8, or errBinary or errLarge.
func decode(file []byte) ([]byte, error) {
	text := file
	if isUTF16(file) {
		var err error
		if text, err = encoding.UTF16(encoding.LittleEndian, encoding.UseBOM).NewDecoder().Bytes(file); err != nil {
			return nil, errBinary
		}
	}
	switch {
	case isBinary(text):
		return nil, errBinary
	case len(text) > detect.MaxText:
		return nil, errLarge
	}
	return text, nil
}

// warn tells of what could not be scanned.
func (s *scan) warn(format string, args ...any) {
	s.failed.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.stderr, s.line+"ov: warning: "+format+"\n", args...)
}

// incomplete is the error of a scan that found nothing and has not seen all.
func (s *scan) incomplete() error {
	if n := s.failed.Load(); n > 0 {
		return fmt.Errorf("the scan is not complete: %s above", number(int(n), "warning", "warnings"))
	}
	return nil
}

// summary says what was scanned, and what was not.
func (s *scan) summary(what string) {
	in := number(int(s.looked.Load()), "file", "files")
	if s.History || s.Staged {
		in = number(int(s.looked.Load()), "change", "changes")
	}
	var not []string
	for _, n := range []struct {
		n    int64
		what string
	}{
		{s.binary.Load(), "binary"}, {s.large.Load(), fmt.Sprintf("larger than %d MiB", detect.MaxText>>20)},
		{s.skipped.Load(), "such as lock files or node_modules"},
	} {
		if n.n > 0 {
			not = append(not, fmt.Sprintf("%d %s", n.n, n.what))
		}
	}
	line := in + " scanned"
	if what != "" {
		line = what + "; " + line
	}
	if len(not) > 0 {
		line += "; skipped: " + strings.Join(not, ", ")
	}
	if s.inBaseline > 0 {
		line += fmt.Sprintf("; %d known from the baseline", s.inBaseline)
	}
	fmt.Fprintln(s.stderr, line)
}

// showProgress keeps a line on a terminal until the returned function or
// s.endProgress is called.
func (s *scan) showProgress() func() {
	file, ok := s.stderr.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || os.Getenv("TERM") == "dumb" {
		s.endProgress = func() {}
		return s.endProgress
	}
	s.line = "\r\x1b[K"
	done := make(chan struct{})
	ticker := time.NewTicker(200 * time.Millisecond)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				s.mu.Lock()
				fmt.Fprintf(s.stderr, "%s%d scanned …", s.line, s.looked.Load())
				s.mu.Unlock()
			}
		}
	}()
	s.endProgress = sync.OnceFunc(func() {
		ticker.Stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		close(done)
		fmt.Fprint(s.stderr, s.line)
	})
	return s.endProgress
}

func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
