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

// Spec says what Detach starts.
type Spec struct {
	Args []string // of this program
	Env  []string // added to this process's environment
	Log  *os.File // takes its output
}

// Detach starts this program again with other arguments, in a network and mount namespace of its own, where it goes on
// when this process has ended. A link joins the two networks; the program inside calls Join. It must have called Enter
// before this process ends.
func Detach(spec Spec) (*Detached, error) {
	if err := NeedRoot(); err != nil {
		return nil, err
	}
	unlock, err := lockPool()
	if err != nil {
		return nil, err
	}
	defer unlock()
	subnet, err := freeSubnet()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", spec.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(append(os.Environ(), spec.Env...),
		insideKey+"=child of "+strconv.Itoa(os.Getpid()), addressKey+"="+subnet.insideAddress())
	cmd.Stdout, cmd.Stderr = spec.Log, spec.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errs.Wrap("enter a network namespace", "", err)
	}
	return &Detached{Process: cmd.Process, Unlinked: link(cmd.Process.Pid, subnet)}, nil
}

// lockName is a socket in the network that links begin in. Whoever listens there may choose an address; the kernel lets
// go of it with the process.
const lockName = "@holdfast-lab-link"

// lockPool keeps others who call Detach from choosing the same address.
func lockPool() (unlock func(), err error) {
	for end := time.Now().Add(linkWithin); ; time.Sleep(20 * time.Millisecond) {
		l, err := net.Listen("unix", lockName)
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if time.Now().After(end) {
			return nil, errs.New("lock", lockName, errs.Busy, err)
		}
	}
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
	return pair{}, errs.Text("find a free network in", pool.String(), errs.Exists,
		"this machine has an address in every part of it")
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

// Leave takes the link away, at both ends. The kernel would do it too, but some time after the last process inside.
func Leave() error {
	l, err := netlink.LinkByName(insideName)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	return errs.Wrap("remove the network link", insideName, err)
}
