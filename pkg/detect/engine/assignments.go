package engine

import (
	"bytes"
	"context"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/zricethezav/gitleaks/v8/config"
	gitleaks "github.com/zricethezav/gitleaks/v8/detect"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/kek"
)

// Half of gitleaks' rules look for a name, then one of these signs, then a
// value, and most of them want one of a few characters behind the value. Both
// leave out places where secrets are put: JSON within JSON, os.environ['NAME'],
// a typed constant, an XML element, an argument in parentheses. widen makes room.
var widen = strings.NewReplacer(
	`[\s'"]{0,3}(?:=|>|:{1,3}=|\|\||:|=>|\?=|,)[\x60'"\s=]{0,5}`,
	`[\s'"\]\\]{0,4}(?::[ \t]?&?(?:'static )?(?:str|string)[ \t]?)?(?:=|>|:{1,3}=|\|\||:|=>|\?=|,)[\x60'"\s=\\]{0,5}`,
	`(?:[\x60'"\s;]|\\[nr]|$)`,
	`(?:[\x60'"\s;<>)\]},&|]|\\[nrtu"'\\]|$)`,
	// So that the generic rule sees what name a part of a path has.
	`(?i)[\w.-]{0,50}?(?:access|auth|`, `(?i)[\w./-]{0,50}?(?:access|auth|`,
)

// What stands between a name and its value: a sign; the value's own field, as in
// Kubernetes' env, XML and Terraform; quotation marks with a comma, as in SQL;
// or words.
const (
	sign = `(?:["'\x60\])\\]{0,4}[ \t]{0,4}(?::[ \t]?&?(?:'static )?(?:str|string)[ \t]?)?(?:=>|:=|\|\||\?\?|[=:>])[ \t]{0,4}` +
		`|["'\\]{0,2}[ \t]*[,{]?\s{0,40}(?:type\s*=\s*string\s+)?["'\\]{0,2}(?:value|default)["'\\]{0,2}[ \t]*[=:][ \t]*` +
		`|["'][ \t]*,[ \t]*` +
		`|[ \t]+is:?[ \t]+)`
	open = `[bru]?["'\x60\\]{0,4}`
	shut = `(?:["'\x60\s;,<)\]}&|]|\\[nrtu"'\\]|$)`
	// A name may go on.
	more = `(?:[_-]?(?:base|value|prod|production|staging|live|dev|test|\d{1,2}))?`

	// What a person thinks of, and what a program makes.
	typedValue = `([^\s"'\x60<>(){}\[\]\\,;|&$][^\s"'\x60<>(){}\[\]\\,;|&]{7,99})`
	madeValue  = `([\w+/.~-]{20,}={0,2})`

	mostBefore, mostAfter = 40, 400 // bytes that are looked at
)

// An assignment is a rule for what is assigned to a name. gitleaks' generic rule
// does that, too, but leaves out passwords, and what it takes for a word or for
// too regular, which in 40 random characters is too much. It takes as long as all
// others together, so this is not one more of its kind: a regular expression is
// asked only where a name is.
type assignment struct {
	rule, description string
	names             []string       // in lower case
	before            *regexp.Regexp // what stands before the name, or nil
	notBefore         *regexp.Regexp
	after, afterFlag  *regexp.Regexp // the name and the value
	entropy           float64        // that the value has at least: bits per character
	not               []*config.Allowlist
}

var assignments = []assignment{
	{
		rule: "generic-password", description: "Found what is assigned to the name of a password.",
		names:     []string{"pass", "pwd"},
		notBefore: regexp.MustCompile(`(?i)(?:by|com|sur|tres|over|en|one)$`),
		after:     regexp.MustCompile(`(?i)^(?:pass(?:w(?:or)?d|phrase|wort)?|pwd)` + more + sign + open + typedValue + shut),
		afterFlag: regexp.MustCompile(`(?i)^(?:pass(?:w(?:or)?d|phrase)?|pwd)[ \t]+` + open + typedValue + shut),
		entropy:   2.7,
		not:       []*config.Allowlist{placeholders, notPasswords},
	},
	{
		rule: "generic-secret", description: "Found what is assigned to the name of a key or a token.",
		names: []string{"key"},
		before: regexp.MustCompile(`(?i)(?:api|access|account|admin|app|auth|bot|encryption|hmac|master|private|secret|service[ _.-]?role|session|shared|sign(?:ing)?|webhook)` +
			`[ _.-]?(?:access[ _.-]?)?$`),
		after:     regexp.MustCompile(`(?i)^key` + more + sign + open + madeValue + shut),
		afterFlag: regexp.MustCompile(`(?i)^key[ \t]+` + open + madeValue + shut),
		entropy:   3,
		not:       []*config.Allowlist{placeholders, notSecrets},
	},
	{
		rule: "generic-secret", description: "Found what is assigned to the name of a key or a token.",
		names:     []string{"secret", "token", "jwt", "credential"},
		notBefore: regexp.MustCompile(`(?i)(?:page|cursor|continuation|next|csrf|xsrf|idempotency|cache|public|client|request|sync|pagination)[ _.-]?$|checksum/$`),
		after:     regexp.MustCompile(`(?i)^(?:secret|token|jwt|credentials?)` + more + sign + open + madeValue + shut),
		afterFlag: regexp.MustCompile(`(?i)^(?:secret|token|jwt|credentials?)[ \t]+` + open + madeValue + shut),
		entropy:   3,
		not:       []*config.Allowlist{placeholders, notSecrets},
	},
}

// assigned returns what is assigned to the names of secrets in a text.
func assigned(ctx context.Context, d *gitleaks.Detector, text []byte, lines lines) []detect.Finding {
	var found []detect.Finding
	for at := 0; at < len(text) && len(found) < detect.MaxFindings; at++ {
		for i := range assignments {
			a := &assignments[i]
			start, end := a.match(text, at)
			if end == 0 {
				continue
			}
			if ctx.Err() != nil {
				return nil // the pieces say so
			}
			if d.IgnoreGitleaksAllow || !allowed(text, start) {
				found = append(found, detect.Finding{Rule: a.rule, Description: a.description, Start: start, End: end, Line: lines.of(start)})
			}
			at = end - 1
			break
		}
	}
	return found
}

// match returns where the value is that is assigned to the name at the offset.
func (a *assignment) match(text []byte, at int) (start, end int) {
	if !slices.ContainsFunc(a.names, func(name string) bool {
		return text[at]|0x20 == name[0] && at+len(name) <= len(text) && bytes.EqualFold(text[at:at+len(name)], []byte(name))
	}) {
		return 0, 0
	}
	after, before := text[at:min(at+mostAfter, len(text))], text[max(at-mostBefore, 0):at]
	groups := a.after.FindSubmatchIndex(after)
	if groups == nil && flag.Match(before) {
		groups = a.afterFlag.FindSubmatchIndex(after)
	}
	if groups == nil || a.before != nil && !a.before.Match(before) || a.notBefore != nil && a.notBefore.Match(before) {
		return 0, 0
	}
	value := after[groups[2]:groups[3]]
	ok := entropy(value) >= a.entropy
	kek.Do(func() {
		s := string(value)
		ok = ok && !slices.ContainsFunc(a.not, func(l *config.Allowlist) bool { return l.RegexAllowed(s) })
	})
	if !ok {
		return 0, 0
	}
	return at + groups[2], at + groups[3]
}

// flag is the beginning of a command's option.
var flag = regexp.MustCompile(`--[\w-]*$`)

// entropy returns how many bits there are in a byte of a text, by how often each
// is there.
func entropy(text []byte) float64 {
	var counts [256]int
	for _, c := range text {
		counts[c]++
	}
	bits := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(text))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}

// notPasswords are what code and configuration have in the place of a password.
var notPasswords = allow("",
	`^[^0-9]*$|^[\d.,:_/-]+$`,                                   // no digit, or nothing else
	`(?i)^[\w.-]*(?:passw(?:or)?d|passphrase|secret)[\w.-]*!?$`, // what says what it is
	`(?i)^(?:argon2\w*|bcrypt\w*|pbkdf2\w*|base64|sha\d+)$|^p[a@4]s+w[o0]rd|^(?:test|demo|admin|user|root|guest|qwerty|abc|foo)\w{0,2}\d{1,6}!?$`,
	`^[A-Za-z_]+\d{0,5}[A-Za-z_]*(?:(?:\.|->|::)[A-Za-z_]+\d{0,5}[A-Za-z_]*)+$`, // a field
	`^[a-z]+(?:[-_][a-z]+){2,}(?:[-_]?\d+)?(?:[-_][a-z]+)*$`,                    // words
	`^[A-Za-z]+\d{1,2}$|^[a-z]+[A-Z][A-Za-z]*\d?$|^[A-Z][A-Z0-9_]+$`,
	`^(?:[./~#@*%]|u00[0-9a-f]{2}|[A-Za-z]:\\)|://|^(?:vault|op|arn|ssm|env|file|secret|sops|kms|aws|gcp|azure|projects|sha\d+|argon2\w*|scrypt|pbkdf2\w*|AES\w*|!\w+)[:/]`,
)

// notSecrets are what they have in the place of a key.
var notSecrets = allow("",
	`^[^0-9]*$|^[\d.,:_/-]+$`,
	`(?i)xxxx|example|placeholder|your[-_]|change[-_]?me|redacted|dummy|sample|0000000|1234567|abcdef1`,
	// Words, numbers and versions, as in a name or a path.
	`^[./~]?(?:[A-Za-z]+|v?\d{1,4})(?:[-_./:+]+(?:[A-Za-z]*\d{0,2}|v?\d{1,4}))*$`,
	`^[\w-]+\.[\w.-]+\.(?:com|net|org|io|dev|cloud|local|internal)$|://|^/(?:[\w.-]+/)+[\w.-]*$`,
	identifier,
)

// identifier is a name in code, also one with a number in it, and a field.
const identifier = `^[A-Za-z]+\d{1,5}[A-Za-z]*$|^[A-Za-z_]+\d{0,5}[A-Za-z_]*(?:(?:\.|->|::)[A-Za-z_]+\d{0,5}[A-Za-z_]*)+$|^[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+$`

// notAssigned are names, with what they are given, that are no secret's: those
// of an identifier, of what is published and of a checksum.
var notAssigned = allow("match",
	`(?i)(?:page|cursor|continuation|next|csrf|xsrf|idempotency|cache|public|client|request|sync|pagination)[ _.-]?(?:token|key)\W`,
	`(?i)(?:access|api|auth|key|secret|token)[ _.-]?(?:key[ _.-]?)?id["'\s\\]*[:=]`,
	`(?i)checksum/|h1:[a-z0-9+/]{43}=`,
)

// curlPlaceholders are what documents have in the place of a token.
var curlPlaceholders = allow("", `(?i)your[-_ ]|sample|dummy|generate|example|placeholder|insert[-_]|replace[-_]|[-_](?:token|key|secret)[-_](?:here|value)`, `^[a-z]+(?:[-_][a-z]+)+$`)

// allow returns an allowlist for what matches any of the patterns: a secret, or
// with target "match" its name and itself. gitleaks joins patterns as they are,
// so that a flag of one would be one of those that follow it.
func allow(target string, patterns ...string) *config.Allowlist {
	a := &config.Allowlist{RegexTarget: target}
	for _, p := range patterns {
		a.Regexes = append(a.Regexes, regexp.MustCompile("(?:"+p+")"))
	}
	return a
}
