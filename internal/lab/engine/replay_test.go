package engine

import (
	"testing"
	"time"
)

// replayFile replays one recording in an installation of its own, on a clock of its own.
func replayFile(t *testing.T, file string, change func(*Options), prepare func(*replay)) {
	t.Helper()
	bubble(t, change, func(c *client) {
		r := &replay{client: c, file: file, ids: map[string]string{}, before: map[int]func(){}, skip: map[int]string{}, loose: map[int][]string{}}
		if prepare != nil {
			prepare(r)
		}
		r.run()
	})
}

// later is a hook that lets work end: longer than anything takes.
func later() { pass(5 * time.Minute) }

func noVMs(o *Options) { o.VMs = nil }

func TestReplayLogin(t *testing.T) {
	users := []User{{Name: "admin@internal", Password: "holdfast"}, {Name: "joe@internal", Password: "holdfast", Powerless: true}}
	replayFile(t, "01-sso", func(o *Options) { noVMs(o); o.Users = users }, func(r *replay) {
		good := r.token
		as := func(token string, user int) func() {
			return func() {
				r.token = token
				if user >= 0 {
					r.e.locked(func() { r.e.state.sessions[token] = &session{user: &r.e.opts.Users[user], used: now()} })
				}
			}
		}
		r.before[30], r.before[32] = as("garbage", -1), as(good, 0)
		r.before[36], r.before[41], r.before[44] = as("joe", 1), as(good, 0), as("fresh", 0)
		r.before[51] = as(good, 0)
		r.loose[19] = []string{`^summary\.`}
	})
}

func TestReplayListsAndFaults(t *testing.T) {
	replayFile(t, "02-lists-and-faults", noVMs, func(r *replay) {
		for range 22 { // so that the first event of the recording has its number
			r.e.locked(func() { r.e.event(1, "normal", nil, "before the recording") })
		}
	})
}

func TestReplayVMsAndDisks(t *testing.T) {
	replayFile(t, "03-vm-and-disk-create", func(o *Options) {
		noVMs(o)
		o.Domains = []DomainSeed{{ID: "91aeb024-ad15-467d-ac79-84dfe27e34d8", Name: "data1"}}
	}, func(r *replay) {
		r.before[8], r.before[14], r.before[29] = later, later, later
	})
}

// data1 is the domain the recordings' disks lie on.
func data1(o *Options) {
	o.Domains = []DomainSeed{{ID: "91aeb024-ad15-467d-ac79-84dfe27e34d8", Name: "data1"}}
}

func TestReplayRunAndSnapshots(t *testing.T) {
	replayFile(t, "04-vm-run-snapshots", func(o *Options) {
		data1(o)
		o.VMs = []VMSeed{{ID: "0b0b0b0b-1111-4222-8333-444444444401", Name: "vm1", MiB: 1024, Disks: []DiskSeed{
			{ID: "0c0c0c0c-1111-4222-8333-444444444401", Alias: "vm1_disk1", Size: gib, Incremental: true},
			{ID: "1a7a5e16-0032-4eaf-baf9-d38331d34965", Alias: "vm1_disk2", Size: 2 * gib, Incremental: true}}}}
	}, func(r *replay) {
		r.before[4], r.before[10] = later, later
		r.loose[18] = []string{"^text="}
		r.before[13] = later
	})
}

func TestReplayDomains(t *testing.T) {
	replayFile(t, "05-storage-domains", noVMs, func(r *replay) { r.loose[9], r.loose[10], r.loose[11] = master, master, master })
}

// master is what a domain is only when it is the first of its data center.
var master = []string{`(^|\.)master=`}

func TestReplayDomainLife(t *testing.T) {
	replayFile(t, "05b-storage-domain-lifecycle", noVMs, func(r *replay) {
		fail := func(err error) func() { return func() { r.host.setFailure("ProbeDomain", err) } }
		r.before[6], r.before[7] = fail(badRequest("Problem while trying to mount target")), fail(nil)
		r.before[17], r.before[21] = later, later
		r.before[28] = func() { r.host.put("127.0.0.1:/export/data2", r.ids["f725ba82-6f5a-49cb-abc3-dcf8a677c92e"]) }
		for _, list := range []int{2, 27} { // the test's own domain is listed too, and data1 of the recording is not here
			r.loose[list] = []string{`nfs_version`, `path`}
		}
	})
}

func TestReplayDomainEdges(t *testing.T) {
	replayFile(t, "11-storage-destroy-import-edge", noVMs, func(r *replay) {
		r.before[6] = func() {
			r.must(200, post, "datacenters/"+r.e.IDs().DataCenter+"/storagedomains/"+r.ids["e0701aec-dac0-499c-b06d-ae86bded20e2"]+"/deactivate", "<action/>")
			later()
		}
		r.before[19] = func() {
			list := r.get("storageconnections")
			r.must(200, put, "storagedomains/"+r.ids["e0701aec-dac0-499c-b06d-ae86bded20e2"], `<storage_domain><name>data3x</name></storage_domain>`)
			r.ids["97563426-2eb3-46d1-a98d-75a70090c700"] = list.at("storage_connection.1.id")
		}
		r.before[20] = r.before[6]
		r.loose[9] = []string{"nfs_version", "path"}
		r.skip[7] = "the simulator does not keep VMs of a destroyed domain, and there was none"
	})
}

func TestReplayHandMadeDomain(t *testing.T) {
	replayFile(t, "17b-import-handmade-domain", noVMs, func(r *replay) {
		r.host.put("127.0.0.1:/export/made", "0f0f0f0f-1111-4222-8333-4444444444d1")
		for _, f := range []FoundDisk{
			{Disk: "01", Image: "02", Format: "cow", Alias: "float_ok", Volumes: 1}, {Disk: "03", Image: "04", Format: "cow", Volumes: 1},
			{Disk: "05", Image: "07", Format: "cow", Alias: "chain", Volumes: 2}, {Disk: "08", Image: "09", Format: "raw", Alias: "rawpre", Volumes: 1},
			{Disk: "0a", Image: "0b", Format: "cow", Alias: "illegal", Volumes: 1}, {Disk: "0c", Image: "0d", Format: "cow", Volumes: 1},
		} {
			f.Disk, f.Image, f.Size, f.Used = "0f0f0f0f-2222-4222-8333-4444444444"+f.Disk, "0f0f0f0f-2222-4222-8333-4444444444"+f.Image, gib, mib
			r.host.found = append(r.host.found, f)
		}
		r.loose[6], r.loose[10] = []string{`^(alias|name)=`}, []string{`^(alias|name)=`} // a name made of the time
		r.loose[8] = []string{`^sparse=`}                                                // the host does not say that it is preallocated
		r.loose[9] = []string{`^status=`}                                                // nor that it is illegal
	})
}

// theBackups prepares the VM of the recordings of backups.
func theBackups(level string, up bool) func(*Options) {
	return func(o *Options) {
		data1(o)
		o.ClusterLevel = level
		o.VMs[0].Running = up
		o.VMs = append(o.VMs, VMSeed{Name: "other", Disks: []DiskSeed{{ID: "c3a0d336-6910-4a6e-ac23-638c7f50376d", Alias: "floating", Size: gib}}})
	}
}

// bodyOfRaw is how the recordings' raw disk shows: snapshots had made its top layer a qcow2.
var bodyOfRaw = []string{`disk\[\]\.(format|qcow_version)=`}

func TestReplayColdHybridBackup(t *testing.T) {
	replayFile(t, "06-backups", theBackups("4.8", false), func(r *replay) {
		r.before[9], r.before[20] = later, later
		r.loose[10], r.loose[11] = []string{`disks\.disk\[\]\.(format|qcow_version)=`}, bodyOfRaw
		r.skip[14] = "a snapshot while the VM starts; the simulator would lock the VM"
	})
}

func TestReplayLiveHybridBackup(t *testing.T) {
	replayFile(t, "06b-backups-live", theBackups("4.8", true), func(r *replay) {
		r.before[2] = later
		r.loose[3] = bodyOfRaw
		r.before[10] = func() { pass(noticedAfter + hybridMerge + lockedAfterwards/2) }
		r.skip[10] = "the recorded job failed, for a snapshot that the fake host did not merge"
		r.skip[11] = "the recorded VM had an older checkpoint"
		r.skip[13], r.skip[16], r.skip[15] = "as 12", "as 11", "its list of disks has the raw one, which has no bitmap here"
	})
}

func TestReplayIncrementalBackup(t *testing.T) {
	replayFile(t, "06c-backups-incremental", theBackups("4.8", true), func(r *replay) {
		r.before[1] = func() {
			r.checkpoint("e435c290-bed1-4b5e-be90-7923b53e787b")
			r.checkpoint("99f27803-0372-4de0-9df6-0ac4bd975959")
		}
		r.before[2], r.before[18], r.before[19], r.before[25] = later, later, later, func() { later(); r.begin("ae49e44c-8267-4f0a-a03a-d88a253976c2", diskInc) }
		r.before[27], r.before[29] = later, func() { later(); r.checkpoint("8c7675c0-50f6-403d-87aa-74fbafa1b43b") }
		r.loose[20] = bodyOfRaw
	})
}

func TestReplayClassicBackup(t *testing.T) {
	replayFile(t, "06d-backups-classic", theBackups("4.6", false), func(r *replay) {
		for _, n := range []int{2, 7, 8, 9, 16, 19} {
			r.before[n] = later
		}
		r.before[18] = func() { later(); r.checkpoint("38f2837b-0cf2-4e28-8b6b-33145c673c6a") }
		r.loose[3], r.loose[10] = bodyOfRaw, bodyOfRaw
		r.before[33] = func() { later(); r.begin("41009924-9c49-4fb1-a45d-6da091ea5882", diskInc) }
	})
}

// checkpoint gives the VM a checkpoint with a recorded identity.
func (r *replay) checkpoint(id string) {
	r.e.locked(func() {
		v, _ := r.e.state.vms.get(vmID)
		v.checkpoints = append(v.checkpoints, &checkpoint{id: id, state: "created", created: now(), disks: []string{diskInc}})
	})
}

// begin makes a backup with a recorded identity and waits until it is ready.
func (r *replay) begin(id string, disks ...string) {
	r.t.Helper()
	body := `<backup id="` + id + `"><disks>`
	for _, d := range disks {
		body += `<disk id="` + d + `"/>`
	}
	r.must(201, post, "vms/"+vmID+"/backups", body+"</disks></backup>")
	r.waitFor("vms/"+vmID+"/backups/"+id, "phase", "ready")
}

func TestReplayTransfers(t *testing.T) {
	replayFile(t, "07-image-transfers", func(o *Options) {
		data1(o)
		o.VMs = []VMSeed{{Name: "vm1", Running: true, Disks: []DiskSeed{{ID: "0c0c0c0c-1111-4222-8333-444444444401", Alias: "vm1_disk1", Size: gib}}}}
	}, func(r *replay) {
		r.floating("ecdee17e-bba0-43ba-869f-1ea482d04a98", "tr_disk")
		r.floating("c3a0d336-6910-4a6e-ac23-638c7f50376d", "floating")
		for _, n := range []int{9, 16, 17, 27} {
			r.before[n] = later
		}
		r.before[15] = func() { pass(transferEnd / 2) }
	})
}

// floating makes a disk that no VM has.
func (r *replay) floating(id, alias string) {
	r.e.locked(func() {
		r.e.state.disks.put(id, &disk{id: id, image: newID(), alias: alias, status: "ok", format: "cow", sparse: true, size: gib, actual: emptyDisk,
			domain: r.e.state.domains.order[0], incremental: true, content: "data"})
	})
}

func TestReplayTransferTimeouts(t *testing.T) {
	replayFile(t, "07b-image-transfers-more", func(o *Options) { data1(o); noVMs(o) }, func(r *replay) {
		r.floating("e9714554-d3a8-4d3f-82f9-7b753757d74a", "ina1")
		r.floating("94c61f1b-a480-41a5-867e-0927aca3b570", "up2")
		silent := func() { r.host.silence(21); pass(time.Minute) }
		r.before[3], r.before[5] = silent, silent
		r.before[8] = func() { r.host.silence(0); later() }
		r.before[12] = later
	})
}

func TestReplayDownloadOfABackup(t *testing.T) {
	replayFile(t, "10-backup-download", onD2, func(r *replay) { r.before[3] = later })
}

// onD2 is the VM of the recordings of a download.
func onD2(o *Options) {
	data1(o)
	o.VMs = []VMSeed{{ID: "47532e97-3656-4408-ab07-56a1e23895a7", Name: "onD2", Disks: []DiskSeed{
		{ID: "5e3d4bb7-08a9-4bb8-af27-7c20f248dee5", Alias: "onD2_disk", Size: gib, Incremental: true}}},
		{ID: "0b0b0b0b-1111-4222-8333-4444444444a1", Name: "restored"}}
}

func TestReplayRestore(t *testing.T) {
	replayFile(t, "10b-backup-download-restore", onD2, func(r *replay) {
		r.before[10] = later
		r.before[17] = func() {
			r.must(201, post, "disks", `<disk id="0c0c0c0c-1111-4222-8333-4444444444a1"><name>restored</name><format>cow</format><backup>incremental</backup>`+
				`<provisioned_size>1073741824</provisioned_size><storage_domains><storage_domain><name>data1</name></storage_domain></storage_domains></disk>`)
		}
		r.before[18], r.before[21] = later, later
	})
}

func TestReplayMoves(t *testing.T) {
	replayFile(t, "09-disk-move-update", func(o *Options) {
		data1(o)
		o.Domains = append(o.Domains, DomainSeed{ID: "f725ba82-6f5a-49cb-abc3-dcf8a677c92e", Name: "data2"})
		o.VMs = []VMSeed{{ID: "0b0b0b0b-1111-4222-8333-444444444401", Name: "vm1", Running: true, Disks: []DiskSeed{
			{ID: "0c0c0c0c-1111-4222-8333-444444444401", Alias: "vm1_disk1", Size: gib, Incremental: true},
			{ID: "1a7a5e16-0032-4eaf-baf9-d38331d34965", Alias: "vm1_disk2", Size: 2 * gib, Incremental: true, Interface: "virtio"}}}}
	}, func(r *replay) {
		r.floating("3ab596b8-a15e-4837-9e83-3a610dcd9304", "mv1")
		r.floating("4b483c2c-c502-466e-bdd0-8d85e8a45e0e", "rawdisk")
		d, _ := r.e.state.disks.get("4b483c2c-c502-466e-bdd0-8d85e8a45e0e")
		d.format, d.incremental = "raw", false
		for _, n := range []int{4, 7, 10, 11, 12, 14, 16, 18, 19} {
			r.before[n] = later
		}
	})
}

func TestReplayXML(t *testing.T) {
	replayFile(t, "12-xml-forms", func(o *Options) {
		data1(o)
		o.Domains[0] = DomainSeed{ID: "f725ba82-6f5a-49cb-abc3-dcf8a677c92e", Name: "data2"}
		o.VMs = []VMSeed{{ID: "0b0b0b0b-1111-4222-8333-444444444401", Name: "vm1", Running: true, Disks: []DiskSeed{
			{ID: "0c0c0c0c-1111-4222-8333-444444444401", Alias: "vm1_disk1", Size: gib, Incremental: true}}}}
	}, func(r *replay) {
		r.loose[2] = []string{"disk_profile"} // the recorded disk had lost it in a move
		r.loose[3], r.loose[4] = master, master
		r.loose[12] = []string{"nfs_version", "path"}
		for _, name := range []string{"holdfast-protected", "x2", "tagA"} {
			r.must(201, post, "tags", `<tag><name>`+name+`</name></tag>`)
		}
		for len(r.e.state.events) < 316 { // so that the recorded event has its number
			r.e.locked(func() { r.e.event(1, "normal", nil, "before the recording") })
		}
	})
}

func TestReplayOddsAndEnds(t *testing.T) {
	replayFile(t, "15-odds-and-ends", func(o *Options) { o.VMs[0].ID = "0b0b0b0b-1111-4222-8333-444444444401" }, func(r *replay) {
		for _, name := range []string{"holdfast-protected", "x2", "tagA"} {
			r.must(201, post, "tags", `<tag><name>`+name+`</name></tag>`)
		}
	})
}

func TestReplayVMsFromOVF(t *testing.T) {
	replayFile(t, "08b-vm-from-ovf-down", func(o *Options) {
		onD2(o)
		o.VMs[1] = VMSeed{ID: "0b0b0b0b-1111-4222-8333-444444444401", Name: "vm1", MiB: 1024, Networks: []string{"ovirtmgmt"}}
	}, nil)
}

func TestReplayRestoreFromOVF(t *testing.T) {
	replayFile(t, "16-restore-from-ovf-with-disks", func(o *Options) { data1(o); noVMs(o) }, func(r *replay) {
		r.before[5] = func() {
			later()
			r.must(200, del, "vms/39dc9529-444d-4cc4-bd6e-b78d2b2fb034?detach_only=true", "")
		}
	})
}
