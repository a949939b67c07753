package ovirt

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// What every restore has to choose, from what was asked for and from what the point says.

// vmName is what the engine takes.
var vmName = regexp.MustCompile(`^[0-9A-Za-z_.-]+$`)

// FreeVMName returns a name for a restored VM that no VM has: the one asked for, or else that of the original, or, if that
// exists, one made of it and of the restore's id; then renamed is true. The original VM is never touched.
func FreeVMName(ctx context.Context, e interface {
	FindVM(ctx context.Context, name string) (VM, error)
}, asked, original, id string) (name string, renamed bool, err error) {
	const op, next = "name VM", "Choose another name with --name."
	if name = asked; name == "" {
		name = original
	}
	if name == "" {
		return "", false, errs.Text(op, "", errs.Invalid, "no name was given, and the point has none").WithNext("Give one with --name.")
	}
	if !vmName.MatchString(name) {
		return "", false, errs.Text(op, name, errs.Invalid, "the engine takes letters from a to z, digits, '_', '-' and '.' in a VM's name, and nothing else").
			WithNext(next)
	}
	_, err = e.FindVM(ctx, name)
	if err == nil && asked == "" {
		name, renamed = name+"-restored-"+id[:min(6, len(id))], true
		_, err = e.FindVM(ctx, name)
	}
	if err == nil {
		return "", false, errs.Text(op, name, errs.Exists, "a VM of that name exists").WithNext(next)
	}
	if !errs.Is(err, errs.NotFound) {
		return "", false, err
	}
	return name, renamed, nil
}

// ChooseCluster finds the cluster of a restored VM by name or ID: the one asked for, or else the original's, or the only
// one that there is.
func ChooseCluster(all []Cluster, asked, original string) (Cluster, error) {
	want := asked
	if want == "" {
		want = original
	}
	i := slices.IndexFunc(all, func(x Cluster) bool { return string(x.ID) == want || x.Name == want })
	if i < 0 && asked == "" && len(all) == 1 {
		i = 0
	}
	if i < 0 {
		names := make([]string, len(all))
		for k, x := range all {
			names[k] = x.Name
		}
		return Cluster{}, errs.Text("choose cluster", want, errs.NotFound, "the engine has no such cluster").
			WithNext("Name one with --cluster: " + strings.Join(names, ", ") + ".")
	}
	return all[i], nil
}
