package engine

import "strings"

// model is what the API's model lets an element contain, for the elements that are checked. A request with anything else
// is refused, as the engine refuses it; id, href and rel are attributes and not listed.
var model = map[string]map[string]bool{
	"action": words(
		`activate allow_partial_import async attachment authorized_key auto_pinning_policy bricks certificates ` +
			`check_connectivity clone clone_permissions cluster collapse_snapshots comment commit_on_success ` +
			`connection connectivity_timeout data_center deploy_hosted_engine description details directory ` +
			`discard_snapshots discovered_targets disk disk_profile disks exclusive fault fence_type filename filter ` +
			`fix_layout force grace_period host image image_transfer import_as_template is_attached iscsi ` +
			`iscsi_targets job lease logical_units maintenance_after_restart maintenance_enabled ` +
			`migrate_vms_in_affinity_closure modified_bonds modified_labels modified_network_attachments name ` +
			`optimize_cpu_settings option pause permission power_management proxy_ticket quota reason ` +
			`reassign_bad_macs reboot registration_configuration remote_viewer_connection_file removed_bonds ` +
			`removed_labels removed_network_attachments resolution_type restore_memory root_password seal snapshot ` +
			`source_host ssh status stop_gluster_service storage_domain storage_domains succeeded ` +
			`synchronized_network_attachments template ticket timeout undeploy_hosted_engine upgrade_action ` +
			`use_cloud_init use_ignition use_initialization use_sysprep virtual_functions_configuration vm ` +
			`vnic_profile_mappings volatile`),
	"backup": words(
		`comment creation_date description disks from_checkpoint_id host modification_date name phase snapshot ` +
			`to_checkpoint_id vm`),
	"disk": words(
		`active actual_size alias backup backup_mode bootable comment content_type description disk_profile ` +
			`disk_snapshots external_disk format image_id initial_size instance_type interface logical_name ` +
			`lun_storage name openstack_volume_type permissions propagate_errors provisioned_size qcow_version quota ` +
			`read_only sgio shareable snapshot sparse statistics status storage_domain storage_domains storage_type ` +
			`template total_size uses_scsi_reservation vm vms wipe_after_delete`),
	"disk_attachment": words(
		`active bootable comment description disk interface logical_name name pass_discard read_only template ` +
			`uses_scsi_reservation vm`),
	"event": words(
		`cluster code comment correlation_id custom_data custom_id data_center description flood_rate host index ` +
			`log_on_host name origin severity storage_domain template time user vm`),
	"image_transfer": words(
		`active backup comment description direction disk format host image inactivity_timeout name phase ` +
			`proxy_url shallow snapshot timeout_policy transfer_url transferred`),
	"nic": words(
		`boot_protocol comment description instance_type interface linked mac name network network_attachments ` +
			`network_filter_parameters network_labels on_boot plugged reported_devices statistics synced template ` +
			`virtual_function_allowed_labels virtual_function_allowed_networks vm vms vnic_profile`),
	"snapshot": words(
		`affinity_labels applications bios cdroms cluster comment console cpu cpu_profile cpu_shares ` +
			`creation_time custom_compatibility_version custom_cpu_model custom_emulated_machine custom_properties ` +
			`date delete_protected description disk_attachments disks display domain external_host_provider floppies ` +
			`fqdn graphics_consoles guest_operating_system guest_time_zone has_illegal_images high_availability host ` +
			`host_devices host_numa_nodes initialization instance_type io katello_errata large_icon lease memory ` +
			`memory_policy migration migration_downtime multi_queues_enabled name next_run_configuration_exists nics ` +
			`numa_tune_mode origin original_template os payloads permissions persist_memorystate placement_policy ` +
			`quota reported_devices rng_device run_once serial_number sessions small_icon snapshot_status ` +
			`snapshot_type snapshots soundcard_enabled sso start_paused start_time stateless statistics status ` +
			`status_detail stop_reason stop_time storage_domain storage_error_resume_behaviour tags template ` +
			`time_zone tpm_enabled tunnel_migration type usb use_latest_template_version virtio_scsi ` +
			`virtio_scsi_multi_queues_enabled vm vm_pool watchdogs`),
	"storage_connection": words(
		`address comment description gluster_volume host mount_options name nfs_retrans nfs_timeo nfs_version ` +
			`password path port portal target type username vfs_type`),
	"storage_domain": words(
		`available backup block_size comment committed critical_space_action_blocker data_center data_centers ` +
			`description discard_after_delete disk_profiles disk_snapshots disks external_status files host images ` +
			`import master name permissions status storage storage_connections storage_format supports_discard ` +
			`supports_discard_zeroes_data templates type used vms warning_low_space_indicator wipe_after_delete`),
	"tag": words(
		`comment description group host name parent template user vm`),
	"vm": words(
		`affinity_labels applications auto_pinning_policy bios cdroms cluster comment console cpu ` +
			`cpu_pinning_policy cpu_profile cpu_shares creation_time custom_compatibility_version custom_cpu_model ` +
			`custom_emulated_machine custom_properties delete_protected description disk_attachments display domain ` +
			`dynamic_cpu external_host_provider floppies fqdn graphics_consoles guest_operating_system ` +
			`guest_time_zone has_illegal_images high_availability host host_devices host_numa_nodes initialization ` +
			`instance_type io katello_errata large_icon lease mediated_devices memory memory_policy migration ` +
			`migration_downtime multi_queues_enabled name next_run_configuration_exists nics numa_tune_mode origin ` +
			`original_template os payloads permissions placement_policy quota reported_devices rng_device run_once ` +
			`serial_number sessions small_icon snapshots soundcard_enabled sso start_paused start_time stateless ` +
			`statistics status status_detail stop_reason stop_time storage_domain storage_error_resume_behaviour tags ` +
			`template time_zone tpm_enabled tunnel_migration type usb use_latest_template_version virtio_scsi ` +
			`virtio_scsi_multi_queues virtio_scsi_multi_queues_enabled vm_pool watchdogs`),
}

func words(list string) map[string]bool {
	all := map[string]bool{}
	for w := range strings.FieldsSeq(list) {
		all[w] = true
	}
	return all
}

// numbers must be whole numbers wherever they stand.
var numbers = words(`memory provisioned_size initial_size inactivity_timeout custom_id cores sockets threads guaranteed max ` +
	`warning_low_space_indicator critical_space_action_blocker nfs_timeo nfs_retrans`)

type enum struct{ kind, valid string }

// enums are the enumerated types that are checked, by element and member.
var enums = map[string]enum{
	"image_transfer.direction":      {"ImageTransferDirection", "'upload', 'download'"},
	"image_transfer.format":         {"DiskFormat", "'cow', 'raw'"},
	"image_transfer.timeout_policy": {"ImageTransferTimeoutPolicy", "'legacy', 'pause', 'cancel'"},
	"disk.format":                   {"DiskFormat", "'cow', 'raw'"},
	"disk.backup":                   {"DiskBackup", "'none', 'incremental'"},
	"disk_attachment.interface":     {"DiskInterface", "'ide', 'sata', 'spapr_vscsi', 'virtio', 'virtio_scsi'"},
	"event.severity":                {"LogSeverity", "'alert', 'error', 'normal', 'warning'"},
}
