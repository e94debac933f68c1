# Every step a person or CI takes. A fresh Debian 12 with rustup and git needs nothing else: the targets install
# what is missing and say so first.
CARGO ?= cargo
# What the tests, the lab and the benchmarks run beside ours; package names are Debian's.
PACKAGES := nftables iproute2 iputils-ping conntrack procps libnftnl-dev libmnl-dev pkg-config clang libclang-dev
# A Prometheus to scrape the lab, and promtool, which knows how metrics, alerts and their tests must look.
PACKAGES += prometheus
# The name servers of the tests: real ones to ask, to compare with and to measure beside.
PACKAGES += unbound knot bind9 dnsmasq dnsperf knot-dnsutils
# The intrusion detection whose figures and alerts are shown; the release has none.
PACKAGES += suricata/backports
# A rustc that compiles core for eBPF, and the LLVM that bpf-linker needs.
PACKAGES += rustc-web cargo-web rust-web-src llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev
# A C compiler for the static droptailer of the image: ring has some C in it.
PACKAGES += musl-tools
MUSL := $(shell uname -m)-unknown-linux-musl
# `release` for an image.
PROFILE := dev
# The eBPF programs are no member of the workspace and are looked at as if they were for this machine.
LINT_EBPF := RUSTC_BOOTSTRAP=1 RUSTFLAGS='--cfg bpf_target_arch="x86_64"' $(CARGO) clippy --quiet --release --locked
# One build for all of them: rules and connections, packets in the programs, the DNS proxy, names as a whole, a cluster,
# scrapes, the drop log.
BENCHES := -p fw-controller -p fw-bpf -p fw-dns -p fw-exporter
BENCHES += --bench firewall --bench packets --bench proxy --bench names --bench cluster --bench scrape --bench droplog
# The tests with a long form. What each of them prints is shown at the end, one test after the other.
SOAKS := soak kills edits droplog droptailer:: names:: kube::outage kube::credentials

# What the tests that need a cluster run against; built once, outside of the checkout.
APISERVER := deploy/scripts/cluster.sh
# The same as two programs, as KUBEBUILDER_ASSETS has them.
PROGRAMS := deploy/scripts/programs.sh
# What people see the drop log with, and so does one test; built as the API server is. Without it that test fails.
STERN := deploy/scripts/stern.sh

.PHONY: help build demo cluster apiserver stern test today lint bench soak fuzz bless static tools clean

help:            ## print this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

build: tools     ## build the programs
	$(CARGO) build --workspace

demo: tools      ## the lab: real traffic through the real firewall, in network namespaces of its own
	$(CARGO) build -q -p fw-controller --bin firewall-controller
	$(CARGO) run -q -p fw-testkit --bin lab

cluster: tools   ## a Kubernetes API server to play with, our CRDs in it, until Ctrl-C
	@$(APISERVER) start

apiserver: tools ## build the API server that the tests run against
	@$(APISERVER) build

stern: tools     ## build stern, which one test reads the drop log with
	@$(STERN) build

test: tools apiserver ## every test; needs root (network namespaces, nftables)
	-@$(STERN) build
	$(CARGO) build --workspace --features fw-controller/fault-injection
	$(MAKE) static
	$(CARGO) test --workspace --features fw-controller/fault-injection
	$(MAKE) demo
	$(MAKE) fuzz

today: tools     ## the tests beside today's droptailer, which is in a directory: make today FW_TODAY=DIRECTORY
	$(if $(FW_TODAY),FW_TODAY=$(abspath $(FW_TODAY))) $(CARGO) test -p fw-droptailer --test today

# `--all-targets` leaves out what `cargo test` does not run.
lint: tools      ## formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy --workspace --test today --all-features -- -D warnings
	$(CARGO) fmt --manifest-path bpf/xdp/Cargo.toml --check
	cd bpf/xdp && $(LINT_EBPF) --target-dir $(CURDIR)/target/bpf-lint -- -D warnings

bench: tools apiserver ## ours beside a reference in one run; exits 1 when a ratio misses its goal
	$(CARGO) build --release -p fw-droptailer --bin droptailer
	$(CARGO) bench --no-fail-fast $(BENCHES)

soak: tools apiserver ## the long forms of the tests
	FW_SOAK=1 $(CARGO) test -p fw-controller --features fault-injection --test it -- --show-output $(SOAKS)
	FW_KUBERNETES=newest $(CARGO) test -p fw-testkit -p fw-controller --features fw-controller/fault-injection --test it -- \
		cluster faults
	assets=$$($(PROGRAMS)) && KUBEBUILDER_ASSETS=$$assets \
		$(CARGO) test -p fw-controller --features fault-injection --test it -- kube::users kube::pair

fuzz: tools      ## build the fuzz targets and run each for some seconds
	deploy/scripts/fuzz.sh

static:          ## build droptailer as its image has it: one static program
	rustup target add $(MUSL)
	$(CARGO) build --locked --target $(MUSL) --target-dir target/static --profile $(PROFILE) -p fw-droptailer --bin droptailer

bless:           ## rewrite goldens and generated files from what the code says now
	BLESS=1 $(CARGO) test --workspace --features fw-controller/fault-injection golden

tools:
	@deploy/scripts/tools.sh $(PACKAGES)

clean:           ## remove what was built
	$(CARGO) clean
