package nfsdomain

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	metadataFile = "dom_md/metadata"
	checksumKey  = "_SHA_CKSUM"
	alignment    = 1 << 20
	blockSize    = 512
	domVersion   = 5
)

// metadata is what dom_md/metadata says. Keys that nobody knows are kept.
type metadata map[string]string

// numbers are the keys that sanlock's callers read as numbers, and stumble over when they are missing.
var numbers = []string{"VERSION", "LOCKRENEWALINTERVALSEC", "LEASETIMESEC", "LEASERETRIES", "IOOPTIMEOUTSEC"}

// parseMetadata reads the file as vdsm does: NULs at the end do not matter, blanks around keys neither.
func parseMetadata(content []byte) (metadata, error) {
	m := metadata{}
	for line := range strings.SplitSeq(strings.TrimRight(string(content), "\x00"), "\n") {
		if key, value, found := strings.Cut(line, "="); found {
			m[strings.TrimSpace(key)] = value
		} else if strings.TrimSpace(line) != "" {
			return nil, refusal(errs.Corrupt, "InvalidMetadata", metadataFile, "the line %q is not KEY=VALUE", line)
		}
	}
	sum, sealed := m[checksumKey]
	delete(m, checksumKey)
	if want := m.checksum(); sealed && sum != want {
		return nil, refusal(errs.Corrupt, "MetaDataSealIsBroken", metadataFile,
			"its checksum is %s, that of its lines is %s", sum, want)
	}
	return m, nil
}

// checksum is SHA-1 over the sorted lines with nothing between them, and with what is not ASCII as XML references.
func (m metadata) checksum() string {
	h := sha1.New()
	for _, key := range slices.Sorted(maps.Keys(m)) {
		for _, r := range key + "=" + m[key] {
			if r < 0x80 {
				h.Write([]byte{byte(r)})
			} else {
				fmt.Fprintf(h, "&#%d;", r)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// encode returns the file's content.
func (m metadata) encode() []byte {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(key + "=" + m[key] + "\n")
	}
	b.WriteString(checksumKey + "=" + m.checksum() + "\n")
	return []byte(b.String())
}

// check refuses what a host could not use as a data domain in the folder called id.
func (m metadata) check(id string) error {
	bad := func(kind errs.Kind, class, format string, args ...any) error {
		return refusal(kind, class, metadataFile, format, args...)
	}
	for _, key := range []string{"CLASS", "DESCRIPTION", "LOCKPOLICY", "POOL_UUID", "ROLE", "SDUUID", "TYPE"} {
		if _, found := m[key]; !found {
			return bad(errs.Corrupt, "MetaDataKeyNotFoundError", "the key %s is missing", key)
		}
	}
	for _, key := range numbers {
		if _, found := m[key]; !found {
			return bad(errs.Corrupt, "MetaDataKeyNotFoundError", "the key %s is missing", key)
		}
		if _, err := strconv.Atoi(m[key]); err != nil {
			return bad(errs.Corrupt, "InvalidMetadata", "%s=%s is no number", key, m[key])
		}
	}
	for key, want := range map[string]int{"ALIGNMENT": alignment, "BLOCK_SIZE": blockSize} {
		if got, found := m[key]; found && got != strconv.Itoa(want) {
			return bad(errs.Unsupported, "StorageDomainBlockSizeMismatch", "%s=%s, and NFS has %d only", key, got, want)
		}
	}
	switch {
	case m["VERSION"] != strconv.Itoa(domVersion):
		return bad(errs.Unsupported, "UnsupportedDomainVersion", "VERSION=%s; this host takes %d only", m["VERSION"],
			domVersion)
	case m["CLASS"] != "Data":
		return bad(errs.Unsupported, "StorageDomainClassError", "CLASS=%s is no data domain", m["CLASS"])
	case m["TYPE"] != "NFS":
		return bad(errs.Invalid, "StorageDomainTypeError", "TYPE=%s on an NFS export", m["TYPE"])
	case m["ROLE"] != "Regular" && m["ROLE"] != "Master":
		return bad(errs.Corrupt, "InvalidMetadata", "ROLE=%s is neither Regular nor Master", m["ROLE"])
	case m["SDUUID"] != id:
		return bad(errs.Corrupt, "InvalidMetadata", "SDUUID=%s in the folder of %s", m["SDUUID"], id)
	}
	return nil
}

// pool returns the data center the domain is attached to, or "".
func (m metadata) pool() string { return m["POOL_UUID"] }

// with returns a copy with some keys changed.
func (m metadata) with(pairs ...string) metadata {
	out := maps.Clone(m)
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}
