package kek

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/crypto/argon2"
)

// Argon2id holds the parameters of the password's key derivation (RFC 9106).
type Argon2id struct {
	Time    uint32 // passes
	Memory  uint32 // KiB
	Threads uint8  // lanes
	Salt    []byte // SaltSize bytes
}

const (
	// SaltSize is the size of an Argon2id salt, in bytes.
	SaltSize = 16
	// MaxPassword bounds a master password, in bytes.
	MaxPassword = 1024

	// RFC 9106 section 4, second recommended option: the floor below which a
	// store cannot push us. The ceiling keeps a hostile store from exhausting
	// the machine.
	minTime, maxTime       = 3, 64
	minMemory, maxMemory   = 64 << 10, 4 << 20
	minThreads, maxThreads = 4, 64
)

// NewArgon2id returns the recommended parameters with a fresh salt.
func NewArgon2id() Argon2id {
	p := Argon2id{Time: minTime, Memory: minMemory, Threads: minThreads, Salt: make([]byte, SaltSize)}
	rand.Read(p.Salt)
	return p
}

// Check refuses parameters outside the bounds, whoever stored them.
func (p Argon2id) Check() error {
	switch {
	case p.Time < minTime || p.Time > maxTime:
		return fmt.Errorf("argon2id with %d passes, the bounds are %d and %d", p.Time, minTime, maxTime)
	case p.Memory < minMemory || p.Memory > maxMemory:
		return fmt.Errorf("argon2id with %d KiB of memory, the bounds are %d and %d", p.Memory, minMemory, maxMemory)
	case p.Threads < minThreads || p.Threads > maxThreads:
		return fmt.Errorf("argon2id with %d lanes, the bounds are %d and %d", p.Threads, minThreads, maxThreads)
	case len(p.Salt) != SaltSize:
		return fmt.Errorf("argon2id with a salt of %d bytes instead of %d", len(p.Salt), SaltSize)
	}
	return nil
}

// kdfName is the argv[0] under which a program that links this package serves
// one key derivation and exits.
const kdfName = "ov-kdf"

// kdfTimeout bounds one derivation; the recommended parameters take 0.1 s.
const kdfTimeout = 2 * time.Minute

// SlotKey derives the key of a password slot.
//
// Argon2id works in goroutines of its own, which Do cannot erase, and leaves the
// password in its hash's buffers. So it runs in a short-lived child of this same
// executable, whose memory ends with it; password and key cross in pipes.
func SlotKey(ctx context.Context, password *Locked, p Argon2id) (*Locked, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	if n := len(password.Bytes()); n == 0 || n > MaxPassword {
		return nil, fmt.Errorf("a password of %d bytes, the bounds are 1 and %d", n, MaxPassword)
	}
	key, err := NewLocked(KeySize)
	if err != nil {
		return nil, err
	}
	if err := runKDF(ctx, key.Bytes(), password.Bytes(), p); err != nil {
		key.Destroy()
		return nil, fmt.Errorf("cannot derive a key from the password: %w", err)
	}
	return key, nil
}

func runKDF(ctx context.Context, key, password []byte, p Argon2id) error {
	ctx, cancel := context.WithTimeout(ctx, kdfTimeout)
	defer cancel()
	self, err := selfExecutable()
	if err != nil {
		return err
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = inW.Close() }()
	outR, outW, err := os.Pipe()
	if err != nil {
		_ = inR.Close()
		return err
	}
	defer func() { _ = outR.Close() }()

	cmd := exec.CommandContext(ctx, self)
	cmd.Args = []string{kdfName}
	cmd.Env = []string{}
	cmd.Stdin, cmd.Stdout = inR, outW
	err = cmd.Start()
	_, _ = inR.Close(), outW.Close()
	if err != nil {
		return err
	}
	// The password goes from locked memory into the pipe by write(2): no copy.
	// header and password fit into a pipe's buffer, so the write cannot stall.
	_, werr := inW.Write(kdfHeader(p, len(password)))
	if werr == nil {
		_, werr = inW.Write(password)
	}
	_ = inW.Close()
	_, rerr := io.ReadFull(outR, key)
	err = cmp.Or(cmd.Wait(), werr, rerr)
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // rather than what came of it
	}
	return err
}

const kdfHeaderSize = 4 + 4 + 1 + SaltSize + 4

func kdfHeader(p Argon2id, passwordLen int) []byte {
	h := binary.BigEndian.AppendUint32(nil, p.Time)
	h = binary.BigEndian.AppendUint32(h, p.Memory)
	h = append(h, p.Threads)
	h = append(h, p.Salt...)
	return binary.BigEndian.AppendUint32(h, uint32(passwordLen))
}

// init turns the process into the key derivation child when SlotKey started it.
// It is here, and not in each main, so that every program and test that can ask
// for a derivation can also serve it.
func init() {
	if len(os.Args) == 1 && os.Args[0] == kdfName {
		if err := serveKDF(os.Stdin, os.Stdout); err != nil {
			os.Exit(1) // SlotKey reports the broken exchange
		}
		os.Exit(0)
	}
}

func serveKDF(in io.Reader, out io.Writer) error {
	if err := Harden(); err != nil {
		return err
	}
	h := make([]byte, kdfHeaderSize)
	if _, err := io.ReadFull(in, h); err != nil {
		return err
	}
	p := Argon2id{
		Time:    binary.BigEndian.Uint32(h),
		Memory:  binary.BigEndian.Uint32(h[4:]),
		Threads: h[8],
		Salt:    h[9 : 9+SaltSize],
	}
	n := binary.BigEndian.Uint32(h[9+SaltSize:])
	if err := p.Check(); err != nil {
		return err
	}
	if n == 0 || n > MaxPassword {
		return errors.New("password out of bounds")
	}
	password, err := NewLocked(int(n))
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(in, password.Bytes()); err != nil {
		return err
	}
	key := argon2.IDKey(password.Bytes(), p.Salt, p.Time, p.Memory, p.Threads, KeySize)
	_, err = out.Write(key)
	return err
}
