// Package chance is where tests take their chance from. It is the same in every
// run, so that a run says something about the change at hand; `make hunt` looks
// for what other chances find.
package chance

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Rand returns a generator of the seed OV_SEED, a number or "random", and of a
// stream of it. Without OV_SEED the seed is 1. A test that fails says its seed.
func Rand(t testing.TB, stream uint64) *rand.Rand {
	t.Helper()
	seed := uint64(1)
	switch s := os.Getenv("OV_SEED"); s {
	case "":
	case "random":
		seed = rand.Uint64()
	default:
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: OV_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // G404: a test
}
