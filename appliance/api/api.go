package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Prefix is the path below which everything lies.
const Prefix = "/api/v1"

// openAPIPath is where the description of the API is.
const openAPIPath = Prefix + "/openapi.json"

// callTime is how long a call may take that is no stream: engines are asked during some of them.
const callTime = 100 * time.Second

// Options make a handler.
type Options struct {
	Service Service
	Version string       // of the program, as GET /status tells it
	Ready   func() bool  // whether the node does its work yet; nil: always
	Logger  *slog.Logger // nil: silent
}

// server answers requests by asking a service.
type server struct {
	Options
	api  huma.API
	beat time.Duration // between two signs of life on a stream
}

// New returns the handler of the whole API. It lets everybody in: Serve is the doorkeeper.
func New(o Options) (http.Handler, error) {
	s, mux, err := build(o)
	if err != nil {
		return nil, err
	}
	return s.guard(mux), nil
}

// Document returns the OpenAPI description, as GET /openapi.json answers it.
func Document(version string) ([]byte, error) {
	s, _, err := build(Options{Version: version})
	if err != nil {
		return nil, err
	}
	return s.document()
}

func build(o Options) (*server, *http.ServeMux, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	mux := http.NewServeMux()
	s := &server{Options: o, beat: 15 * time.Second}
	s.api = humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Holdfast", Version: o.Version,
				Description: "The node of a Holdfast backup server. docs/api.md is the introduction.",
			},
			Components: &huma.Components{SecuritySchemes: map[string]*huma.SecurityScheme{"token": {
				Type: "http", Scheme: "bearer",
				Description: "Over TLS: the content of the node's token file. The unix socket needs none.",
			}}},
			Security: []map[string][]string{{"token": {}}, {}},
		},
		Formats:                      huma.DefaultFormats, // JSON alone
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{translate},
	})
	s.routes()
	s.loosen()
	doc, err := s.document()
	if err != nil {
		return nil, nil, errs.New("describe the API", "", errs.Bug, err)
	}
	mux.HandleFunc("GET "+openAPIPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(doc)
	})
	return s, mux, nil
}

func (s *server) document() ([]byte, error) {
	b, err := json.MarshalIndent(s.api.OpenAPI(), "", "  ")
	return append(b, '\n'), err
}

// translate puts the framework's own refusals into our form.
func translate(ctx huma.Context, _ string, v any) (any, error) {
	var m *huma.ErrorModel
	if err, ok := v.(error); ok && errors.As(err, &m) {
		return refusal(verb(ctx.Operation()), m), nil
	}
	return v, nil
}

// verb says what an operation does, as errors do: "add manager".
func verb(op *huma.Operation) string { return strings.ReplaceAll(op.OperationID, "-", " ") }

// add registers an operation. Its handler's errors become problems, and its context ends after callTime.
func add[I, O any](s *server, op huma.Operation, f func(context.Context, *I) (*O, error)) {
	s.describe(&op)
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		out, err := f(ctx, in)
		if err != nil {
			return nil, s.refuse(&op, err)
		}
		return out, nil
	})
}

// refuse turns an error into a problem, and logs those that an administrator of the node has to know of.
func (s *server) refuse(op *huma.Operation, err error) *ProblemDetails {
	p := ProblemOf(verb(op), err)
	if errs.Is(err, errs.Bug) || errs.Is(err, errs.Corrupt) {
		s.Logger.Error("a request failed", "op", verb(op), "kind", p.Title, "err", err)
	}
	return p
}

// describe adds to an operation what all have in common.
func (s *server) describe(op *huma.Operation) {
	schema := s.api.OpenAPI().Components.Schemas.Schema(typeOf[ProblemDetails](), true, "")
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{
		Description: "a refusal", Content: map[string]*huma.MediaType{problemType: {Schema: schema}},
	}
	op.Path = Prefix + op.Path
}

// loosen lets answers have more members than are described, so that a later version may add some, and removes what the
// framework describes of its own.
func (s *server) loosen() {
	all := s.api.OpenAPI().Components.Schemas.Map()
	delete(all, "ErrorModel")
	delete(all, "ErrorDetail")
	for name, schema := range all {
		if !strings.HasSuffix(name, "Spec") {
			schema.AdditionalProperties = nil
		}
	}
}
