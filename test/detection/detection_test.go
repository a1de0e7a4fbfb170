package detection

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opaquevault/ov/pkg/detect/engine"
)

var (
	update = flag.Bool("update", false, "rewrite the tables of docs/DETECTION.md")
	every  = flag.Int("every", 1, "measure only one text of so many")
	show   = flag.String("missed", "", "print what is missed of this family, or all; and what is found that is no secret")
)

func TestDetection(t *testing.T) {
	e, err := engine.New()
	if err != nil {
		t.Fatal(err)
	}
	nth := *every
	if nth == 1 && (raceDetector || testing.Short()) {
		nth = 53 // prime, so that every place has its turn
	}
	start := time.Now()
	pos, neg := positives(nth), negatives(nth)
	gotPos := measure(t, e, pos)
	middle := time.Now()
	gotNeg := measure(t, e, neg)
	t.Logf("%d positives in %v, %d negatives in %v", len(pos), middle.Sub(start), len(neg), time.Since(middle))

	var byFamily, byPlace, byClean table
	var allPos, allNeg score
	rules := map[string]*[4]int{} // right and wrong in files, in messages
	rule := func(id string) *[4]int {
		if rules[id] == nil {
			rules[id] = &[4]int{}
		}
		return rules[id]
	}
	count := func(v verdict, at int) {
		for _, id := range v.right {
			rule(id)[at]++
		}
		for _, id := range v.wrong {
			rule(id)[at+1]++
		}
	}
	for i, x := range pos {
		allPos.add(x, gotPos[i])
		byFamily.row(x.family.name).add(x, gotPos[i])
		if x.family.places == nil {
			byPlace.row(x.place).add(x, gotPos[i])
		}
		count(gotPos[i].file, 0)
		count(gotPos[i].message, 2)
		if *show == "all" || *show == x.family.name {
			if len(gotPos[i].file.right) == 0 || len(gotPos[i].message.right) == 0 || len(gotPos[i].file.wrong) > 0 {
				t.Logf("%s in %s: %v\n%s\n", x.family.name, x.place, gotPos[i], x.body)
			}
		}
	}
	for i, x := range neg {
		allNeg.add(x, gotNeg[i])
		byClean.row(x.place).add(x, gotNeg[i])
		count(gotNeg[i].file, 0)
		count(gotNeg[i].message, 2)
		if *show == "all" || *show == x.place {
			for _, f := range append(gotNeg[i].file.wrong, gotNeg[i].message.wrong...) {
				t.Logf("%s: %s", x.place, f)
			}
		}
	}

	for i := range families {
		s, least := byFamily.row(families[i].name), cmp.Or(families[i].least, leastRecall)
		if nth == 1 && 100*min(s.fileAny, s.messageAny) < least*s.texts {
			t.Errorf("%s: %s %% found in files, %s %% in messages; at least %d are asked for", families[i].name, s.percent(s.fileAny), s.percent(s.messageAny), least)
		}
	}
	if 100*min(allPos.fileAny, allPos.messageAny) < leastRecall*allPos.texts {
		t.Errorf("%s %% found in files, %s %% in messages", allPos.percent(allPos.fileAny), allPos.percent(allPos.messageAny))
	}
	if wrong := float64(allNeg.fileWrong) / (float64(allNeg.bytes) / 1e6); wrong > mostWrong {
		t.Errorf("%.1f false positives per MB of text without a secret", wrong)
	}
	if 100*allNeg.messageWrong > mostBlocked*allNeg.texts {
		t.Errorf("%s %% of the messages without a secret are blocked", allNeg.percent(allNeg.messageWrong))
	}

	var b strings.Builder
	fmt.Fprintf(&b, "%d texts with a secret, %d without one (%d lines, %.1f MB).\n\n", allPos.texts, allNeg.texts, allNeg.lines, float64(allNeg.bytes)/1e6)
	precision := func(right, wrong int) string {
		return fmt.Sprintf("%.1f %%", 100*float64(right)/float64(max(right+wrong, 1)))
	}
	var fr, fw, mr, mw int
	for _, n := range rules {
		fr, fw, mr, mw = fr+n[0], fw+n[1], mr+n[2], mw+n[3]
	}
	fmt.Fprintf(&b, "| | files | messages |\n|---|---:|---:|\n")
	fmt.Fprintf(&b, "| recall: secrets found, of all | %s %% | %s %% |\n", allPos.percent(allPos.fileAny), allPos.percent(allPos.messageAny))
	fmt.Fprintf(&b, "| precision: findings that are a secret, of all | %s | %s |\n", precision(fr, fw), precision(mr, mw))
	fmt.Fprintf(&b, "| false positives per MB of text without a secret | %.1f | |\n", float64(allNeg.fileWrong)/(float64(allNeg.bytes)/1e6))
	fmt.Fprintf(&b, "| messages without a secret that are blocked | | %s %% |\n", allNeg.percent(allNeg.messageWrong))

	fmt.Fprintf(&b, "\n### Recall by family\n\n| family | texts | files: by its own rule | files | messages |\n|---|---:|---:|---:|---:|\n")
	for _, r := range byFamily.rows {
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |\n", r.name, r.texts, r.percent(r.fileOwn), r.percent(r.fileAny), r.percent(r.messageAny))
	}
	fmt.Fprintf(&b, "\n### Recall by place\n\nOf the families whose secrets fit into one line.\n\n| place | texts | files | messages |\n|---|---:|---:|---:|\n")
	slices.SortStableFunc(byPlace.rows, func(x, y *row) int { return strings.Compare(x.name, y.name) })
	for _, r := range byPlace.rows {
		fmt.Fprintf(&b, "| %s | %d | %s | %s |\n", r.name, r.texts, r.percent(r.fileAny), r.percent(r.messageAny))
	}
	fmt.Fprintf(&b, "\n### False positives by kind of text\n\n| text | lines | kB | in files | messages blocked, %% |\n|---|---:|---:|---:|---:|\n")
	for _, r := range byClean.rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %s |\n", r.name, r.lines, r.bytes/1000, r.fileWrong, r.percent(r.messageWrong))
	}
	fmt.Fprintf(&b, "\n### Precision by rule\n\nOf the rules that found anything here, those that were wrong at least once.\n\n| rule | files: right | wrong | precision | messages: right | wrong | precision |\n|---|---:|---:|---:|---:|---:|---:|\n")
	for _, id := range slices.SortedFunc(maps.Keys(rules), func(x, y string) int {
		return cmp.Or(cmp.Compare(rules[y][1]+rules[y][3], rules[x][1]+rules[x][3]), strings.Compare(x, y))
	}) {
		if n := rules[id]; n[1]+n[3] > 0 {
			fmt.Fprintf(&b, "| `%s` | %d | %d | %s | %d | %d | %s |\n", id, n[0], n[1], precision(n[0], n[1]), n[2], n[3], precision(n[2], n[3]))
		}
	}
	t.Log("\n" + b.String())
	if nth == 1 {
		section(t, "measured", b.String(), true)
	}
}

// Far from what is measured.
const (
	leastRecall = 95 // percent of a family's texts, and of all
	mostWrong   = 20 // findings per MB of files without a secret
	mostBlocked = 6  // percent of messages without a secret
)

// section compares what stands in docs/DETECTION.md between two lines of that
// name, or with -update writes it.
func section(t *testing.T, name, want string, compare bool) {
	t.Helper()
	const path = "../../docs/DETECTION.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	from, to := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->\n"
	before, rest, ok := strings.Cut(string(doc), from)
	got, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no lines %q and %q", path, from, to)
	}
	want = "\n" + want + "\n"
	switch {
	case *update:
		if err := os.WriteFile(path, []byte(before+from+want+to+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case compare && got != want:
		t.Errorf("docs/DETECTION.md does not say what is measured: go test ./test/detection -update")
	}
}

// A table has rows in the order in which they were first named.
type table struct{ rows []*row }

type row struct {
	name string
	score
}

func (t *table) row(name string) *row {
	for _, r := range t.rows {
		if r.name == name {
			return r
		}
	}
	t.rows = append(t.rows, &row{name: name})
	return t.rows[len(t.rows)-1]
}
