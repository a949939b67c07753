package storebench

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// ours is the name of our program with its defaults: what `holdfast init` makes. It is what is held against the peers.
const ours = "holdfast"

// holdfast is what this is about, with a passphrase as most will have one.
type holdfast struct {
	b     *bed
	label string
	args  []string          // of init
	last  map[string]string // the points, by disk
}

// isOurs tells whether a program is ours, with whatever settings.
func isOurs(program string) bool { return program == ours || strings.HasPrefix(program, ours+" ") }

func (h *holdfast) name() string   { return h.label }
func (*holdfast) slow() bool       { return false }
func (h *holdfast) folder() string { return h.b.path(strings.ReplaceAll(h.label, " ", "-")) }

func (h *holdfast) spec(args ...string) measure.Spec {
	return measure.Spec{Args: append([]string{h.b.bin}, args...),
		Env: []string{"HOLDFAST_STORE=" + h.folder(), "HOLDFAST_PASSPHRASE_FILE=" + h.b.path("passphrase")}}
}

func (h *holdfast) prepare(ctx context.Context) error {
	h.last = map[string]string{}
	kit := h.folder() + ".kit"
	if err := os.RemoveAll(kit); err != nil {
		return err
	}
	_, err := h.b.run(ctx, h.spec(append([]string{"init", h.folder(), "--kit", kit}, h.args...)...))
	return err
}

func (h *holdfast) keep(ctx context.Context, d disk) (measure.Usage, error) {
	var out bytes.Buffer
	s := h.spec("disk", "import", d.path, "--vm", d.name, "-o", "json")
	s.Stdout = &out
	used, err := h.b.run(ctx, s)
	if err != nil {
		return used, err
	}
	var made struct {
		Point       string `json:"point"`
		Incremental bool   `json:"incremental"`
	}
	if err := json.Unmarshal(out.Bytes(), &made); err != nil || made.Point == "" || made.Incremental {
		return used, errs.Text("read the answer of", "holdfast disk import", errs.Bug, "it is "+out.String())
	}
	h.last[d.name] = made.Point
	return used, nil
}

// atLeisure compresses again what was compressed in haste, as a node does when it is idle.
func (h *holdfast) atLeisure(ctx context.Context) (measure.Usage, error) {
	return h.b.run(ctx, h.spec("store", "gc", "--compact"))
}

func (h *holdfast) restore(ctx context.Context, d disk, to string) (measure.Usage, error) {
	return h.b.run(ctx, h.spec("point", "export", h.last[d.name], "--to", to))
}
