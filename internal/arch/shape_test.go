package arch

import (
	"go/ast"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	maxFile  = 500 // lines
	maxFunc  = 60  // lines, from the word func to the closing brace
	maxDepth = 3   // folders below the root
)

// longLine is a comment line that says why something is longer than it should be.
var longLine = regexp.MustCompile(`(?m)^\s*// Long: \S`)

func checkComments(t *tree) (faults []fault) {
	for dir, files := range t.packages() {
		if fault, bad := commentFault(dir, files); bad {
			faults = append(faults, fault)
		}
	}
	return faults
}

func commentFault(dir string, files []*file) (fault, bool) {
	cut := ""
	for _, f := range files {
		name := strings.TrimSuffix(f.ast.Name.Name, "_test")
		want := "Package " + name + " "
		if name == "main" {
			want = "Command "
		}
		if f.ast.Doc != nil && (strings.HasPrefix(f.ast.Doc.Text(), want) || f.ast.Name.Name == "main" && f.ast.Doc.Text() != "") {
			return fault{}, false
		}
		for _, c := range f.ast.Comments {
			if c != f.ast.Doc && strings.HasPrefix(c.Text(), want) {
				cut = f.path
			}
		}
	}
	if cut != "" {
		return fault{cut, "the package comment is cut off from the package clause, so that go doc does not show it"}, true
	}
	return fault{dir, "no package comment that begins with the package's name"}, true
}

func checkDepth(t *tree) (faults []fault) {
	for _, dir := range t.dirs {
		if strings.Count(dir, "/")+1 > maxDepth {
			faults = append(faults, fault{dir, "deeper than " + strconv.Itoa(maxDepth) + " folders"})
		}
	}
	return faults
}

func checkFileSize(t *tree) (faults []fault) {
	for _, f := range t.files {
		if f.lines > maxFile && !longLine.Match(f.src) {
			faults = append(faults, fault{f.path, strconv.Itoa(f.lines) + " lines"})
		}
	}
	return faults
}

func checkFuncSize(t *tree) (faults []fault) {
	for _, f := range t.files {
		for _, fn := range f.funcs() {
			n := f.line(fn.End()) - f.line(fn.Pos()) + 1
			if n <= maxFunc || fn.Doc != nil && longComment(fn.Doc) {
				continue
			}
			faults = append(faults, f.at(fn.Pos(), "%s has %d lines", fn.Name.Name, n))
		}
	}
	return faults
}

func longComment(doc *ast.CommentGroup) bool {
	return slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return longLine.MatchString(c.Text) })
}

func checkInit(t *tree) (faults []fault) {
	for _, f := range t.files {
		for _, fn := range f.funcs() {
			if fn.Recv == nil && fn.Name.Name == "init" {
				faults = append(faults, f.at(fn.Pos(), "an init function"))
			}
		}
	}
	return faults
}

func checkFuzz(t *tree) (faults []fault) {
	for _, files := range t.packages() {
		bodies := map[string]ast.Node{}
		for _, f := range files {
			for _, fn := range f.funcs() {
				if fn.Recv == nil && fn.Body != nil {
					bodies[fn.Name.Name] = fn.Body
				}
			}
		}
		for _, f := range files {
			for _, fn := range f.funcs() {
				if !f.test || !strings.HasPrefix(fn.Name.Name, "Fuzz") || fn.Recv != nil || fn.Type.Params.NumFields() != 1 {
					continue
				}
				if !seeded(fn.Body, bodies) && !corpus(t.sys, path.Join(f.dir, "testdata", "fuzz", fn.Name.Name)) {
					faults = append(faults, f.at(fn.Pos(), "%s starts from nothing", fn.Name.Name))
				}
			}
		}
	}
	return faults
}

func corpus(sys fs.FS, dir string) bool {
	names, err := fs.ReadDir(sys, dir)
	return err == nil && len(names) > 0
}

// seeded tells whether a fuzz target adds seeds, by itself or in a function of its package that it calls.
func seeded(body ast.Node, bodies map[string]ast.Node) bool {
	found := false
	var look func(n ast.Node, deeper bool)
	look = func(n ast.Node, deeper bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || found {
				return !found
			}
			switch fun := call.Fun.(type) {
			case *ast.SelectorExpr:
				_, plain := fun.X.(*ast.Ident)
				found = plain && fun.Sel.Name == "Add"
			case *ast.Ident:
				if b := bodies[fun.Name]; b != nil && deeper {
					look(b, false)
				}
			}
			return !found
		})
	}
	look(body, true)
	return found
}

func checkEnvironment(t *tree) (faults []fault) {
	for _, f := range t.files {
		if f.test || in(f.dir, "cmd", "appliance/cli", "internal/lab") {
			continue
		}
		f.uses("os", []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, func(pos token.Pos, name string) {
			faults = append(faults, f.at(pos, "os.%s", name))
		})
	}
	return faults
}

func checkSleep(t *tree) (faults []fault) {
	for _, f := range t.files {
		if !f.test && !suite(f.dir) || f.imports()["testing/synctest"].IsValid() {
			continue // within synctest a sleep is how time passes
		}
		f.uses("time", []string{"Sleep"}, func(pos token.Pos, _ string) {
			faults = append(faults, f.at(pos, "time.Sleep"))
		})
	}
	return faults
}
