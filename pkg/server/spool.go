package server

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"

	"google.golang.org/protobuf/proto"

	vaultv1 "github.com/opaquevault/ov/proto/ov/vault/v1"
)

// maxSpoolMemory is how much of an answer is kept in memory, in bytes. What is
// larger goes to a file that has no name.
const maxSpoolMemory = 2 << 20

// spool keeps an answer between reading and sending it.
type spool struct {
	dir           string
	memory, files *room

	parts []*vaultv1.ScanResponse // when there is no file
	size  int64                   // of parts
	file  *os.File
	w     *bufio.Writer
}

// spoolError is a failure of the spool, not of the client.
type spoolError struct{ error }

func (e *spoolError) Unwrap() error { return e.error }

// add appends a part that takes size bytes.
func (s *spool) add(part *vaultv1.ScanResponse, size int) error {
	if s.file == nil && s.size+int64(size) <= maxSpoolMemory && s.memory.take(int64(size)) {
		s.parts, s.size = append(s.parts, part), s.size+int64(size)
		return nil
	}
	if s.file == nil {
		if err := s.open(); err != nil {
			return err
		}
	}
	return s.write(part)
}

// open makes a file and moves what is in memory there.
func (s *spool) open() (err error) {
	if s.file, err = os.CreateTemp(s.dir, "ov-server-*"); err != nil {
		return &spoolError{err}
	}
	// Nobody else finds it, and it is gone with the process.
	if err := os.Remove(s.file.Name()); err != nil {
		return &spoolError{err}
	}
	s.w = bufio.NewWriterSize(s.file, 64<<10)
	for _, part := range s.parts {
		if err := s.write(part); err != nil {
			return err
		}
	}
	s.parts = nil
	return nil
}

func (s *spool) write(part *vaultv1.ScanResponse) error {
	b, err := proto.Marshal(part)
	if err != nil {
		return &spoolError{err}
	}
	if !s.files.take(int64(4 + len(b))) {
		return busy("too much at a time")
	}
	if _, err := s.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
		return &spoolError{err}
	}
	if _, err := s.w.Write(b); err != nil {
		return &spoolError{err}
	}
	return nil
}

// each calls send for the parts, in their order. The error is a spoolError or one
// of send.
func (s *spool) each(send func(*vaultv1.ScanResponse) error) error {
	for i, part := range s.parts {
		s.parts[i] = nil
		if err := send(part); err != nil {
			return err
		}
	}
	if s.file == nil {
		return nil
	}
	if err := s.w.Flush(); err != nil {
		return &spoolError{err}
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return &spoolError{err}
	}
	r := bufio.NewReaderSize(s.file, 64<<10)
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF { //nolint:errorlint // ReadFull's own
			return nil
		} else if err != nil {
			return &spoolError{err}
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(r, b); err != nil {
			return &spoolError{err}
		}
		part := &vaultv1.ScanResponse{}
		if err := proto.Unmarshal(b, part); err != nil {
			return &spoolError{err}
		}
		if err := send(part); err != nil {
			return err
		}
	}
}

// reset forgets all parts.
func (s *spool) reset() {
	if s.file != nil {
		_ = s.file.Close()
	}
	s.files.leave()
	s.memory.give(s.size)
	s.parts, s.size, s.file, s.w = nil, 0, nil, nil
}
