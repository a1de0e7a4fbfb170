package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is wrapped by every error that says that bytes are not a
// sequence of fields, or not the fields that were expected.
var ErrMalformed = errors.New("malformed record")

// AppendFields appends each field behind its length, a big-endian uint32.
// It is the one encoding of this format: of records, additional data, HKDF info
// and metadata.
func AppendFields(dst []byte, fields ...[]byte) []byte {
	for _, f := range fields {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(f)))
		dst = append(dst, f...)
	}
	return dst
}

// Fields is AppendFields into a slice of exactly the size needed, so that a
// secret field has no copy left behind in a slice that was outgrown.
func Fields(fields ...[]byte) []byte {
	return AppendFields(make([]byte, 0, size(fields)), fields...)
}

func size(fields [][]byte) (n int) {
	for _, f := range fields {
		n += 4 + len(f)
	}
	return n
}

// Bind returns label followed by the length-prefixed fields: what HKDF takes as
// info, AES-GCM as additional data and HMAC as message.
func Bind(label string, fields ...[]byte) []byte {
	return AppendFields(append(make([]byte, 0, len(label)+size(fields)), label...), fields...)
}

// Split returns the fields in b, which alias it. It fails unless b is whole
// fields, exactly n of them when n >= 0.
func Split(b []byte, n int) ([][]byte, error) {
	var fields [][]byte
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: a field's length is cut short", ErrMalformed)
		}
		size := binary.BigEndian.Uint32(b)
		if uint64(size) > uint64(len(b)-4) {
			return nil, fmt.Errorf("%w: a field is longer than what is left", ErrMalformed)
		}
		fields = append(fields, b[4:4+size:4+size])
		b = b[4+size:]
		if n >= 0 && len(fields) > n {
			return nil, fmt.Errorf("%w: more than %d fields", ErrMalformed, n)
		}
	}
	if n >= 0 && len(fields) != n {
		return nil, fmt.Errorf("%w: %d fields instead of %d", ErrMalformed, len(fields), n)
	}
	return fields, nil
}

// Uint32 encodes n as 4 big-endian bytes.
func Uint32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// Uint64 encodes n as 8 big-endian bytes.
func Uint64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// ParseUint32 is the inverse of Uint32.
func ParseUint32(b []byte) (uint32, error) {
	if len(b) != 4 {
		return 0, fmt.Errorf("%w: a number of %d bytes instead of 4", ErrMalformed, len(b))
	}
	return binary.BigEndian.Uint32(b), nil
}

// ParseUint64 is the inverse of Uint64.
func ParseUint64(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: a number of %d bytes instead of 8", ErrMalformed, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}
