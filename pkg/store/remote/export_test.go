package remote

import "time"

// Bounds sets how long the server may say nothing, how long a snapshot is taken
// again, and how many bytes it may have.
func (s *Store) Bounds(stall, contend time.Duration, bound int) {
	s.stall, s.contend, s.bound = stall, contend, bound
}

// What messages are bounded by.
const (
	MaxRequest = maxRequest
	MaxInline  = maxInline
)
