package transfer

import (
	"github.com/holdfast-backup/holdfast/appliance/strategy"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// over lays what a newer layer holds over what older ones do. Where neither holds anything the result says unchanged. The
// newer one may be longer, as a disk that has grown is; what is beyond its end counts for nothing.
func over(older, newer strategy.Extents) strategy.Extents {
	if older == nil {
		return newer
	}
	var out strategy.Extents
	i := 0
	for _, n := range newer {
		if n.Kind != chunkstore.ExtentUnchanged {
			out.Add(n)
			continue
		}
		at, end := n.Off, n.Off+n.Len
		for ; i < len(older) && older[i].Off < end; i++ {
			o := older[i]
			if stop := min(o.Off+o.Len, end); stop > at {
				out.Add(chunkstore.Extent{Off: at, Len: stop - at, Kind: o.Kind})
				at = stop
			}
			if o.Off+o.Len > end { // the next piece of newer may need its rest
				break
			}
		}
		out.Add(chunkstore.Extent{Off: at, Len: end - at, Kind: chunkstore.ExtentUnchanged})
	}
	return out
}

// since says what to read of a disk of which the parent's copy has parentSize bytes: beyond those nothing is unchanged,
// and what no layer holds of it is zeros. It covers the whole disk.
func since(changed strategy.Extents, parentSize, size int64) strategy.Extents {
	var out strategy.Extents
	at := int64(0)
	add := func(end int64, kind chunkstore.ExtentKind) {
		end = min(end, size)
		if kind == chunkstore.ExtentUnchanged && at < parentSize {
			n := min(end, parentSize) - at
			out.Add(chunkstore.Extent{Off: at, Len: n, Kind: kind})
			at += max(n, 0)
		}
		if kind == chunkstore.ExtentUnchanged {
			kind = chunkstore.ExtentZero
		}
		out.Add(chunkstore.Extent{Off: at, Len: end - at, Kind: kind})
		at = max(at, end)
	}
	for _, e := range changed {
		add(e.Off+e.Len, e.Kind)
	}
	add(size, chunkstore.ExtentUnchanged)
	return out
}
