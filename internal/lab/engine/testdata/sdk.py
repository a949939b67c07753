"""Drives the simulator with oVirt's own SDK: argv is URL, CA file, user, password. Prints one line for each step."""
import sys
import time

import ovirtsdk4 as sdk
import ovirtsdk4.types as types

url, ca_file, user, password = sys.argv[1:]


def wait(what, get, want, unwanted=()):
    for _ in range(600):
        value = get()
        if value == want:
            print(what, value)
            return
        if value in unwanted:
            break
        time.sleep(0.02)
    raise SystemExit("%s: %s instead of %s" % (what, value, want))


connection = sdk.Connection(url=url, username=user, password=password, ca_file=ca_file)
system = connection.system_service()
print("product", system.get().product_info.version.major)

vms_service = system.vms_service()
vms = vms_service.list(search="name=bk1", follow="disk_attachments.disk,nics,tags", all_content=True)
vm = vms[0]
assert len(vms) == 1 and vm.status == types.VmStatus.DOWN and vm.memory == 1 << 30
assert [t.name for t in vm.tags] == ["gold"]
assert vm.initialization.configuration.type == types.ConfigurationType.OVF
assert vm.nics[0].mac.address.startswith("56:6f:")
disks = [a.disk for a in vm.disk_attachments]
assert disks[0].format == types.DiskFormat.COW and disks[0].backup == types.DiskBackup.INCREMENTAL
print("vm", vm.name, len(disks))
assert vms_service.list(search="nosuchfield=1") == []
try:
    vms_service.vm_service("00000000-0000-0000-0000-0000000000aa").get()
    raise SystemExit("a VM that does not exist")
except sdk.NotFoundError:
    print("fault 404")

vm_service = vms_service.vm_service(vm.id)
backups = vm_service.backups_service()
from_checkpoint = None
for mode in (types.DiskBackupMode.FULL, types.DiskBackupMode.INCREMENTAL):
    backup = backups.add(types.Backup(disks=[types.Disk(id=d.id) for d in disks], from_checkpoint_id=from_checkpoint))
    backup_service = backups.backup_service(backup.id)
    wait("backup", lambda: backup_service.get().phase, types.BackupPhase.READY, (types.BackupPhase.FAILED,))
    from_checkpoint = backup_service.get().to_checkpoint_id
    assert backup_service.disks_service().list()[0].backup_mode == mode
    transfers = system.image_transfers_service()
    transfer = transfers.add(types.ImageTransfer(
        disk=types.Disk(id=disks[0].id), backup=types.Backup(id=backup.id), direction=types.ImageTransferDirection.DOWNLOAD,
        format=types.DiskFormat.RAW, inactivity_timeout=60, timeout_policy=types.ImageTransferTimeoutPolicy.CANCEL))
    transfer_service = transfers.image_transfer_service(transfer.id)
    wait("transfer", lambda: transfer_service.get().phase, types.ImageTransferPhase.TRANSFERRING)
    assert "/images/" in transfer_service.get().transfer_url
    try:
        backup_service.finalize()
        raise SystemExit("a backup ended under a transfer")
    except sdk.Error as e:
        print("fault", e.code)
    transfer_service.finalize()
    wait("transfer", lambda: transfer_service.get().phase, types.ImageTransferPhase.FINISHED_SUCCESS)
    backup_service.finalize()
    wait("backup", lambda: backup_service.get().phase, types.BackupPhase.SUCCEEDED, (types.BackupPhase.FAILED,))
    time.sleep(0.2)  # the engine's locks outlive the phase
checkpoints = vm_service.checkpoints_service().list()
assert [c.state for c in checkpoints] == [types.CheckpointState.CREATED] * 2 and checkpoints[1].parent_id == checkpoints[0].id
for c in checkpoints:
    vm_service.checkpoints_service().checkpoint_service(c.id).remove()
print("checkpoints", len(checkpoints))

host = system.hosts_service().list(search="status=up")[0]
center = system.data_centers_service().list()[0]
domains = system.storage_domains_service()
domain = domains.add(types.StorageDomain(
    name="ir", type=types.StorageDomainType.DATA, host=types.Host(id=host.id),
    storage=types.HostStorage(type=types.StorageType.NFS, address="10.0.0.5", path="/ir/1", nfs_version=types.NfsVersion.V3)))
attached = system.data_centers_service().data_center_service(center.id).storage_domains_service()
attached.add(types.StorageDomain(id=domain.id))
one = attached.storage_domain_service(domain.id)
wait("domain", lambda: one.get().status, types.StorageDomainStatus.ACTIVE)
found = domains.storage_domain_service(domain.id).disks_service().list(unregistered=True)
domains.storage_domain_service(domain.id).disks_service().add(types.Disk(id=found[0].id), unregistered=True)
new = vms_service.add(types.Vm(name="again", cluster=types.Cluster(name="Default"), template=types.Template(name="Blank"), initialization=types.Initialization(
    regenerate_ids=True, configuration=types.Configuration(type=types.ConfigurationType.OVF, data=vm.initialization.configuration.data))))
new_service = vms_service.vm_service(new.id)
new_service.disk_attachments_service().add(types.DiskAttachment(
    disk=types.Disk(id=found[0].id), bootable=True, active=True, interface=types.DiskInterface.VIRTIO_SCSI))
new_service.start()
wait("vm", lambda: new_service.get().status, types.VmStatus.UP)
local = domains.list(search="name=local")[0]
disk_service = system.disks_service().disk_service(found[0].id)
disk_service.move(storage_domain=types.StorageDomain(id=local.id))
wait("disk", lambda: (disk_service.get().status, disk_service.get().storage_domains[0].id), (types.DiskStatus.OK, local.id))
one.deactivate()
wait("domain", lambda: one.get().status, types.StorageDomainStatus.MAINTENANCE)
one.remove()
domains.storage_domain_service(domain.id).remove(host=host.name, format=False)
new_service.stop()
wait("vm", lambda: new_service.get().status, types.VmStatus.DOWN)
new_service.remove()
system.events_service().add(types.Event(
    vm=types.Vm(id=vm.id), origin="Holdfast", severity=types.LogSeverity.NORMAL, custom_id=1, description="done <&>"))
assert system.events_service().list(search="origin=Holdfast")[0].description == "done <&>"
connection.close()
print("closed")
