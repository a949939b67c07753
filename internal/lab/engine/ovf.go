package engine

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// ovfTime is how the engine writes times into an OVF.
const ovfTime = "2006/01/02 15:04:05"

// Resource types of hardware items.
const (
	ovfCPU    = "3"
	ovfMemory = "4"
	ovfNIC    = "10"
	ovfDisk   = "17"
)

// ovf writes a VM's configuration, shaped like the recorded ones. The values are the VM's; what the simulator knows nothing
// of has the engine's defaults.
func (e *Engine) ovf(v *vm) string {
	var b strings.Builder
	put := func(format string, args ...any) {
		for i, a := range args {
			if s, isText := a.(string); isText {
				args[i] = escape(s)
			}
		}
		fmt.Fprintf(&b, format, args...)
	}
	put(`<?xml version="1.0" encoding="UTF-8"?><ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" ` +
		`xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" ` +
		`xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" ` +
		`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ovf:version="4.4.0.0">`)
	e.ovfDisks(put, v)
	put(`<Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>%s</Name><Description>%s</Description><Comment>%s</Comment>`,
		v.name, v.description, v.comment)
	put(`<CreationDate>%s</CreationDate><ExportDate>%s</ExportDate><DeleteProtected>%t</DeleteProtected>`,
		v.created.Format(ovfTime), now().Format(ovfTime), v.protected)
	put(`<SsoMethod>guest_agent</SsoMethod><NumOfIoThreads>1</NumOfIoThreads><TimeZone>Etc/GMT</TimeZone>`+
		`<default_boot_sequence>0</default_boot_sequence><Generation>4</Generation>`+
		`<ClusterCompatibilityVersion>%s</ClusterCompatibilityVersion><VmType>1</VmType><ResumeBehavior>AUTO_RESUME</ResumeBehavior>`, e.opts.ClusterLevel)
	put(`<MinAllocatedMem>%d</MinAllocatedMem><IsStateless>%t</IsStateless><BiosType>2</BiosType><MaxMemorySizeMb>%d</MaxMemorySizeMb>`,
		v.memory/mib, v.stateless, v.memory*memoryMax/mib)
	put(`<MultiQueuesEnabled>true</MultiQueuesEnabled><BalloonEnabled>true</BalloonEnabled><CpuPinningPolicy>0</CpuPinningPolicy>`+
		`<ClusterName>Default</ClusterName><TemplateId>%s</TemplateId><TemplateName>Blank</TemplateName><Origin>3</Origin>`, nilID)
	put(`<quota_id>%s</quota_id><DefaultDisplayType>2</DefaultDisplayType><OriginalTemplateId>%s</OriginalTemplateId>`+
		`<OriginalTemplateName>Blank</OriginalTemplateName><StopTime>%s</StopTime>`, quotaID, nilID, v.stopped.Format(ovfTime))
	put(`<Section ovf:id="%s" ovf:required="false" xsi:type="ovf:OperatingSystemSection_Type"><Info>Guest Operating System</Info>`+
		`<Description>other</Description></Section>`, v.id)
	e.ovfHardware(put, v)
	put(`<Section xsi:type="ovf:SnapshotsSection_Type">`)
	for _, s := range v.snapshots {
		put(`<Snapshot ovf:id="%s"><Type>%s</Type><Description>%s</Description><CreationDate>%s</CreationDate></Snapshot>`,
			s.id, strings.ToUpper(s.kind), s.description, s.date.Format(ovfTime))
	}
	put(`</Section></Content></ovf:Envelope>`)
	return b.String()
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

type printer func(format string, args ...any)

func (e *Engine) ovfDisks(put printer, v *vm) {
	put(`<References>`)
	for _, a := range v.attachments {
		d, _ := e.state.disks.get(a.disk)
		put(`<File ovf:href="%s/%s" ovf:id="%s" ovf:size="%d" ovf:description="Active VM" ovf:disk_storage_type="IMAGE" ovf:cinder_volume_type=""></File>`,
			d.id, d.volume(), d.volume(), d.actual)
	}
	put(`</References><NetworkSection><Info>List of networks</Info><Network ovf:name="ovirtmgmt"></Network></NetworkSection>` +
		`<Section xsi:type="ovf:DiskSection_Type"><Info>List of Virtual Disks</Info>`)
	for _, a := range v.attachments {
		d, _ := e.state.disks.get(a.disk)
		format := "http://www.gnome.org/~markmc/qcow-image-format.html"
		if d.format == "raw" {
			format = "http://www.vmware.com/specifications/vmdk.html#sparse"
		}
		put(`<Disk ovf:diskId="%s" ovf:size="%d" ovf:actual_size="%d" ovf:vm_snapshot_id="%s" ovf:parentRef="" ovf:fileRef="%s/%s" ovf:format="%s" `,
			d.volume(), (d.size+gib-1)/gib, (d.actual+gib-1)/gib, v.snapshots[0].id, d.id, d.volume(), format)
		put(`ovf:volume-format="%s" ovf:volume-type="%s" ovf:disk-interface="%s" ovf:read-only="%t" ovf:shareable="%t" ovf:boot="%t" `,
			strings.ToUpper(d.format), sparseWord(d.sparse), ifaceWord(a.iface), a.readOnly, d.shareable, a.bootable)
		put(`ovf:pass-discard="%t" ovf:incremental-backup="%t" ovf:disk-alias="%s" ovf:disk-description="%s" ovf:wipe-after-delete="false"></Disk>`,
			a.discard, d.incremental, d.alias, d.description)
	}
	put(`</Section>`)
}

func sparseWord(sparse bool) string {
	if sparse {
		return "Sparse"
	}
	return "Preallocated"
}

// ifaceWords are the disk interfaces as an OVF spells them.
var ifaceWords = map[string]string{"virtio_scsi": "VirtIO_SCSI", "virtio": "VirtIO", "sata": "SATA", "ide": "IDE", "spapr_vscsi": "SPAPR_VSCSI"}

func ifaceWord(iface string) string { return ifaceWords[iface] }

func (e *Engine) ovfHardware(put printer, v *vm) {
	cpus := v.sockets * v.cores * v.threads
	put(`<Section xsi:type="ovf:VirtualHardwareSection_Type"><Info>%d CPU, %d Memory</Info>`+
		`<System><vssd:VirtualSystemType>ENGINE 4.4.0.0</vssd:VirtualSystemType></System>`, cpus, v.memory/mib)
	put(`<Item><rasd:Caption>%d virtual cpu</rasd:Caption><rasd:Description>Number of virtual CPU</rasd:Description><rasd:InstanceId>1</rasd:InstanceId>`+
		`<rasd:ResourceType>3</rasd:ResourceType><rasd:num_of_sockets>%d</rasd:num_of_sockets><rasd:cpu_per_socket>%d</rasd:cpu_per_socket>`+
		`<rasd:threads_per_cpu>%d</rasd:threads_per_cpu><rasd:max_num_of_vcpus>16</rasd:max_num_of_vcpus><rasd:VirtualQuantity>%d</rasd:VirtualQuantity></Item>`,
		cpus, v.sockets, v.cores, v.threads, cpus)
	put(`<Item><rasd:Caption>%d MB of memory</rasd:Caption><rasd:Description>Memory Size</rasd:Description><rasd:InstanceId>2</rasd:InstanceId>`+
		`<rasd:ResourceType>4</rasd:ResourceType><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:VirtualQuantity>%d</rasd:VirtualQuantity></Item>`,
		v.memory/mib, v.memory/mib)
	for _, a := range v.attachments {
		d, _ := e.state.disks.get(a.disk)
		boot := 0
		if a.bootable {
			boot = 1
		}
		put(`<Item><rasd:Caption>%s</rasd:Caption><rasd:InstanceId>%s</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>`+
			`<rasd:HostResource>%s/%s</rasd:HostResource><rasd:Parent>%s</rasd:Parent><rasd:Template>%s</rasd:Template>`,
			d.alias, d.volume(), d.id, d.volume(), nilID, nilID)
		put(`<rasd:StorageId>%s</rasd:StorageId><rasd:StoragePoolId>%s</rasd:StoragePoolId><Type>disk</Type><Device>disk</Device>`+
			`<rasd:Address></rasd:Address><BootOrder>%d</BootOrder><IsPlugged>%t</IsPlugged><IsReadOnly>%t</IsReadOnly><Alias></Alias></Item>`,
			d.domain, e.state.center, boot, a.active, a.readOnly)
	}
	for _, n := range v.nics {
		network := ""
		if n.profile != "" {
			network = "ovirtmgmt"
		}
		put(`<Item><rasd:Caption>Ethernet adapter on %s</rasd:Caption><rasd:InstanceId>%s</rasd:InstanceId><rasd:ResourceType>10</rasd:ResourceType>`+
			`<rasd:OtherResourceType>%s</rasd:OtherResourceType><rasd:ResourceSubType>3</rasd:ResourceSubType><rasd:Connection>%s</rasd:Connection>`,
			network, n.id, network, network)
		put(`<rasd:Linked>%t</rasd:Linked><rasd:Name>%s</rasd:Name><rasd:ElementName>%s</rasd:ElementName><rasd:MACAddress>%s</rasd:MACAddress>`+
			`<rasd:speed>10000</rasd:speed><Type>interface</Type><Device>bridge</Device><rasd:Address></rasd:Address><BootOrder>0</BootOrder>`+
			`<IsPlugged>%t</IsPlugged><IsReadOnly>false</IsReadOnly><Alias></Alias></Item>`, n.linked, n.name, n.name, n.mac, n.plugged)
	}
	put(`<Item><rasd:ResourceType>0</rasd:ResourceType><rasd:InstanceId>%s</rasd:InstanceId><Type>controller</Type><Device>virtio-scsi</Device>`+
		`<rasd:Address></rasd:Address><BootOrder>0</BootOrder><IsPlugged>true</IsPlugged><IsReadOnly>false</IsReadOnly><Alias></Alias></Item></Section>`, newID())
}

// envelope is as much of an OVF as the simulator reads.
type envelope struct {
	Sections []struct {
		Disks []struct {
			FileRef   string `xml:"fileRef,attr"`
			Interface string `xml:"disk-interface,attr"`
			Boot      string `xml:"boot,attr"`
			ReadOnly  string `xml:"read-only,attr"`
		} `xml:"Disk"`
	} `xml:"Section"`
	Content struct {
		Name        string `xml:"Name"`
		Description string `xml:"Description"`
		Sections    []struct {
			ID    string `xml:"id,attr"`
			Kind  string `xml:"type,attr"`
			Items []item `xml:"Item"`
		} `xml:"Section"`
	} `xml:"Content"`
}

type item struct {
	Type     string `xml:"ResourceType"`
	Quantity int64  `xml:"VirtualQuantity"`
	Sockets  int    `xml:"num_of_sockets"`
	Cores    int    `xml:"cpu_per_socket"`
	Threads  int    `xml:"threads_per_cpu"`
	Name     string `xml:"Name"`
	MAC      string `xml:"MACAddress"`
	Network  string `xml:"Connection"`
	Linked   string `xml:"Linked"`
	Plugged  string `xml:"IsPlugged"`
}

// addVMFromOVF makes a VM of a configuration. The id inside it is used unless ids are to be made anew; floating disks
// that it names are attached, and others are left out without a word.
func (c *call) addVMFromOVF(data string) (*reply, error) {
	id, cluster := c.body.idOrName("cluster")
	if id == "" && cluster == "" { // unrecorded text
		return nil, &apiFault{status: http.StatusInternalServerError, reason: "Operation Failed", detail: "java.lang.NullPointerException"}
	}
	if !c.e.isCluster(id, cluster) {
		return nil, noEntity(id + cluster)
	}
	if c.body.id != "" {
		return nil, badRequest("Internal Engine Error")
	}
	var ovf envelope
	if err := xml.Unmarshal([]byte(data), &ovf); err != nil || ovf.Content.Name == "" && len(ovf.Content.Sections) == 0 {
		return nil, badRequest("Failed to parse the OVF of the VM: %v", err) // the real text is long and technical
	}
	anew := c.body.isTrue("initialization.regenerate_ids")
	v := c.e.newVM("", ovf.Content.Name)
	v.description = ovf.Content.Description
	for _, s := range ovf.Content.Sections {
		if strings.Contains(s.Kind, "OperatingSystemSection") && s.ID != "" && !anew {
			v.id = strings.ToLower(s.ID)
		}
		for _, it := range s.Items {
			c.e.ovfItem(v, it)
		}
	}
	c.applyVM(v, c.body)
	if err := c.canImport(v, anew); err != nil {
		return nil, err
	}
	c.e.state.vms.put(v.id, v)
	for _, s := range ovf.Sections {
		for _, x := range s.Disks {
			id, _, _ := strings.Cut(x.FileRef, "/")
			d, found := c.e.state.disks.get(id)
			if holder, _ := c.e.state.vmOf(id); !found || holder != nil || d.busy() {
				continue
			}
			a := &attachment{disk: d.id, iface: "virtio_scsi", active: true, bootable: x.Boot == "true", readOnly: x.ReadOnly == "true"}
			for api, word := range ifaceWords {
				if word == x.Interface {
					a.iface = api
				}
			}
			v.attachments = append(v.attachments, a)
		}
	}
	return created(c.addContent(c.e.showVM(v), v))
}

func (e *Engine) ovfItem(v *vm, it item) {
	switch it.Type {
	case ovfCPU:
		v.sockets, v.cores, v.threads = max(it.Sockets, 1), max(it.Cores, 1), max(it.Threads, 1)
	case ovfMemory:
		v.memory = it.Quantity * mib
	case ovfNIC:
		n := &nic{id: newID(), name: it.Name, iface: "virtio", mac: it.MAC, linked: it.Linked != "false", plugged: it.Plugged != "false"}
		if it.Network == "ovirtmgmt" {
			n.profile = profileID
		}
		if n.name == "" {
			n.name = "nic" + strconv.Itoa(len(v.nics)+1)
		}
		v.nics = append(v.nics, n)
	}
}

// canImport looks at the addresses first, as the engine does.
func (c *call) canImport(v *vm, anew bool) error {
	var bad []string
	for _, n := range v.nics {
		switch {
		case n.mac == "" || anew:
			n.mac = c.e.nextMAC()
		case c.e.macUsed(n.mac):
			bad = append(bad, n.name)
		}
	}
	if len(bad) > 0 {
		return conflict("Cannot import Virtual Machine, because that action would create duplicates in target MAC pool, which are not allowed. "+
			"Either allow duplicate MACs in MAC Pool, or allow reassignment of bad MACs during import. Problematic NICs are \t%s", strings.Join(bad, ", "))
	}
	if old, taken := c.e.state.vms.get(v.id); taken {
		return conflict("Import VM failed - VM ID already exists in the system. Please remove the VM (%s) from the system first", old.name)
	}
	if c.e.state.vmByName(v.name) != nil { // unrecorded text
		return conflict("Import VM failed - VM Name already exists in the Data Center. Please rename the VM in the system first.")
	}
	return nil
}
