package engine

import (
	"errors"
	"io"
	"runtime"
	"time"

	"github.com/opaquevault/ov/pkg/detect"
	"github.com/opaquevault/ov/pkg/version"
)

// Serve answers the texts that come from in, one after the other, until in ends:
// see detect.EngineArg. Each is erased when it is answered.
func Serve(in io.Reader, out io.Writer) error {
	e, err := New()
	if err != nil {
		return err
	}
	// The first scan of a text takes longer than those that follow.
	if _, err := e.Scan([]byte(warmUp), ""); err != nil {
		return err
	}
	if err := detect.WriteJSON(out, detect.Hello{Version: version.String()}); err != nil {
		return err
	}
	// kek.Do erases what it used at a collection.
	sweep := time.AfterFunc(time.Hour, func() { runtime.GC(); runtime.GC() })
	for {
		text, err := detect.ReadText(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := e.answer(text)
		if err := detect.WriteJSON(out, answer); err != nil {
			return err
		}
		if answer.Fault == detect.FaultTimeout {
			return detect.ErrTimeout // a rule may still be at work on the text
		}
		clear(text)
		sweep.Reset(sweepAfter)
	}
}

const sweepAfter = 200 * time.Millisecond

func (e *Engine) answer(text []byte) detect.Answer {
	found, err := e.Scan(text, "")
	switch {
	case errors.Is(err, detect.ErrTimeout):
		return detect.Answer{Fault: detect.FaultTimeout}
	case err != nil:
		return detect.Answer{Fault: detect.FaultOther}
	}
	return detect.Answer{Findings: found}
}

// warmUp has the keywords of the rules that most texts wake.
const warmUp = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{
"api_key":"","token": "", "secret":"", "password":"", "auth":"", "access":"", "url":"https://host/"}}}`
