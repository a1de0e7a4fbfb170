package kek

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
)

func locked(t testing.TB, b []byte) *Locked {
	t.Helper()
	l, err := LockedFrom(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Destroy)
	return l
}

func TestSlotKey(t *testing.T) {
	p := Argon2id{Time: 3, Memory: 64 << 10, Threads: 4, Salt: []byte("0123456789abcdef")}
	password := []byte("pässword\x00with zero")
	l := locked(t, password)
	key, err := SlotKey(t.Context(), l, p)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if want := argon2.IDKey(password, p.Salt, 3, 64<<10, 4, 32); !bytes.Equal(key.Bytes(), want) {
		t.Errorf("got %x, want %x", key.Bytes(), want)
	}
	if !bytes.Equal(l.Bytes(), password) {
		t.Error("the caller's password was touched")
	}
	// RFC 9106 has no vector without secret and associated data; this one is of
	// the reference implementation: argon2 (Debian package argon2), called as
	// printf password | argon2 0123456789abcdef -id -t 3 -k 65536 -p 4 -l 32 -r
	key, err = SlotKey(t.Context(), locked(t, []byte("password")), p)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if got := hex.EncodeToString(key.Bytes()); got != argonVector {
		t.Errorf("got %s, want %s", got, argonVector)
	}
}

const argonVector = "b8a64b68dea6b88ca8c8862be706aac37cbecda0db7bd68b48f8fa2e7feb6f3e"

// No store and no caller gets us below the floor, or to exhaust the machine.
func TestBounds(t *testing.T) {
	ok := Argon2id{Time: 3, Memory: 64 << 10, Threads: 4, Salt: make([]byte, SaltSize)}
	if err := ok.Check(); err != nil {
		t.Fatal(err)
	}
	if p := NewArgon2id(); p.Check() != nil || p.Time != 3 || p.Memory != 64<<10 || p.Threads != 4 || bytes.Equal(p.Salt, NewArgon2id().Salt) {
		t.Errorf("new: %+v", p)
	}
	for want, change := range map[string]func(p *Argon2id){
		"argon2id with 2 passes, the bounds are 3 and 64":                       func(p *Argon2id) { p.Time = 2 },
		"argon2id with 0 passes, the bounds are 3 and 64":                       func(p *Argon2id) { p.Time = 0 },
		"argon2id with 65 passes, the bounds are 3 and 64":                      func(p *Argon2id) { p.Time = 65 },
		"argon2id with 65535 KiB of memory, the bounds are 65536 and 4194304":   func(p *Argon2id) { p.Memory-- },
		"argon2id with 4194305 KiB of memory, the bounds are 65536 and 4194304": func(p *Argon2id) { p.Memory = 4<<20 + 1 },
		"argon2id with 3 lanes, the bounds are 4 and 64":                        func(p *Argon2id) { p.Threads = 3 },
		"argon2id with 65 lanes, the bounds are 4 and 64":                       func(p *Argon2id) { p.Threads = 65 },
		"argon2id with a salt of 15 bytes instead of 16":                        func(p *Argon2id) { p.Salt = p.Salt[:15] },
		"argon2id with a salt of 17 bytes instead of 16":                        func(p *Argon2id) { p.Salt = make([]byte, 17) },
		"argon2id with a salt of 0 bytes instead of 16":                         func(p *Argon2id) { p.Salt = nil },
	} {
		p := ok
		change(&p)
		if err := p.Check(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := SlotKey(t.Context(), locked(t, []byte("x")), p); err == nil || err.Error() != want {
			t.Errorf("slot key: got %v, want %s", err, want)
		}
		// The child judges for itself.
		var out bytes.Buffer
		if len(p.Salt) == SaltSize {
			if err := serveKDF(bytes.NewReader(append(kdfHeader(p, 1), 'x')), &out); err == nil || out.Len() > 0 {
				t.Errorf("the child derives a key: %s", want)
			}
		}
	}
	for _, n := range []int{0, MaxPassword + 1} {
		if _, err := SlotKey(t.Context(), locked(t, make([]byte, n)), ok); err == nil || !strings.Contains(err.Error(), "the bounds are 1 and 1024") {
			t.Errorf("a password of %d bytes: %v", n, err)
		}
	}
	if key, err := SlotKey(t.Context(), locked(t, make([]byte, MaxPassword)), ok); err != nil {
		t.Errorf("the longest password: %v", err)
	} else {
		key.Destroy()
	}
	header := kdfHeader(ok, 5)
	long := bytes.Clone(header)
	binary.BigEndian.PutUint32(long[len(long)-4:], 1<<32-1)
	for what, in := range map[string]string{
		"nothing": "", "half a header": string(header[:10]), "no password": string(header), "half a password": string(header) + "pas",
		"a password of 0 bytes": string(kdfHeader(ok, 0)), "a password of 4 GiB": string(long) + "password",
	} {
		var out bytes.Buffer
		if err := serveKDF(strings.NewReader(in), &out); err == nil || out.Len() > 0 {
			t.Errorf("%s: %d bytes, %v", what, out.Len(), err)
		}
	}
}

// A program that is started under the child's name by accident says nothing
// and fails.
func TestStartedAsKDF(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Args = []string{kdfName}
	cmd.Stdin = strings.NewReader("what is this?")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) > 0 {
		t.Errorf("%v, %q", err, out)
	}
}

func TestSlotKeyEnds(t *testing.T) {
	slow := Argon2id{Time: 64, Memory: 256 << 10, Threads: 4, Salt: make([]byte, SaltSize)} // seconds
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	key, err := SlotKey(ctx, locked(t, []byte("x")), slow)
	if key != nil || !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, %q", key, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// RFC 5869 with an info as docs/FORMAT.md has it, computed apart:
// python3 -c 'import hmac;h=lambda k,m:hmac.digest(k,m,"sha256");print(h(h(bytes(32),KEY),INFO+b"\1").hex())'
func TestTree(t *testing.T) {
	key, appID, envID := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 16), bytes.Repeat([]byte{3}, 16)
	app := AppKey(key, appID, 5)
	for what, c := range map[string]struct {
		got  []byte
		want string
	}{
		"app":         {app, "8bce551688d84409494b4608d4c85007a38cc928e7472a6f7fd17aa337c46fee"},
		"env":         {EnvKey(app, envID, 1<<31), "980b931d912416bb61229997dd3cd3cb15ff0aeed6e5bcdbed175e2fc8bf98a8"},
		"mac":         {MACKey(key), "0cedca234bf6e2545b02df40fc988f7a2130cbcd6dcc947cd9cfaa8091a41621"},
		"fingerprint": {Fingerprint(key), "0285540ddf004ca3"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: got %s, want %s", what, got, c.want)
		}
	}
	seen := map[string]string{}
	for what, k := range map[string][]byte{
		"key": key, "app": app, "its next generation": AppKey(key, appID, 6), "another app": AppKey(key, envID, 5), "another key's app": AppKey(envID, appID, 5),
		"env": EnvKey(app, envID, 5), "an env with the app's id": EnvKey(key, appID, 5), "mac": MACKey(key), "the app's mac": MACKey(app),
	} {
		if len(k) != KeySize {
			t.Errorf("%s has %d bytes", what, len(k))
		}
		if seen[string(k)] != "" {
			t.Errorf("%s is %s", what, seen[string(k)])
		}
		seen[string(k)] = what
	}
	if len(Fingerprint(key)) != FingerprintSize || bytes.Equal(Fingerprint(key), Fingerprint(app)) {
		t.Error("fingerprints")
	}
}

func TestNew(t *testing.T) {
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Destroy()
	b, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Destroy()
	if len(a.Bytes()) != KeySize || a.Equal(b) || len(bytes.Trim(a.Bytes(), "\x00")) == 0 {
		t.Error("not random")
	}
}
