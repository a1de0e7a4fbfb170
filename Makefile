# The two commands of the README are `make demo` and `make test`.

export GOEXPERIMENT := runtimesecret
export GOFLAGS      := -tags=grpcnotrace -buildvcs=false

# Asked for once: the programs run together only if they are of one version.
ifndef VERSION
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
endif
LDFLAGS := -s -w -X github.com/opaquevault/ov/pkg/version.version=$(VERSION)
PREFIX  ?= /usr/local
TOOLS   := $(CURDIR)/bin/tools
# Each line of this file is one thing that this machine could not run, and why.
export NOT_RUN := $(CURDIR)/bin/not-run

# Pinned. Each is built from source into bin/tools, with its version in the
# name, so that a new pin is a new build.
GOLANGCI_LINT := $(TOOLS)/golangci-lint-v2.15.0
GOVULNCHECK   := $(TOOLS)/govulncheck-v1.8.0
PROTOC_GEN    := $(TOOLS)/protoc-gen-go-v1.36.12
PROTOC_GRPC   := $(TOOLS)/protoc-gen-go-grpc-v1.6.2
PROTOC_CONNECT := $(TOOLS)/protoc-gen-connect-go-v1.21.1

PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
# What needs more than `go test` has a target of its own.
SPECIAL   := /test/(systemd|memory|faults|mcp|teams)(/|$$)

# What takes minutes with the race detector has it for what is concurrent alone.
SLOW      := /pkg/(detect/engine|store/remote)$$

# gotest is `go test` that also writes each skipped test, and why, to NOT_RUN.
gotest = go run ./test/setup/gotest

# The programs besides ov. `ov mcp serve` becomes ov-mcp, `ov scan` ov-scan.
OTHERS := ov-agent ov-mcp ov-scan ov-server

.PHONY: all
all: build

# compile builds the programs for GOOS and GOARCH into the folder $1. ov starts
# at an entry point of its own on Linux: see pkg/launch/entry_linux_amd64.s.
compile = entry=; if [ "$$(go env GOOS)" = linux ]; then entry='-E ov_entry'; fi; \
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS) $$entry" -o $(1) ./cmd/ov && \
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(1) $(addprefix ./cmd/,$(OTHERS))

.PHONY: build
build: ## ov and its further programs into bin/
	@echo "build bin/ov*"; $(call compile,bin/)

.PHONY: cross
cross: ## the same for every platform, into bin/OS-ARCH/
	@set -e; for p in $(PLATFORMS); do \
		echo "build $$p"; export GOOS=$${p%/*} GOARCH=$${p#*/}; \
		$(call compile,bin/$${p%/*}-$${p#*/}/) || exit 1; \
	done
	@echo "vet darwin, and linux without runtime/secret"
	@CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go vet ./...
	@CGO_ENABLED=0 GOEXPERIMENT= go vet ./...

# Cheap and quick to fail first. Every step ends the run when it fails, and the
# last lines say what this machine could not run.
TEST_STEPS := tidy vet test-rules setup build lint generate-check test-unit cross \
	test-detection test-memory test-mcp test-faults test-teams test-systemd demo fuzz-short vuln

.PHONY: test
test: ## everything: sets up what it needs and runs it
	@mkdir -p bin; rm -f $(NOT_RUN); \
	report() { \
		if [ -s $(NOT_RUN) ]; then sort -u $(NOT_RUN) | sed 's/^/not run here: /'; fi; \
		if [ $$1 = 0 ]; then echo "make test: all passed"; else echo "make test: failed in step $$step"; fi; \
		exit $$1; \
	}; \
	for step in $(TEST_STEPS); do \
		echo "=== $$step"; start=$$(date +%s); \
		$(MAKE) --no-print-directory $$step || report 1; \
		echo "=== $$step: $$(($$(date +%s) - start)) s"; \
	done; report 0

.PHONY: setup
setup: ## apt and npm packages that the tests use
	test/setup/packages

.PHONY: tidy
tidy: ## go.mod and go.sum are what the code asks for
	go mod tidy -diff
	go mod verify

.PHONY: vet
vet:
	@unformatted=$$(git ls-files -z '*.go' | xargs -0 gofmt -l); \
		[ -z "$$unformatted" ] || { echo "gofmt these files: $$unformatted"; exit 1; }
	go vet ./...

.PHONY: test-rules
test-rules: ## rules about the tree that are tests
	$(gotest) ./test/rules/...

.PHONY: test-unit
test-unit: ## all that plain `go test` can run, with the race detector
	CGO_ENABLED=1 $(gotest) -race -timeout 15m $$(go list ./... | grep -vE '$(SPECIAL)|$(SLOW)')
	CGO_ENABLED=1 $(gotest) -race -short -run 'TestStore$$|TestNobodyStarves|TestCommitsOnceEach|TestMark' ./pkg/store/remote
	$(gotest) -timeout 15m $$(go list ./... | grep -E '$(SLOW)')
	$(gotest) -show -count=1 -run IdleConnections ./pkg/server # 10,000, with the race detector fewer

.PHONY: test-detection
test-detection: ## precision and recall on the whole corpus: docs/DETECTION.md
	$(gotest) -count=1 -timeout 20m ./test/detection/...

.PHONY: test-memory
test-memory: build ## scans the memory of a real agent for keys and values (root, Linux)
	$(gotest) -show -count=1 -timeout 10m ./test/memory/...

.PHONY: test-mcp leaks hunt
test-mcp: build ## real MCP clients, and programs that show their secrets, under ov mcp serve
	$(gotest) -show -count=1 -timeout 20m ./test/mcp/...
leaks: build ## every such program with every kind of secret
	OV_LEAK=100 $(gotest) -show -count=1 -timeout 60m -run NoValueReachesTheClient ./test/mcp/...
hunt: build ## the tests that live by chance, each time with another, until one fails
	while OV_SEED=random $(gotest) -count=1 -timeout 60m ./pkg/mask ./test/mcp/...; do :; done

.PHONY: test-faults faults
test-faults: build ## kill -9 at random points, many processes at once
	OV_FAULTS=$${OV_FAULTS:-20} $(gotest) -show -count=1 -timeout 60m ./test/faults/...
faults: ## the same with 500 kills of each operation
	OV_FAULTS=500 $(MAKE) test-faults

.PHONY: test-teams teams
test-teams: ## kill -9 of PostgreSQL and ov-server under a team's load (root, Debian)
	$(gotest) -show -count=1 -timeout 60m ./test/teams/...
teams: ## the same with 50 rounds of kills
	OV_TEAMS=50 $(MAKE) test-teams

.PHONY: test-systemd
test-systemd: build ## the migration guide in a real systemd (root, Debian)
	$(gotest) -show -tags=systemd,grpcnotrace -count=1 -timeout 20m ./test/systemd/...

FUZZTIME ?= 10m
.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	test/setup/fuzz $(FUZZTIME)

.PHONY: fuzz-short
fuzz-short:
	test/setup/fuzz 2s

.PHONY: bench
bench: build ## the table of docs/PERFORMANCE.md
	go run ./bench

.PHONY: demo
demo: build ## a throwaway vault, an agent and a child with its secrets
	test/demo/demo.sh

.PHONY: lint
lint: $(GOLANGCI_LINT)
	$(GOLANGCI_LINT) run ./...
	GOOS=darwin $(GOLANGCI_LINT) run ./...
	@if command -v shellcheck >/dev/null; then \
		git grep -lIE '^#!/bin/(ba)?sh' | xargs shellcheck; \
	else echo "lint: shellcheck is not installed" | tee -a $(NOT_RUN); fi

.PHONY: vuln
vuln: $(GOVULNCHECK)
	test/setup/vuln $(GOVULNCHECK)

.PHONY: man
man: ## man pages and completions from the commands themselves
	go generate ./docs/...

PROTOS = $(shell find proto -name '*.proto')
PROTOC = protoc --proto_path=proto --plugin=protoc-gen-go=$(PROTOC_GEN) \
	--plugin=protoc-gen-go-grpc=$(PROTOC_GRPC) --plugin=protoc-gen-connect-go=$(PROTOC_CONNECT) \
	--go_opt=paths=source_relative --go-grpc_opt=paths=source_relative --connect-go_opt=paths=source_relative
# The agent is spoken to with gRPC alone, the server with gRPC and plain HTTP.
protoc = $(PROTOC) --go_out=$(1) --go-grpc_out=$(1) $(PROTOS) && \
	$(PROTOC) --connect-go_out=$(1) ov/vault/v1/vault.proto

.PHONY: generate
generate: $(PROTOC_GEN) $(PROTOC_GRPC) $(PROTOC_CONNECT) ## Go code from proto/
	$(call protoc,proto)

# protoc writes its own version into the comment at the top of a file: nothing
# else may differ.
.PHONY: generate-check
generate-check: $(PROTOC_GEN) $(PROTOC_GRPC) $(PROTOC_CONNECT)
	@if ! command -v protoc >/dev/null; then \
		echo "generate-check: protoc is not installed" | tee -a $(NOT_RUN); exit 0; fi; \
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(call protoc,"$$out") && cd "$$out" && \
	for f in $$(find . -name '*.go'); do \
		diff -u -I '^// .*protoc  *v' "$(CURDIR)/proto/$$f" "$$f" || { echo "run: make generate"; exit 1; }; \
	done; echo "the generated code is current"

.PHONY: install
install: build ## into PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(addprefix bin/,ov $(OTHERS)) $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 0644 docs/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 0644 docs/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8/
ifeq ($(shell uname),Linux)
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d
	sed 's|/usr/local/|$(PREFIX)/|' deploy/systemd/ov-server.service | \
		install -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/ov-server.service
	install -m 0644 deploy/systemd/ov-server.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/ov-server.conf
endif

.PHONY: clean
clean: ## all but the tools, which take minutes to build
	rm -rf bin/ov* bin/*-* bin/not-run

.PHONY: help
help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

# tool installs module path $1 at the version that ends the target's name.
tool = @mkdir -p $(TOOLS) && tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	echo "build $(notdir $@)" && \
	GOEXPERIMENT= GOFLAGS= CGO_ENABLED=0 GOBIN="$$tmp" go install $(1) && mv "$$tmp"/* $@

$(GOLANGCI_LINT):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0)
$(GOVULNCHECK):
	$(call tool,golang.org/x/vuln/cmd/govulncheck@v1.8.0)
$(PROTOC_GEN):
	$(call tool,google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12)
$(PROTOC_GRPC):
	$(call tool,google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2)
$(PROTOC_CONNECT):
	$(call tool,connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1)
