package ovirt

import (
	"context"
	"encoding/xml"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// write is a call that changes something: the request it makes, byte for byte, and what a real engine answered.
type write struct {
	name, request, body string
	answer              answer
	call                func(ctx context.Context, c *Client) error
}

const nothing = "<action></action>"

// writes are those that are one request.
// Long: one table, as long as the API.
func writes(t *testing.T) []write {
	rec := func(file, name, root string) answer { return recorded(t, file, name, root) }
	inDC := "/datacenters/" + string(center) + "/storagedomains"
	return []write{
		{"incremental", "PUT /disks/d", "<disk><backup>incremental</backup></disk>", rec("machines.txt", "disk xml", ""),
			func(ctx context.Context, c *Client) error { return c.SetIncremental(ctx, "d") }},
		{"finalize backup", "POST /vms/v/backups/b/finalize", nothing, rec("backups.txt", "finalize", "action"),
			func(ctx context.Context, c *Client) error { return c.FinalizeBackup(ctx, "v", "b") }},
		{"remove checkpoint", "DELETE /vms/v/checkpoints/p", "", rec("backups.txt", "checkpoint delete", "action"),
			func(ctx context.Context, c *Client) error { return c.RemoveCheckpoint(ctx, "v", "p") }},
		{"add connection", "POST /storageconnections", "<storage_connection><address>10.0.0.5</address><path>/ir/1</path><type>nfs</type><nfs_version>v3</nfs_version>" +
			"<mount_options>port=1,mountport=1</mount_options></storage_connection>", rec("storage.txt", "connection", "storage_connection"),
			func(ctx context.Context, c *Client) error {
				got, err := c.AddConnection(ctx, Connection{Address: "10.0.0.5", Path: "/ir/1", MountOptions: "port=1,mountport=1"})
				if err == nil && got.ID != "0f7df0f9-4e61-45da-8c69-f4ad64ef0902" {
					t.Errorf("%+v", got)
				}
				return err
			}},
		{"remove connection", "DELETE /storageconnections/s?host=h", "", done(), func(ctx context.Context, c *Client) error { return c.RemoveConnection(ctx, "s", "h") }},
		{"forget connection", "DELETE /storageconnections/s", "", done(), func(ctx context.Context, c *Client) error { return c.RemoveConnection(ctx, "s", "") }},
		{"import domain", "POST /storagedomains", `<storage_domain><import>true</import><name>n</name><type>data</type><storage id="s"></storage><host id="h"></host></storage_domain>`,
			rec("storage.txt", "imported", "storage_domain"), func(ctx context.Context, c *Client) error {
				d, err := c.ImportDomain(ctx, DomainSpec{Name: "n", Connection: "s", Host: "h", Expect: data2})
				if err == nil && (d.ID != data2 || d.DataCenter != "") {
					t.Errorf("%+v", d)
				}
				return err
			}},
		{"attach domain", "POST " + inDC, `<storage_domain id="` + string(data1) + `"></storage_domain>`, rec("storage.txt", "attach", "storage_domain"),
			func(ctx context.Context, c *Client) error { return c.AttachDomain(ctx, center, data1) }},
		{"activate domain", "POST " + inDC + "/d/activate", nothing, done(), func(ctx context.Context, c *Client) error { return c.ActivateDomain(ctx, center, "d") }},
		{"deactivate domain", "POST " + inDC + "/d/deactivate", "<action><force>false</force></action>", rec("storage.txt", "deactivate", "action"),
			func(ctx context.Context, c *Client) error { return c.DeactivateDomain(ctx, center, "d") }},
		{"detach domain", "DELETE " + inDC + "/d", "", rec("storage.txt", "detach", "action"), func(ctx context.Context, c *Client) error { return c.DetachDomain(ctx, center, "d") }},
		{"remove domain", "DELETE /storagedomains/d?format=false&host=h", "", rec("storage.txt", "remove", "action"),
			func(ctx context.Context, c *Client) error { return c.RemoveDomain(ctx, "d", "h") }},
		{"destroy domain", "DELETE /storagedomains/d?destroy=true", "", rec("storage.txt", "destroy", "action"), func(ctx context.Context, c *Client) error { return c.DestroyDomain(ctx, "d") }},
		{"register disk", "POST /storagedomains/d/disks?unregistered=true", `<disk id="k"></disk>`, rec("storage.txt", "register", "disk"),
			func(ctx context.Context, c *Client) error { return c.RegisterDisk(ctx, center, "d", "k") }},
		{"attach disk", "POST /vms/v/diskattachments", `<disk_attachment><active>true</active><bootable>true</bootable><interface>virtio_scsi</interface><disk id="k"></disk></disk_attachment>`,
			rec("machines.txt", "attach", "disk_attachment"), func(ctx context.Context, c *Client) error {
				return c.AttachDisk(ctx, "v", NewAttachment{Disk: "k", Interface: "virtio_scsi", Bootable: true})
			}},
		{"detach disk", "DELETE /vms/v/diskattachments/k?detach_only=true", "", done(), func(ctx context.Context, c *Client) error { return c.DetachDisk(ctx, "v", "k") }},
		{"start VM", "POST /vms/v/start", nothing, rec("machines.txt", "start", "action"), func(ctx context.Context, c *Client) error { return c.StartVM(ctx, "v") }},
		{"shut down VM", "POST /vms/v/shutdown", nothing, done(), func(ctx context.Context, c *Client) error { return c.ShutdownVM(ctx, "v") }},
		{"stop VM", "POST /vms/v/stop", nothing, done(), func(ctx context.Context, c *Client) error { return c.StopVM(ctx, "v") }},
		{"remove VM", "DELETE /vms/v", "", done(), func(ctx context.Context, c *Client) error { return c.RemoveVM(ctx, "v", false) }},
		{"remove VM only", "DELETE /vms/v?detach_only=true", "", done(), func(ctx context.Context, c *Client) error { return c.RemoveVM(ctx, "v", true) }},
		{"remove disk", "DELETE /disks/k", "", rec("machines.txt", "delete", "action"), func(ctx context.Context, c *Client) error { return c.RemoveDisk(ctx, "k") }},
		{"move disk", "POST /disks/k/move", `<action><storage_domain id="d"></storage_domain></action>`, rec("machines.txt", "move", "action"),
			func(ctx context.Context, c *Client) error { return c.MoveDisk(ctx, "k", "d") }},
		{"create disk", "POST /disks", `<disk id="k"><alias>a</alias><name>a</name><format>cow</format><sparse>true</sparse><backup>incremental</backup>` +
			`<provisioned_size>1024</provisioned_size><initial_size>512</initial_size><storage_domains><storage_domain id="d"></storage_domain></storage_domains></disk>`, done(),
			func(ctx context.Context, c *Client) error {
				return c.CreateDisk(ctx, NewDisk{ID: "k", Alias: "a", Domain: "d", Format: FormatCow, Sparse: true, Size: 1024, Initial: 512, Incremental: true})
			}},
		{"change NIC", "PUT /vms/v/nics/n", `<nic><mac><address>56:6f:00:00:00:01</address></mac><vnic_profile id="p"></vnic_profile></nic>`, done(),
			func(ctx context.Context, c *Client) error {
				return c.UpdateNIC(ctx, NIC{ID: "n", VM: "v", MAC: "56:6f:00:00:00:01", Profile: "p"})
			}},
		{"NIC without a network", "PUT /vms/v/nics/n", `<nic><vnic_profile></vnic_profile></nic>`, done(),
			func(ctx context.Context, c *Client) error { return c.UpdateNIC(ctx, NIC{ID: "n", VM: "v"}) }},
		{"tag VM", "POST /vms/v/tags", `<tag><name>&lt;gold&gt;</name></tag>`, done(),
			func(ctx context.Context, c *Client) error { return c.TagVM(ctx, "v", "<gold>") }},
		{"describe VM", "PUT /vms/v", `<vm><description></description></vm>`, done(),
			func(ctx context.Context, c *Client) error { return c.DescribeVM(ctx, "v", "") }},
		{"take snapshot", "POST /vms/v/snapshots", "<snapshot><description>run 7</description><persist_memorystate>false</persist_memorystate><disk_attachments>" +
			`<disk_attachment><disk id="k"></disk></disk_attachment></disk_attachments></snapshot>`,
			// The recorded answer is too long to have been kept whole; these are its parts that are read.
			answer{status: 201, kind: "application/xml", body: `<snapshot id="s"><snapshot_status>locked</snapshot_status><snapshot_type>regular</snapshot_type></snapshot>`},
			func(ctx context.Context, c *Client) error {
				got, err := c.AddSnapshot(ctx, "v", SnapshotSpec{Description: "run 7", Disks: []ID{"k"}})
				if err == nil && (got.ID != "s" || got.Status != "locked") {
					t.Errorf("%+v", got)
				}
				return err
			}},
		{"read a volume", "POST /imagetransfers", `<image_transfer><snapshot id="u"></snapshot><direction>download</direction><format>raw</format><shallow>true</shallow>` +
			"<inactivity_timeout>3600</inactivity_timeout><timeout_policy>cancel</timeout_policy></image_transfer>",
			rec("backups.txt", "transfer again", "image_transfer"), func(ctx context.Context, c *Client) error {
				_, err := c.StartTransfer(ctx, TransferSpec{Disk: "k", Volume: "u", Shallow: true, Inactivity: time.Hour})
				return err
			}},
		{"remove snapshot", "DELETE /vms/v/snapshots/s?async=true", "", rec("machines.txt", "snapshot delete", ""),
			func(ctx context.Context, c *Client) error { return c.RemoveSnapshot(ctx, "v", "s") }},
	}
}

func TestWrites(t *testing.T) {
	for _, x := range writes(t) {
		t.Run(x.name, func(t *testing.T) {
			s := newScript(t).on(x.request, x.answer)
			c := s.dial()
			if err := x.call(WithCorrelation(t.Context(), "run-7"), c); err != nil {
				t.Fatal(err)
			}
			a := s.requests()[0]
			if a.body != x.body {
				t.Errorf("sent %s\nwant %s", a.body, x.body)
			}
			if x.body != "" && a.header.Get("Content-Type") != "application/xml" || a.header.Get("Correlation-Id") != "run-7" {
				t.Errorf("headers %v", a.header)
			}
			// Sent once, whatever happens: looking is all that follows. The rest of the engine says that nothing is there.
			for _, bad := range []answer{page(503, "wait"), refused(409, "[Cannot do it. Disk is locked.]"), refused(403, "[User is not authorized to perform this action.]")} {
				s := newScript(t).on(x.request, bad)
				s.server.Config.Handler = elsewhere(s, x.request)
				if err := x.call(t.Context(), s.dial()); err == nil || s.count(x.request) != 1 {
					t.Errorf("%d: %v, sent %d times", bad.status, err, s.count(x.request))
				} else if want := refusal(&http.Response{StatusCode: bad.status}, []byte(bad.body)); errs.KindOf(err) != errs.KindOf(want) {
					t.Errorf("%d: %v is %v", bad.status, err, errs.KindOf(err))
				}
			}
		})
	}
}

// elsewhere answers everything but one request and logins with 404.
func elsewhere(s *script, request string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(request, strings.TrimPrefix(r.RequestURI, "/ovirt-engine/api")) && strings.HasPrefix(request, r.Method) || strings.Contains(r.URL.Path, "sso") {
			s.serve(w, r)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	})
}

// What is so already is no error.
func TestDoneAlready(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	faults := recordings(t, "faults.txt")
	byID := func(id string) answer {
		for name, r := range faults {
			if strings.HasSuffix(name, " "+id) {
				return r.answer
			}
		}
		t.Fatal(id)
		return answer{}
	}
	inDC := "/datacenters/" + string(center) + "/storagedomains"
	s.on("POST /vms/v/start", byID("04.2"), byID("04.4"), byID("12.17"), byID("03.24"))
	s.on("POST /vms/v/backups/b/finalize", byID("06.19"), byID("06.21"), byID("10.7"))
	s.on("POST "+inDC+"/d/activate", byID("05b.19")).on("POST "+inDC+"/d/deactivate", byID("05b.17"))
	s.on("POST "+inDC, byID("05b.9")).on("GET "+inDC+"/d", recorded(t, "storage.txt", "attached", ""))
	s.on("POST /vms/v/diskattachments", byID("03.21"), byID("16.7"), byID("03.22"))
	s.on("GET /vms/v"+inlined, recorded(t, "machines.txt", "vm", "vm"))
	for i := range 3 {
		if err := c.StartVM(ctx, "v"); err != nil {
			t.Errorf("start %d: %v", i, err)
		}
	}
	if err := c.StartVM(ctx, "v"); !errs.Is(err, errs.Busy) {
		t.Errorf("start with a locked disk: %v", err)
	}
	for range 2 {
		if err := c.FinalizeBackup(ctx, "v", "b"); err != nil {
			t.Error(err)
		}
	}
	if err := c.FinalizeBackup(ctx, "v", "b"); !errs.Is(err, errs.Busy) {
		t.Errorf("with an active transfer: %v", err)
	}
	if err := c.ActivateDomain(ctx, center, "d"); err != nil {
		t.Error(err)
	}
	if err := c.DeactivateDomain(ctx, center, "d"); err != nil {
		t.Error(err)
	}
	if err := c.AttachDomain(ctx, center, "d"); err != nil {
		t.Error(err)
	}
	if err := c.AttachDisk(ctx, "v", NewAttachment{Disk: disk1}); err != nil {
		t.Error(err)
	}
	if err := c.AttachDisk(ctx, "v", NewAttachment{Disk: "other"}); !errs.Is(err, errs.Exists) {
		t.Errorf("another boot disk: %v", err)
	}
	if err := c.AttachDisk(ctx, "v", NewAttachment{Disk: "other"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("no such disk: %v", err)
	}
}

func TestStartOfUnknownVM(t *testing.T) {
	s := newScript(t)
	for name, r := range recordings(t, "faults.txt") {
		if strings.HasSuffix(name, " 12.16") {
			s.on("POST /vms/v/start", r.answer)
		}
	}
	s.on("GET /vms/v"+inlined, answer{status: 404}, xmlOK(`<vm id="v"/>`))
	if err := s.dial().StartVM(t.Context(), "v"); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if err := s.dial().StartVM(t.Context(), "v"); !errs.Is(err, errs.Bug) {
		t.Error(err)
	}
}

func TestCreateVM(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	made := recorded(t, "machines.txt", "vm from ovf", "vm")
	s.on("POST /vms", made, made, refused(409, "[Cannot add VM. The VM name is already in use, please choose a unique name and try again.]"))
	s.on("GET /vms/a3bc2310-1f78-4092-a167-9dc345975eb0"+inlined, recorded(t, "machines.txt", "vm from ovf looked at", "vm"))
	v, err := c.CreateVM(ctx, NewVM{Name: "ovfI", Cluster: "c", OVF: "<ovf/>", Description: "Holdfast session 1", MemoryMiB: 1})
	if err != nil || v.Name != "ovfI" || v.MemoryMiB != 1024 || v.Status != VMDown {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := c.CreateVM(ctx, NewVM{Name: "plain", Cluster: "c", MemoryMiB: 1024}); err != nil {
		t.Error(err)
	}
	if _, err := c.CreateVM(ctx, NewVM{Name: "plain", Cluster: "c"}); !errs.Is(err, errs.Exists) {
		t.Error(err)
	}
	want := []string{
		`<vm><name>ovfI</name><description>Holdfast session 1</description><cluster id="c"></cluster><initialization><configuration><type>ovf</type>` +
			`<data>&lt;ovf/&gt;</data></configuration><regenerate_ids>true</regenerate_ids></initialization></vm>`,
		`<vm><name>plain</name><cluster id="c"></cluster><template><name>Blank</name></template><memory>1073741824</memory></vm>`,
	}
	for i, a := range []asked{s.requests()[0], s.requests()[2]} {
		if a.body != want[i] {
			t.Errorf("sent %s\nwant %s", a.body, want[i])
		}
	}
}

// A host that finds nothing at the export has the engine make a new domain, with the same answer.
func TestImportOfAnotherDomain(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	s.on("POST /storagedomains", recorded(t, "storage.txt", "created instead", "storage_domain"))
	spec := DomainSpec{Name: "n", Connection: "s", Host: "h", Expect: data2}
	d, err := c.ImportDomain(ctx, spec)
	if !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" || d.ID != "d0dbee38-14e6-48ae-814c-d5b7d2038c95" || !strings.Contains(err.Error(), string(d.ID)) {
		t.Errorf("%+v, %v", d, err)
	}
	spec.Expect = ""
	if d, err := c.ImportDomain(ctx, spec); err != nil || d.ID != "d0dbee38-14e6-48ae-814c-d5b7d2038c95" {
		t.Errorf("%+v, %v", d, err)
	}
	s.instead("POST /storagedomains", refused(400, "[Problem while trying to mount target]"))
	if _, err := c.ImportDomain(ctx, spec); !errs.Is(err, errs.Transient) || !strings.Contains(errs.NextStep(err), "hosts reach") {
		t.Error(err)
	}
}

func TestLostAnswers(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	lost := answer{drop: true}
	s.on("POST /storagedomains", lost).on("GET /storagedomains/"+string(data1), recorded(t, "storage.txt", "unattached", "storage_domain"))
	if d, err := c.ImportDomain(ctx, DomainSpec{Name: "n", Connection: "s", Host: "h", Expect: data1}); err != nil || d.ID != data1 {
		t.Errorf("%+v, %v", d, err)
	}
	s.on("POST /storageconnections", lost).on("GET /storageconnections", recorded(t, "storage.txt", "connections", ""))
	if n, err := c.AddConnection(ctx, Connection{Address: "127.0.0.1", Path: "/export/data3"}); err != nil || n.ID == "" {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := c.AddConnection(ctx, Connection{Address: "127.0.0.1", Path: "/export/none"}); !errs.Is(err, errs.Transient) {
		t.Error(err)
	}
	s.on("POST /vms/v/diskattachments", lost).on("GET /vms/v"+inlined, recorded(t, "machines.txt", "vm", "vm"))
	if err := c.AttachDisk(ctx, "v", NewAttachment{Disk: disk2}); err != nil {
		t.Error(err)
	}
	s.on("POST /datacenters/c/storagedomains", lost).on("GET /datacenters/c/storagedomains/d", recorded(t, "storage.txt", "attached", ""))
	if err := c.AttachDomain(ctx, "c", "d"); err != nil {
		t.Error(err)
	}
}

func TestPostEvent(t *testing.T) {
	twice := recorded(t, "machines.txt", "event twice", "")
	for name, x := range map[string]struct {
		answers []answer
		numbers int // how many different ones are used
		kind    errs.Kind
		fails   bool
	}{
		"at once":          {[]answer{recorded(t, "machines.txt", "event", "")}, 1, 0, false},
		"number is taken":  {[]answer{twice, twice, xmlOK("<event/>")}, 3, 0, false},
		"lost, but there":  {[]answer{{drop: true}, twice}, 1, 0, false},
		"lost, not there":  {[]answer{{drop: true}, xmlOK("<event/>")}, 1, 0, false},
		"always taken":     {[]answer{twice}, eventTries, errs.Exists, true},
		"not permitted":    {[]answer{refused(403, "[User is not authorized to perform this action.]")}, 1, errs.Denied, true},
		"engine is away":   {[]answer{page(503, "x")}, 1, errs.Transient, true},
		"engine came back": {[]answer{page(503, "x"), page(503, "x"), xmlOK("<event/>")}, 1, 0, false},
	} {
		s := newScript(t).on("POST /events", x.answers...)
		err := s.dial().PostEvent(t.Context(), Event{Severity: EventWarning, Text: strings.Repeat("x", 20000), VM: "v"})
		if (err != nil) != x.fails || err != nil && !errs.Is(err, x.kind) {
			t.Errorf("%s: %v", name, err)
		}
		numbers := map[uint32]bool{}
		for _, a := range s.requests() {
			var e xmlEvent
			if xml.Unmarshal([]byte(a.body), &e) != nil || e.Origin != "Holdfast" || e.VM.ID != "v" || e.Severity != "warning" || len(e.Description) != maxText {
				t.Errorf("%s: %.200s", name, a.body)
			}
			if e.CustomID == 0 || e.CustomID > 1<<31-1 {
				t.Errorf("%s: number %d", name, e.CustomID)
			}
			numbers[e.CustomID] = true
		}
		if len(numbers) != x.numbers {
			t.Errorf("%s: %d numbers, want %d", name, len(numbers), x.numbers)
		}
	}
}

func TestStartTransfer(t *testing.T) {
	s := newScript(t).on("POST /imagetransfers", recorded(t, "backups.txt", "transfer", "image_transfer"), refused(500, "[General command validation failure.]"))
	c := s.dial()
	spec := TransferSpec{Disk: "k", Backup: "b", Inactivity: time.Hour}
	got, err := c.StartTransfer(t.Context(), spec)
	if err != nil || got.Phase != TransferTransferring || got.Disk != "5e3d4bb7-08a9-4bb8-af27-7c20f248dee5" || !strings.HasPrefix(got.TransferURL, "https://localhost:54322/images/") {
		t.Errorf("%+v, %v", got, err)
	}
	const want = `<image_transfer><disk id="k"></disk><backup id="b"></backup><direction>download</direction><format>raw</format>` +
		`<inactivity_timeout>3600</inactivity_timeout><timeout_policy>cancel</timeout_policy></image_transfer>`
	if b := s.requests()[0].body; b != want {
		t.Errorf("sent %s\nwant %s", b, want)
	}
	if _, err := c.StartTransfer(t.Context(), spec); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	s.instead("POST /imagetransfers", recorded(t, "backups.txt", "transfer", "image_transfer"))
	if _, err := c.StartTransfer(t.Context(), TransferSpec{Disk: "k", Upload: true, Inactivity: time.Hour}); err != nil {
		t.Error(err)
	}
	const upload = `<image_transfer><disk id="k"></disk><direction>upload</direction><format>raw</format>` +
		`<inactivity_timeout>3600</inactivity_timeout><timeout_policy>cancel</timeout_policy></image_transfer>`
	if all := s.requests(); all[len(all)-1].body != upload {
		t.Errorf("sent %s\nwant %s", all[len(all)-1].body, upload)
	}
	spec.Inactivity = 0
	if _, err := c.StartTransfer(t.Context(), spec); !errs.Is(err, errs.Invalid) || s.count("POST /imagetransfers") != 3 {
		t.Errorf("no inactivity: %v", err)
	}
}

// The engine answers 200 to anything that is asked of a transfer it does not know.
func TestEndOfTransfers(t *testing.T) {
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	calls := map[string]func(context.Context, ID) error{"finalize": c.FinalizeTransfer, "cancel": c.CancelTransfer, "extend": c.ExtendTransfer}
	for action, call := range calls {
		s.instead("GET /imagetransfers/x", recorded(t, "backups.txt", "transfer again", "image_transfer"), answer{status: 404})
		s.on("POST /imagetransfers/x/"+action, recorded(t, "backups.txt", "transfer finalize", "action"))
		if err := call(ctx, "x"); err != nil || s.count("POST /imagetransfers/x/"+action) != 1 {
			t.Errorf("%s: %v", action, err)
		}
		if err := call(ctx, "x"); !errs.Is(err, errs.NotFound) || s.count("POST /imagetransfers/x/"+action) != 1 {
			t.Errorf("%s of an unknown one: %v", action, err)
		}
	}
}

func TestTransfersOfABackup(t *testing.T) {
	live := `<image_transfers><image_transfer id="t1"><phase>transferring</phase><image id="` + string(disk1) + `"/></image_transfer>` +
		`<image_transfer id="t2"><phase>paused_system</phase><image id="` + string(disk2) + `"/></image_transfer>` +
		`<image_transfer id="t3"><phase>transferring</phase><image id="other"/></image_transfer>` +
		`<image_transfer id="t4"><phase>finished_success</phase><image id="` + string(disk1) + `"/></image_transfer></image_transfers>`
	disks := xmlOK(`<disks><disk id="` + string(disk1) + `"/><disk id="` + string(disk2) + `"/></disks>`)
	ids := func(l []Transfer, err error) []ID {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		var all []ID
		for _, x := range l {
			all = append(all, x.ID)
		}
		return all
	}
	s := newScript(t)
	c, ctx := s.dial(), t.Context()
	s.on("GET /imagetransfers", recorded(t, "backups.txt", "transfers xml", ""))
	if got := ids(c.Transfers(ctx, "b")); got != nil {
		t.Errorf("all have ended, but %v", got)
	}
	// After a restart of ours: the VM is found by its disks.
	s.instead("GET /imagetransfers", xmlOK(live))
	vm := recorded(t, "machines.txt", "vm", "vm").body
	s.on("GET /vms"+inlined, xmlOK(`<vms><vm id="not"/>`+vm+`</vms>`))
	s.on("GET /vms/"+string(vm1)+"/backups/b", recorded(t, "backups.txt", "ready", "")).on("GET /vms/"+string(vm1)+"/backups/b/disks", disks)
	want := []ID{"t1", "t2"}
	for range 2 { // and then known
		if got := ids(c.Transfers(ctx, "b")); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	if n := s.count("GET /vms" + inlined); n != 1 {
		t.Errorf("the VMs were listed %d times", n)
	}
	s.on("GET /vms/"+string(vm1)+"/backups/gone", answer{status: 404})
	if got := ids(c.Transfers(ctx, "gone")); got != nil {
		t.Errorf("of no backup: %v", got)
	}
	s.instead("GET /vms/"+string(vm1)+"/backups/b/disks", answer{status: 404})
	if got := ids(c.Transfers(ctx, "b")); got != nil {
		t.Errorf("of a purged backup: %v", got)
	}
}
