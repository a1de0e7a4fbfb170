package command

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// JSONFlag adds --json.
func JSONFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "print JSON")
}

// PrintJSON prints v as JSON, indented.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// IsTerminal reports whether f is a file that is a terminal.
func IsTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Table prints a header and n rows in columns; the header only to a terminal, so
// that a count of the lines is a count of the rows. A cell that would upset a
// terminal, or the columns, is quoted.
func Table(w io.Writer, header string, n int, row func(i int) []string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if IsTerminal(w) {
		fmt.Fprintln(tw, header)
	}
	for i := range n {
		var line []string
		for _, cell := range row(i) {
			if strings.ContainsFunc(cell, unprintable) {
				cell = strconv.Quote(cell)
			}
			line = append(line, cell)
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	return tw.Flush()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }
