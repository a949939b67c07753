package nfs3

import (
	"encoding/binary"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// absent is how many words follow the status of a failure of each procedure, each of which says that attributes are not
// there: a post_op_attr without is one word, a wcc_data without two (RFC 1813, section 2.6).
var absent = [nfs.NFSProcedureCommit + 1]int{
	nfs.NFSProcedureSetAttr:     2,
	nfs.NFSProcedureLookup:      1,
	nfs.NFSProcedureAccess:      1,
	nfs.NFSProcedureReadlink:    1,
	nfs.NFSProcedureRead:        1,
	nfs.NFSProcedureWrite:       2,
	nfs.NFSProcedureCreate:      2,
	nfs.NFSProcedureMkDir:       2,
	nfs.NFSProcedureSymlink:     2,
	nfs.NFSProcedureMkNod:       2,
	nfs.NFSProcedureRemove:      2,
	nfs.NFSProcedureRmDir:       2,
	nfs.NFSProcedureRename:      4,
	nfs.NFSProcedureLink:        3,
	nfs.NFSProcedureReadDir:     1,
	nfs.NFSProcedureReadDirPlus: 1,
	nfs.NFSProcedureFSStat:      1,
	nfs.NFSProcedureFSInfo:      1,
	nfs.NFSProcedurePathConf:    1,
	nfs.NFSProcedureCommit:      2,
}

// lateOf returns how a procedure that hangs is answered: a guest waits until its disk is back, a monitor is told that
// something failed.
func lateOf(p nfs.NFSProcedure) func(*rpc.Call, *rpc.Reply) {
	return func(c *rpc.Call, r *rpc.Reply) {
		status := nfs.NFSStatusJukebox
		if c.Small() {
			status = nfs.NFSStatusIO
		}
		r.Status = uint32(status)
		r.Out = binary.BigEndian.AppendUint32(r.Out, r.Status)
		for range absent[p] {
			r.Out = appendNone(r.Out)
		}
	}
}
