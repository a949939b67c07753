package nfsdomain

import (
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// customaryPort is where NFS is served unless somebody says otherwise.
const customaryPort = 2049

// where says what to mount.
type where struct {
	host      string // without brackets
	path      string
	nfsPort   int // 0: the port mapper is asked
	mountPort int
}

// String returns it as hosts spell it.
func (w where) String() string {
	if strings.Contains(w.host, ":") {
		return "[" + w.host + "]:" + w.path
	}
	return w.host + ":" + w.path
}

// parseWhere reads "address:/path" as the engine checks it, and the mount options that matter to a client in user space:
// port, mountport, and that the version is 3. The rest is for kernels.
func parseWhere(export, options string) (where, error) {
	bad := func(why string) (where, error) {
		return where{}, refusal(errs.Invalid, "MountError", export, "%s", why)
	}
	i := strings.Index(export, ":/")
	switch {
	case i <= 0:
		return bad("it is not address:/path")
	case strings.ContainsFunc(export, func(r rune) bool { return r <= ' ' || r > '~' }):
		return bad("an export's name is printable ASCII without blanks")
	}
	w := where{host: export[:i], path: export[i+1:]}
	if bare, found := strings.CutPrefix(w.host, "["); found {
		if w.host, found = strings.CutSuffix(bare, "]"); !found || net.ParseIP(w.host) == nil {
			return bad("the address in brackets is no IPv6 address")
		}
	} else if strings.Contains(w.host, ":") {
		return bad("an IPv6 address belongs into brackets")
	}
	if w.path != path.Clean(w.path) {
		return bad("vdsm compares the path with the one in its mount table, where it is " + path.Clean(w.path))
	}
	for o := range strings.SplitSeq(options, ",") {
		if why := w.option(strings.TrimSpace(o)); why != "" {
			return bad(why)
		}
	}
	return w, nil
}

// option takes one option and returns what is wrong with it.
func (w *where) option(o string) (why string) {
	key, value, _ := strings.Cut(o, "=")
	switch key {
	case "port", "mountport":
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil || port == 0 {
			return "the option " + o + " names no port"
		}
		if key == "port" {
			w.nfsPort = int(port)
		} else {
			w.mountPort = int(port)
		}
	case "nfsvers", "vers":
		if value != "3" {
			return "Protocol not supported: the option " + o + " asks for another version than 3"
		}
	case "proto", "mountproto":
		if value != "tcp" {
			return "the option " + o + " asks for another transport than TCP"
		}
	}
	return ""
}

// url returns what tells libnfs the ports, or "" when there is nothing to tell.
func (w where) url() string {
	q := url.Values{}
	if w.nfsPort != 0 {
		q.Set("nfsport", strconv.Itoa(w.nfsPort))
	}
	if w.mountPort != 0 {
		q.Set("mountport", strconv.Itoa(w.mountPort))
	}
	if len(q) == 0 {
		return ""
	}
	return "nfs://" + w.bracketed() + w.path + "?" + q.Encode()
}

func (w where) bracketed() string {
	if strings.Contains(w.host, ":") {
		return "[" + w.host + "]"
	}
	return w.host
}

// qemu tells whether qemu's NFS driver can read the export: it takes no ports, and asks the port mapper.
func (w where) qemu() bool {
	return w.nfsPort == 0 || w.nfsPort == customaryPort
}

// fileURL names a file of the export as qemu.NFSNode takes it.
func (w where) fileURL(file string) string {
	u := url.URL{Scheme: "nfs", Host: w.bracketed(), Path: path.Join(w.path, file)}
	return u.String()
}
