package mask

import (
	"bytes"
	"testing"
)

func TestSmoke(t *testing.T) {
	s, err := Compile([]Value{{"TOKEN", []byte("s3cr3t-token/+x")}, {"SHORT", []byte("abc")}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := s.NewWriter(&b)
	for _, c := range []byte("a s3cr3t-token/+x b s3cr3t-token%2F%2Bx czNjcjN0LXR\nva2VuLyt4 end") {
		if _, err := w.Write([]byte{c}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Log(b.String(), s.Skipped(), w.Count())
}
