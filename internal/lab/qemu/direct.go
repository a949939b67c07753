package qemu

import (
	"context"
	"net"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// LineName is the name under which the guest finds the other end of VM.Line: /sys/class/virtio-ports/*/name.
const LineName = "holdfast.lab"

// network names the network card's other end for QMP.
const network = "net0"

// Direct starts a kernel at once, without a boot loader. Such a machine has a line of its own for its agent, which
// takes any bytes both ways, and a network card.
type Direct struct {
	Kernel, Initrd string // files
	Append         string // to the kernel's command line
	Tap            string // the interface that the network card is plugged into: netns.Tap
	MAC            string // the card's address, different in each machine
}

// kernelOptions save time, but for the clock: by the processor's, which Linux would choose, its hours are minutes now and
// then, since on a busy machine it cannot find out how fast that is. The HPET's speed is known.
const kernelOptions = "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr random.trust_cpu=on no_timer_check " +
	"tsc=unstable clocksource=hpet "

// arguments are qemu's for it. The line is a socket's path, at which we listen.
func (d *Direct) arguments(line string) []string {
	return []string{
		"-kernel", d.Kernel, "-initrd", d.Initrd,
		"-append", kernelOptions + d.Append,
		"-device", "virtio-serial-pci", "-chardev", "socket,id=line,path=" + line,
		"-device", "virtserialport,chardev=line,name=" + LineName,
		"-netdev", "tap,id=" + network + ",script=no,downscript=no,ifname=" + d.Tap,
		// Without the card's own boot ROM: nobody boots from it.
		"-device", "virtio-net-pci,netdev=" + network + ",romfile=,mac=" + d.MAC,
	}
}

// Line returns this end of the line to the agent of a machine with Direct, or nil.
func (vm *VM) Line() net.Conn { return vm.line }

// SetLink pulls the plug of the network card of a machine with Direct, or puts it back.
func (vm *VM) SetLink(ctx context.Context, up bool) error {
	err := vm.qmp.Execute(ctx, "set_link", map[string]any{"name": network, "up": up}, nil)
	return errs.Wrap("switch the network of", vm.name, err)
}
