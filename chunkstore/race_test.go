//go:build race

package chunkstore

// raceEnabled: the race detector makes everything some ten times slower.
const raceEnabled = true
