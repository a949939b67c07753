package linux_test

import (
	"flag"
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

const realParts = "HOLDFAST_REAL_PARTS"

// TestMain makes the test program the guest's only one if it runs there. Outside it moves the whole test into a network
// of its own, where the customary ports are free.
func TestMain(m *testing.M) {
	if guest.Inside() {
		guest.Main(qemu.LineName, newWork())
	}
	if os.Getenv(realParts) == "1" {
		if err := netns.Enter(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	flag.Parse()
	// Tests that run side by side wait most of the time: as many at once as there are processors would be too few.
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set("4") // it is a number
	}
	os.Exit(m.Run())
}
