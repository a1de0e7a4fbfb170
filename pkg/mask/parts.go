package mask

import (
	"bytes"
	"encoding/json"
)

// Programs do not always print a value whole. What they do print alone, often
// enough to be worth masking, is this.

const (
	// minLine: a line of a PEM block has 64 characters, or 76. What is shorter is
	// as likely a brace or a keyword of a configuration file.
	minLine = 16
	// minLeaf: a shorter string of a JSON object is more often a type or a region
	// than a secret.
	minLeaf = 12
)

// lines returns the lines of a value that has several: grep(1), a compiler's
// error and util.inspect of Node print them one by one. Lines with spaces are
// prose or configuration, and those of PEM's frame are the same in every file.
func lines(v []byte) [][]byte {
	var found [][]byte
	if bytes.IndexByte(v, '\n') < 0 {
		return nil
	}
	for line := range bytes.Lines(v) {
		line = trim(line)
		if len(line) >= minLine && bytes.IndexByte(line, ' ') < 0 && judge(line) == "" &&
			!bytes.HasPrefix(line, []byte("-----BEGIN")) && !bytes.HasPrefix(line, []byte("-----END")) {
			found = append(found, line)
		}
	}
	return found
}

// leaves returns the strings in a value that is a JSON object, decoded: what
// reads a service account's file prints its private key, not the file.
func leaves(v []byte) [][]byte {
	if len(v) == 0 || v[0] != '{' {
		return nil
	}
	var object map[string]any
	if json.Unmarshal(v, &object) != nil {
		return nil
	}
	var found [][]byte
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case string:
			if leaf := trim([]byte(node)); len(leaf) >= minLeaf && judge(leaf) == "" {
				found = append(found, leaf)
			}
		case []any:
			for _, n := range node {
				walk(n)
			}
		case map[string]any:
			for _, n := range node {
				walk(n)
			}
		}
	}
	walk(object)
	return found
}

// passwords returns the password of a connection string, as it stands there and
// decoded: drivers name the server in an error and the password in a debug log.
// It knows URLs (scheme://user:password@host), the Go MySQL driver's
// user:password@tcp(host), and the password=… of libpq, ADO and JDBC.
func passwords(v []byte) [][]byte {
	var found [][]byte
	add := func(p []byte) {
		for _, p := range [][]byte{p, unpercent(p)} {
			if judge(p) == "" {
				found = append(found, p)
			}
		}
	}
	var rest []byte
	if i := bytes.Index(v, []byte("://")); i >= 0 {
		rest = v[i+3:]
		if end := bytes.IndexAny(rest, "/?#"); end >= 0 {
			rest = rest[:end]
		}
	} else if i := bytes.Index(v, []byte("@tcp(")); i >= 0 {
		rest = v[:i+1]
	} else if i := bytes.Index(v, []byte("@unix(")); i >= 0 {
		rest = v[:i+1]
	}
	if at := bytes.LastIndexByte(rest, '@'); at >= 0 {
		if _, password, ok := bytes.Cut(rest[:at], []byte(":")); ok {
			add(password)
		}
	}
	lower := bytes.ToLower(v)
	for _, key := range []string{"password=", "pwd=", "accountkey=", "sharedaccesskey="} {
		for from := 0; ; {
			i := bytes.Index(lower[from:], []byte(key))
			if i < 0 {
				break
			}
			from += i + len(key)
			if before := from - len(key) - 1; before >= 0 && bytes.IndexByte([]byte("?&; \t\n"), v[before]) < 0 {
				continue
			}
			password, ends := v[from:], "&; \t\r\n"
			if len(password) > 0 && (password[0] == '\'' || password[0] == '"') {
				password, ends = password[1:], string(password[:1])
			}
			if end := bytes.IndexAny(password, ends); end >= 0 {
				password = password[:end]
			}
			add(password)
		}
	}
	return found
}

// unpercent decodes %XX where it is well-formed.
func unpercent(v []byte) []byte {
	b := make([]byte, 0, len(v))
	for i := 0; i < len(v); i++ {
		if v[i] == '%' && i+2 < len(v) {
			if high, low := unhex(v[i+1]), unhex(v[i+2]); high >= 0 && low >= 0 {
				b = append(b, byte(high<<4|low))
				i += 2
				continue
			}
		}
		b = append(b, v[i])
	}
	return b
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}
