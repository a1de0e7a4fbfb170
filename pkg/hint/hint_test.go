package hint_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/hint"
)

func TestPrint(t *testing.T) {
	cause := errors.New("the file is not there")
	for want, err := range map[string]error{
		"ov: the file is not there\n":                           cause,
		"ov: the file is not there\n  hint: make it\n":          hint.Wrap(cause, "make it"),
		"ov: reading: the file is not there\n  hint: make it\n": fmt.Errorf("reading: %w", hint.Wrap(cause, "make it")),
		"ov: the file is not there\n  hint: or another one\n":   hint.Wrap(hint.Wrap(cause, "make it"), "or another one"),
		"ov: no 7\n  hint: take 8\n":                            hint.Errorf("take 8", "no %d", 7),
		"":                                                      errors.New(""),
		"ov: no \\x1b[2Ja\\xff\nnor b\n  hint: \\u202eevil\n":   hint.Errorf("\u202eevil", "no \x1b[2Ja\xff\nnor b"),
	} {
		var out strings.Builder
		hint.Print(&out, "ov", err)
		if out.String() != want {
			t.Errorf("got %q, want %q", &out, want)
		}
	}
	if hint.Wrap(nil, "x") != nil {
		t.Error("a hint made an error of nothing")
	}
}
