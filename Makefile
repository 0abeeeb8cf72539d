# Two commands: `make demo` and `make test`. Everything they need is set up under this folder.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find core/src bindings/src -name '*.rs') Cargo.toml core/Cargo.toml bindings/Cargo.toml pyproject.toml

.PHONY: demo test setup setup-test peers lint rust-test loom sanitize python-test docs bench clean

demo: setup
	$(BIN)/virtq demo

test: setup-test peers lint rust-test loom sanitize python-test

setup: $(VENV)/built

setup-test: setup $(VENV)/test-tools

$(VENV)/bin/maturin:
	@echo "Setting up under $(VENV) and target: some minutes the first time, and quiet while it compiles."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'maturin>=1.7,<2'

$(VENV)/built: $(VENV)/bin/maturin $(SOURCES)
	$(BIN)/maturin develop --release --quiet
	@touch $@

$(VENV)/test-tools: $(VENV)/built pyproject.toml
	$(BIN)/maturin develop --release --quiet --extras test
	@touch $@

peers:
	scripts/peers.sh

lint: setup-test
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

rust-test:
	cargo test --quiet --package virtq-core --release

# The ring code under every interleaving that loom can find.
loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom \
		cargo test --quiet --package virtq-core --release --test loom

# The core's tests under AddressSanitizer, where the toolchain has its runtime. One test leaves the
# sanitizer no mappings for itself.
TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
ASAN_RUNTIME := $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(TARGET)/lib/librustc-*_rt.asan.a)

sanitize:
ifeq ($(ASAN_RUNTIME),)
	@echo "skipped: this Rust toolchain has no AddressSanitizer runtime"
else
	ASAN_OPTIONS=handle_sigbus=0 RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address \
		CARGO_TARGET_DIR=target/sanitize cargo test --quiet --package virtq-core --lib \
		--target $(TARGET) -- --skip more_holes_than_a_process_may_have_mappings
endif

# A peer that polls wants the machine for itself: those tests come last, one at a time.
python-test: setup-test
	$(BIN)/pytest --numprocesses auto --dist worksteal -m 'not alone'
	$(BIN)/pytest -m alone

# The pages of docs/, under target/docs; any warning is an error.
docs: $(VENV)/docs-tools
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs target/docs
	@echo target/docs/index.html

$(VENV)/docs-tools: $(VENV)/built pyproject.toml
	$(BIN)/maturin develop --release --quiet --extras docs
	@touch $@

bench:
	cargo bench --package virtq-core

clean:
	rm -rf $(VENV) target
