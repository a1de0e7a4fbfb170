// Package options is what `ov scan` passes to ov-scan. It is apart from package
// scan so that ov links none of that.
package options

// Program is the sibling of ov that scans.
const Program = "ov-scan"

// Scan is what `ov scan` was asked for.
type Scan struct {
	Paths   []string `json:"paths,omitempty"`   // none: the current directory
	History bool     `json:"history,omitempty"` // of the repositories that Paths are in, all refs
	Staged  bool     `json:"staged,omitempty"`  // what the next commit adds below Paths
	Tracked bool     `json:"tracked,omitempty"` // leave out what git ignores

	Format        Format `json:"format,omitempty"`
	Baseline      string `json:"baseline,omitempty"`       // file of findings that are not reported
	WriteBaseline string `json:"write_baseline,omitempty"` // file to write them to instead

	Hook Hook `json:"hook,omitempty"` // if not empty, nothing is scanned
}

// A Format is how findings are printed.
type Format string

// The formats.
const (
	Text  Format = ""
	JSON  Format = "json"
	SARIF Format = "sarif"
)

// A Hook is what to do about a repository's pre-commit hook (githooks(5)).
type Hook string

// What to do.
const (
	Install   Hook = "install"
	Uninstall Hook = "uninstall"
)
