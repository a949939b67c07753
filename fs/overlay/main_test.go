package overlay

import (
	"flag"
	"os"
	"testing"
)

var (
	seedFlag   = flag.Uint64("overlay.seed", 0, "run seeded tests with this seed only")
	roundsFlag = flag.Uint("overlay.rounds", 8, "operation logs that TestCrashAtEverySync runs")
)

// firstSeed returns the seed of the command line, else def.
func firstSeed(def uint64) uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	return def
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir, os.Getenv(childTask)))
	}
	os.Exit(m.Run())
}
