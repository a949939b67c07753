package domain

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

// TestChecksum: the values were computed with vdsm's own persistent.py.
func TestChecksum(t *testing.T) {
	for name, want := range map[string]string{
		"instant-restore-1": "b6aa513e044cf48a4627a1a05dd87f184ee7a431",
		"Rückspielen 🙂":     "f549f58b876b517886c7fa186bd5c70a66620526",
	} {
		s := example()
		s.Description = name
		text := s.metadata()
		if !strings.HasSuffix(text, "\n_SHA_CKSUM="+want+"\n") || !strings.Contains(text, "\nDESCRIPTION="+name+"\n") {
			t.Errorf("for %q:\n%s", name, text)
		}
	}
}

// TestDescribe: the limits of 194 characters, or 46 when encoded, are those of the engine's own tests.
func TestDescribe(t *testing.T) {
	a, e := strings.Repeat("a", 300), strings.Repeat("á", 100)
	for _, c := range []struct{ alias, want string }{
		{"vm1_Disk1", `{"DiskAlias":"vm1_Disk1","DiskDescription":""}`},
		{"", `{"DiskAlias":"","DiskDescription":""}`},
		{"áéíñ", `{"DiskAlias":"e100e900ed00f100","DiskDescription":"","Enc":"1"}`},
		{"🙂", `{"DiskAlias":"3dd842de","DiskDescription":"","Enc":"1"}`},
		{`a "b" \c <d> & e`, `{"DiskAlias":"a \"b\" \\c <d> & e","DiskDescription":""}`},
		{"two\nlines\r\x00", `{"DiskAlias":"two\nlines\r\u0000","DiskDescription":""}`},
		{"\u2028", `{"DiskAlias":"2820","DiskDescription":"","Enc":"1"}`},
		{"bad\xff", `{"DiskAlias":"620061006400fdff","DiskDescription":"","Enc":"1"}`},
		{a[:172], `{"DiskAlias":"` + a[:172] + `","DiskDescription":""}`},
		{a[:174], `{"DiskAlias":"` + a[:174] + `"}`},
		{a[:194], `{"DiskAlias":"` + a[:194] + `"}`},
		{a, `{"DiskAlias":"` + a[:194] + `"}`},
		{e, `{"DiskAlias":"` + strings.Repeat("e100", 46) + `","Enc":"1"}`},
		// A character of two units has no room for its second one, and is left out.
		{e[:90] + "🙂", `{"DiskAlias":"` + strings.Repeat("e100", 45) + `","Enc":"1"}`},
	} {
		if got := describe(c.alias); got != c.want {
			t.Errorf("%q is described as\n%s, want\n%s", c.alias, got, c.want)
		}
	}
}

// readAlias reads a description as the engine does.
func readAlias(t *testing.T, text string) string {
	t.Helper()
	var fields map[string]string
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	alias := fields["DiskAlias"]
	switch fields["Enc"] {
	case "":
		return alias
	case "1":
	default:
		t.Fatalf("the encoding of %s is unknown", text)
	}
	b, err := hex.DecodeString(alias)
	if err != nil || len(b)%2 != 0 {
		t.Fatalf("%s: %v", text, err)
	}
	var units []uint16
	for i := 0; i < len(b); i += 2 {
		units = append(units, uint16(b[i])|uint16(b[i+1])<<8)
	}
	return string(utf16.Decode(units))
}

// FuzzAlias: whatever a disk is called, its metadata fits, is lines of ASCII, and gives the engine the name back, or the
// beginning of a long one.
func FuzzAlias(f *testing.F) {
	for _, alias := range []string{
		"vm1_Disk1", "", "Größe", "a\nCAP=1", "EOF", "\"\\", "\x00\x1f\x7f", "🙂🙂", "\xed\xa0\x80", strings.Repeat("\"", 300),
		strings.Repeat("🙂", 60), strings.Repeat("x", 194) + "é", "=" + strings.Repeat("\x01", 40),
	} {
		f.Add(alias)
	}
	f.Fuzz(func(t *testing.T, alias string) {
		v := example().Volumes[0]
		v.Alias, v.Size = alias, 1<<62
		text := v.metadata(example().UUID)
		if len(text) > maxMeta {
			t.Errorf("%d bytes", len(text))
		}
		all := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(all) != 14 || all[13] != "EOF" || !strings.HasPrefix(all[2], "DESCRIPTION={") {
			t.Fatalf("not the lines of a volume:\n%s", text)
		}
		described := strings.TrimPrefix(all[2], "DESCRIPTION=")
		for _, b := range []byte(described) {
			if b < ' ' || b >= utf8.RuneSelf {
				t.Fatalf("byte %#x in %q", b, described)
			}
		}
		if len(described) > 210 {
			t.Errorf("%d characters are more than vdsm keeps", len(described))
		}
		got, want := readAlias(t, described), strings.ToValidUTF8(alias, "\ufffd")
		if !strings.HasPrefix(want, got) || len(want) <= 30 && got != want {
			t.Errorf("%q came back as %q", want, got)
		}
	})
}
