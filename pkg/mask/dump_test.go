package mask

import (
	"bytes"
	"encoding/hex"
	"os/exec"
	"strings"
	"testing"

	"github.com/opaquevault/ov/test/chance"
)

// TestDumps has real programs dump a value among dots, and expects of it what a
// dump of nothing but dots has: whatever is left tells nothing.
func TestDumps(t *testing.T) {
	random := chance.Rand(t, 0)
	for _, command := range []string{
		"xxd", "xxd -u", "xxd -g 1", "xxd -g 4", "xxd -g 8", "xxd -g 0", "xxd -c 8", "xxd -c 32", "xxd -e", "xxd -b", "xxd -o 100",
		"hexdump -v", "hexdump -v -C", "hexdump -v -c", "hexdump -v -x",
		"od -v", "od -v -tx1", "od -v -tx1z", "od -v -x", "od -v -tx4", "od -v -tx8", "od -v -b", "od -v -c", "od -v -Ax -tx1z", "od -v -w32 -tx1",
		"Go's hex.Dump",
	} {
		t.Run(command, func(t *testing.T) {
			argv := strings.Fields(command)
			if _, err := exec.LookPath(argv[0]); err != nil && argv[0] != "Go's" {
				t.Skipf("no %s here", argv[0])
			}
			dump := func(text []byte) string {
				if argv[0] == "Go's" {
					return hex.Dump(text)
				}
				cmd := exec.Command(argv[0], argv[1:]...)
				cmd.Stdin = bytes.NewReader(text)
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				return string(out)
			}
			for end := range 48 { // in a last line of every length
				// Letters that are no hexadecimal digits.
				value := word(random, "ghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ", minPattern+random.IntN(1+random.IntN(200)))
				after := []int{random.IntN(40), random.IntN(4), 0}[end/16]
				before := 16*random.IntN(3) + (end+48-(len(value)+after)%16)%16
				text := bytes.Repeat([]byte("."), before+len(value)+after)
				dots := dump(text)
				copy(text[before:], value)
				s := compile(t, "V", string(value))
				out := dump(text)
				got := "intro\n" + out + "end\n"
				want := "intro\n" + dots + "end\n"
				all, n := through(t, s, []byte(got), func() int { return 1 + random.IntN(100) })
				head, tail, ok := strings.Cut(all, "[masked V]")
				if !ok || n != 1 || !strings.HasPrefix(want, head) || !strings.HasSuffix(want, tail) {
					t.Errorf("%q among %d and %d dots, printed as\n%s\nleaves\n%s", value, before, after, out, all)
				}
				if _, ok := s.Find([]byte(out)); !ok {
					t.Errorf("Find does not see it in\n%s", out)
				}
			}
		})
	}
}

// What is no dump is passed on at once, and what looks like one at the end of
// its line.
func TestDumpHoldsBackLittle(t *testing.T) {
	s := compile(t, "V", "s3cret-value")
	for text, want := range map[string]string{
		"2026-01-02 ":                            "2026-01-02 ",
		"2026 way":                               "2026 way",
		"Do you? ":                               "Do you? ",
		"10:20 ":                                 "10:20 ",
		"deadbeef x":                             "",
		"deadbeef x\n":                           "deadbeef x\n",
		"00000000: 6865 6c6c":                    "",
		"00000000: 6865 6c6c  he\n":              "00000000: 6865 6c6c  he\n",
		"00000000: 6865 733\nab ":                "00000000: 6865 733\nab ",
		"00000000: 7333 6372  s3\n":              "00000000: ",
		"0000000   s   3\n0000002\n":             "0000000   s   3\n0000002\n",
		"12345678 " + strings.Repeat("12 ", 100): "12345678 " + strings.Repeat("12 ", 100),
	} {
		var out bytes.Buffer
		w := s.NewWriter(&out)
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("of %q, %q is passed on", text, &out)
		}
		if err := w.Close(); err != nil || out.String() != text {
			t.Errorf("%q became %q: %v", text, &out, err)
		}
	}
}

// FuzzParseDump: no line makes the parser fail, and what it reads has a place.
func FuzzParseDump(f *testing.F) {
	f.Fuzz(func(t *testing.T, line []byte) {
		line = bytes.ReplaceAll(line, []byte("\n"), nil)
		row, ok := parseDump(line)
		if ok != (row.plain != nil || row.reversed != nil) {
			t.Fatalf("%v with %d and %d bytes", ok, len(row.plain), len(row.reversed))
		}
		if len(row.where) < max(len(row.plain), len(row.reversed)) {
			t.Fatalf("%d places for %d bytes", len(row.where), len(row.plain))
		}
		for _, at := range row.where {
			if at < 0 || at >= len(line) {
				t.Fatalf("a number at %d of %d", at, len(line))
			}
		}
		// What is ruled out early must not be read later.
		for n := range line {
			if !maybeDump(line[:n]) && maybeDump(line) {
				t.Fatalf("%q is ruled out, and %q is not", line[:n], line)
			}
		}
	})
}
