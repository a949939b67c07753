package linux

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// libraryFolders are where Debian's linker looks on this kind of machine.
var libraryFolders = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"}

// addProgram adds a program of this machine with all the libraries that it needs.
func addProgram(a *archive, program string) error {
	if err := a.copy(program, program); err != nil {
		return err
	}
	loader, err := interpreter(program)
	if err != nil {
		return err
	}
	if loader != "" {
		if err := a.copy(loader, loader); err != nil {
			return err
		}
	}
	return addLibraries(a, program)
}

func addLibraries(a *archive, file string) error {
	needed, err := libraries(file)
	if err != nil {
		return err
	}
	for _, name := range needed {
		path := findLibrary(name)
		if path == "" {
			return errs.Text("look for the library", name, errs.NotFound, file+" needs it")
		}
		if a.seen[path] {
			continue
		}
		if err := a.copy(path, path); err != nil {
			return err
		}
		if err := addLibraries(a, path); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(name string) string {
	for _, dir := range libraryFolders {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// libraries returns the names of the libraries that a program or a library needs itself.
func libraries(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, errs.Wrap("read", file, err)
	}
	defer f.Close()
	return f.ImportedLibraries()
}

// interpreter returns the path of the dynamic linker that a program asks for, or "".
func interpreter(file string) (string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", errs.Wrap("read", file, err)
	}
	defer f.Close()
	section := f.Section(".interp")
	if section == nil {
		return "", nil
	}
	b, err := section.Data()
	return strings.TrimRight(string(b), "\x00"), err
}
