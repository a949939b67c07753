package folder

import (
	"container/list"
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fds keeps a bounded number of files open between calls. A file with unstable writes stays open until a Commit: the
// kernel tells of a failed write-back to those who had the file open meanwhile. So that such files cannot take all the
// places, a write to one more of them than half the places is made stable.
type fds struct {
	mu     sync.Mutex // guards all of this and file.open
	limit  int
	lru    list.List // of *openFile, the one used last in front
	unsync int       // of them with unstable writes
}

// openFile is an open file.
type openFile struct {
	*os.File
	owner  *file
	users  int
	writes uint64        // unstable ones that began; counts up
	unsync bool          // some of them are not durable yet
	at     *list.Element // nil when it is closed as soon as its users are done
}

// acquire returns the open file of f. The caller holds Tree.life, and gives it back with release.
func (s *fds) acquire(ctx context.Context, f *file) (*openFile, error) {
	if of := s.cached(f); of != nil {
		return of, nil
	}
	opened, err := f.t.openNode(ctx, &f.node, unix.O_RDWR, false)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	of := f.open
	if of == nil {
		of = &openFile{File: opened, owner: f}
		of.at = s.lru.PushFront(of)
		f.open = of
		opened = nil
	}
	of.users++
	s.mu.Unlock()
	if opened != nil {
		_ = opened.Close() // somebody else was faster; nothing was written through this one
	}
	if f.gone.Load() { // perhaps it went before it was in the list, where forget looks
		s.forget(f).end()
	}
	return of, nil
}

func (s *fds) cached(f *file) *openFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := f.open
	if of != nil {
		of.users++
		s.lru.MoveToFront(of.at)
	}
	return of
}

// release ends a use, and closes what has become too much.
func (s *fds) release(of *openFile) {
	for _, old := range s.surplus(of) {
		old.end()
	}
}

// surplus ends a use and returns what is to be closed.
func (s *fds) surplus(of *openFile) (all []*openFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of.users--
	if of.at == nil && of.users == 0 {
		all = append(all, of)
	}
	for e := s.lru.Back(); e != nil && s.lru.Len() > s.limit; {
		old := e.Value.(*openFile)
		e = e.Prev()
		if old.users == 0 && !old.unsync {
			s.drop(old)
			all = append(all, old)
		}
	}
	return all
}

// end closes a file that is in no list. It takes its time if the file has no name any more: the system then frees its
// space. So no lock may be held.
func (of *openFile) end() {
	if of != nil {
		_ = of.Close() // nothing depends on it: what had to be durable was synced
	}
}

// drop takes a file out of the list. mu must be held.
func (s *fds) drop(of *openFile) {
	s.lru.Remove(of.at)
	of.at, of.owner.open = nil, nil
	if of.unsync {
		of.unsync = false
		s.unsync--
	}
}

// forget takes the file of a node that is gone out of the list and returns it to be closed, unless its users will do
// that.
func (s *fds) forget(f *file) *openFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := f.open
	if of == nil {
		return nil
	}
	s.drop(of)
	if of.users > 0 {
		return nil
	}
	return of
}

// dirty notes an unstable write that is about to be made; false means that it must be a stable one.
func (s *fds) dirty(of *openFile) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of.at == nil {
		return true // removed: nobody will ask for it
	}
	if !of.unsync {
		if s.unsync >= s.limit/2 {
			return false
		}
		of.unsync = true
		s.unsync++
	}
	of.writes++
	return true
}

// writes tells how many unstable writes have begun.
func (s *fds) writes(of *openFile) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return of.writes
}

// synced notes that a sync ended, in whatever way: after a failed one clients write everything again, and there is
// nothing left to keep the file open for. writes is what writes said before.
func (s *fds) synced(of *openFile, writes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of.unsync && of.writes == writes {
		of.unsync = false
		s.unsync--
	}
}

// close syncs and closes everything. Nobody may use a file any more.
func (s *fds) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []error
	for s.lru.Len() > 0 {
		of := s.lru.Front().Value.(*openFile)
		if of.unsync {
			all = append(all, of.owner.t.datasync(of.File))
		}
		s.drop(of)
		of.end()
	}
	return errors.Join(all...)
}
