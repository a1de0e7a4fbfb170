//go:build linux

package memscan

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// chunk is how much is read at once, in bytes.
const chunk = 1 << 20

// Mapping is one line of /proc/PID/smaps with its VmFlags.
type Mapping struct {
	Start, End uint64
	Perms      string   // as in "rw-p"
	Path       string   // empty for anonymous memory
	Flags      []string // two letters each: "lo" is locked, "dd" is left out of core dumps
}

// Has reports whether the mapping has the VmFlag, as in Has("lo").
func (m Mapping) Has(flag string) bool { return slices.Contains(m.Flags, flag) }

func (m Mapping) String() string {
	path := m.Path
	if path == "" {
		path = "anonymous memory"
	}
	return fmt.Sprintf("%s %x-%x %s [%s]", path, m.Start, m.End, m.Perms, strings.Join(m.Flags, " "))
}

// anonymous reports whether pages that were never touched hold nothing.
func (m Mapping) anonymous() bool {
	return m.Path == "" || m.Path == "[heap]" || strings.HasPrefix(m.Path, "[stack") || strings.HasPrefix(m.Path, "[anon:")
}

// Mappings reads /proc/PID/smaps.
func Mappings(pid int) ([]Mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSmaps(f)
}

func parseSmaps(r io.Reader) ([]Mapping, error) {
	var maps []Mapping
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && len(maps) > 0 {
			maps[len(maps)-1].Flags = strings.Fields(flags)
			continue
		}
		field := strings.Fields(line)
		if len(field) < 5 || strings.HasSuffix(field[0], ":") {
			continue
		}
		from, to, ok := strings.Cut(field[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if !ok || err1 != nil || err2 != nil {
			return nil, fmt.Errorf("not a line of smaps: %q", line)
		}
		m := Mapping{Start: start, End: end, Perms: field[1]}
		if len(field) > 5 {
			m.Path = strings.Join(field[5:], " ")
		}
		maps = append(maps, m)
	}
	return maps, lines.Err()
}

// Process scans the memory of another process. The caller may stop it first
// (SIGSTOP), so that nothing moves during the scan.
func Process(pid int, patterns []Pattern) (*Report, error) {
	if pid == os.Getpid() {
		return nil, errors.New("a process cannot scan itself: the patterns are in it")
	}
	m, err := newMatcher(patterns)
	if err != nil {
		return nil, err
	}
	maps, err := Mappings(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()

	report := &Report{}
	s := &stream{m: m, hits: func(p Pattern, addr uint64) {
		at := slices.IndexFunc(maps, func(m Mapping) bool { return m.Start <= addr && addr < m.End })
		report.Hits = append(report.Hits, Hit{p, addr, maps[at]})
	}}
	for _, mapping := range maps {
		if mapping.Path == "[vsyscall]" { // above what a file offset can say, and the kernel's
			continue
		}
		refused, err := scanMapping(s, mem, pagemap, mapping)
		if err != nil {
			return nil, err
		}
		report.Unreadable += refused
	}
	report.Read = s.read
	if report.Read == 0 {
		return nil, fmt.Errorf("no memory of process %d could be read", pid)
	}
	return report, nil
}

func scanMapping(s *stream, mem, pagemap *os.File, m Mapping) (refused int64, err error) {
	page := uint64(os.Getpagesize())
	buf := make([]byte, chunk)
	for addr := m.Start; addr < m.End; {
		n := min(m.End-addr, chunk)
		if m.anonymous() {
			skip, run, err := touched(pagemap, addr/page, n/page)
			if err != nil {
				return refused, err
			}
			if addr += skip * page; run == 0 {
				continue
			}
			n = run * page
		}
		got, err := mem.ReadAt(buf[:n], int64(addr))
		if got > 0 {
			s.feed(addr, buf[:got])
			addr += uint64(got)
			continue
		}
		// EIO is the kernel's no for this page (memfd_secret, guard pages
		// without a page behind them, device memory).
		if !errors.Is(err, unix.EIO) {
			return refused, fmt.Errorf("reading %s: %w", m, err)
		}
		refused += int64(page)
		addr += page
	}
	return refused, nil
}

// touched looks at n pages from page number first. It returns how many at the
// start were never touched, and how many after them were. See pagemap in
// proc(5): bit 63 is present, bit 62 is swapped.
func touched(pagemap *os.File, first, n uint64) (skip, run uint64, err error) {
	entries := make([]byte, 8*n)
	if _, err := pagemap.ReadAt(entries, int64(8*first)); err != nil {
		return 0, 0, fmt.Errorf("pagemap: %w", err)
	}
	is := func(i uint64) bool { return binary.NativeEndian.Uint64(entries[8*i:])>>62 != 0 }
	for skip < n && !is(skip) {
		skip++
	}
	for skip+run < n && is(skip+run) {
		run++
	}
	return skip, run, nil
}

// Core scans a core file, such as gcore(1) writes. Addresses are those that the
// process had.
func Core(path string, patterns []Pattern) (*Report, error) {
	m, err := newMatcher(patterns)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	core, err := elf.NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// The whole file is read, notes (registers) included, by file offset.
	report := &Report{}
	s := &stream{m: m, hits: func(p Pattern, off uint64) {
		hit := Hit{p, off, Mapping{Path: "notes of " + path}}
		for _, prog := range core.Progs {
			if prog.Type == elf.PT_LOAD && prog.Off <= off && off < prog.Off+prog.Filesz {
				hit.Addr = prog.Vaddr + off - prog.Off
				hit.Mapping = Mapping{Start: prog.Vaddr, End: prog.Vaddr + prog.Memsz, Perms: prog.Flags.String(), Path: "core"}
			}
		}
		report.Hits = append(report.Hits, hit)
	}}
	buf := make([]byte, chunk)
	for off := uint64(0); ; {
		n, err := f.ReadAt(buf, int64(off))
		s.feed(off, buf[:n])
		off += uint64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	report.Read = s.read
	return report, nil
}
