#!/usr/bin/env bash
# Installs the Debian packages that the targets of the Makefile need and that are missing, and says which.
# Usage: deps.sh PACKAGE...
set -euo pipefail

missing=()
for package in "$@"; do
	# "ii" is "installed, and wanted"; a removed package that left its configuration behind is listed too, as "rc".
	state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
	[[ $state == ii* ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
	exit 0
fi

as_root=()
if ((EUID != 0)); then
	if ! command -v sudo >/dev/null; then
		echo "Missing Debian packages: ${missing[*]}" >&2
		echo "Run this as root, or install sudo, or have somebody run: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	as_root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
	echo "Missing: ${missing[*]}. This machine has no apt-get: the lab is made for Debian 12." >&2
	exit 1
fi
echo "Installing Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
