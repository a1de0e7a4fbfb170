package engine

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"

	"github.com/zricethezav/gitleaks/v8/config"
	gitleaks "github.com/zricethezav/gitleaks/v8/detect"

	"github.com/opaquevault/ov/pkg/detect"
)

// generic are the rules that find any secret by what is around it, the most
// telling one first.
var generic = []string{"generic-password", "generic-authorization-header", "generic-url-parameter", "generic-api-key", "generic-secret"}

// addOwn adds our rules to those of gitleaks.
func addOwn(c *config.Config) error {
	if _, ok := c.Rules[privateKeyRule]; !ok {
		return fmt.Errorf("gitleaks has no rule %s", privateKeyRule)
	}
	connection := config.Rule{
		RuleID:      "connection-string-password",
		Description: "Found a password in a URL, which opens the service that the URL is of.",
		// The scheme is not asked for: what starts with a fixed text is found ten times
		// as fast. RFC 3986 allows none of the characters left out of the password.
		Regex:       regexp.MustCompile(`://[^\s/?#@:'"<>\x60\\]{0,128}:([^\s/?#'"<>\x60\\]{4,256})@[\w.\[-]`),
		SecretGroup: 1,
		Entropy:     2.3,
		Keywords:    []string{"://"},
		Allowlists:  []*config.Allowlist{placeholders},
	}
	for id, a := range map[string][]*config.Allowlist{
		"generic-api-key":  {notAssigned, allow("", identifier, `(?i)^abcdef\d+$`)},
		"curl-auth-header": {curlPlaceholders},
	} {
		rule, ok := c.Rules[id]
		if !ok {
			return fmt.Errorf("gitleaks has no rule %s", id)
		}
		rule.Allowlists = append(rule.Allowlists, a...)
		c.Rules[id] = rule
	}
	for _, rule := range slices.Concat([]config.Rule{connection}, tokens(), transported()) {
		if err := rule.Validate(); err != nil {
			return err
		}
		for _, a := range rule.Allowlists {
			if err := a.Validate(); err != nil {
				return err
			}
		}
		c.Rules[rule.RuleID] = rule
		c.OrderedRules = append(c.OrderedRules, rule.RuleID)
		for _, k := range rule.Keywords {
			c.Keywords[k] = struct{}{}
		}
	}
	return nil
}

// placeholders are what stands where a password would.
var placeholders = &config.Allowlist{
	Regexes: []*regexp.Regexp{
		// A place for a password, in the languages that templates are written in.
		regexp.MustCompile(`[$%#]\{|\{\{|\$\(|%\(|^\$\w+$|^\{[\w.]*\}$|^%\w+%$|^:\w+$|^\[[\w .-]+\]$|^\(.*\)$|%[sdvq]`),
		regexp.MustCompile(`^\*+$|^\.+$|^-+$|^_+$|(?i:^x+$)|^\d{1,6}$|\*\*\*|\.\.\.|…`),
		// Words that stand for a password, and those that every tutorial and
		// container image has.
		regexp.MustCompile(`(?i:^[\W_]*(?:(?:my|your|the|db|user|some|super|test|dev|local|a|new|old)[-_]?)*` +
			`(?:pass|passwd|password|passwort|pwd|pw|pswd|passphrase|secret|token|api[-_]?key|key|credentials?|` +
			`user|username|admin|root|guest|test|testing|tester|example|sample|demo|dummy|fake|foo|bar|baz|foobar|` +
			`redacted|removed|masked|hidden|placeholder|changeme|change[-_]?me|changeit|replace[-_]?me|todo|none|null|empty|` +
			`postgres|postgresql|mysql|mariadb|mongo|mongodb|redis|rabbitmq|rabbit|neo4j|minio|minioadmin|elastic|oracle|sa|` +
			`letmein|qwerty|default|local|localhost|docker|development|production|database|app|host|port|word|` +
			`abc|abcd|abcdef)(?:[-_]?(?:here|word|pass|password|value|goes|string))*[\W_]*\d{0,4}[\W_]*$)`),
	},
}

// privateKeyRule is gitleaks' own for PEM and PGP private keys. It takes whatever
// is between two lines for a key, such as code that looks for such lines, and
// needs both of them, which output that was cut short does not have. So its
// findings are judged by isPrivateKey, and texts are also searched for the first
// line alone.
const privateKeyRule = "private-key"

// keyBegin is the first line, also as it is in a URL.
var keyBegin = regexp.MustCompile(`(?i)^-----BEGIN(?:[ A-Z0-9_+-]|%20){0,100}?PRIVATE(?: |%20|\+)KEY(?:(?: |%20|\+)BLOCK)?-----`)

const (
	maxKey     = 64 << 10 // bytes of a key as text
	leastKey   = 48       // base64 characters of a key, or of its beginning
	leastChars = 12       // different ones among them: fewer are a placeholder
)

// isPrivateKey reports whether text begins with a private key.
func isPrivateKey(text []byte) bool { return keyLength(text) > 0 }

// privateKeys returns the private keys in a text.
func privateKeys(d *gitleaks.Detector, text []byte, lines lines) []detect.Finding {
	var found []detect.Finding
	for at := 0; len(found) < detect.MaxFindings; {
		next := bytes.Index(text[at:], []byte("-----BEGIN"))
		if next < 0 {
			break
		}
		at += next
		n := keyLength(text[at:])
		if n > 0 && (d.IgnoreGitleaksAllow || !allowed(text, at)) {
			found = append(found, detect.Finding{
				Rule: privateKeyRule, Description: d.Config.Rules[privateKeyRule].Description,
				Start: at, End: at + n, Line: lines.of(at),
			})
		}
		at += max(n, 1)
	}
	return found
}

// allowed reports whether the line at the offset has gitleaks:allow.
func allowed(text []byte, at int) bool {
	line := text[bytes.LastIndexByte(text[:at], '\n')+1:]
	if end := bytes.IndexByte(line, '\n'); end >= 0 {
		line = line[:end]
	}
	return bytes.Contains(line, []byte("gitleaks:allow"))
}

// keyLength returns how long the private key is that text begins with, or 0. The
// key may be part of a string in some language, with its newlines and quotation
// marks escaped, or of a comment.
func keyLength(text []byte) int {
	text = text[:min(len(text), maxKey)]
	head := keyBegin.Find(text[:min(len(text), 400)])
	if head == nil {
		return 0
	}
	var chars [256]bool
	different, count, end := 0, 0, 0
	at := len(head)
body:
	for at < len(text) {
		c := text[at]
		switch {
		case isBase64(c):
			if word := headerLine.Find(text[at:min(at+400, len(text))]); word != nil {
				at += len(word)
				continue
			}
			if !chars[c] {
				chars[c] = true
				different++
			}
			count++
			at++
			end = at
		case c == '\\': // \n, \\n,
			for at < len(text) && text[at] == '\\' {
				at++
			}
			if esc := escape.Find(text[at:min(at+8, len(text))]); esc != nil {
				at += len(esc)
			}
		case c == '%' && percent.Match(text[at:min(at+3, len(text))]):
			at += 3
		case bytes.IndexByte([]byte(" \t\r\n\"'`,+#*>|;&"), c) >= 0:
			at++
		default:
			break body
		}
	}
	if count < leastKey || different < leastChars {
		return 0
	}
	if last := keyEnd.Find(text[at:min(at+200, len(text))]); last != nil {
		end = at + len(last)
	}
	return end
}

func isBase64(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '='
}

var (
	escape  = regexp.MustCompile(`^(?:[nrt]|u000[aAdD9])`)
	percent = regexp.MustCompile(`^%(?:0[aAdD9]|2[0bBfF]|3[dD])`)
	// The headers of RFC 1421 and of OpenPGP, up to the end of the line.
	headerLine = regexp.MustCompile(`^(?:Proc-Type|DEK-Info|Version|Comment|Charset|Hash|MessageID): [^\n\\]{0,300}`)
	keyEnd     = regexp.MustCompile(`(?i)^-----END(?:[ A-Z0-9_+-]|%20){0,100}-----`)
)
