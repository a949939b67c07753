package arch

import (
	"fmt"
	"go/token"
	"path"
	"slices"
	"strings"
)

// layers says what the packages below each top folder may import of ours. A top folder that is not here has no Go.
var layers = map[string][]string{
	"cmd":        {"appliance", "chunkstore", "fs", "nfsd", "internal"},
	"appliance":  {"appliance", "chunkstore", "fs", "nfsd", "internal"},
	"chunkstore": {"chunkstore", "internal"},
	"fs":         {"fs", "internal"},
	"nfsd":       {"nfsd", "fs", "internal"},
	"internal":   {"internal"},
	"image":      {"internal"}, // tests only: the image is booted from one
}

func top(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	return first
}

func checkLayers(t *tree) (faults []fault) {
	for _, f := range t.files {
		allowed, known := layers[top(f.dir)]
		if !known {
			faults = append(faults, fault{f.path, "no Go belongs into the top folder " + top(f.dir)})
			continue
		}
		for p, pos := range f.imports() {
			if dir, ok := ours(p); ok && !slices.Contains(allowed, top(dir)) {
				faults = append(faults, f.at(pos, "%s must not import %s", top(f.dir), dir))
			}
		}
	}
	return faults
}

func checkWords(t *tree) (faults []fault) {
	for _, f := range t.files {
		if f.dir != "appliance" || f.test {
			continue
		}
		for p, pos := range f.imports() {
			if dir, ok := ours(p); ok && top(dir) != "internal" {
				faults = append(faults, f.at(pos, "the product's words import %s", dir))
			}
		}
	}
	return faults
}

// confinement says where a foreign module may be imported.
type confinement struct {
	module string
	dirs   []string // these folders
	trees  []string // these and everything below
}

var confined = []confinement{
	{module: "github.com/ovirt/go-ovirt", dirs: []string{"appliance/ovirt"}},
	{module: "github.com/hanwen/go-fuse", dirs: []string{"fs/fuse"}},
	{module: "github.com/willscott/go-nfs", trees: []string{"nfsd"}},
	{module: "github.com/willscott/go-nfs-client", trees: []string{"nfsd"}},
	{module: "github.com/dgraph-io/badger", dirs: []string{"chunkstore/index", "appliance/catalog"}},
	{module: "github.com/dgraph-io/ristretto", dirs: []string{"chunkstore/index", "appliance/catalog"}},
	{module: "github.com/spf13/cobra", dirs: []string{"appliance/cli"}, trees: []string{"cmd", "internal/lab"}},
	{module: "github.com/spf13/pflag", dirs: []string{"appliance/cli"}, trees: []string{"cmd", "internal/lab"}},
	{module: "filippo.io/age", dirs: []string{"chunkstore/keys"}},
	{module: "github.com/zeebo/xxh3", dirs: []string{"chunkstore/cut"}},
	{module: "github.com/danielgtaylor/huma", dirs: []string{"appliance/api"}},
}

func checkConfined(t *tree) (faults []fault) {
	for _, f := range t.files {
		for p, pos := range f.imports() {
			for _, c := range confined {
				if under(p, c.module) && !slices.Contains(c.dirs, f.dir) && !in(f.dir, c.trees...) {
					faults = append(faults, f.at(pos, "%s belongs into %s", c.module, strings.Join(append(c.dirs, c.trees...), ", ")))
				}
			}
		}
	}
	return faults
}

const goNFS = "github.com/willscott/go-nfs"

func checkGoNFS(t *tree) (faults []fault) {
	for _, f := range t.files {
		if f.test || suite(f.dir) {
			continue
		}
		for p, pos := range f.imports() {
			if under(p, goNFS+"/helpers") {
				faults = append(faults, f.at(pos, "go-nfs's handlers outside of a test"))
			}
		}
		f.uses(goNFS, []string{"Serve", "Server", "ToFileAttribute"}, func(pos token.Pos, name string) {
			faults = append(faults, f.at(pos, "nfs.%s outside of a test", name))
		})
	}
	return faults
}

func checkStrategies(t *tree) (faults []fault) {
	const root = "appliance/strategy/"
	strategies := []string{root + "attach", root + "transfer", root + "cbt"}
	of := func(dir string) string {
		i := slices.IndexFunc(strategies, func(s string) bool { return in(dir, s) })
		if i < 0 {
			return ""
		}
		return strategies[i]
	}
	for _, f := range t.files {
		for p, pos := range f.imports() {
			dir, ok := ours(p)
			if a, b := of(f.dir), of(dir); ok && a != "" && b != "" && a != b {
				faults = append(faults, f.at(pos, "%s imports %s", path.Base(a), path.Base(b)))
			}
		}
	}
	return faults
}

func checkLab(t *tree) (faults []fault) {
	for _, f := range t.files {
		if f.test || suite(f.dir) || in(f.dir, "internal/lab", "cmd/holdfast-lab") {
			continue
		}
		for p, pos := range f.imports() {
			if dir, ok := ours(p); ok && in(dir, "internal/lab") {
				faults = append(faults, f.at(pos, "imports %s", dir))
			}
		}
	}
	return faults
}

func checkTesting(t *tree) (faults []fault) {
	for _, f := range t.files {
		if f.test || suite(f.dir) {
			continue
		}
		for p, pos := range f.imports() {
			if dir, ok := ours(p); under(p, "testing") || ok && suite(dir) {
				faults = append(faults, f.at(pos, "imports %s", p))
			}
		}
	}
	return faults
}

// maxChain is the largest number of our packages in a row of imports.
const maxChain = 7

func checkChain(t *tree) (faults []fault) {
	imports := map[string][]string{}
	for _, f := range t.files {
		for p := range f.imports() {
			if dir, ok := ours(p); ok && !f.test && !slices.Contains(imports[f.dir], dir) {
				imports[f.dir] = append(imports[f.dir], dir)
			}
		}
	}
	longest := map[string][]string{}
	var walk func(dir string) []string
	walk = func(dir string) []string {
		if chain, done := longest[dir]; done {
			return chain
		}
		longest[dir] = []string{dir} // ends a cycle, which the compiler reports
		slices.Sort(imports[dir])
		for _, next := range imports[dir] {
			if rest := walk(next); len(rest)+1 > len(longest[dir]) {
				longest[dir] = append([]string{dir}, rest...)
			}
		}
		return longest[dir]
	}
	for dir := range t.packages() {
		if chain := walk(dir); len(chain) > maxChain {
			faults = append(faults, fault{dir, fmt.Sprintf("%d packages: %s", len(chain), strings.Join(chain, " → "))})
		}
	}
	return faults
}
