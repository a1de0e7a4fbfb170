//go:build race

package detection

// The race detector makes the engine ten times as slow.
const raceDetector = true
