package vault

import (
	"errors"
	"slices"

	"github.com/opaquevault/ov/pkg/store"
)

// fetchAtOnce is the most ranges that are asked for in one trip.
const fetchAtOnce = 1000

// fetch says what will be read next. What the store does not let the caller
// have, it says again when it is read.
func fetch(r store.Reader, ranges ...store.Range) error {
	for some := range slices.Chunk(ranges, fetchAtOnce) {
		if err := r.Fetch(some...); err != nil && !errors.Is(err, store.ErrDenied) {
			return err
		}
	}
	return nil
}

func one(key []byte) store.Range       { return store.Range{Key: key, Take: store.One} }
func allOf(prefix []byte) store.Range  { return store.Range{Key: prefix, Take: store.All} }
func lastOf(prefix []byte) store.Range { return store.Range{Key: prefix, Take: store.Last} }

// fetchMany bounds the places whose records are asked for each by itself. What
// was read is verified again with every later trip, so beyond that, one range
// over the whole env is less work, although it brings more.
const fetchMany = 10 * fetchAtOnce

// fetchPlaces asks for the records of many secrets of one env: of kind d what
// take says, and the newest value.
func fetchPlaces(r store.Reader, places []place, take store.Take) error {
	if len(places) > fetchMany {
		return fetch(r, allOf(places[0].env.prefix(kindData)))
	}
	ranges := make([]store.Range, 0, 2*len(places))
	for _, p := range places {
		ranges = append(ranges, store.Range{Key: p.prefix(kindData), Take: take}, lastOf(p.prefix(kindValue)))
	}
	return fetch(r, ranges...)
}

// fetchVersion asks for all versions of secrets, and one version's values.
func fetchVersion(r store.Reader, places []place, version uint32) error {
	var ranges []store.Range
	for _, p := range places {
		p.version = version
		ranges = append(ranges, allOf(p.prefix(kindData)), one(p.key(kindValue)))
	}
	return fetch(r, ranges...)
}

// fetchValues asks for the values of entries of one env.
func fetchValues(r store.Reader, list []*ciphertext) error {
	if len(list) > fetchMany {
		return fetch(r, allOf(list[0].env.prefix(kindValue)))
	}
	ranges := make([]store.Range, len(list))
	for i, c := range list {
		ranges[i] = one(c.key(kindValue))
	}
	return fetch(r, ranges...)
}
