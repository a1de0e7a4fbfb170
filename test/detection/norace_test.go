//go:build !race

package detection

const raceDetector = false
