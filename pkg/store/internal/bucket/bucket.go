// Package bucket writes batches to bbolt, for the stores that keep records there.
package bucket

import (
	"bytes"
	"slices"

	bbolt "go.etcd.io/bbolt"

	"github.com/opaquevault/ov/pkg/store"
)

// Write writes the batch in the order of its keys. bbolt splits a page only at
// commit and inserts into it by moving all that follows: 100,000 writes in that
// order take a second, in random order minutes.
func Write(to *bbolt.Bucket, b store.Batch) error {
	b = slices.Clone(b)
	slices.SortStableFunc(b, func(x, y store.Op) int { return bytes.Compare(x.Key, y.Key) })
	for _, op := range b {
		var err error
		if op.Value == nil {
			err = to.Delete(op.Key)
		} else {
			err = to.Put(op.Key, op.Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
