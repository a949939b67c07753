package nfsdomain

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	// metaLimit is the size that vdsm keeps for a volume's metadata, in bytes.
	metaLimit = 512
	// descriptionLimit is the longest description that vdsm writes, in characters.
	descriptionLimit = 210
	noVolume         = "00000000-0000-0000-0000-000000000000"
)

// volumeMeta is what a volume's .meta says.
type volumeMeta struct {
	Capacity    int64 // bytes, as the guest sees the disk
	Description string
	DiskType    string
	Domain      string
	Format      string // RAW or COW
	Image       string
	Legality    string // LEGAL, ILLEGAL or FAKE
	Parent      string // noVolume if there is none
	Type        string // SPARSE or PREALLOCATED
	VolType     string // LEAF, INTERNAL or SHARED
}

// legal are the values that vdsm knows.
var legal = map[string][]string{
	"DISKTYPE": {"DATA", "ISOF", "MEMD", "MEMM", "OVFS", "HEVD", "HESD", "HEMD", "HECI", "SCRD", "1", "2"},
	"FORMAT":   {"RAW", "COW"},
	"TYPE":     {"PREALLOCATED", "SPARSE", "UNKNOWN"},
	"VOLTYPE":  {"LEAF", "INTERNAL", "SHARED"},
	"LEGALITY": {"LEGAL", "ILLEGAL", "FAKE"},
}

// required must be in every .meta; GEN and SEQ may be missing.
var required = []string{
	"CAP", "CTIME", "DESCRIPTION", "DISKTYPE", "DOMAIN", "FORMAT", "IMAGE", "LEGALITY", "PUUID", "TYPE", "VOLTYPE",
}

// parseVolumeMeta reads a .meta, of which file is the name, as vdsm does: up to a line that begins with EOF, unknown keys
// aside.
func parseVolumeMeta(file string, content []byte) (volumeMeta, error) {
	bad := func(class, format string, args ...any) (volumeMeta, error) {
		return volumeMeta{}, refusal(errs.Corrupt, class, file, format, args...)
	}
	if len(content) > metaLimit {
		return bad("VolumeMetadataOverflow", "it has %d bytes, and vdsm keeps %d", len(content), metaLimit)
	}
	keys := map[string]string{}
	for line := range strings.SplitSeq(string(content), "\n") {
		if strings.HasPrefix(line, "EOF") {
			break
		}
		if key, value, found := strings.Cut(line, "="); found {
			keys[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	for _, key := range required {
		value, found := keys[key]
		if !found {
			return bad("MetaDataKeyNotFoundError", "the key %s is missing", key)
		}
		if known := legal[key]; known != nil && !slices.Contains(known, value) {
			return bad("InvalidMetadata", "%s=%s is not known", key, value)
		}
	}
	ctime, err := strconv.ParseInt(keys["CTIME"], 10, 64)
	if err != nil || ctime < 0 {
		return bad("InvalidMetadata", "CTIME=%s is no time", keys["CTIME"])
	}
	capacity, err := strconv.ParseInt(keys["CAP"], 10, 64)
	if err != nil || capacity < 1 {
		return bad("InvalidMetadata", "CAP=%s is no size", keys["CAP"])
	}
	if n := len([]rune(keys["DESCRIPTION"])); n > descriptionLimit {
		return bad("InvalidMetadata", "its description has %d characters, and vdsm keeps %d", n, descriptionLimit)
	}
	return volumeMeta{
		Capacity: capacity, Description: keys["DESCRIPTION"], DiskType: keys["DISKTYPE"], Domain: keys["DOMAIN"],
		Format: keys["FORMAT"], Image: keys["IMAGE"], Legality: keys["LEGALITY"], Parent: keys["PUUID"],
		Type: keys["TYPE"], VolType: keys["VOLTYPE"],
	}, nil
}

// check refuses a volume that does not fit its place.
func (v volumeMeta) check(file, domain, image string) error {
	bad := func(kind errs.Kind, class, format string, args ...any) error {
		return refusal(kind, class, file, format, args...)
	}
	switch {
	case v.Domain != domain:
		return bad(errs.Corrupt, "InvalidMetadata", "DOMAIN=%s on %s", v.Domain, domain)
	case v.Image != image:
		return bad(errs.Corrupt, "InvalidMetadata", "IMAGE=%s in the folder of %s", v.Image, image)
	case v.Legality != "LEGAL":
		return bad(errs.Invalid, "prepareIllegalVolumeError", "LEGALITY=%s", v.Legality)
	case v.Format == "COW" && v.Type != "SPARSE":
		return bad(errs.Invalid, "IncorrectFormat", "a COW volume of TYPE=%s would be extended as if it were raw", v.Type)
	case v.Capacity%4096 != 0:
		return bad(errs.Invalid, "InvalidMetadata",
			"CAP=%d is no multiple of 4096: a snapshot would be longer than its base", v.Capacity)
	}
	return nil
}

// alias returns the disk's name out of the description, where engines keep it as JSON: bit 0 of Enc says that it is the
// hexadecimal form of UTF-16LE. Any other text gives none; an engine only warns of that.
func (v volumeMeta) alias() string {
	var d struct {
		DiskAlias string
		Enc       any
	}
	if json.Unmarshal([]byte(v.Description), &d) != nil {
		return ""
	}
	bits, _ := strconv.Atoi(strings.Trim(fmt.Sprint(d.Enc), `"`))
	if bits&1 == 0 {
		return d.DiskAlias
	}
	raw, err := hex.DecodeString(d.DiskAlias)
	if err != nil || len(raw)%2 != 0 {
		return ""
	}
	units := make([]uint16, len(raw)/2)
	for i := range units {
		units[i] = uint16(raw[2*i]) | uint16(raw[2*i+1])<<8
	}
	return string(utf16.Decode(units))
}
