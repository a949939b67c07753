package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	manualFile   = "../../docs/api.md"
	documentFile = "../../docs/api/openapi.json"
)

var update = flag.Bool("update", false, "write docs/api/openapi.json")

// described is what the tests look at of an OpenAPI document.
type described struct {
	OpenAPI string `json:"openapi"`
	Paths   map[string]map[string]struct {
		OperationID string                     `json:"operationId"`
		Summary     string                     `json:"summary"`
		Responses   map[string]json.RawMessage `json:"responses"`
	} `json:"paths"`
	Components struct {
		Schemas map[string]json.RawMessage `json:"schemas"`
	} `json:"components"`
}

// TestDocument: the file in docs is what the code says (go test ./appliance/api -update writes it), and is sound.
func TestDocument(t *testing.T) {
	got, err := api.Document("v1")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(documentFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(documentFile)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the code says (%v): run go test ./appliance/api -update, and think of the scripts", documentFile, err)
	}
	var d described
	if err := json.Unmarshal(got, &d); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.OpenAPI, "3.1.") || len(d.Paths) < 14 {
		t.Errorf("OpenAPI %q with %d paths", d.OpenAPI, len(d.Paths))
	}
	ids := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" || len(op.Responses) < 2 || !bytes.Contains(op.Responses["default"], []byte("ProblemDetails")) {
				t.Errorf("%s %s is described by %+v", method, path, op)
			}
			ids[op.OperationID] = true
		}
	}
	for _, ref := range regexp.MustCompile(`"\$ref": "([^"]*)"`).FindAllStringSubmatch(string(got), -1) {
		if name, ok := strings.CutPrefix(ref[1], "#/components/schemas/"); !ok || d.Components.Schemas[name] == nil {
			t.Errorf("%s leads nowhere", ref[1])
		}
	}
	for name, s := range d.Components.Schemas {
		if strict := bytes.Contains(s, []byte(`"additionalProperties": false`)); strict != strings.HasSuffix(name, "Spec") {
			t.Errorf("%s: strict is %v; what is sent must be, what is answered must not", name, strict)
		}
	}
}

// TestServedDocument: it is served, with the version that runs, and needs nothing from elsewhere.
func TestServedDocument(t *testing.T) {
	h, _ := newHandler(t, &apitest.Service{})
	resp := ask(h, "GET", "/api/v1/openapi.json", "")
	b, err := io.ReadAll(resp.Body)
	want, _ := api.Document("1.2.3")
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/openapi+json" || !bytes.Equal(b, want) {
		t.Errorf("%s %v %s", resp.Status, resp.Header, b)
	}
	if bytes.Contains(b, []byte("http://")) || bytes.Contains(b, []byte("https://unpkg")) {
		t.Error("the document names addresses elsewhere")
	}
	for _, path := range []string{"/docs", "/api/v1/docs", "/openapi.json", "/openapi.yaml", "/schemas/Task.json"} {
		if p := problem(t, ask(h, "GET", path, "")); p.Status != 404 {
			t.Errorf("%s: %d", path, p.Status)
		}
	}
}

// TestManual: every path and every code is in the manual, with its status, and none that is not there.
func TestManual(t *testing.T) {
	manual, err := os.ReadFile(manualFile)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := api.Document("")
	var d described
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	var want []string
	for path, methods := range d.Paths {
		for method := range methods {
			want = append(want, strings.ToUpper(method)+" "+strings.TrimPrefix(path, api.Prefix))
		}
	}
	want = append(want, "GET /openapi.json")
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:GET|POST|DELETE|PUT) [^`]*)` \\|").FindAllStringSubmatch(string(manual), -1) {
		got = append(got, m[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the manual has\n%q, the code\n%q", got, want)
	}
	for _, k := range errs.Kinds {
		p := api.ProblemOf("x", errs.New("x", "", k, nil))
		row := regexp.MustCompile("(?m)^\\| `" + task.Code(k) + "` \\| (\\d+) \\|").FindStringSubmatch(string(manual))
		if row == nil || row[1] != string(mustJSON(t, p.Status)) {
			t.Errorf("the manual's row of %s is %q; its status is %d", p.Code, row, p.Status)
		}
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ending is a service whose tasks have ended when somebody looks.
type ending struct{ *apitest.Service }

func (e ending) StartBackup(ctx context.Context, b api.BackupSpec) (appliance.Task, error) {
	t, err := e.Service.StartBackup(ctx, b)
	ended := t
	ended.State = appliance.TaskSucceeded
	e.Change(ended)
	return t, err
}

// TestManualsExamples runs the manual's shell examples, with curl.
func TestManualsExamples(t *testing.T) {
	for _, program := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed")
		}
	}
	manual, err := os.ReadFile(manualFile)
	if err != nil {
		t.Fatal(err)
	}
	service := &apitest.Service{Sessions: []appliance.Session{{ID: "s1", VM: "web-test", State: appliance.SessionRunning}}}
	h, _ := newHandler(t, ending{service})
	dir := t.TempDir()
	s, err := listen(t, api.Listeners{Socket: filepath.Join(dir, "s"), TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"), CertDir: dir}, h)
	if err != nil {
		t.Fatal(err)
	}
	script := "set -euo pipefail\n"
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(manual), -1) {
		script += block[1]
	}
	for from, to := range map[string]string{client.DefaultNode[len("unix://"):]: s.at.Socket, "/etc/holdfast/token": filepath.Join(dir, "token"), "192.0.2.10:9443": s.at.TLS} {
		if !strings.Contains(script, from) {
			t.Errorf("the examples have no %s", from)
		}
		script = strings.ReplaceAll(script, from, to)
	}
	c := exec.Command("bash", "-c", script)
	c.Dir = dir
	out, err := c.CombinedOutput()
	want := []string{
		"GetTask task-1", "GetTask task-1", "ListSessions", "StartBackup {VM:web Manager: Full:false Strategy: KeepSnapshot:false}",
		"StartInstant {Point:web@latest Manager: Name:web-test Cluster: PowerOn:true MigrateTo: Format:}",
	}
	got := service.Asked()
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) || strings.Count(string(out), `"version":"1.2.3"`) != 2 || !strings.Contains(string(out), "s1\tweb-test\trunning") {
		t.Errorf("%v, the service was asked %q, and the examples said:\n%s", err, got, out)
	}
}
