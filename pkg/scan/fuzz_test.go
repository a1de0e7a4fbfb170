package scan

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

const (
	id1 = "1111111111111111111111111111111111111111"
	id2 = "2222222222222222222222222222222222222222"
	id0 = "0000000000000000000000000000000000000000"
)

func TestReadChanges(t *testing.T) {
	in := id1 + "\x00:100644 100755 " + id1 + " " + id2 + " M\x00a\nb\x00" +
		":000000 100644 " + id0 + " " + id2 + " A\x00new\x00" +
		":100644 000000 " + id1 + " " + id0 + " D\x00gone\x00" +
		":000000 120000 " + id0 + " " + id2 + " A\x00link\x00" +
		":000000 160000 " + id0 + " " + id2 + " A\x00module\x00" +
		":120000 100644 " + id1 + " " + id2 + " T\x00was link\x00" +
		id2 + "\x00::100644 100644 100644 " + id1 + " " + id2 + " " + strings.Repeat("3", 40) + " MM\x00merge\x00"
	var got []string
	err := readChanges(bufio.NewReader(strings.NewReader(in)), func(c change) bool {
		got = append(got, fmt.Sprintf("%.1s %d %.1s %q", c.commit, len(c.old), c.blob, c.file))
		return true
	})
	want := []string{`1 1 2 "a\nb"`, `1 0 2 "new"`, `1 0 2 "was link"`, `2 2 3 "merge"`}
	if err != nil || strings.Join(got, ";") != strings.Join(want, ";") {
		t.Errorf("%v %v", got, err)
	}
}

// FuzzReadChanges: no output makes a change out of something else.
func FuzzReadChanges(f *testing.F) {
	f.Add([]byte(":100644 100644 " + id1 + " " + id2 + " M\x00a\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		err := readChanges(bufio.NewReader(bytes.NewReader(in)), func(c change) bool {
			if !isID(c.blob) || isNull(c.blob) || c.commit != "" && !isID(c.commit) || strings.Contains(c.file, "\x00") {
				t.Errorf("%+v", c)
			}
			for _, id := range c.old {
				if !isID(id) {
					t.Errorf("%+v", c)
				}
			}
			return len(c.file)%2 == 0
		})
		if errors.Is(err, errStop) || err == nil {
			return
		}
		if strings.Contains(err.Error(), "\x00") {
			t.Error(err)
		}
	})
}

// FuzzParseCommit: what anybody may have written into a commit is one line.
func FuzzParseCommit(f *testing.F) {
	f.Add([]byte("tree " + id1 + "\nauthor A <a@b> 1767323045 +0100\ncommitter x\n\nmessage\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := parseCommit(in)
		if strings.Contains(c.author, "\n") || len(c.author) > 600 || c.date != "" && !strings.HasSuffix(c.date, "Z") {
			t.Errorf("%+v", c)
		}
	})
}

func TestParseCommit(t *testing.T) {
	c := parseCommit([]byte("tree x\nparent y\nauthor A > B <a@b> 1767323045 +0100\ncommitter C <c> 1 +0\n\nauthor D <d> 2 +0\n"))
	if c != (commit{"A > B <a@b>", "2026-01-02T03:04:05Z"}) {
		t.Errorf("%+v", c)
	}
	if c := parseCommit([]byte("tree x\n\nauthor D <d> 2 +0\n")); c != (commit{}) {
		t.Errorf("from the message: %+v", c)
	}
}

// FuzzParseBaseline: it reads what is written, and no other file knows a finding.
func FuzzParseBaseline(f *testing.F) {
	f.Add([]byte(`{"version":1,"salt":"` + strings.Repeat("00", 32) + `","findings":[{"file":"a","rule":"b","tag":"012"}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := parseBaseline(in)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Error(err)
			}
			return
		}
		if len(b.salt) != 32 || b.Version != 1 || len(b.set) > len(b.Findings) {
			t.Errorf("%+v", b)
		}
	})
}

// FuzzAdded: the places of the lines that were added are those of the whole text,
// and no others are.
func FuzzAdded(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), []byte("a\nx\nb\nc\n"))
	f.Fuzz(func(t *testing.T, old, text []byte) {
		a := newAdded(text, old)
		if len(a.text) > 2*len(text)+1 {
			t.Fatal("it is longer than the text")
		}
		was := map[string]int{}
		for line := range bytes.Lines(old) {
			was[string(withoutEnd(line))]++
		}
		// Every line of the text that the old one does not have so often is in a.text.
		is := map[string]int{}
		for line := range bytes.Lines(text) {
			key := string(withoutEnd(line))
			is[key]++
			if is[key] > was[key] && !bytes.Contains(a.text, line) {
				t.Fatalf("%q was added and is left out", line)
			}
		}
		for start := range a.text {
			from, to := a.place(start, start+1)
			if from < 0 {
				continue
			}
			if from > to || to > len(text) || from < to && text[from] != a.text[start] {
				t.Fatalf("%d of %q is not %d of %q", start, a.text, from, text)
			}
		}
	})
}

func TestAdded(t *testing.T) {
	old := []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n")
	text := []byte("1\n2\n3\n4\nNEW\n5\n6\n7\n8\n9\n10\n11\n12\nEND")
	a := newAdded(text, old, []byte("10\n11\n12\n"))
	if got := string(a.text); got != "2\n3\n4\nNEW\n5\n6\n7\n10\n11\n12\nEND" && got != "2\n3\n4\nNEW\n5\n6\n7\n\n10\n11\n12\nEND" {
		t.Errorf("%q", got)
	}
	at := bytes.Index(a.text, []byte("NEW"))
	if from, to := a.place(at, at+3); string(text[from:to]) != "NEW" {
		t.Errorf("%d %d", from, to)
	}
	if from, to := a.place(at-2, at+3); string(text[from:to]) != "4\nNEW" {
		t.Errorf("%d %d", from, to)
	}
	if from, _ := a.place(0, 1); from >= 0 {
		t.Errorf("an old line is at %d", from)
	}
	// A file that was only moved about adds nothing.
	if a := newAdded([]byte("c\nb\na"), []byte("a\nb\nc\n")); len(a.text) != 0 {
		t.Errorf("%q", a.text)
	}
}
