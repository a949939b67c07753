package retention

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Read reads the machine's clocks.
func Read() (Reading, error) {
	const op, id = "read clocks", "/proc/sys/kernel/random/boot_id"
	b, err := os.ReadFile(id)
	if err != nil {
		return Reading{}, errs.Wrap(op, id, err)
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return Reading{}, errs.Wrap(op, "CLOCK_BOOTTIME", err)
	}
	return Reading{Wall: time.Now().UTC(), BootID: strings.TrimSpace(string(b)), Boot: time.Duration(t.Nano())}, nil
}
