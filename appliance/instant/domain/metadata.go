package domain

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// lines are KEY=VALUE, sorted by key.
func lines(values map[string]string) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		out = append(out, key+"="+values[key])
	}
	return out
}

// metadata returns the text that makes the folder a domain. POOL_UUID is empty: the domain belongs to no data center, so
// the engine has nothing to detach first. LOCKPOLICY and the four numbers mean nothing with sanlock, but vdsm does not
// take a lock without them.
func (s Spec) metadata() string {
	all := lines(map[string]string{
		"ALIGNMENT": fmt.Sprint(leaseSize), "BLOCK_SIZE": fmt.Sprint(sector),
		"CLASS": "Data", "ROLE": "Regular", "TYPE": "NFS", "VERSION": "5",
		"SDUUID": s.UUID, "DESCRIPTION": s.Description, "REMOTE_PATH": s.RemotePath, "POOL_UUID": "",
		"LOCKPOLICY": "", "LOCKRENEWALINTERVALSEC": "5", "LEASETIMESEC": "60", "LEASERETRIES": "3", "IOOPTIMEOUTSEC": "10",
	})
	return strings.Join(append(all, "_SHA_CKSUM="+checksum(all)), "\n") + "\n"
}

// checksum is vdsm's seal of a domain's metadata: SHA-1 over the lines, without anything between them, and with every
// character that is not ASCII written as an XML reference.
func checksum(lines []string) string {
	h := sha1.New()
	for _, line := range lines {
		for _, r := range line {
			if r < utf8.RuneSelf {
				h.Write([]byte{byte(r)})
			} else {
				fmt.Fprintf(h, "&#%d;", r)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

const noParent = "00000000-0000-0000-0000-000000000000"

// metadata returns the text beside a volume's file. CAP is the size that the guest sees, whatever the file's is.
func (v Volume) metadata(domain string) string {
	all := lines(map[string]string{
		"CAP": fmt.Sprint(v.Size), "CTIME": fmt.Sprint(v.Created.Unix()), "DESCRIPTION": describe(v.Alias),
		"DISKTYPE": "DATA", "DOMAIN": domain, "FORMAT": strings.ToUpper(v.Format), "GEN": "0", "IMAGE": v.Disk,
		"LEGALITY": "LEGAL", "PUUID": noParent, "SEQ": "0", "TYPE": "SPARSE", "VOLTYPE": "LEAF",
	})
	return strings.Join(append(all, "EOF"), "\n") + "\n"
}

// maxDescription is how much of a description vdsm keeps. It would cut a longer one, which then is not JSON any more, and
// the engine would give the disk a name of its own.
const maxDescription = 210

// description is what the engine writes into the volumes of its disks, and reads back when it finds them. A field that
// is not ASCII is UTF-16LE in hexadecimal digits, and bit 0 of Enc says so of the first one: oVirt's
// MetadataDiskDescriptionHandler. The fields are in alphabetic order, as there.
type description struct {
	Alias string  `json:"DiskAlias"`
	Text  *string `json:"DiskDescription,omitempty"` // left out when there is no room, as the engine does
	Enc   string  `json:"Enc,omitempty"`
}

// describe returns the description of a disk named alias. What is too long for it is cut at the end.
func describe(alias string) string {
	alias = strings.ToValidUTF8(alias, string(utf8.RuneError))
	for {
		if out := encodeDescription(alias); len(out) <= maxDescription {
			return out
		}
		_, n := utf8.DecodeLastRuneInString(alias)
		alias = alias[:len(alias)-n]
	}
}

// encodeDescription leaves the disk's own description out if that makes it fit.
func encodeDescription(alias string) string {
	d := description{Alias: alias, Text: new(string)}
	if strings.ContainsFunc(alias, func(r rune) bool { return r >= utf8.RuneSelf }) {
		d.Alias, d.Enc = hexUTF16(alias), "1"
	}
	out := compact(d)
	if len(out) > maxDescription {
		d.Text = nil
		out = compact(d)
	}
	return out
}

func hexUTF16(s string) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return hex.EncodeToString(b)
}

// compact returns d as JSON in one line, without the escapes that are meant for web pages.
func compact(d description) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(d); err != nil {
		panic("domain: strings are always JSON: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}
