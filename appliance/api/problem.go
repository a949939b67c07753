package api

import (
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// problemType is the media type of refusals (RFC 9457).
const problemType = "application/problem+json"

// statuses gives every kind of error its HTTP status. Programs that want to know more than "mine or yours" look at the
// code, which is one for each kind.
var statuses = [len(errs.Kinds)]int{
	errs.Bug: http.StatusInternalServerError, errs.Invalid: http.StatusUnprocessableEntity,
	errs.NotFound: http.StatusNotFound, errs.Exists: http.StatusConflict, errs.Denied: http.StatusForbidden,
	errs.Busy: http.StatusConflict, errs.Transient: http.StatusServiceUnavailable, errs.Stale: http.StatusConflict,
	errs.NoSpace: http.StatusInsufficientStorage, errs.Corrupt: http.StatusInternalServerError,
	errs.Unsupported: http.StatusNotImplemented, errs.Canceled: http.StatusGatewayTimeout,
}

// ProblemDetails is a refusal as it travels: RFC 9457's members, and ours.
type ProblemDetails struct {
	Type      string       `json:"type" doc:"urn:holdfast:problem: and the code"`
	Title     string       `json:"title" doc:"the kind of failure, for people"`
	Status    int          `json:"status" doc:"the HTTP status"`
	Detail    string       `json:"detail" doc:"what failed and why, in one line"`
	Code      string       `json:"code" doc:"the kind of failure: not-found, busy, denied, …"`
	Operation string       `json:"operation" doc:"what was being done"`
	Subject   string       `json:"subject,omitempty" doc:"to what"`
	Cause     string       `json:"cause" doc:"why it failed"`
	Remedy    string       `json:"remedy,omitempty" doc:"what to do next"`
	Errors    []FieldFault `json:"errors,omitempty" doc:"what was wrong with the request, field by field"`
}

// FieldFault is one thing wrong with a request. What was sent is not repeated: it may be a password.
type FieldFault struct {
	Field   string `json:"field" doc:"where: body.vm, path.name, …"`
	Message string `json:"message"`
}

var (
	_ huma.StatusError       = (*ProblemDetails)(nil)
	_ huma.ContentTypeFilter = (*ProblemDetails)(nil)
)

// Error returns the detail.
func (p *ProblemDetails) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *ProblemDetails) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *ProblemDetails) ContentType(string) string { return problemType }

// ProblemOf tells an error as it travels. op says what was being done if the error itself does not.
func ProblemOf(op string, err error) *ProblemDetails {
	e := asError(op, err)
	cause := e.Kind.String()
	if e.Err != nil {
		cause = e.Err.Error()
	}
	code := task.Code(e.Kind)
	return &ProblemDetails{
		Type: "urn:holdfast:problem:" + code, Title: e.Kind.String(), Status: statuses[e.Kind], Detail: e.Error(),
		Code: code, Operation: e.Op, Subject: e.Subject, Cause: cause, Remedy: errs.NextStep(err),
	}
}

// asError returns an error that says what was being done.
func asError(op string, err error) *errs.Error {
	if e, ok := err.(*errs.Error); ok && e.Op != "" {
		return e
	}
	return errs.New(op, "", errs.KindOf(err), err)
}

// Err returns the error that the problem tells of: of the same kind, text and next step.
func (p *ProblemDetails) Err() *errs.Error {
	e := errs.New(p.Operation, p.Subject, task.KindOfCode(p.Code), nil).WithNext(p.Remedy)
	if p.Cause != "" {
		e.Err = errors.New(p.Cause)
	}
	return e
}

// problems tells errors that stand beside a list as people and programs get them elsewhere.
func problems(op string, all []error) []appliance.Problem {
	out := make([]appliance.Problem, 0, len(all))
	for _, err := range all {
		out = append(out, *task.ProblemOf(asError(op, err)))
	}
	return out
}

// refusal is what the framework has to say about a request, in our form: it found the fault before the service was asked.
func refusal(op string, m *huma.ErrorModel) *ProblemDetails {
	kind := errs.Invalid
	if m.Status >= http.StatusInternalServerError {
		kind = errs.Bug
	}
	if m.Status == http.StatusRequestTimeout {
		kind = errs.Canceled
	}
	cause := m.Detail
	var fields []FieldFault
	var texts []string
	for _, d := range m.Errors {
		if d == nil {
			continue
		}
		fields = append(fields, FieldFault{Field: d.Location, Message: d.Message})
		texts = append(texts, strings.TrimPrefix(d.Location+": ", ": ")+d.Message)
	}
	if len(texts) > 0 {
		cause = strings.Join(texts, "; ")
	}
	p := ProblemOf(op, errs.Text(op, "", kind, cause))
	if kind == errs.Invalid {
		p.Remedy = "Correct the request: GET " + openAPIPath + " says what it may hold."
	}
	if m.Status == http.StatusUnsupportedMediaType {
		p.Remedy = "Send the body with Content-Type: application/json (curl's -H)."
	}
	p.Status, p.Errors = m.Status, fields
	return p
}

// ErrorOf returns the error that a problem beside a list tells of: of the same kind, text and next step.
func ErrorOf(p appliance.Problem) *errs.Error {
	return errs.Text(p.Title, "", task.KindOfCode(p.Code), p.Cause).WithNext(p.Remedy)
}
