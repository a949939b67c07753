// Package sdk installs oVirt's official Python SDK into the lab's cache, for tests that look at the simulated engine
// with somebody else's eyes.
//
// It is installed once, into a folder that appears when it is whole. Several may do so at the same time: one folder is
// as good as another. The package is tested by its users: internal/lab and internal/lab/engine.
package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// What is installed: the newest release, a source package with a part in C; and pycurl, which comes as a wheel.
const (
	requirement     = "ovirt-engine-sdk-python==4.6.3"
	curlRequirement = "pycurl==7.45.3"
	folderName      = "ovirt-sdk-4.6.3"
)

// python is Debian's own interpreter. Another one that comes first in PATH may lack the headers for the part in C.
const python = "/usr/bin/python3"

// Python returns a Python interpreter that has the SDK (import ovirtsdk4), and installs it first if the cache has none.
// That needs a Python package index. Start the interpreter with -I.
func Python(ctx context.Context) (string, error) {
	cache, err := parts.CacheDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(cache, folderName)
	interpreter := filepath.Join(folder, "bin", "python3")
	if isThere(interpreter) {
		return interpreter, nil
	}
	if err := parts.Need(parts.Python); err != nil {
		return "", err
	}
	if err := install(ctx, cache, folder); err != nil {
		return "", errs.Wrap("install", requirement, err)
	}
	return interpreter, nil
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func install(ctx context.Context, cache, folder string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, folderName+"-unfinished-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if _, err := proc.Run(ctx, python, "-m", "venv", work); err != nil {
		return err
	}
	temp := filepath.Join(work, "tmp") // a pip that is killed leaves files
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	out, err := proc.Output(ctx, proc.Spec{Env: []string{"TMPDIR=" + temp}, Args: []string{
		filepath.Join(work, "bin", "python3"), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
		"--no-input", "--only-binary=pycurl", requirement, curlRequirement,
	}})
	if err != nil {
		if said := strings.TrimSpace(string(out)); said != "" {
			err = fmt.Errorf("%w; it printed: %s", err, said)
		}
		return errs.New("run", "pip", errs.Transient, err).
			WithNext("Check that this machine reaches its Python package index, then run the same command again.")
	}
	if err := errors.Join(os.RemoveAll(temp), os.Chmod(work, 0o755)); err != nil { // everybody may use it
		return err
	}
	// An environment may be renamed as long as it is entered by its interpreter: only its scripts know where they lay.
	if err := os.Rename(work, folder); err != nil && !isThere(folder) {
		return err
	}
	return nil
}
