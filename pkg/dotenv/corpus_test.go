package dotenv

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/corpus/*.json anew, from npm dotenv")

type corpusFile struct {
	name string
	src  []byte
}

// corpus returns testdata/corpus/*.env: files that people write, each with one
// trait of the dialect. Beside each is what npm dotenv makes of it, as JSON.
func corpus(tb testing.TB) []corpusFile {
	tb.Helper()
	paths, err := filepath.Glob("testdata/corpus/*.env")
	if err != nil || len(paths) < 50 {
		tb.Fatalf("%d files in testdata/corpus: %v", len(paths), err)
	}
	files := make([]corpusFile, len(paths))
	for i, path := range paths {
		src, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		files[i] = corpusFile{strings.TrimSuffix(path, ".env"), src}
	}
	return files
}

// TestCorpus needs no node: it takes npm dotenv's word from the JSON files.
func TestCorpus(t *testing.T) {
	for _, file := range corpus(t) {
		t.Run(filepath.Base(file.name), func(t *testing.T) {
			golden, err := os.ReadFile(file.name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var want npmPairs
			if err := json.Unmarshal(golden, &want); err != nil {
				t.Fatal(err)
			}
			got, err := checkParse(t, file.src)
			if err != nil {
				t.Fatal(err)
			}
			if g := known(ours(got)); !equal(g, want) {
				t.Errorf("got  %q\nwant %q", g, want)
			}
		})
	}
}

// TestCorpusAgainstNpm checks that the JSON files are npm dotenv's word.
func TestCorpusAgainstNpm(t *testing.T) {
	o := newOracle(t)
	files := corpus(t)
	all := make([][]byte, len(files))
	for i, file := range files {
		all[i] = file.src
	}
	if n := o.compare(t, all); n != len(files) {
		t.Errorf("Parse refused %d of %d files", len(files)-n, len(files))
	}
	pairs, _, err := o.ask(all)
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range files {
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", " ")
		if err := enc.Encode(pairs[i]); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(file.name+".json", want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if golden, err := os.ReadFile(file.name + ".json"); err != nil || !bytes.Equal(golden, want.Bytes()) {
			t.Errorf("%s.json is not what npm dotenv yields (%v): go test -run TestCorpusAgainstNpm -update", file.name, err)
		}
	}
}
