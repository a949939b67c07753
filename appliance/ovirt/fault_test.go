package ovirt

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// faultKinds says what each recorded fault means to us. The key is the file's number and the exchange's.
var faultKinds = map[errs.Kind]string{
	errs.Denied: "01.29 01.30 01.33 01.36 08.15 16.19 16.25",
	errs.Bug:    "01.24 01.26 02.27 02.61 02.68 02.70 12.16",
	errs.Invalid: "01.27 02.41 02.60 02.63 02.65 02.72 02.73 02.74 02.75 02.81 02.82 02.83 03.11 03.12 03.15 05.5 05b.5 05b.13 05b.45 " +
		"06.2 07.12 07.20 07.21 08.9 08.10 08b.4 09.11 10.3 11.26 12.19 06.19 06.21 17b.12 11.18",
	errs.Unsupported: "01.47 03.10 09.14",
	errs.NotFound:    "02.11 02.76 03.16 03.22 03.33 06.4",
	errs.Exists:      "02.79 03.3 03.9 03.21 05.4 05b.4 05b.29 05b.44 08.2 08b.9 08b.15 09.4 12.18 15.1 16.7",
	errs.NoSpace:     "03.17",
	errs.Stale:       "06.6",
	errs.Transient:   "05b.6",
	errs.Busy: "03.7 03.24 04.2 04.4 04.5 04.7 05b.9 05b.14 05b.15 05b.17 05b.19 05b.39 06.12 06.25 06b.12 06b.15 06b.16 06d.4 06d.5 " +
		"06d.11 06d.13 06d.33 07.4 07.5 07.15 07.22 07.28 07b.7 08.13 09.2 09.13 09.18 10.7 10b.11 10b.12 10b.13 10b.17 10b.19 11.3 11.5 " +
		"11.19 11.25 12.17 14.3 17b.11",
}

func TestEveryRecordedFaultHasItsKind(t *testing.T) {
	want := map[string]errs.Kind{}
	for kind, list := range faultKinds {
		for _, id := range strings.Fields(list) {
			want[id] = kind
		}
	}
	want["02.46"] = errs.Bug // a page with a Java stack
	for name, r := range recordings(t, "faults.txt") {
		id := name[strings.LastIndexByte(name, ' ')+1:]
		kind, ok := want[id]
		if !ok {
			t.Errorf("%s: nobody said what it means", name)
			continue
		}
		delete(want, id)
		resp := &http.Response{StatusCode: r.status}
		err := refusal(resp, []byte(r.body))
		if !errs.Is(err, kind) {
			t.Errorf("%s: %v is %v, want %v", name, err, errs.KindOf(err), kind)
		}
		if strings.TrimSpace(err.Error()) == "" || strings.Contains(err.Error(), "<") || len(err.Error()) > 500 {
			t.Errorf("%s: the text is %q", name, err)
		}
		if (kind == errs.Denied || kind == errs.Busy || kind == errs.Transient || kind == errs.Stale) && errs.NextStep(err) == "" {
			t.Errorf("%s: no next step", name)
		}
	}
	for id := range want {
		t.Errorf("%s is not recorded", id)
	}
}

// What is in the engine's sources and was never seen, and what stands in front of engines.
func TestOtherFaults(t *testing.T) {
	for _, x := range []struct {
		answer answer
		kind   errs.Kind
	}{
		{refused(400, "[Cannot backup VM. Bitmap does not exist]"), errs.Stale},
		{refused(409, "[Cannot backup VM. Checkpoint ID x is invalid]"), errs.Stale},
		{refused(409, "[Cannot move Virtual Disk. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again.]"), errs.Busy},
		{refused(400, "[Cannot run VM. The VM is during a backup operation.]"), errs.Busy},
		{refused(409, "[something new]"), errs.Busy},
		{refused(400, "[something new]"), errs.Invalid},
		{refused(500, "[something new]"), errs.Bug},
		{answer{status: 409, body: `{"fault":{"detail":"[Cannot run VM: Disk is locked]","reason":"x"},"status":"failed"}`}, errs.Busy},
		{answer{status: 409, body: `<action><fault><detail>[Low disk space on Storage Domain x.]</detail><reason>r</reason></fault></action>`}, errs.NoSpace},
		{page(502, "Bad Gateway"), errs.Transient}, {page(503, "x"), errs.Transient}, {page(504, "x"), errs.Transient}, {page(429, "x"), errs.Transient},
		{page(404, "404 - Not Found"), errs.Transient}, {answer{status: 404}, errs.NotFound}, {page(403, "no"), errs.Denied},
		{page(500, "java.lang.NullPointerException"), errs.Bug}, {answer{status: 418, body: "\xff\xfe"}, errs.Bug},
	} {
		err := refusal(&http.Response{StatusCode: x.answer.status}, []byte(x.answer.body))
		if !errs.Is(err, x.kind) {
			t.Errorf("%d %q is %v, want %v", x.answer.status, x.answer.body, errs.KindOf(err), x.kind)
		}
	}
}

func TestNetworkErrors(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, x := range []struct {
		ctx  context.Context
		err  error
		kind errs.Kind
	}{
		{t.Context(), &net.DNSError{IsNotFound: true}, errs.Transient}, {t.Context(), &net.DNSError{IsTimeout: true}, errs.Transient},
		{t.Context(), errors.New("unexpected EOF"), errs.Transient}, {t.Context(), context.DeadlineExceeded, errs.Transient},
		{canceled, errors.New("whatever"), errs.Canceled}, {t.Context(), x509.UnknownAuthorityError{}, errs.Denied},
		{t.Context(), x509.HostnameError{Certificate: &x509.Certificate{}}, errs.Denied},
		{t.Context(), x509.CertificateInvalidError{Reason: x509.Expired}, errs.Denied},
	} {
		if err := netError(x.ctx, x.err); !errs.Is(err, x.kind) || x.kind != errs.Canceled && errs.NextStep(err) == "" {
			t.Errorf("%v is %v (%v), want %v", x.err, errs.KindOf(err), err, x.kind)
		}
	}
}

func FuzzParseFault(f *testing.F) {
	for _, s := range []string{`{"detail":"x"}`, `<fault><reason>r</reason></fault>`, "<html>", "", "{}", "[]", "null"} {
		f.Add(409, s)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		err := refusal(&http.Response{StatusCode: status}, []byte(body))
		if err == nil || err.Error() == "" {
			t.Error("no error")
		}
	})
}
