package pg

import (
	"strings"
	"testing"
)

// What a primary has acknowledged, the standby has when it is promoted; and the
// lost primary's place can be taken by a new standby, as often as one likes.
func TestFailover(t *testing.T) {
	primary := Test(t)
	if _, err := primary.SQL("postgres", "CREATE TABLE t (n int)"); err != nil {
		t.Fatal(err)
	}
	port := 0
	for i := range 3 {
		standby, err := primary.Standby(Dir(t), port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = standby.Stop() })
		if _, err := primary.SQL("postgres", "INSERT INTO t VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		if _, err := standby.SQL("postgres", "INSERT INTO t VALUES (1)"); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("a standby takes writes: %v", err)
		}
		if err := primary.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := standby.Promote(); err != nil {
			t.Fatal(err)
		}
		n, err := standby.SQL("postgres", "SELECT count(*) FROM t")
		if err != nil || n != string(rune('1'+i)) {
			t.Errorf("after failover %d there are %s rows, %v", i+1, n, err)
		}
		primary, port = standby, primary.Port
	}
	if _, err := primary.SQL("postgres", "INSERT INTO t VALUES (1)"); err != nil {
		t.Error(err)
	}
}
