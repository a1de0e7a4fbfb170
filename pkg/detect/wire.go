package detect

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opaquevault/ov/pkg/hint"
)

// EngineArg is the one argument that makes ov-scan an engine: it says Hello on
// its standard output once its rules are loaded, then answers each text on its
// standard input with an Answer, until the input ends.
//
// A message is a frame: its length in 4 bytes, big-endian, then that many bytes.
// Those of a text are the text itself; the others are JSON.
const EngineArg = "engine"

// maxAnswer bounds an answer: MaxFindings take some 200 bytes each.
const maxAnswer = 1 << 20

// Hello is the engine's first message.
type Hello struct {
	Version string `json:"version"`
}

// An Answer holds what was found in a text, or why it could not be scanned.
type Answer struct {
	Findings []Finding `json:"findings,omitempty"`
	Fault    Fault     `json:"fault,omitempty"`
}

// A Fault is why a text could not be scanned. It is one of a few words, because
// an error's own text might hold a part of what was scanned.
type Fault string

// The faults.
const (
	FaultTimeout Fault = "timeout"
	FaultOther   Fault = "other"
)

// ReadText reads a text for the engine: at most MaxText bytes. io.EOF says that
// no more will come. The caller wipes it.
func ReadText(r io.Reader) ([]byte, error) { return readFrame(r, MaxText) }

// WriteText sends a text to the engine.
func WriteText(w io.Writer, text []byte) error {
	if len(text) > MaxText {
		return ErrTooLarge
	}
	return writeFrame(w, text)
}

// WriteJSON sends a Hello or an Answer.
func WriteJSON(w io.Writer, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(b) > maxAnswer {
		return errors.New("the answer is too large")
	}
	return writeFrame(w, b)
}

// readHello checks that the engine is of the same release.
func readHello(r io.Reader, version string) error {
	var hello Hello
	if err := readJSON(r, &hello); err != nil {
		return err
	}
	if hello.Version != version {
		return hint.Errorf("install all of ov from one release", "it is %.40q, and this is %s", hello.Version, version)
	}
	return nil
}

// readAnswer reads what was found in a text of size bytes.
func readAnswer(r io.Reader, size int) ([]Finding, error) {
	var answer Answer
	if err := readJSON(r, &answer); err != nil {
		return nil, err
	}
	switch answer.Fault {
	case "":
	case FaultTimeout:
		return nil, ErrTimeout
	default:
		return nil, errScan
	}
	if len(answer.Findings) > MaxFindings {
		return nil, errors.New("the answer has too many findings")
	}
	for _, f := range answer.Findings {
		if f.Rule == "" || f.Start < 0 || f.End < f.Start || f.End > size || f.Line < 1 {
			return nil, errors.New("the answer has a finding outside of the text")
		}
	}
	return answer.Findings, nil
}

// errScan is an engine's own word that it failed: it goes on to answer others.
var errScan = errors.New("the text could not be scanned for secrets")

func readJSON(r io.Reader, to any) error {
	b, err := readFrame(r, maxAnswer)
	if err != nil {
		return err
	}
	if json.Unmarshal(b, to) != nil { // whose error quotes what it read
		return errors.New("the answer is not what an engine says")
	}
	return nil
}

// readFrame returns io.EOF only if there is no further frame.
func readFrame(r io.Reader, most int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(most) {
		return nil, fmt.Errorf("a message of %d bytes: at most %d are allowed", n, most)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		clear(body)
		return nil, fmt.Errorf("a message that was cut short: %w", noEOF(err))
	}
	return body, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writeFrame makes no copy of the body, which may hold secrets.
func writeFrame(w io.Writer, body []byte) error {
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}
