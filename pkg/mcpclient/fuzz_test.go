package mcpclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/tailscale/hujson"
)

// FuzzEdit: of any text comes an error, or a text that the client can read and
// in which all that was there is there still, in its order, but for our entry.
func FuzzEdit(f *testing.F) {
	for _, text := range texts {
		for _, c := range clients {
			f.Add([]byte(strings.ReplaceAll(text.text, "KEY", c.key)), c.key == "servers", c.jsonc, false)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, servers, jsonc, force bool) {
		c := &Client{Name: "c", Title: "C", key: "mcpServers", jsonc: jsonc}
		if servers {
			c.key = "servers"
		}
		whole := bytes.Clone(src)
		in, err := set(src, c, DefaultName, entry, force)
		if !bytes.Equal(src, whole) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			known(t, err)
			return
		}
		want := decode(t, c, src)
		had := drop(want, c.key)
		got := decode(t, c, in.text)
		ours := drop(got, c.key)
		if had == nil {
			delete(got, c.key+" empty")
			delete(want, c.key+" empty")
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q became %q", src, in.text)
		}
		entryNow, _ := ours.(map[string]any)
		if entryNow["command"] != entry.Command {
			t.Fatalf("no entry in %q", in.text)
		}
		if in.action == Added && len(bytes.Trim(bytes.TrimPrefix(src, byteOrderMark), blank)) > 0 && !within(src, in.text) {
			t.Fatalf("%q lost something: %q", src, in.text)
		}
		again, err := set(in.text, c, DefaultName, entry, false)
		if err != nil || again.action != Unchanged || !bytes.Equal(again.text, in.text) {
			t.Fatalf("not the same again: %q, %v", in.text, err)
		}

		out, err := unset(in.text, c, DefaultName)
		if err != nil || out.action != Removed {
			t.Fatalf("cannot remove it from %q: %v", in.text, err)
		}
		got = decode(t, c, out.text)
		if drop(got, c.key) != nil {
			t.Fatalf("%q still holds it", out.text)
		}
		delete(got, c.key+" empty")
		delete(want, c.key+" empty")
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q became %q", in.text, out.text)
		}
		if in.action == Added && bytes.Contains(src, []byte(c.key)) && !within(src, out.text) {
			t.Fatalf("%q, %q lost something: %q", src, in.text, out.text)
		}
		if !within(out.text, in.text) {
			t.Fatalf("removing made more of %q: %q", in.text, out.text)
		}
	})
}

// known fails on an error that is none of the package's.
func known(t *testing.T, err error) {
	if !errors.As(err, new(*Error)) && !errors.As(err, new(*Foreign)) {
		t.Fatal(err)
	}
}

// decode reads a text as the client does.
func decode(t *testing.T, c *Client, text []byte) map[string]any {
	text = bytes.TrimPrefix(text, byteOrderMark)
	if len(bytes.Trim(text, blank)) == 0 {
		return map[string]any{}
	}
	if c.jsonc {
		var err error
		if text, err = hujson.Standardize(append(bytes.Clone(text), '\n')); err != nil {
			t.Fatal(err)
		}
	}
	var v map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}

// drop takes our entry away and returns it. An object that holds no other
// becomes a mark of its own, since install makes it.
func drop(v map[string]any, key string) any {
	servers, ok := v[key].(map[string]any)
	if !ok {
		return nil
	}
	e, ok := servers[DefaultName]
	delete(servers, DefaultName)
	if len(servers) == 0 {
		delete(v, key)
		v[key+" empty"] = true
	}
	if !ok {
		return nil
	}
	return e
}

// within tells whether all of part is in whole, in its order, white space aside.
func within(part, whole []byte) bool {
	for _, b := range part {
		if bytes.IndexByte([]byte(blank), b) >= 0 {
			continue
		}
		i := bytes.IndexByte(whole, b)
		if i < 0 {
			return false
		}
		whole = whole[i+1:]
	}
	return true
}
