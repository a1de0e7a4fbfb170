package near

import (
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	have := []string{
		"DATABASE_URL", "DATABASE_POOL", "STRIPE_SECRET_KEY", "STRIPE_PUBLIC_KEY",
		"REDIS_URL", "API_KEY", "A", "B", "lower_case", "DATABASE_URL",
	}
	for _, c := range []struct {
		want  string
		limit int
		found []string
	}{
		{"database_url", 3, []string{"DATABASE_URL", "DATABASE_POOL"}},
		{"database-url", 1, []string{"DATABASE_URL"}},
		{"DATABSE_URL", 1, []string{"DATABASE_URL"}},  // a letter lost
		{"DATABASE_ULR", 1, []string{"DATABASE_URL"}}, // neighbours exchanged
		{"STRIPE_SECRET_KEYS", 1, []string{"STRIPE_SECRET_KEY"}},
		{"STRIPE", 5, []string{"STRIPE_PUBLIC_KEY", "STRIPE_SECRET_KEY"}},
		{"MYAPP_API_KEY", 5, []string{"API_KEY"}},
		{"LOWER_CASE", 5, []string{"lower_case"}},
		{"C", 5, nil}, // every one-letter name is one slip away: no help
		{"AB", 5, nil},
		{"KAFKA_BROKERS", 5, nil},
		{"DATABASE_URL", 5, []string{"DATABASE_POOL"}}, // never itself
		{"database_url", 0, nil},
		{"", 5, nil},
		{strings.Repeat("A", maxLen+1), 5, nil},
	} {
		got := Find(c.want, have, c.limit)
		if !slices.Equal(got, c.found) {
			t.Errorf("Find(%q, %d) = %q, want %q", c.want, c.limit, got, c.found)
		}
	}
}

// plain is the same distance without bounds or early exit.
func plain(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

func FuzzDistance(f *testing.F) {
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = a[:min(len(a), maxLen)], b[:min(len(b), maxLen)]
		want := plain(a, b)
		for limit := range 5 {
			if got := distance(a, b, limit); got != min(want, limit+1) {
				t.Errorf("distance(%q, %q, %d) = %d, want %d", a, b, limit, got, min(want, limit+1))
			}
		}
		for _, got := range Find(a, []string{b, b}, 1) {
			if got != b {
				t.Errorf("Find(%q) made up %q", a, got)
			}
		}
	})
}
