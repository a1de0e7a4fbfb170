package mask

import (
	"bytes"
	"slices"
	"unicode"
)

// minDistinct is how many different bytes a value has at least that is masked:
// ------ is in many outputs.
const minDistinct = 3

// judge says why v, which is trimmed, is not masked, or "".
func judge(v []byte) string {
	if len(v) < minPattern {
		return "too short"
	}
	var seen [256]bool
	distinct := 0
	for _, c := range v {
		if !seen[c] {
			seen[c] = true
			distinct++
		}
	}
	if distinct < minDistinct {
		return "fewer than 3 different characters"
	}
	if len(v) <= maxWord {
		if slices.Contains(commonWords[:], string(bytes.ToLower(v))) {
			return "a common word"
		}
	}
	return ""
}

// trim returns v without the white space around it, which is no part of any
// secret, and which programs strip or add: what Unicode calls so, as a no-break
// space that was copied along, and the byte order mark that JavaScript's trim
// and readers of text files take away too.
func trim(v []byte) []byte {
	return bytes.TrimFunc(v, func(r rune) bool { return unicode.IsSpace(r) || r == '\ufeff' })
}

const maxWord = 24

// commonWords are values, in lower case, that are no secret and that outputs are
// full of.
var commonWords = [...]string{
	"enable", "enabled", "disable", "disabled", "active", "inactive", "default", "undefined",
	"production", "staging", "development", "testing", "preview", "sandbox", "release",
	"warning", "notice", "verbose", "silent",
	"localhost", "127.0.0.1", "0.0.0.0",
	"postgres", "postgresql", "mariadb", "mongodb", "sqlite3", "memcached", "rabbitmq", "elasticsearch",
	"string", "number", "boolean", "object", "public", "private", "internal", "external",
	"primary", "secondary", "replica", "master",
	"server", "client", "worker", "service", "backend", "frontend", "database",
	"username", "password", "secret", "changeme", "unknown",
	"require", "required", "prefer", "verify-ca", "verify-full",
	"us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1",
	"eu-west-1", "eu-west-2", "eu-west-3", "eu-north-1", "eu-central-1",
	"ap-south-1", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "ap-northeast-2",
	"application/json", "text/plain",
}
