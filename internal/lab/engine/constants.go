package engine

import (
	"strings"
)

// Where the API lies, and the engine's fixed identities.
const (
	apiPath   = "/ovirt-engine/api/"
	nilID     = "00000000-0000-0000-0000-000000000000"
	adminID   = "04216ace-e717-11f1-83c1-02fc00000001"
	macPoolID = "58ca604b-017d-0374-0220-00000000014e"
	quotaID   = "4fe356d2-e714-11f1-be82-02fc00000001"
	networkID = "00000000-0000-0000-0000-000000000009"
	profileID = "0000000a-000a-000a-000a-000000000398"
)

// What never changes in an entity, a path and a value a line: "~" is an empty text, "@x" an object that has only the
// id x, "&collection/x" a reference to it, "[]" after the last name a list of texts.
const (
	vmConstants = `
original_template &templates/00000000-0000-0000-0000-000000000000
template &templates/00000000-0000-0000-0000-000000000000
bios.boot_menu.enabled false
bios.type q35_ovmf
cpu.architecture x86_64
cpu.topology.cores 1
cpu.topology.sockets 1
cpu.topology.threads 1
display.allow_override false
display.copy_paste_enabled true
display.disconnect_action LOCK_SCREEN
display.disconnect_action_delay 0
display.file_transfer_enabled true
display.monitors 1
display.smartcard_enabled false
display.type vnc
display.video_type vga
io.threads 1
migration.auto_converge inherit
migration.compressed inherit
migration.encrypted inherit
migration.parallel_migrations_policy inherit
origin ovirt
os.boot.devices.device[] hd
os.type other
sso.methods.method[] @guest_agent
stateless false
type server
usb.enabled false
quota @4fe356d2-e714-11f1-be82-02fc00000001
auto_pinning_policy disabled
cpu_pinning_policy none
cpu_shares 0
delete_protected false
high_availability.enabled false
high_availability.priority 0
large_icon &icons/ebe2e1be-725f-4401-9c6a-554c8e71c61c
memory_policy.ballooning true
migration_downtime -1
multi_queues_enabled true
placement_policy.affinity migratable
small_icon &icons/7f89975e-405d-41a9-9efa-d90a579f906b
start_paused false
storage_error_resume_behaviour auto_resume
time_zone.name Etc/GMT
virtio_scsi_multi_queues_enabled false
cpu_profile &cpuprofiles/58ca604e-01a7-003f-01de-000000000250`

	diskConstants = `
content_type data
propagate_errors false
storage_type image
wipe_after_delete false`

	domainConstants = `
backup false
block_size 512
critical_space_action_blocker 5
discard_after_delete false
external_status ok
storage_format v5
supports_discard false
supports_discard_zeroes_data false
type data
warning_low_space_indicator 10
wipe_after_delete false`

	hostConstants = `
auto_numa_status enable
certificate.organization oVirt
cpu.name Intel(R) Xeon(R) simulated
cpu.speed 2400
cpu.topology.cores 4
cpu.topology.sockets 2
cpu.topology.threads 2
cpu.type Secure Intel Cascadelake Server Family
device_passthrough.enabled false
external_status ok
kdump_status disabled
ksm.enabled false
max_scheduling_memory 65527611392
memory 67108864000
numa_supported false
os.type RHEL
port 54321
protocol stomp
type rhel
update_available false`

	clusterConstants = `
ballooning_enabled true
bios_type q35_ovmf
cpu.architecture x86_64
cpu.type Secure Intel Cascadelake Server Family
error_handling.on_error migrate
fips_mode disabled
firewall_type firewalld
gluster_service false
ha_reservation false
ksm.enabled true
ksm.merge_across_nodes true
memory_policy.over_commit.percent 100
switch_type legacy
threads_as_cores false
trusted_service false
tunnel_migration false
virt_service true`
)

// fill sets the constants of a table.
func (o *object) fill(table string) *object {
	for line := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		path, text, _ := strings.Cut(line, " ")
		var value any = constant(text)
		if base, isList := strings.CutSuffix(path, "[]"); isList {
			outer, item := base[:strings.LastIndexByte(base, '.')], base[strings.LastIndexByte(base, '.')+1:]
			o.set(outer, newObject("").set("", &list{item: item, items: []any{value}}))
			continue
		}
		o.set(path, value)
	}
	return o
}

func constant(text string) any {
	switch {
	case text == "~":
		return ""
	case strings.HasPrefix(text, "@"):
		return &object{id: text[1:]}
	case strings.HasPrefix(text, "&"):
		collection, id, _ := strings.Cut(text[1:], "/")
		return ref(collection, id)
	}
	return text
}
