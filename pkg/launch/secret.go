package launch

import (
	"fmt"
	"io"
)

// Secret is one variable of the program's environment whose value must not be
// seen on the way. Printing it prints the name alone.
type Secret struct {
	Name  string // ^[A-Za-z_][A-Za-z0-9_]{0,254}$
	Value []byte `json:"-"` // without NUL; the caller's to wipe
}

// Format keeps the value out of every fmt verb.
func (s Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, s.Name)
}
