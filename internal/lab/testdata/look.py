# Logs in to the lab's engine with oVirt's own SDK, from outside the lab, and prints what is there, a line for each VM.
# Usage: look.py URL USER PASSWORD_FILE CA_FILE
import sys

import ovirtsdk4 as sdk

url, user, password_file, ca_file = sys.argv[1:]
with open(password_file) as f:
    password = f.readline().rstrip("\n")
connection = sdk.Connection(url=url, username=user, password=password, ca_file=ca_file)
if not connection.test(raise_exception=True):
    sys.exit("the engine does not answer")
system = connection.system_service()
for vm in system.vms_service().list():
    disks = system.vms_service().vm_service(vm.id).disk_attachments_service().list()
    print(vm.name, vm.status, len(disks))
connection.close()
