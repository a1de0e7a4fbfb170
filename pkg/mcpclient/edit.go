package mcpclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"

	"github.com/opaquevault/ov/pkg/hint"
)

// maxDepth bounds how deep arrays and objects may be nested: what parses them
// calls itself.
const maxDepth = 1000

var byteOrderMark = []byte("\ufeff")

const blank = " \t\r\n"

// edited is a changed text, and what was changed.
type edited struct {
	text        []byte // not set if nothing is to be done
	empty       bool   // nothing is left in text but the object that holds servers
	action      Action
	now, before *Entry
}

// set adds or updates the entry in src. Its errors are an *Error or a *Foreign,
// without a file.
func set(src []byte, c *Client, name string, want Entry, force bool) (edited, error) {
	value, err := want.value()
	if err != nil {
		return edited{}, err
	}
	d, err := parse(src, c)
	if err != nil {
		return edited{}, err
	}
	holder, err := d.holder(c.key)
	if err != nil {
		return edited{}, err
	}
	if holder == nil {
		holder = d.add(d.top, c.key, &hujson.Object{}, "")
	}
	servers := holder.Value.Value.(*hujson.Object)
	m, err := d.find(servers, name)
	if err != nil {
		return edited{}, err
	}
	if m == nil {
		d.add(servers, name, value, indentOf(holder))
		return edited{text: d.pack(), action: Added, now: &want}, nil
	}
	before, err := d.ours(m)
	if errors.As(err, new(*Foreign)) && force {
		d.replace(m, value)
		return edited{text: d.pack(), action: Updated, now: &want}, nil
	}
	if err != nil {
		return edited{}, err
	}
	action := Unchanged
	entry := m.Value.Value.(*hujson.Object)
	for _, w := range value.Members {
		key := w.Name.Value.(hujson.Literal).String()
		switch have, err := d.find(entry, key); {
		case err != nil:
			return edited{}, err
		case have == nil && key == "type": // stdio is what goes without saying
		case have == nil:
			d.add(entry, key, w.Value.Value, indentOf(m))
			action = Updated
		case !equal(have.Value, w.Value):
			d.replace(have, w.Value.Value)
			action = Updated
		}
	}
	if action == Unchanged {
		before = nil
	}
	return edited{text: d.pack(), action: action, now: &want, before: before}, nil
}

// unset removes the entry from src. Its errors are those of set.
func unset(src []byte, c *Client, name string) (edited, error) {
	nothing := edited{action: Absent}
	d, err := parse(src, c)
	if err != nil {
		return nothing, err
	}
	holder, err := d.holder(c.key)
	if err != nil || holder == nil {
		return nothing, err
	}
	servers := holder.Value.Value.(*hujson.Object)
	m, err := d.find(servers, name)
	if err != nil || m == nil {
		return nothing, err
	}
	before, err := d.ours(m)
	if err != nil {
		return nothing, err
	}
	d.remove(servers, m)
	return edited{
		text: d.pack(), action: Removed, before: before,
		empty: len(d.top.Members) == 1 && len(servers.Members) == 0 && d.root.IsStandard(), // not even a comment
	}, nil
}

// document is a client's file.
type document struct {
	src  []byte // as parsed, for line numbers
	mark bool   // it starts with a byte order mark
	root hujson.Value
	top  *hujson.Object // in root

	newline string // "\n" or "\r\n"
	unit    string // one step of indentation
	gap     string // between a colon and a value, and between members on one line
	compact bool   // all on one line
}

func parse(src []byte, c *Client) (*document, error) {
	d := &document{newline: "\n", unit: "  ", gap: " "}
	src, d.mark = bytes.CutPrefix(src, byteOrderMark)
	if len(bytes.Trim(src, blank)) == 0 {
		src = []byte("{}\n")
	}
	d.src = src
	if err := d.nesting(); err != nil {
		return nil, err
	}
	// The parser wants an end to the last line, if that is a comment. pack takes
	// it away again.
	root, err := hujson.Parse(append(bytes.Clone(src), '\n'))
	if !c.jsonc {
		syntax := (*json.SyntaxError)(nil)
		if serr := json.Unmarshal(src, new(json.RawMessage)); errors.As(serr, &syntax) {
			msg := "not valid JSON"
			if err == nil {
				msg += ": " + c.Title + " reads no comments and no trailing commas"
			}
			return nil, d.at(int(syntax.Offset)-1, msg)
		}
	}
	if err != nil { // whose text may quote the file
		line := 0
		_, _ = fmt.Sscanf(err.Error(), "hujson: line %d", &line)
		return nil, &Error{Line: min(line, d.line(len(src))), Msg: "not valid JSON"}
	}
	top, ok := root.Value.(*hujson.Object)
	if !ok {
		return nil, d.at(root.StartOffset, "not a JSON object")
	}
	d.root, d.top = root, top
	if i := bytes.IndexByte(src, '\n'); i > 0 && src[i-1] == '\r' {
		d.newline = "\r\n"
	}
	if len(top.Members) > 0 {
		first := &top.Members[0]
		if d.compact = !onOwnLine(first); !d.compact {
			d.unit = indentOf(first)
		}
		if len(first.Value.BeforeExtra) == 0 {
			d.gap = ""
		}
	}
	return d, nil
}

// pack returns the text.
func (d *document) pack() []byte {
	text := bytes.TrimSuffix(d.root.Pack(), []byte("\n"))
	if d.mark {
		text = append(bytes.Clone(byteOrderMark), text...)
	}
	return text
}

func (d *document) line(offset int) int {
	return 1 + bytes.Count(d.src[:max(0, min(offset, len(d.src)))], []byte("\n"))
}

func (d *document) at(offset int, msg string) error {
	return &Error{Line: d.line(offset), Msg: msg}
}

// nesting refuses what is nested too deep.
func (d *document) nesting() error {
	depth, quoted := 0, false
	for i := 0; i < len(d.src); i++ {
		c := d.src[i]
		switch {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '/':
			i += comment(d.src[i:])
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
		if depth > maxDepth {
			return d.at(i, "nested too deep")
		}
	}
	return nil
}

// comment returns the length of the comment that src starts with, but for its
// last byte; 0 if there is none.
func comment(src []byte) int {
	var end string
	switch {
	case bytes.HasPrefix(src, []byte("//")):
		end = "\n"
	case bytes.HasPrefix(src, []byte("/*")):
		end = "*/"
	default:
		return 0
	}
	n := bytes.Index(src[2:], []byte(end))
	if n < 0 {
		return len(src)
	}
	return 2 + n + len(end) - 1
}

// find returns the member of that name, nil if there is none. Of two, clients
// take the last, and people see the first.
func (d *document) find(obj *hujson.Object, name string) (*hujson.ObjectMember, error) {
	var found *hujson.ObjectMember
	for i := range obj.Members {
		m := &obj.Members[i]
		if m.Name.Value.(hujson.Literal).String() != name {
			continue
		}
		if found != nil {
			return nil, hint.Wrap(d.at(m.Name.StartOffset, "the key "+name+" stands here a second time"), "remove one of them by hand")
		}
		found = m
	}
	return found, nil
}

// holder returns the member that holds the servers, nil if there is none.
func (d *document) holder(key string) (*hujson.ObjectMember, error) {
	m, err := d.find(d.top, key)
	if err != nil || m == nil {
		return nil, err
	}
	if _, ok := m.Value.Value.(*hujson.Object); !ok {
		return nil, d.at(m.Value.StartOffset, key+" is not a JSON object")
	}
	return m, nil
}

// ours returns the entry of a member if that is for ov mcp serve, a *Foreign if
// it is not.
func (d *document) ours(m *hujson.ObjectMember) (*Entry, error) {
	foreign := &Foreign{Line: d.line(m.Name.StartOffset), Name: m.Name.Value.(hujson.Literal).String()}
	obj, ok := m.Value.Value.(*hujson.Object)
	if !ok {
		return nil, foreign
	}
	for i := range obj.Members { // no key twice
		if _, err := d.find(obj, obj.Members[i].Name.Value.(hujson.Literal).String()); err != nil {
			return nil, err
		}
	}
	text := m.Value.Clone()
	text.Standardize()
	var e Entry
	if json.Unmarshal(text.Pack(), &e) != nil || filepath.Base(e.Command) != "ov" {
		return nil, foreign
	}
	for i := range e.Args[:max(0, len(e.Args)-1)] {
		if e.Args[i] == "mcp" && e.Args[i+1] == "serve" {
			return &e, nil
		}
	}
	return nil, foreign
}

// value returns the entry as JSON.
func (e *Entry) value() (*hujson.Object, error) {
	if filepath.Base(e.Command) != "ov" { // or ours would not know it again
		return nil, hint.Errorf("install it as ov", "the program is called %q, not ov", filepath.Base(e.Command))
	}
	obj := &hujson.Object{}
	args := &hujson.Array{}
	for _, arg := range e.Args {
		if !utf8.ValidString(arg) {
			return nil, fmt.Errorf("%q is not UTF-8, as JSON has to be", arg)
		}
		args.Elements = append(args.Elements, hujson.Value{Value: hujson.String(arg)})
	}
	if !utf8.ValidString(e.Command) {
		return nil, fmt.Errorf("%q is not UTF-8, as JSON has to be", e.Command)
	}
	for _, m := range []struct {
		name  string
		value hujson.ValueTrimmed
	}{{"type", hujson.String("stdio")}, {"command", hujson.String(e.Command)}, {"args", args}} {
		obj.Members = append(obj.Members, hujson.ObjectMember{
			Name: hujson.Value{Value: hujson.String(m.name)}, Value: hujson.Value{Value: m.value},
		})
	}
	return obj, nil
}

// equal compares what two texts mean.
func equal(a, b hujson.Value) bool {
	var values [2]any
	for i, v := range []hujson.Value{a.Clone(), b.Clone()} {
		v.Standardize()
		if json.Unmarshal(v.Pack(), &values[i]) != nil {
			return false
		}
	}
	return reflect.DeepEqual(values[0], values[1])
}

// add puts a member behind the others of obj, whose closing brace has the
// indentation outer, and returns it. It is laid out as they are, and comments
// stay before it.
func (d *document) add(obj *hujson.Object, name string, value hujson.ValueTrimmed, outer string) *hujson.ObjectMember {
	m := hujson.ObjectMember{
		Name:  hujson.Value{Value: hujson.String(name)},
		Value: hujson.Value{BeforeExtra: hujson.Extra(d.gap), Value: value},
	}
	indent, ownLine, sep := outer+d.unit, !d.compact, ""
	before, after := splitTail(obj.AfterExtra)
	lineEnds := before != "" && bytes.ContainsRune(obj.AfterExtra, '\n') // as a comment may have to
	if n := len(obj.Members); n > 0 {
		last := &obj.Members[n-1]
		indent, ownLine, sep = indentOf(last), onOwnLine(last), d.gap
		if last.Value.AfterExtra != nil { // a trailing comma
			m.Value.AfterExtra = hujson.Extra{}
		}
	} else if after = ""; ownLine {
		after = d.newline + outer
	}
	if ownLine || lineEnds {
		sep = d.newline + indent
	}
	m.Name.BeforeExtra = hujson.Extra(before + sep)
	obj.AfterExtra = hujson.Extra(after)
	obj.Members = append(obj.Members, m)
	added := &obj.Members[len(obj.Members)-1]
	d.layOut(&added.Value, indent, ownLine)
	return added
}

// replace gives a member another value.
func (d *document) replace(m *hujson.ObjectMember, value hujson.ValueTrimmed) {
	m.Value.Value = value
	d.layOut(&m.Value, indentOf(m), onOwnLine(m))
}

// remove takes a member away. Comments before and behind it stay.
func (d *document) remove(obj *hujson.Object, m *hujson.ObjectMember) {
	i := 0
	for &obj.Members[i] != m {
		i++
	}
	comments := m.Name.BeforeExtra
	following := &obj.AfterExtra
	if i+1 < len(obj.Members) {
		following = &obj.Members[i+1].Name.BeforeExtra
	} else if i > 0 { // another becomes the last, with a trailing comma as this had
		before := &obj.Members[i-1].Value.AfterExtra
		if m.Value.AfterExtra == nil {
			comments = append(bytes.Clone(*before), comments...)
			*before = nil
		} else if *before == nil {
			*before = hujson.Extra{}
		}
	}
	if len(bytes.Trim(comments, blank)) > 0 {
		kept := bytes.TrimRight(comments, " \t")
		if bytes.HasPrefix(*following, []byte(d.newline)) {
			kept = bytes.TrimSuffix(kept, []byte(d.newline))
		}
		*following = append(bytes.Clone(kept), *following...)
	}
	obj.Members = append(obj.Members[:i], obj.Members[i+1:]...)
	if len(obj.Members) == 0 && len(bytes.Trim(obj.AfterExtra, blank)) == 0 {
		obj.AfterExtra = nil
	}
}

// layOut sets the white space in a new value, whose closing bracket has the
// indentation outer.
func (d *document) layOut(v *hujson.Value, outer string, ownLine bool) {
	lead := func(i int) hujson.Extra {
		switch {
		case ownLine:
			return hujson.Extra(d.newline + outer + d.unit)
		case i > 0:
			return hujson.Extra(d.gap)
		}
		return nil
	}
	var end hujson.Extra
	if ownLine {
		end = hujson.Extra(d.newline + outer)
	}
	switch x := v.Value.(type) {
	case *hujson.Object:
		for i := range x.Members {
			x.Members[i].Name.BeforeExtra = lead(i)
			x.Members[i].Value.BeforeExtra = hujson.Extra(d.gap)
			d.layOut(&x.Members[i].Value, outer+d.unit, ownLine)
			x.AfterExtra = end
		}
	case *hujson.Array:
		for i := range x.Elements {
			x.Elements[i].BeforeExtra = lead(i)
			x.AfterExtra = end
		}
	}
}

// onOwnLine tells whether a member starts a line.
func onOwnLine(m *hujson.ObjectMember) bool { return bytes.ContainsRune(m.Name.BeforeExtra, '\n') }

// indentOf returns the white space that the line of a member starts with, ""
// if the member does not start one.
func indentOf(m *hujson.ObjectMember) string {
	extra := string(m.Name.BeforeExtra)
	at := strings.LastIndexByte(extra, '\n')
	if at < 0 {
		return ""
	}
	line := extra[at+1:]
	return line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}

// splitTail splits the comments from the white space behind them: that of the
// last comment's line goes with the comment.
func splitTail(extra hujson.Extra) (comments, tail string) {
	text := string(extra)
	n := len(strings.TrimRight(text, blank))
	if n == 0 {
		return "", text
	}
	if i := strings.IndexByte(text[n:], '\n'); i >= 0 {
		n += i
		if text[n-1] == '\r' {
			n--
		}
	}
	return text[:n], text[n:]
}
