package linux_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// StormArgs say how a storm rages: Workers work in one folder at the same time, each Operations times, on names of their
// own and on files that stay; Seed decides what they do.
type StormArgs struct {
	Dir                 string
	Workers, Operations int
	Still               int // files that nobody touches while the others come and go
	Seed                uint64
}

// StormReply counts what was done.
type StormReply struct{ Created, Renamed, Removed, Listed int }

// Storm makes, moves and removes names, and lists the folder all the while. In the end there is what has to be.
func (*Work) Storm(a StormArgs, r *StormReply) error {
	if err := os.Mkdir(a.Dir, 0o755); err != nil {
		return err
	}
	for i := range a.Still {
		if err := os.WriteFile(filepath.Join(a.Dir, fmt.Sprint("still-", i)), nil, 0o644); err != nil {
			return err
		}
	}
	workers := make([]*stormer, a.Workers)
	failed := make([]error, a.Workers)
	var working sync.WaitGroup
	for w := range workers {
		workers[w] = &stormer{dir: a.Dir, own: fmt.Sprintf("worker%d-", w), still: a.Still,
			random: rand.New(rand.NewPCG(a.Seed, uint64(w))), want: map[string]string{}}
		working.Go(func() { failed[w] = workers[w].rage(a.Operations) })
	}
	working.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	want := map[string]string{}
	for _, w := range workers {
		for name, is := range w.want {
			want[name] = is
		}
		r.Created, r.Renamed = r.Created+w.did.Created, r.Renamed+w.did.Renamed
		r.Removed, r.Listed = r.Removed+w.did.Removed, r.Listed+w.did.Listed
	}
	return checkFolder(a.Dir, a.Still, want)
}

// isFolder is what a stormer's model has for a folder, instead of a content.
const isFolder = "\x00folder"

// checkFolder compares a folder with what has to be in it besides the still files.
func checkFolder(dir string, still int, want map[string]string) error {
	names, err := list(dir, still)
	if err != nil {
		return err
	}
	if len(names) != len(want) {
		return fmt.Errorf("%d names are left and %d should be", len(names), len(want))
	}
	for _, name := range names {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		got := isFolder
		if !info.IsDir() {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			got = string(b)
		}
		if is, ok := want[name]; !ok || is != got {
			return fmt.Errorf("%s holds %q and should hold %q (%v)", name, got, is, ok)
		}
	}
	return nil
}

// list lists a folder and returns the names besides the still files, all of which must be seen exactly once.
func list(dir string, still int) (others []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	seen, count := map[string]bool{}, 0
	for _, e := range entries {
		if seen[e.Name()] {
			return nil, fmt.Errorf("%s is listed twice", e.Name())
		}
		seen[e.Name()] = true
		if strings.HasPrefix(e.Name(), "still-") {
			count++
		} else {
			others = append(others, e.Name())
		}
	}
	if count != still {
		return nil, fmt.Errorf("%d of %d files that nobody touches are listed", count, still)
	}
	return others, nil
}

// stormer is one worker of a storm, with the model of its own names.
type stormer struct {
	dir, own string
	still    int
	random   *rand.Rand
	want     map[string]string // what its names hold
	next     int
	did      StormReply
}

func (s *stormer) path(name string) string { return filepath.Join(s.dir, name) }

// pick returns one of the worker's names of a kind, or "".
func (s *stormer) pick(folder bool) string {
	var names []string
	for n, is := range s.want {
		if (is == isFolder) == folder {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names) // a map has no order, and a seed has to mean one thing
	return names[s.random.IntN(len(names))]
}

func (s *stormer) rage(operations int) error {
	for n := range operations {
		if err := s.step(); err != nil {
			return fmt.Errorf("%soperation %d: %w", s.own, n, err)
		}
	}
	return nil
}

func (s *stormer) step() error {
	old := s.pick(s.random.IntN(3) == 0)
	fresh := fmt.Sprint(s.own, s.next)
	s.next++
	switch s.random.IntN(8) {
	case 0, 1, 2:
		return s.create(fresh)
	case 3:
		s.want[fresh] = isFolder
		s.did.Created++
		return os.Mkdir(s.path(fresh), 0o755)
	case 4, 5:
		return s.rename(old, fresh)
	case 6:
		return s.remove(old)
	default:
		s.did.Listed++
		_, err := list(s.dir, s.still)
		return err
	}
}

func (s *stormer) create(name string) error {
	content := fmt.Sprint("content of ", name)
	s.want[name] = content
	s.did.Created++
	f, err := os.OpenFile(s.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(content); err != nil {
		_ = f.Close() // the first error matters
		return err
	}
	return f.Close()
}

// rename gives a name another one: a new one, or that of another file, which is then replaced.
func (s *stormer) rename(old, fresh string) error {
	if old == "" {
		return nil
	}
	to := fresh
	if over := s.pick(false); over != "" && over != old && s.want[old] != isFolder && s.random.IntN(2) == 0 {
		to = over
	}
	s.want[to] = s.want[old]
	delete(s.want, old)
	s.did.Renamed++
	return os.Rename(s.path(old), s.path(to))
}

// remove removes a name. Of a file that is open it also reads on behind the end of its name.
func (s *stormer) remove(old string) error {
	if old == "" {
		return nil
	}
	content := s.want[old]
	delete(s.want, old)
	s.did.Removed++
	if content == isFolder {
		return os.Remove(s.path(old))
	}
	f, err := os.Open(s.path(old))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(s.path(old)); err != nil {
		return err
	}
	// Past the page cache, which would not tell.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != content {
		return fmt.Errorf("the open file of a removed name gives %q, %w", got, err)
	}
	return nil
}

// ContestArgs say what to fight for: Names files in Dir, each for whoever makes it first.
type ContestArgs struct {
	Dir, Who string
	Names    int
}

// Contest tries to make all the files, each exclusively, and returns the names of those it has made.
func (*Work) Contest(a ContestArgs, won *[]string) error {
	for n := range a.Names {
		name := fmt.Sprint("prize-", n)
		f, err := os.OpenFile(filepath.Join(a.Dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(a.Who)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		*won = append(*won, name)
	}
	return nil
}
