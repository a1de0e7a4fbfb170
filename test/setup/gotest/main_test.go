package main

import (
	"bytes"
	"strings"
	"testing"
)

// A stream as go 1.26 prints it: one test passes, one fails, one is skipped.
const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"    a_test.go:5: chatter\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    a_test.go:9: wrong\n"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"--- FAIL: TestBad (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"=== RUN   TestRoot\n"}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"    a_test.go:12: needs root\n"}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"--- SKIP: TestRoot (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestRoot"}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
{"Action":"output","Package":"q","Output":"PASS\n"}
{"Action":"output","Package":"q","Output":"ok  \tq\t0.1s\n"}
{"Action":"pass","Package":"q"}
not json
`

func TestReportShowsFailuresAndCollectsSkips(t *testing.T) {
	var out bytes.Buffer
	skipped, err := report(strings.NewReader(stream), &out, false)
	if err != nil {
		t.Fatal(err)
	}
	if want := "TestRoot: needs root"; len(skipped) != 1 || skipped[0] != want {
		t.Errorf("skipped is %q, want one line %q", skipped, want)
	}
	for _, want := range []string{"a_test.go:9: wrong", "--- FAIL: TestBad", "FAIL\tp\t0.1s", "ok  \tq\t0.1s", "not json"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the output:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "chatter") {
		t.Errorf("a passing test's output is shown:\n%s", &out)
	}
}

func TestShowPrintsPassingTestsToo(t *testing.T) {
	var out bytes.Buffer
	skipped, err := report(strings.NewReader(stream), &out, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "chatter"); got != 1 {
		t.Errorf("a passing test's output is shown %d times, want once:\n%s", got, &out)
	}
	if len(skipped) != 1 {
		t.Errorf("skipped is %q, want one line", skipped)
	}
}
