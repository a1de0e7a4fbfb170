package detect

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// FuzzReadText: the engine's reader takes no more than it may, loses nothing, and
// knows the end from a text that was cut short.
func FuzzReadText(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02ab"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var again bytes.Buffer
		for {
			text, err := ReadText(r)
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				if !bytes.Equal(again.Bytes(), in) {
					t.Fatal("something was lost")
				}
				return
			}
			if err != nil {
				if again.Len() >= len(in) {
					t.Fatal("an error at the end")
				}
				return
			}
			if len(text) > MaxText {
				t.Fatal("too long")
			}
			if err := WriteText(&again, text); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzReadAnswer: whatever an engine says, what the caller gets are places in
// the text, or an error.
func FuzzReadAnswer(f *testing.F) {
	var b bytes.Buffer
	if err := WriteJSON(&b, Answer{Findings: []Finding{{"rule", "what", 3, 7, 1}}}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes(), 10)
	f.Add([]byte("\x00\x00\x00\x02{}"), 0)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		found, err := readAnswer(bytes.NewReader(in), size)
		if err != nil && found != nil {
			t.Fatal("findings and an error")
		}
		if len(found) > MaxFindings {
			t.Fatal("too many")
		}
		for _, x := range found {
			if x.Start < 0 || x.End < x.Start || x.End > size || x.Line < 1 || x.Rule == "" {
				t.Fatalf("%+v in %d bytes", x, size)
			}
		}
	})
}

func TestWriteTextTooLarge(t *testing.T) {
	if err := WriteText(io.Discard, make([]byte, MaxText+1)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}
