package datacenter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestNamesThatEverybodyCanType(t *testing.T) {
	for _, c := range []struct {
		names []string
		fits  bool
	}{
		{[]string{"web1"}, true},
		{[]string{"web1", "db-1.example", "X_2"}, true},
		{nil, true},
		{[]string{""}, false},
		{[]string{"a b"}, false},
		{[]string{"-web"}, false},
		{[]string{"../web"}, false},
		{[]string{"web,debug-threads=on"}, false}, // an option of qemu's
		{[]string{"wéb"}, false},
		{[]string{strings.Repeat("x", 65)}, false},
		{[]string{"web1", "db1", "web1"}, false},
	} {
		err := CheckNames(c.names)
		if c.fits != (err == nil) || err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", c.names, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "x")
	if _, err := Start(t.Context(), Options{Dir: dir, VMs: []string{"a b"}}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a data center with such a VM: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("something was made for it")
	}
}

// realDisk makes a small disk that nothing boots from, and sends all temporary files into a folder of the test's own.
func realDisk(t *testing.T) (disk, temp string) {
	t.Helper()
	if os.Getenv("HOLDFAST_REAL_PARTS") != "1" {
		t.Skip("runs the real qemu and the real ovirt-imageio; `make test` runs it")
	}
	disk = filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	temp, err := os.MkdirTemp("", "dc") // sockets lie in it: its path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(temp) })
	t.Setenv("TMPDIR", temp)
	return disk, temp
}

// children returns the command lines of this process's children that run.
func children(t *testing.T) (lines []string) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		pids, _ := os.ReadFile(list) // the thread may have ended
		for _, pid := range strings.Fields(string(pids)) {
			if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); len(line) > 0 {
				lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
	}
	return lines
}

// leftNothing fails if there is a child, or a file in the folder for temporary ones.
func leftNothing(t *testing.T, temp string) {
	t.Helper()
	if left := children(t); left != nil {
		t.Errorf("still running: %q", left)
	}
	if names, err := os.ReadDir(temp); err != nil || len(names) > 0 {
		t.Errorf("left in the folder for temporary files: %v, %v", names, err)
	}
}

// vms asks the engine as a user with the files of the data center would.
func vms(t *testing.T, d *DataCenter) (found []string) {
	t.Helper()
	ca, err := os.ReadFile(d.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := os.ReadFile(d.PasswordFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+"/vms", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json")
	r.SetBasicAuth(User, strings.TrimSpace(string(secret)))
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		VM []struct{ ID, Name, Status string }
	}
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatalf("%s %q: %v", resp.Status, body, err)
	}
	for _, vm := range list.VM {
		found = append(found, vm.Name+" "+vm.Status)
	}
	slices.Sort(found)
	return found
}

func TestAnInstallationIsWhatItsFilesSay(t *testing.T) {
	disk, temp := realDisk(t)
	dir := filepath.Join(t.TempDir(), "dc")
	d, err := Start(t.Context(), Options{Dir: dir, Disk: disk, Scale: 0.01, VMs: []string{"web1", "db1"}, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := vms(t, d); !slices.Equal(got, []string{"db1 up", "web1 up"}) {
		t.Errorf("the engine has %q", got)
	}
	if info, err := os.Stat(d.PasswordFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the password: %v, %v", info.Mode(), err)
	}
	var qemus int
	for _, line := range children(t) {
		if strings.HasPrefix(line, "qemu-system") {
			qemus++
		}
	}
	if qemus != 2 || len(d.Host.RunningVMs()) != 2 {
		t.Errorf("%d machines run, the host says %v", qemus, d.Host.RunningVMs())
	}
	// The guest has nothing to boot from and will never show a shell.
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Exec(short, "web1", "true"); !errs.Is(err, errs.Canceled) {
		t.Errorf("a command in it: %v", err)
	}
	if _, err := d.Exec(t.Context(), "mail1", "true"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a command in none: %v", err)
	}
	if _, err := d.Probe(t.Context(), "127.0.0.1:/none"); err == nil {
		t.Error("an export that is not there has a domain")
	}
	if err := d.StopVMs(t.Context()); err != nil {
		t.Error(err)
	}
	if left := d.Host.RunningVMs(); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
	d.Close()
	d.Close()
	leftNothing(t, temp)
	if images, err := filepath.Glob(filepath.Join(dir, "domains", "*", "*", "*")); err != nil || len(images) != 2 {
		t.Errorf("the disks outlive the installation: %v, %v", images, err)
	}
}

func TestAnInstallationThatCannotStartLeavesNothing(t *testing.T) {
	_, temp := realDisk(t)
	_, err := Start(t.Context(), Options{Dir: t.TempDir(), Disk: filepath.Join(temp, "none"), Log: t.Output()})
	if err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("without a disk: %v", err)
	}
	leftNothing(t, temp)
}
