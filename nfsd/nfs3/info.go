package nfs3

import (
	"context"
	"encoding/binary"
	"math"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/nfsd/rpc"
)

// resultTooSmall appends a status that no tree can give: the client's buffer does not hold one entry.
func resultTooSmall(r *rpc.Reply) {
	r.Status = uint32(nfs.NFSStatusTooSmall)
	r.Out = binary.BigEndian.AppendUint32(r.Out, r.Status)
}

// about answers what FSSTAT, FSINFO and PATHCONF share: a handle, attributes, and then words of their own.
func (s *service) about(ctx context.Context, c *rpc.Call, r *rpc.Reply, words func(t target) ([]byte, error)) error {
	cur := rpc.NewCursor(c.Args)
	h := cur.Opaque(maxHandle)
	if err := cur.Err(); err != nil {
		return err
	}
	t, err := s.resolve(ctx, c, h)
	var tail []byte
	if err == nil {
		tail, err = words(t)
	}
	result(r, t, err)
	r.Out = appendPostOp(ctx, r.Out, t)
	r.Out = append(r.Out, tail...)
	return nil
}

func (s *service) fsstat(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	return s.about(ctx, c, r, func(t target) ([]byte, error) {
		sp, err := t.entry.Tree.Space(ctx)
		if err != nil {
			return nil, err
		}
		var out []byte
		for _, v := range [...]int64{sp.TotalBytes, sp.FreeBytes, sp.FreeBytes, sp.TotalFiles, sp.FreeFiles, sp.FreeFiles} {
			out = binary.BigEndian.AppendUint64(out, uint64(max(v, 0)))
		}
		return binary.BigEndian.AppendUint32(out, 0), nil // invarsec: may change at any time
	})
}

// prefListing is dtpref.
const prefListing = maxListing

func (s *service) fsinfo(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	return s.about(ctx, c, r, func(target) ([]byte, error) {
		var out []byte
		const multiple = 4096
		for _, v := range [...]uint32{
			MaxTransfer, MaxTransfer, multiple, // READ: max, preferred, multiple
			MaxTransfer, MaxTransfer, multiple, // WRITE
			prefListing,
		} {
			out = binary.BigEndian.AppendUint32(out, v)
		}
		out = binary.BigEndian.AppendUint64(out, math.MaxInt64) // largest file
		out = binary.BigEndian.AppendUint32(out, 0)             // times are exact to 0 s
		out = binary.BigEndian.AppendUint32(out, 1)             // and 1 ns
		return binary.BigEndian.AppendUint32(out,
			nfs.FSInfoPropertyLink|nfs.FSInfoPropertyHomogeneous|nfs.FSInfoPropertyCanSetTime), nil
	})
}

// maxLinks is what PATHCONF says about hard links; trees may stop earlier with MLINK.
const maxLinks = 32000

func (s *service) pathconf(ctx context.Context, c *rpc.Call, r *rpc.Reply) error {
	return s.about(ctx, c, r, func(target) ([]byte, error) {
		var out []byte
		for _, v := range [...]uint32{
			maxLinks, fs.MaxName,
			1, // a name too long is an error, not cut short
			1, // only the owner gives files away
			0, // upper and lower case differ
			1, // and are kept
		} {
			out = binary.BigEndian.AppendUint32(out, v)
		}
		return out, nil
	})
}
