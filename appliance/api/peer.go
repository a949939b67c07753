package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// peer is who is at the other end of a unix socket, as the kernel saw it when the connection was made.
type peer struct {
	uid    uint32
	groups []uint32 // the first one and all others
	err    error    // why it is not known
}

type peerKey struct{}

// peerOf returns who is at the other end, or nil if that is no unix socket.
func peerOf(ctx context.Context) *peer {
	p, _ := ctx.Value(peerKey{}).(*peer)
	return p
}

// withPeer keeps who is at the other end of a new connection in its context.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, readPeer(u))
}

func readPeer(c *net.UnixConn) *peer {
	raw, err := c.SyscallConn()
	if err != nil {
		return &peer{err: err}
	}
	p := &peer{}
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, p.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); p.err != nil {
			return
		}
		p.uid, p.groups = cred.Uid, []uint32{cred.Gid}
		var more []uint32
		if more, p.err = peerGroups(fd); p.err == nil {
			p.groups = append(p.groups, more...)
		}
	})
	p.err = errors.Join(p.err, err)
	return p
}

// peerGroups reads the other end's supplementary groups (SO_PEERGROUPS, Linux 4.13): whoever is in the socket's group
// has it there, hardly ever as the first one.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case e == unix.ERANGE && int(size) > len(groups)*4:
			groups = make([]uint32, size/4)
		case e != 0:
			return nil, e
		default:
			return groups[:size/4], nil
		}
	}
}

// may tells whether a peer is root, our own user, or in a group.
func (p *peer) may(self, group uint32) bool {
	return p.err == nil && (p.uid == 0 || p.uid == self || slices.Contains(p.groups, group))
}

// onlyPeers lets in root, our own user and a group. The socket's mode says the same; this holds even if somebody opens
// the mode, or the folder is on a file system that has none.
func onlyPeers(self, group uint32, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := peerOf(r.Context()); p == nil || !p.may(self, group) {
			const op = "use the node's socket"
			writeProblem(w, ProblemOf(op, errs.Text(op, "", errs.Denied, "this user is neither root nor in the socket's group").
				WithNext("Run the command as root, or add the user to the group that `ls -l` shows for the socket.")))
			return
		}
		next.ServeHTTP(w, r)
	})
}
