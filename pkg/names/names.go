// Package names says which names are valid for apps, environments and secrets.
// Client, vault and agent share it, so that none accepts what another refuses.
package names

const (
	// MaxSlug bounds an app's or environment's slug, in bytes: one DNS label
	// (RFC 1123 section 2.1).
	MaxSlug = 63
	// MaxName bounds a secret's name, in bytes.
	MaxName = 255

	// DefaultApp is made with the vault, and what a command is about when nothing
	// says otherwise.
	DefaultApp = "default"
	// DefaultEnv is made with every app, and the same.
	DefaultEnv = "production"
)

// ValidSlug reports whether s may name an app or an environment:
// ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$
func ValidSlug(s string) bool {
	if len(s) < 1 || len(s) > MaxSlug || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isDigit(c) && c != '-' {
			return false
		}
	}
	return true
}

// ValidName reports whether s may name a secret or an environment variable:
// ^[A-Za-z_][A-Za-z0-9_]{0,254}$, which is POSIX.1-2017 section 8.1's name,
// lower case included.
func ValidName(s string) bool {
	if len(s) < 1 || len(s) > MaxName || isDigit(s[0]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isUpper(c) && !isDigit(c) && c != '_' {
			return false
		}
	}
	return true
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
