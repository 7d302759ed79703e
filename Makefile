# `make help` lists the targets. The work is in scripts/, so that each step also runs by itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-rust corpora age model crash lint deny check-windows bench fuzz fuzz-all clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: ## Install what the demo needs and make its image (root, once; `make demo` does it too)
	@scripts/setup.sh demo
	@[ -e .demo/image.tar ] || { echo "making the demo's image from Debian packages (about a minute)"; scripts/make-image.sh .demo/image.tar; }

build: ## Build the release binary, target/release/lcow
	@scripts/setup.sh build
	@cargo build --release --locked --quiet

demo: setup build ## Run the main job on a real image: load, run in a VM, diff, commit, save
	@scripts/demo.sh

test: ## Everything that CI runs
	@scripts/test.sh

test-rust: ## The Rust tests alone
	@cargo test --workspace --locked

corpora: build ## Other projects' images, tars and disks through the program, as a table by class
	@cargo run --release --locked --quiet -p lcow-testkit --bin corpora -- target/release/lcow

age: ## Age disks for long, mounted and in utility VMs, and compare what is read with what the kernel shows (root)
	@LCOW_AGE=20 cargo test --locked -p lcow-ext4 --test reader journal:: -- --nocapture
	@LCOW_AGE=20 cargo test --locked -p lcow-uvm --test it aged:: -- --nocapture

crash: ## Millions of power cuts of a store, 1,000 of them real (root), kills at every system call, every call failing
	@LCOW_POWER_CUTS=40 cargo test --locked -p lcow-driver --test it power:: -- --nocapture
	@LCOW_FAULTS=all cargo test --locked -p lcow-driver --test it failing:: -- --nocapture
	@LCOW_SHUTDOWNS=1000 cargo test --locked -p lcow-driver --test it shutdown:: -- --nocapture
	@LCOW_KILLS=all cargo test --locked -p lcow-driver --test it kills:: -- --nocapture

model: ## A million random operations on a store beside a model of it, and 50,000 schedules of threads with handles
	@LCOW_MODEL_STEPS=1000000 cargo test --locked -p lcow-driver --test it model:: -- --nocapture
	@LCOW_SCHEDULES=50000 cargo test --locked -p lcow-driver --lib schedules:: -- --nocapture

lint: ## Format and lints
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

deny: ## Licences, sources, duplicates and (where the database can be had) advisories of dependencies
	@scripts/deny.sh

check-windows: ## Type-check blockio, ext4, disk and layer for Windows (a large download, once)
	@scripts/check-windows.sh

bench: ## Time conversion both ways beside its peers, as tables (INPUTS="minbase dev" ROUNDS=3 choose)
	@scripts/bench.sh

MINUTES ?= 10

fuzz: ## Fuzz one TARGET (docs/fuzzing.md) for MINUTES, 10 if not said; needs a nightly compiler
	@fuzz/run.sh "$(TARGET)" "$(MINUTES)"

fuzz-all: ## Fuzz all targets, one after another, for MINUTES each
	@for target in fuzz/seeds/*/; do fuzz/run.sh "$$(basename "$$target")" "$(MINUTES)" || exit; done

clean: ## Remove build output and the demo's files
	@cargo clean
	@rm -rf .demo .tools
