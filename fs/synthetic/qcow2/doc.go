// Package qcow2 is the only package that knows the qcow2 image format: it shows a disk as a qcow2 file computed on the
// fly (View), reads qcow2 files that qemu wrote (Image) and writes a disk out as one (Write).
//
// Terms. A cluster is the format's unit, C bytes. The guest offset counts bytes of the disk, the host offset bytes of
// the file. An L2 table maps E = C/8 guest clusters to host offsets, the L1 table says where the L2 tables are. V is
// the virtual size: the disk's length in bytes. A cluster is present when stored data touches it, absent otherwise. The
// identity layout puts guest cluster c at DataOffset + c*C whether present or not; docs/format/qcow2-view.md has the
// formulas, an example and the reasons.
//
// Invariants:
//
//  1. A View never changes: the same offset gives the same bytes for ever, also in another process, as long as its
//     Source, its size and the cluster size are the same. Sessions survive a restart because of this.
//  2. Opening a View costs a little arithmetic; no method of it needs memory in proportion to the disk. Only the zero
//     bits of L2 entries come from the Source; everything else is a function of V and C.
//  3. An absent cluster of a View is a zero cluster with its place reserved: every refcount is 1 from the start, so a
//     guest's first write there changes that cluster and one bit, and the file does not grow.
//  4. Image trusts nothing in the file: every offset, length and count is checked against the file's size before it is
//     used. What does not fit is errs.Corrupt, what is well-formed but beyond this reader is errs.Unsupported. Memory is
//     bounded whatever the file claims, and no walk visits more tables than the file has room for.
//  5. Image never reads the file for a cluster that is zero or not allocated, so counting the reads below it counts data.
//  6. Write puts the header down last: a file whose writing was cut short is not an image.
//
// After a guest has written to a View through an overlay the identity holds no longer, because qemu reuses freed
// clusters: such a file is read through its tables by Image, never by offset.
//
// Everything here may be used from several goroutines at once. Nothing starts a goroutine or keeps a context.
//
// Tests compare with qemu-img and qemu-io, which know nothing of this code, in both directions: check, compare, map and
// convert on what is computed and written here, and random operations on what is read. A model recomputes the layout
// independently for sizes too large to write out; fuzz targets hold invariant 4.
//
// The format is specified in qemu's docs/interop/qcow2.rst
// (https://gitlab.com/qemu-project/qemu/-/blob/v7.2.0/docs/interop/qcow2.txt).
package qcow2
