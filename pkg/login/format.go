package login

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// The files are TOML, of which this package reads what it writes and no more:
// the agent, which reads them too, links no TOML library.

// FormatError says what is wrong in a file. It never holds text from it, which
// may be an API key.
type FormatError struct {
	File string
	Line int // from 1; 0 if the whole file is meant
	Msg  string
}

func (e *FormatError) Error() string {
	if e.Line == 0 {
		return safefile.Quote(e.File) + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", safefile.Quote(e.File), e.Line, e.Msg)
}

// in says which file an error of parse is about.
func in(path string, err error) error {
	if e := (*FormatError)(nil); errors.As(err, &e) {
		e.File = path
		if hint.Of(err) == "" {
			return hint.Wrap(err, "correct it by hand, or remove it and log in again: ov auth login --server URL")
		}
	}
	return err
}

const heading = `# Written by ov. Whoever can read this can use the API keys in it.
`

// format is the file of the logins.
func (s Servers) format() []byte {
	b := []byte(heading)
	if s.Default != "" {
		b = fmt.Appendf(b, "default = %q\n", s.Default)
	}
	slices.SortFunc(s.Logins, func(a, b Login) int { return strings.Compare(a.URL, b.URL) })
	for _, l := range s.Logins {
		// key_id is for people, who must not publish an API key to ask about it.
		b = fmt.Appendf(b, "\n[%q]\nkey_id = %q\napi_key = \"%s\"\nca = \"\"\"\n%s\"\"\"\n", l.URL, l.KeyID(), l.APIKey, l.CA)
	}
	return b
}

// parse reads a file. Its errors are a *FormatError without a file.
func parse(src []byte) (s Servers, err error) {
	p := parser{seen: map[string]bool{}}
	for line := range bytes.Lines(src) {
		p.line++
		if msg := p.read(bytes.TrimRight(line, "\r\n")); msg != "" {
			p.servers.Wipe()
			return Servers{}, &FormatError{Line: p.line, Msg: msg}
		}
	}
	s = p.servers
	msg := ""
	switch {
	case p.inCA:
		msg = "it ends in the middle of ca"
	case s.Default != "" && s.index(s.Default) < 0:
		msg = "default is a server that there is no login for"
	}
	for i, l := range s.Logins {
		if err := l.check(); msg == "" && err != nil {
			msg = l.URL + ": " + err.Error()
		} else if msg == "" && p.ids[i] != "" && p.ids[i] != l.KeyID() {
			msg = l.URL + ": key_id is not that of api_key"
		}
	}
	if msg != "" {
		s.Wipe()
		return Servers{}, &FormatError{Msg: msg}
	}
	return s, nil
}

type parser struct {
	line    int
	servers Servers
	ids     []string        // key_id of each login
	seen    map[string]bool // keys of the current table
	inCA    bool            // in the lines of ca
}

// read takes a line. It says what is wrong with it, if anything is.
func (p *parser) read(text []byte) string {
	last := len(p.servers.Logins) - 1
	if p.inCA {
		if string(text) == `"""` {
			p.inCA = false
			return ""
		}
		if !plain(text) {
			return "ca is not PEM"
		}
		ca := &p.servers.Logins[last].CA
		*ca = append(append(*ca, text...), '\n')
		return ""
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return ""
	}
	if text[0] == '#' {
		if !plain(text[1:]) {
			return "a comment that is not plain text"
		}
		return ""
	}
	if text[0] == '[' {
		inner, opens := bytes.CutPrefix(text, []byte(`["`))
		inner, closes := bytes.CutSuffix(inner, []byte(`"]`))
		server, err := Canonical(string(inner))
		if !opens || !closes || err != nil || server != string(inner) {
			return "not the address of a server"
		}
		if p.servers.index(server) >= 0 {
			return "the server is there twice"
		}
		p.servers.Logins = append(p.servers.Logins, Login{URL: server})
		p.ids = append(p.ids, "")
		clear(p.seen)
		return ""
	}
	name, value, ok := bytes.Cut(text, []byte("="))
	key, value := string(bytes.TrimSpace(name)), bytes.TrimSpace(value)
	if !ok || len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return `not of the form key = "value"`
	}
	known := map[bool][]string{true: {"default"}, false: {"api_key", "key_id", "ca"}}[last < 0]
	if !slices.Contains(known, key) {
		return "unknown key: the keys are default and, for each server, api_key, key_id and ca"
	}
	if p.seen[key] {
		return key + " is there twice"
	}
	p.seen[key] = true
	if key == "ca" {
		if string(value) != `"""` {
			return "ca is not PEM"
		}
		p.inCA = true
		return ""
	}
	value = value[1 : len(value)-1]
	if !plain(value) {
		return `not of the form key = "value"`
	}
	switch key {
	case "default":
		p.servers.Default = string(value)
	case "key_id":
		p.ids[last] = string(value)
	case "api_key":
		p.servers.Logins[last].APIKey = bytes.Clone(value)
	}
	return ""
}

// plain reports whether b is text that means itself in TOML.
func plain(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' })
}
