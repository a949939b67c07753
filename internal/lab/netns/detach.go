package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// addressKey tells the program inside which address its end of the link gets.
const addressKey = "HOLDFAST_LAB_ADDRESS"

// insideName is what the link is called inside. Outside its name carries the program's process id.
const insideName = "lab0"

// linkWithin is how long the program inside waits for its end of the link.
const linkWithin = 10 * time.Second

// pool is where links take their addresses from: the network that RFC 2544 sets aside for tests.
var pool = netip.MustParsePrefix("198.18.0.0/15")

// Detached is a program that runs in the background, in namespaces of its own.
type Detached struct {
	Process *os.Process
	// Unlinked says why no link to it could be made; nil if there is one. It can then be reached from inside only.
	Unlinked error
}

// Detach starts this program again with other arguments, in a network and mount namespace of its own, where it goes on
// when this process has ended. Its output goes to log. A link joins the two networks; the program inside calls Join.
// It must have called Enter before this process ends.
func Detach(args []string, log *os.File) (*Detached, error) {
	if os.Geteuid() != 0 {
		return nil, errs.Text("enter a network namespace", "", errs.Denied, "only root may do that").
			WithNext("Run the same command as root, or with sudo.")
	}
	subnet, err := freeSubnet()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideKey+"=child of "+strconv.Itoa(os.Getpid()), addressKey+"="+subnet.insideAddress())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errs.Wrap("enter a network namespace", "", err)
	}
	return &Detached{Process: cmd.Process, Unlinked: link(cmd.Process.Pid, subnet)}, nil
}

// pair is a network of two: ours outside has the first address, the program inside the second.
type pair struct{ outside, inside netip.Addr }

const pairBits = 30

func (p pair) insideAddress() string { return netip.PrefixFrom(p.inside, pairBits).String() }

// freeSubnet finds a network of four addresses that this machine has nothing in.
func freeSubnet() (pair, error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return pair{}, errs.Wrap("list", "network addresses", err)
	}
	used := map[netip.Prefix]bool{}
	for _, a := range taken {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			used[netip.PrefixFrom(p.Addr().Unmap(), pairBits).Masked()] = true
		}
	}
	for a := pool.Addr(); pool.Contains(a); {
		outside := a.Next()
		inside := outside.Next()
		if !used[netip.PrefixFrom(a, pairBits)] {
			return pair{outside, inside}, nil
		}
		a = inside.Next().Next()
	}
	return pair{}, errs.Text("find a free network in", pool.String(), errs.Exists, "this machine has an address in every part of it")
}

// link makes a pair of interfaces, one end of it in the network of the process. It goes away with that network.
func link(pid int, p pair) error {
	const op = "make a network link"
	name := "lab" + strconv.Itoa(pid)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: insideName, PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(v); err != nil {
		return errs.Wrap(op, name, err)
	}
	err := netlink.AddrAdd(v, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.outside, pairBits))})
	if err == nil {
		err = netlink.LinkSetUp(v)
	}
	if err != nil {
		return errs.Wrap(op, name, errors.Join(err, netlink.LinkDel(v)))
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Join brings up the link to the outside and returns the address that this program has on it: 127.0.0.1 if it was not
// started by Detach, or no link appears.
func Join() (netip.Addr, error) {
	local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	text := os.Getenv(addressKey)
	if text == "" {
		return local, nil
	}
	address, err := netip.ParsePrefix(text)
	if err != nil {
		return local, errs.New("read", addressKey, errs.Invalid, err)
	}
	var l netlink.Link
	for end := time.Now().Add(linkWithin); ; time.Sleep(20 * time.Millisecond) {
		if l, err = netlink.LinkByName(insideName); err == nil {
			break
		}
		if time.Now().After(end) {
			return local, nil
		}
	}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return local, errs.Wrap("give an address to", insideName, err)
	}
	return address.Addr(), errs.Wrap("bring up", insideName, netlink.LinkSetUp(l))
}
