package cli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var update = flag.Bool("update", false, "write what the commands print into testdata, for a person to read")

// golden is a transcript of commands: what a person types and gets.
type golden struct {
	name  string
	setup func(f *fakeNode)
	// script is one command a line.
	script string
}

var busy = errs.Text("start backup", "web", errs.Busy, "task 3f1c9a0be4d2 works on it").WithNext("Wait for it: holdfast task watch 3f1c9a0be4d2")

var goldens = []golden{
	{"manager", nil, `
manager list
manager list -o json
manager show prod
manager show prod -o json
manager add new --url engine2.example.com --user admin@internal --password-file password --ca-file ca.pem
manager add new --url engine2.example.com --user admin@internal --password-file password --ca-file ca.pem -o json
manager rm lab
manager rm lab -o json
manager show nonsense`},
	{"manager-confirm", func(f *fakeNode) {
		f.fail["AddManager"] = errs.Wrap("add manager", "new", errs.Text("trust engine", "https://engine2.example.com/ovirt-engine/api", errs.Denied,
			"the engine's certificate authority is not known yet; its fingerprint (SHA-256) is "+theFingerprint).WithNext("Compare it."))
	}, `
manager add new --url engine2.example.com --user admin@internal --password-file password
manager add new --url engine2.example.com --user admin@internal --password-file password --node /run/other.sock
manager add new --url engine2.example.com --user admin@internal --password-file password --accept-fingerprint 00:11
manager add new --url engine2.example.com --user admin@internal --password-file password --accept-fingerprint ` + strings.Repeat("00", 32)},
	{"manager-password", nil, `
manager add new --url e --user u@d --password-file shared
manager add new --url e --user u@d --password-file empty
manager add new --url e --user u@d --password-file lines
manager add new --url e --user u@d --password-file missing
manager add new --url e --user u@d
manager add new --url e --password-file password
manager add new --user u@d --password-file password
manager add new --url e --user u@d --password-file password --ca-file ca.pem --accept-fingerprint 00
manager add new --url e --user u@d --password-file password --ca-file missing`},
	{"manager-partial", func(f *fakeNode) {
		f.fail["ListManagers"] = errs.Text("read managers", "old", errs.Corrupt, "unexpected end of JSON input")
	}, `
manager list
manager list -o json`},
	{"vm", nil, `
vm list
vm list -o json
vm show web
vm show web -o json
vm show mail
vm show nonsense`},
	{"vm-partial", func(f *fakeNode) {
		f.partial = []error{errs.Text("list VMs of", "lab", errs.Transient, "dial tcp 192.0.2.7:443: connect: no route to host")}
	}, `
vm list
vm list -o json`},
	{"nothing", func(f *fakeNode) { *f = fakeNode{fail: map[string]error{}} }, `
manager list
manager list -o json
vm list
vm list -o json
session list
session list -o json
task list
task list -o json`},
	{"backup", nil, `
backup run web
backup run web -o json
backup run web --wait
backup run web --wait -o json
backup run web --full --strategy cbt --manager prod --node https://node.example.com:9443 --token-file token
backup run web --strategy attach`},
	{"backup-refused", func(f *fakeNode) { f.fail["StartBackup"] = busy }, `
backup run web
backup run web --wait -o json`},
	{"backup-fails", func(f *fakeNode) {
		t := f.states[backupID][0]
		f.states[backupID] = []appliance.Task{t, failedState(t, &appliance.Problem{Code: "busy", Title: "back up web", Cause: "disk web_Disk1 is locked",
			Cleaned: "nothing is left on the engine", Remedy: "Wait until the engine has finished what it does with the disk, then run the backup again."})}
	}, `
backup run web --wait
backup run web --wait -o json`},
	{"backup-canceled", func(f *fakeNode) {
		t := failedState(f.states[backupID][0], &appliance.Problem{Code: "canceled", Title: "back up web", Cause: "context canceled"})
		t.State = appliance.TaskCanceled
		f.states[backupID] = []appliance.Task{t}
	}, `
backup run web --wait`},
	{"restore", nil, `
restore instant web
restore instant web --power-on -o json
restore instant web@-3d --name copy --cluster Default --power-on --format raw --manager prod --wait
restore instant 3f1c --power-on --wait -o json
restore instant web --format vmdk`},
	{"session", nil, `
session list
session list -o json
session show 7d0e
session show 7d0e -o json
session migrate 7d0e --to fast
session migrate 7d0e --to fast -o json
session release 7d0e --discard
session release 7d0e --wait
session release 7d0e --wait -o json
session keep 7d0e
session keep 7d0e --running --wait
session keep 7d0e --wait -o json
session show 00`},
	{"session-migrated", func(f *fakeNode) {
		f.sessions[0] = theSession(appliance.SessionMigrated)
		f.sessions[0].MigrateTo, f.sessions[0].Disks[0].Migrated = "fast", true
	}, `
session list
session show 7d0e
session migrate 7d0e --to fast --wait
session migrate 7d0e --to fast --wait -o json`},
	{"session-over", func(f *fakeNode) {
		f.sessions[0] = theSession(appliance.SessionReleased)
		f.sessions[0].MigrateTo, f.sessions[0].Disks[0].Migrated = "fast", true
		lost := theSession(appliance.SessionFailed)
		lost.ID, lost.Created = "00ff00ff00ff", at(100)
		lost.Problem = &appliance.Problem{Code: "unreachable", Title: "instant restore of web", Cause: "attach the domain: the engine did not answer",
			Cleaned: "nothing is left on the engine", Remedy: "Look at the network, then restore again."}
		f.sessions = append(f.sessions, lost)
	}, `
session list
session show 00ff
restore instant web --migrate-to fast --wait`},
	{"task", func(f *fakeNode) {
		running := backupStates()[1]
		running.ID, running.Subject, running.Started = "3f1c9a0bffff", "mail", at(-2)
		bad := failedState(f.states[migrateID][0], &appliance.Problem{Code: "unreachable", Title: "migrate session " + sessionID, Cause: "no route to host",
			Cleaned: "the disks go on being served by this node", Remedy: "Try again with `holdfast session migrate " + sessionID + "`."})
		bad.Ended = atp(340)
		f.tasks = append(f.tasks, bad, running)
	}, `
task list
task list -o json
task show 3f1c9a0be
task show 3f1c9a0be -o json
task show 3f1c9a0bf
task show b6
task watch 3f1c9a0be
task watch 3f1c9a0be -o json
task cancel 3f1c9a0bf
task cancel 3f1c9a0bf -o json
task show 3f1c
task show nonsense`},
	{"unreachable", func(f *fakeNode) {
		f.fail["Dial"] = errs.Text("read API token", "token", errs.NotFound, "no such file or directory")
	}, `
vm list
task list -o json`},
	{"no-next-step", func(f *fakeNode) {
		f.fail["ListVMs"] = errs.Text("ask node", "", errs.Denied, "the user may not do that")
		f.fail["GetVM"] = errors.New("a broken invariant")
	}, `
vm list
vm show web`},
}

// TestTranscripts runs the scripts and compares all that is printed, and the exit codes.
func TestTranscripts(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			b := boxAt(t, t.TempDir())
			t.Chdir(b.dir)
			b.file("password", []byte("sEcReT\n"))
			b.file("ca.pem", []byte("-----BEGIN CERTIFICATE-----\n"))
			b.file("empty", []byte("\n"))
			b.file("lines", []byte("one\ntwo\n"))
			if err := os.Chmod(b.file("shared", []byte("sEcReT")), 0o644); err != nil {
				t.Fatal(err)
			}
			if g.setup != nil {
				g.setup(b.node)
			}
			var out strings.Builder
			for line := range strings.Lines(strings.TrimSpace(g.script)) {
				line = strings.TrimSpace(line)
				r := b.run(strings.Fields(line)...)
				fmt.Fprintf(&out, "$ holdfast %s\n%s", line, r.out)
				if r.err != "" {
					fmt.Fprintf(&out, "--- stderr\n%s", r.err)
				}
				fmt.Fprintf(&out, "--- exit code %d\n\n", r.code)
				checkForms(t, line, r)
			}
			if strings.Contains(out.String(), "sEcReT") {
				t.Error("the password is shown")
			}
			if strings.ContainsAny(out.String(), "\x1b\x00\r") {
				t.Error("a name reached the terminal as it came")
			}
			compare(t, filepath.Join(here, "testdata", g.name+".txt"), out.String())
		})
	}
}

// here is this package's folder, from anywhere.
var here, _ = filepath.Abs(".")

// checkForms holds every command to what docs/cli.md promises of all.
func checkForms(t *testing.T, line string, r result) {
	t.Helper()
	if strings.HasSuffix(line, "-o json") {
		for doc := range strings.Lines(r.out) {
			if !json.Valid([]byte(doc)) {
				t.Errorf("%s: not JSON: %s", line, doc)
			}
		}
	}
	if r.code == 0 {
		return
	}
	lines := strings.Split(strings.TrimSuffix(r.err, "\n"), "\n")
	if n := len(lines); n < 2 || !strings.HasPrefix(lines[n-2], "holdfast: ") || len(lines[n-1]) < 5 || lines[n-1][:2] != "  " {
		t.Errorf("%s: the error is not two lines:\n%s", line, r.err)
	}
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./appliance/cli -run %s -update writes it)", err, t.Name())
	}
	if got != string(want) {
		t.Errorf("%s is no longer what is printed:\n%s\nIf that is meant: go test ./appliance/cli -run TestTranscripts -update", filepath.Base(file), firstDifference(string(want), got))
	}
}

// firstDifference shows the first line that differs, with the command above it.
func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	command := ""
	for i := range min(len(w), len(g)) {
		if strings.HasPrefix(w[i], "$ ") {
			command = w[i]
		}
		if w[i] != g[i] {
			return command + "\nwant " + w[i] + "\ngot  " + g[i]
		}
	}
	return fmt.Sprintf("%s\n%d lines, want %d", command, len(g), len(w))
}

// TestEveryTranscriptIsRun finds transcripts that no test writes any more.
func TestEveryTranscriptIsRun(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(err, len(files))
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		if !slices.ContainsFunc(goldens, func(g golden) bool { return g.name == name }) {
			t.Errorf("%s belongs to no test", f)
		}
	}
}

// TestWhatTheNodeIsAsked follows flags and arguments to the other side.
func TestWhatTheNodeIsAsked(t *testing.T) {
	for _, c := range []struct{ args, call, want string }{
		{"backup run web", "StartBackup", "[{VM:web Manager: Full:false Strategy:auto KeepSnapshot:false}]"},
		{"backup run web --full --manager m --strategy cbt", "StartBackup", "[{VM:web Manager:m Full:true Strategy:cbt KeepSnapshot:false}]"},
		{"backup run web --strategy transfer --keep-snapshot", "StartBackup", "[{VM:web Manager: Full:false Strategy:transfer KeepSnapshot:true}]"},
		{"restore instant web", "StartInstant", "[{Point:web@latest Manager: Name: Cluster: PowerOn:false MigrateTo: Format:qcow2}]"},
		{"restore instant web@2026-09-14 --power-on --name n --cluster c --migrate-to d --format raw --manager m", "StartInstant",
			"[{Point:web@2026-09-14 Manager:m Name:n Cluster:c PowerOn:true MigrateTo:d Format:raw}]"},
		{"restore instant me@home", "StartInstant", "[{Point:me@home@latest Manager: Name: Cluster: PowerOn:false MigrateTo: Format:qcow2}]"},
		{"restore instant 3F1C", "StartInstant", "[{Point:3F1C Manager: Name: Cluster: PowerOn:false MigrateTo: Format:qcow2}]"},
		{"restore instant nobody", "StartInstant", "[{Point:nobody@latest Manager: Name: Cluster: PowerOn:false MigrateTo: Format:qcow2}]"},
		{"restore vm web --wait", "StartRestore",
			"[{Point:web@latest Manager: Name: Cluster: StorageDomain: Disks:[] Networks:map[] MAC: Verify:extents PowerOn:false}]"},
		{"restore vm web@-3d --name n --cluster c --storage-domain s --disks 0,3 --network a/b=c --network nic2= --keep-mac --verify full --power-on --manager m", "StartRestore",
			"[{Point:web@-3d Manager:m Name:n Cluster:c StorageDomain:s Disks:[0 3] Networks:map[a/b:c nic2:] MAC:keep Verify:full PowerOn:true}]"},
		{"restore vm 3F1C --new-mac --dry-run", "PlanRestore",
			"[{Point:3F1C Manager: Name: Cluster: StorageDomain: Disks:[] Networks:map[] MAC:new Verify:extents PowerOn:false}]"},
		{"session migrate 7D0E --to fast", "StartMigrate", "[" + sessionID + " fast]"},
		{"session migrate 7d0e", "StartMigrate", "[" + sessionID + " ]"},
		{"session release 7d0e", "StartRelease", "[" + sessionID + " false]"},
		{"session release 7d0e --discard", "StartRelease", "[" + sessionID + " true]"},
		{"session keep 7d0e", "StartKeep", "[" + sessionID + " false]"},
		{"session keep 7d0e --running", "StartKeep", "[" + sessionID + " true]"},
		{"task cancel 3f", "CancelTask", "[" + backupID + "]"},
		{"manager rm prod", "RemoveManager", "[prod]"},
	} {
		b := boxAt(t, t.TempDir())
		b.ok(strings.Fields(c.args)...)
		if got := b.node.asked(c.call); got != c.call+c.want {
			t.Errorf("%s: asked %s, want %s%s", c.args, got, c.call, c.want)
		}
	}
}

func TestPasswordsArriveWhole(t *testing.T) {
	for content, want := range map[string]string{
		"simple\n": "simple", "simple": "simple", "dos\r\n": "dos", " spaces \n": " spaces ", "end\r": "end\r", "ü€\n": "ü€",
	} {
		b := boxAt(t, t.TempDir())
		b.ok("manager", "add", "n", "--url", "e", "--user", "u@d", "--password-file", b.file("p", []byte(content)), "--ca-file", b.file("ca", []byte("-----BEGIN CERTIFICATE-----")))
		if got := b.node.asked("AddManager"); got != "AddManager[{Name:n URL:e User:u@d Password:"+want+" CA:-----BEGIN CERTIFICATE----- Fingerprint:}]" {
			t.Errorf("%q: %q", content, got)
		}
	}
}

// TestWhichNodeIsAsked: flags win over the environment.
func TestWhichNodeIsAsked(t *testing.T) {
	b := boxAt(t, t.TempDir())
	b.ok("vm", "list")
	if want := (client.Options{}); b.node.at != want {
		t.Errorf("%+v", b.node.at)
	}
	b.env["HOLDFAST_NODE"], b.env["HOLDFAST_TOKEN_FILE"], b.env["HOLDFAST_NODE_CA"] = "https://n:1", "t", "c"
	b.ok("vm", "list")
	if want := (client.Options{Node: "https://n:1", TokenFile: "t", CAFile: "c"}); b.node.at != want {
		t.Errorf("%+v", b.node.at)
	}
	if out := b.ok("backup", "run", "web"); !strings.Contains(out, "Watch it: holdfast task watch "+backupID+"\n") {
		t.Errorf("the environment is the same for the next command:\n%s", out)
	}
	out := b.ok("backup", "--node", "/a b.sock", "run", "web", "--token-file", "u")
	if want := (client.Options{Node: "/a b.sock", TokenFile: "u", CAFile: "c"}); b.node.at != want {
		t.Errorf("%+v", b.node.at)
	}
	if !strings.Contains(out, "holdfast task watch "+backupID+" --node '/a b.sock' --token-file u\n") {
		t.Errorf("the next command would ask another node:\n%s", out)
	}
	b.fails(exitUsage, []string{"point", "list", "--node", "x"}, "unknown flag")
}

// TestExitCodesOfTheNode walks all kinds of errors, of calls and of tasks.
func TestExitCodesOfTheNode(t *testing.T) {
	for _, k := range errs.Kinds {
		b := boxAt(t, t.TempDir())
		b.node.fail["ListTasks"] = errs.Text("list tasks", "", k, "as the test wants it")
		b.fails(codes[k], []string{"task", "list"}, "as the test wants it", nodeNexts[k])
		b.node.fail["ListVMs"] = errs.Text("list VMs", "", k, "as the test wants it").WithNext("Do that.")
		b.fails(codes[k], []string{"vm", "list"}, "as the test wants it", "\n  Do that.\n")
		b.node.fail["ListPoints"] = errs.Text("list points", "", k, "as the test wants it")
		b.fails(codes[k], []string{"restore", "instant", "web"}, "as the test wants it", nodeNexts[k])
		if nodeNexts[k] == "" || !strings.HasSuffix(nodeNexts[k], ".") {
			t.Errorf("%v has no next step: %q", k, nodeNexts[k])
		}
		first := b.node.states[backupID][0]
		b.node.states[backupID] = []appliance.Task{failedState(first, &appliance.Problem{Code: task.Code(k), Title: "back up web", Cause: "so it is"})}
		b.failed(b.run("backup", "run", "web", "--wait"), codes[k], nil, "back up web: so it is", "holdfast task show "+backupID)
	}
	b := boxAt(t, t.TempDir())
	b.node.states[backupID] = []appliance.Task{failedState(b.node.states[backupID][0], nil)}
	b.fails(exitError, []string{"backup", "run", "web", "--wait"}, "does not say why")
}

func TestPrefixes(t *testing.T) {
	get := func(id string) error {
		switch id {
		case "hidden":
			return nil
		case "damaged":
			return errs.Text("read", id, errs.Corrupt, "it is damaged")
		case "in/valid":
			return errs.Text("name", id, errs.Invalid, "no name")
		}
		return none("x", id)
	}
	ids := []string{"3f1c", "3f1c9a", "3f2d", "aa00"}
	for text, want := range map[string]string{"3f1c": "3f1c", "3f1c9": "3f1c9a", "AA": "aa00", "hidden": "hidden"} {
		if got, err := find("task", text, ids, get); got != want || err != nil {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for text, want := range map[string]errs.Kind{
		"3f": errs.Invalid, "": errs.Invalid, "bb": errs.NotFound, "in/valid": errs.NotFound, "damaged": errs.Corrupt, "3f1c9ab": errs.NotFound,
	} {
		if got, err := find("task", text, ids, get); !errs.Is(err, want) || got != "" || errs.NextStep(err) == "" && want != errs.Corrupt {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	if n := shortest([]string{"3f1c9a0be4d2", "3f1c9a0bffff", "aa"}); n != 9 {
		t.Errorf("%d digits", n)
	}
	if n := shortest([]string{"3f1c9a0be4d2", "3f1c9a0be4d2", "3f1c"}); n != 8 {
		t.Errorf("%d digits", n)
	}
}

func TestQuoting(t *testing.T) {
	for word, want := range map[string]string{
		"admin@internal": "admin@internal", "https://h:1/x_y-z.w": "https://h:1/x_y-z.w", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'", "é": "'é'",
	} {
		if got := quote(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}
