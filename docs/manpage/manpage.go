// Package manpage writes the man pages and completions in docs from the commands
// themselves. Only tests import it: it is no part of a program.
package manpage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

//go:generate go test ../../cmd/ov ../../cmd/ov-agent ../../cmd/ov-server -run TestManPages -update

// Page returns a command's man page (man-pages(7)). more are further sections in
// Markdown, which stand before SEE ALSO. The page is the same on every day.
func Page(cmd *cobra.Command, section string, more []byte) ([]byte, error) {
	cmd.DisableAutoGenTag = true
	cmd.InitDefaultVersionFlag()
	var b bytes.Buffer
	header := &doc.GenManHeader{Section: section, Manual: "OpaqueVault", Date: &time.Time{}}
	if err := doc.GenMan(cmd, header, &b); err != nil {
		return nil, err
	}
	page := date.ReplaceAll(b.Bytes(), []byte(`"" `))
	// The first heading would be taken for a title.
	sections := title.ReplaceAll(md2man.Render(append([]byte("% title\n\n"), more...)), nil)
	if at := bytes.Index(page, []byte(".SH SEE ALSO")); at >= 0 {
		page = slices.Insert(page, at, sections...)
	} else {
		page = append(page, sections...)
	}
	return page, nil
}

var (
	date  = regexp.MustCompile(`"Jan 0001" `)
	title = regexp.MustCompile(`(?s)\A.*?\.TH [^\n]*\n+`)
)

// Golden compares files, by name, with those in dir. The result says which are
// stale, missing or too many, and how to write them. With update set it writes
// them. match is the pattern of names that it is about.
func Golden(dir, match string, files map[string][]byte, update bool) error {
	if update {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // G301: documentation is for everyone
			return err
		}
	}
	var errs []error
	old, err := filepath.Glob(filepath.Join(dir, match))
	if err != nil {
		return err
	}
	for _, name := range old {
		if _, ok := files[filepath.Base(name)]; ok {
			continue
		}
		if update {
			err = os.Remove(name)
		} else {
			err = fmt.Errorf("%s is of no command", name)
		}
		errs = append(errs, err)
	}
	for name, want := range files {
		name = filepath.Join(dir, name)
		if update {
			errs = append(errs, os.WriteFile(name, want, 0o644)) //nolint:gosec // G306: documentation is for everyone
			continue
		}
		if have, err := os.ReadFile(name); err != nil || !bytes.Equal(have, want) {
			errs = append(errs, fmt.Errorf("%s is stale: run make man", name))
		}
	}
	return errors.Join(errs...)
}
