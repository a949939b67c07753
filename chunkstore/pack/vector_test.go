package pack

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
)

// The vectors are described in testdata/README.md, for whoever writes a second reader.
var vectorOpts = func() WriterOptions {
	o := WriterOptions{Number: 0x01020304, Kind: Data, Created: time.Unix(1_795_000_000, 0)}
	for i := range o.Master {
		o.Master[i] = byte(i)
	}
	for i := range 16 {
		o.StoreUUID[i], o.PackUUID[i] = byte(0x50+i), byte(0x70+i)
	}
	return o
}()

func vectorChunks() [][]byte {
	var out [][]byte
	for k, n := range []int{1, 100, 4096, 65536 + 16} {
		b := make([]byte, n)
		for j := range b {
			b[j] = byte((j*j>>7 + j>>3 + k) & 0x3f)
		}
		out = append(out, b)
	}
	return out
}

// vectorDigest is no keyed digest: the vectors are about the file, and the file does not care.
func vectorDigest(k int) (d chunk.Digest) {
	for i := range d {
		d[i] = byte(k<<5 + i)
	}
	return d
}

func writeVector(t testing.TB, codec Codec, seal bool) []byte {
	t.Helper()
	obj := &object{}
	w, err := NewWriter(obj, vectorOpts)
	if err != nil {
		t.Fatal(err)
	}
	for k, b := range vectorChunks() {
		c := Compress(codec, b)
		if _, err := w.Append(vectorDigest(k), c); err != nil {
			t.Fatal(err)
		}
		c.Release()
	}
	end := w.Seal
	if !seal {
		end = w.Sync
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	return obj.b
}

// TestVectors reads every pack in testdata, sealed by this and by every earlier version.
func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/*.pack")
	if err != nil || len(files) < 4 {
		t.Fatalf("vectors are missing: %v, %v", files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r := mustOpen(t, &fileLike{b}, ReaderOptions{Master: (*keys.Master)(&vectorOpts.Master), StoreUUID: vectorOpts.StoreUUID, Name: file})
		if h := r.Header(); h.Number != vectorOpts.Number || h.PackUUID != vectorOpts.PackUUID || !h.Created.Equal(vectorOpts.Created) {
			t.Errorf("%s: header %+v", file, h)
		}
		if err := r.VerifyFile(); err != nil {
			t.Error(err)
		}
		dir, err := r.Directory()
		want := vectorChunks()
		if err != nil || len(dir) != len(want) {
			t.Fatalf("%s: %v, %v", file, dir, err)
		}
		for k, e := range dir {
			got, d, err := r.ReadChunk(e.Place, e.Digest.ID(), nil)
			if err != nil || d != vectorDigest(k) || !bytes.Equal(got, want[k]) {
				t.Errorf("%s: chunk %d: %v", file, k, err)
			}
		}
	}
}

// TestVectorsAreWhatWeWrite: without a codec, whose output may change with the library, every byte is determined.
func TestVectorsAreWhatWeWrite(t *testing.T) {
	want, err := os.ReadFile("testdata/none.pack")
	if err != nil {
		t.Fatal(err)
	}
	if got := writeVector(t, None, true); !bytes.Equal(got, want) {
		t.Error("a pack is not written as it was")
	}
	want, err = os.ReadFile("testdata/recovered.pack")
	if err != nil {
		t.Fatal(err)
	}
	l := unsealed(t, writeVector(t, None, false))
	if _, err := Recover(t.Context(), l, testName, ReaderOptions{}); err != nil {
		t.Fatal(err)
	}
	obj, err := l.Open(t.Context(), testName)
	if err != nil {
		t.Fatal(err)
	}
	defer obj.Close()
	got := make([]byte, obj.Size())
	if _, err := obj.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("a pack is not recovered as it was")
	}
}

// TestFormatPage holds the page that describes the format to the sizes in the code.
func TestFormatPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/format/pack.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`48 46 50 8a`, `43 48 4b 9b`, `44 49 52 ac`, `45 4e 44 bd`, `52 53 54 ce`, "64 bytes", "112 bytes", "44 bytes"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("docs/format/pack.md does not mention %q", want)
		}
	}
}
