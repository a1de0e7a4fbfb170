// Package near finds, among known names, the ones that a mistyped name may
// have meant.
package near

import (
	"cmp"
	"slices"
	"strings"
)

// maxLen bounds, in bytes, the names that are compared. It is the longest
// secret name; longer ones are never proposed.
const maxLen = 255

// Find returns at most limit of the names in have that want may have meant,
// the likeliest first. A name is near when, letter case and the separators
// '-', '.' and ' ' for '_' aside, it is equal, a few slips of the keyboard away
// (an insertion, a deletion, a substitution or two neighbours exchanged: one
// per four letters, at most three), or has the other's words as its own first,
// last or inner words. want itself is never returned.
func Find(want string, have []string, limit int) []string {
	if want == "" || len(want) > maxLen || limit <= 0 {
		return nil
	}
	type match struct {
		name  string
		score int
	}
	folded := fold(want)
	slips := min((len(want)+1)/4, 3)
	var found []match
	for _, name := range have {
		if name == "" || len(name) > maxLen || name == want {
			continue
		}
		other := fold(name)
		score := distance(folded, other, slips)
		if score > slips {
			if !words(folded, other) && !words(other, folded) {
				continue
			}
			score = slips + 1
		}
		found = append(found, match{name, score})
	}
	slices.SortFunc(found, func(a, b match) int {
		return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.name, b.name))
	})
	found = slices.Compact(found)
	names := make([]string, 0, min(limit, len(found)))
	for _, m := range found[:min(limit, len(found))] {
		names = append(names, m.name)
	}
	return names
}

// fold makes spellings that differ in case or separator equal, byte by byte:
// names are ASCII.
func fold(s string) string {
	b := []byte(s)
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z':
			b[i] = c - 'a' + 'A'
		case c == '-' || c == '.' || c == ' ':
			b[i] = '_'
		}
	}
	return string(b)
}

// words reports whether part is a run of whole words of s: URL and DATABASE
// of DATABASE_URL. Two letters say too little.
func words(part, s string) bool {
	return len(part) >= 3 && len(part) < len(s) && strings.Contains("_"+s+"_", "_"+part+"_")
}

// distance is the optimal string alignment distance of a and b (Levenshtein
// with exchanged neighbours), or limit+1 as soon as it must exceed limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	var rows [3][maxLen + 1]int
	before, last, row := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		last[j] = j
	}
	lastLeast := 0
	for i := range len(a) {
		row[0] = i + 1
		least := row[0]
		for j := range len(b) {
			d := last[j]
			if a[i] != b[j] {
				d = 1 + min(last[j], last[j+1], row[j])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, before[j-1]+1)
			}
			row[j+1] = d
			least = min(least, d)
		}
		// An exchange reaches back two rows, so both must be hopeless.
		if least > limit && lastLeast > limit {
			return limit + 1
		}
		lastLeast = least
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit+1)
}
