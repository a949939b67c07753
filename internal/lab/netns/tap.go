package netns

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Tap makes an interface through which one virtual machine has this network for a neighbour: the guest has the address
// guest, and reaches this network as local. Any number of them may have the same local address, so that all guests know
// a server by the same one and the server can tell them apart. It is for a network that Enter made, and ends with that;
// close takes it away before.
func Tap(name string, local, guest netip.Addr) (closeTap func() error, err error) {
	const op = "make the network interface"
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	l := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(l); err != nil {
		return nil, errs.New(op, name, errs.KindOf(err), err).
			WithNext("It needs the kernel's TUN/TAP driver: look for /dev/net/tun, and run `modprobe tun`.")
	}
	address := &netlink.Addr{
		IPNet: ipNet(netip.PrefixFrom(local, local.BitLen())), Peer: ipNet(netip.PrefixFrom(guest, guest.BitLen())),
	}
	err = netlink.AddrAdd(l, address)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return nil, errs.Wrap(op, name, errors.Join(err, netlink.LinkDel(l)))
	}
	return func() error { return errs.Wrap("remove the network interface", name, netlink.LinkDel(l)) }, nil
}
