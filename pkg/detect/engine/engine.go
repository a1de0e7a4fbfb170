// Package engine is what detects secrets: gitleaks with its rules, and a few of
// our own (rules.go). Only ov-scan links it.
//
// What it is given is bounded in size and in time. Nothing of it is logged, or
// part of an error. What gitleaks copies of it is erased: see kek.Do.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/rs/zerolog"
	"github.com/zricethezav/gitleaks/v8/config"
	gitleaks "github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/logging"
	"github.com/zricethezav/gitleaks/v8/report"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/kek"
)

// A text is scanned in pieces. A rule looks at a piece only if one of its
// keywords is in there: source code goes through a core at 1.5 MB/s in gitleaks'
// own pieces of 100 kB, and at 4 MB/s in these. Also, all cores have work.
const (
	pieceSize = 8 << 10  // where a match may start
	lead      = 512      // before it, what a rule may want to see before a secret
	tail      = 2 << 10  // behind it, for the match's end
	maxToken  = 16 << 10 // by which a piece grows at either end so as not to cut a word in two
)

// decodeDepth is how often what looks like base64, hex or percent encoding is
// decoded and scanned again. Kubernetes' secrets need 1, Helm's 2.
const decodeDepth = 2

// An Engine is a set of rules. It is safe for concurrent use.
type Engine struct {
	message, file detectors     // file heeds gitleaks:allow
	byPath        []config.Rule // that judge a file by its name alone
}

// detectors are the same twice: to decode takes as long as all else, so it is
// done only where something may be encoded.
type detectors struct{ plain, decoding *gitleaks.Detector }

// New loads the rules, which takes some 75 ms.
func New() (*Engine, error) {
	// gitleaks logs what it finds, and what it does not find worth reporting.
	logging.Logger = zerolog.Nop()
	zerolog.SetGlobalLevel(zerolog.Disabled)
	widenOnce()
	gl, err := gitleaks.NewDetectorDefaultConfig()
	if err != nil {
		return nil, fmt.Errorf("cannot load gitleaks' rules: %w", err)
	}
	e := &Engine{}
	rules := gl.Config
	for id, rule := range rules.Rules {
		if rule.Regex == nil {
			e.byPath = append(e.byPath, rule)
			delete(rules.Rules, id)
		}
	}
	if err := addOwn(&rules); err != nil {
		return nil, err
	}
	load := func(depth int, message bool) *gitleaks.Detector {
		d := gitleaks.NewDetector(rules)
		d.MaxDecodeDepth, d.IgnoreGitleaksAllow = depth, message
		return d
	}
	e.message = detectors{load(0, true), load(decodeDepth, true)}
	e.file = detectors{load(0, false), load(decodeDepth, false)}
	return e, nil
}

// gitleaks has its rules as one text.
var widenOnce = sync.OnceFunc(func() { config.DefaultConfig = widen.Replace(config.DefaultConfig) })

// Scan returns what looks like a secret in text, by its offset: at most
// detect.MaxFindings. It does not change the text.
//
// path is the file that the text is of: some rules are for files of one kind, or
// skip others, such as lock files. A comment gitleaks:allow on a line lets
// through what is found there. Without a path the text is a message, and whoever
// wrote it must not be able to say so: the comment is not heeded.
//
// The errors are detect.ErrTooLarge, detect.ErrTimeout after detect.MaxTime, and
// one that says that gitleaks failed.
func (e *Engine) Scan(text []byte, path string) ([]detect.Finding, error) {
	if len(text) > detect.MaxText {
		return nil, detect.ErrTooLarge
	}
	d := e.message
	if path != "" {
		if e.Skip(path) {
			return nil, nil
		}
		d = e.file
	}
	ctx, cancel := context.WithTimeout(context.Background(), detect.MaxTime)
	defer cancel()
	found := make(chan result, 1)
	go func() { found <- scanPieces(ctx, d, text, path) }()
	// gitleaks looks at the context between two rules only. Whoever waits for it
	// does not wait longer for that.
	select {
	case r := <-found:
		if r.err != nil {
			return nil, r.err
		}
		return order(append(e.byName(path), r.findings...)), nil
	case <-ctx.Done():
		return nil, detect.ErrTimeout
	}
}

type result struct {
	findings []detect.Finding
	err      error
}

// scanPieces scans all pieces, as many at a time as there are cores.
func scanPieces(ctx context.Context, d detectors, text []byte, path string) result {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := newLines(text)
	all := result{findings: append(privateKeys(d.plain, text, lines), assigned(ctx, d.plain, text, lines)...)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	cores := make(chan struct{}, runtime.GOMAXPROCS(0))
	for start := 0; start < len(text) && ctx.Err() == nil; start += pieceSize {
		cores <- struct{}{}
		wg.Go(func() {
			defer func() { <-cores }()
			r := scanPiece(ctx, d, text, start, path, lines)
			mu.Lock()
			defer mu.Unlock()
			if r.err != nil {
				cancel() // the others
				all.err = cmp.Or(all.err, r.err)
			}
			if len(all.findings) < 10*detect.MaxFindings { // else a flood, whose end nobody sees
				all.findings = append(all.findings, r.findings...)
			}
		})
	}
	wg.Wait()
	if all.err == nil && ctx.Err() != nil {
		all.err = detect.ErrTimeout
	}
	return all
}

// scanPiece returns what starts in the piece at start.
func scanPiece(ctx context.Context, ds detectors, text []byte, start int, path string, lines lines) (r result) {
	defer func() {
		if recover() != nil { // with what may hold a part of the text
			r = result{err: errors.New("gitleaks failed on the text")}
		}
	}()
	from, to := piece(text, start)
	// Nothing keeps the string: the text is the caller's.
	raw := unsafe.String(unsafe.SliceData(text[from:to]), to-from) //nolint:gosec // nor changes it meanwhile
	d := ds.plain
	if mayBeEncoded(raw) {
		d = ds.decoding
	}
	found := make([]detect.Finding, 0, 16)
	kek.Do(func() {
		for _, f := range d.DetectContext(ctx, gitleaks.Fragment{Raw: raw, FilePath: path}) { //nolint:staticcheck // there is no other way in v8
			if f.RuleID == privateKeyRule && !isPrivateKey([]byte(f.Secret)) {
				continue
			}
			at, end := locate(d.Config.Rules[f.RuleID], raw, f)
			at, end = from+at, from+end
			if at < start || at >= start+pieceSize || len(found) > detect.MaxFindings {
				continue
			}
			// Text with one escape in it may match both as it is and decoded.
			if isDecoded(f) && slices.ContainsFunc(found, func(p detect.Finding) bool {
				return p.Rule == f.RuleID && p.Start < end && at < p.End
			}) {
				continue
			}
			found = append(found, detect.Finding{
				Rule: strings.Clone(f.RuleID), Description: strings.Clone(f.Description),
				Start: at, End: end, Line: lines.of(at),
			})
		}
	})
	if ctx.Err() != nil {
		return result{err: detect.ErrTimeout}
	}
	return result{findings: found}
}

// piece returns what is to be seen of the text to find what starts between start
// and start+pieceSize. It does not begin or end within a word: half a word can
// look like another secret, and half of a base64 text cannot be decoded.
func piece(text []byte, start int) (from, to int) {
	from = max(start-lead, 0)
	for least := max(from-maxToken, 0); from > least && inWord(text[from-1]); {
		from--
	}
	to = min(start+pieceSize+tail, len(text))
	for most := min(to+maxToken, len(text)); to < most && inWord(text[to]); {
		to++
	}
	return from, to
}

// mayBeEncoded reports whether raw has what gitleaks would try to decode: 16
// characters of base64 or 32 of hex in a row, or an escape of a URL or of
// Unicode. Identifiers are base64, too: what has no digit is taken for one.
func mayBeEncoded(raw string) bool {
	var run, lower, upper, digit int
	for i := range len(raw) {
		switch c := raw[i]; {
		case c >= 'a' && c <= 'z':
			lower++
		case c >= 'A' && c <= 'Z':
			upper++
		case c >= '0' && c <= '9':
			digit++
		case c == '+', c == '/', c == '_', c == '-':
		case c == '%', c == '\\', c == 'U' && strings.HasPrefix(raw[i:], "U+"):
			if escaped.MatchString(raw[i:min(i+6, len(raw))]) {
				return true
			}
			run, lower, upper, digit = 0, 0, 0, 0
			continue
		default:
			run, lower, upper, digit = 0, 0, 0, 0
			continue
		}
		run++
		if run >= 16 && digit > 0 && lower > 0 && upper > 0 || run >= 32 && digit > 0 {
			return true
		}
	}
	return false
}

var escaped = regexp.MustCompile(`^(?:%[0-9A-Fa-f]{2}|\\?u[0-9A-Fa-f]{4}|U\+[0-9A-Fa-f]{4})`)

func inWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+/=_-.%", c) >= 0
}

// locate returns the offsets of a finding's secret in raw. gitleaks itself tells
// lines and columns of the match that the secret is in, and the text of both.
func locate(rule config.Rule, raw string, f report.Finding) (start, end int) {
	// Columns count from the newline before the line, or else from 1.
	start = min(max(newline(raw, f.StartLine)+f.StartColumn-1, 0), len(raw))
	if isDecoded(f) { // this is where the encoded text is
		end = newline(raw, f.EndLine) + f.EndColumn
		if f.EndColumn == 0 || end <= start || end > len(raw) {
			end = len(raw) // gitleaks knows no column in a last line without a newline
		}
		return start, end
	}
	// gitleaks leaves newlines around the match out of it.
	if at := strings.Index(raw[start:], f.Match); at > 0 {
		start += at
	}
	// The secret is a group of the match: this is how gitleaks chooses it.
	groups := rule.Regex.FindStringSubmatchIndex(f.Match)
	for i := 2; i+1 < len(groups); i += 2 {
		if groups[i] < groups[i+1] && (rule.SecretGroup == 0 || i == 2*rule.SecretGroup) {
			return start + groups[i], min(start+groups[i+1], len(raw))
		}
	}
	return start, min(start+len(f.Match), len(raw))
}

func isDecoded(f report.Finding) bool {
	return slices.ContainsFunc(f.Tags, func(tag string) bool { return strings.HasPrefix(tag, "decode-depth:") })
}

// newline returns the offset of the nth newline, or 0 for the zeroth.
func newline(raw string, n int) int {
	at := -1
	for range n {
		next := strings.IndexByte(raw[at+1:], '\n')
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return max(at, 0)
}

// Skip reports whether the rules leave out a file, or a folder with all that is
// in it, whatever it holds: lock files, pictures, node_modules.
func (e *Engine) Skip(path string) bool {
	return slices.ContainsFunc(e.file.plain.Config.Allowlists, func(a *config.Allowlist) bool { return a.PathAllowed(path) })
}

// byName returns what the rules say that judge a file by its name.
func (e *Engine) byName(path string) []detect.Finding {
	var found []detect.Finding
	for _, rule := range e.byPath {
		if path != "" && rule.Path.MatchString(path) {
			found = append(found, detect.Finding{Rule: rule.RuleID, Description: rule.Description, Line: 1})
		}
	}
	return found
}

// order sorts the findings, and leaves out what a rule found within what it
// found already, as it does where pieces overlap.
func order(all []detect.Finding) []detect.Finding {
	slices.SortFunc(all, func(a, b detect.Finding) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(b.End, a.End), strings.Compare(a.Rule, b.Rule))
	})
	ends := map[string]int{}
	all = slices.DeleteFunc(all, func(f detect.Finding) bool {
		end, seen := ends[f.Rule]
		if seen && f.End <= end {
			return true
		}
		ends[f.Rule] = f.End
		return false
	})
	all = all[:min(len(all), 2*detect.MaxFindings)]
	// What a rule for anything has found is left to the rule that knows what it is.
	all = slices.DeleteFunc(slices.Clone(all), func(f detect.Finding) bool {
		rank := slices.Index(generic, f.Rule)
		return rank >= 0 && slices.ContainsFunc(all, func(g detect.Finding) bool {
			return g.Start < f.End && f.Start < g.End && slices.Index(generic, g.Rule) < rank
		})
	})
	return all[:min(len(all), detect.MaxFindings)]
}

// lines are the offsets of a text's newlines.
type lines []int

func newLines(text []byte) lines {
	var l lines
	for i, c := range text {
		if c == '\n' {
			l = append(l, i)
		}
	}
	return l
}

// of returns the line, from 1, that the offset is in.
func (l lines) of(offset int) int {
	n, _ := slices.BinarySearch(l, offset)
	return n + 1
}
