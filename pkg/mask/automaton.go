package mask

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
)

// pattern is one form of one value.
type pattern struct {
	b    []byte // at least minPattern bytes
	name int    // index of the value's name
}

// minPattern is the length of the shortest pattern, in bytes: the shortest value
// that is masked. The filter below relies on it.
const minPattern = 6

// automaton is the one of Aho and Corasick (Efficient string matching, 1975), in
// six bytes a state. State 0 is the root. The others are numbered as the sorted
// patterns are read, so that the first child of a state is the next state: only
// where patterns part does an edge take more room.
type automaton struct {
	// node holds for each state the byte that leads to it (low byte) and its
	// flags (high byte).
	node []uint16
	// fail is the state of the longest proper suffix that also begins a pattern.
	fail []uint32
	// root holds the children of the root, 0 where there is none.
	root [256]uint32
	// more holds the children, but for the first, of the states with flagMore, by
	// state<<8 | byte.
	more map[uint64]uint32
	// outs holds, for each state with flagOut, the longest pattern that ends there.
	outs map[uint32]out
	// chains are the runs of states that follow each other, in ascending order.
	chains []chain
	// filter has a bit for the hash of each gram bytes among the first minPattern
	// of each pattern. See skip.
	filter []uint64
	shift  uint // 32 - log2(bits of filter)
}

type out struct {
	length int
	name   int
}

// chain says how deep its first state is, where it hangs, and whose value it is
// of: the first one's, where several share it.
type chain struct {
	first, depth, parent uint32
	name                 int
}

const (
	depthMask uint16 = 7 << 8 // depth of the state, or minPattern if it is deeper
	flagNext  uint16 = 8 << 8 // the next state is a child
	flagMore  uint16 = 16 << 8
	flagOut   uint16 = 32 << 8
)

// build makes the automaton of patterns, of which it sorts the list. Where two
// values share a form, the first of them lends its name.
func build(patterns []pattern) *automaton {
	slices.SortFunc(patterns, func(p, q pattern) int {
		if c := bytes.Compare(p.b, q.b); c != 0 {
			return c
		}
		return p.name - q.name
	})
	patterns = slices.CompactFunc(patterns, func(p, q pattern) bool { return bytes.Equal(p.b, q.b) })

	states, deepest := 1, 0
	var prev []byte
	for _, p := range patterns {
		states += len(p.b) - common(prev, p.b)
		deepest = max(deepest, len(p.b))
		prev = p.b
	}
	a := &automaton{
		node: make([]uint16, 1, states), fail: make([]uint32, states),
		more: map[uint64]uint32{}, outs: make(map[uint32]out, len(patterns)),
	}
	a.makeFilter(patterns)

	path := make([]uint32, deepest+1) // of the pattern before, by depth
	prev = nil
	for _, p := range patterns {
		from := common(prev, p.b)
		s := path[from]
		// A pattern that goes on where the last one ended continues its chain.
		if int(s) != len(a.node)-1 || s == 0 {
			first := uint32(len(a.node))
			a.chains = append(a.chains, chain{first, uint32(from + 1), s, p.name})
			if s == 0 {
				a.root[p.b[0]] = first
			} else {
				a.node[s] |= flagMore
				a.more[uint64(s)<<8|uint64(p.b[from])] = first
			}
			a.node = append(a.node, a.label(p.b, from))
			path[from+1] = first
			from++
		}
		for d := from; d < len(p.b); d++ {
			s = uint32(len(a.node))
			a.node[s-1] |= flagNext
			a.node = append(a.node, a.label(p.b, d))
			path[d+1] = s
		}
		s = path[len(p.b)]
		a.node[s] |= flagOut
		a.outs[s] = out{len(p.b), p.name}
		prev = p.b
	}
	a.link(deepest)
	return a
}

func (a *automaton) label(b []byte, d int) uint16 {
	return uint16(b[d]) | uint16(min(d+1, minPattern))<<8
}

// link computes the fail links, the shallower states first, since those of the
// deeper ones follow from them.
func (a *automaton) link(deepest int) {
	order := make([]int, len(a.chains))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return int(a.chains[i].depth) - int(a.chains[j].depth) })
	var active []uint32 // the state of each chain at the depth before
	for d := uint32(1); d <= uint32(deepest); d++ {
		still := active[:0]
		for _, s := range active {
			if a.node[s]&flagNext != 0 {
				a.linkOne(s+1, s)
				still = append(still, s+1)
			}
		}
		active = still
		for len(order) > 0 && a.chains[order[0]].depth == d {
			c := a.chains[order[0]]
			order = order[1:]
			if d > 1 {
				a.linkOne(c.first, c.parent)
			}
			active = append(active, c.first)
		}
	}
}

func (a *automaton) linkOne(s, parent uint32) {
	f := a.next(a.fail[parent], byte(a.node[s]))
	a.fail[s] = f
	if a.node[f]&flagOut != 0 && a.node[s]&flagOut == 0 {
		a.node[s] |= flagOut
		a.outs[s] = a.outs[f]
	}
}

// next returns the state after s and c.
func (a *automaton) next(s uint32, c byte) uint32 {
	for s != 0 {
		n := a.node[s]
		if n&flagNext != 0 && byte(a.node[s+1]) == c {
			return s + 1
		}
		if n&flagMore != 0 {
			if t, ok := a.more[uint64(s)<<8|uint64(c)]; ok {
				return t
			}
		}
		s = a.fail[s]
	}
	return a.root[c]
}

// depth returns how many bytes of a pattern have been seen in state s.
func (a *automaton) depth(s uint32) int {
	if s == 0 {
		return 0
	}
	if d := a.node[s] & depthMask >> 8; d < minPattern {
		return int(d)
	}
	c := a.chain(s)
	return int(c.depth + s - c.first)
}

// chain returns the chain of a state that is not the root.
func (a *automaton) chain(s uint32) chain {
	i, found := slices.BinarySearchFunc(a.chains, s, func(c chain, s uint32) int { return int(c.first) - int(s) })
	if !found {
		i--
	}
	return a.chains[i]
}

// minPrefix is how much of a longer pattern counts as a match, in bytes: programs
// that are killed, fill a pipe or cut their lines print the beginning of a value.
// Less is as likely the beginning of a URL that is no secret.
const minPrefix = 32

// prefix returns what has been seen of a pattern in state s, if that is enough
// to count and no match by itself.
func (a *automaton) prefix(s uint32) (o out, ok bool) {
	if a.node[s]&depthMask>>8 < minPattern {
		return out{}, false
	}
	d := a.depth(s)
	if d < minPrefix || a.node[s]&flagOut != 0 && a.outs[s].length == d {
		return out{}, false
	}
	return out{d, a.chain(s).name}, true
}

// A pattern that begins at i, i+1 or i+2 has the four bytes at i+2 among its
// first six: one look at them rules out three beginnings.
const (
	gram   = 4
	stride = minPattern - gram + 1
)

// makeFilter gives each pattern 128 bits and at least 2^15 in all, so that few
// other bytes share one with a pattern.
func (a *automaton) makeFilter(patterns []pattern) {
	log := min(max(bits.Len(uint(len(patterns)))+6, 15), 24)
	a.filter, a.shift = make([]uint64, 1<<log/64), uint(32-log)
	for _, p := range patterns {
		for i := range stride {
			h := hash(p.b[i:], a.shift)
			a.filter[h/64] |= 1 << (h % 64)
		}
	}
}

// hash is of the first gram bytes of b.
func hash(b []byte, shift uint) uint32 {
	return binary.LittleEndian.Uint32(b) * 0x9e3779b1 >> shift
}

// wipe clears what tells of the patterns.
func (a *automaton) wipe() {
	clear(a.node)
	clear(a.fail)
	clear(a.root[:])
	clear(a.more)
	clear(a.outs)
	clear(a.chains)
	clear(a.filter)
	*a = automaton{}
}

// common is the length of the longest common prefix.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// scanner walks an automaton along a text that comes in pieces. Most of a text
// begins no pattern, and the filter tells so at little cost: the automaton is
// entered where it does not, and left as soon as what it has seen is so short
// that the filter can judge it.
type scanner struct {
	state    uint32
	entered  int  // where the automaton was last entered
	pos      int  // how much of the text has been read
	prefixes bool // a beginning of minPrefix bytes is a match, too
}

// scan reads text from s.pos on to its end. It calls hit with where a match
// ends, and what matched there, the longest first if there are several, and
// stops when hit returns false.
func (s *scanner) scan(a *automaton, text []byte, hit func(end int, o out) bool) {
	if len(a.node) <= 1 {
		s.pos = len(text)
		return
	}
	state, entered, i := s.state, s.entered, s.pos
	for i < len(text) {
		if state == 0 {
			i = a.skip(text, i)
			entered = i
			if i == len(text) {
				break
			}
		}
		for i < len(text) {
			c := text[i]
			i++
			if n := a.node[state]; n&flagNext != 0 && byte(a.node[state+1]) == c {
				state++
			} else {
				from := state
				state = a.next(from, c)
				if s.prefixes {
					if o, ok := a.prefix(from); ok && a.depth(state) != o.length+1 {
						hit(i-1, o)
					}
				}
			}
			n := a.node[state]
			if n&flagOut != 0 && !hit(i, a.outs[state]) {
				s.state, s.entered, s.pos = state, entered, i
				return
			}
			if state == 0 {
				break
			}
			if d := int(n & depthMask >> 8); d < minPattern && i-d > entered && i-d+minPattern <= len(text) {
				// What matched before i-d has come to nothing.
				i, state = i-d, 0
				break
			}
		}
	}
	s.state, s.entered, s.pos = state, entered, i
}

// finish takes the text for complete: what was seen last may be the beginning of
// a pattern.
func (s *scanner) finish(a *automaton, hit func(end int, o out) bool) {
	if s.prefixes && len(a.node) > 1 {
		if o, ok := a.prefix(s.state); ok {
			hit(s.pos, o)
		}
	}
}

// skip returns a place from i on before which no pattern begins, and where one
// may begin, or where there is not enough text to tell. Most of the time goes
// here.
func (a *automaton) skip(text []byte, i int) int {
	filter, shift := a.filter, a.shift
	rest := text[i:]
	for len(rest) >= minPattern {
		h := hash(rest[stride-1:], shift)
		if filter[h/64]&(1<<(h%64)) != 0 {
			break
		}
		rest = rest[stride:]
	}
	return len(text) - len(rest)
}

// begin returns where the earliest match that is still possible begins.
func (s *scanner) begin(a *automaton) int { return s.pos - a.depth(s.state) }

// moved adjusts s to a text whose first n bytes have been dropped.
func (s *scanner) moved(n int) {
	s.pos -= n
	s.entered -= n
}
