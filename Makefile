# Everyday commands: `make help`. Each installs what it needs and is missing (tools/setup), from a fresh clone too.

# One build serves all clones and working trees.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/alluvium-target
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help build demo test check interop crashmatrix simulation soak soakhour bigtable largetransaction manytables bench

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build: ## the alluvium binary
	@tools/setup demo
	cargo build --package alluvium
	@echo "built $(CARGO_TARGET_DIR)/debug/alluvium"

demo: ## a private PostgreSQL with a shop, streamed live (DEMO_SECONDS=30 ends it by itself)
	@tools/setup demo
	cargo build --package alluvium
	@exec "$(CARGO_TARGET_DIR)/debug/alluvium" demo

test: ## all tests, on two major versions of PostgreSQL where they can be had
	@tools/setup test
	cargo test --workspace --lib --bins --tests --no-run
	cargo test --quiet --workspace --lib --bins --tests --no-fail-fast

check: ## format, lints, tidy (cargo xtask check)
	@tools/setup check
	cargo xtask check

interop: ## the tests on every PostgreSQL from 13 to 18, and with Spark (downloads 15 MB each and 450 MB, once)
	@tools/setup interop
	tools/spark/sql --install
	cargo test --quiet --package alluvium --test main -- --ignored spark::
	for major in 13 14 15 16 17 18; do tools/postgres-binaries $$major || exit 1; done
	ALLUVIUM_TEST_PG_VERSIONS=13,14,15,16,17,18 cargo test --quiet --workspace

crashmatrix: ## a crash at every step, at every setting of cadence, memory and protocol; each compared (an hour or more; PART=2/5: a part; PART=merge.: what names it)
	@tools/setup test
	ALLUVIUM_TEST_MATRIX=$(or $(PART),all) cargo test --package alluvium --test main -- crash_matrix every_setting --nocapture

simulation: ## SEEDS=100000 random histories of a table's owner, on a disk that fails (make test runs 10 000)
	@tools/setup test
	ALLUVIUM_SEEDS=$(or $(SEEDS),100000) cargo test --package alluvium-pipeline --lib -- no_seed_breaks --nocapture

soak: ## pgbench under a pipeline that is killed 20 times; then everything is compared
	@tools/setup test
	cargo build --package alluvium
	tools/soak

soakhour: ## an hour of 5000 random updates a second into 10 million rows, beside a reader: equal and flat at the end? (20 GB of disk)
	@tools/setup test
	cargo build --release --package alluvium
	bench/soak/soak.py

bigtable: ## 5 million rows copied, 500 000 of them changed, one transaction of 5 million: compared, memory measured
	@tools/setup test
	cargo build --package alluvium
	tools/bigtable

largetransaction: ## one transaction of 10 million rows at 512 MiB, half of it rolled back: compared, memory measured
	@tools/setup test
	cargo build --package alluvium
	tools/largetransaction

manytables: ## 1000 tables, most of them idle: first copy, start, CPU at rest; compared, goals checked
	@tools/setup test
	cargo build --package alluvium
	tools/manytables

bench: ## the benchmarks against PostgreSQL and peers, into bench/RESULTS.md (BENCH=quick: under 15 minutes)
	@tools/setup bench
	cargo build --release --package alluvium --package alluvium-bench
	bench/run $(if $(filter quick,$(BENCH)),--quick) $(BENCH_ARGS)
