// Package guest is what runs inside the lab's smallest machine (internal/lab/linux): the first and only program of a
// Linux that has nothing else. It loads the drivers, brings the network up and then does what it is told over a line to
// its host.
//
// Terms. A service is a value whose exported methods the host calls, by net/rpc over the line. Agent is the one that is
// always there; a test brings its own, since its own program is the guest's first one.
//
// Rules:
//
//  1. Any number of calls run at the same time.
//  2. An error is text by the time it reaches the host. What a caller has to tell apart is in the reply.
//  3. When this program ends, the machine does.
//
// It is tested by the tests of internal/lab/linux, in such a machine.
package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	// Argument is what the kernel hands to its first program to make it this one, with the network card's address behind.
	Argument = "holdfast-guest:"
	// ModuleFolder holds the drivers, ModuleList their file names in the order in which they are loaded, one to a line.
	ModuleFolder = "/modules"
	ModuleList   = ModuleFolder + "/list"
	// Ready is what the console shows when the line is served.
	Ready = "the guest is ready"
)

// Inside tells whether this process is the first one of a guest.
func Inside() bool { return os.Getpid() == 1 && address() != "" }

// address returns what the kernel was told of it, or "". The kernel hands on what else it does not know itself.
func address() string {
	for _, a := range os.Args[1:] {
		if is, ok := strings.CutPrefix(a, Argument); ok {
			return is
		}
	}
	return ""
}

// Main is the guest's whole life. It does not return. line is the name of the virtio port that its host speaks to. The
// services are known by their types' names.
func Main(line string, services ...any) {
	err := run(line, services)
	fmt.Println("the guest ends:", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(line string, services []any) error {
	if err := mountSystem(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	fmt.Println("the drivers are loaded")
	if err := networkUp(address()); err != nil {
		return err
	}
	fmt.Println("the network is up")
	port, err := openPort(line)
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	for _, s := range append(services, &Agent{}) {
		if err := server.Register(s); err != nil {
			return err
		}
	}
	fmt.Println(Ready)
	server.ServeConn(port)
	return errors.New("its host has closed the line")
}

// mountSystem mounts what programs expect to be there.
func mountSystem() error {
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"tmpfs", "/var"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return errs.Wrap("mount", m.at, err)
		}
	}
	return nil
}

func loadModules() error {
	list, err := os.Open(ModuleList)
	if err != nil {
		return err
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		if err := loadModule(filepath.Join(ModuleFolder, lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return errs.Wrap("load", path, err)
	}
	return nil
}

// portWithin is how long the host's end of the line may take to appear. The driver hears of ports one after the other.
const portWithin = 30 * time.Second

// port is the virtio port of a name. Until its other end is there, which the kernel hears of some time after it has the
// port, reading from it gives the end of the file: that is waited out.
type port struct {
	*os.File
	begun bool      // something came
	late  time.Time // when to believe that nothing will
}

// Read implements io.Reader.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) || p.begun || time.Now().After(p.late) {
			p.begun = p.begun || n > 0
			return n, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// openPort opens the virtio port of a name, and waits for it.
func openPort(name string) (*port, error) {
	for late := time.Now().Add(portWithin); ; time.Sleep(5 * time.Millisecond) {
		device, err := findPort(name)
		if err != nil {
			return nil, err
		}
		if device != "" {
			f, err := os.OpenFile(device, os.O_RDWR, 0)
			return &port{File: f, late: late}, err
		}
		if time.Now().After(late) {
			return nil, errs.Text("look for the virtio port", name, errs.NotFound, "this machine has none")
		}
	}
}

// findPort returns the device of a port, or "" if there is none yet.
func findPort(name string) (string, error) {
	const ports = "/sys/class/virtio-ports"
	found, err := os.ReadDir(ports)
	if err != nil {
		return "", err
	}
	for _, p := range found {
		text, err := os.ReadFile(filepath.Join(ports, p.Name(), "name"))
		if err == nil && strings.TrimSpace(string(text)) == name {
			return "/dev/" + p.Name(), nil
		}
	}
	return "", nil
}
