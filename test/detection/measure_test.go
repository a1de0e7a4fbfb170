package detection

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/detect/engine"
)

// A text is a piece of the corpus.
type text struct {
	family *family // nil: it holds no secret
	place  string
	path   string
	body   string
	// secret is how the secret is written in the body.
	secret string
}

// positives are the texts that hold one secret each: every nth of them.
func positives(nth int) []text {
	var list []text
	for i := range families {
		f := &families[i]
		places := f.places
		if places == nil {
			places = common
		}
		for n := 0; n < sample; n += nth {
			r := newRandom(f.name, n)
			p := places[n%len(places)]
			v := f.make(r)
			path, body, secret := p.write(r, name(pick(r, f.keys)), v)
			list = append(list, text{family: f, place: p.name, path: path, body: body, secret: secret})
		}
	}
	return list
}

// copies is how many texts of each kind hold no secret.
const copies = 8

func negatives(nth int) []text {
	var list []text
	for _, c := range cleans {
		for n := 0; n < copies; n += nth {
			list = append(list, text{place: c.name, path: c.path, body: c.write(newRandom(c.name, n))})
		}
	}
	return list
}

// message is what the interceptor scans of a message that holds a text: its
// JSON, and each string in it without escapes. See texts in package mcp.
func message(body string, n int) string {
	var m any
	switch n % 3 {
	case 0: // what vault_run returns
		out := map[string]any{"exit_code": 0, "stdout": body, "stderr": "", "timed_out": false}
		m = map[string]any{"jsonrpc": "2.0", "id": n, "result": map[string]any{
			"content": []any{map[string]any{"type": "text", "text": marshal(out)}}, "structuredContent": out,
		}}
	case 1:
		m = map[string]any{"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": map[string]any{
			"name": "vault_run", "arguments": map[string]any{"command": []string{"sh", "-c", body}},
		}}
	default:
		m = map[string]any{"jsonrpc": "2.0", "id": n, "result": map[string]any{
			"content": []any{map[string]any{"type": "text", "text": body}},
		}}
	}
	scanned := marshal(m)
	var walk func(v any, depth int)
	walk = func(v any, depth int) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(keys(v)) {
				walk(v[k], depth)
			}
		case []any:
			for _, e := range v {
				walk(e, depth)
			}
		case string:
			if quoted(v) == v {
				return
			}
			scanned += "\n" + v
			var inner any
			if depth < 2 && json.Unmarshal([]byte(v), &inner) == nil {
				walk(inner, depth+1)
			}
		}
	}
	var plain any
	if err := json.Unmarshal([]byte(scanned), &plain); err != nil {
		panic(err)
	}
	walk(plain, 0)
	return scanned
}

func keys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// A verdict is what the engine said of a text.
type verdict struct {
	right []string // the rules that found the secret, sorted
	wrong []string // a rule for each finding that is none
}

// judge compares the findings with where the secret is: in a message it is there
// several times, with more or fewer escapes.
func judge(scanned, secret string, findings []detect.Finding) verdict {
	var spans [][2]int
	for depth := 0; secret != "" && depth < 3; depth++ {
		for at := 0; ; {
			next := strings.Index(scanned[at:], secret)
			if next < 0 {
				break
			}
			at += next
			spans = append(spans, [2]int{at, at + len(secret)})
			at += len(secret)
		}
		secret = quoted(secret)
	}
	var v verdict
	for _, f := range findings {
		hit := slices.ContainsFunc(spans, func(s [2]int) bool { return f.Start < s[1] && f.End > s[0] })
		switch {
		case !hit:
			v.wrong = append(v.wrong, f.Rule)
		case !slices.Contains(v.right, f.Rule):
			v.right = append(v.right, f.Rule)
		}
	}
	slices.Sort(v.right)
	slices.Sort(v.wrong)
	return v
}

// A pair is what the engine said of a text as a file and within a message.
type pair struct{ file, message verdict }

// measure scans all texts both ways.
func measure(t *testing.T, e *engine.Engine, texts []text) []pair {
	t.Helper()
	pairs := make([]pair, len(texts))
	work := make(chan int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range work {
				scan := func(s, path string) verdict {
					found, err := e.Scan([]byte(s), path)
					if err != nil {
						t.Errorf("%s: %v", texts[i].place, err)
					}
					return judge(s, texts[i].secret, found)
				}
				pairs[i] = pair{scan(texts[i].body, texts[i].path), scan(message(texts[i].body, i), "")}
			}
		})
	}
	for i := range texts {
		if texts[i].secret != "" && !strings.Contains(texts[i].body, texts[i].secret) {
			t.Errorf("%s in %s: the text does not hold the secret", texts[i].family.name, texts[i].place)
		}
		work <- i
	}
	close(work)
	wg.Wait()
	return pairs
}

// A score counts texts.
type score struct {
	texts, bytes, lines int
	fileOwn, fileAny    int // the secret was found by a rule that knows it, by any
	messageAny          int // the message is blocked for the secret
	fileWrong           int // findings that are none
	messageWrong        int // messages blocked for something that is none
}

func (s *score) add(t text, p pair) {
	s.texts++
	s.bytes += len(t.body)
	s.lines += strings.Count(t.body, "\n")
	if t.family != nil && slices.ContainsFunc(p.file.right, func(rule string) bool { return slices.Contains(t.family.rules, rule) }) {
		s.fileOwn++
	}
	if len(p.file.right) > 0 {
		s.fileAny++
	}
	if len(p.message.right) > 0 {
		s.messageAny++
	}
	s.fileWrong += len(p.file.wrong)
	if len(p.message.wrong) > 0 {
		s.messageWrong++
	}
}

func (s *score) percent(n int) string {
	return fmt.Sprintf("%.1f", 100*float64(n)/float64(max(s.texts, 1)))
}
