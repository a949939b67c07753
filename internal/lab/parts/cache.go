package parts

import (
	"bytes"
	"os"
	"path/filepath"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// CacheKey names the environment variable that moves the cache.
const CacheKey = "HOLDFAST_LAB_CACHE"

// CacheDir returns the folder that keeps what is fetched and made once, disks and programs: what the environment says;
// else .cache/lab in the project's source tree, in which the working folder or this program lies; else a folder in the
// user's own cache. So whoever calls the program from anywhere finds what was made before, and no other folder is used.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheKey); dir != "" {
		return filepath.Abs(dir)
	}
	var places []string
	if dir, err := os.Getwd(); err == nil {
		places = append(places, dir)
	}
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Dir(self))
	}
	for _, dir := range places {
		if tree := sourceTree(dir); tree != "" {
			return filepath.Join(tree, ".cache", "lab"), nil
		}
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", errs.New("find", "the cache", errs.NotFound, err).WithNext("Name a folder for it in " + CacheKey + ".")
	}
	return filepath.Join(dir, "holdfast-lab"), nil
}

// sourceTree returns the project's source tree that a folder lies in, or "".
func sourceTree(dir string) string {
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module github.com/holdfast-backup/holdfast\n")) {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}
