package parts

import (
	"os"
	"path/filepath"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// CacheKey names the environment variable that moves the cache.
const CacheKey = "HOLDFAST_LAB_CACHE"

// CacheDir returns the folder that keeps what is fetched and made once, disks and programs: what the environment says, else .cache/lab in the repository that
// holds the working folder, else in the working folder itself.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheKey); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", errs.Wrap("find", "the cache", err)
	}
	for up := dir; ; up = filepath.Dir(up) {
		if _, err := os.Stat(filepath.Join(up, "go.mod")); err == nil {
			dir = up
			break
		}
		if up == filepath.Dir(up) {
			break
		}
	}
	return filepath.Join(dir, ".cache", "lab"), nil
}
