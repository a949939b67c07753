package arch

// rule is one thing the tree is held to.
type rule struct {
	name   string
	why    string
	check  func(*tree) []fault
	broken []sources // each of these must be found
	sound  []sources // none of these may be
}

// sources is a small tree: path → content. The package clause may be left out; withPackage adds one.
type sources map[string]string

// exception is a place where a rule does not hold. Where is a path as a fault names it, without the line.
type exception struct{ rule, where, why string }

// exceptions should stay few. One that is not needed any more fails the test.
var exceptions = []exception{
	{"no sleep in tests", "fs/fuse/mount_test.go", "only the kernel knows that a client's read has begun and how old its attributes are; neither can be waited for"},
	{"no sleep in tests", "fs/fuse/fault_test.go", "only the kernel knows that a client's read has begun, which a signal must meet"},
	{"no sleep in tests", "nfsd/rpc/server_test.go", "waits for the operating system to close real connections, which gives no sign"},
	{"import chain", "cmd/holdfast", "eight, until chunkstore leaves the choice of a backend to appliance/node"},
	{"import chain", "cmd/holdfastd", "likewise: what the strategies share stands between them and the store"},
	{"import chain", "appliance/cli", "likewise"},
	{"import chain", "cmd/holdfast-lab", "eight: an installation is made of a data center, that of a host, that of real parts"},
	{"file size", "fs/overlay/model_test.go", "three lines over"},
	{"function size", "appliance/node/import.go", "one import, step by step"},
	{"function size", "chunkstore/store_test.go", "one history of a store, told in order"},
	{"function size", "fs/synthetic/qcow2/damage_test.go", "one table of header fields"},
	{"function size", "fs/synthetic/qcow2/view_test.go", "one walk over the whole layout"},
}

const ourModule = `"` + module + "/"

// imp returns a file that imports one of our packages.
func imp(dir string) string { return "import _ " + ourModule + dir + "\"\n" }

var rules = []rule{
	{
		name:  "layers",
		why:   "cmd → appliance → {chunkstore, fs, nfsd} → internal, and nfsd → fs: a part can be read, tested and replaced without what lies above or beside it; chunkstore and fs are joined by appliance/node alone",
		check: checkLayers,
		broken: []sources{
			{"chunkstore/x.go": imp("fs")}, {"fs/synthetic/x.go": imp("chunkstore")}, {"chunkstore/x_test.go": imp("fs")},
			{"fs/x.go": imp("nfsd")}, {"nfsd/x.go": imp("chunkstore/pack")}, {"internal/x/x.go": imp("chunkstore/chunk")},
			{"chunkstore/x.go": imp("appliance")}, {"appliance/x.go": imp("cmd/holdfast")}, {"docs/x.go": ""}, {"x.go": ""},
			{"cmd/holdfast/x.go": imp("cmd/holdfastd")},
		},
		sound: []sources{
			{"cmd/holdfast/x.go": imp("appliance/cli"), "appliance/x.go": imp("chunkstore") + imp("nfsd"), "nfsd/x.go": imp("fs"),
				"fs/fuse/x.go": imp("fs"), "internal/x/x.go": imp("internal/errs"), "image/boot_test.go": imp("internal/lab")},
			{"chunkstore/x.go": `import _ "io/fs"`},
		},
	},
	{
		name:   "words",
		why:    "the package appliance is the product's words, which every part of the product shares: it can only be imported everywhere if it imports nothing but internal",
		check:  checkWords,
		broken: []sources{{"appliance/vm.go": imp("appliance/ovirt")}, {"appliance/vm.go": imp("chunkstore")}},
		sound:  []sources{{"appliance/vm.go": imp("internal/errs"), "appliance/node/x.go": imp("chunkstore")}},
	},
	{
		name:  "confined",
		why:   "a foreign module is known to one package, which speaks our words to the rest: it can be replaced there, its traps are written down there, and a big one is compiled only there",
		check: checkConfined,
		broken: []sources{
			{"appliance/ovirt/imageio/x.go": `import _ "github.com/ovirt/go-ovirt"`}, {"fs/x.go": `import _ "github.com/hanwen/go-fuse/v2/fuse"`},
			{"fs/x_test.go": `import _ "github.com/willscott/go-nfs"`}, {"fs/fuse/x_test.go": `import _ "github.com/willscott/go-nfs-client/nfs"`},
			{"chunkstore/x.go": `import b "github.com/dgraph-io/badger/v4"`}, {"chunkstore/x.go": `import _ "filippo.io/age/armor"`},
			{"appliance/api/x.go": `import _ "github.com/spf13/cobra"`}, {"appliance/api/client/x.go": `import _ "github.com/danielgtaylor/huma/v2"`},
		},
		sound: []sources{{
			"appliance/ovirt/x.go": `import _ "github.com/ovirt/go-ovirt"`, "fs/fuse/x.go": `import _ "github.com/hanwen/go-fuse/v2/fs"`,
			"nfsd/nfs3/x.go": `import _ "github.com/willscott/go-nfs"`, "chunkstore/index/x.go": `import _ "github.com/dgraph-io/badger/v4/pb"`,
			"chunkstore/keys/x.go": `import _ "filippo.io/age"`, "internal/lab/vm/x.go": `import _ "github.com/spf13/cobra"`,
			"chunkstore/x.go": `import _ "github.com/dgraph-io/badgerish"`,
		}},
	},
	{
		name:  "go-nfs serves only in tests",
		why:   "go-nfs gives us words, types and encoders; its server dies of a refused mount and empties existing files, so it must never face a host",
		check: checkGoNFS,
		broken: []sources{
			{"nfsd/x.go": `import nfs "github.com/willscott/go-nfs"` + "\nvar _ = nfs.Serve"},
			{"nfsd/x.go": `import n "github.com/willscott/go-nfs"` + "\ntype x struct { n.Server }"},
			{"nfsd/nfs3/x.go": `import "github.com/willscott/go-nfs"` + "\nvar _ = nfs.ToFileAttribute"},
			{"nfsd/x.go": `import _ "github.com/willscott/go-nfs/helpers"`},
		},
		sound: []sources{
			{"nfsd/x_test.go": `import nfs "github.com/willscott/go-nfs"` + "\nvar _ = nfs.Serve"},
			{"nfsd/x.go": `import nfs "github.com/willscott/go-nfs"` + "\nvar _ = nfs.FileAttribute{}"},
			{"nfsd/nfstest/x.go": `import _ "github.com/willscott/go-nfs/helpers"`},
		},
	},
	{
		name:  "strategies",
		why:   "attach, transfer and cbt are three independent ways to read a VM; what two of them share belongs to a package that both import",
		check: checkStrategies,
		broken: []sources{
			{"appliance/strategy/cbt/x.go": imp("appliance/strategy/attach")},
			{"appliance/strategy/attach/x_test.go": imp("appliance/strategy/transfer")},
		},
		sound: []sources{{"appliance/strategy/cbt/x.go": imp("appliance/strategy"), "appliance/node/x.go": imp("appliance/strategy/cbt")}},
	},
	{
		name:   "lab",
		why:    "the lab simulates an engine: nothing of it may end up in the product",
		check:  checkLab,
		broken: []sources{{"cmd/holdfastd/x.go": imp("internal/lab")}, {"appliance/node/x.go": imp("internal/lab/qemu")}},
		sound: []sources{
			{"cmd/holdfast-lab/x.go": imp("internal/lab"), "internal/lab/x.go": imp("internal/lab/qemu"), "appliance/x_test.go": imp("internal/lab")},
			{"appliance/x.go": imp("internal/labels")},
		},
	},
	{
		name:   "testing",
		why:    "the package testing registers flags and keeps test code in the daemon; helpers for tests live in packages whose names end in test, and only tests and such packages import those",
		check:  checkTesting,
		broken: []sources{{"fs/x.go": `import _ "testing"`}, {"fs/x.go": `import _ "testing/fstest"`}, {"fs/fuse/x.go": imp("fs/fstest")}},
		sound:  []sources{{"fs/x_test.go": `import _ "testing"`, "fs/fstest/x.go": `import _ "testing"`, "fs/fuse/x_test.go": imp("fs/fstest")}},
	},
	{
		name:  "import chain",
		why:   "whoever reads a package has to know what it stands on: more than seven of ours in a row is more than a head holds",
		check: checkChain,
		broken: []sources{{
			"fs/a/x.go": imp("fs/b"), "fs/b/x.go": imp("fs/c"), "fs/c/x.go": imp("fs/d"), "fs/d/x.go": imp("fs/e"), "fs/e/x.go": imp("fs/f"),
			"fs/f/x.go": imp("fs/g"), "fs/g/x.go": imp("fs/h"), "fs/h/x.go": "",
		}},
		sound: []sources{
			{"fs/a/x.go": imp("fs/b"), "fs/b/x.go": imp("fs/c"), "fs/c/x.go": imp("fs/d"), "fs/d/x.go": imp("fs/e"), "fs/e/x.go": imp("fs/f"), "fs/f/x.go": imp("fs/g"), "fs/g/x.go": ""},
			{"fs/a/x.go": imp("fs/b"), "fs/b/x.go": imp("fs/a")},
		},
	},
	{
		name:  "package comments",
		why:   "the package comment is the first thing a newcomer reads; one blank line before the package clause hides it from go doc",
		check: checkComments,
		broken: []sources{
			{"fs/x.go": "package fs\n"}, {"fs/x.go": "// Package fs is cut off.\n\npackage fs\n"}, {"cmd/x/main.go": "package main\n"},
			{"fs/x.go": "// Package other is about something else.\npackage fs\n"}, {"image/boot_test.go": "package image\n"},
		},
		sound: []sources{
			{"fs/x.go": "// Package fs is a tree.\npackage fs\n", "fs/y.go": "package fs\n"}, {"fs/doc.go": "// Package fs is a tree.\npackage fs\n", "fs/a.go": "// Copyright\n\npackage fs\n"},
			{"cmd/x/main.go": "// Command x runs.\npackage main\n"}, {"image/boot_test.go": "// Package image_test boots.\n//\n// Package image is tests.\npackage image\n", "image/doc.go": "// Package image has tests.\npackage image\n"},
		},
	},
	{
		name:   "folder depth",
		why:    "a tree that is more than three folders deep is one that nobody can draw",
		check:  checkDepth,
		broken: []sources{{"fs/synthetic/qcow2/tables/x.go": ""}, {"docs/a/b/c/x.md": "text"}},
		sound:  []sources{{"fs/synthetic/qcow2/x.go": "", "fs/synthetic/qcow2/testdata/fuzz/FuzzX/seed": "x", "x.md": "text"}},
	},
	{
		name:   "file size",
		why:    "a file of more than 500 lines is several things: split it, or say in a line that begins with \"// Long:\" why it is one",
		check:  checkFileSize,
		broken: []sources{{"fs/x.go": lines("//", 501)}, {"fs/x_test.go": lines("// Longing", 501)}},
		sound:  []sources{{"fs/x.go": lines("//", 400)}, {"fs/x.go": lines("//", 600) + "// Long: one table.\n"}},
	},
	{
		name:   "function size",
		why:    "a function of more than 60 lines does not fit on a screen: split it, or say in a line of its comment that begins with \"// Long:\" why it is one",
		check:  checkFuncSize,
		broken: []sources{{"fs/x.go": "func f() {\n" + lines("\tf()", 59) + "}\n"}, {"fs/x.go": "// Long: no.\n\nfunc f() {\n" + lines("\tf()", 59) + "}\n"}},
		sound: []sources{
			{"fs/x.go": "func f() {\n" + lines("\tf()", 58) + "}\n"},
			{"fs/x.go": "// f does.\n// Long: one switch.\nfunc f() {\n" + lines("\tf()", 90) + "}\n"},
		},
	},
	{
		name:   "no init",
		why:    "an init function runs for everybody who imports the package, in an order nobody chose; construct by New with options",
		check:  checkInit,
		broken: []sources{{"fs/x.go": "func init() {}\n"}, {"fs/x_test.go": "func init() {}\n"}},
		sound:  []sources{{"fs/x.go": "type t struct{}\n\nfunc (t) init() {}\n"}},
	},
	{
		name:  "fuzz seeds",
		why:   "a fuzz test without a seed passes as an ordinary test without having run once",
		check: checkFuzz,
		broken: []sources{
			{"fs/x_test.go": "import \"testing\"\n\nfunc FuzzX(f *testing.F) { f.Fuzz(func(*testing.T, []byte) {}) }\n"},
			{"fs/x_test.go": "import \"testing\"\n\nfunc FuzzX(f *testing.F) { f.Fuzz(nil) }\n", "fs/testdata/fuzz/FuzzY/1": "x"},
		},
		sound: []sources{
			{"fs/x_test.go": "import \"testing\"\n\nfunc FuzzX(f *testing.F) { f.Add(1); f.Fuzz(nil) }\n"},
			{"fs/x_test.go": "import \"testing\"\n\nfunc FuzzX(f *testing.F) { seeds(f); f.Fuzz(nil) }\n\nfunc seeds(f *testing.F) { f.Add(1) }\n"},
			{"fs/x_test.go": "import \"testing\"\n\nfunc FuzzX(f *testing.F) { f.Fuzz(nil) }\n", "fs/testdata/fuzz/FuzzX/1": "x"},
		},
	},
	{
		name:   "environment",
		why:    "what a package does must be seen in its arguments; the environment is read where the process begins, and handed on",
		check:  checkEnvironment,
		broken: []sources{{"fs/x.go": "import \"os\"\n\nvar x = os.Getenv(\"X\")\n"}, {"appliance/api/x.go": "import o \"os\"\n\nfunc f() { o.LookupEnv(\"X\") }\n"}},
		sound:  []sources{{"fs/x_test.go": "import \"os\"\n\nvar x = os.Getenv(\"X\")\n", "cmd/x/x.go": "import \"os\"\n\nvar x = os.Getenv(\"X\")\n"}, {"fs/y.go": "import \"os\"\n\nvar x = os.Args\n"}},
	},
	{
		name:   "no sleep in tests",
		why:    "a test that sleeps is slow on a fast machine and wrong on a slow one: wait for what you wait for, or use testing/synctest",
		check:  checkSleep,
		broken: []sources{{"fs/x_test.go": "import \"time\"\n\nfunc f() { time.Sleep(1) }\n"}, {"fs/fstest/x.go": "import \"time\"\n\nfunc f() { time.Sleep(1) }\n"}},
		sound: []sources{{"fs/x.go": "import \"time\"\n\nfunc f() { time.Sleep(1) }\n"}, {"fs/x_test.go": "import \"time\"\n\nvar x = time.Second\n"},
			{"fs/x_test.go": "import (\n\t\"testing/synctest\"\n\t\"time\"\n)\n\nfunc f() { synctest.Test(nil, nil); time.Sleep(1) }\n"}},
	},
}
