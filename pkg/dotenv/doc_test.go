package dotenv

import (
	"os"
	"strings"
	"testing"
)

// TestDocument checks the table of docs/DOTENV.md: our column, and npm's where
// node is there to ask.
func TestDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/DOTENV.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| file | npm dotenv |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Split(table, "\n")[2:]
	if len(rows) < 30 {
		t.Fatalf("only %d rows", len(rows))
	}
	var files [][]byte
	var npm []string
	for _, row := range rows {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		if len(cells) != 9 {
			t.Fatalf("%d cells: %s", len(cells), row)
		}
		src := []byte(text(cells[0]))
		pairs, err := Parse(src)
		got := cell(err, ours(pairs))
		if len(Warnings(pairs)) > 0 {
			got += " ⚠"
		}
		if got != cells[8] {
			t.Errorf("%s: got %s, the page says %s (%v)", cells[0], got, cells[8], err)
		}
		files, npm = append(files, src), append(npm, cells[1])
	}
	pairs, _, err := newOracle(t).ask(files)
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		if got := cell(nil, pairs[i]); got != npm[i] {
			t.Errorf("%q: npm dotenv has %s, the page says %s", files[i], got, npm[i])
		}
	}
}

var signs = strings.NewReplacer("⏎", "\n", "␍", "\r", "⇥", "\t")

// text undoes a cell's code span.
func text(cell string) string {
	if s, ok := strings.CutPrefix(cell, "`` "); ok {
		return signs.Replace(strings.TrimSuffix(s, " ``"))
	}
	return signs.Replace(strings.Trim(cell, "`"))
}

func cell(err error, pairs npmPairs) string {
	if err != nil {
		return "error"
	}
	for _, p := range pairs {
		switch {
		case p[0] != "A" && p[0] != "A.B":
		case p[1] == "":
			return "empty"
		case strings.Contains(p[1], "`"):
			return "`` " + strings.ReplaceAll(p[1], "\n", "⏎") + " ``"
		default:
			return "`" + strings.ReplaceAll(p[1], "\n", "⏎") + "`"
		}
	}
	return "—"
}
