package linux

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// debugfs is where Debian has it. It reads an ext4 file system without mounting it.
const debugfs = "/usr/sbin/debugfs"

// source is the file system that the kernel comes from.
type source struct {
	device string // as debugfs names it
	dir    string // for what is taken out of it
	taken  int
}

// addKernel writes the kernel of a disk to a file and adds its drivers to the archive.
func addKernel(ctx context.Context, a *archive, disk, kernel, dir string) error {
	s := &source{device: fmt.Sprintf("%s?offset=%d", disk, debian.PartitionOffset), dir: dir}
	release, err := s.release(ctx)
	if err != nil {
		return err
	}
	if err := s.dump(ctx, "/boot/vmlinuz-"+release, kernel); err != nil {
		return err
	}
	below := "/lib/modules/" + release
	deps, err := s.read(ctx, below+"/modules.dep")
	if err != nil {
		return err
	}
	builtin, err := s.read(ctx, below+"/modules.builtin")
	if err != nil {
		return err
	}
	order, err := loadOrder(deps, builtin, drivers)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, m := range order {
		content, err := s.read(ctx, below+"/"+m)
		if err != nil {
			return err
		}
		a.file(guest.ModuleFolder+"/"+path.Base(m), 0o644, content)
		fmt.Fprintln(&list, path.Base(m))
	}
	a.file(guest.ModuleList, 0o644, []byte(list.String()))
	return nil
}

// release finds out which kernel the disk has. There is one.
func (s *source) release(ctx context.Context) (string, error) {
	out, err := proc.Run(ctx, debugfs, "-R", "ls -p /lib/modules", s.device)
	if err != nil {
		return "", err
	}
	// Each line is /inode/mode/owner/group/name/size/.
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(line, "/"); len(f) > 5 && f[5] != "." && f[5] != ".." && f[5] != "" {
			return f[5], nil
		}
	}
	return "", errs.Text("look for the kernel of", s.device, errs.NotFound, "the disk has none")
}

// dump copies a file out. debugfs ends well also when it could not, so we look at what it made.
func (s *source) dump(ctx context.Context, from, to string) error {
	if _, err := proc.Run(ctx, debugfs, "-R", fmt.Sprintf("dump %s %s", from, to), s.device); err != nil {
		return err
	}
	if info, err := os.Stat(to); err != nil || info.Size() == 0 {
		return errs.Text("read from the disk", from, errs.NotFound, "debugfs finds nothing there")
	}
	return nil
}

// read returns a file's content.
func (s *source) read(ctx context.Context, from string) ([]byte, error) {
	s.taken++
	to := filepath.Join(s.dir, fmt.Sprintf("taken-%d", s.taken))
	defer os.Remove(to)
	if err := s.dump(ctx, from, to); err != nil {
		return nil, err
	}
	return os.ReadFile(to)
}

// loadOrder returns the files of the wanted modules and of all that they need, each behind what it needs itself. deps is
// modules.dep and builtin modules.builtin of modprobe's, see their manual pages.
func loadOrder(deps, builtin []byte, wanted []string) ([]string, error) {
	files, needs := map[string]string{}, map[string][]string{}
	lines := bufio.NewScanner(bytes.NewReader(deps))
	for lines.Scan() {
		file, rest, ok := strings.Cut(lines.Text(), ":")
		if ok {
			files[moduleName(file)] = file
			needs[file] = strings.Fields(rest)
		}
	}
	inside := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		inside[moduleName(strings.TrimSpace(line))] = true
	}
	var order []string
	done := map[string]bool{}
	var add func(file string)
	add = func(file string) {
		if done[file] {
			return
		}
		done[file] = true
		for _, n := range needs[file] {
			add(n)
		}
		order = append(order, file)
	}
	for _, w := range wanted {
		file, ok := files[w]
		if !ok && !inside[w] {
			return nil, errs.Text("look for the driver", w, errs.NotFound, "this kernel has none")
		}
		if ok {
			add(file)
		}
	}
	return order, nil
}

// moduleName is the module's name: its file may spell an underscore as a hyphen.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}
