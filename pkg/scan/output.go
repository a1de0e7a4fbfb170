package scan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"unicode"

	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/scan/options"
)

// write prints the findings.
func write(w io.Writer, format options.Format, found []Finding) error {
	var b bytes.Buffer
	var err error
	switch format {
	case options.JSON:
		if found == nil {
			found = []Finding{} // [], not null
		}
		err = printJSON(&b, found)
	case options.SARIF:
		err = printJSON(&b, sarifLog(found))
	case options.Text:
		for _, f := range found {
			fmt.Fprintln(&b, f.text())
		}
	default:
		err = fmt.Errorf("unknown format %.20q", string(format))
	}
	if err == nil {
		_, err = w.Write(b.Bytes())
	}
	return err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// text is a finding as a compiler shows a fault.
func (f Finding) text() string {
	at := ""
	if f.Commit != "" {
		at = " in " + f.Commit[:min(len(f.Commit), 12)]
		if f.Date != "" {
			at += " of " + f.Date[:len("2006-01-02")]
		}
	}
	return fmt.Sprintf("%s:%d:%d%s: %s: %s", safefile.Quote(f.File), f.Line, f.Column, at, f.Rule, f.shown())
}

// shown is what is shown of the value.
func (f Finding) shown() string {
	if f.Length == 0 {
		return "the file itself"
	}
	return fmt.Sprintf("%s… (%s)", printable(f.Preview), number(f.Length, "character", "characters"))
}

// printable escapes what could upset a terminal or be misread.
func printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			quoted := strconv.Quote(s)
			return quoted[1 : len(quoted)-1]
		}
	}
	return s
}
