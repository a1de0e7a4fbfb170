// Package mask finds known values in a stream of bytes, as they are and as
// programs print them, and puts their names in their place.
//
// A [Set] is made once from the values of the secrets that a program was given.
// Its [Writer] passes on what is written to it, with every value replaced by
// [masked NAME]. Where the writes begin and end makes no difference, time is
// linear in the output whatever it is, and no more is held back than could
// still become a value.
//
// What counts as a value is decided in forms.go, which lists the encodings, and
// parts.go, which lists what programs print of a value alone. What is too short
// or too common to be masked is decided in words.go. A value that was encrypted,
// compressed, reversed or cut up is not found: that is no longer a matter of
// comparing bytes.
//
// The search is Aho–Corasick, in an automaton of this package's own
// (automaton.go). A value has some forty forms and may have 64 KiB, so an
// automaton has up to millions of states: the libraries that there are for Go
// either keep a table of 256 entries in each state, 2 KiB and more
// (BobuSumisu/aho-corasick, cloudflare/ahocorasick), or search only a whole
// string (petar-dambovaliev/aho-corasick), and none of them goes on where the
// last write ended.
package mask
