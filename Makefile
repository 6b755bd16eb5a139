# Every target does its own set-up, on a fresh Debian 12 with git, make and a Rust toolchain. What is up to date is left
# alone (stamps in .make/); long output goes to .make/*.log and is shown when a step fails.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# ip and nft are in /usr/sbin, which not every shell looks through.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
# maturin sets this for its own build; a test binary built with it would not link.
unexport PYO3_BUILD_EXTENSION_MODULE

VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
CARGO := cargo
CRATE := --manifest-path native/Cargo.toml --locked
RUST := $(shell find native/src -name '*.rs' 2>/dev/null) native/Cargo.toml native/Cargo.lock
SCRIPTS := .ci/run $(wildcard tools/* tests/*.sh native/fuzz/run.sh deploy/*/*.sh)
SECONDS_PER_TARGET ?= 60
FUZZ_TARGETS := $(basename $(notdir $(wildcard native/fuzz/fuzz_targets/*.rs)))
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help setup demo test lint bench fuzz soak docs wheel pin clean
.PHONY: packages-base packages-test packages-lint packages-bench lint-python lint-rust lint-scripts

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

# --- set-up -----------------------------------------------------------------------------------------------------------

setup: .make/native ## Programs, .venv, the native module: everything the rest stands on

packages-base packages-test packages-lint packages-bench: packages-%:
	@tools/packages $*

.make/venv: requirements-dev.txt tools/environment | packages-base
	@tools/environment
	@touch $@

# The .so is looked for as well: a stamp without it is a lie that `git clean` can tell.
.make/native: $(RUST) pyproject.toml .make/venv $(if $(wildcard libvnf/_native*.so),,rebuild)
	@tools/rust
	@tools/step native "native module (cargo, release; about a minute when nothing is cached)" \
		$(VENV)/bin/maturin develop --release --locked
	@touch $@

.PHONY: rebuild
rebuild:

# --- what people run --------------------------------------------------------------------------------------------------

demo: setup ## The papers' chain A–B–C, start to end, in under a minute
	@$(PY) examples/abc/demo.py

test: setup packages-test ## cargo test, a little fuzzing, then pytest: unit, model, integration, meta (PYTEST_ARGS=…)
	@tools/step cargo-test "cargo test" $(CARGO) test $(CRATE)
	@grep -E '^test result' .make/cargo-test.log
	@$(MAKE) fuzz SECONDS_PER_TARGET=3
	@$(PY) -m pytest $(PYTEST_ARGS)

lint: lint-python lint-rust lint-scripts docs ## ruff, mypy, stubtest, clippy, rustfmt, shellcheck, sphinx

lint-python: setup
	@tools/step ruff "ruff check" $(VENV)/bin/ruff check
	@tools/step ruff-format "ruff format" $(VENV)/bin/ruff format --check
	@tools/step mypy "mypy --strict" $(VENV)/bin/mypy
	@tools/step stubtest "stubtest: is _native.pyi true?" \
		$(PY) -m mypy.stubtest libvnf._native --allowlist tests/stubtest.allow --ignore-unused-allowlist

lint-rust: setup
	@tools/step rustfmt "rustfmt" $(CARGO) fmt --manifest-path native/Cargo.toml --check
	@tools/step clippy "clippy, without Python" $(CARGO) clippy $(CRATE) --all-targets -- -D warnings
	@PYO3_PYTHON=$(PY) tools/step clippy-python "clippy, with the Python module" \
		$(CARGO) clippy $(CRATE) --all-targets --features python -- -D warnings

lint-scripts: packages-lint
	@tools/step shellcheck "shellcheck" shellcheck $(SCRIPTS)

docs: setup ## The documentation, into docs/_build
	@tools/step docs "sphinx" $(PY) -m sphinx -b html -W --keep-going docs docs/_build
	@echo "    docs/_build/index.html"

wheel: setup ## A wheel in dist/, proved in an empty environment without a compiler
	@rm -rf dist
	@# Panic messages name source files; a published wheel shall not name the machine that built it.
	@RUSTFLAGS="--remap-path-prefix=$(CURDIR)/= --remap-path-prefix=$(HOME)/.cargo/registry/src/=" \
		tools/step wheel "maturin build" $(VENV)/bin/maturin build --release --strip --locked --out dist \
		--interpreter $(PY) --target-dir native/target/wheel
	@$(PY) -m pytest -m wheel tests/integration/test_wheel.py

bench: setup packages-bench ## Every benchmark, into benchmarks/results (BENCH_ARGS=--quick)
	@mkdir -p benchmarks/results
	@for file in $(filter-out %/harness.py %/state_abc.py,$(wildcard benchmarks/*.py)); do \
		echo "==> $$file"; \
		$(PY) $$file $(BENCH_ARGS) --json benchmarks/results/$$(basename $$file .py).json; \
	done

fuzz: setup ## Every fuzz target (SECONDS_PER_TARGET=60)
	@for target in $(FUZZ_TARGETS); do \
		tools/step fuzz-$$target "fuzz $$target for $(SECONDS_PER_TARGET) s" native/fuzz/run.sh $$target $(SECONDS_PER_TARGET) || exit 1; \
	done

soak: setup packages-test ## Every test, the long ones too, and fifty times as many examples where they are drawn
	@LIBVNF_SEEDS=20000 tools/step cargo-soak "cargo test of TCP, 20,000 seeds" $(CARGO) test $(CRATE) --lib stack::tcp
	@$(PY) -m pytest -m "not wheel" --hypothesis-profile soak --timeout 3600 \
		-o faulthandler_timeout=3500 $(PYTEST_ARGS)

pin: .make/venv ## Renews requirements-dev.txt from pyproject.toml (needs uv)
	@uv pip compile -q --upgrade pyproject.toml --group all --python-version 3.11 --universal --no-annotate \
		--custom-compile-command "make pin" -o requirements-dev.txt

clean: ## Everything that make made
	@rm -rf .make .venv native/target dist build docs/_build libvnf/_native*.so
