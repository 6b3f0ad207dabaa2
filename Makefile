# Every target sets up what it needs, in .venv, once; a second run builds only what has changed.
# Needed on the machine: python3, pip, cargo, make.
#
#   make        formats, builds, lints and tests
#   make demo   trains, kills, resumes and verifies: what the project is for, in two minutes
#   make test   cargo test and pytest
#   make docs   the API reference, from the docstrings: build/docs/index.html
#
# Variables: PYTHON (python3), VENV (.venv), MARK (which pytest marks), PYTEST_ARGS, BENCH_ARGS,
# FUZZ_SECS, CAMPAIGN_ARGS.

PYTHON ?= python3
VENV ?= .venv
MARK ?= not slow
PYTEST_ARGS ?=
BENCH_ARGS ?=
CAMPAIGN_ARGS ?=
FUZZ_SECS ?= 60

BIN := $(VENV)/bin
# Recipes run the environment's own programs, and maturin finds the environment by this variable.
export VIRTUAL_ENV := $(abspath $(VENV))
export PATH := $(abspath $(BIN)):$(PATH)

TOOLS := $(VENV)/.fastckpt-tools
BUILT := $(VENV)/.fastckpt-built
RUST_SOURCES := $(shell find rust -name target -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print) \
	Cargo.toml $(wildcard Cargo.lock)
RUST_LINT := --workspace --all-targets
# The binding's symbols come from the Python that imports it, so a test binary of that crate does
# not link. It has no Rust tests: pytest is its test.
RUST_TEST := --workspace --exclude fastckpt-py

.DEFAULT_GOAL := all
.PHONY: all develop demo docs test test-rust test-python test-matrix lint lint-rust lint-python \
	format bench fuzz deny campaign clean

all:
	$(MAKE) format
	$(MAKE) develop
	$(MAKE) lint
	$(MAKE) test

develop: $(BUILT)

$(TOOLS): pyproject.toml .ci/install
	.ci/install $(VENV) $(PYTHON) --group dev
	touch $@

# An extension that someone deleted (git clean) is built again although the stamp is there.
ifeq ($(wildcard python/fastckpt/_native*.so),)
.PHONY: $(BUILT)
endif
$(BUILT): $(TOOLS) $(RUST_SOURCES) pyproject.toml
	maturin develop --release $$(test -x $(BIN)/uv && echo --uv)
	touch $@

demo: $(BUILT)
	$(BIN)/python examples/demo.py

docs: $(BUILT)
	.ci/install $(VENV) $(PYTHON) --group docs
	$(BIN)/python docs/make_reference.py build/docs

test: test-rust test-python

test-rust:
	cargo test $(RUST_TEST)

# Two workers: most tests wait for the disk, and each holds a torch of its own in memory.
test-python: $(BUILT)
	$(BIN)/pytest -n 2 --dist loadgroup -m "$(MARK)" $(PYTEST_ARGS)

test-matrix: $(TOOLS)
	.ci/test-matrix $(BIN) $(PYTEST_ARGS)

lint: lint-rust lint-python

lint-rust: $(TOOLS)
	cargo fmt --all --check
	cargo clippy $(RUST_LINT) -- -D warnings

lint-python: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml fastckpt._native

format: $(TOOLS)
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: $(BUILT)
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

fuzz:
	.ci/fuzz $(FUZZ_SECS)

# Licences, sources and duplicates of the Rust dependencies, those of the fuzz targets included.
deny:
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --locked check bans licenses sources
	cargo deny --locked --manifest-path rust/fuzz/Cargo.toml --config rust/fuzz/deny.toml check bans licenses sources

# Hours, not minutes. Stop it with Ctrl-C; it goes on where it was. See docs/testing.md.
campaign: $(BUILT)
	$(BIN)/python -m tests.campaign $(CAMPAIGN_ARGS)

clean:
	rm -rf $(VENV) target build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f python/fastckpt/_native*.so
	find python tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + || true
