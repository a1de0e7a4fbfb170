package apikey_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/opaquevault/ov/pkg/apikey"
)

var account = [16]byte{0: 1, 15: 16}

func TestToken(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		token := apikey.New(account)
		text := token.Text()
		if !regexp.MustCompile(`^ov_live_[a-z2-7]{84}$`).Match(text) || len(text) != apikey.Size {
			t.Fatalf("%q is no API key", text)
		}
		if seen[string(text)] || seen[token.ID()] {
			t.Fatal("two keys are the same")
		}
		seen[string(text)], seen[token.ID()] = true, true
		again, err := apikey.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if again.Account() != account || again.Hash() != token.Hash() || again.ID() != token.ID() || !bytes.Equal(again.Text(), text) {
			t.Fatal("what is read is not what was written")
		}
		if !apikey.ValidID(token.ID()) || !token.Hash().Equal(again.Hash()) {
			t.Fatal("the id or hash is not valid")
		}
	}
}

// What Python's base64, zlib and hashlib make of the bytes 0 to 47.
func TestVector(t *testing.T) {
	const text = "ov_live_aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypsaijcemsckjrhfausukzmfuxc6bjaefyq"
	token, err := apikey.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if token.Account() != [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} {
		t.Errorf("the account is %x", token.Account())
	}
	if want := "18521766eb2370db"; token.ID() != want {
		t.Errorf("the id is %s, not %s", token.ID(), want)
	}
}

func TestParse(t *testing.T) {
	good := string(apikey.New(account).Text())
	// The last character has bits that say nothing.
	last := strings.IndexByte("abcdefghijklmnopqrstuvwxyz234567", good[len(good)-1])
	for name, test := range map[string]struct {
		text string
		want error
	}{
		"nothing":          {"", apikey.ErrMalformed},
		"prefix alone":     {apikey.Prefix, apikey.ErrMalformed},
		"other prefix":     {"ov_test_" + good[8:], apikey.ErrMalformed},
		"one too few":      {good[:len(good)-1], apikey.ErrMalformed},
		"one too many":     {good + "a", apikey.ErrMalformed},
		"end of line":      {good + "\n", apikey.ErrMalformed},
		"line in it":       {good[:20] + "\n" + good[21:], apikey.ErrMalformed},
		"upper case":       {strings.ToUpper(good), apikey.ErrMalformed},
		"half upper case":  {good[:8] + strings.ToUpper(good[8:]), apikey.ErrMalformed},
		"padding":          {good[:len(good)-1] + "=", apikey.ErrMalformed},
		"a 1":              {good[:30] + "1" + good[31:], apikey.ErrMalformed},
		"two exchanged":    {good[:30] + "ab" + good[32:], apikey.ErrMistyped},
		"bits to no avail": {good[:len(good)-1] + string("abcdefghijklmnopqrstuvwxyz234567"[last^1]), apikey.ErrMistyped},
	} {
		_, err := apikey.Parse([]byte(test.text))
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && len(test.text) > 20 && strings.Contains(err.Error(), test.text[8:16]) {
			t.Errorf("%s: the error holds some of the key: %v", name, err)
		}
	}
}

// Every typo of one character is noticed.
func TestTypos(t *testing.T) {
	good := apikey.New(account).Text()
	for i := range good {
		for _, c := range []byte("abcdefghijklmnopqrstuvwxyz234567") {
			bad := bytes.Clone(good)
			if bad[i] == c {
				continue
			}
			bad[i] = c
			if _, err := apikey.Parse(bad); err == nil {
				t.Fatalf("a typo at %d was not noticed", i)
			}
		}
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"0123456789abcdef": true, "0123456789abcdeF": false, "0123456789abcde": false, "0123456789abcdeff": false, "": false, "0123456789abcdeg": false,
	} {
		if apikey.ValidID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

func TestTokenDoesNotShow(t *testing.T) {
	token := apikey.New(account)
	text := token.Text()
	hidden := []string{string(text[8:40]), string(text[40:])}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb, token, *token)
	}
	b, err := json.Marshal(map[string]any{"a": token, "b": *token})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", token, "value", *token)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", token, "value", *token)
	for _, h := range hidden {
		if strings.Contains(out.String(), h) {
			t.Errorf("a token shows its secret: %s", out.String())
		}
	}
	if strings.Contains(out.String(), "secret") {
		t.Errorf("a token shows its fields: %s", out.String())
	}
	token.Wipe()
	if again := token.Text(); bytes.Equal(again[40:], text[40:]) {
		t.Error("a wiped token has its secret")
	}
}

func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, text []byte) {
		token, err := apikey.Parse(text)
		if err != nil {
			if !errors.Is(err, apikey.ErrMalformed) && !errors.Is(err, apikey.ErrMistyped) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(token.Text(), text) {
			t.Errorf("%q is read and written as %q", text, token.Text())
		}
	})
}
