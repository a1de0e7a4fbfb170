// Package detection measures how well package detect finds secrets and how
// often it takes something else for one, and keeps docs/DETECTION.md true.
//
// The corpus is made when the test runs, always the same: secrets of every
// family in the places where people put them, and texts without any. Nothing in
// these files has the form of a secret, so that no scanner takes them for a leak.
package detection
