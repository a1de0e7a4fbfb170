package names

import (
	"regexp"
	"strings"
	"testing"
)

// The rules as the design states them; the code must agree on every input.
var (
	slugRule = regexp.MustCompile(`\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\z`)
	nameRule = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]{0,254}\z`)
)

func TestSlug(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "a": true, "0": true, "-": false, "a-": false, "-a": false,
		"my-app": true, "a--b": true, "My": false, "a_b": false, "a.b": false,
		"a\n": false, "a/b": false, "..": false, "é": false, "a\x00": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false,
	} {
		if got := ValidSlug(s); got != want {
			t.Errorf("ValidSlug(%q) = %v, want %v", s, got, want)
		}
	}
}

func TestName(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "A": true, "_": true, "1A": false, "A1": true, "DATABASE_URL": true,
		"lower": true, "A-B": false, "A=B": false, "A\n": false, "A B": false,
		"É": false, "A\x00": false,
		strings.Repeat("A", 255): true, strings.Repeat("A", 256): false,
	} {
		if got := ValidName(s); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", s, got, want)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := ValidSlug(s), slugRule.MatchString(s); got != want {
			t.Errorf("ValidSlug(%q) = %v, the rule says %v", s, got, want)
		}
		if got, want := ValidName(s), nameRule.MatchString(s); got != want {
			t.Errorf("ValidName(%q) = %v, the rule says %v", s, got, want)
		}
	})
}
