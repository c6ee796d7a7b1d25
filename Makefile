# Two commands do everything, on a fresh machine too: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-full targets targets-agents targets-services demo test test-full lint lint-python bench detection findings man wheel clean
# Cargo may be a rustup's that no profile script has put on PATH; runc and ip are in sbin.
cargo_home := $(or $(CARGO_HOME),$(HOME)/.cargo)
export PATH := $(PATH):/usr/sbin:/sbin:$(cargo_home)/bin
# A suite starts leakcheck a thousand times; where images forbid the cache of compiled modules, each start compiles them all.
unexport PYTHONDONTWRITEBYTECODE

bin := $(CURDIR)/.venv/bin
in_venv := PATH="$(bin):$$PATH"

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (Debian packages as root) and build into .venv
	@scripts/setup

setup-full:
	@scripts/setup full

targets: ## install the sandboxes that others wrote into .targets and as Debian packages; ten minutes at first
	@scripts/targets

targets-agents: ## install what AI agents run their commands in, from PyPI into .targets (1.4 GB); two minutes at first
	@scripts/targets agents

targets-services: ## install the job services of examples/services from PyPI into .targets; half a minute at first
	@scripts/targets services

demo: setup ## the main job: guard around bubblewrap and a killed runc, the whole plan on refbox, and a finding of runc
	$(in_venv) scripts/mounted-root examples/demo

test: setup lint-python ## the cargo and pytest suites, under leakcheck itself; what CI runs
	$(in_venv) scripts/mounted-root scripts/self-check sh -c 'cargo test --locked && scripts/pytests -m "not slow"'

test-full: setup-full targets lint ## as test, with the slow tests (a virtual machine among them) and ten times the property cases
	PROPTEST_CASES=2560 $(in_venv) scripts/mounted-root scripts/self-check sh -c 'cargo test --locked && scripts/pytests -o faulthandler_timeout=1800'

lint-python: setup
	"$(bin)/ruff" check
	"$(bin)/ruff" format --check
	"$(bin)/mypy"
	"$(bin)/python" -m mypy.stubtest leakcheck._native

lint: lint-python ## ruff, mypy, stubtest, rustfmt and clippy
	@for tool in cargo-fmt cargo-clippy; do command -v $$tool >/dev/null || \
	  { echo "lint: no $$tool; run: rustup component add rustfmt clippy, or apt-get install rustfmt-web rust-web-clippy" >&2; exit 1; }; done
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

bench: setup ## measure against psutil, lsof and lsfd; writes docs/reference/performance.md
	"$(bin)/python" benches/run.py

detection: setup ## run every planted leak against leakcheck and its peers; writes docs/reference/detection.md
	"$(bin)/python" tests/detection/table.py --write docs/reference/detection.md

findings: setup ## run the campaign leaks on every target that is ready; writes the table of docs/explanation/findings.md; two hours
	"$(bin)/python" scripts/findings

man: setup ## write the manual page from the help of the command; the wheel installs it
	"$(bin)/python" scripts/manpage >man/leakcheck.1.new
	mv man/leakcheck.1.new man/data/share/man/man1/leakcheck.1

wheel: setup ## build the wheel for an index into dist/: manylinux_2_28, for every Python from 3.11
	"$(bin)/python" -m pip install --quiet ziglang auditwheel
	$(in_venv) MATURIN_PEP517_ARGS="--zig --compatibility manylinux_2_28" \
	  RUSTFLAGS="--remap-path-prefix=$(CURDIR)=leakcheck --remap-path-prefix=$(cargo_home)=cargo" \
	  "$(bin)/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	"$(bin)/auditwheel" show dist/*manylinux*.whl

clean: ## remove what was built, the virtual environment too
	rm -rf .venv target dist .pytest_cache .mypy_cache .ruff_cache .hypothesis leakcheck/*.so
	find leakcheck/_bin -type f ! -name __init__.py -delete
	find leakcheck injectors tests build_backend -type d -name __pycache__ -prune -exec rm -rf {} +
