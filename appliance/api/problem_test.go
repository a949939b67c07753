package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestStatusesAreTotal: every kind has a status of its sort, and a code from which the kind comes back.
func TestStatusesAreTotal(t *testing.T) {
	ours := map[errs.Kind]bool{errs.Bug: true, errs.Transient: true, errs.NoSpace: true, errs.Corrupt: true, errs.Unsupported: true, errs.Canceled: true}
	codes := map[string]bool{}
	for _, k := range errs.Kinds {
		p := ProblemOf("do", errs.New("do", "it", k, nil))
		if want := map[bool]int{true: 5, false: 4}[ours[k]]; p.Status/100 != want || http.StatusText(p.Status) == "" {
			t.Errorf("%v has the status %d", k, p.Status)
		}
		if p.Code == "" || codes[p.Code] || p.Type != "urn:holdfast:problem:"+p.Code || p.Title != k.String() {
			t.Errorf("%v is told as %+v", k, p)
		}
		codes[p.Code] = true
		if got := p.Err(); got.Kind != k {
			t.Errorf("%v came back as %v", k, got.Kind)
		}
	}
	for k, want := range map[errs.Kind]int{errs.NotFound: 404, errs.Denied: 403, errs.Busy: 409, errs.Bug: 500, errs.Invalid: 422, errs.Transient: 503} {
		if statuses[k] != want {
			t.Errorf("%v has the status %d, and scripts count on %d", k, statuses[k], want)
		}
	}
}

// TestProblemOf: errors of every shape say what was being done.
func TestProblemOf(t *testing.T) {
	inner := errs.Text("read", "x", errs.Corrupt, "short").WithNext("Mend it.")
	for _, c := range []struct {
		err  error
		want ProblemDetails
	}{
		{inner, ProblemDetails{Detail: "read x: short", Code: "corrupt", Operation: "read", Subject: "x", Cause: "short", Remedy: "Mend it."}},
		{errs.Wrap("list", "", inner), ProblemDetails{Detail: "list: read x: short", Code: "corrupt", Operation: "list", Cause: "read x: short", Remedy: "Mend it."}},
		{fmt.Errorf("page 1: %w", inner), ProblemDetails{Detail: "do it: page 1: read x: short", Code: "corrupt", Operation: "do it", Cause: "page 1: read x: short", Remedy: "Mend it."}},
		{errors.New("plain"), ProblemDetails{Detail: "do it: plain", Code: "internal", Operation: "do it", Cause: "plain"}},
		{errs.New("", "", errs.Busy, nil), ProblemDetails{Detail: "do it: : busy", Code: "busy", Operation: "do it", Cause: ": busy"}},
		{errs.New("wait", "", errs.Stale, nil), ProblemDetails{Detail: "wait: stale", Code: "stale", Operation: "wait", Cause: "stale"}},
	} {
		p := ProblemOf("do it", c.err)
		got := ProblemDetails{Detail: p.Detail, Code: p.Code, Operation: p.Operation, Subject: p.Subject, Cause: p.Cause, Remedy: p.Remedy}
		if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", c.want); a != b {
			t.Errorf("%v is told as\n%s, want\n%s", c.err, a, b)
		}
		if p.Err().Error() != p.Detail {
			t.Errorf("%q came back as %q", p.Detail, p.Err())
		}
	}
}

// TestRefusalRepeatsNothing: what was sent may be a password.
func TestRefusalRepeatsNothing(t *testing.T) {
	p := refusal("add manager", &huma.ErrorModel{Status: 422, Detail: "validation failed", Errors: []*huma.ErrorDetail{
		{Location: "body.pass", Message: "unexpected property", Value: map[string]any{"pass": "secret"}}, nil, {Message: "odd"},
	}})
	b, _ := json.Marshal(p)
	const want = `{"type":"urn:holdfast:problem:invalid","title":"invalid","status":422,"detail":"add manager: body.pass: unexpected property; odd",` +
		`"code":"invalid","operation":"add manager","cause":"body.pass: unexpected property; odd",` +
		`"remedy":"Correct the request: GET /api/v1/openapi.json says what it may hold.",` +
		`"errors":[{"field":"body.pass","message":"unexpected property"},{"field":"","message":"odd"}]}`
	if string(b) != want {
		t.Errorf("got\n%s, want\n%s", b, want)
	}
	for status, code := range map[int]string{400: "invalid", 413: "invalid", 415: "invalid", 408: "canceled", 500: "internal"} {
		if p := refusal("x", &huma.ErrorModel{Status: status, Detail: "d"}); p.Status != status || p.Code != code || p.Cause != "d" {
			t.Errorf("%d is told as %+v", status, p)
		}
	}
}

// TestErrorOfAProblem: a task's problem becomes an error again.
func TestErrorOfAProblem(t *testing.T) {
	err := errs.Text("ask", "lab", errs.Busy, "locked").WithNext("Wait.")
	got := ErrorOf(*task.ProblemOf(err))
	if got.Error() != err.Error() || got.Kind != errs.Busy || got.Next != "Wait." {
		t.Errorf("%v became %v (%v, %q)", err, got, got.Kind, got.Next)
	}
}
