package doctor

import (
	"regexp"
	"strings"

	"github.com/opaquevault/ov/pkg/safefile"
)

// editUnit opens a unit's file in an editor, for changes that cannot be made by
// a line to paste.
func editUnit(name string) string {
	return "sudo systemctl edit --full " + safefile.Shell(name) + " && sudo systemctl restart " + safefile.Shell(name)
}

// restart starts a service, also one that has failed too often.
func restart(name string) string {
	q := safefile.Shell(name)
	return "sudo systemctl reset-failed " + q + " && sudo systemctl restart " + q
}

func reload(name string) string {
	return "sudo systemctl daemon-reload && " + restart(name)
}

// plainValue tells whether s needs no escaping in a sed expression but for dots.
func plainValue(s string) bool {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_,./-"
	return s != "" && len(s) <= 1000 && strings.Trim(s, plain) == ""
}

// changeFlag returns the command that changes a flag in the unit's ov run, and
// loads and runs that. It falls back to the editor where the text is not
// plainly there, once.
func (u *unit) changeFlag(flag, from, to string) string {
	if !plainValue(from) || !plainValue(to) {
		return editUnit(u.id)
	}
	before, after := `(`+flag+`[ =])`, `([[:space:]\\]|$)`
	expr := before + strings.ReplaceAll(from, ".", `\.`) + after
	file, ok := u.only(expr)
	if !ok {
		return editUnit(u.id)
	}
	return "sudo sed -i -E " + safefile.Shell(`s#`+expr+`#\1`+to+`\2#`) + " " + safefile.Shell(file) + " && " + reload(u.id)
}

// removeEnvFile returns the command that takes an EnvironmentFile= line out of the
// unit, as changeFlag does.
func (u *unit) removeEnvFile(path string) string {
	if !plainValue(path) {
		return editUnit(u.id)
	}
	expr := `^[[:space:]]*EnvironmentFile[[:space:]]*=[[:space:]]*-?` + strings.ReplaceAll(path, ".", `\.`) + `[[:space:]]*$`
	file, ok := u.only(expr)
	if !ok {
		return editUnit(u.id)
	}
	return "sudo sed -i -E " + safefile.Shell(`\#`+expr+`#d`) + " " + safefile.Shell(file) + " && " + reload(u.id)
}

// only returns the one of the unit's files below /etc that has the expression,
// in one line.
func (u *unit) only(expr string) (file string, ok bool) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return "", false
	}
	n := 0
	for _, f := range u.files {
		for line := range strings.Lines(readText(f)) {
			if found := len(re.FindAllString(strings.TrimSuffix(line, "\n"), -1)); found > 0 {
				n += found
				file = f
			}
		}
	}
	return file, n == 1
}
