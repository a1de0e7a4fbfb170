package doctor

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// unquote takes apart the commands whose words hold spaces, by what the unit's
// files say: as long as that, joined as systemctl joins it, is what is loaded.
func (u *unit) unquote() {
	var written [][]string
	for _, value := range settings(u.text(), "ExecStart") {
		words, ok := splitWords(value)
		if !ok || len(words) == 0 {
			continue
		}
		path := strings.TrimLeft(words[0], "-@:+!|")
		if strings.Contains(words[0][:len(words[0])-len(path)], "@") { // the next word is argv[0]
			words = words[1:]
		} else {
			words[0] = path
		}
		written = append(written, words)
	}
	for i, c := range u.commands {
		for _, words := range written {
			if strings.Join(words, " ") == c.joined {
				u.commands[i].argv = words
			}
		}
	}
}

// splitWords splits a command line as systemd does (systemd.syntax(7),
// "Quoting", and systemd.service(5), "Command Lines"): at white space that is
// not in quotes, which enclose whole words, with C's escapes, and %% for %. ok
// is false for what systemd would refuse, for several commands in one line, and
// where another specifier stands.
func splitWords(line string) (words []string, ok bool) {
	const space = " \t\n\r"
	for line = strings.TrimLeft(line, space); line != ""; line = strings.TrimLeft(line, space) {
		switch word, rest := line[:min(2, len(line))], line[min(2, len(line)):]; {
		case strings.TrimRight(word, space) == ";":
			return nil, false
		case word == `\;` && (rest == "" || strings.IndexByte(space, rest[0]) >= 0):
			words, line = append(words, ";"), rest
			continue
		}
		var word []byte
		quote := byte(0)
		if line[0] == '"' || line[0] == '\'' {
			quote, line = line[0], line[1:]
		}
		plain := quote == 0
		for {
			if line == "" {
				if !plain {
					return nil, false // the quote is not closed
				}
				break
			}
			c := line[0]
			switch {
			case plain && strings.IndexByte(space, c) >= 0:
			case !plain && c == quote:
				if line = line[1:]; line != "" && strings.IndexByte(space, line[0]) < 0 {
					return nil, false // a closing quote inside a word
				}
			case c == '\\':
				var n int
				if word, n = unescape(word, line[1:]); n == 0 {
					return nil, false
				}
				line = line[1+n:]
				continue
			case c == '%':
				if !strings.HasPrefix(line, "%%") {
					return nil, false
				}
				word, line = append(word, c), line[2:]
				continue
			case plain && (c == '"' || c == '\''):
				return nil, false
			default:
				word, line = append(word, c), line[1:]
				continue
			}
			break
		}
		words = append(words, string(word))
	}
	return words, true
}

// unescape appends what the escape at the start of s, without its backslash,
// stands for, and returns how long it is: 0 if there is no such escape.
func unescape(word []byte, s string) ([]byte, int) {
	if s == "" {
		return word, 0
	}
	if i := strings.IndexByte(`abfnrtv\"'s`, s[0]); i >= 0 {
		return append(word, "\a\b\f\n\r\t\v\\\"' "[i]), 1
	}
	digits, base, skip := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[0]], 16, 1
	if digits == 0 {
		digits, base, skip = 3, 8, 0
	}
	if len(s) < skip+digits {
		return word, 0
	}
	n, err := strconv.ParseUint(s[skip:skip+digits], base, 32)
	switch {
	case err != nil || n == 0 || digits < 4 && n > 0xff || digits >= 4 && (n > utf8.MaxRune || !utf8.ValidRune(rune(n))):
		return word, 0
	case digits < 4:
		return append(word, byte(n)), skip + digits
	}
	return utf8.AppendRune(word, rune(n)), skip + digits
}
