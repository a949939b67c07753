# Targets for people and for CI. Everything that needs a terminal stays out of here.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The Debian packages that the demo and the tests need. internal/lab/parts knows what of them is needed for what, and a
# test there compares the lists. gcc and libc6-dev are for the race detector, and for a part of ovirt-imageio that is C:
# our programs are built without.
PACKAGES := qemu-system-x86 qemu-utils qemu-block-extra mmdebstrap grub-pc-bin grub-common e2fsprogs fuse3 \
	libnfs-utils sanlock util-linux ca-certificates python3 python3-venv python3-dev libxml2-dev gcc libc6-dev
CHECK_PACKAGES := gcc libc6-dev
BENCH_PACKAGES := restic nfs-ganesha nfs-ganesha-vfs rpcbind
STORE_BENCH_PACKAGES := restic borgbackup casync

# What needs root runs with sudo when we are not root: a network namespace, FUSE, installing Debian into a folder.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=HOLDFAST_LAB_CACHE,HOLDFAST_REAL_PARTS,HOLDFAST_BIN,HOLDFAST_SOAK,TMPDIR)

export CGO_ENABLED := 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BUILD := go build -trimpath -ldflags '-X main.version=$(VERSION)'
FUZZTIME ?= 60s

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: go-is-new-enough ## build bin/holdfast, bin/holdfastd and bin/holdfast-lab, static
	@mkdir -p bin
	@for program in cmd/*/; do $(BUILD) -o "bin/$$(basename "$$program")" "./$$program"; done

.PHONY: demo
demo: deps build ## watch the main job with oVirt on real parts (about four minutes; the first time longer)
	@$(SUDO) bin/holdfast-lab run --bin bin

.PHONY: check
check: go-is-new-enough ## what every commit must pass: format, vet, tidy, import rules, fast tests with the race detector
	@internal/lab/deps.sh $(CHECK_PACKAGES)
	@unformatted=$$(git ls-files '*.go' | xargs -r gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "Not formatted (run gofmt -w):" $$unformatted >&2; exit 1; fi
	go vet ./...
	go mod tidy -diff
	@if command -v shellcheck >/dev/null; then git ls-files '*.sh' .ci/run | xargs -r shellcheck; fi
	CGO_ENABLED=1 go test -race -short -timeout 5m ./...

.PHONY: test
test: deps build ## run every test, on real parts too (installs what is missing; under 25 minutes)
	@$(SUDO) bin/holdfast-lab fetch
	HOLDFAST_REAL_PARTS=1 HOLDFAST_BIN='$(CURDIR)/bin' go test -count=1 -timeout 20m \
		$(if $(SUDO),-exec '$(SUDO) env "PATH=$(PATH)"') ./...

.PHONY: soak
soak: deps build ## have Linux's NFS client work on what we serve, ten times as long as make test does (half an hour)
	@$(SUDO) bin/holdfast-lab fetch
	HOLDFAST_REAL_PARTS=1 HOLDFAST_SOAK=1 HOLDFAST_BIN='$(CURDIR)/bin' go test -count=1 -timeout 3h -v -run '^TestKernelClient$$' \
		$(if $(SUDO),-exec '$(SUDO) env "PATH=$(PATH)"') ./internal/lab/linux

.PHONY: bench
bench: deps build ## measure, with restic and nfs-ganesha beside us in the same run (about ten minutes)
	@internal/lab/deps.sh $(BENCH_PACKAGES)
	@$(SUDO) bin/holdfast-lab bench --bin bin $(BENCHFLAGS)

# The store's benchmarks from inside are Go's, built into a program: each runs as a process of its own.
.PHONY: bench-store
bench-store: deps build ## measure the chunk store beside restic, borg and casync (half an hour or more; BENCHFLAGS=--quick: five minutes)
	@internal/lab/deps.sh $(STORE_BENCH_PACKAGES)
	@go test -c -o bin/chunkstore.test ./chunkstore
	@$(SUDO) bin/holdfast-lab bench store --bin bin $(BENCHFLAGS)

.PHONY: fuzz
fuzz: go-is-new-enough ## run each fuzz target for FUZZTIME (60s)
	@git grep -hoE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' >/dev/null || { echo "There are no fuzz targets."; exit 0; }; \
	git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | while IFS=: read -r file func; do \
		echo "$$(dirname "$$file") $${func#func }"; \
		go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 2s "./$$(dirname "$$file")"; \
	done

.PHONY: deps
deps: go-is-new-enough ## install the Debian packages that demo and test need
	@internal/lab/deps.sh $(PACKAGES)

.PHONY: clean
clean: ## remove what was built and the cached disks
	rm -rf bin
	@if [ -e .cache ]; then $(SUDO) rm -rf .cache; fi

# Go 1.21 and newer fetch the toolchain that go.mod asks for by themselves; older ones cannot.
.PHONY: go-is-new-enough
go-is-new-enough:
	@found=$$(go env GOVERSION 2>&1) || true; wanted=$$(awk '$$1 == "go" {print "go" $$2}' go.mod); \
	if [[ $$found != go[0-9]* || $$(printf '%s\n' "$$wanted" "$$found" | sort -V | head -n 1) != "$$wanted" ]]; then \
		echo "Go 1.26 is needed, or any from 1.21 on that may fetch it (GOTOOLCHAIN=auto); found: $$found" >&2; \
		echo "See https://go.dev/dl. With sudo, Go must be in root's PATH too." >&2; exit 1; \
	fi
