package arch

import (
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// root is the repository's root as seen from this folder.
const root = "../.."

func TestTree(t *testing.T) {
	if _, err := os.Stat(root + "/go.mod"); err != nil {
		t.Fatalf("this is not the repository: %v", err)
	}
	tr, faults, err := parse(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
	if len(tr.files) < 20 {
		t.Fatalf("only %d files were found: the rules would hold for want of sources", len(tr.files))
	}
	used := map[exception]bool{}
	for _, r := range rules {
		t.Run(name(r), func(t *testing.T) {
			faults := excuse(r, r.check(tr), used)
			for _, f := range faults {
				t.Error(f)
			}
			if len(faults) > 0 {
				t.Logf("why: %s", r.why)
			}
		})
	}
	for _, e := range exceptions {
		if !used[e] {
			t.Errorf("the exception from %q for %s is not needed", e.rule, e.where)
		}
	}
}

func name(r rule) string { return strings.ReplaceAll(r.name, " ", "-") }

// excuse returns the faults for which there is no exception, sorted.
func excuse(r rule, faults []fault, used map[exception]bool) (left []fault) {
	for _, f := range faults {
		i := slices.IndexFunc(exceptions, func(e exception) bool {
			where, _, _ := strings.Cut(f.path, ":")
			return e.rule == r.name && e.where == where
		})
		if i < 0 {
			left = append(left, f)
			continue
		}
		used[exceptions[i]] = true
	}
	slices.SortFunc(left, func(a, b fault) int { return strings.Compare(a.String(), b.String()) })
	return left
}

// TestRules: a rule that cannot fail holds nothing.
func TestRules(t *testing.T) {
	for _, r := range rules {
		t.Run(name(r), func(t *testing.T) {
			if r.why == "" || len(r.broken) == 0 || len(r.sound) == 0 {
				t.Error("a rule needs a reason, an example that breaks it and one that does not")
			}
			for _, s := range r.broken {
				if len(r.check(example(t, s))) == 0 {
					t.Errorf("not found: %v", s)
				}
			}
			for _, s := range r.sound {
				if faults := r.check(example(t, s)); len(faults) > 0 {
					t.Errorf("%v in the sound example %v", faults, s)
				}
			}
		})
	}
}

func example(t *testing.T, s sources) *tree {
	t.Helper()
	sys := fstest.MapFS{}
	for p, content := range s {
		sys[p] = &fstest.MapFile{Data: []byte(withPackage(p, content))}
	}
	tr, faults, err := parse(sys)
	if err != nil || len(faults) > 0 {
		t.Fatalf("the example %v is not Go: %v %v", s, err, faults)
	}
	return tr
}

// withPackage puts a package clause before a Go file that has none.
func withPackage(p, content string) string {
	if !strings.HasSuffix(p, ".go") || strings.HasPrefix(content, "package ") || strings.Contains(content, "\npackage ") {
		return content
	}
	return "package " + strings.NewReplacer("-", "_", ".", "root").Replace(path.Base(path.Dir(p))) + "\n\n" + content
}

func lines(line string, n int) string { return strings.Repeat(line+"\n", n) }

// TestParse: what is no Go is reported, and what is no source is left alone.
func TestParse(t *testing.T) {
	tr, faults, err := parse(fstest.MapFS{
		"fs/good.go":          {Data: []byte("package fs\n")},
		"fs/bad.go":           {Data: []byte("packag fs\n")},
		"fs/testdata/x/in.go": {Data: []byte("packag fs\n")},
		".git/x.go":           {Data: []byte("packag fs\n")},
		"bin/x.go":            {Data: []byte("packag fs\n")},
		"docs/x.md":           {Data: []byte("text\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(faults) != 1 || faults[0].path != "fs/bad.go" {
		t.Errorf("faults %v, want one for fs/bad.go", faults)
	}
	if len(tr.files) != 1 || tr.files[0].path != "fs/good.go" {
		t.Errorf("%d files, want fs/good.go", len(tr.files))
	}
	if want := []string{"docs", "fs"}; !slices.Equal(tr.dirs, want) {
		t.Errorf("folders %v, want %v", tr.dirs, want)
	}
}

// TestExceptionsAreUsed: an exception covers its rule and its file, and nothing else.
func TestExceptionsAreUsed(t *testing.T) {
	saved := exceptions
	defer func() { exceptions = saved }()
	exceptions = []exception{{"no init", "fs/x.go", "an example"}}
	used := map[exception]bool{}
	faults := []fault{{"fs/x.go:3", "a"}, {"fs/y.go:3", "b"}}
	if left := excuse(rule{name: "no init"}, faults, used); len(left) != 1 || left[0].path != "fs/y.go:3" || !used[exceptions[0]] {
		t.Errorf("left %v, used %v", left, used)
	}
	if left := excuse(rule{name: "layers"}, faults, used); len(left) != 2 {
		t.Errorf("left %v, want both", left)
	}
}
