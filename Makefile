# qmigrate: `make` lists the targets.

GO      ?= go
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo devel)
AGENT   := guest/agentbin/agent
HELPER  := hostnet/helperbin/helper
SOURCES := $(shell find . -name '*.go' -not -path './.git/*') $(wildcard engine/report/assets/* testdata/experiments/*) go.mod go.sum
RACE     := ./qmp/... ./engine ./engine/record/... ./guest/wire/...
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
DEPGUARD    := github.com/OpenPeeDeeP/depguard/v2/cmd/depguard@v2.3.0
FUZZTIME ?= 20s

export CGO_ENABLED ?= 0

# Where less than 1 GiB is left in /tmp, the compiler and the tests work in /var/tmp.
ifndef TMPDIR
TMPDIR := $(shell df -Pk /tmp | awk 'NR == 2 { print $$4 < 1048576 ? "/var/tmp" : "/tmp" }')
export TMPDIR
endif

.PHONY: help deps build demo needs modules install check test raced small lab beside lint bench conformance chaos model fuzz clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: bin/qmigrate ## build bin/qmigrate, the guest's agent and the hosts' helper inside

bin/qmigrate: $(AGENT) $(HELPER) $(SOURCES)
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/qmigrate

$(AGENT): $(wildcard guest/agent/*.go guest/wire/*.go internal/atomicfile/*.go internal/near/*.go) go.mod
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./guest/agent

$(HELPER): $(filter-out ./cmd/qmigrate/%,$(SOURCES))
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./cmd/helper

deps: build ## get QEMU 7.2, 10.0 and 11.1, the guest's kernel, an iSCSI target, an NFS server and the Debian guest into the cache folder; nothing of the system changes
	bin/qmigrate doctor --mend

demo: ## one live migration between two hosts: make demo ARGS='--mode stop-and-copy'
	@$(MAKE) --no-print-directory -j3 build needs modules
	bin/qmigrate demo $(ARGS)

# What the demo needs comes while the compiler works on qmigrate. With ARGS the demo may need other things, and says so itself.
needs: $(AGENT)
	$(GO) run -trimpath -ldflags '-s -w' ./guest/debian/get $(if $(ARGS),|| true)

# The modules of others come while the compiler works on the agent.
modules:
	@$(GO) list -deps ./cmd/qmigrate >/dev/null

# Two at a time, because most tests wait more than they compute: the engine beside the small ones, then the lab. In each
# the packages run one after the other, so that two that need the processor seldom meet.
test: deps ## every test that this machine can run; QMIGRATE_REQUIRE_QEMU=1 makes a missing QEMU a failure
	@$(MAKE) --no-print-directory -k -j2 raced small lab

LAB   := ./engine/lab
RACED = $(if $(shell command -v $${CC:-gcc}),$(shell $(GO) list $(RACE)))

raced:
	@if [ -n "$(RACED)" ]; then echo "with the race detector: $(RACED)"; CGO_ENABLED=1 $(GO) test -race -p 1 -timeout 40m $(RACED); \
	else echo "no C compiler: nothing is tested with the race detector"; fi

small:
	@$(GO) test -p 1 -timeout 50m $(filter-out $(RACED) $(shell $(GO) list $(LAB)),$(shell $(GO) list ./...))

lab:
	@$(GO) test -timeout 50m $(LAB)

PREFIX ?= /usr/local
install: build ## the program, its manual page and completions of bash, zsh and fish into PREFIX (/usr/local), below DESTDIR
	install -d $(addprefix "$(DESTDIR)$(PREFIX)"/,bin share/man/man1 share/bash-completion/completions \
		share/zsh/site-functions share/fish/vendor_completions.d)
	install -m 755 bin/qmigrate "$(DESTDIR)$(PREFIX)/bin/"
	@set -e; put() { bin/qmigrate $$1 > bin/page; install -m 644 bin/page "$(DESTDIR)$(PREFIX)/share/$$2"; rm bin/page; }; \
	put man man/man1/qmigrate.1; \
	put "completion bash" bash-completion/completions/qmigrate; \
	put "completion zsh" zsh/site-functions/_qmigrate; \
	put "completion fish" fish/vendor_completions.d/qmigrate.fish

check: build lint ## build, lint, and the tests that start no QEMU
	$(GO) test -short ./...

beside: $(AGENT) $(HELPER) ## as root: the tests that find QEMU once more where 7.2 is installed; nothing of the system changes
	@qemu="$${QMIGRATE_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/qmigrate}/qemu-7.2"; \
	beside() { testdata/beside-qemu "$$qemu" $(GO) test -count=1 "$$@"; }; \
	if [ -d "$$qemu" ]; then beside -skip '^TestProbeHangs$$' ./guest ./guest/debian && \
		beside -run '^(TestGuestLife|TestStorage)$$/^(qemu-7.2|nfs)$$/^(lives|pre-copy)$$/^11.1-7.2$$' ./engine ./engine/lab && \
		beside -run '^(TestLaunchSSH|TestNoHelper)$$' ./cmd/qmigrate; \
	else echo "no unpacked QEMU 7.2: make deps gets it, unless it is installed here: then make test is beside it"; fi

lint: $(AGENT) $(HELPER) ## formatting, 120 columns, vet, staticcheck, and the direction of the imports
	@test -z "$$(gofmt -l .)" || { echo "not gofmt'ed:"; gofmt -l .; exit 1; }
	@find . -name '*.go' ! -name '*_test.go' | xargs awk '{ l = $$0; gsub(/"([^"\\]|\\.)*"/, "\"\"", l); gsub(/`[^`]*`/, "``", l) } \
		length(l) > 120 && !/^\t*\/\/\t/ { print FILENAME ":" FNR ": more than 120 columns, its texts left out"; bad = 1 } END { exit bad }'
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(DEPGUARD) ./...

bench: deps ## the figures, as ratios side by side in one run: printed, and written to bench/*.json
	$(GO) run ./bench

conformance: deps ## every way by every pair of QEMUs, into docs/conformance.md; goes on where it was, unless FRESH=1; FOR=20m stops there
	@if [ -n "$(FRESH)" ]; then rm -f bench/conformance.jsonl; fi
	QMIGRATE_CONFORMANCE="$(CURDIR)/bench/conformance.jsonl" QMIGRATE_CONFORMANCE_DOC="$(CURDIR)/docs/conformance.md" QMIGRATE_CONFORMANCE_FOR="$(FOR)" \
		$(GO) test -count=1 -v -run '^TestConformance$$' -timeout 90m ./engine/lab

CHAOS ?= 30
chaos: deps ## CHAOS=30 kills and as many links dropped without notice on each QEMU, and as many faults of channels, at random moments; QMIGRATE_SEED=N repeats one
	QMIGRATE_REQUIRE_QEMU=1 QMIGRATE_CHAOS=$(CHAOS) $(GO) test -count=1 -v -timeout 3h -run '^(TestKillAtRandom|TestDropAtRandom|TestChannelFaults)$$' ./engine

model: $(AGENT) ## the model of the hand-over with larger budgets than in the tests: minutes, and some GiB of memory
	QMIGRATE_MODEL=deep $(GO) test -count=1 -v -timeout 3h ./engine/internal/handover

fuzz: $(AGENT) $(HELPER) ## each fuzz target for FUZZTIME
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

clean: ## remove what build made; the cache folder stays
	rm -rf bin $(AGENT) $(HELPER)
