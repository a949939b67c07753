package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
)

// taps plays a network with two machines, whose interfaces have the same address here.
func taps() error {
	if err := Enter(); err != nil {
		return err
	}
	local := netip.MustParseAddr("198.18.0.1")
	var closers []func() error
	for i, guest := range []string{"198.18.0.2", "198.18.0.3"} {
		c, err := Tap(fmt.Sprint("guest", i), local, netip.MustParseAddr(guest))
		if err != nil {
			return err
		}
		closers = append(closers, c)
		routes, err := netlink.RouteGet(netip.MustParseAddr(guest).AsSlice())
		if err != nil {
			return err
		}
		l, err := netlink.LinkByName(fmt.Sprint("guest", i))
		if err != nil {
			return err
		}
		if len(routes) != 1 || routes[0].LinkIndex != l.Attrs().Index || !routes[0].Src.Equal(local.AsSlice()) {
			return fmt.Errorf("the way to %s is %v", guest, routes)
		}
	}
	if _, err := Tap("guest0", local, netip.MustParseAddr("198.18.0.4")); err == nil {
		return errors.New("a second interface of one name")
	}
	for _, c := range closers {
		if err := c(); err != nil {
			return err
		}
	}
	if _, err := netlink.LinkByName("guest0"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("it is still there: %v", err)
	}
	return nil
}

func TestEachMachineHasItsOwnWay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root; `make test` runs it")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), stage+"=taps")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
