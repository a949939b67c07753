package guest

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// networkUp switches the loopback interface and the network card on. The kernel gives the first one its address.
func networkUp(address string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := interfaceUp(fd, "lo"); err != nil {
		return err
	}
	const card = "eth0"
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return err
	}
	bytes := addr.As4()
	for _, s := range []struct {
		request uintptr
		value   [4]byte
	}{{unix.SIOCSIFADDR, bytes}, {unix.SIOCSIFNETMASK, [4]byte{255, 255, 255, 0}}} {
		req, err := unix.NewIfreq(card)
		if err != nil {
			return err
		}
		if err := req.SetInet4Addr(s.value[:]); err != nil {
			return err
		}
		if err := ioctl(fd, s.request, req); err != nil {
			return errs.Wrap("give an address to", card, err)
		}
	}
	return interfaceUp(fd, card)
}

func interfaceUp(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return errs.Wrap("bring up", name, ioctl(fd, unix.SIOCSIFFLAGS, req))
}

func ioctl(fd int, request uintptr, req *unix.Ifreq) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(req))); errno != 0 {
		return errno
	}
	return nil
}
