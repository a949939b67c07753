package rpc

import nfs "github.com/willscott/go-nfs"

// Bounds of RFC 5531, section 8.2 and appendix A.
const (
	maxAuthBody    = 400
	maxMachineName = 255
	maxGroups      = 16
)

// Cred is what a client says it is. Nothing of it is proven: access is decided by address.
type Cred struct {
	Flavor   nfs.AuthFlavor
	UID, GID uint32
	Groups   [maxGroups]uint32
	NGroups  int
}

// parseAuth reads credential and verifier. It returns AuthStatOK, or why the call is rejected.
func parseAuth(c *Cursor, cred *Cred) nfs.AuthStat {
	cred.Flavor = nfs.AuthFlavor(c.Uint32())
	body := c.Opaque(maxAuthBody)
	if c.Err() != nil {
		return nfs.AuthStatBadCred
	}
	switch cred.Flavor {
	case nfs.AuthFlavorNull:
		if len(body) != 0 {
			return nfs.AuthStatBadCred
		}
	case nfs.AuthFlavorUnix:
		if !parseSys(body, cred) {
			return nfs.AuthStatBadCred
		}
	default: // also RPCSEC_GSS, which we do not offer
		return nfs.AuthStatBadCred
	}
	flavor := nfs.AuthFlavor(c.Uint32())
	if len(c.Opaque(maxAuthBody)) != 0 || c.Err() != nil || flavor != nfs.AuthFlavorNull {
		return nfs.AuthStatBadVerifier
	}
	return nfs.AuthStatOK
}

// parseSys reads an AUTH_SYS body: stamp, machine name, uid, gid, groups.
func parseSys(body []byte, cred *Cred) bool {
	c := NewCursor(body)
	_ = c.Uint32()
	_ = c.Opaque(maxMachineName)
	cred.UID = c.Uint32()
	cred.GID = c.Uint32()
	n := c.Uint32()
	if n > maxGroups {
		return false
	}
	cred.NGroups = int(n)
	for i := range cred.NGroups {
		cred.Groups[i] = c.Uint32()
	}
	return c.Err() == nil
}
