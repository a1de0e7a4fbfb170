package scan

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// A baseline is a file of findings that are known. It is kept in the repository,
// for all to see, and outlives the secrets that it is about.
//
// So it must not help to guess one. A hash of a value would: whoever has the file
// could try passwords against it, as fast as they can hash, and a key beside the
// hash changes nothing. Therefore an entry holds but tagBits of a value's HMAC.
// However many guesses are tried, one in 2^tagBits fits, and that is all that the
// file tells of a value; to a value that takes the place of a known one, it leaves
// a chance of 2^-tagBits to be taken for it. The salt keeps the tags of two
// baselines from being compared.
//
// The line is no part of an entry: lines move.
type baseline struct {
	Version  int     `json:"version"`
	Salt     string  `json:"salt"` // 32 bytes, in hex
	Findings []entry `json:"findings"`

	salt []byte
	dir  string // that files are relative to: the baseline's own
	set  map[entry]bool
}

// An entry is a known finding.
type entry struct {
	File string `json:"file"`
	Rule string `json:"rule"`
	Tag  string `json:"tag"`
}

const (
	tagBits     = 12
	maxBaseline = 64 << 20 // bytes
)

// tag stands for a value in a file. All fields are length-prefixed, so that no
// two inputs are the same bytes.
func tag(key []byte, fields ...any) string {
	mac := hmac.New(sha256.New, key)
	for _, f := range fields {
		var b []byte
		switch f := f.(type) {
		case string:
			b = []byte(f)
		case []byte:
			b = f
		}
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		mac.Write(n[:])
		mac.Write(b)
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// readBaseline reads the file at path; without a path, a baseline that knows
// nothing.
func readBaseline(path string) (*baseline, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the baseline %s: %w", safefile.Quote(path), cause(err))
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxBaseline+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the baseline %s: %w", safefile.Quote(path), cause(err))
	}
	if len(text) > maxBaseline {
		return nil, fmt.Errorf("the baseline %s is larger than %d MiB", safefile.Quote(path), maxBaseline>>20)
	}
	b, err := parseBaseline(text)
	if err != nil {
		return nil, hint.Errorf("write it with: ov scan --write-baseline FILE", "%s is not a baseline: %w", safefile.Quote(path), err)
	}
	b.dir, err = baselineDir(path)
	return b, err
}

func parseBaseline(text []byte) (*baseline, error) {
	b := &baseline{set: map[entry]bool{}}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(b)
	if _, after := dec.Token(); err != nil || !errors.Is(after, io.EOF) {
		return nil, errors.New("it is not the JSON that ov writes")
	}
	if b.Version != 1 {
		return nil, fmt.Errorf("its version is %d, and not 1", b.Version)
	}
	salt, err := hex.DecodeString(b.Salt)
	if err != nil || len(salt) != 32 {
		return nil, errors.New("its salt is not 32 bytes in hex")
	}
	b.salt = salt
	for _, e := range b.Findings {
		b.set[e] = true
	}
	return b, nil
}

// newBaseline is one to be written to path, with the salt of the one that is
// there, so that what did not change stays the same.
func newBaseline(path string) (*baseline, error) {
	if path == "" {
		return nil, nil
	}
	if _, err := os.Stat(path); err == nil {
		return readBaseline(path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot write the baseline %s: %w", safefile.Quote(path), cause(err))
	}
	b := &baseline{salt: make([]byte, 32)}
	if _, err := rand.Read(b.salt); err != nil {
		return nil, err
	}
	var err error
	b.dir, err = baselineDir(path)
	return b, err
}

// baselineDir is where the baseline is, without links, as is what git says of
// the repository.
func baselineDir(path string) (string, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", fmt.Errorf("cannot use the baseline %s: %w", safefile.Quote(path), cause(err))
	}
	return dir, nil
}

// entry is what stands for a value in a file, given by its absolute path.
func (b *baseline) entry(rule, path string, value []byte) entry {
	if rel, err := filepath.Rel(b.dir, path); err == nil {
		path = rel
	}
	path = strings.ToValidUTF8(filepath.ToSlash(path), "\uFFFD") // as JSON has it
	return entry{path, rule, tag(b.salt, rule, path, value)[:tagBits/4]}
}

// has reports whether the value is known there.
func (b *baseline) has(rule, path string, value []byte) bool {
	return b != nil && b.set[b.entry(rule, path, value)]
}

// tag is the entry's tag in a baseline to be written.
func (b *baseline) tag(rule, path string, value []byte) entry {
	if b == nil {
		return entry{}
	}
	return b.entry(rule, path, value)
}

// write replaces the file at path with one of these findings.
func (b *baseline) write(path string, found []Finding) error {
	b.Version, b.Salt, b.Findings = 1, hex.EncodeToString(b.salt), []entry{}
	for _, f := range found {
		b.Findings = append(b.Findings, f.entry)
	}
	slices.SortFunc(b.Findings, func(x, y entry) int {
		return strings.Compare(x.File+"\x00"+x.Rule+"\x00"+x.Tag, y.File+"\x00"+y.Rule+"\x00"+y.Tag)
	})
	b.Findings = slices.Compact(b.Findings)
	var text bytes.Buffer
	if err := printJSON(&text, b); err != nil {
		return err
	}
	if err := replaceFile(path, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("cannot write the baseline %s: %w", safefile.Quote(path), cause(err))
	}
	return nil
}

// replaceFile writes a file at once: it has the old content or the new.
func replaceFile(path string, data []byte, perm fs.FileMode) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ov-scan-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(perm)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
