package mount

import (
	"testing"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
)

// TestEveryStatusHasAWord: a MNT that failed must never look granted, and must use a word of mountstat3.
func TestEveryStatusHasAWord(t *testing.T) {
	words := map[nfs.MountStatus]bool{
		nfs.MountStatusErrPerm: true, nfs.MountStatusErrNoEnt: true, nfs.MountStatusErrIO: true,
		nfs.MountStatusErrAcces: true, nfs.MountStatusErrNotDir: true, nfs.MountStatusErrInval: true,
		nfs.MountStatusErrNameTooLong: true, nfs.MountStatusErrNotSupp: true, nfs.MountStatusErrServerFault: true,
	}
	for _, s := range fs.Statuses {
		got := statusOf(s)
		if s == fs.StatusOK {
			if got != nfs.MountStatusOk {
				t.Errorf("ok is answered %d", got)
			}
			continue
		}
		if !words[got] {
			t.Errorf("%v is answered %d", s, got)
		}
	}
	if statusOf(nil) != nfs.MountStatusOk {
		t.Error("no error is one")
	}
}
