package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// module is the import path of the repository's root.
const module = "github.com/holdfast-backup/holdfast"

// file is one parsed Go file.
type file struct {
	path  string // slash-separated, from the root
	dir   string // of path; "." is the root
	test  bool   // its name ends in _test.go
	lines int
	src   []byte
	ast   *ast.File
	fset  *token.FileSet
}

// tree is a parsed repository.
type tree struct {
	sys   fs.FS
	files []*file  // sorted by path
	dirs  []string // every folder with a file in it, sorted
}

// fault is one place where a rule does not hold.
type fault struct{ path, what string }

func (f fault) String() string { return f.path + ": " + f.what }

// skipped tells whether a folder is no part of the sources: test data, hidden folders, and what a build leaves behind.
func skipped(name string) bool {
	return name == "testdata" || name == "bin" || name != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_"))
}

// parse reads every Go file of a tree. A file that is not Go is a fault, not a reason to stop.
func parse(sys fs.FS) (t *tree, faults []fault, err error) {
	t = &tree{sys: sys}
	err = fs.WalkDir(sys, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && skipped(d.Name()):
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		if dir := path.Dir(p); !slices.Contains(t.dirs, dir) {
			t.dirs = append(t.dirs, dir)
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parseFile(sys, p)
		if err != nil {
			faults = append(faults, fault{p, err.Error()})
			return nil
		}
		t.files = append(t.files, f)
		return nil
	})
	return t, faults, err
}

func parseFile(sys fs.FS, p string) (*file, error) {
	src, err := fs.ReadFile(sys, p)
	if err != nil {
		return nil, err
	}
	f := &file{path: p, dir: path.Dir(p), test: strings.HasSuffix(p, "_test.go"), src: src, fset: token.NewFileSet()}
	f.lines = bytes.Count(src, []byte("\n"))
	f.ast, err = parser.ParseFile(f.fset, p, src, parser.ParseComments)
	return f, err
}

// line returns the line of a position.
func (f *file) line(p token.Pos) int { return f.fset.Position(p).Line }

// at returns a fault at a position.
func (f *file) at(p token.Pos, format string, a ...any) fault {
	return fault{fmt.Sprintf("%s:%d", f.path, f.line(p)), fmt.Sprintf(format, a...)}
}

// imports returns the import paths of the file, with their positions.
func (f *file) imports() map[string]token.Pos {
	all := map[string]token.Pos{}
	for _, i := range f.ast.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err == nil {
			all[p] = i.Pos()
		}
	}
	return all
}

// ours returns the folder of an import path of this repository.
func ours(importPath string) (dir string, ok bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// nameOf returns the name under which the file uses an import path, or "". The last element of the path stands for the
// package's name, which is so for all that the rules ask about.
func (f *file) nameOf(importPath string) string {
	for _, i := range f.ast.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err != nil || p != importPath {
			continue
		}
		if i.Name != nil {
			return i.Name.Name
		}
		return strings.TrimPrefix(path.Base(importPath), "go-")
	}
	return ""
}

// uses calls f with every mention of one of the names of an imported package.
func (f *file) uses(importPath string, names []string, found func(pos token.Pos, name string)) {
	pkg := f.nameOf(importPath)
	if pkg == "" {
		return
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok || !slices.Contains(names, s.Sel.Name) {
			return true
		}
		if x, ok := s.X.(*ast.Ident); ok && x.Name == pkg {
			found(s.Pos(), s.Sel.Name)
		}
		return true
	})
}

// in tells whether dir is one of the folders or below one of them.
func in(dir string, folders ...string) bool {
	for _, f := range folders {
		if dir == f || strings.HasPrefix(dir, f+"/") {
			return true
		}
	}
	return false
}

// under tells whether an import path is a module's or one of its packages'. Later major versions count.
func under(importPath, mod string) bool { return in(importPath, mod) }

// suite tells whether a folder holds a package of helpers for tests, as storetest.
func suite(dir string) bool { return strings.HasSuffix(path.Base(dir), "test") }

// funcs returns the functions and methods of a file.
func (f *file) funcs() (all []*ast.FuncDecl) {
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			all = append(all, fn)
		}
	}
	return all
}

// packages groups the files by folder.
func (t *tree) packages() map[string][]*file {
	all := map[string][]*file{}
	for _, f := range t.files {
		all[f.dir] = append(all[f.dir], f)
	}
	return all
}
